"""Runs that were killed and went on are equal to the bit to runs that were not; weights that are not finite end one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import called

from alignkit.faults import UserFault
from alignkit.training.distil import regress
from alignkit.training.dpo import train_dpo
from alignkit.training.reinforce import train_policy_gradient
from alignkit.training.reward import train_reward
from alignkit.training.sft import train_sft
from alignkit.world import resume


class Killed(BaseException):
    """In place of a signal, which would end the tests as well."""


ENCODER = {
    **{"base": "scratch", "tokenizer": "encoder_word", "vocab": 400, "width": 16, "layers": 1, "heads": 2},
    **{"sinusoidal": True, "dropout": 0.1, "word_dropout": 0.2, "tokens": 64, "held_out": 50},
    **{"epochs": 2, "batch": 32, "lr": 1e-2},
}
POLICY = {"policy": "scratch", "tokenizer": "word", "vocab": 400, "width": 16, "layers": 1, "heads": 2, "epochs": 1}
LOOP = {
    **{"reward_tokens": 64, "steps": 6, "batch": 8, "k": 2, "baseline": "rloo", "beta": 0.1, "lr": 1e-2, "warmup": 2},
    **{"anchor": "ema", "ema_rate": 0.1, "max_new_tokens": 8, "keep": (1, 5), "decay": True},
}
REGRESSION = {"beta": 1.0, "steps": 6, "batch": 8, "lr": 1e-3, "warmup": 2, "on_policy": True, "max_new_tokens": 8}
DPO = {"loss": "sigmoid", "divergence": "js", "beta": 0.1, "epochs": 2, "batch": 8, "lr": 1e-3}


@pytest.fixture(params=["sft", "reward", "dpo", "lora", "loop", "regress"])
def train(request, world) -> Callable[[Path], dict[str, Any]]:
    """One training function each, as a function of the folder that it writes."""
    data = {"seed": 0, "data": world.data}
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    given = {
        "sft": (train_sft, {**data, **POLICY, **world.sft_training}),
        "reward": (train_reward, {**data, **ENCODER}),
        "dpo": (train_dpo, {"seed": 0, "policy": world.sft, "pairs": world.pairs, **DPO}),
        "lora": (train_dpo, {"seed": 0, "policy": world.sft, "pairs": world.pairs, **DPO, "lora_rank": 2}),
        "loop": (train_policy_gradient, {**data, **models, **LOOP}),
        "regress": (regress, {"seed": 0, **models, "draws": world.generations, **REGRESSION, "reward_tokens": 64}),
    }
    function, inputs = given[request.param]
    return lambda out: called(function, out, **inputs)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.endswith("_seconds")}


@pytest.mark.slow
def test_a_run_that_went_on_is_equal_to_the_bit(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = train(whole)
    monkeypatch.setattr(resume, "EVERY", 0.0)
    for states in (2, 1):  # the last thing that happens is that the n-th state has been kept
        with monkeypatch.context() as here:
            left = iter(range(states - 1))

            def then_die(kept: Callable[..., None], left=left) -> Callable[..., None]:
                def keep(*given: Any, **more: Any) -> None:
                    kept(*given, **more)
                    if next(left, None) is None:
                        raise Killed

                return keep

            here.setattr(resume, "keep", then_die(resume.keep))
            here.setattr(resume.Watch, "on_save", then_die(resume.Watch.on_save))
            with pytest.raises(Killed):
                train(broken)
    assert (broken / resume.FOLDER).is_dir()
    found = train(broken)
    assert timeless(found) == timeless(expected)
    assert files(broken) == files(whole)


def test_a_damaged_state_is_one_line_and_the_next_call_begins_anew(world, tmp_path: Path) -> None:
    state = tmp_path / resume.FOLDER / resume.STATE
    state.parent.mkdir()
    state.write_bytes(b"half a state")
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    given = {"seed": 0, "data": world.data, **models, **LOOP}
    with pytest.raises(UserFault, match="damaged"):
        called(train_policy_gradient, tmp_path, **given)
    assert called(train_policy_gradient, tmp_path, **given)["status"] == "ok"
    assert not state.parent.exists()


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_a_rate_that_breaks_a_trainer_ends_it_early(kind: str, world, tmp_path: Path) -> None:
    data = {"seed": 0, "data": world.data}
    given = {
        "sft": (train_sft, {**data, **POLICY, **world.sft_training}),
        "reward": (train_reward, {**data, **ENCODER}),
        "dpo": (train_dpo, {"seed": 0, "policy": world.sft, "pairs": world.pairs, **DPO}),
    }
    function, inputs = given[kind]
    found = called(function, tmp_path, **inputs | {"lr": 1e30})
    assert found["status"] == "diverged"
    assert 1 <= found["diverged_at"] <= 10
