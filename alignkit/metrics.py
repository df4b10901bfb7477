"""Numbers that describe a model or a set of texts, and the intervals around them."""

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import expit as sigmoid  # noqa: F401 - reward.py asks for it under this name
from sklearn.metrics import roc_auc_score


def pairwise_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of all (positive, negative) pairs in which the positive scores higher, ties one half: the AUC."""
    return float(roc_auc_score(labels, scores))


def sign_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of texts whose score is above zero just when the label is 1."""
    return float(((scores > 0) == labels).mean())


def reliability(probability: np.ndarray, outcome: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Reliability diagram: equal-width bins of predicted probability.

    Columns predicted (mean), observed (share of outcome 1), low and high (95 % Wilson interval of
    observed) and count; empty bins are left out.
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


def seed_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, low and high of a t interval over seed means; low and high are NaN for a single seed.

    A bootstrap over three seeds would be [min, max], which covers 76 % at most.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def bootstrap_interval(
    statistic, *columns: np.ndarray, draws: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of statistic(*columns) when whole rows (reviews, prompts) are drawn again."""
    result = stats.bootstrap(
        columns,
        lambda *c: statistic(*c),
        paired=True,
        vectorized=False,
        n_resamples=draws,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of a one-sample t test that the differences, shape (seeds,), have mean zero.

    NaN for a single seed. Where all differences are equal the t statistic is 0 / 0 or infinite: 1 if
    they are zero, 0 if not. The latter is a sign that the seeds moved nothing, more than evidence.
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

    Same shape (tests,) and order as given, each at least its p-value and at most 1. NaN stays NaN and
    counts as no test, as in R's p.adjust. Written out as scipy adjusts for false discovery rate only.
    """
    p = np.asarray(p_values, dtype=float)
    rank = np.argsort(p)  # NaN last
    tests = np.count_nonzero(~np.isnan(p))
    adjusted = np.empty_like(p)
    adjusted[rank] = np.minimum(np.maximum.accumulate((tests - np.arange(len(p))) * p[rank]), 1)
    return adjusted


def verdict(low: float, high: float) -> str:
    """What an interval of a difference allows to say."""
    if np.isnan(low):
        return "one seed, so no interval and no claim"
    return "the interval is clear of zero" if low > 0 or high < 0 else "the interval includes zero, so no claim"


def interval_text(mean: float, low: float, high: float, digits: int = 3) -> str:
    """ "0.974 [0.970, 0.978]", or the mean alone and "(1 seed)" where there is no interval."""
    if np.isnan(low):
        return f"{mean:.{digits}f} (1 seed)"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
