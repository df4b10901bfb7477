"""Tables of notebook 1 that need no training."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from alignkit.report.reward_model import TEXTS, baseline_rows, pair_costs
from alignkit.report.tables import summary
from alignkit.training.reward import tfidf_baseline
from alignkit.world.known import TRUTHS


def test_imdbs_pairs_spelled_out_cost_312_500_000_forwards():
    costs = pair_costs({"IMDB": (12_500, 12_500)}, 32).set_index("training")
    spelled_out, in_batch = costs.loc["every pair spelled out"], costs.loc["in-batch all pairs, 32 a step"]
    assert (spelled_out.forwards, spelled_out["distinct pairs"]) == (312_500_000, 156_250_000)
    assert in_batch.forwards == 25_000
    assert in_batch["distinct pairs"] == pytest.approx(25_000 * 32 / 4, rel=0.001)


def test_pairs_of_a_rare_label_are_its_reviews_times_the_others():
    costs = pair_costs({"rare": (1174, 26)}, 32).set_index("training")
    assert costs["distinct pairs"]["every pair spelled out"] == 1174 * 26
    assert costs.forwards["plain pairs"] == 2 * 1174  # each rare one is used several times


def test_only_the_baseline_with_word_pairs_reads_a_negation():
    texts = ["good .", "not bad .", "bad .", "not good ."] * 3
    split = Dataset.from_dict({"text": texts, "label": [1, 1, 0, 0] * 3})
    sizes = {"tfidf_words": 1, "tfidf_word_pairs": 2}
    baselines = {name: tfidf_baseline(texts, list(split["label"]), ngrams=n) for name, n in sizes.items()}
    gold = np.array([2.0, 2.0, -2.0, -2.0] * 3)
    rows = baseline_rows(baselines, DatasetDict(train=split, test=split), gold)
    of_seeds = pd.DataFrame({"method": ["reward"] * 2, "seed": [0, 1], "pairwise_accuracy": [0.9, 0.8], "status": "ok"})
    shown = summary(pd.concat([of_seeds, rows]), ["pairwise_accuracy"])
    assert list(shown.method) == ["reward", "tfidf_words", "tfidf_word_pairs", "exact posterior"]
    rows = rows.set_index("method")
    assert rows.pairwise_accuracy["tfidf_words"] < 0.8
    assert rows.pairwise_accuracy["tfidf_word_pairs"] == rows.pairwise_accuracy["exact posterior"] == 1
    assert (rows.reviews.drop("exact posterior") == 12).all()


@pytest.mark.parametrize("world", TEXTS)
def test_the_texts_that_a_reward_model_is_asked_about_are_of_its_world(world: str):
    said, truth = TEXTS[world], TRUTHS[world]
    written = [*said["constructions"].values(), *said["strong"], *said["more"], *said["others"].values()]
    assert dict(zip(written, truth.well_formed(written), strict=True)) == dict.fromkeys(written, 1)
    strong, longer = truth.gold_reward([" ".join(said["strong"]), " ".join(said["strong"] + said["more"])])
    assert strong > longer + 10  # as many sentences as a review may have are no fault, more are
    assert {*said["turned"], *said["turned"].values()} <= {*said["constructions"]}
