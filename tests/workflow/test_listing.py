"""What `python -m alignkit runs` says about a store."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit import paths
from alignkit.__main__ import main
from alignkit.workflow.listing import beside_published


def add(function: str, number: int, settings: dict[str, Any] | None = None, **record: Any) -> Path:
    """A run in the store, as old as its number is small."""
    folder = paths.store() / f"{function}-{number:016x}"
    folder.mkdir(parents=True)
    known = {
        "function": function,
        "id": f"{number:016x}",
        "settings": settings or {},
        "inputs": {"seed": 0},
        "runs": {},
    }
    (folder / "run.json").write_text(json.dumps({**known, "seconds": 90, "files": {}, **record}))
    os.utime(folder, (number, number))
    return folder


@pytest.fixture
def listed(build: Path, capsys: pytest.CaptureFixture) -> Any:
    """A function that returns the lines of the command."""

    def lines(*arguments: str) -> list[str]:
        assert main(["runs", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return lines


def test_where_none_is_asked_for_the_functions_are_named(listed: Any):
    assert listed()[-1] == f"0 of 0 shown, newest first; 0 runs in {paths.store()}"
    add("train_dpo", 1)
    add("evaluate", 2)
    first, last = listed("--function", "warp")
    assert first == "none; functions that ran: evaluate, train_dpo"
    assert last == f"0 of 0 shown, newest first; 2 runs in {paths.store()}"


def test_the_newest_come_first_with_what_sets_them_apart(listed: Any):
    for number, beta in enumerate([0.1, 0.1, 0.5], start=1):
        folder = add("train_dpo", number, {"beta": beta, "lr": 1})
    first, place, second, *_, last = listed("--limit", "2")
    assert (first, place) == ("train_dpo  seed 0  1.5 min  beta=0.5", f"    {folder}")
    assert second == "train_dpo  seed 0  1.5 min  usual settings"
    assert last == f"2 of 3 shown, newest first; 3 runs in {paths.store()}"


def test_a_function_and_a_seed_choose_among_two_thousand(listed: Any):
    for number in range(2000):
        add("train_dpo" if number % 2 else "evaluate", number, inputs={"seed": number % 5})
    assert len(listed()) == 2 * 20 + 1
    lines = listed("--function", "dpo", "--seed", "3", "--limit", "500")
    assert len(lines) == 2 * 200 + 1
    assert {line.split("  ")[0] for line in lines[:-1:2]} == {"train_dpo"}
    assert {line.split("  ")[1] for line in lines[:-1:2]} == {"seed 3"}


def test_the_line_of_a_policy_loads_it_with_transformers(listed: Any, lively_policy: Any):
    import transformers

    from alignkit.world.models import train_tokenizer

    folder = add("train_sft", 1, files={"config.json": "", "model.safetensors": ""})
    policy = lively_policy(train_tokenizer("word", ["a dull film"], 10), 0)
    policy.save_pretrained(folder)
    line = listed()[1].strip()
    kind, place = line.removeprefix("transformers.").removesuffix("')").split(".from_pretrained('")
    assert (kind, place) == ("GPT2LMHeadModel", str(folder))
    loaded = getattr(transformers, kind).from_pretrained(place)
    assert {name: weight.sum().item() for name, weight in loaded.named_parameters()} == {
        name: weight.sum().item() for name, weight in policy.named_parameters()
    }


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"files": 3}', "[" * 100_000, "null"])
def test_a_damaged_or_foreign_folder_is_one_line(listed: Any, text: str):
    whole = add("evaluate", 1)
    add("train_dpo", 2, files={"model.safetensors": "gone"})
    (add("train_dpo", 3) / "run.json").write_text(text)
    add("train_dpo", 4).rename(paths.store() / "train_dpo-swapped")
    (paths.store() / "foreign").mkdir()
    (paths.store() / "a_file").touch()
    lines = listed()
    assert lines[1] == f"    {whole}"
    names = {"train_dpo-swapped", "train_dpo-0000000000000002", "train_dpo-0000000000000003", "foreign"}
    assert {line.partition(":")[0] for line in lines[2:-1]} == names


def test_a_profile_chooses_the_runs_that_its_notebooks_name(listed: Any, capsys: pytest.CaptureFixture):
    add("train_dpo", 1)
    add("train_dpo", 2)
    paths.figures("smoke").mkdir(parents=True)
    (paths.figures("smoke") / "2_runs.csv").write_text(f"run,seed,id,profile\nsft,0,{1:016x},smoke\n")
    assert listed("smoke")[-1].startswith("1 of 1 shown")
    assert main(["runs", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_in_a_wheel_a_profile_chooses_the_published_runs(listed: Any, tmp_path: Path, monkeypatch):
    add("train_dpo", 1)
    add("train_dpo", 2)
    monkeypatch.setattr(paths, "CHECKOUT", None)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    (tmp_path / "figures" / "smoke").mkdir(parents=True)
    (tmp_path / "figures" / "smoke" / "2_runs.csv").write_text(f"run,seed,id,profile\nsft,0,{1:016x},smoke\n")
    assert listed("smoke")[-1].startswith("1 of 1 shown")


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alignkit.workflow.listing.runs", interrupted)
    assert main(["runs"]) == 130
    assert capsys.readouterr().err == "interrupted: what has ended is kept, and the same command goes on from there\n"


def test_rows_that_a_training_job_repeats_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paths, "published", lambda profile: tmp_path / profile)
    (tmp_path / "own").mkdir()
    asked = SimpleNamespace(profile="own", notebook="4_warp")
    runs = {name: SimpleNamespace(metrics={"kl": kl, "reward": 0.5}) for name, kl in (("a", 0.1234564), ("b", 0.2))}
    assert beside_published(asked, 3, runs) == []
    (tmp_path / "own" / "4_runs.csv").write_text("run,seed,id\na,3,0e1\nb,3,0e2\nc,3,0e3\nreward,3,0e4\na,4,0e5\n")
    assert beside_published(asked, 3, runs) == []
    rows = ["0e1,0.123456,0.5", "0e2,0.200001,0.5", "0e3,0.3,0.5", "0e5,0.4,0.5"]
    (tmp_path / "own" / "4_warp.csv").write_text("\n".join(["run,kl,reward", *rows]))
    (line,) = beside_published(asked, 3, runs)
    assert beside_published(asked, 3, runs | {"c": SimpleNamespace(metrics={"reward": 0.5})}) == [line]
    rows[2] = "0e3,,0.5"
    (tmp_path / "own" / "4_warp.csv").write_text("\n".join(["run,kl,reward", *rows]))
    (searched,) = beside_published(asked, 3, runs | {"c": SimpleNamespace(metrics={"reward": 0.5})})
    assert searched.startswith("2 of 3 rows")
    assert line.startswith("1 of 3 rows that figures/own has of 4_warp with seed 3 are repeated: ")
    assert beside_published(asked, 5, runs) == []
    (tmp_path / "own" / "4_runs.csv").unlink()
    assert beside_published(asked, 3, runs) == []
