"""Gold where the truth is not known: a judge that never saw the reward model's reviews reads what policies wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from alignkit.faults import UserFault
from alignkit.metrics import sign_accuracy
from alignkit.world.reviews import Reviews

COUNTED = {"ngram_range": (1, 3), "binary": True, "token_pattern": r"\w+|[!?]"}
LEAST_REVIEWS = 3
"""A run of words counts if so many of the judge's reviews have it."""
STRENGTH = 1.0
"""Inverse of the L2 penalty."""
FOLDS = 5
MOST = 0.8
"""Share of the test reviews that the judge may have."""
FILE = "judge.parquet"


@dataclass(frozen=True)
class JudgeSettings:
    """From which reviews a judge is made, and for which texts its scale is right."""

    reviews: int
    """The last so many test reviews; the first ones give the prompts of every evaluation."""
    words: int
    """Length of the beginnings of reviews on which its log-odds are calibrated: what policies write is as short."""


def train_judge(out: Path, settings: JudgeSettings, *, data: Reviews) -> dict[str, float]:
    """Learn the log-odds that a review is positive from its words, pairs and triples of words.

    Logistic regression on naive Bayes' log-ratios (Wang & Manning 2012, "Baselines and Bigrams", section 2.3), with one
    temperature fitted on beginnings of reviews that were left out in turn.  Writes judge.parquet (term, weight; the
    empty term has the intercept); returns its accuracy on whole reviews and on beginnings that it did not see.  Raises
    UserFault if that leaves too few test reviews for prompts.
    """
    s = settings
    test = data.load(0)["test"].to_pandas()
    if s.reviews > (most := int(MOST * len(test))):
        raise UserFault(f"judge_reviews: {s.reviews} asked for; allowed: {most} at most, as the rest gives the prompts")
    own, rest = test.iloc[-s.reviews :], test.iloc[: -s.reviews]
    left_out = np.zeros(len(own))
    for kept, apart in StratifiedKFold(FOLDS).split(own, own.label):
        fold = _weights(own.iloc[kept])
        left_out[apart] = log_odds(fold, _beginnings(own.iloc[apart].text, s.words))
    slope = LogisticRegression(C=np.inf).fit(left_out[:, None], own.label).coef_.item()
    weights = _weights(own)
    weights["weight"] *= slope
    weights.to_parquet(out / FILE, index=False)
    read = {"accuracy": rest.text, "accuracy_of_beginnings": _beginnings(rest.text, s.words)}
    right = {name: sign_accuracy(log_odds(weights, texts), rest.label.to_numpy()) for name, texts in read.items()}
    return {"reviews": len(own), "read": len(rest), "slope": slope, **right}


def _beginnings(texts: pd.Series, words: int) -> pd.Series:
    return texts.str.split().str[:words].str.join(" ")


def _weights(reviews: pd.DataFrame) -> pd.DataFrame:
    """Terms and their weights; the intercept is that of the empty term."""
    counter = CountVectorizer(**COUNTED, min_df=LEAST_REVIEWS)
    has = counter.fit_transform(reviews.text)
    positive = reviews.label.to_numpy() == 1
    shares = [1 + np.asarray(has[rows].sum(axis=0)).ravel() for rows in (positive, ~positive)]
    ratios = np.log(shares[0] / shares[0].sum()) - np.log(shares[1] / shares[1].sum())
    fitted = LogisticRegression(C=STRENGTH, max_iter=3000).fit(has.multiply(ratios).tocsr(), reviews.label)
    terms = [*counter.get_feature_names_out(), ""]
    return pd.DataFrame({"term": terms, "weight": [*fitted.coef_[0] * ratios, fitted.intercept_.item()]})


def log_odds(weights: pd.DataFrame, texts: Sequence[str]) -> np.ndarray:
    """The judge's log-odds in nats that each text is positive, (texts,); `weights` are those of judge.parquet."""
    counter = CountVectorizer(**COUNTED, vocabulary=weights.term[:-1].tolist())
    has: csr_matrix = counter.transform(texts)
    return has @ weights.weight[:-1].to_numpy() + weights.weight.iloc[-1]


def evaluate_by_judge(out: Path, *, evaluation: Path, judge: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation and its `metrics` once more, with the judge's log-odds of each text as gold."""
    if not (source := evaluation / "completions.parquet").is_file():
        return dict(metrics)  # a diverged policy wrote nothing
    samples = pd.read_parquet(source)
    samples["gold"] = log_odds(pd.read_parquet(judge / FILE), samples.text)
    samples.to_parquet(out / source.name, index=False)
    return {**metrics, "gold": float(samples.gold.mean())}


def judge_pool(out: Path, *, pool: Path, judge: Path) -> dict[str, Any]:
    """A pool of `draw_pool` once more, with the judge's log-odds of prompt and completion as gold."""
    table = pd.read_parquet(pool / "pool.parquet")
    # A byte-level tokenizer keeps the blank before a word, and may cut a prompt inside one.
    blank = "" if table.completion.str.startswith(" ").any() else " "
    table["gold"] = log_odds(pd.read_parquet(judge / FILE), (table.prompt + blank + table.completion).tolist())
    table.to_parquet(out / "pool.parquet", index=False)
    return {"status": "ok", "tokens_generated": int(table.tokens.sum())}
