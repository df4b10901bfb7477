"""What gold says: the loss in two parts, the faults of a text, and texts of single policies."""

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.frontier import optimal_frontier
from alignkit.pocket import FAULT_COST, generate_reviews, gold_reward, well_formed
from alignkit.report import gold
from alignkit.training.pool import Pool

RNG = np.random.default_rng(0)
REWARD = RNG.normal(size=(5, 4000))
GOLD = 0.8 * REWARD + 0.6 * RNG.normal(size=(5, 4000))
POOL = Pool(REWARD, GOLD, np.zeros((5, 4000), dtype=int), np.zeros((1, 5, 4000)))
BETAS = [4.0, 2.0, 1.0, 0.7]


def samples(texts: list[str]) -> pd.DataFrame:
    """Texts as evaluations keep them: cut after the fifth word."""
    halves = [(" ".join(text.split()[:5]), " ".join(text.split()[5:])) for text in texts]
    table = pd.DataFrame(halves, columns=["prompt", "completion"])
    return table.assign(text=texts, gold=gold_reward(texts), well_formed=well_formed(texts))


def test_the_two_errors_add_up_to_what_a_method_misses():
    frontiers = {0: optimal_frontier(REWARD, BETAS, gold=GOLD)}
    of_gold = {0: optimal_frontier(GOLD, BETAS, POOL.log_weights())}
    at = pd.DataFrame({"family": "a", "seed": 0, "at_kl": [0.2, 0.5], "draws": np.nan, "gold": [0.1, 0.2]})
    found = gold.loss_split(at, frontiers, of_gold)
    # Rewards and gold are normal with correlation 0.8: the optimum gains √(2 KL), in gold 0.8 of that along the reward.
    assert found["possible gain"].tolist() == pytest.approx(np.sqrt([0.4, 1.0]), rel=0.05)
    assert found["proxy error"].tolist() == pytest.approx(0.2 * np.sqrt([0.4, 1.0]), rel=0.2)
    whole = found["proxy error"] + found["optimisation error"]
    assert whole.tolist() == pytest.approx(of_gold[0].reward[0] + found["possible gain"] - at.gold)
    assert found.part.tolist() == pytest.approx(found["proxy error"] / whole)


def test_faults_are_those_that_gold_charges(monkeypatch):
    reviews = generate_reviews(20, 0).text.tolist()
    texts = [*reviews, reviews[0] + " " + reviews[0], "good good . " + reviews[1], reviews[2] + " the plot"]
    texts.append("good good bad words " + reviews[3])
    table = samples(texts)
    monkeypatch.setattr("alignkit.pocket.FAULT_COST", FAULT_COST + 1)
    assert gold.fault_counts(table).tolist() == pytest.approx(table.gold - gold_reward(texts))
    assert gold.fault_counts(table).max() > 1


def test_another_cost_moves_gains_by_the_faults_alone():
    start = {0: pd.DataFrame({"gold": [1.0], "faults": [0.5]})}
    at = pd.DataFrame({"family": "a", "seed": 0, "at_kl": 1.0, "gold": [3.0], "faults": [0.1]})
    row = gold.gains_at_costs(at, start).iloc[0]
    assert row.faults == pytest.approx(-0.4)
    assert [row[f"cost {c:g}"] for c in gold.COSTS] == pytest.approx([2 + 0.4 * (c - FAULT_COST) for c in gold.COSTS])


def test_what_is_not_kept_here_is_left_out(build):
    assert gold.text_measures(["none", "neither"]).isna().all(axis=None)
    rows = pd.DataFrame({"family": ["a"], "kl": [1.0], "run": ["none"]})
    kept = pd.DataFrame({"family": [], "kl": [], "position": []})
    assert gold.texts_near(rows, kept, ["a"], 1.0, paths.store()).empty


def test_the_text_of_a_method_is_that_of_its_policy_nearest_in_kl(build):
    for run, word in (("near", "yes"), ("far", "no")):
        folder = paths.store() / f"evaluate-{run}"
        folder.mkdir(parents=True)
        table = pd.DataFrame({"prompt": ["x", "x", "y", "z"], "completion": [word, "second", word, word]})
        table.assign(reward=1.0, kl=[1.0, 2.0, 1.0, 1.0]).to_parquet(folder / "completions.parquet")
    rows = pd.DataFrame({"family": "a", "kl": [0.9, 3.0], "run": ["near", "far"]})
    found = gold.texts_near(rows, rows.head(0), ["a"], 1.0, paths.store())
    assert found[["prompt", "completion"]].to_numpy().tolist() == [["x", "yes"], ["y", "yes"]]
    assert gold.text_measures(["near"]).kl_error.item() == pytest.approx(np.sqrt(0.5 / 4))


def test_of_several_draws_the_one_of_great_weight_is_kept(build):
    draws = pd.DataFrame({"policy": 1, "place": [0, 0, 0, 1, 1, 1], "prompt": ["x"] * 3 + ["y"] * 3})
    draws = draws.assign(completion=list("abcdef"), reward=[0, 0, 9, 9, 0, 9], log_prob_0=0.0)
    draws["log_prob_1"] = [0, 0, 0, 50, 0, 0]  # d is what the policy likes and the reference does not
    paths.store().mkdir(parents=True, exist_ok=True)
    draws.to_parquet(paths.store() / "pool.parquet")
    row = pd.Series({"position": 1.0, "draws": 3.0, "beta": 0.1})
    assert gold.kept_texts(paths.store(), row, 2).completion.tolist() == ["c", "f"]
