"""Reading fronts: areas, ceilings, and what may not lie above the optimum."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from alignkit.divergences import divergence
from alignkit.faults import UserFault
from alignkit.frontier import efficiency, optimal_frontier, optimal_reward
from alignkit.metrics import holm, seed_interval
from alignkit.report import front_report, improvements_report
from alignkit.report.improvements_recipe import Hacked
from alignkit.report.improvements_report import front_reward, volumes
from alignkit.training.pool import Pool

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


def test_the_frontiers_standard_error_is_how_much_it_differs_from_pool_to_pool():
    betas, policies = [2.0, 1.0, 0.5], [REFERENCE, TILT(REFERENCE, REWARD, 0.5)]
    pools = [pooled(policies, 400) for _ in range(60)]
    found = [optimal_reward(0.3, front_report.optimum(pool, betas)) for pool in pools]
    errors = [front_report.frontier_error(pool, betas, [0.3])[0.3] for pool in pools]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(found), rel=0.3)


def test_a_kl_that_the_frontier_does_not_reach_has_no_standard_error(pool: Pool):
    assert list(front_report.frontier_error(pool, [2.0, 1.0], [0.05, 50.0])) == [0.05]


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


def test_an_optimal_policy_has_efficiency_one_and_half_of_its_gain_is_one_half():
    table = optimal_frontier(np.tile(REWARD, (3, 50)), [2.0, 1.0, 0.5])
    best = TILT(np.full(40, 1 / 40), REWARD, 0.8)
    kl, reward = float((best * np.log(best * 40)).sum()), float(best @ REWARD)
    assert efficiency(kl, reward, table) == pytest.approx(1, abs=0.01)
    assert efficiency(kl, (reward + REWARD.mean()) / 2, table) == pytest.approx(0.5, abs=0.01)


def test_keeping_one_of_many_draws_is_optimal_also_when_the_frontier_has_other_draws(pool: Pool):
    betas = [2.0, 1.4, 1.0, 0.7]
    found = front_report.held_out_shares({0: pool, 1: pool}, 1, 32, betas, [2.0, 1.0, 0.5], 0.3)
    assert found == pytest.approx([1, 1], abs=0.04)


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


def test_holms_adjustment_is_over_all_measures_and_methods_of_one_claim():
    volume = pd.DataFrame(
        {
            "method": list("aaabbbccc"),
            "seed": [0, 1, 2] * 3,
            "reward": [5.0, 6, 7, 1, 2, 3.5, 4, 5.2, 6.6],
            "status": "ok",
        }
    ).assign(gold=lambda t: 2 * t.reward + t.seed)
    found = improvements_report.against(volume, "a", ["b", "c"], ["reward", "gold"])
    assert len(found) == 4
    np.testing.assert_allclose(found.holm, holm(found.p.to_numpy()))


def test_a_table_of_another_notebook_that_is_not_there_is_one_line(build):
    with pytest.raises(UserFault, match=r"9_none\.csv: missing; notebook 9_none writes it"):
        front_report.tables("smoke", ["9_none"])


ROWS = pd.DataFrame(
    [
        # notebook, method, loss, divergence, usual, steps, eta, iteration
        ("2_dpo_losses", "sft", None, None, None, None, None, None, "sft"),
        ("2_dpo_losses", "sigmoid β=1", "sigmoid", "reverse_kl", True, None, None, None, "DPO, sigmoid (notebook 2)"),
        ("2_dpo_losses", "lora", "sigmoid", "reverse_kl", False, None, None, None, None),
        ("2_dpo_losses", "positive reviews", None, None, None, None, None, None, "fine-tuning on positive reviews"),
        ("2_dpo_losses", "keyword bias", None, None, None, None, None, None, None),
        ("3_f_divergences", "js β=2", "sigmoid", "js", True, None, None, None, "DPO, js"),
        ("5_improvements", "ipo, js", "ipo", "js", True, None, None, None, "DPO, ipo, js"),
        ("4_warp", "WARP", None, None, None, 50, 0.5, 1, None),
        ("4_warp", "WARP", None, None, None, 50, 1.0, 2, "WARP, T=50"),
        ("4_warp", "REINFORCE, EMA anchor", None, None, None, 25, 1.0, 1, None),
        ("4_warp", "REINFORCE, EMA anchor", None, None, None, 50, 0.5, 1, "REINFORCE, EMA anchor"),
        ("4_warp", "REINFORCE, no anchor", None, None, None, 25, 1.0, 1, "REINFORCE, no anchor, over steps"),
        ("4_warp", "REINFORCE, no anchor", None, None, None, 50, 1.0, 1, "REINFORCE, no anchor, over steps"),
        ("4_warp", "M=2", None, None, None, 25, 1.0, 1, "WARP, one iteration, M=2, over steps"),
        ("4_warp", "M=2", None, None, None, 50, 1.0, 1, "WARP, one iteration, M=2, over steps"),
        ("4_warp", "greedy decoding", None, None, None, 50, 1.0, 1, None),
        ("5_improvements", "WARP", None, None, None, 25, 0.5, 2, "WARP, T=25"),
        ("5_improvements", "anchored RLOO", None, None, None, 100, 0.5, 1, "anchored RLOO, over η"),
        ("6_one_front", "anchored RLOO, over β", None, None, None, 140, None, None, "anchored RLOO, over β"),
    ],
    columns=["notebook", "method", "loss", "divergence", "usual", "steps", "eta", "iteration", "expected"],
).assign(alpha=np.nan)


def test_a_sweep_is_named_and_earlier_steps_and_iterations_are_not_joined_to_a_front_that_goes_back_to_sft():
    found = front_report.named(ROWS).family
    assert found.fillna("").tolist() == ROWS.expected.fillna("").tolist()


def test_tables_that_start_from_another_supervised_policy_are_told():
    sweep = pd.DataFrame({"method": ["sft", front_report.SWEPT], "seed": 0, "run": ["a", "b"]})
    others = pd.DataFrame(
        {"method": "sft", "seed": [0, 0, 5], "run": ["a", "z", "y"], "notebook": ["2_dpo_losses", "4_warp", "4_warp"]}
    )
    assert front_report.of_other_runs(others, sweep) == ["4_warp"]


def test_a_policy_of_a_diverged_run_has_a_row_and_no_numbers():
    run = SimpleNamespace(id="x", metrics={"status": "ok", "kl": 3.0, "reward": 2.0})
    broken = SimpleNamespace(metrics={"status": "diverged", "tokens_generated": 1, "tokens_trained": 1})
    hacked = [Hacked("200 reviews", 25, broken, run)]
    row = improvements_report.hack_rows({0: hacked}, {0: run}).iloc[1]
    assert (row.status, row.steps) == ("diverged", 25)
    assert np.isnan(row.kl)
    assert np.isnan(row.reward)
    by_name = {"sft: evaluation": run, "β=1": broken, "β=1: evaluation": run}
    p = SimpleNamespace(front_betas=[1.0], front_steps=9, profile="pocket", notebook="6_one_front")
    row = front_report.sweep_rows({0: by_name}, p).iloc[1]
    assert (row.status, row.method) == ("diverged", front_report.SWEPT)
    assert np.isnan(row.reward)


def test_gains_need_no_gold():
    table = pd.DataFrame({"method": ["sft", "a"], "seed": 0, "reward": [1.0, 3.0]})
    assert front_report.gains(table).reward.tolist() == [0, 2]


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


def test_a_setting_has_its_mean_over_seeds_and_their_t_interval():
    table = pd.DataFrame({"family": "a", "eta": [0.5] * 3 + [1.0], "seed": [0, 1, 2, 0], "kl": [1.0, 1, 1, 3],
                          "reward": [1.0, 2, 3, 5]})  # fmt: skip
    found = front_report.setting_means(table, ["reward"])
    assert found.kl.tolist() == [1.0, 3.0]
    assert found.reward.tolist() == [2.0, 5.0]
    assert found.loc[found.eta == 0.5, ["reward_low", "reward_high"]].to_numpy()[0] == pytest.approx(
        seed_interval(np.array([1.0, 2, 3]))[1:]
    )
    assert found.loc[found.eta == 1, ["reward_low", "reward_high"]].isna().all(axis=None)
