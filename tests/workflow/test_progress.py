"""The line that shows how far a run is."""

import io
import os
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from helpers import called

from alignkit.faults import UserFault
from alignkit.training.reinforce import train_policy_gradient
from alignkit.training.sft import SftSettings, train_sft
from alignkit.workflow import progress, store
from alignkit.world.reviews import Reviews


class Terminal(io.StringIO):
    """A stream that says somebody looks at it."""

    def isatty(self) -> bool:
        return True


def test_a_trainer_shows_its_steps_and_times(tmp_path: Path, world, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    sizes = {"policy": "scratch", "tokenizer": "word", "vocab": 400, "width": 16, "layers": 1, "heads": 2, "epochs": 1}
    with progress.shown("train_sft, seed 0", None, 0, notebook=False):
        called(train_sft, tmp_path, **{"seed": 0, "data": world.data, **sizes, **world.sft_training})
    steps = int(stream.getvalue().split(" of ")[1].split()[0])
    last = stream.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith(f"train_sft, seed 0: {steps} of {steps} steps |")
    assert "gone, 00:00 to go" in last


def test_a_loop_shows_the_steps_that_its_settings_name(tmp_path: Path, world, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    loop = {
        "reward_tokens": 64,
        "steps": 3,
        "batch": 8,
        "k": 2,
        "baseline": "rloo",
        "beta": 0.1,
        "lr": 1e-2,
        "warmup": 1,
    }
    loop |= {"anchor": "ema", "ema_rate": 0.1, "max_new_tokens": 8, "keep": (), "decay": True}
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    settings = type("Settings", (), {"steps": 3})
    with progress.shown("loop", settings, 0, notebook=False):
        called(train_policy_gradient, tmp_path, **{"seed": 0, "data": world.data, **models, **loop})
    assert "loop: 3 of 3 steps |" in stream.getvalue()


@pytest.mark.parametrize(("stream", "told"), [(Terminal, "evaluate: 00:00"), (io.StringIO, "")])
def test_what_has_no_steps_shows_its_time_and_a_log_nothing(
    stream: type[io.StringIO], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = stream()
    monkeypatch.setattr("sys.stderr", looked_at)
    with progress.shown("evaluate", None, 0, notebook=False):
        pass
    assert looked_at.getvalue().strip().split("\r")[-1] == told


def test_a_trainer_ends_with_a_validation_in_any_version(
    tmp_path: Path, world, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = transformers.trainer_callback.DefaultFlowCallback.on_step_end

    def as_in_5_0(self, args, state, control, **others) -> transformers.TrainerControl:
        """transformers 5.0 validates each `eval_steps`, and not after the last step."""
        control = plain(self, args, state, control, **others)
        control.should_evaluate &= state.global_step % state.eval_steps == 0
        return control

    monkeypatch.setattr(transformers.trainer_callback.DefaultFlowCallback, "on_step_end", as_in_5_0)
    sizes = {"policy": "scratch", "tokenizer": "word", "vocab": 400, "width": 16, "layers": 1, "heads": 2, "epochs": 1}
    given = {"seed": 0, "data": world.data, **sizes, **world.sft_training}
    last = {}
    for watched in (False, True):
        (folder := tmp_path / str(watched)).mkdir()
        with progress.shown("train_sft", None, 0, notebook=False) if watched else nullcontext():
            called(train_sft, folder, **given)
        last[watched] = pd.read_csv(folder / "history.csv").iloc[-1]
    assert pd.isna(last[False].eval_loss)  # the sizes are such that the last step is no validation's
    assert pd.notna(last[True].eval_loss)
    assert last[True].step == last[False].step


def test_nothing_counts_once_a_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(progress.trainers.DEFAULT_CALLBACKS)
    with pytest.raises(ZeroDivisionError), progress.shown("broken", None, 0, notebook=True):
        1 / 0  # noqa: B018
    assert before == progress.trainers.DEFAULT_CALLBACKS
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    monkeypatch.setattr(progress.Line, "update", lambda *_: pytest.fail("counted"))
    optimizer.step()


def test_a_dashboard_that_is_not_installed_is_told_first(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT_TO", "none, some_cloud")
    with pytest.raises(UserFault, match="ALIGNKIT_REPORT_TO: 'some_cloud' is not installed here; allowed: none"):
        store.get(
            train_sft,
            SftSettings("scratch", "word", 400, 16, 1, 2, 32, 1.0, 16, 1e-3, 10),
            seed=0,
            data=Reviews("pocket", 300, 100, 0),
        )
    assert not list(build.glob("store/*sft*"))


def test_each_run_has_a_folder_of_its_own_for_its_curves(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "get_available_reporting_integrations", lambda: ["tensorboard"])
    monkeypatch.setenv("ALIGNKIT_REPORT_TO", "none, tensorboard")
    progress.reporting("train_sft-12")
    assert os.environ["ALIGNKIT_REPORT_TO"] == "tensorboard"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(build / "tensorboard" / "train_sft-12")


def test_a_loop_that_goes_on_shows_the_steps_that_were_done(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.shown("loop", type("Settings", (), {"steps": 100}), 90, notebook=False):
        pass
    assert "loop: 90 of 100 steps |" in stream.getvalue()
