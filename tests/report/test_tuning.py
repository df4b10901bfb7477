"""Every method gets as many settings, and the best mean over tuning seeds is chosen."""

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.report import policies, tuning
from alignkit.report.policies import Method, Policy, dpo
from alignkit.report.tuning import KL, LEAST_REACH, SEEDS, TIE, Tried, choose, shares_of_settings
from alignkit.workflow import parameters, schema

ROOTS = np.sqrt([0.0, 0.25, 1.0, 1.5])
OPTIMAL = pd.DataFrame({"beta": [np.inf, 3, 2, 1], "kl": ROOTS**2, "reward": 0.5 + 4 * ROOTS})
"""A frontier with a gain of 4 √KL."""
RUN = SimpleNamespace(
    metrics={"status": "ok", "train_pairs": 10, "tokens_generated": 7, "eval_loss": 0.5, "kl": 1.0, "reward": 1.0}
)


def front(share: float, *kls: float, usual: bool = False) -> Tried:
    """A setting that gets this share of the optimal gain at these KLs."""
    runs = [SimpleNamespace(metrics={"kl": kl, "reward": 0.5 + 4 * share * np.sqrt(kl)}) for kl in kls]
    found = [Policy("method", 0, run) for run in runs]
    return Tried("method", {"rate": share}, usual, {"completions": 10}, found)


def rows(shares: dict[tuple[float, int], float], usual: float) -> pd.DataFrame:
    """Shares by (rate, seed)."""
    table = [{"method": "a", "rate": rate, "seed": seed, "share": share, "usual": rate == usual}
             for (rate, seed), share in shares.items()]  # fmt: skip
    return pd.DataFrame(table, columns=["method", *tuning.SETTING, "seed", "share", "usual"])


def test_settings_are_read_at_one_kl_that_all_of_them_reach():
    table = shares_of_settings([front(0.5, 0.25, 4.0), front(0.7, 0.49), front(0.9, 0.1, 2.0)], OPTIMAL)
    assert table.share.tolist() == pytest.approx([0.5, 0.7, 0.9])
    assert table.kl.tolist() == pytest.approx(3 * [0.49])
    assert shares_of_settings([front(0.5, 0.25, 4.0)], OPTIMAL).kl.tolist() == [KL]


def test_a_setting_that_hardly_moves_or_diverged_is_left_out():
    table = shares_of_settings([front(0.5, 1.1), front(0.9, 0.5 * LEAST_REACH), front(0.9)], OPTIMAL)
    assert table.kl.tolist() == 3 * [KL]
    assert table.share.isna().tolist() == [False, True, True]


def test_the_best_mean_over_seeds_is_chosen():
    shares = {
        (1, 0): 0.5,
        (1, 1): 0.5,
        (2, 0): 0.7,
        (2, 1): 0.5,
        (3, 0): 0.4,
        (3, 1): 0.9,
        (4, 0): 0.99,
        (4, 1): np.nan,
    }
    table = choose(rows(shares, usual=1))
    assert table.rate[table.chosen].tolist() == [3, 3]


@pytest.mark.parametrize(("better", "chosen"), [(0.9 * TIE, 1), (1.1 * TIE, 2)])
def test_the_usual_setting_stays_where_the_best_is_level_with_it(better: float, chosen: float):
    table = choose(rows({(1, 0): 0.5, (2, 0): 0.5 + better}, usual=1))
    assert table.rate[table.chosen].tolist() == [chosen]


def test_without_any_share_the_usual_setting_stays():
    assert choose(rows({(1, 0): np.nan, (2, 0): np.nan}, usual=1)).chosen.tolist() == [True, False]
    assert not choose(rows({(1, 0): np.nan, (2, 0): np.nan}, usual=9)).chosen.any()


def test_tuning_seeds_are_no_seeds_of_any_profile():
    for profile in parameters.profiles():
        p = parameters.load(paths.PARAMS / profile / "5_improvements.yaml")  # the notebook with seeds of its own
        assert not {*SEEDS} & {*p.training_seeds()}


def test_a_setting_is_two_factors_on_the_profiles_own(monkeypatch: pytest.MonkeyPatch):
    found = []
    monkeypatch.setattr(policies, "get", lambda train, settings, **inputs: found.append(settings) or RUN)
    monkeypatch.setattr(policies, "interpolated", lambda *_, **inputs: RUN)
    monkeypatch.setattr(
        policies, "prepared", lambda p, seed: dict.fromkeys(("pairs", "generations", "sft", "reward"), RUN)
    )
    p = parameters.load(paths.PARAMS / "pocket" / "2_dpo_losses.yaml")
    methods = [Method("hinge", dpo("hinge", 1.0))]
    tried = [
        *tuning.tries_on_pairs(p, 0, methods, None),
        *tuning.tries_on_pairs(p, 0, methods, {"ipo": [1, 1], "hinge": [3, 2]}),
    ]
    assert [s.lr for s in found[::2]] == pytest.approx([3e-4, 3e-4, 9e-4, 9e-4, 9e-4])
    assert [s.epochs for s in found[::2]] == pytest.approx([0.4, 1.2, 0.4, 1.2, 0.8])
    assert [one.usual for one in tried] == [True, False, False, False, False]
    assert [one.front[0].main for one in tried] == [False, False, False, False, True]  # what was chosen


def test_every_method_or_none_has_a_chosen_setting():
    for profile in {*parameters.profiles()} - {"smoke"}:  # which tests alone run, so some are enough
        p = parameters.load(paths.PARAMS / profile / "6_one_front.yaml")
        assert {*p.tuned} in ({*get_args(schema.Tunable)}, set())


@pytest.mark.slow
def test_every_method_is_tried_with_as_many_settings(build: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "BACK", tuning.BACK[:1])  # fewer points of each front
    table = tuning.tune("smoke", SEEDS[:1], (tuning.on_divergences, tuning.by_policy_gradient))
    assert set(table.groupby("method").size()) == {4}
    assert set(table.groupby("method").usual.sum()) == {1}
    assert set(table.groupby("method").chosen.sum()) <= {0, 1}
    assert (table.completions > 0).all()
    shown = tuning.choices(table)
    assert shown.method.is_unique
    assert (shown.settings == 4).all()
