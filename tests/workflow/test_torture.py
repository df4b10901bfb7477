"""Faults at random: files of kept runs damaged, processes killed at any moment.  A few of each here, many by
`make torture`."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import in_a_copy, times
from test_store import POCKET

from alignkit import paths
from alignkit.report import dpo_losses, one_front, policies
from alignkit.workflow import parameters, store
from alignkit.world import resume

DAMAGES, KILLS = times(40, 400), times(2, 14)
FILES = ("model.txt", "more/history.csv", "run.json")


def flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def cut(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def append(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes() + chance.randbytes(3))


def remove(file: Path, chance: random.Random) -> None:
    file.unlink()


def add(file: Path, chance: random.Random) -> None:
    file.with_name(f"more-{chance.random()}").write_bytes(b"0")


def swap(file: Path, chance: random.Random) -> None:
    """The same file of a run with another seed, whose weights are others."""
    other = store.get(named, seed=1 + chance.randrange(9), data=POCKET)
    shutil.copy(next(other.folder.rglob(file.name)), file)


def named(out: Path, seed: int, data: Any) -> dict[str, int]:
    for name in FILES[:2]:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(f"of seed {seed}")
    return {"seed": seed}


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (flip, cut, append, remove, add, swap)


def test_a_kept_run_that_was_damaged_at_random_is_trained_again(build: Path, capsys):
    run = store.get(named, seed=0, data=POCKET)
    kept = {name: (run.folder / name).read_bytes() for name in FILES[:2]}
    for number in range(DAMAGES):
        chance = random.Random(number)
        way, name = chance.choice(WAYS), chance.choice(FILES)
        way(run.folder / name, chance)
        assert store.get(named, seed=0, data=POCKET) == run
        assert capsys.readouterr().err.count(" was damaged (") == 1
        assert {name: (run.folder / name).read_bytes() for name in kept} == kept


def trains() -> None:
    """Runs of four kinds, each of which keeps its state as often as it can."""
    resume.EVERY = 0.0
    pairs, front = (parameters.load(paths.PARAMS / "smoke" / f"{n}.yaml") for n in ("2_dpo_losses", "6_one_front"))
    policies.aligned(pairs, 0, dpo_losses.methods(pairs)[:1], policies.prepared(pairs, 0))
    one_front.sweep(front, 0, policies.started(front, 0))


@pytest.mark.slow
def test_training_that_is_killed_at_any_moment_ends_with_the_same_bits(build: Path, tmp_path: Path):
    def to_the_end(build: Path) -> None:
        process = in_a_copy(trains, build=build)
        process.join()
        assert process.exitcode == 0, build.with_suffix(".out").read_text()

    begun, other = time.monotonic(), tmp_path / "undisturbed"
    to_the_end(other)
    whole = time.monotonic() - begun
    chance, ended = random.Random(0), []
    for _ in range(KILLS):  # each goes on where the one before was killed, so a late one may have come to its end
        process = in_a_copy(trains, build=build)
        time.sleep(whole * chance.uniform(0.1, 0.4))
        process.kill()
        process.join()
        ended.append(process.exitcode)
        left = [folder.name for folder in (build / "store").glob("train_*")] if build.exists() else []
        assert all((build / "store" / name / store.RECORD).is_file() for name in left)
    assert -signal.SIGKILL in ended
    to_the_end(build)
    assert kept(build) == kept(other)
    assert {"train_sft", "train_reward", "train_dpo", "train_policy_gradient"} <= {
        n.partition("-")[0] for n in kept(build)
    }
    assert not list((build / "store").glob("tmp-*"))


def kept(build: Path) -> dict[str, dict[str, str]]:
    """The checksums of each run's files, without those that hold times."""
    records = [json.loads(file.read_text()) for file in (build / "store").glob("*/run.json")]
    return {f"{record['function']}-{record['id']}": record["files"] for record in records}
