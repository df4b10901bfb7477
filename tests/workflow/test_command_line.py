"""What a user types: a mistake is one line and exit code 2, whatever the command."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit import paths
from alignkit.__main__ import IN_A_CLONE, main

FILE = str(paths.PARAMS / "smoke" / "1_reward_model.yaml")


@pytest.mark.parametrize(
    "profile", ["./pocket", "pocket/", "smoke/../pocket", "../figures/pocket", "..", "", "a" * 300]
)
@pytest.mark.parametrize("command", ["publish", "replicate", "verify", "runs", "tune", "report", "execute", "done"])
def test_only_the_name_of_a_profile_is_one(command: str, profile: str, capsys: pytest.CaptureFixture):
    assert main([command, profile, *(["1_reward_model"] if command == "execute" else [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{command}: profile: ")
    assert "allowed: imdb, " in line


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["execute", "smoke", "../1_reward_model"], "argument notebook: invalid choice: "),
        (["runs", "--limit", "0"], "argument --limit: '0'; allowed: a whole number from 1 on"),
        (["report", "smoke", "--jobs", "two"], "argument --jobs: 'two'; allowed: a whole number from 1 on"),
        (["nope"], "argument command: invalid choice: 'nope'"),
    ],
)
def test_an_argument_that_is_none_is_told_with_the_usage(asked: list[str], told: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 2
    assert f"error: {told}" in capsys.readouterr().err.splitlines()[-1]


def test_a_revision_is_never_an_option_of_git(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "precious.txt"
    file.write_text("precious")
    assert main(["verify", "pocket", f"--against=--output={file}"]) == 2
    assert "allowed: a commit, a branch or a tag" in capsys.readouterr().err
    assert file.read_text() == "precious"


@pytest.mark.parametrize("profile", ["pocket", "pocket_replica"])
def test_pockets_report_on_other_reviews_is_refused_before_it_trains(profile: str, capsys: pytest.CaptureFixture):
    assert main(["done", profile, "--data", "reviews.csv"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("allowed: another profile, such as imdb_scratch")


def test_a_seed_for_tuning_is_one_that_no_report_uses(capsys: pytest.CaptureFixture):
    assert main(["tune", "smoke", "--seed", "0"]) == 2
    assert "allowed: 101, 102" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["execute", "smoke", "1_reward_model"], ["report", "smoke"]])
def test_a_build_folder_that_is_a_file_is_one_line(command, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALIGNKIT_BUILD", str(tmp_path / "file"))
    assert main(command) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("ALIGNKIT_NUMERICS", ["show", FILE]), ("WORLD_SIZE", ["train", FILE, "--seed", "0"]),
     ("RANK", ["train", FILE, "--seed", "0"])],
)  # fmt: skip
def test_a_variable_with_a_value_that_is_none_is_one_line(name: str, arguments: list[str], alone, monkeypatch):
    monkeypatch.setenv(name, "x")
    told = alone("-m", "alignkit", *arguments)
    assert told.returncode == 2
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"{name}: 'x'; allowed: ")


def test_a_terminal_without_greek_letters_is_printed_to(alone, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    told = alone("-m", "alignkit", "show", str(paths.PARAMS / "smoke" / "2_dpo_losses.yaml"))
    assert (told.returncode, told.stderr) == (0, "")
    assert "\\u" in told.stdout


def test_who_has_read_enough_ends_a_command_quietly():
    command = f"{sys.executable} -m alignkit show {FILE} | true; exit ${{PIPESTATUS[0]}}"
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_output_that_cannot_be_written_is_one_line():
    command = f"{sys.executable} -m alignkit show {FILE} > /dev/full"
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("name", ["ALIGNKIT_BUILD", "JOBS", "AGAINST"])
@pytest.mark.parametrize("value", ["$(shell touch {})", '"; touch {}; "', "$(touch {})", "`touch {}`"])
@pytest.mark.parametrize("typed", [True, False], ids=["on make's line", "in the environment"])
def test_what_a_variable_says_is_no_code_for_make(name: str, value: str, typed: bool, tmp_path: Path):
    value = value.format(tmp_path / "PWNED")
    told = subprocess.run(
        ["make", "-n", "smoke", "verify", "test", *([f"{name}={value}"] if typed else [])],
        cwd=paths.CHECKOUT,
        env=os.environ | ({} if typed else {name: value}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "snakemake" in told.stdout
    assert "PWNED" not in told.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("done", "batch", "code", "started"),
    [
        (0, 0, 0, ["check", "done"]), (1, 0, 0, ["check", "done", "snakemake", "publish"]),
        (1, 1, 2, ["check", "done", "snakemake", "publish"]), (1, 2, 2, ["check", "done", "snakemake"]),
        (2, 0, 2, ["check", "done"]), (130, 0, 2, ["check", "done"]),
    ],
    ids=["all done", "to do", "a job fails", "the batch cannot start", "a fault", "interrupted"],
)  # fmt: skip
def test_make_report_starts_what_is_needed(done: int, batch: int, code: int, started: list[str], tmp_path: Path):
    known = [paths.CHECKOUT / name for name in ("requirements.lock", "pyproject.toml")]
    for file in (paths.CHECKOUT / "Makefile", *known):
        shutil.copy(file, tmp_path)
    ready = hashlib.sha256(b"".join(file.read_bytes() for file in known)).hexdigest()[:12]
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands.parent / f"ready-{ready}").touch()
    stand_ins = {"python": ("$3", f"[ $3 != done ] || exit {done}"), "snakemake": ("snakemake", f"exit {batch}")}
    for name, (told, ends) in stand_ins.items():
        (commands / name).write_text(f'#!/bin/sh\necho {told} >> "{tmp_path}/started"\n{ends}\n')
        (commands / name).chmod(0o755)
    asked = ["make", "report", f"PYTHON={sys.executable}", "PROFILE=smoke"]
    ended = subprocess.run(asked, cwd=tmp_path, capture_output=True, check=False)
    assert (ended.returncode, (tmp_path / "started").read_text().split()) == (code, started)


@pytest.mark.parametrize("command", IN_A_CLONE)
def test_what_needs_the_repository_says_so_without_one(command: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(paths, "CHECKOUT", None)
    given = {"html": [], "execute": ["smoke", "1_reward_model"]}.get(command, ["smoke"])
    assert main([command, *given]) == 2
    told = f"{command}: alignkit was installed without its repository; run this in a clone of it\n"
    assert capsys.readouterr() == ("", told)
