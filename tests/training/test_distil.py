"""Weighted draws, what is fitted to them, and least squares on the optimum, against closed forms."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import called
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from alignkit.training.distil import distil, log_tilts, optimal_values, regress, resampled_rows
from alignkit.training.merge import state_of
from alignkit.training.pairs import generate
from alignkit.world.models import load_policy

TRAINING = {"batch": 16, "lr": 1e-2}
REGRESSION = {"batch": 32, "lr": 1e-3, "steps": 60, "warmup": 3, "beta": 1.0, "max_new_tokens": 16, "reward_tokens": 64}


def table(rewards: np.ndarray, log_ratios: np.ndarray | float = 0.0) -> pd.DataFrame:
    """Draws (prompts, n) of a policy whose log-probs exceed the reference's by log_ratios."""
    place = np.repeat(np.arange(len(rewards)), rewards.shape[1])
    own = np.broadcast_to(log_ratios, rewards.shape).ravel()
    return pd.DataFrame({"place": place, "reward": rewards.ravel(), "own_logps": own, "ref_logps": 0.0})


@pytest.fixture(scope="module")
def drawn(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("drawn")
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    sizes = {"n_prompts": 40, "k": 8, "max_new_tokens": 16, "reward_tokens": 64}
    called(generate, out, seed=0, data=world.data, **models, **sizes)
    return out


@given(st.floats(0.2, 5.0), st.integers(1, 40), st.integers(0, 99))
def test_a_draw_is_taken_as_often_as_its_weight_says(beta: float, times: int, seed: int):
    rng = np.random.default_rng(seed)
    tilts = log_tilts(table(rng.normal(size=(3, 5))), beta)
    rows = resampled_rows(tilts, times, rng)
    assert (rows // 5 == np.arange(3)[:, None]).all()
    counts = np.stack([np.bincount(row - 5 * i, minlength=5) for i, row in enumerate(rows)])
    assert (np.abs(counts - times * softmax(tilts, axis=1)) < 1 + 1e-9).all()


def test_values_of_the_optimum_are_exact_where_texts_are_listed():
    rng = np.random.default_rng(0)
    reward, beta = rng.normal(size=6), 0.7
    reference, policy = rng.dirichlet(np.ones(6), size=2)
    exact = beta * np.log(reference @ np.exp(reward / beta))
    # As many draws of each text as the policy's probability says, under the weights π_ref/π.
    texts = np.repeat(np.arange(6), np.round(policy * 1e5).astype(int))
    draws = table(reward[texts][None]).assign(own_logps=np.log(policy)[texts], ref_logps=np.log(reference)[texts])
    np.testing.assert_allclose(optimal_values(draws, beta), exact, atol=1e-3)


def test_draws_of_the_reference_have_its_log_probs_twice(drawn: Path):
    draws = pd.read_parquet(drawn / "generations.parquet")
    np.testing.assert_array_equal(draws.own_logps, draws.ref_logps)
    np.testing.assert_allclose(log_tilts(draws, 2.0), draws.reward.to_numpy().reshape(40, 8) / 2)


def test_another_stream_draws_other_completions(world, drawn: Path, tmp_path: Path):
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    sizes = {"n_prompts": 40, "k": 8, "max_new_tokens": 16, "reward_tokens": 64}
    called(generate, tmp_path, seed=0, data=world.data, **models, **sizes, stream=1)
    first, second = (pd.read_parquet(folder / "generations.parquet") for folder in (drawn, tmp_path))
    assert first.prompt.tolist() == second.prompt.tolist()
    assert [*map(list, first.completion_ids)] != [*map(list, second.completion_ids)]


def test_distilling_raises_the_reward_and_repeats_itself(world, drawn: Path, tmp_path: Path):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        done = called(distil, folder, seed=0, policy=world.sft, draws=drawn, beta=0.3, per_prompt=8, **TRAINING)
        assert done["status"] == "ok"
        shares = softmax(log_tilts(pd.read_parquet(drawn / "generations.parquet"), 0.3), axis=1)
        assert done["effective_draws"] == pytest.approx(np.median(1 / (shares**2).sum(axis=1)))
    first, second = map(state_of, folders)
    assert all((first[name] == second[name]).all() for name in first)
    models = {"reference": world.sft, "reward": world.reward}
    sizes = {"n_prompts": 40, "k": 8, "max_new_tokens": 16, "reward_tokens": 64}
    again = tmp_path / "again"
    again.mkdir()
    called(generate, again, seed=0, data=world.data, policy=folders[0], **models, **sizes)
    before, after = (pd.read_parquet(folder / "generations.parquet") for folder in (drawn, again))
    assert after.reward.mean() > before.reward.mean()
    assert (after.own_logps - after.ref_logps).mean() > 0  # an estimate of the KL


def test_completions_alone_count_in_the_loss_of_distilling(world, drawn: Path, tmp_path: Path):
    done = called(distil, tmp_path, seed=0, policy=world.sft, draws=drawn, beta=0.3, per_prompt=8, **TRAINING)
    draws = pd.read_parquet(drawn / "generations.parquet")
    rows = resampled_rows(log_tilts(draws, 0.3), 8, np.random.default_rng(0))
    lengths = draws.completion_ids.map(len).to_numpy()
    assert done["tokens_trained"] == lengths[rows[2:]].sum()
    held_out = rows[:2].ravel()  # one batch; validated before the first step as well
    nats = -draws.own_logps.to_numpy()[held_out].sum() / lengths[held_out].sum()
    assert pd.read_csv(tmp_path / "history.csv").eval_loss[0] == pytest.approx(nats, abs=1e-4)


def test_the_first_error_of_regression_is_what_rewards_lack(world, drawn: Path, tmp_path: Path):
    draws = pd.read_parquet(drawn / "generations.parquet")
    how = REGRESSION | {"beta": 0.5, "steps": 1, "warmup": 0, "batch": len(draws)}
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    called(regress, tmp_path, seed=0, **models, draws=drawn, on_policy=False, **how)
    lack = draws.reward - optimal_values(draws, 0.5)[draws.place]
    assert pd.read_csv(tmp_path / "history.csv").error[0] == pytest.approx((lack**2).mean(), rel=1e-4)


def test_where_the_reference_is_the_optimum_regression_moves_nothing(world, drawn: Path, tmp_path: Path):
    level = tmp_path / "level"
    level.mkdir()
    pd.read_parquet(drawn / "generations.parquet").assign(reward=1.5).to_parquet(level / "generations.parquet")
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    called(regress, tmp_path, seed=0, **models, draws=level, on_policy=False, **REGRESSION | {"steps": 3})
    before, after = state_of(world.sft), state_of(tmp_path)
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-3
    assert pd.read_csv(tmp_path / "history.csv").error.max() < 1e-6


@pytest.mark.parametrize("on_policy", [True, False])
def test_regression_lowers_its_error(world, drawn: Path, tmp_path: Path, on_policy: bool):
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    done = called(regress, tmp_path, seed=0, **models, draws=drawn, on_policy=on_policy, **REGRESSION)
    error = pd.read_csv(tmp_path / "history.csv").error
    assert done["status"] == "ok"
    assert (done["tokens_generated"] > 0) == on_policy
    six_times_all = 6 * pd.read_parquet(drawn / "generations.parquet").completion_ids.map(len).sum()  # 60 steps of 32
    assert done["tokens_trained"] == (done["tokens_generated"] if on_policy else six_times_all)
    assert error[-20:].mean() < error[:20].mean()
    assert load_policy(tmp_path)[0].config.vocab_size == load_policy(world.sft)[0].config.vocab_size


def test_a_diverged_regression_is_told(world, drawn: Path, tmp_path: Path):
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    broken = tmp_path / "broken"
    broken.mkdir()
    pd.read_parquet(drawn / "generations.parquet").assign(reward=np.inf).to_parquet(broken / "generations.parquet")
    done = called(regress, tmp_path, seed=0, **models, draws=broken, on_policy=False, **REGRESSION)
    assert done["status"] == "diverged"
