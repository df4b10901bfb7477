"""Tables of notebook 1 that need no training."""

import pytest

from alignkit.report.reward_model import pair_costs


def test_imdbs_pairs_spelled_out_cost_312_500_000_forwards():
    costs = pair_costs({"IMDB": 12_500}, 32).set_index("training")
    spelled_out, in_batch = costs.loc["every pair spelled out"], costs.loc["in-batch all pairs, 32 a step"]
    assert (spelled_out.forwards, spelled_out["distinct pairs"]) == (312_500_000, 156_250_000)
    assert in_batch.forwards == 25_000
    assert in_batch["distinct pairs"] == pytest.approx(25_000 * 32 / 4, rel=0.001)
