"""The training loop of the policy gradient, through tiny trainings."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import called
from safetensors.torch import load_file

from alignkit import policy_gradient
from alignkit.faults import UserFault
from alignkit.pocket import generate_reviews
from alignkit.policy_gradient import BASELINES, advantages
from alignkit.sampling import full_texts, sample, sequence_kl, sequence_log_probs
from alignkit.training import reinforce
from alignkit.training.credit import sentence_ends
from alignkit.training.deviations import train_greedily, train_on_token_means
from alignkit.training.reinforce import (
    LEAST_RATE,
    SENTENCE,
    LoopSettings,
    _rate,
    train_policy_gradient,
    train_prompts,
)
from alignkit.training.reward import score_with, zero_of
from alignkit.world.models import load_policy
from alignkit.world.reviews import Reviews

Train = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def train(world, tmp_path_factory) -> Train:
    """A function that trains with these settings changed and returns the folder and what training returned."""

    def run(how: Callable[..., Any] = train_policy_gradient, **changed: Any) -> tuple[Path, dict[str, Any]]:
        usual = {
            **{"seed": 0, "data": world.data, "policy": world.sft, "reference": world.sft, "reward": world.reward},
            **{"reward_tokens": 64, "steps": 4, "batch": 8, "k": 2, "baseline": "rloo", "beta": 0.1, "lr": 1e-2},
            **{"warmup": 0, "anchor": "ema", "ema_rate": 0.1, "max_new_tokens": 8, "stream": (0, 0)},
        }
        out = tmp_path_factory.mktemp("run")
        return out, called(how, out, **usual | changed)

    return run


@pytest.fixture(scope="module")
def run(train: Train) -> tuple[Path, dict[str, Any]]:
    """The usual settings."""
    return train()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")


def test_the_same_seed_and_stream_give_the_same_weights_and_history(run, train: Train) -> None:
    again, metrics = train()
    assert same_weights(run[0], again)
    pd.testing.assert_frame_equal(history(run[0]), history(again), check_exact=True)
    assert metrics["tokens_generated"] == run[1]["tokens_generated"]


def test_training_moves_the_policy_and_not_the_files_that_it_starts_from(train: Train, world) -> None:
    files = [file for folder in (world.sft, world.reward) for file in folder.rglob("*") if file.is_file()]
    before = [file.read_bytes() for file in files]
    out, metrics = train()
    assert metrics["status"] == "ok"
    assert not same_weights(out, world.sft)
    assert [file.read_bytes() for file in files] == before


def test_two_streams_start_equal_and_part(run, train: Train) -> None:
    other, _ = train(stream=(0, 1))
    first, second = history(run[0]), history(other)
    assert first.kl_anchor[0] == second.kl_anchor[0] == 0
    assert (first.kl_anchor[1:] > 0).all()
    assert first.reward[0] != second.reward[0]
    assert not same_weights(run[0], other)


@pytest.mark.parametrize("warmup", [0, 3])
def test_weights_kept_on_the_way_are_those_of_a_shorter_run(train: Train, warmup: int) -> None:
    longer, _ = train(warmup=warmup, keep=[2])
    shorter, _ = train(warmup=warmup, steps=2)
    assert same_weights(longer / "step-2", shorter)
    assert not same_weights(longer / "step-2", longer)
    pd.testing.assert_frame_equal(history(longer)[:2], history(shorter), check_exact=True)


def test_the_history_has_a_row_for_each_step(run) -> None:
    log = history(run[0])
    columns = ["step", "reward", "kl_anchor", "entropy", "length", "repetition", "grad_norm", "kl_sft"]
    assert log.columns.tolist() == columns
    assert log.step.tolist() == [1, 2, 3, 4]
    assert log.drop(columns="kl_sft").notna().all(axis=None)
    assert log.kl_sft.notna().tolist() == [True, False, False, False]
    assert log.kl_sft[0] > 0  # after the first step
    assert (log.length <= 8).all()


def test_without_an_anchor_beta_does_not_matter(train: Train) -> None:
    free, heavy = (train(anchor="none", beta=beta)[0] for beta in (0.1, 50.0))
    assert same_weights(free, heavy)
    assert not same_weights(train(beta=50.0)[0], heavy)


def test_an_ema_anchor_begins_at_the_start_a_fixed_one_is_sft(run, train: Train) -> None:
    ema, _ = train(policy=run[0])
    reference, _ = train(policy=run[0], anchor="reference")
    assert history(ema).kl_anchor[0] == 0
    assert history(reference).kl_anchor[0] > 0
    assert history(reference).kl_sft[0] > 0


def test_an_ema_that_does_not_move_is_the_reference(train: Train) -> None:
    still, _ = train(ema_rate=0.0)
    reference, _ = train(anchor="reference")
    assert same_weights(still, reference)
    pd.testing.assert_frame_equal(history(still), history(reference), check_exact=True)


def test_an_ema_that_follows_at_once_never_has_a_kl_to_pay(train: Train) -> None:
    out, _ = train(ema_rate=1.0)
    assert history(out).kl_anchor.tolist() == [0] * 4


def test_a_gradient_that_is_not_finite_ends_the_run_with_finite_weights(
    train: Train, world, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = reinforce.score
    calls: list[int] = []

    def breaks(*arguments: Any, **settings: Any) -> np.ndarray:
        calls.append(1)
        return scored(*arguments, **settings) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(reinforce, "score", breaks)
    out, metrics = train(keep=[1, 3, 4])
    assert metrics["status"] == "diverged"
    assert history(out).step.tolist() == [1, 2, 3]
    assert all(tensor.isfinite().all() for tensor in weights(out).values())
    assert not same_weights(out, world.sft)
    # Whoever asks for a step that it did not reach finds the last finite weights.
    assert [same_weights(out, out / f"step-{n}") for n in (1, 3, 4)] == [False, True, True]


def test_tokens_are_counted_and_each_completion_is_scored_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[pd.DataFrame] = []

    def spy(*arguments: Any, **settings: Any) -> pd.DataFrame:
        drawn.append(sample(*arguments, **settings))
        return drawn[-1]

    monkeypatch.setattr(reinforce, "sample", spy)
    out, metrics = train(k=4)
    lengths = [some.completion_ids.map(len) for some in drawn]
    assert metrics["tokens_generated"] == metrics["tokens_trained"] == sum(some.sum() for some in lengths)
    assert history(out).length.tolist() == [some.mean() for some in lengths]
    for some in drawn:
        assert some.groupby("prompt", sort=False).size().tolist() == [4, 4]
        assert some.prompt_ids.map(len).between(5, 15).all()
    first = [prompt for some in drawn for prompt in some.prompt.unique()]
    assert len(set(first)) == len(first)  # none comes twice before all have been seen


def test_the_first_steps_reward_is_less_beta_times_the_log_ratio(
    run, train: Train, world, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[pd.DataFrame] = []
    penalised: list[torch.Tensor] = []

    def spy_on_samples(*arguments: Any, **settings: Any) -> pd.DataFrame:
        drawn.append(sample(*arguments, **settings))
        return drawn[-1]

    def spy_on_rewards(rewards: torch.Tensor, baseline: str) -> torch.Tensor:
        penalised.append(rewards)
        return advantages(rewards, baseline)

    monkeypatch.setattr(reinforce, "sample", spy_on_samples)
    monkeypatch.setattr(policy_gradient, "advantages", spy_on_rewards)
    out, _ = train(policy=run[0], anchor="reference", beta=0.7, steps=1)
    model, codec = load_policy(run[0])
    ids = drawn[0].prompt_ids.tolist(), drawn[0].completion_ids.tolist()
    ratio = sequence_log_probs(model, *ids) - sequence_log_probs(load_policy(world.sft)[0], *ids)
    assert np.abs(ratio).max() > 0.1
    rewards = score_with(world.reward, full_texts(drawn[0], codec), tokens=64) - zero_of(world.reward)
    np.testing.assert_allclose(penalised[0], (rewards - 0.7 * ratio).reshape(4, 2), rtol=0, atol=1e-4)
    assert history(out).reward[0] == pytest.approx(rewards.mean())
    sft = load_policy(world.sft)[0]
    for name, folder in (("kl_anchor", run[0]), ("kl_sft", out)):  # before the step, and after it
        exact, _ = sequence_kl(load_policy(folder)[0], sft, ids[0], *ids)
        assert history(out)[name][0] == pytest.approx(exact.mean(), rel=1e-3)


def test_a_step_makes_what_beats_its_peers_likelier(train: Train, world, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[pd.DataFrame] = []
    monkeypatch.setattr(reinforce, "sample", lambda *a, **s: drawn.append(sample(*a, **s)) or drawn[-1])
    out, _ = train(steps=1, k=4, lr=1e-3, anchor="none")
    before, codec = load_policy(world.sft)
    ids = drawn[0].prompt_ids.tolist(), drawn[0].completion_ids.tolist()
    rewards = torch.tensor(score_with(world.reward, full_texts(drawn[0], codec), tokens=64)).view(-1, 4)
    moved = sequence_log_probs(load_policy(out)[0], *ids) - sequence_log_probs(before, *ids)
    assert advantages(rewards, "rloo").flatten().numpy() @ moved > 0


def test_the_rate_rises_and_then_stays_or_falls() -> None:
    sizes = {"steps": 10, "batch": 1, "k": 1, "max_new_tokens": 1, "reward_tokens": 1}
    usual = {**sizes, "baseline": "none", "beta": 0, "lr": 1, "warmup": 4, "anchor": "none", "ema_rate": 0}
    falling, constant = (LoopSettings(**usual, decay=decay) for decay in (True, False))
    expected = [0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [_rate(done, falling) for done in range(10)] == pytest.approx(expected)
    assert _rate(10, falling) == LEAST_RATE
    assert [_rate(done, constant) for done in (0, 3, 9)] == [0.25, 1, 1]


@pytest.mark.parametrize("baseline", [*(name for name in BASELINES if name != "none"), SENTENCE])
def test_one_sample_a_prompt_has_a_baseline_over_the_batch(
    train: Train, baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = reinforce.score
    # Rewards far from zero: only what is compared with the batch does not follow their level.
    monkeypatch.setattr(reinforce, "score", lambda *arguments, **settings: scored(*arguments, **settings) + 5)
    none, some = (history(train(k=1, baseline=name, steps=1)[0]) for name in ("none", baseline))
    assert none.reward[0] == some.reward[0]
    assert 0 < some.grad_norm[0] != pytest.approx(none.grad_norm[0], rel=0.01)


def test_tokens_are_counted_where_k_does_not_divide_the_batch(train: Train) -> None:
    out, metrics = train(k=3, steps=1)
    assert metrics["tokens_generated"] == round(6 * history(out).length[0])
    assert metrics["texts_scored"] == 6


def test_greedy_completions_leave_nothing_to_learn_from_with_a_baseline(train: Train, world) -> None:
    out, _ = train(train_greedily, steps=2, k=4)
    assert (history(out).grad_norm < 1e-4).all()
    assert history(train(train_greedily, baseline="none", steps=1)[0]).grad_norm[0] > 1e-2


def test_the_exact_kl_has_a_gradient_where_rewards_have_none(run, train: Train) -> None:
    silent = {"policy": run[0], "anchor": "reference", "k": 4, "steps": 1, "beta": 1.0}
    logs = [history(train(train_greedily, **silent, exact_kl=value)[0]) for value in (True, False)]
    exact, sampled = (log.grad_norm[0] for log in logs)
    assert exact > 1e-2
    assert sampled < 1e-4


def test_the_exact_kl_is_descended_in_proportion_to_beta(run, train: Train) -> None:
    silent = {"policy": run[0], "anchor": "reference", "k": 4, "steps": 1, "lr": 1e-3, "exact_kl": True}
    one, two = (history(train(train_greedily, **silent, beta=beta)[0]) for beta in (1.0, 2.0))
    assert one.kl_sft[0] < one.kl_anchor[0]  # the same texts and anchor, after the step and before it
    assert two.grad_norm[0] == pytest.approx(2 * one.grad_norm[0], rel=1e-3)


@pytest.mark.parametrize("changed", [{"exact_kl": True}, {"baseline": SENTENCE, "k": 1}])
def test_a_token_mean_goes_with_nothing_that_needs_single_tokens(train: Train, changed: dict[str, Any]) -> None:
    with pytest.raises(UserFault, match=r"^token means: .*allowed: "):
        train(train_on_token_means, **changed)


def test_a_token_mean_has_a_smaller_gradient_than_the_sum(train: Train) -> None:
    mean, whole = (history(train(how, steps=1)[0]) for how in (train_on_token_means, train_policy_gradient))
    assert mean.reward[0] == whole.reward[0]
    assert 0 < mean.grad_norm[0] < whole.grad_norm[0] / 5


@pytest.mark.parametrize("changed", [{"baseline": SENTENCE, "k": 1}, {"exact_kl": True}, {"decay": True}])
def test_what_goes_beyond_algorithm_1_trains_another_policy(run, train: Train, changed: dict[str, Any]) -> None:
    out, metrics = train(**changed)
    assert metrics["status"] == "ok"
    assert history(out).kl_anchor[0] == 0
    assert not same_weights(out, run[0])


def test_credit_by_sentence_has_the_beginnings_of_sentences_read_as_well(run, train: Train) -> None:
    _, metrics = train(baseline=SENTENCE, k=1)
    assert run[1]["texts_scored"] == 4 * 8
    assert metrics["texts_scored"] > 2 * 4 * 8


def test_a_full_stop_ends_a_sentence(world) -> None:
    _, codec = load_policy(world.sft)
    assert {codec.decode([i]).strip() for i in sentence_ends(codec)} == {"."}


def test_a_falling_rate_leaves_less_of_a_step_than_a_constant_one(train: Train) -> None:
    kept = {decay: train(decay=decay, keep=[3], warmup=0)[0] for decay in (False, True)}
    moved = {
        decay: sum((weights(out)[name] - old).abs().sum() for name, old in weights(out / "step-3").items())
        for decay, out in kept.items()
    }
    assert 0 < moved[True] < moved[False] / 2


@pytest.mark.parametrize(("key", "value"), [("baseline", "median"), ("anchor", "sft")])
def test_a_setting_that_the_loop_does_not_have_is_one_line(train: Train, key: str, value: str) -> None:
    with pytest.raises(UserFault, match=f"^{key}: '{value}'; allowed: .*none") as refused:
        train(**{key: value})
    assert "\n" not in str(refused.value)


def test_train_prompts_come_again_in_another_order(world) -> None:
    asked = train_prompts(world.data, world.sft, 0, np.random.default_rng(0), 100)
    first, second = ([text for _ in range(5) for text in next(asked)] for _ in range(2))
    assert world.data.train_reviews == 2 * len(first)
    assert len(set(first)) > 490  # few begin alike
    assert sorted(first) == sorted(second)
    assert first != second


def test_reviews_that_were_edited_give_other_train_prompts_at_once(world, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    reviews = generate_reviews(200, 0)
    data = Reviews(str(file))

    def asked() -> list[str]:
        return next(train_prompts(data, world.sft, 0, np.random.default_rng(0), 8))

    reviews.to_csv(file, index=False)
    before = asked()
    assert asked() == before
    reviews.assign(text="Well , " + reviews.text).to_csv(file, index=False)
    assert all(text.startswith("Well , ") for text in asked())
