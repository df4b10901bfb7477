"""One temperature a reward model: what it is, and what dividing by it does."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from alignkit.report.reward_model import calibrated, temperature

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
