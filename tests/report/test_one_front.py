"""Reading fronts: areas, ceilings, and what may not lie above the optimum."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.divergences import divergence
from alignkit.faults import UserFault
from alignkit.frontier import efficiency, optimal_frontier, optimal_reward, resampled
from alignkit.metrics import seed_interval
from alignkit.report import one_front
from alignkit.report.policies import Policy
from alignkit.report.towards import APPROACHED
from alignkit.training.pool import Pool
from alignkit.workflow.schema import OneFront

RNG = np.random.default_rng(0)
REWARD, GOLD = RNG.normal(size=40), RNG.normal(size=40)
REFERENCE = RNG.dirichlet(np.ones(40))
TILT = divergence("reverse_kl").optimal_policy


def test_nothing_is_drawn_from_a_policy_that_diverged(monkeypatch: pytest.MonkeyPatch):
    record = {"inputs": {"seed": 3}, "settings": {"lr": 0.1}}
    run = SimpleNamespace(id="1", metrics={"status": "diverged", "diverged_at": 7}, record=record)
    whole = SimpleNamespace(id="2", metrics={"status": "ok"}, record=record)
    last = Policy(APPROACHED, 3, run, trained=(whole, run), settings={"beta": 1.0}, where={"eta": 1})
    found = {"rloo_over_beta": [], "approach": [last], "as_tuned": []}
    for name, policies in found.items():
        monkeypatch.setattr(one_front, name, lambda *_, policies=policies: policies)
    monkeypatch.setattr(one_front.policies, "started", lambda *_: {"sft": whole, "reward": whole})
    p = SimpleNamespace(pool_reference=8, pool_trained=8, prompts=1, new_tokens=1, reward_tokens=1)
    with pytest.raises(UserFault, match=r"^approach_lr: with 0\.1 its weights are not finite after step 7 of seed 3"):
        one_front.recipe(p, 3)


def pooled(policies: list[np.ndarray], each: int) -> Pool:
    """A pool over 5 prompts of draws from policies on one finite set, the reference first."""
    drawn = np.concatenate([RNG.choice(40, size=(5, each), p=policy) for policy in policies], axis=1)
    log_probs = np.log(np.stack(policies))[:, drawn]
    return Pool(REWARD[drawn], GOLD[drawn], np.repeat([np.arange(len(policies))], each, 1).repeat(5, 0), log_probs)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return pooled([REFERENCE, TILT(REFERENCE, REWARD, 0.5)], 8000)


def test_gold_along_the_optimum_is_that_of_the_exact_tilt(pool: Pool):
    table = one_front.optimum(pool, [2.0, 1.0, 0.4])
    for row in table.itertuples():
        exact = REFERENCE if np.isinf(row.beta) else TILT(REFERENCE, REWARD, row.beta)
        assert (row.reward, row.gold) == pytest.approx((exact @ REWARD, exact @ GOLD), abs=0.03)


def test_the_ceiling_touches_the_frontier_and_lies_above_it_beyond(pool: Pool):
    table = one_front.optimum(pool, [2.0, 1.0, 0.7, 0.5])
    for row in table[np.isfinite(table.beta)].itertuples():
        assert one_front.ceiling(table, row.kl) == pytest.approx(row.reward, abs=0.01)
    far = TILT(REFERENCE, REWARD, 0.15)
    kl, reward = float((far * np.log(far / REFERENCE)).sum()), float(far @ REWARD)
    assert one_front.ceiling(table, kl) > reward


def test_the_frontiers_standard_error_is_its_spread_over_pools():
    betas, policies = [2.0, 1.0, 0.5], [REFERENCE, TILT(REFERENCE, REWARD, 0.5)]
    pools = [pooled(policies, 400) for _ in range(60)]
    found = [optimal_reward(0.3, one_front.optimum(pool, betas)) for pool in pools]
    errors = [one_front.jackknife(pool, betas, [0.3]).error[0] for pool in pools]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(found), rel=0.3)


def test_a_kl_that_the_frontier_does_not_reach_has_no_standard_error(pool: Pool):
    found = one_front.jackknife(pool, [2.0, 1.0], [0.05, 50.0])
    assert found.notna().to_numpy().tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.slow
def test_the_frontiers_bias_is_what_a_small_pool_misses():
    betas, policies = [2.0, 1.0, 0.5], [REFERENCE, TILT(REFERENCE, REWARD, 0.5)]
    truth = optimal_reward(0.3, one_front.optimum(pooled(policies, 50_000), betas))
    pools = [pooled(policies, 16) for _ in range(1500)]
    low = np.array([optimal_reward(0.3, one_front.optimum(pool, betas)) for pool in pools]) - truth
    told = np.array([one_front.jackknife(pool, betas, [0.3]).bias[0] for pool in pools[:100]])
    noise = low.std() / np.sqrt(len(low))
    assert told.mean() > 3 * told.std() / np.sqrt(len(told))
    assert abs(low.mean() - told.mean()) < 4 * noise < 3 * told.mean()


def test_gains_shares_and_areas_have_the_pools_zero(pool: Pool):
    frontier = {0: one_front.optimum(pool, [2.0, 1.0])}
    table = pd.DataFrame({"family": ["sft", "a", "sft"], "seed": [0, 0, 1], "reward": 9.0, "gold": 9.0})
    found = one_front.with_zero(table, frontier)
    assert found.reward.tolist() == [frontier[0].reward[0], 9.0, 9.0]
    assert found.gold.tolist() == [frontier[0].gold[0], 9.0, 9.0]


def test_the_kl_of_keeping_one_of_few_draws_has_no_bias_left():
    exact = one_front.resampling_rows({0: pooled([REFERENCE], 8000)}, {0: "a"}, [4], [0.5]).kl.item()
    pools = [pooled([REFERENCE], 40) for _ in range(60)]
    found = [one_front.resampling_rows({0: pool}, {0: "a"}, [4], [0.5]).kl.item() for pool in pools]
    bare = [resampled(pool.reward, np.zeros_like(pool.reward), 4, [0.5]).kl.item() for pool in pools]
    assert abs(np.mean(found) - exact) < 0.5 * abs(np.mean(bare) - exact)


def test_pockets_page_links_to_the_pages_of_other_reviews():
    links = re.findall(r"\]\(([^)#]+)", one_front.links_to_other_reports("pocket"))
    assert links
    assert [link for link in links if not (paths.CHECKOUT / "notebooks" / link).resolve().is_file()] == []
    assert "](" not in one_front.links_to_other_reports("smoke")


def test_the_best_of_each_kind_has_all_seeds_and_is_named_once():
    table = pd.DataFrame({
        "family": ["anchored RLOO, β=2, one of 8", "DPO, js", "DPO, gan", "DPO, on-policy", "WARP, T=3", "another"],
        "seeds": [2, 2, 2, 2, 1, 2], "draws": [8, *[np.nan] * 5],
        "KL 1": [0.9, 0.3, 0.4, 0.3, 0.8, np.nan], "KL 2": [0.9, 0.3, 0.2, 0.3, 0.8, 0.1],
    })  # fmt: skip
    table["kind"] = [one_front.kind(r.family, r.draws) for r in table.itertuples()]
    found = one_front.best_of_each(table, ["KL 1", "KL 2"])
    assert found.family.tolist() == ["anchored RLOO, β=2, one of 8", "DPO, gan", "DPO, on-policy", "another"]
    assert found.kind.tolist() == [one_front.SEVERAL, "pairs only", "pairs drawn anew from the policy", "another"]


def test_where_the_best_has_no_policy_the_best_other_of_its_kind_stands():
    shares = pd.DataFrame({
        "family": ["best", "other", "third", "few seeds", "another kind"], "kind": [*["a"] * 4, "b"],
        "seeds": [2, 2, 2, 1, 2], "KL 1": [0.9, 0.1, 0.1, 0.1, 0.1], "KL 2": [np.nan, 0.4, 0.6, 0.9, 0.9],
        "KL 4": np.nan,
    })  # fmt: skip
    told = pd.DataFrame({f"share at KL {kl}": shares[f"KL {kl}"].map("{:g}".format) for kl in (1, 2, 4)})
    told = told.replace("nan", "").assign(**{"gold gain at KL 2": ["", "4", "6", "9", "9"]})
    row = one_front.with_others(told.set_index(shares.family), shares, "best")
    assert list(row.values()) == ["0.9", "0.6 (third)", "", "6 (third)"]


def test_every_pair_of_methods_is_compared_once_and_holm_counts_all():
    shares = {"a": [0.5, 0.6, 0.7], "b": [0.4, 0.45, 0.6], "c": [0.1, 0.2, 0.25], "d": [0.3, np.nan, 0.2]}
    at = pd.DataFrame([{"family": f, "seed": s, "at_kl": 1.0, "efficiency": v, "status": "ok"}
                       for f, values in shares.items() for s, v in enumerate(values)])  # fmt: skip
    found = one_front.order_of_shares(at, ["a", "b", "c", "d"], ["d", "a", "c"], 1.0)  # d is not known everywhere
    assert found.label.tolist() == ["b − a", "c − a", "b − c"]
    assert found.difference.tolist() == pytest.approx([-0.35 / 3, -1.25 / 3, 0.9 / 3])
    assert found.holm.min() == pytest.approx(3 * found.p.min())


def test_a_policy_above_the_frontier_is_found_and_noise_is_not(pool: Pool):
    frontier = {0: one_front.optimum(pool, [2.0, 1.0, 0.5])}
    best = TILT(REFERENCE, REWARD, 1.0)
    kl, reward = float((best * np.log(best / REFERENCE)).sum()), float(best @ REWARD)
    rows = pd.DataFrame({"family": "a", "seed": 0, "kl": kl, "reward": reward + np.array([0.01, 1.0]), "status": "ok",
                         "completions": 8, "prompts": 100})  # fmt: skip
    rows = one_front.with_efficiency(rows, frontier)
    assert rows.efficiency.iloc[0] == pytest.approx(1, abs=0.05)
    found = one_front.excess_over_frontier(rows, {0: 1.0}, {0: {0.1: 0.01, 4.0: 0.01}})
    assert found.above.tolist() == [False, True]
    assert (found.bound > found.error).all()


def test_an_optimal_policy_has_efficiency_one():
    table = optimal_frontier(np.tile(REWARD, (3, 50)), [2.0, 1.0, 0.5])
    best = TILT(np.full(40, 1 / 40), REWARD, 0.8)
    kl, reward = float((best * np.log(best * 40)).sum()), float(best @ REWARD)
    assert efficiency(kl, reward, table) == pytest.approx(1, abs=0.01)
    assert efficiency(kl, (reward + REWARD.mean()) / 2, table) == pytest.approx(0.5, abs=0.01)


def test_keeping_one_of_many_draws_is_optimal_with_held_out_draws(pool: Pool):
    betas = [2.0, 1.4, 1.0, 0.7]
    found = one_front.held_out_shares({0: pool, 1: pool}, 1, 32, betas, [2.0, 1.0, 0.5], 0.3)
    assert found == pytest.approx([1, 1], abs=0.04)


def test_a_table_of_another_notebook_that_is_not_there_is_one_line(build):
    with pytest.raises(UserFault, match=r"figures: no table 9_none; the notebook of this name writes it"):
        one_front.tables_of_notebooks("smoke", ["9_none"])


def test_only_notebooks_of_the_profiles_report_are_followed():
    assert one_front.notebooks_read("pocket") == list(OneFront.reads)
    assert one_front.notebooks_read("pretrained_tiny") == ["2_dpo_losses", "4_warp"]


def test_tables_that_start_from_another_supervised_policy_are_told():
    sweep = pd.DataFrame({"method": ["sft", one_front.SWEPT], "seed": 0, "run": ["a", "b"]})
    others = pd.DataFrame(
        {"method": "sft", "seed": [0, 0, 5], "run": ["a", "z", "y"], "notebook": ["2_dpo_losses", "4_warp", "4_warp"]}
    )
    assert one_front.of_other_runs(others, sweep) == ["4_warp"]


def test_the_gold_of_best_of_n_is_that_of_the_best_draw():
    pool = pooled([REFERENCE], 6)
    rows = one_front.best_of_pool({0: pool}, [1, 6])
    best = pool.reward.argmax(axis=1)
    assert rows.gold.tolist() == pytest.approx([pool.gold.mean(), pool.gold[np.arange(5), best].mean()], abs=1e-6)
    assert rows.kl.tolist() == pytest.approx([0, np.log(6) - 5 / 6])


def test_a_setting_has_its_mean_over_seeds_and_their_t_interval():
    table = pd.DataFrame({"family": "a", "eta": [0.5] * 3 + [1.0], "seed": [0, 1, 2, 0], "kl": [1.0, 1, 1, 3],
                          "reward": [1.0, 2, 3, 5]})  # fmt: skip
    found = one_front.setting_means(table, ["reward"])
    assert found.kl.tolist() == [1.0, 3.0]
    assert found.reward.tolist() == [2.0, 5.0]
    assert found.loc[found.eta == 0.5, ["reward_low", "reward_high"]].to_numpy()[0] == pytest.approx(
        seed_interval(np.array([1.0, 2, 3]))[1:]
    )
    assert found.loc[found.eta == 1, ["reward_low", "reward_high"]].isna().all(axis=None)


@pytest.mark.parametrize(("followed", "own"), [(["4_warp"], ["over β", "towards"]), (["5_improvements"], ["over β"])])
def test_the_way_to_the_optimum_is_on_the_front_whoever_tells_it(followed, own, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(one_front, "rloo_over_beta", lambda *_: ["over β"])
    monkeypatch.setattr(one_front, "approach", lambda *_: ["towards"])
    monkeypatch.setattr(one_front, "notebooks_read", lambda profile: followed)
    assert one_front.sweep(SimpleNamespace(profile="x"), 0, {}) == own
