"""Numbers that describe a model or a set of texts, and the intervals around them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats


def pairwise_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of all (positive, negative) pairs in which the positive scores higher, ties one half: the AUC."""
    scores, positive = np.asarray(scores), np.asarray(labels) == 1
    above = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    return float(above / (positive.sum() * (~positive).sum()))


def sign_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of texts whose score is above zero if, and only if, the label is 1; labels are 0 and 1."""
    return float(((scores > 0) == labels).mean())


def reliability(probability: np.ndarray, outcome: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Reliability diagram: equal-width bins of predicted probability; empty ones are left out.

    Columns predicted (mean), observed (share of outcome 1), low and high (95 % Wilson interval of observed), count.
    """
    which = np.minimum((np.asarray(probability) * bins).astype(int), bins - 1)
    rows = []
    for b in np.unique(which):
        here = which == b
        ci = stats.binomtest(int(outcome[here].sum()), int(here.sum())).proportion_ci(method="wilson")
        rows.append((probability[here].mean(), outcome[here].mean(), ci.low, ci.high, here.sum()))
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "count"])


def expected_calibration_error(probability: np.ndarray, outcome: np.ndarray, bins: int = 15) -> float:
    """Mean |observed - predicted| over the bins of `reliability`, weighted by count (Naeini et al. 2015)."""
    table = reliability(probability, outcome, bins)
    return float(np.average((table.observed - table.predicted).abs(), weights=table["count"]))


def unigram_entropy(texts: Sequence[str]) -> float:
    """Entropy in nats of the words of all texts together (Shannon 1948); NaN where no text holds a word."""
    counts = Counter(word for text in texts for word in text.split())
    # Sorted, so that the order of texts moves no last digit.
    return float(stats.entropy(sorted(counts.values()))) if counts else float("nan")


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams over all n-grams of all texts together, in [0, 1] (Li et al. 2016); 0 where no text has n words.

    It falls as texts are added, so compare equal numbers of texts of equal length.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_rate(texts: Sequence[str], n: int = 4) -> np.ndarray:
    """For each text, the share of its n-grams that occurred earlier in it: shape (texts,), in [0, 1).

    This is 1 - distinct / all (seq-rep-n of Welleck et al. 2020); 0 for a text shorter than n words.
    """
    grams = [list(_ngrams(text, n)) for text in texts]
    return np.array([1 - len(set(g)) / len(g) if g else 0.0 for g in grams])


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def self_bleu(groups: Sequence[Sequence[str]], order: int = 4) -> float:
    """Mean BLEU of each text against the others of its group, in [0, 1]; high means alike (Zhu et al. 2018, Texygen).

    A group holds the completions of one prompt, two at least.  Smoothed as in Texygen: an n-gram order without a match
    counts 0.1 matches (method 1 of Chen and Cherry 2014).  A text shorter than `order` words is compared on the orders
    that it has; a text without words scores 0.
    """
    if not groups or min(len(group) for group in groups) < 2:
        raise ValueError("self_bleu: each group needs two texts at least, and there must be a group")
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # here, as it takes a second to import

    smooth = SmoothingFunction(epsilon=0.1).method1
    scores = []
    for group in groups:
        words = [text.split() for text in group]
        for i, text in enumerate(words):
            # Else two equal texts of two words would score 0.3: their absent 3-grams would count as missed.
            orders = max(1, min(order, len(text)))
            scores.append(sentence_bleu(words[:i] + words[i + 1 :], text, [1 / orders] * orders, smooth))
    return float(np.mean(scores))


def seed_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, low and high of a t interval over seed means; low and high are NaN for a single seed.

    A bootstrap over three seeds would be [min, max], which covers 75 % at most.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def paired_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of a one-sample t test that the differences, shape (seeds,), have mean zero.

    NaN for a single seed.  If all are equal it is 1 if they are zero, else 0: seeds then had no effect on the runs, and
    the 0 shows nothing.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return float("nan")
    # A spread in the last digits is rounding, no variance; scipy would warn and answer all the same.
    if np.ptp(values) <= 1e-13 * np.abs(values).max():
        return float(not values.any())
    return float(stats.ttest_1samp(values, 0).pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values adjusted so that the chance of any false claim among them stays below the level (Holm 1979).

    (tests,) in the order given.  NaN stays NaN and counts as no test, as in R's p.adjust.  Written out since scipy
    adjusts for false discovery rate only.
    """
    p = np.asarray(p_values, dtype=float)
    rank = np.argsort(p)  # NaN last
    tests = np.count_nonzero(~np.isnan(p))
    adjusted = np.empty_like(p)
    adjusted[rank] = np.minimum(np.maximum.accumulate((tests - np.arange(len(p))) * p[rank]), 1)
    return adjusted
