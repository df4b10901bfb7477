"""Reading fronts: areas, ceilings, and what may not lie above the optimum."""

import numpy as np
import pandas as pd
import pytest

from alignkit import front_report, improvements_report
from alignkit.divergences import divergence
from alignkit.faults import UserFault
from alignkit.frontier import efficiency, optimal_frontier
from alignkit.improvements_report import front_reward, volumes
from alignkit.pool import Pool

RNG = np.random.default_rng(0)
REWARD, GOLD = RNG.normal(size=40), RNG.normal(size=40)
REFERENCE = RNG.dirichlet(np.ones(40))
TILT = divergence("reverse_kl").optimal_policy


def pooled(policies: list[np.ndarray], each: int) -> Pool:
    """A pool over 5 prompts of draws from policies on one finite set, the reference first."""
    drawn = np.concatenate([RNG.choice(40, size=(5, each), p=policy) for policy in policies], axis=1)
    log_probs = np.log(np.stack(policies))[:, drawn]
    return Pool(REWARD[drawn], GOLD[drawn], np.repeat([np.arange(len(policies))], each, 1).repeat(5, 0), log_probs)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pooled([REFERENCE, TILT(REFERENCE, REWARD, 0.5)], 8000)


def test_gold_along_the_optimum_is_that_of_the_exact_tilt(pool: Pool):
    table = front_report.optimum(pool, [2.0, 1.0, 0.4])
    for row in table.itertuples():
        exact = REFERENCE if np.isinf(row.beta) else TILT(REFERENCE, REWARD, row.beta)
        assert (row.reward, row.gold) == pytest.approx((exact @ REWARD, exact @ GOLD), abs=0.03)


def test_the_ceiling_touches_the_frontier_and_lies_above_it_beyond(pool: Pool):
    table = front_report.optimum(pool, [2.0, 1.0, 0.7, 0.5])
    for row in table[np.isfinite(table.beta)].itertuples():
        assert front_report.ceiling(table, row.kl) == pytest.approx(row.reward, abs=0.01)
    far = TILT(REFERENCE, REWARD, 0.15)
    kl, reward = float((far * np.log(far / REFERENCE)).sum()), float(far @ REWARD)
    assert front_report.ceiling(table, kl) > reward


def test_halves_of_a_pool_say_how_noisy_the_frontier_is():
    tilt = TILT(REFERENCE, REWARD, 0.5)
    small, large = (
        np.mean(
            [front_report.frontier_error(pooled([REFERENCE, tilt], n), [2.0, 1.0, 0.5], [0.3])[0.3] for _ in range(20)]
        )
        for n in (100, 1600)
    )
    assert 2 < small / large < 8


def test_a_policy_above_the_frontier_is_found_and_noise_is_not(pool: Pool):
    frontier = {0: front_report.optimum(pool, [2.0, 1.0, 0.5])}
    best = TILT(REFERENCE, REWARD, 1.0)
    kl, reward = float((best * np.log(best / REFERENCE)).sum()), float(best @ REWARD)
    rows = pd.DataFrame({"family": "a", "seed": 0, "kl": kl, "reward": reward + np.array([0.01, 1.0]), "status": "ok",
                         "completions": 8, "prompts": 100})  # fmt: skip
    rows = front_report.efficiencies(rows, frontier)
    assert rows.efficiency.iloc[0] == pytest.approx(1, abs=0.05)
    found = front_report.above(rows, {0: 1.0}, {0: {0.1: 0.01, 4.0: 0.01}})
    assert found.above.tolist() == [False, True]
    assert (found.bound > found.error).all()


def test_an_optimal_policy_has_efficiency_one_and_the_reference_moves_nothing():
    table = optimal_frontier(np.tile(REWARD, (3, 50)), [2.0, 1.0, 0.5])
    row = table.iloc[2]
    assert efficiency(row.kl, row.reward, table) == pytest.approx(1)


def test_a_front_is_read_between_its_points_and_level_beyond_them():
    front = pd.DataFrame({"kl": [0.0, 1.0, 4.0], "reward": [0.0, 2.0, 4.0]})
    assert front_reward(front, "reward", np.array([0, 0.25, 1, 2.25, 9])).tolist() == pytest.approx([0, 1, 2, 3, 4])


def test_the_hypervolume_does_not_hang_on_how_many_points_of_a_line_were_evaluated():
    def table(kls):
        rows = [
            {"method": "a", "seed": 0, "kl": kl, "reward": 3 * kl**0.5, "tokens_generated": 7, "status": "ok"}
            for kl in kls
        ]
        start = {"method": "sft", "seed": 0, "kl": 0.0, "reward": 0.0, "tokens_generated": np.nan, "status": "ok"}
        return volumes(pd.DataFrame([start, *rows]), ["reward"]).reward.iloc[0]

    assert table([5.0]) == pytest.approx(table([0.3, 1.0, 2.2, 5.0]))
    assert table([5.0]) == pytest.approx(3 * 2 / 3 * 4**1.5, rel=0.01)


def test_the_method_is_what_is_left_when_another_is_subtracted():
    volume = pd.DataFrame(
        {"method": ["a"] * 3 + ["b"] * 3, "seed": [0, 1, 2] * 2, "reward": [5.0, 6, 7, 1, 2, 3.5], "status": "ok"}
    )
    row = improvements_report.against(volume, "a", ["b"], ["reward"]).iloc[0]
    assert (row.label, row.difference) == ("a − b", pytest.approx(11.5 / 3))
    assert row.low < row.difference < row.high


def test_a_table_of_another_notebook_that_is_not_there_is_one_line(build):
    with pytest.raises(UserFault, match=r"9_none\.csv: missing; notebook 9_none writes it"):
        front_report.tables("smoke", ["9_none"])


def test_gains_are_over_the_same_seeds_own_start():
    table = pd.DataFrame({"method": ["sft", "a", "sft", "a"], "seed": [0, 0, 1, 1], "reward": [1.0, 3, 10, 14],
                          "gold": [np.nan] * 4})  # fmt: skip
    assert front_report.gains(table).reward.tolist() == [0, 2, 0, 4]


def test_the_gold_of_best_of_n_is_that_of_the_draw_with_the_highest_reward():
    pool = pooled([REFERENCE], 6)
    rows = front_report.best_of_rows({0: pool}, [1, 6])
    best = pool.reward.argmax(axis=1)
    assert rows.gold.tolist() == pytest.approx([pool.gold.mean(), pool.gold[np.arange(5), best].mean()], abs=1e-6)
    assert rows.kl.tolist() == pytest.approx([0, np.log(6) - 5 / 6])
