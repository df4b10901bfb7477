"""Means, differences, fronts and texts, on hand-made tables and runs."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from alignkit.metrics import holm
from alignkit.report.policies import Policy
from alignkit.report.tables import (
    at_kl,
    best_of_rows,
    curve,
    difference_in_words,
    differences,
    first_texts,
    fits,
    front,
    gains_over_sft,
    histories,
    interval_text,
    matched_differences,
    means_as_text,
    shown_fits,
    side_by_side,
    since_start,
    summary,
    verdict,
    volume_gains,
    volumes,
)
from alignkit.training.evaluate import measures

# Summaries and differences


def results(**by_method: list[float]) -> pd.DataFrame:
    """Rewards seed by seed, and twice as much gold; NaN is no row."""
    found = [{"method": name, "seed": seed, "status": "ok", "reward": value, "gold": 2 * value}
             for name, values in by_method.items() for seed, value in enumerate(values)]  # fmt: skip
    return pd.DataFrame(found)


def test_a_summary_has_mean_and_t_interval_over_seeds() -> None:
    found = summary(results(b=[1.0, 2.0, 6.0], a=[5.0]), ["reward", "gold"]).set_index("method")
    assert found.index.tolist() == ["b", "a"]
    assert found.seeds.tolist() == [3, 1]
    low, high = stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([1.0, 2.0, 6.0]))
    assert found.loc["b", ["reward", "reward_low", "reward_high"]].tolist() == pytest.approx([3.0, low, high])
    assert found.loc["b", ["gold", "gold_low", "gold_high"]].tolist() == pytest.approx([6.0, 2 * low, 2 * high])
    assert found.loc["a", "reward"] == 5.0
    assert found.loc["a", ["reward_low", "reward_high"]].isna().all()


def test_a_summary_leaves_out_what_diverged() -> None:
    broken = pd.DataFrame({"method": ["a", "c"], "seed": [1, 0], "status": "diverged"})
    found = summary(pd.concat([results(a=[1.0]), broken]), ["reward"])
    assert found[["method", "seeds", "reward"]].values.tolist() == [["a", 1, 1.0]]


BASE, UP, SAME = [1.0, 2.0, 3.0], [2.0, 3.1, 3.9], [1.1, 1.8, 3.2]


def test_differences_are_taken_seed_by_seed_with_a_paired_test() -> None:
    found = differences(results(base=BASE, up=UP, same=SAME), "base", ["reward", "gold"])
    assert set(found.columns) == {"method", "measure", "seeds", "difference", "low", "high", "p", "holm"}
    assert len(found) == 4
    row = found[(found.method == "up") & (found.measure == "reward")].iloc[0]
    assert (row.seeds, row.difference) == (3, pytest.approx(1.0))
    assert row.p == pytest.approx(stats.ttest_rel(UP, BASE).pvalue)
    low, high = stats.t.interval(0.95, 2, loc=1.0, scale=stats.sem(np.subtract(UP, BASE)))
    assert (row.low, row.high) == (pytest.approx(low), pytest.approx(high))


def test_holm_adjusts_over_the_methods_of_one_measure() -> None:
    data = results(base=BASE, up=UP, same=SAME)
    both, alone = differences(data, "base", ["reward", "gold"]), differences(data, "base", ["reward"])
    for measure, part in both.groupby("measure"):
        np.testing.assert_allclose(part.holm, holm(part.p.to_numpy()))
        ordered = part.sort_values("p")
        assert ordered.holm.iloc[0] == pytest.approx(2 * ordered.p.iloc[0]), measure
    pd.testing.assert_frame_equal(both[both.measure == "reward"], alone)


def test_side_rows_are_in_no_difference_and_do_not_count_for_holm() -> None:
    with_side = differences(results(base=BASE, up=UP, side=[9.0]), "base", ["reward"])
    pd.testing.assert_frame_equal(with_side, differences(results(base=BASE, up=UP), "base", ["reward"]))
    assert with_side.method.tolist() == ["up"]
    assert with_side.holm.tolist() == with_side.p.tolist()


def test_one_seed_gives_differences_without_interval_or_p() -> None:
    found = differences(results(base=[1.0], up=[3.0]), "base", ["reward"])
    assert found.difference.tolist() == [2.0]
    assert found[["low", "high", "p", "holm"]].isna().all(axis=None)


# At the same KL


def sweep(seed: int = 0, shift: float = 0.0) -> pd.DataFrame:
    """SFT and two sweeps; `even` lies on reward = 2 √KL + shift, `short` ends at KL 4; rows in no order."""
    sft = [("sft", 0.0, shift)]
    even = [("even", kl, 2 * kl**0.5 + shift) for kl in (9.0, 1.0, 4.0)]
    short = [("short", kl, kl + shift) for kl in (4.0, 1.0)]
    table = pd.DataFrame([*even, *sft, *short], columns=["family", "kl", "reward"])
    return table.assign(seed=seed, status="ok", gold=10 * table.reward)


def value(found: pd.DataFrame, family: str, kl: float, column: str = "reward") -> float:
    (only,) = found[(found.family == family) & (found.at_kl == kl)][column]
    return only


def test_at_the_kl_of_a_run_the_measures_are_those_of_the_run() -> None:
    found = at_kl(sweep(), [1.0, 4.0, 9.0], ["reward", "gold"])
    assert set(found.family) == {"even", "short"}
    for family, kl, reward in (("even", 1.0, 2.0), ("even", 4.0, 4.0), ("even", 9.0, 6.0), ("short", 4.0, 4.0)):
        assert value(found, family, kl) == pytest.approx(reward)
        assert value(found, family, kl, "gold") == pytest.approx(10 * reward)


@pytest.mark.parametrize("kl", [1.5, 2.0, 6.25])
def test_between_runs_measures_are_linear_in_the_root_of_kl(kl: float) -> None:
    assert value(at_kl(sweep(), [kl], ["reward"]), "even", kl) == pytest.approx(2 * kl**0.5)


def test_before_the_first_run_only_a_family_with_eta_has_numbers() -> None:
    assert np.isnan(value(at_kl(sweep(), [0.25], ["reward"]), "short", 0.25))
    for eta, expected in ((0.5, 0.5), (1.0, np.nan)):
        table = sweep().assign(eta=eta)
        assert value(at_kl(table, [0.25], ["reward"]), "short", 0.25) == pytest.approx(expected, nan_ok=True)


def test_beyond_a_sweep_there_is_no_number() -> None:
    found = at_kl(sweep(), [4.01, 9.01], ["reward", "gold"])
    assert np.isnan(value(found, "short", 4.01))
    assert np.isnan(value(found, "short", 4.01, "gold"))
    assert value(found, "even", 4.01) > 4
    assert np.isnan(value(found, "even", 9.01))


def test_each_seed_is_interpolated_alone_without_diverged_runs() -> None:
    both = pd.concat([sweep(0), sweep(1, shift=5.0)])
    found = at_kl(both, [2.25], ["reward"])
    even = found[found.family == "even"].set_index("seed").reward
    assert even.to_dict() == pytest.approx({0: 3.0, 1: 8.0})
    broken = pd.DataFrame({"family": ["even"], "seed": [0], "status": ["diverged"]})
    pd.testing.assert_frame_equal(at_kl(pd.concat([both, broken]), [2.25], ["reward"]), found)


def test_side_by_side_each_label_has_a_row_and_what_is_clear_a_star() -> None:
    rows = [("b at KL 1", "reward", 0.5, 0.1), ("b at KL 1", "gold", -2.0, 0.01), ("a at KL 1", "reward", 1.0, 0.04)]
    long = pd.DataFrame(rows, columns=["label", "measure", "difference", "holm"])
    wide = side_by_side(long.assign(low=long.difference - 1, high=long.difference + 1))
    assert list(wide.columns) == ["label", "reward", "gold"]
    assert wide.reward.tolist() == ["0.50 [-0.50, 1.50]", "1.00 [0.00, 2.00] *"]
    assert wide.gold[0] == "-2.00 [-3.00, -1.00] *"
    assert pd.isna(wide.gold[1])


def test_differences_at_several_kls_are_one_row_a_family() -> None:
    gaps = pd.DataFrame({"family": ["b", "b", "a"], "at_kl": [0.5, 1.0, 0.5], "difference": [1.0, 2.0, -1.0]})
    gaps = gaps.assign(low=gaps.difference - 0.5, high=gaps.difference + 0.5, holm=[0.2, 0.04, 0.2])
    found = side_by_side(gaps, "family", "at_kl").fillna("")
    assert found.columns.tolist() == ["family", "KL 0.5", "KL 1"]
    assert found.values.tolist() == [
        ["b", "1.00 [0.50, 1.50]", "2.00 [1.50, 2.50] *"],
        ["a", "-1.00 [-1.50, -0.50]", ""],
    ]


def test_matched_differences_are_adjusted_over_all_kls() -> None:
    noise = [0.0, 0.3, -0.2]
    table = pd.concat([sweep(seed).assign(seed=seed) for seed in range(3)])
    table.loc[table.family == "short", "reward"] += table.seed[table.family == "short"].map(dict(enumerate(noise)))
    matched = at_kl(table, [1.0, 4.0, 6.0], ["reward"])
    found = matched_differences(matched, "even", ["reward"])
    assert found.label.tolist() == ["short at KL 1", "short at KL 4"]  # at 6 the sweep of `short` has ended
    at_1 = np.add(noise, 1.0 - 2.0)
    assert found.difference[0] == pytest.approx(at_1.mean())
    assert found.p[0] == pytest.approx(stats.ttest_1samp(at_1, 0).pvalue)
    assert found.difference[1] == pytest.approx(np.mean(noise))
    np.testing.assert_allclose(found.holm, holm(found.p.to_numpy()))


# Texts


@pytest.mark.parametrize(("n", "bound"), [(1, 0.0), (2, math.log(2) - 0.5), (4, math.log(4) - 0.75)])
def test_best_of_n_has_the_measures_of_the_best_and_the_bound_of_its_kl(n: int, bound: float) -> None:
    rewards = [1.0, 3, 2, 0, -1, -2, 7, 8]
    samples = pd.DataFrame({"prompt": ["x"] * 4 + ["y"] * 4, "completion": [f"w{i}" for i in range(8)]})
    samples["reward"] = rewards
    (row,) = best_of_rows(samples, [n]).to_dict("records")
    assert (row["method"], row["n"]) == (f"best of {n}", n)
    assert row["kl_bound"] == pytest.approx(bound)
    best = np.array(rewards).reshape(-1, n).argmax(axis=1) + n * np.arange(8 // n)
    kept = samples.iloc[best]
    assert {name: row[name] for name in measures(kept)} == pytest.approx(measures(kept), nan_ok=True)


def test_the_bound_of_best_of_n_is_its_kl_where_all_rewards_differ() -> None:
    # Of m equally likely texts without ties the best of n drawn has KL to them that tends to the bound from below.
    n, m = 4, 20_000
    share = np.diff((np.arange(m + 1) / m) ** n)
    kl = (share * np.log(share * m)).sum()
    samples = pd.DataFrame({"prompt": "x", "completion": list("abcd"), "reward": [1.0, 2, 3, 4]})
    bound = best_of_rows(samples, [n]).kl_bound[0]
    assert kl <= bound + 1e-12
    assert kl == pytest.approx(bound, abs=1e-3)


def test_a_mean_and_its_interval_are_one_text() -> None:
    table = results(a=[1.0, 2.0, 3.0], b=[4.0, 5.0, 6.0])
    table.loc[table.method == "b", "reward"] = np.nan
    shown = means_as_text(summary(table, ["reward"]), ["reward"], digits=1)
    assert shown.values.tolist() == [["a", 3, "2.0 [-0.5, 4.5]"], ["b", 3, ""]]


def test_what_has_no_seed_is_not_told_as_one_seed() -> None:
    table = results(a=[1.0], b=[2.0])
    table.loc[table.method == "b", "seed"] = np.nan
    shown = means_as_text(summary(table, ["reward"]), ["reward"], digits=1)
    assert shown.reward.tolist() == ["1.0 (1 seed)", "2.0"]
    assert means_as_text(summary(table.iloc[:0], ["reward"]), ["reward"]).empty


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.2, "the interval is clear of zero"),
        (-0.2, -0.1, "the interval is clear of zero"),
        (-0.1, 0.1, "the interval includes zero, so no claim"),
        (0.0, 0.1, "the interval includes zero, so no claim"),
        (math.nan, math.nan, "one seed, so no interval and no claim"),
    ],
)
def test_a_verdict_claims_only_what_the_interval_allows(low: float, high: float, words: str) -> None:
    assert verdict(low, high) == words


def test_interval_text_rounds_and_tells_of_a_single_seed() -> None:
    assert interval_text(0.97449, 0.96951, 0.9781) == "0.974 [0.970, 0.978]"
    assert interval_text(12.34, 11, 13, digits=1) == "12.3 [11.0, 13.0]"
    assert interval_text(0.97449, math.nan, math.nan) == "0.974 (1 seed)"


# Fronts


def test_a_front_starts_with_sft_and_takes_the_names_that_it_is_given() -> None:
    table = pd.DataFrame({"method": ["sft", "a", "a", "b"], "eta": [0.0, 0.5, 1, 1], "family": ["sft", "x", "x", "y"]})
    found = front(table, {"a": "first", "b": "second"}, eta=1)
    assert found[["family", "eta"]].values.tolist() == [["sft", 0], ["first", 1], ["second", 1]]
    assert front(table, ["a"]).family.tolist() == ["sft", "a", "a"]


def test_gains_need_no_gold() -> None:
    table = pd.DataFrame({"method": ["sft", "a"], "seed": 0, "reward": [1.0, 3.0]})
    assert gains_over_sft(table).reward.tolist() == [0, 2]


def test_gains_are_over_the_same_seeds_own_start() -> None:
    table = pd.DataFrame({"method": ["sft", "a", "sft", "a"], "seed": [0, 0, 1, 1], "reward": [1.0, 3, 10, 14],
                          "gold": [np.nan] * 4})  # fmt: skip
    assert gains_over_sft(table).reward.tolist() == [0, 2, 0, 4]


def test_the_hypervolume_does_not_hang_on_the_number_of_points() -> None:
    def volume(kls: list[float]) -> float:
        line = [(kl, 3 * kl**0.5) for kl in kls]
        rows = pd.DataFrame([(0.0, 0.0), *line], columns=["kl", "reward"]).assign(method="a", seed=0, status="ok")
        rows.loc[0, "method"] = "sft"
        return volumes(rows.assign(tokens_generated=7, eta=0.5), ["reward"]).reward.item()

    assert volume([5.0]) == pytest.approx(volume([0.3, 1.0, 2.2, 5.0]), rel=1e-5)
    assert volume([5.0]) == pytest.approx(3 * 2 / 3 * 4**1.5, rel=1e-5)


def test_an_estimated_kl_below_zero_counts_as_zero() -> None:
    def volume(kl: float) -> float:
        rows = pd.DataFrame({"method": ["sft", "a", "a"], "kl": [0.0, 1.0, kl], "reward": [0.0, 2.0, 0.5]})
        return volumes(rows.assign(seed=0, tokens_generated=7, status="ok"), ["reward"]).reward.item()

    assert volume(-0.01) == volume(0.0)


def test_a_front_is_level_beyond_its_last_policy() -> None:
    rows = pd.DataFrame({"method": ["sft", "a", "b"], "kl": [0.0, 1, 1], "reward": [0.0, 2, 2], "seed": 0,
                         "tokens_generated": 7, "status": ["ok", "ok", "diverged"], "eta": 0.5})  # fmt: skip
    found = volumes(rows, ["reward"]).set_index("method")
    assert found.reward["a"] == pytest.approx(2 * 2 / 3 + 2 * 3, rel=1e-5)
    assert np.isnan(found.reward["b"])
    assert found.status.to_dict() == {"a": "ok", "b": "diverged"}


def test_a_sweep_has_no_area_before_its_first_policy() -> None:
    rows = pd.DataFrame({"method": ["sft", "a", "a"], "kl": [0.0, 1, 2], "reward": [1.0, 3, 3], "seed": 0,
                         "tokens_generated": 7, "status": "ok", "eta": [np.nan, np.nan, np.nan]})  # fmt: skip
    assert volumes(rows, ["reward"]).reward.item() == pytest.approx(2 * 3, rel=1e-9)
    assert volumes(rows.assign(kl=[0.0, 1.2345, 2]), ["reward"]).reward.item() == pytest.approx(2 * (4 - 1.2345))
    assert volumes(rows.assign(kl=[0.0, 4.5, 5]), ["reward"]).reward.item() == 0
    assert volumes(rows.assign(eta=0.5), ["reward"]).reward.item() > 2 * 3.5


def test_a_front_that_stays_at_its_start_has_no_area() -> None:
    rows = [(name, seed, kl, 0.0) for seed in range(2) for name, kl in (("sft", 0.0), ("a", -1e-9), ("b", 1.0))]
    table = pd.DataFrame(rows, columns=["method", "seed", "kl", "reward"])
    gains = volume_gains(table.assign(tokens_generated=7, status="ok", eta=0.5), "a", ["b"], ["reward"])
    assert gains.difference.tolist() == [0]


def test_a_clear_interval_that_holm_leaves_open_is_told_so() -> None:
    row = pd.DataFrame({"difference": [1.0], "low": 0.2, "high": 1.8, "holm": 0.12}).iloc[0]
    assert difference_in_words(row) == "1.00 [0.20, 1.80]; the interval is clear of zero, but after Holm p = 0.12"
    assert difference_in_words(row.replace(0.12, 0.04)) == "1.00 [0.20, 1.80]; the interval is clear of zero"
    assert "Holm" not in difference_in_words(row.replace(0.2, -0.2))


@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(-2, 5)), min_size=1, max_size=5, unique_by=lambda x: x[0]))
@example([(0.125, 0.0), (0.21875, 0.0), (0.19859354628748904, 4.0)])
def test_a_volume_is_the_integral_of_the_best_so_far(points: list[tuple[float, float]]) -> None:
    rows = pd.DataFrame([(0.0, 0.0), *sorted(points)], columns=["kl", "reward"]).assign(seed=0, status="ok", eta=0.5)
    rows["method"] = ["sft", *["a"] * len(points)]
    found = volumes(rows.assign(tokens_generated=7), ["reward"]).reward.item()
    root = np.union1d(np.linspace(0, 2, 200_001), np.sqrt(rows.kl.clip(upper=4)))  # with the tip of every peak
    best = np.maximum.accumulate(np.interp(root, np.sqrt(rows.kl), rows.reward))
    assert found == pytest.approx(np.trapezoid(best * 2 * root, root), abs=1e-3)


def test_a_front_that_ends_early_is_not_lower_for_that() -> None:
    kls = np.array([0.25, 1.0, 4.0])
    rows = [("sft", seed, 0.0, 0.0) for seed in range(3)]
    for seed in range(3):
        rows += [("long", seed, kl, 3 * kl**0.5) for kl in kls]
        rows += [("short", seed, kl, 3 * kl**0.5) for kl in kls[:2]]
        rows += [("short and high", seed, kl, (4 + 0.1 * seed) * kl**0.5) for kl in kls[:2]]
    table = pd.DataFrame(rows, columns=["method", "seed", "kl", "reward"])
    table = table.assign(tokens_generated=7, status="ok", eta=0.5)
    found = volume_gains(table, "long", ["short", "short and high"], ["reward"]).set_index("method")
    assert found.difference["short"] == pytest.approx(0)
    assert found.difference["short and high"] == pytest.approx(1.1 * 2 / 3, rel=1e-5)
    assert volumes(table, ["reward"]).groupby("method").reward.mean()["short and high"] < 3 * 16 / 3
    np.testing.assert_allclose(found.holm, holm(found.p.to_numpy()))


def test_shown_fits_have_ranges_of_what_has_bounds() -> None:
    found = pd.DataFrame({"family": "a", "seed": [0, 1], "alpha": [1.0, 2.0], "beta": 0.5, "r2": [0.2, 0.9]})
    shown = shown_fits(found.assign(most_kl=[8.0, 8.0], status="ok")).iloc[0]
    assert shown["bend"] == "0.50 [0.50, 0.50]"
    assert (shown["R² (range)"], shown["largest KL (range)"]) == ("0.20 to 0.90", "8.00")
    assert "largest KL (range)" not in shown_fits(found.assign(status="ok"))


def test_a_family_with_too_few_points_has_no_fit_and_others_have() -> None:
    kl = np.array([0.5, 1.0, 2.0, 4.0])
    good = pd.DataFrame({"family": "a", "kl": kl, "gold": 1 + curve(kl, 2.0, 0.5)})
    few = pd.DataFrame({"family": "b", "kl": [0.01, 1.0], "gold": [1.0, 2.0]})
    start = pd.DataFrame({"family": ["sft"], "kl": [0.0], "gold": [1.0]})
    found = fits(pd.concat([start, good, few]).assign(seed=0, status="ok")).set_index("family")
    assert (found.alpha["a"], found.beta["a"]) == pytest.approx((2.0, 0.5))
    assert np.isnan(found.alpha["b"])
    assert found.most_kl["a"] == 4.0


# Training logs


def logged(run, seed: int) -> Policy:
    steps = [0, 8, 16]
    sides = {"eval_logps/chosen": [-50.0 - seed, -49, -48], "eval_logps/rejected": [-60.0 - seed, -62, -64]}
    log = pd.DataFrame({"step": steps, "eval_loss": [0.7, np.nan, 0.5], **sides})
    return Policy("sigmoid", seed, run({}), trained=(run({}, history=log),))


def test_the_first_text_of_each_prompt_stands_beside_the_others(run) -> None:
    made = {}
    for name, written in (("SFT", ["a", "b", "c"]), ("tuned", ["d", "e", "f"])):
        made[name] = run({})
        texts = pd.DataFrame({"prompt": ["second", "second", "first"], "completion": written})
        texts.to_parquet(made[name].path / "completions.parquet")
    found = first_texts(made, prompts=1)
    assert found.to_dict("list") == {"prompt": ["second"], "SFT": ["a"], "tuned": ["d"]}
    assert len(first_texts(made)) == 2


def test_histories_are_those_of_the_methods_with_method_and_seed(run) -> None:
    log = histories([logged(run, 0), logged(run, 1), Policy("sft", 0, run({}))], ["sigmoid"])
    assert log.groupby("seed").step.apply(list).to_dict() == {0: [0, 8, 16], 1: [0, 8, 16]}
    assert set(log.method) == {"sigmoid"}


def test_a_log_since_its_start_begins_at_zero_for_every_seed(run) -> None:
    log = since_start(histories([logged(run, 0), logged(run, 3)], ["sigmoid"]))
    assert log.groupby("seed").chosen.apply(list).to_dict() == {0: [0, 2], 3: [0, 5]}
    assert log.groupby("seed").rejected.apply(list).to_dict() == {0: [0, -4], 3: [0, -1]}


def test_training_logs_can_be_means_over_windows(run) -> None:
    log = pd.DataFrame({"step": [1, 2, 3, 4], "reward": [1.0, 3, 5, 9]})
    found = histories([Policy("WARP", 0, run({}), trained=(run({}, history=log),))], ["WARP"], window=2)
    assert found.reward.tolist() == [2, 7]
    assert found.method.tolist() == ["WARP", "WARP"]
