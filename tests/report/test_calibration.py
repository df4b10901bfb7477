"""One temperature a reward model: what it is, and what dividing by it does."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from alignkit.report.reward_model import calibrated, spreads_differ, temperature

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(scale=2, size=20_000)
LABELS = (RNG.random(20_000) < expit(REWARDS)).astype(int)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_scale_of_the_rewards(scale: float):
    assert temperature(scale * REWARDS, LABELS) == pytest.approx(scale, rel=0.05)


def test_seeds_that_differ_by_a_scale_alone_do_not_differ_when_divided(tmp_path: Path):
    rewards = {}
    for seed, scale in enumerate([1.0, 2.0]):
        (tmp_path / str(seed)).mkdir()
        scored = pd.DataFrame({"split": "test", "label": LABELS, "reward": scale * REWARDS})
        scored.to_parquet(tmp_path / str(seed) / "scores.parquet")
        rewards[seed] = SimpleNamespace(path=tmp_path / str(seed))
    values = pd.DataFrame({"seed": [0, 1], "quantity": "gain", "nats": [3.0, 6.0]})
    row = calibrated(rewards, values).set_index("quantity").loc["gain"]
    assert row["spread / mean"] == pytest.approx(np.std([3, 6], ddof=1) / 4.5)
    assert row["spread / mean, divided"] == pytest.approx(0, abs=0.02)
    assert np.isnan(row["p"])  # two seeds have no test


def test_a_temperature_of_seeds_that_share_a_model_counts_once(tmp_path: Path):
    pd.DataFrame({"split": "test", "label": LABELS, "reward": REWARDS}).to_parquet(tmp_path / "scores.parquet")
    shared = dict.fromkeys([0, 1, 2], SimpleNamespace(path=tmp_path))
    values = pd.DataFrame({"seed": [0, 1, 2], "quantity": "gain", "nats": [3.0, 4.0, 5.0]})
    table = calibrated(shared, values).set_index("quantity")
    assert table.seeds.to_dict() == {"temperature": 1, "gain": 3}
    assert np.isnan(table.loc["temperature", "spread"])


def test_equal_spreads_are_told_from_unequal_ones():
    shared, own = np.random.default_rng(0).normal(size=(2, 200))
    assert spreads_differ(shared, shared + 0.1 * own) > 0.01
    assert spreads_differ(shared, 2 * shared + 0.1 * own) < 1e-6


def test_the_spread_test_errs_as_often_as_it_says():
    rng = np.random.default_rng(0)
    pairs = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(2000, 5))
    p = [spreads_differ(*seeds.T) for seeds in pairs]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.07


def test_two_seeds_or_a_missing_value_have_no_spread_to_compare():
    assert np.isnan(spreads_differ([1, 2], [2, 3]))
    assert np.isnan(spreads_differ([1, 2, 3], [2, 3, np.nan]))
    assert np.isnan(spreads_differ([0.9, 1.0, 1.1], [0.9, 1.0, 1.1 + 1e-12]))  # one scale for all seeds
