"""The optimal frontier against tilts that can be computed exactly."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.divergences import divergence
from alignkit.frontier import (
    LEAST_ESS,
    along_root_kl,
    balance_log_weights,
    best_of_n,
    best_of_n_kl,
    efficiency,
    hypervolume,
    optimal_frontier,
    optimal_reward,
)

RNG = np.random.default_rng(0)
BETAS = [4.0, 2.0, 1.0, 0.5, 0.25]


def exact(reference: np.ndarray, reward: np.ndarray, beta: float) -> tuple[float, float]:
    """KL and reward of the tilt on a finite set."""
    policy = divergence("reverse_kl").optimal_policy(reference, reward, beta)
    kept = policy > 0
    return float((policy[kept] * np.log(policy[kept] / reference[kept])).sum()), float(policy @ reward)


def test_on_a_listed_uniform_reference_the_frontier_is_the_exact_tilt():
    rewards = RNG.normal(size=(3, 500))
    uniform = np.full(500, 1 / 500)
    for row in optimal_frontier(rewards, [2.0, 1.0]).iloc[1:].itertuples():
        expected = np.mean([exact(uniform, reward, row.beta) for reward in rewards], axis=0)
        assert (row.kl, row.reward) == pytest.approx(tuple(expected), abs=1e-9)


def test_from_samples_it_agrees_with_the_exact_tilt_to_one_in_a_thousand():
    reference, reward = RNG.dirichlet(np.ones(12)), RNG.normal(size=12)
    # A systematic sample, which has the reference's proportions: chance alone would need millions.
    drawn = reward[np.searchsorted(reference.cumsum(), (np.arange(50_000) + 0.5) / 50_000)]
    for row in optimal_frontier(drawn[None], [2.0, 1.0, 0.5]).iloc[1:].itertuples():
        assert (row.kl, row.reward) == pytest.approx(exact(reference, reward, row.beta), abs=1e-3)


def test_it_starts_at_the_reference_and_rises_with_the_kl():
    rewards = RNG.normal(size=(5, 1000))
    table = optimal_frontier(rewards, BETAS)
    assert table.columns.tolist() == ["beta", "kl", "reward", "ess"]
    assert table.beta.tolist() == [np.inf, *BETAS]
    assert (table.kl[0], table.reward[0], table.ess[0]) == pytest.approx((0, rewards.mean(), 1000))
    known = table.dropna()
    assert (known.kl.diff().dropna() > 0).all()
    assert (known.reward.diff().dropna() > 0).all()


def test_where_few_samples_carry_the_tilt_it_says_nothing():
    table = optimal_frontier(RNG.normal(size=(20, 100)), [1.0, 0.2, 0.05])
    few = table.ess < LEAST_ESS
    assert few.any()
    assert table.loc[few, ["kl", "reward"]].isna().all(axis=None)
    assert table.loc[~few, ["kl", "reward"]].notna().all(axis=None)


@pytest.mark.parametrize(("few", "believed"), [(4, True), (6, False)])
def test_it_speaks_while_a_twentieth_of_the_prompts_have_too_few_samples(few: int, believed: bool):
    rewards = np.zeros((101, 50))
    rewards[:few, 0] = 100.0  # one sample carries all of the tilt there
    assert np.isfinite(optimal_frontier(rewards, [1.0]).reward[1]) == believed


def test_rewards_far_from_zero_do_not_overflow():
    rewards = RNG.normal(size=(2, 200))
    near, far = optimal_frontier(rewards, [1.0]), optimal_frontier(rewards + 5000, [1.0])
    np.testing.assert_allclose(far.kl, near.kl, atol=1e-8)
    np.testing.assert_allclose(far.reward, near.reward + 5000, atol=1e-8)


def test_weights_count_up_to_a_constant_and_betas_in_any_order():
    rewards, log_weights = RNG.normal(size=(2, 3, 500))
    found = optimal_frontier(rewards, [2.0, 0.5, 1.0], log_weights / 4)
    assert found.beta.tolist() == [np.inf, 2.0, 1.0, 0.5]
    pd.testing.assert_frame_equal(optimal_frontier(rewards, [0.5, 1.0, 2.0], log_weights / 4 + 3), found)


def test_with_samples_of_tilted_policies_it_reaches_kl_4():
    """The reference alone sees almost nothing of what the optimum at KL 4 does."""
    size, counts = 4000, [400, 400, 400]
    reference, reward = RNG.dirichlet(np.ones(size)), RNG.normal(size=size)
    beta = next(b for b in np.linspace(1, 0.1, 200) if exact(reference, reward, b)[0] >= 4)
    tilt = divergence("reverse_kl").optimal_policy
    policies = np.stack([reference, tilt(reference, reward, 3 * beta), tilt(reference, reward, 1.3 * beta)])
    prompts = 100
    drawn = np.concatenate(
        [RNG.choice(size, p=policy, size=(prompts, n)) for policy, n in zip(policies, counts, strict=True)], axis=1
    )
    log_weights = balance_log_weights(np.log(policies)[:, drawn], counts)
    row = optimal_frontier(reward[drawn], [beta], log_weights).iloc[1]
    kl, best = exact(reference, reward, beta)
    assert kl == pytest.approx(4, abs=0.1)
    assert (row.kl, row.reward) == pytest.approx((kl, best), rel=0.01)
    alone = optimal_frontier(reward[drawn[:, : counts[0]]], [beta]).iloc[1]
    assert np.isnan(alone.kl)


def test_samples_of_the_reference_alone_have_equal_weights():
    log_probs = RNG.normal(size=(1, 3, 7))
    np.testing.assert_allclose(balance_log_weights(log_probs, [7]), 0, atol=1e-12)


@given(st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=50)
def test_the_best_of_n_is_the_mean_over_all_subsets(n: int, seed: int):
    rewards = np.random.default_rng(seed).normal(size=(2, 8))
    expected = np.mean([[max(subset) for subset in combinations(row, n)] for row in rewards])
    assert best_of_n(rewards, [n]).reward[0] == pytest.approx(expected)


def test_the_best_of_one_is_the_reference_and_its_bound_is_zero():
    rewards = RNG.normal(size=(4, 6))
    row = best_of_n(rewards, [1]).iloc[0]
    assert (row.kl_bound, row.reward) == pytest.approx((0, rewards.mean()))


@pytest.mark.parametrize("n", [7, 0, 2.5])
def test_the_best_of_more_than_there_are_is_told(n: float):
    with pytest.raises(ValueError, match=f"^best of {n}: allowed: 1 to 6"):
        best_of_n(np.zeros((2, 6)), [n])


@pytest.mark.parametrize("n", [1, 300, 1000, 2000])
def test_the_best_of_many_is_known_where_binomials_overflow(n: int):
    ranks = np.arange(1.0, 2001)[None]  # the largest of n of the numbers 1 to N is n (N + 1) / (n + 1) on average
    assert best_of_n(ranks, [n]).reward[0] == pytest.approx(n * 2001 / (n + 1), rel=1e-9)


def test_best_of_n_lies_below_the_frontier_at_its_kl_bound_or_close_to_it():
    rewards = RNG.normal(size=(50, 4000))
    frontier = optimal_frontier(rewards, np.geomspace(0.4, 20, 40))
    for row in best_of_n(rewards, [2, 4, 8]).itertuples():
        assert row.reward <= optimal_reward(row.kl_bound, frontier) + 1e-3


def frontier() -> pd.DataFrame:
    return pd.DataFrame({"beta": [np.inf, 1, 0.5, 0.1], "kl": [0, 1, 4, np.nan], "reward": [1.0, 2.0, 3.0, np.nan]})


def test_efficiency_is_the_share_of_the_possible_gain_at_that_kl():
    assert efficiency(1, 2.0, frontier()) == pytest.approx(1)
    assert efficiency(4, 2.0, frontier()) == pytest.approx(0.5)
    assert efficiency(2.25, 1.0, frontier()) == pytest.approx(0)
    assert efficiency(2.25, 2.5, frontier()) == pytest.approx(1)  # linear in the root of the KL


@pytest.mark.parametrize("kl", [0.0, 0.049, 4.01, float("nan")])
def test_no_efficiency_without_drift_or_beyond_the_frontier(kl: float):
    assert np.isnan(efficiency(kl, 2.0, frontier()))


def test_the_share_of_several_policies_is_that_of_each():
    kls, rewards = np.array([0.01, 1.0, 2.25, 9.0, np.nan]), np.array([2.0, 2.0, 1.5, 2.0, 2.0])
    each = [efficiency(kl, reward, frontier()) for kl, reward in zip(kls, rewards, strict=True)]
    np.testing.assert_array_equal(efficiency(kls, rewards, frontier()), each)
    assert np.isfinite(each).sum() == 2


def test_the_hypervolume_is_the_area_above_sft_and_left_of_the_limit():
    assert hypervolume([1.0], [3.0], sft_reward=1.0) == pytest.approx(3 * 2)
    assert hypervolume([2.0, 1.0], [4.0, 3.0], sft_reward=1.0) == pytest.approx(1 * 2 + 2 * 3)
    assert hypervolume([1.0, 2.0], [3.0, 2.0], sft_reward=1.0) == pytest.approx(3 * 2)  # dominated
    assert hypervolume([1.0, 5.0], [0.5, 9.0], sft_reward=1.0) == 0
    assert hypervolume([], [], sft_reward=1.0) == 0


def test_an_efficiency_is_not_known_where_the_start_is_not():
    table = pd.DataFrame({"beta": [np.inf, 1.0, 0.5], "kl": [np.nan, 0.5, 1.0], "reward": [np.nan, 1.0, 2.0]})
    assert np.isnan(efficiency(0.7, 1.2, table))


@given(st.lists(st.floats(0, 50), min_size=2, max_size=8, unique=True), st.floats(-5, 5), st.floats(-5, 5))
def test_between_points_values_are_linear_in_the_root_of_kl(kls, slope, start):
    at = np.linspace(min(kls), max(kls), 7)
    found = along_root_kl(at, np.array(kls), slope * np.sqrt(kls) + start)
    np.testing.assert_allclose(found, slope * np.sqrt(at) + start, atol=1e-6)


def test_beyond_the_points_there_is_no_value_or_the_last_one():
    kls, values = [4.0, 1.0], [5.0, 3.0]
    assert np.isnan(along_root_kl(np.array([0.9, 4.1]), kls, values)).all()
    assert along_root_kl(np.array([0.5, 2.25, 9]), kls, values, beyond=True).tolist() == [3, 4, 5]
    assert np.isnan(along_root_kl(1.0, [], []))


def test_gold_is_averaged_over_policies_optimal_for_the_reward():
    rewards, gold = RNG.normal(size=(3, 400)), RNG.normal(size=(3, 400))
    table = optimal_frontier(rewards, [1.0, 0.001], gold=gold)
    tilt = np.exp(rewards) / np.exp(rewards).sum(axis=1, keepdims=True)
    assert table.gold[0] == pytest.approx(gold.mean())
    assert table.gold[1] == pytest.approx((tilt * gold).sum(axis=1).mean())
    assert table.loc[2, ["kl", "reward", "gold"]].isna().all()


@pytest.mark.parametrize(("n", "kl"), [(1, 0.0), (2, np.log(2) - 0.5), (4, np.log(4) - 0.75)])
def test_the_bound_of_best_of_n(n: int, kl: float):
    assert best_of_n_kl(n) == pytest.approx(kl)
