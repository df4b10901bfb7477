"""Keeping one of n draws: what is kept how often, and where that ends."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.divergences import divergence
from alignkit.frontier import best_of_n, kept_share, resampled, ring_sums

RNG = np.random.default_rng(0)


def test_the_share_of_each_draw_is_that_of_all_companies_listed():
    log_weights, n = RNG.normal(size=(1, 6)), 3
    weights = np.exp(log_weights[0])
    expected = np.zeros(6)
    for i in range(6):
        others = [(j, k) for j, k in product(range(6), repeat=2) if len({i, j, k}) == 3]
        expected[i] = n * np.mean([weights[i] / (weights[i] + weights[j] + weights[k]) for j, k in others])
    found = np.mean([kept_share(log_weights, n, np.random.default_rng(s)) for s in range(200)], axis=0)
    np.testing.assert_allclose(found[0], expected / expected.mean(), atol=0.01)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_ring_sums_are_the_windows_added_up(n: int, more: int, seed: int):
    values = np.exp(np.random.default_rng(seed).uniform(-600, 0, size=(n + more, 3)))
    expected = sum(np.roll(values, -i, axis=0) for i in range(n))
    np.testing.assert_allclose(ring_sums(values, n), expected, rtol=1e-12)


@given(st.integers(1, 8), st.integers(0, 1000), st.floats(0, 30))
def test_shares_have_mean_one_and_rise_with_the_weight(n: int, seed: int, scale: float):
    log_weights = np.random.default_rng(seed).normal(size=(3, 8)) * scale
    share = kept_share(log_weights, n, np.random.default_rng(0))
    np.testing.assert_allclose(share.mean(axis=1), 1, atol=1e-9)
    assert (share >= 0).all()
    if n in (1, 8):
        ordered = np.take_along_axis(share, log_weights.argsort(axis=1), axis=1)
        assert (np.diff(ordered, axis=1) >= -1e-9).all()


def test_one_draw_of_the_reference_is_the_reference():
    rewards = RNG.normal(size=(4, 50))
    row = resampled(rewards, np.zeros_like(rewards), 1, [0.5]).iloc[0]
    assert (row.kl, row.reward) == pytest.approx((0, rewards.mean()), abs=1e-12)


def test_gold_and_others_are_averaged_over_what_is_kept():
    rewards = RNG.normal(size=(4, 30))
    row = resampled(rewards, np.zeros_like(rewards), 5, [0.7], gold=2 * rewards + 1, length=-rewards).iloc[0]
    assert row.reward > rewards.mean() + 0.3
    assert (row.gold, row["length"]) == pytest.approx((2 * row.reward + 1, -row.reward), abs=1e-12)


def test_many_draws_end_in_the_optimum_whoever_draws():
    reference, reward, beta = RNG.dirichlet(np.ones(30)), RNG.normal(size=30), 0.7
    best = divergence("reverse_kl").optimal_policy(reference, reward, beta)
    exact = (best * np.log(best / reference)).sum(), best @ reward
    other = divergence("reverse_kl").optimal_policy(reference, reward, 1.5)
    for policy, n in ((reference, 128), (other, 32)):
        drawn = RNG.choice(30, size=(60, 512), p=policy)
        found = resampled(reward[drawn], np.log(policy / reference)[drawn], n, [beta]).iloc[0]
        assert (found.kl, found.reward) == pytest.approx(exact, rel=0.04)


def test_a_small_beta_is_best_of_n():
    rewards = RNG.normal(size=(200, 64))
    found = resampled(rewards, np.zeros_like(rewards), 4, [0.02]).iloc[0]
    expected = best_of_n(rewards, [4]).iloc[0]
    assert found.reward == pytest.approx(expected.reward, rel=0.02)
    assert found.kl == pytest.approx(expected.kl_bound, rel=0.05)


def test_more_draws_than_there_are_is_an_error_in_one_line():
    with pytest.raises(ValueError, match="5 draws; allowed: 1 to 4, those of a prompt"):
        kept_share(np.zeros((2, 4)), 5, RNG)
