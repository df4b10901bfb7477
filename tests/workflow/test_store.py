"""Runs: what changes their identity, and that the store never serves what it should not."""

import errno
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from helpers import in_a_copy, sources
from torch.optim.optimizer import register_optimizer_step_post_hook

from alignkit import numerics, paths
from alignkit.faults import UserFault
from alignkit.training.dpo import train_dpo
from alignkit.training.evaluate import evaluate
from alignkit.training.merge import merge_policies
from alignkit.training.reinforce import train_policy_gradient
from alignkit.training.reward import train_reward
from alignkit.training.sft import SftSettings, train_sft
from alignkit.workflow import checksums, identity, store
from alignkit.world import resume
from alignkit.world.known import READ
from alignkit.world.models import MODEL
from alignkit.world.reviews import Reviews

POCKET = Reviews("pocket", 20, 10, 10)
CALLS: list[dict[str, Any]] = []
TRAINING = (train_sft, train_reward, train_dpo, evaluate, train_policy_gradient, merge_policies)


@dataclass(frozen=True)
class Settings:
    policy: str = field(default="", metadata=MODEL)


def train(out: Path, settings: Settings | None = None, **inputs: Any) -> dict[str, float]:
    """Writes two files, one of them in a folder; remembers that it was called."""
    CALLS.append(inputs)
    (out / "model.txt").write_text("weights")
    (out / "more").mkdir()
    (out / "more" / "history.csv").write_text("loss\n0.5\n")
    return {"accuracy": 0.75}


def retrain(out: Path, **inputs: Any) -> dict[str, float]:
    return train(out, **inputs)


def fail(out: Path, **inputs: Any) -> dict[str, float]:
    (out / "half.txt").write_text("half a model")
    raise ZeroDivisionError("on purpose")


def unrecordable(out: Path, **inputs: Any) -> dict[str, Any]:
    return {"accuracy": object()}


@pytest.fixture(autouse=True)
def _no_calls(build: Path) -> None:
    CALLS.clear()


def kept(build: Path) -> list[str]:
    """What lies in the store beside its locks."""
    return sorted(f.name for f in (build / "store").glob("*") if f.name != "locks")


# Loading


def test_a_first_call_trains_and_a_second_call_loads(build: Path):
    first = store.get(train, seed=0, data=POCKET, lr=0.1)
    second = store.get(train, seed=0, data=POCKET, lr=0.1)
    assert CALLS == [{"seed": 0, "data": POCKET, "lr": 0.1}]
    assert first == second
    assert kept(build) == [first.path.name]
    assert second.metrics == {"accuracy": 0.75}
    assert (second.path / "more" / "history.csv").read_text() == "loss\n0.5\n"


def test_the_record_tells_what_the_run_is_and_where_its_files_are_from():
    run = store.get(train, seed=3, data=POCKET, lr=0.1)
    record = run.record
    assert record["id"] == run.id
    assert record["inputs"] == {"seed": 3, "data": POCKET.fingerprint(), "lr": 0.1}
    assert record["function"] == "train"
    assert record["numerics"] == numerics.in_force()
    assert set(record["files"]) == {"model.txt", "more/history.csv"}
    assert set(record["versions"]) == set(store.LIBRARIES)
    assert record["hardware"]
    assert record["seconds"] >= 0


def test_a_run_as_an_input_counts_by_its_files_and_arrives_as_its_folder():
    policy = store.get(train, seed=0, data=POCKET)
    first = store.get(retrain, seed=0, data=POCKET, policy=policy)
    assert CALLS[-1]["policy"] == policy.path
    assert first.record["inputs"]["policy"] == policy.content
    assert first.record["runs"] == {"policy": policy.id}
    part = policy.at("more")
    assert part.path == policy.path / "more"
    assert store.get(retrain, seed=0, data=POCKET, policy=part).id != first.id
    assert CALLS[-1]["policy"] == part.path


def test_a_part_of_a_run_has_its_own_files_alone(tmp_path: Path):
    files = {"step-1/weights": "one", "step-10/weights": "ten", "weights": "last"}
    (tmp_path / "run.json").write_text(json.dumps({"files": files}))
    run = store.Run("0", tmp_path)
    assert run.at("step-1").content == checksums.of_values([("weights", "one")])
    assert run.content == checksums.of_values(sorted(files.items()))


# Identity


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"lr": 0.2},
        {"epochs": 1},
        {"data": replace(POCKET, train_reviews=22)},
        {"train": retrain},
    ],
    ids=["seed", "setting", "another setting", "data", "function"],
)
def test_a_change_of_what_is_trained_gives_another_run(change: dict[str, Any]):
    call = {"train": train, "seed": 0, "data": POCKET, "lr": 0.1}
    assert store.get(**call).id != store.get(**{**call, **change}).id
    assert len(CALLS) == 2


@pytest.mark.parametrize("library", store.LIBRARIES)
def test_another_version_of_a_library_gives_another_run(library: str, monkeypatch: pytest.MonkeyPatch):
    before = store.get(train, seed=0, data=POCKET)
    version = store.version
    monkeypatch.setattr(store, "version", lambda name: "0.0.1" if name == library else version(name))
    assert store.get(train, seed=0, data=POCKET).id != before.id


def test_the_order_of_the_settings_does_not_matter():
    assert store.get(train, seed=0, data=POCKET, a=1, b=2) == store.get(train, b=2, a=1, data=POCKET, seed=0)


def write_reviews(folder: Path, first: str = "it was good .") -> dict[str, Path]:
    """The same reviews as one CSV file and as a folder with a file for each split."""
    rows = [
        (first if i == 0 else f"review number {i} .", i % 2, split)
        for split in ("train", "test")
        for i in range(8 if split == "train" else 4)
    ]
    table = pd.DataFrame(rows, columns=["text", "label", "split"])
    table["text"] = table.split + " " + table.text
    (folder / "split").mkdir(parents=True)
    table.to_csv(folder / "reviews.csv", index=False)
    for split, part in table.groupby("split"):
        part.drop(columns="split").to_csv(folder / "split" / f"{split}.csv", index=False)
    return {"file": folder / "reviews.csv", "folder": folder / "split"}


def test_a_model_in_a_local_folder_counts_by_its_files(tmp_path: Path):
    for name, weights in (("here", "1"), ("there", "1"), ("other", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(weights)
    here, there, other = (
        store.get(train, Settings(str(tmp_path / name)), seed=0, data=POCKET).id for name in ("here", "there", "other")
    )
    assert here == there != other
    (tmp_path / "here" / "model.safetensors").write_text("3")
    assert store.get(train, Settings(str(tmp_path / "here")), seed=0, data=POCKET).id not in (here, other)
    assert store.get(train, Settings("a/hub-id"), seed=0, data=POCKET).id not in (here, other)


def test_where_the_reviews_lie_does_not_matter_but_what_they_say_does(tmp_path: Path):
    places = [*write_reviews(tmp_path / "here").values(), *write_reviews(tmp_path / "there").values()]
    other = write_reviews(tmp_path / "other", first="it was bad .")["file"]
    found = {str(place): store.get(train, seed=0, data=Reviews(str(place))).id for place in [*places, other]}
    assert len({found[str(place)] for place in places}) == 1
    assert found[str(other)] != found[str(places[0])]
    assert len(CALLS) == 2


@pytest.mark.parametrize(
    "edit",
    [
        ("world/reach.py", "HUB_TIMEOUT = 5", "HUB_TIMEOUT = 5  # seconds", set()),
        ("training/dpo.py", '"""Train a policy on preference pairs', '"""Teach a policy preference pairs', set()),
        ("losses.py", "relu(1 - beta", "relu(2 - beta", {"train_dpo"}),
        ("pocket.py", "FAULT_COST = 5.0", "FAULT_COST = 6.0", {"evaluate"}),
        ("merging.py", "PARALLEL = 1e-3", "PARALLEL = 1e-4", {"merge_policies"}),
        ("kl.py", "ratio**2 / 2", "ratio**2 / 3", {"evaluate", "train_policy_gradient"}),
        ("world/own.py", "% 5 == 4", "% 4 == 3", set()),  # it reads reviews, which count by what they say
        ("report/readme.py", "", "EDITED = 1\n", set()),
    ],
    ids=lambda edit: edit[2].strip()[:40],
)  # fmt: skip
def test_an_edit_changes_the_runs_that_reach_it(edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, old, new, changed = edit
    before = sources(*TRAINING)
    copy = tmp_path / "alignkit"
    shutil.copytree(paths.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new) if old else text + new)
    monkeypatch.setattr(paths, "PACKAGE", copy)
    assert {f.__name__ for f, a, b in zip(TRAINING, before, sources(*TRAINING), strict=True) if a != b} == changed


@pytest.mark.parametrize("world", ["pocket", READ])
def test_a_world_that_is_added_changes_no_run_of_another(world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = frozenset({world})
    before = identity.source(evaluate, words)
    copy = tmp_path / "alignkit"
    shutil.copytree(paths.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "world" / "known.py"
    file.write_text(
        file.read_text().replace(f'    "{READ}": None,', f'    "{READ}": None,\n    "new": Truth(1, 2, 3),')
    )
    monkeypatch.setattr(paths, "PACKAGE", copy)
    identity.source.cache_clear()
    identity._read.cache_clear()
    assert identity.source(evaluate, frozenset({"new"})) != before
    assert identity.source(evaluate, words) == before


def test_runs_on_reviews_from_files_do_not_count_what_is_true_in_pocket():
    pocket = ("alignkit.pocket", "gold_reward")
    assert pocket in identity.reached(evaluate.__module__, "evaluate", frozenset({"pocket"}))
    assert pocket not in identity.reached(evaluate.__module__, "evaluate", frozenset({READ}))


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("losses.py", "relu(1 - beta", "relu(2 - beta", "hinge"),
        ("divergences.py", "inverse=lambda x: -1 / x", "inverse=lambda x: -2 / x", "forward_kl"),
        ("divergences.py", 'name="gan"', 'name="another"', "gan"),
    ],
    ids=["a loss", "a divergence", "a divergence under another name"],
)
def test_an_edit_of_one_loss_or_divergence_changes_only_its_own_runs(
    file: str, old: str, new: str, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained = [("hinge", "reverse_kl"), ("sigmoid", "reverse_kl"), ("sigmoid", "forward_kl"), ("sigmoid", "gan")]

    def found() -> list[str]:
        return [sources(train_dpo, words=frozenset(words))[0] for words in trained]

    before = found()
    copy = tmp_path / "alignkit"
    shutil.copytree(paths.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    monkeypatch.setattr(paths, "PACKAGE", copy)
    moved = [words for words, a, b in zip(trained, before, found(), strict=True) if a != b]
    assert moved == [words for words in trained if changed in words]


def test_a_retrain_to_the_same_bits_changes_nothing_after_it(monkeypatch: pytest.MonkeyPatch):
    first = store.get(train, seed=0, data=POCKET)
    after = store.get(retrain, seed=0, data=POCKET, policy=first)
    version = store.version
    monkeypatch.setattr(store, "version", lambda name: "0.0.1" if name == "nltk" else version(name))
    again = store.get(train, seed=0, data=POCKET)
    assert again.id != first.id
    monkeypatch.setattr(store, "version", version)
    assert store.get(retrain, seed=0, data=POCKET, policy=again) == after


def test_numerics_and_precision_count(monkeypatch: pytest.MonkeyPatch):
    before = store.get(train, seed=0, data=POCKET).id
    in_force = numerics.in_force
    other = {**in_force(), "kernels": "another instruction set"}
    monkeypatch.setattr(numerics, "in_force", lambda: other)
    assert store.get(train, seed=0, data=POCKET).id != before
    monkeypatch.setattr(numerics, "in_force", in_force)
    monkeypatch.setattr(store, "precision", lambda: {"bf16": True})
    assert store.get(train, seed=0, data=POCKET).id != before


# Failures


def test_a_training_that_raises_leaves_nothing_in_the_store(build: Path):
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        store.get(fail, seed=0, data=POCKET)
    assert kept(build) == []


@pytest.mark.parametrize("free", [0, 10**9])
def test_a_full_disk_is_one_line_and_leaves_nothing_half(build: Path, monkeypatch: pytest.MonkeyPatch, free: int):
    """Some writers say what the matter is, others fail in words of their own on a disk with nothing left."""
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(store, "_checksums", lambda _: no_room() if free else 1 / 0)
    with pytest.raises(UserFault, match=r"^[^\n]*store: the disk is full; what has ended is whole[^\n]*$"):
        store.get(train, seed=0, data=POCKET)
    assert kept(build) == []


def no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_result_that_cannot_be_recorded_leaves_nothing_in_the_store(build: Path):
    with pytest.raises(TypeError):
        store.get(unrecordable, seed=0, data=POCKET)
    assert kept(build) == []


def test_a_store_that_cannot_be_written_is_one_line(build: Path):
    build.write_text("a file")
    with pytest.raises(UserFault, match=r"^[^\n]*store: cannot be written [^\n]*set ALIGNKIT_BUILD[^\n]*$"):
        store.get(train, seed=0, data=POCKET)


def without_locks(monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    """Let locks fail as on file systems that have none."""

    def refuse(*_: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_where_files_cannot_be_locked_so_a_file_serves_as_the_lock(build: Path, monkeypatch: pytest.MonkeyPatch):
    without_locks(monkeypatch, errno.ENOSYS)
    assert store.get(train, seed=0, data=POCKET).metrics == store.get(train, seed=0, data=POCKET).metrics


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_store_without_locks_is_one_line(reason: int, build: Path, monkeypatch: pytest.MonkeyPatch):
    without_locks(monkeypatch, reason)
    with pytest.raises(UserFault, match=rf"^[^\n]*cannot be written [^\n]*{os.strerror(reason)}[^\n]*$"):
        store.get(train, seed=0, data=POCKET)
    assert kept(build) == []


SLOW = '''
"""Trains as long as the file `hold` exists; counts its trainings in `count`."""
import time
from pathlib import Path

HERE = Path(__file__).parent
def train(out, **settings):
    (out / "model.txt").write_text("weights")
    with open(HERE / "count", "a") as count:
        count.write("trained\\n")
    while (HERE / "hold").exists():
        time.sleep(0.02)
    return {}
'''


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module above."""
    (tmp_path / "slow_training.py").write_text(SLOW)
    (tmp_path / "hold").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("slow_training")
    del sys.modules["slow_training"]


def ask(slow: ModuleType, asks: Path) -> None:
    asks.touch()
    print(store.get(slow.train, seed=0, data=POCKET).path)


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.02)


def test_a_killed_training_leaves_no_run_and_the_next_call_trains(slow: ModuleType, build: Path, tmp_path: Path):
    process = in_a_copy(ask, slow, tmp_path / "asks", build=build)
    wait_for((tmp_path / "count").exists)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not [name for name in kept(build) if name.startswith("train-")]
    (tmp_path / "hold").unlink()
    run = store.get(slow.train, seed=0, data=POCKET)
    assert run.path.name in kept(build)
    assert (tmp_path / "count").read_text().split() == ["trained", "trained"]


def test_two_processes_that_ask_for_the_same_run_train_it_once(slow: ModuleType, build: Path, tmp_path: Path):
    (tmp_path / "other").symlink_to(build)  # what each prints lies beside the name of its build folder
    names = [build, tmp_path / "other"]
    processes = [in_a_copy(ask, slow, name.with_suffix(".asks"), build=name) for name in names]
    wait_for(lambda: all(name.with_suffix(".asks").exists() for name in names))
    wait_for((tmp_path / "count").exists)
    time.sleep(0.5)  # the one that does not train has come to the lock by now
    (tmp_path / "hold").unlink()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, second = (name.with_suffix(".out").read_text() for name in names)
    assert first == second
    assert Path(first.strip()).is_dir()
    assert (tmp_path / "count").read_text().split() == ["trained"]


# Damage


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, change, Path.unlink], ids=["truncated", "changed", "missing"])
@pytest.mark.parametrize("name", ["model.txt", "more/history.csv", "run.json"])
def test_a_damaged_run_is_set_aside_in_one_line_and_trained_again(damage: Callable[[Path], None], name: str, capsys):
    run = store.get(train, seed=0, data=POCKET)
    damage(run.path / name)
    left = {str(f.relative_to(run.path)): f.read_bytes() for f in run.path.rglob("*") if f.is_file()}
    again = store.get(train, seed=0, data=POCKET)
    assert again == run
    assert len(CALLS) == 2
    aside = run.folder.parent / store.ASIDE / f"{run.folder.name}-1"
    assert {str(f.relative_to(aside)): f.read_bytes() for f in aside.rglob("*") if f.is_file()} == left
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    for part in (str(run.folder), name, str(aside), "trained again"):
        assert part in told[0]
    assert store.get(train, seed=0, data=POCKET) == run
    assert len(CALLS) == 2


def test_a_run_that_is_damaged_twice_is_set_aside_twice():
    for _ in range(2):
        change(store.get(train, seed=0, data=POCKET).path / "model.txt")
    run = store.get(train, seed=0, data=POCKET)
    assert len(CALLS) == 3
    assert len(list((run.folder.parent / store.ASIDE).iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"files": null}', '{"files": {"model.txt": 1}}'])
def test_a_run_whose_record_is_none_is_trained_again(content: str):
    run = store.get(train, seed=0, data=POCKET)
    (run.path / "run.json").write_text(content)
    assert store.get(train, seed=0, data=POCKET).metrics == {"accuracy": 0.75}
    assert len(CALLS) == 2


def test_metrics_that_were_edited_in_the_record_are_not_served():
    run = store.get(train, seed=0, data=POCKET)
    record = run.path / "run.json"
    record.write_text(record.read_text().replace("0.75", "0.99"))
    assert store.get(train, seed=0, data=POCKET).metrics == {"accuracy": 0.75}


# Killed in the middle


def test_what_a_killed_run_left_goes_after_a_week_unless_it_is_held(build: Path):
    (build / "store" / store.LOCKS).mkdir(parents=True)
    left = {name: build / "store" / f"tmp-{name}" for name in ("old", "new", "held", "old-aside")}
    for name, folder in left.items():
        (folder / "resume").mkdir(parents=True)
        if name != "new":
            os.utime(folder, (time.time() - 8 * 86_400,) * 2)
    with FileLock(build / "store" / store.LOCKS / "held.lock"):
        store.get(train, seed=0, data=POCKET)
    assert {name for name, folder in left.items() if folder.exists()} == {"new", "held"}


def test_a_file_in_the_place_of_a_run_does_not_stand_in_the_way(build: Path):
    run = store.get(train, seed=0, data=POCKET)
    shutil.rmtree(run.folder)
    run.folder.with_name(f"tmp-{run.id}").touch()
    assert store.get(train, seed=0, data=POCKET) == run


def sft(kills: int) -> None:
    """A run that keeps its state at each step, and is killed after as many steps; prints its files and steps."""
    resume.EVERY = 0.0
    usual, left, steps = resume.Watch.on_save, iter(range(kills)), []

    def on_save(*given: Any, **more: Any) -> None:
        usual(*given, **more)
        if next(left, None) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    resume.Watch.on_save = on_save
    register_optimizer_step_post_hook(lambda *_: steps.append(1))
    settings = SftSettings("scratch", "word", 400, 16, 1, 2, 32, 1.0, 16, 1e-3, 20)
    run = store.get(train_sft, settings, seed=0, data=Reviews("pocket", 200, 40, 40))
    print(json.dumps([run.record["files"], len(steps)]))


def sft_in_a_copy(build: Path, kills: int) -> tuple[int, list[str]]:
    """The exit code of `sft`, and the lines that it printed."""
    process = in_a_copy(sft, kills, build=build)
    process.join(60)
    return process.exitcode, build.with_suffix(".out").read_text().splitlines()


def test_a_run_that_was_killed_goes_on_in_the_store(tmp_path: Path):
    assert sft_in_a_copy(tmp_path / "killed", 1)[0] == -signal.SIGKILL
    (state,) = (tmp_path / "killed" / "store").glob("tmp-*/resume/checkpoint-*")
    told = [sft_in_a_copy(tmp_path / name, 0)[1] for name in ("killed", "whole")]
    (files, steps), (expected, all_steps) = (json.loads(lines[-1]) for lines in told)
    assert files == expected
    assert steps == all_steps - int(state.name.partition("-")[2])
    assert not list((tmp_path / "killed" / "store").glob("tmp-*"))


@pytest.mark.parametrize("damage", ["optimizer.pt", "model.safetensors"])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_begins_anew(tmp_path: Path, damage: str):
    sft_in_a_copy(tmp_path / "build", 1)
    store_of_it = tmp_path / "build" / "store"
    (part,) = store_of_it.glob(f"tmp-*/resume/checkpoint-*/{damage}")
    part.unlink() if damage == "optimizer.pt" else part.write_bytes(part.read_bytes()[:1000])
    code, told = sft_in_a_copy(tmp_path / "build", 0)
    assert code == 0, told
    aside = "-aside: could not be gone on from and was set aside; the run begins anew"
    assert sum(aside in line for line in told) == 1
    assert len(list(store_of_it.glob("tmp-*-aside"))) == 1


def goes_on(out: Path, settings: None = None, **inputs: Any) -> dict[str, float]:
    """Reads a state first, as the loops do."""
    CALLS.append(inputs)
    resume.kept(out, {})
    return {"accuracy": 0.5}


def test_a_damaged_state_is_told_in_one_line_and_the_run_begins_anew(capsys):
    run = store.get(goes_on, seed=0)
    state = run.folder.with_name(f"tmp-{run.id}") / resume.FOLDER / resume.STATE
    shutil.rmtree(run.folder)
    state.parent.mkdir(parents=True)
    state.write_bytes(b"half a state")
    assert store.get(goes_on, seed=0) == run
    assert len(CALLS) == 3
    assert capsys.readouterr().err.count("state.pt: was damaged") == 1
    assert not state.parent.parent.exists()
