"""The batch without Snakemake: what it starts and in which order, what it leaves, and that it may be cut off."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import alone, batch

NAMES = ["1_reward_model", "2_dpo_losses", "6_one_front"]
MOST = 16_000_000
"""Bytes of an archive."""


def test_the_first_seed_is_trained_first_and_of_others_the_last_notebook():
    jobs = alone.training_jobs({name: batch.values(name, "pretrained") for name in NAMES})
    assert jobs[:3] == [(name, 0) for name in NAMES]
    assert jobs[3:] == [(name, seed) for seed in (1, 2) for name in reversed(NAMES)]


@pytest.fixture
def commands(build: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is started in place of processes; a training job leaves a run, that of notebook 2 fails."""
    started = []

    def run(profile: str, *command: str) -> bool:
        started.append(command)
        if command[0] == "train":
            name = "-".join(Path(word).stem for word in command)
            run = build / "store" / f"tmp-{name}"
            run.mkdir(parents=True)
            record = {"inputs": {"seed": 0}, "seconds": 1.0, "metrics": {"status": "ok", "test_cross_entropy": 3.5}}
            (run / "run.json").write_text(json.dumps(record))
            run.rename(run.with_name(f"train_sft-{name}"))  # whole at once, as the store does it
        return command[0] != "train" or "2_dpo_losses" not in command[1]

    monkeypatch.chdir(paths.CHECKOUT)  # and back
    monkeypatch.setattr(alone, "_run", run)
    monkeypatch.setattr(alone.time, "sleep", lambda _: None)
    monkeypatch.setattr(batch, "notebooks", lambda _: NAMES)
    return started


def test_a_notebook_is_executed_after_its_training_and_published_at_once(commands: list, tmp_path: Path, capsys):
    assert not alone.report("smoke", 2, tmp_path / "none", tmp_path / "out")
    asked = [" ".join(Path(word).stem for word in command) for command in commands]
    assert asked[0] == "check smoke --reach"
    assert sorted(asked[1:4]) == [f"train {name} --seed 0" for name in NAMES]
    # Notebook 2 was not trained, and notebook 6 reads its tables.
    assert asked[4:] == ["execute smoke 1_reward_model", "publish smoke"]
    assert capsys.readouterr().out.count("1 s  test_cross_entropy 3.500") == 3
    assert len((tmp_path / "out" / "runs.jsonl").read_text().splitlines()) == 3


def test_nothing_is_started_where_something_is_out_of_reach(commands: list, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(alone, "_run", lambda *command: commands.append(command))
    assert not alone.report("smoke", 2, tmp_path, tmp_path / "out")
    assert len(commands) == 1


def test_a_job_that_was_killed_is_told_after_what_it_said(build: Path, tmp_path: Path, monkeypatch, capsys):
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\necho 'on its way'\nkill -9 $$\n")
    killed.chmod(0o755)
    (build / "smoke" / "logs").mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(killed))
    assert not alone._run("smoke", "train", "params/smoke/1_reward_model.yaml")
    assert "train-1_reward_model: failed, ['on its way', 'killed by signal 9']" in capsys.readouterr().out


def test_after_ctrl_c_no_further_notebook_is_executed(commands: list, tmp_path: Path, monkeypatch):
    begun, done = Event(), []

    def run(_: str, *command: str) -> bool:
        done.append(command)
        if command[0] == "execute":
            begun.set()
            Event().wait(0.3)  # the others wait for it meanwhile
        return True

    def pressed(_: float) -> None:
        begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(alone, "_run", run)
    monkeypatch.setattr(alone.time, "sleep", pressed)
    with pytest.raises(KeyboardInterrupt):
        alone.report("smoke", 2, tmp_path, tmp_path / "out")
    assert [command[0] for command in done].count("execute") == 1


def test_a_second_report_is_one_line_and_starts_nothing(commands: list, tmp_path: Path):
    with batch.lock_build("smoke", ".report-lock"), pytest.raises(UserFault, match="another batch is running"):
        alone.report("smoke", 2, tmp_path, tmp_path / "out")
    assert commands == []
    alone.report("smoke", 2, tmp_path, tmp_path / "out")
    batch.lock_build("smoke", ".report-lock").release()  # the report has ended


def test_an_archive_unfolds_where_the_published_report_lies(build: Path, tmp_path: Path):
    (build / "imdb_scratch" / "logs").mkdir(parents=True)
    (build / "imdb_scratch" / "logs" / "job.log").write_text("told")
    (build / "imdb_scratch" / "logs" / "gone.ipynb").symlink_to("moved meanwhile")
    (tmp_path / "runs.jsonl").write_text("{}\n")
    archive = alone.pack("imdb_scratch", tmp_path)
    assert archive.stat().st_size < MOST
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "clone", filter="data")
    there = {str(f.relative_to(tmp_path / "clone")) for f in (tmp_path / "clone").rglob("*") if f.is_file()}
    published = paths.CHECKOUT / "figures" / "imdb_scratch"
    assert there == {f"figures/imdb_scratch/{file.name}" for file in published.iterdir()} | {
        "build/imdb_scratch/logs/job.log",
        "build/imdb_scratch/runs.jsonl",
    }


def test_what_is_sealed_already_is_not_executed_again(commands: list, build: Path, tmp_path: Path, monkeypatch):
    sealed = batch.seal("smoke", NAMES[0], batch.content_key(NAMES[0], "smoke"))
    sealed.parent.mkdir(parents=True)
    sealed.touch()
    monkeypatch.setattr(batch, "first_damaged", lambda *_: "")
    alone.report("smoke", 2, tmp_path / "none", tmp_path / "out")
    assert [command[0] for command in commands[4:]] == ["publish"]


def test_a_page_of_older_code_does_not_stand_in_the_way(commands: list, build: Path, tmp_path: Path):
    old = batch.executed("smoke", NAMES[1])  # its training fails, so it is not executed again
    old.parent.mkdir(parents=True)
    old.touch()
    alone.report("smoke", 2, tmp_path / "none", tmp_path / "out")
    assert not old.exists()


@pytest.mark.batch
def test_a_report_that_was_cut_off_goes_on_where_it_was(copy_checkout: Callable[[Path], Path], tmp_path: Path):
    """By the environment's Python alone, in a folder that is no repository, for one notebook of the smoke profile."""
    root, out = copy_checkout(tmp_path / "checkout"), tmp_path / "out"
    with (root / "params" / "smoke" / "shared.yaml").open("a") as shared:
        shared.write("notebooks: [1_reward_model]\n")
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HF_DATASETS_CACHE")}
    place = {"HOME": str(tmp_path), "ALIGNKIT_BUILD": str(tmp_path / "build"), "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "alignkit", "report", "smoke", "--jobs", "2", "--out", str(out)]
    how = {"cwd": tmp_path, "env": kept | place, "stdout": subprocess.PIPE, "text": True}

    with subprocess.Popen(command, **how, start_new_session=True) as first:
        told = next(line for line in first.stdout if "train_reward-" in line)
        os.killpg(first.pid, signal.SIGKILL)
    run = json.loads((out / "runs.jsonl").read_text().splitlines()[0])
    assert run["id"] in told

    done = subprocess.run(command, **how, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout
    assert run["id"] not in done.stdout
    assert (out / "smoke.tar.gz").stat().st_size < MOST
    with tarfile.open(out / "smoke.tar.gz") as tar:
        names = {Path(name).relative_to("figures/smoke").name for name in tar.getnames() if name.startswith("figures/")}
    assert names >= {"1_reward_model.ipynb", "1_reward_model.csv", "1_training.png", "findings.csv"}
