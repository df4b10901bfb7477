"""The tables of the preference notebooks, on hand-made runs and numbers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from alignkit import paths
from alignkit.metrics import holm
from alignkit.report.dpo_report import (
    at_kl,
    at_kl_by_prompt_length,
    best_of_rows,
    chosen_texts,
    differences,
    families,
    histories,
    matched_differences,
    quantiles,
    rows,
    summary,
)
from alignkit.training.evaluate import measures
from alignkit.workflow.parameters import load
from alignkit.workflow.store import RECORD, Run

Make = Callable[..., Run]


# Rows


@pytest.fixture
def run(tmp_path: Path) -> Make:
    """A function that makes a run of these settings and metrics; its folder holds the record and given tables."""
    calls = iter(range(1000))

    def make(metrics: dict[str, Any], settings: dict[str, Any] | None = None, **files: pd.DataFrame) -> Run:
        made = Run(f"id{next(calls)}", tmp_path / f"{next(calls)}")
        made.path.mkdir()
        (made.path / RECORD).write_text(json.dumps({"settings": settings or {}, "metrics": metrics}))
        for name, table in files.items():
            table.to_csv(made.path / f"{name}.csv", index=False)
        return made

    return make


@pytest.fixture(scope="module")
def p():
    return load(paths.PARAMS / "smoke" / "2_dpo_losses.yaml")


TRAINED = {"status": "ok", "eval_loss": 0.5, "chosen_logp": -9.0, "rejected_logp": -8.0, "accuracy": 0.75}
TRAINED |= {"clamped": 0.0, "tokens_trained": 1234}


@pytest.fixture
def runs(run: Make, p) -> dict[int, dict[str, Run]]:
    """Two seeds; sft and sigmoid for both, the others for the first."""

    def evaluated(reward: float, completions: int = p.main_completions) -> Run:
        return run({"status": "ok", "reward": reward, "kl": 2 * reward, "completions": completions})

    out: dict[int, dict[str, Run]] = {}
    for seed in (0, 1):
        pairs, others = run({"train_pairs": 5}), run({"train_pairs": 7})
        usual = {"loss": "sigmoid", "divergence_name": "reverse_kl", "beta": 0.1, "pairs": pairs.id}
        usual |= {"epochs": p.dpo_epochs, "batch": 8, "lr": p.dpo_lr}
        log = pd.DataFrame({"step": [0, 8], "eval_loss": [0.7, 0.5 + seed]})
        by_name = {
            "sft": run({"test_cross_entropy": 2.0}),
            "sft: evaluation": evaluated(0.0),
            "generations": run({"tokens_generated": 999}),
            "pairs": pairs,
            "pairs: all_pairs": others,
            "sigmoid": run(TRAINED, usual, history=log),
            "sigmoid: evaluation": evaluated(1.0 + seed),
        }
        if seed == 0:
            side = {
                "slow": {"lr": p.dpo_lr / 10},
                "long": {"epochs": 3 * p.dpo_epochs},
                "lora": {"lora_rank": 2},
                "one object": {"scores": "one_object"},
                "other pairs": {"pairs": others.id},
                "sweep": {"beta": 1.0},
            }
            for name, changed in side.items():
                by_name[name] = run(TRAINED, usual | changed)
                by_name[f"{name}: evaluation"] = evaluated(0.5, p.side_completions)
            by_name["positive reviews"] = run({"status": "ok", "tokens_trained": 77})
            by_name["positive reviews: evaluation"] = evaluated(0.2, p.side_completions)
            by_name["keyword bias: evaluation"] = evaluated(0.3, p.side_completions)
            by_name["broken"] = run(TRAINED | {"status": "diverged"}, usual | {"beta": 0.5})
            by_name["broken: evaluation"] = run({"status": "diverged"})
        out[seed] = by_name
    return out


@pytest.fixture
def table(runs, p) -> pd.DataFrame:
    return rows(runs, p)


def test_every_evaluation_has_one_row_with_its_run_and_numbers(table: pd.DataFrame, runs, p) -> None:
    expected = [(key.removesuffix(": evaluation"), seed, run.id) for seed, by_name in runs.items()
                for key, run in by_name.items() if key.endswith(": evaluation")]  # fmt: skip
    assert list(zip(table.method, table.seed, table.run, strict=True)) == expected
    assert len(expected) == 13
    sigmoid = table[table.method == "sigmoid"]
    assert sigmoid.reward.tolist() == [1.0, 2.0]
    assert sigmoid.kl.tolist() == [2.0, 4.0]
    assert set(table.profile) == {p.profile}
    assert set(table.notebook) == {"2_dpo_losses"}


def test_a_row_shows_what_its_training_was_asked_for_and_measured(table: pd.DataFrame, p) -> None:
    sigmoid = table[table.method == "sigmoid"].iloc[0]
    shown = {"loss": "sigmoid", "divergence": "reverse_kl", "beta": 0.1, "batch": 8, "lr": p.dpo_lr, "pairs": "pairs"}
    assert sigmoid[list(shown)].to_dict() == shown
    assert sigmoid[["eval_loss", "accuracy", "tokens_trained"]].tolist() == [0.5, 0.75, 1234]
    assert sigmoid.tokens_generated == 999
    others = table.set_index("method")
    assert others.pairs["other pairs"] == "pairs: all_pairs"
    assert others.tokens_trained["positive reviews"] == 77
    assert others.loss.isna()[["sft", "positive reviews", "keyword bias"]].all()
    assert np.isnan(others.tokens_trained["keyword bias"])


def test_a_diverged_run_keeps_its_row_without_numbers(table: pd.DataFrame) -> None:
    row = table[table.method == "broken"].iloc[0]
    assert row.status == "diverged"
    assert row[["reward", "kl"]].isna().all()
    assert row.beta == 0.5


def test_rows_with_fewer_completions_are_side_rows(table: pd.DataFrame) -> None:
    kinds = table[table.status == "ok"].groupby("method").row.unique().map(list).to_dict()
    assert [name for name, kind in kinds.items() if kind == ["main"]] == ["sft", "sigmoid"]
    assert all(kind in (["main"], ["side"]) for kind in kinds.values())


def test_usual_rows_share_pairs_rate_length_weights_and_scores_but_not_beta(table: pd.DataFrame) -> None:
    assert set(table.method[table.usual]) == {"sigmoid", "sweep", "broken"}


def test_histories_are_those_of_the_methods_with_method_and_seed(runs) -> None:
    log = histories(runs, ["sigmoid"])
    assert log.columns.tolist() == ["step", "eval_loss", "method", "seed"]
    assert log.groupby("seed").eval_loss.last().tolist() == [0.5, 1.5]


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


def test_before_the_first_run_there_is_no_number_but_for_a_family_that_is_interpolated_back_to_sft() -> None:
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


def test_each_seed_is_interpolated_on_its_own_and_diverged_runs_do_not_count() -> None:
    both = pd.concat([sweep(0), sweep(1, shift=5.0)])
    found = at_kl(both, [2.25], ["reward"])
    even = found[found.family == "even"].set_index("seed").reward
    assert even.to_dict() == pytest.approx({0: 3.0, 1: 8.0})
    broken = pd.DataFrame({"family": ["even"], "seed": [0], "status": ["diverged"]})
    pd.testing.assert_frame_equal(at_kl(pd.concat([both, broken]), [2.25], ["reward"]), found)


def test_matched_differences_are_taken_at_one_kl_and_adjusted_over_all_of_them() -> None:
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


def test_families_are_divergences_alpha_by_alpha_and_sft() -> None:
    table = pd.DataFrame(
        {"divergence": ["alpha", "alpha", "js", None, "chi_alpha"], "alpha": [0.3, 0.50, None, None, 1.5]}
    )
    assert families(table).tolist() == ["alpha 0.3", "alpha 0.5", "js", "sft", "chi_alpha"]


def test_prompts_are_halved_by_length_before_the_kl_is_matched(run: Make) -> None:
    prompts = pd.Series(["a", "a b", "a b c", "a b c d"])
    runs: dict[int, dict[str, Run]] = {0: {}}
    table = []
    for method, family, kl, reward in (
        ("sft", "sft", [0, 0, 0, 0], [0, 0, 0, 0]),
        ("js", "js", [1, 1, 4, 4], [1, 3, 10, 12]),
    ):
        made = run({"status": "ok"})
        pd.DataFrame({"prompt": prompts, "kl": kl, "reward": reward}).to_parquet(made.path / "completions.parquet")
        runs[0][f"{method}: evaluation"] = made
        table.append({"method": method, "seed": 0, "family": family})
    found = at_kl_by_prompt_length(runs, pd.DataFrame(table), [1.0, 4.0], ["reward"])
    at = found.dropna(subset="reward").set_index(["prompts", "at_kl"]).reward
    assert at.to_dict() == pytest.approx({("short", 1.0): 2.0, ("long", 4.0): 11.0})
    assert set(found.family) == {"js"}


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


def test_chosen_texts_are_those_of_the_training_pairs_each_once(run: Make) -> None:
    by_name = {"pairs": run({}), "generations": run({})}
    (by_name["pairs"].path / "pairs").mkdir()
    drawn = pd.DataFrame(
        {
            "prompt": ["x", "x", "x", "x", "y", "y"],
            "completion": ["a", "b", "c", "a", "a", "b"],
            "text": ["x a", "x b", "x c", "x a", "y a", "y b"],
            "reward": [3.0, 2.0, 1.0, 3.0, 0.0, 5.0],
        }
    )
    drawn.to_parquet(by_name["generations"].path / "generations.parquet")
    pairs = pd.DataFrame({"prompt": ["x", "x", "x", "y"], "chosen": ["a", "a", "b", "b"]})
    pairs.assign(rejected="c").to_parquet(by_name["pairs"].path / "pairs" / "train.parquet")
    found = chosen_texts(by_name)
    assert found[["text", "reward"]].values.tolist() == [["x a", 3.0], ["x b", 2.0], ["y b", 5.0]]


def test_quantiles_are_what_a_box_plot_draws() -> None:
    found = quantiles({"a": pd.Series(np.arange(101.0)), "b": pd.Series([2.0, 4.0])}).set_index("method")
    assert found.columns.tolist() == ["q05", "q25", "q50", "q75", "q95", "mean"]
    assert found.loc["a"].tolist() == [5, 25, 50, 75, 95, 50]
    assert found.loc["b", ["q50", "mean"]].tolist() == [3, 3]
