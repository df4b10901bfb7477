"""The judge that is gold where no truth is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from alignkit.faults import UserFault
from alignkit.pocket import generate_reviews
from alignkit.training.evaluate import evaluation_prompts
from alignkit.training.judge import FILE, JudgeSettings, evaluate_by_judge, judge_pool, log_odds, train_judge
from alignkit.world.models import train_tokenizer
from alignkit.world.reviews import Reviews

SETTINGS = JudgeSettings(reviews=600, words=12)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Reviews:
    """Reviews in a file, of which nobody says what is true."""
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    parts = [generate_reviews(n, seed).assign(split=split) for split, n, seed in (("train", 40, 1), ("test", 1000, 2))]
    pd.concat(parts).to_csv(file, index=False)
    return Reviews(str(file))


@pytest.fixture(scope="module")
def judge(data, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("judge")
    return out, train_judge(out, SETTINGS, data=data)


def test_it_is_right_more_often_on_whole_reviews_than_on_beginnings(judge) -> None:
    _, metrics = judge
    assert metrics["accuracy"] > metrics["accuracy_of_beginnings"] > 0.6


def test_its_log_odds_are_a_sum_of_weights(judge) -> None:
    weights = pd.read_parquet(judge[0] / FILE)
    by_term = weights.set_index("term").weight
    terms = ["the", "plot", "the plot"]
    expected = by_term[""] + sum(by_term.get(term, 0.0) for term in terms)
    np.testing.assert_allclose(log_odds(weights, ["The plot the plot"]), by_term.get("plot the", 0.0) + expected
                               + by_term.get("the plot the", 0.0) + by_term.get("plot the plot", 0.0))  # fmt: skip


def test_its_log_odds_are_calibrated_on_beginnings_that_it_never_saw(tmp_path) -> None:
    parts = [generate_reviews(n, seed).assign(split=split) for split, n, seed in (("train", 40, 1), ("test", 8000, 2))]
    pd.concat(parts).to_csv(tmp_path / "reviews.csv", index=False)
    many = JudgeSettings(reviews=4000, words=12)
    metrics = train_judge(tmp_path, many, data=Reviews(str(tmp_path / "reviews.csv")))
    fresh = generate_reviews(6000, 3)
    read = log_odds(pd.read_parquet(tmp_path / FILE), fresh.text.str.split().str[:12].str.join(" "))
    slope = LogisticRegression(C=np.inf).fit(read[:, None], fresh.label).coef_.item()
    assert slope == pytest.approx(1, abs=0.1)
    assert slope * metrics["slope"] != pytest.approx(1, abs=0.1)  # as it would be without the temperature


def test_its_reviews_give_no_prompts(judge, data) -> None:
    tokenizer = train_tokenizer("word", data.load(0)["train"]["text"], 300)
    test = data.load(0)["test"].to_pandas()
    rest = test.iloc[: -SETTINGS.reviews].text
    asked = evaluation_prompts(data, tokenizer, 100)
    assert all(any(text.startswith(prompt) for text in rest) for prompt in asked)


def test_the_same_reviews_give_the_same_judge(judge, data, tmp_path) -> None:
    train_judge(tmp_path, SETTINGS, data=data)
    assert (tmp_path / FILE).read_bytes() == (judge[0] / FILE).read_bytes()


def test_a_judge_learns_from_few_of_one_label(tmp_path) -> None:
    reviews = generate_reviews(400, 2).sort_values("text", ignore_index=True)
    rare = reviews[:300].index[reviews.label[:300] == 0][5:]
    reviews = reviews.drop(rare)  # the first ones are all of one label, but for five in a row
    parts = [generate_reviews(40, 1).assign(split="train"), reviews.assign(split="test")]
    pd.concat(parts).to_csv(tmp_path / "few.csv", index=False)
    told = train_judge(tmp_path, JudgeSettings(int(0.8 * len(reviews)), 12), data=Reviews(str(tmp_path / "few.csv")))
    assert told["slope"] > 0


def test_a_judge_leaves_reviews_for_prompts(data, tmp_path) -> None:
    with pytest.raises(UserFault, match="judge_reviews: 900 asked for; allowed: 800 at most"):
        train_judge(tmp_path, JudgeSettings(900, 12), data=data)


def test_an_evaluation_gains_gold_and_loses_nothing(judge, tmp_path) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    texts = ["the plot was great .", "the plot was dull .", "the cast was fine .", "it was not good ."]
    given = pd.DataFrame(
        {"prompt": ["a", "a", "b", "b"], "completion": texts, "text": texts, "reward": [1.0, -1, 0, 2]}
    )
    given.to_parquet(drawn / "completions.parquet")
    told = evaluate_by_judge(tmp_path, evaluation=drawn, judge=judge[0], metrics={"status": "ok", "kl": 0.5})
    kept = pd.read_parquet(tmp_path / "completions.parquet")
    pd.testing.assert_frame_equal(kept.drop(columns="gold"), given)
    expected = log_odds(pd.read_parquet(judge[0] / FILE), texts)
    np.testing.assert_allclose(kept.gold, expected)
    assert told == {"status": "ok", "kl": 0.5, "gold": pytest.approx(expected.mean())}


def test_a_diverged_policy_stays_diverged(judge, tmp_path) -> None:
    assert evaluate_by_judge(tmp_path, evaluation=tmp_path, judge=judge[0], metrics={"status": "diverged"}) == {
        "status": "diverged"
    }


@pytest.mark.parametrize("completions", [["was great .", "is dull ."], [" was great .", "s were great ."]])
def test_a_pool_is_judged_by_its_whole_texts(completions: list[str], judge, tmp_path) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    pool = pd.DataFrame({"prompt": "the plot", "completion": completions, "tokens": 3})
    pool.to_parquet(drawn / "pool.parquet")
    judge_pool(tmp_path, pool=drawn, judge=judge[0])
    texts = [f"the plot{'' if completions[0].startswith(' ') else ' '}{completion}" for completion in completions]
    expected = log_odds(pd.read_parquet(judge[0] / FILE), texts)
    np.testing.assert_allclose(pd.read_parquet(tmp_path / "pool.parquet").gold, expected)
