"""Every method gets as many settings, and the best mean over tuning seeds is chosen."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.report import policies, tuning
from alignkit.report.policies import Method, dpo, f_dpo
from alignkit.report.tuning import KL, LEAST_REACH, SEEDS, TIE, Tried, choose, compared
from alignkit.workflow import parameters

ROOTS = np.sqrt([0.0, 0.25, 1.0, 1.5])
OPTIMAL = pd.DataFrame({"beta": [np.inf, 3, 2, 1], "kl": ROOTS**2, "reward": 0.5 + 4 * ROOTS})
"""A frontier with a gain of 4 √KL."""


def front(share: float, *kls: float, usual: bool = False) -> Tried:
    """A setting that gets this share of the optimal gain at these KLs."""
    found = [SimpleNamespace(metrics={"kl": kl, "reward": 0.5 + 4 * share * np.sqrt(kl)}) for kl in kls]
    return Tried("method", {"rate": share}, usual, {"completions": 10}, found)


def rows(shares: dict[tuple[float, int], float], usual: float) -> pd.DataFrame:
    """Shares by (rate, seed)."""
    table = [{"method": "a", "rate": rate, "seed": seed, "share": share, "usual": rate == usual}
             for (rate, seed), share in shares.items()]  # fmt: skip
    return pd.DataFrame(table, columns=["method", *tuning.SETTING, "seed", "share", "usual"])


def test_settings_are_read_at_one_kl_that_all_of_them_reach():
    table = compared([front(0.5, 0.25, 4.0), front(0.7, 0.49), front(0.9, 0.1, 2.0)], OPTIMAL)
    assert table.share.tolist() == pytest.approx([0.5, 0.7, 0.9])
    assert table.kl.tolist() == pytest.approx(3 * [0.49])
    assert compared([front(0.5, 0.25, 4.0)], OPTIMAL).kl.tolist() == [KL]


def test_a_setting_that_hardly_moves_or_diverged_is_left_out():
    table = compared([front(0.5, 1.1), front(0.9, 0.5 * LEAST_REACH), front(0.9)], OPTIMAL)
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


def test_a_tuned_method_trains_with_its_factors_but_keeps_its_own(monkeypatch: pytest.MonkeyPatch):
    got = []
    monkeypatch.setattr(policies, "get", lambda train, settings, **inputs: got.append(settings))
    pairs = SimpleNamespace(metrics={"train_pairs": 10})
    tuned = {"hinge": [3, 2], "js": [1, 3]}
    for notebook, methods in {
        "2_dpo_losses": [("hinge", dpo("hinge", 1.0)), ("sigmoid", dpo("sigmoid", 1.0))],
        "3_f_divergences": [("js", f_dpo("js", 1.0)), ("own", f_dpo("js", 1.0, epochs=7.0))],
    }.items():
        p = parameters.load(paths.PARAMS / "pocket" / f"{notebook}.yaml", dpo_tuned=tuned)
        runs = {"pairs": pairs, "sft": None, "reward": None}
        policies.aligned(p, p.seeds[0], [Method(name, settings) for name, settings in methods], runs)
    found = [number for settings in got[::2] for number in (settings.lr, settings.epochs)]
    assert found == pytest.approx([9e-4, 0.8, 3e-4, 0.4, 4e-4, 2.4, 4e-4, 7.0])


@pytest.mark.slow
def test_every_method_is_tried_with_as_many_settings(build: Path):
    table = tuning.tune("smoke", SEEDS[:1], (tuning.on_divergences, tuning.by_policy_gradient))
    assert set(table.groupby("method").size()) == {4}
    assert set(table.groupby("method").usual.sum()) <= {0, 1}
    assert set(table.groupby("method").chosen.sum()) <= {0, 1}
    assert (table.completions > 0).all()
    shown = tuning.choices(table)
    assert shown.method.is_unique
    assert (shown.settings == 4).all()
