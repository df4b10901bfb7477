"""Metrics against their definitions, written out by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alignkit.metrics import (
    distinct_n,
    expected_calibration_error,
    holm,
    paired_p_value,
    pairwise_accuracy,
    reliability,
    repetition_rate,
    seed_interval,
    self_bleu,
    sign_accuracy,
    unigram_entropy,
)

TEXT = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)
TEXTS = st.lists(TEXT, min_size=1, max_size=6)
GROUP = st.lists(TEXT, min_size=2, max_size=5)
COARSE_SCORES = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=2, max_size=30)


@settings(max_examples=50, deadline=None)
@given(COARSE_SCORES.filter(lambda rows: len({label for _, label in rows}) == 2))
def test_pairwise_accuracy_counts_the_pairs_in_order_and_half_of_the_ties(rows: list[tuple[int, int]]) -> None:
    scores, labels = np.array(rows).T
    won = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert pairwise_accuracy(scores, labels) == pytest.approx(np.mean(won), abs=1e-12)


def test_a_sign_is_right_where_the_score_is_positive_just_as_the_label() -> None:
    scores, labels = np.array([2.0, -1.0, 0.0, 0.0, -3.0]), np.array([1, 1, 1, 1, 0])
    assert sign_accuracy(scores, labels) == pytest.approx(2 / 5)


def test_reliability_by_hand() -> None:
    probability = np.array([0.1, 0.2, 0.7, 0.9, 1.0])
    outcome = np.array([0, 1, 1, 1, 0])
    table = reliability(probability, outcome, bins=4)
    assert table["count"].tolist() == [2, 1, 2]  # [0, 0.25), none in [0.25, 0.5), [0.5, 0.75), [0.75, 1]
    assert table.predicted.tolist() == pytest.approx([0.15, 0.7, 0.95])
    assert table.observed.tolist() == [0.5, 1, 0.5]
    # Wilson, with z = 1.96: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    z2 = stats.norm.ppf(0.975) ** 2
    half = math.sqrt(z2 * (0.25 / 2 + z2 / 16)) / (1 + z2 / 2)
    assert (table.low[0], table.high[0]) == pytest.approx((0.5 - half, 0.5 + half))
    assert (table.low[1], table.high[1]) == pytest.approx((1 / (1 + z2), 1))


def test_calibration_error_by_hand() -> None:
    probability, outcome = np.array([0.1, 0.2, 0.7, 0.9, 1.0]), np.array([0, 1, 1, 1, 0])
    expected = (2 * abs(0.5 - 0.15) + abs(1 - 0.7) + 2 * abs(0.5 - 0.95)) / 5
    assert expected_calibration_error(probability, outcome, bins=4) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_zero_where_every_bin_is_right(bins: int) -> None:
    probability = np.repeat([0.25, 0.5, 0.75], 4)
    outcome = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0])
    assert expected_calibration_error(probability, outcome, bins) == pytest.approx(0, abs=1e-12)


# Diversity of texts


@pytest.mark.parametrize(
    ("texts", "nats"),
    [
        (["a"], 0),
        (["a a a", "a"], 0),
        (["a b", "c d"], math.log(4)),
        (["a a b", "", " a "], 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
    ],
)
def test_unigram_entropy_in_closed_form(texts: list[str], nats: float) -> None:
    assert unigram_entropy(texts) == pytest.approx(nats, abs=1e-15)


@pytest.mark.parametrize("texts", [[], [""], [" ", ""]])
def test_texts_without_a_word_have_no_entropy(texts: list[str]) -> None:
    assert math.isnan(unigram_entropy(texts))


@settings(max_examples=50, deadline=None)
@given(TEXTS.filter(lambda texts: "".join(texts)), st.randoms())
def test_unigram_entropy_is_bounded_and_blind_to_order_and_to_doubling(texts: list[str], random) -> None:
    words = " ".join(texts).split()
    entropy = unigram_entropy(texts)
    assert 0 <= entropy <= math.log(len(set(words))) + 1e-12
    assert unigram_entropy(random.sample(texts, len(texts))) == entropy
    assert unigram_entropy([" ".join(random.sample(words, len(words)))]) == entropy
    assert unigram_entropy(texts * 2) == pytest.approx(entropy, abs=1e-12)


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["a b a b"], 2, 2 / 3),  # ab, ba, ab
        (["a b a b"], 1, 2 / 4),
        (["a b", "b a"], 2, 1),  # no "b b" across the two
        (["a b", "a b", "a b"], 2, 1 / 3),
        (["a", "b", ""], 2, 0),
        ([], 1, 0),
    ],
)
def test_distinct_n_by_hand(texts: list[str], n: int, share: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(share)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(1, 4), st.randoms())
def test_distinct_n_is_a_share_blind_to_order_and_halved_by_doubling(texts: list[str], n: int, random) -> None:
    share = distinct_n(texts, n)
    assert 0 <= share <= 1
    assert distinct_n(random.sample(texts, len(texts)), n) == share
    assert distinct_n(texts * 2, n) == pytest.approx(share / 2)


def test_repetition_rate_by_hand() -> None:
    texts = ["a b c d a b c d", "a a a a a a", "a b c d e", "a b c", ""]
    # abcd bcda cdab dabc abcd; three times aaaa; abcd bcde; too short; empty
    np.testing.assert_allclose(repetition_rate(texts), [1 / 5, 2 / 3, 0, 0, 0], atol=1e-15)
    assert repetition_rate(["a b a b"], n=2) == pytest.approx([1 / 3])
    assert repetition_rate([]).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(1, 4))
def test_repetition_rate_counts_the_n_grams_seen_earlier_in_the_same_text(texts: list[str], n: int) -> None:
    rates = repetition_rate(texts, n)
    assert rates.shape == (len(texts),)
    for rate, text in zip(rates, texts, strict=True):
        words = text.split()
        grams = [words[i : i + n] for i in range(len(words) - n + 1)]
        assert rate == pytest.approx(sum(g in grams[:i] for i, g in enumerate(grams)) / max(1, len(grams)), abs=1e-12)


@pytest.mark.parametrize("text", ["a", "a b", "a b c", "a b c d", "a a a a a a a"])
def test_self_bleu_of_equal_texts_is_one_however_short(text: str) -> None:
    assert self_bleu([[text] * 3, [text] * 2]) == 1


@pytest.mark.parametrize("group", [["a b c d", "e f g h"], ["a", "b"], ["", ""], ["", "a"]])
def test_self_bleu_of_texts_that_share_no_word_is_zero(group: list[str]) -> None:
    assert self_bleu([group]) == 0


def test_self_bleu_by_hand() -> None:
    # Both ways 4 of 5 words, 3 of 4, 2 of 3 and 1 of 2 longer n-grams match; equal lengths, no brevity penalty.
    assert self_bleu([["a b c d e", "a b c d f"]]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # "a b c" finds all three orders that it has, at a penalty for 3 words against 4; "a b c d" misses its 4-gram.
    short, long = math.exp(1 - 4 / 3), (3 / 4 * 2 / 3 * 1 / 2 * 0.1 / 1) ** 0.25
    assert self_bleu([["a b c", "a b c d"]]) == pytest.approx((short + long) / 2)
    assert self_bleu([["a b c d e", "a b c d f"]], order=1) == pytest.approx(4 / 5)


@settings(max_examples=40, deadline=None)
@given(st.lists(GROUP, min_size=1, max_size=3), st.randoms())
def test_self_bleu_is_bounded_and_blind_to_the_order_of_texts_and_groups(groups: list[list[str]], random) -> None:
    score = self_bleu(groups)
    assert 0 <= score <= 1
    shuffled = [random.sample(group, len(group)) for group in random.sample(groups, len(groups))]
    assert self_bleu(shuffled) == pytest.approx(score, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(GROUP)
def test_duplicates_raise_self_bleu_to_one(group: list[str]) -> None:
    with_words = [text for text in group if text]
    assert self_bleu([group * 2]) == pytest.approx(len(with_words) / len(group))
    assert self_bleu([group * 2]) >= self_bleu([group])


@pytest.mark.parametrize("groups", [[], [[]], [["a b"]], [["a", "b"], ["a"]]])
def test_self_bleu_refuses_a_group_with_fewer_than_two_texts(groups: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="two texts at least"):
        self_bleu(groups)


# Intervals and p-values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.5, 1), min_size=2, max_size=6), st.sampled_from([0.8, 0.95]))
def test_seed_interval_is_the_t_interval(values: list[float], confidence: float) -> None:
    mean, low, high = seed_interval(np.array(values), confidence)
    assert mean == pytest.approx(sum(values) / len(values))
    if len(set(values)) > 1:
        expected = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
        assert (low, high) == pytest.approx(expected)
    else:
        assert (low, high) == pytest.approx((mean, mean))


def test_one_seed_gives_a_mean_and_no_interval() -> None:
    mean, low, high = seed_interval(np.array([0.9]))
    assert mean == 0.9
    assert math.isnan(low)
    assert math.isnan(high)


def test_paired_p_value_of_two_and_of_three_seeds_in_closed_form() -> None:
    # One degree of freedom is the Cauchy distribution; here t = 2 / 1.
    assert paired_p_value(np.array([1.0, 3.0])) == pytest.approx(1 - 2 / math.pi * math.atan(2))
    # Two degrees: p = 1 - t / sqrt(2 + t^2), with t = 2 sqrt(3).
    assert paired_p_value(np.array([1.0, 2.0, 3.0])) == pytest.approx(1 - math.sqrt(12 / 14))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-1000, 1000).map(lambda k: k / 1000), min_size=2, max_size=6).filter(lambda v: len(set(v)) > 1)
)
def test_p_is_below_5_percent_just_when_the_interval_excludes_zero(values: list[float]) -> None:
    p = paired_p_value(np.array(values))
    assert 0 <= p <= 1
    assert paired_p_value(-np.array(values)) == pytest.approx(p)
    assert paired_p_value(np.array(sorted(values))) == pytest.approx(p)
    _, low, high = seed_interval(np.array(values), confidence=0.95)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (low > 0 or high < 0)


def test_one_seed_has_no_p_value() -> None:
    assert math.isnan(paired_p_value(np.array([0.3])))


@pytest.mark.parametrize(
    ("values", "p"), [([0, 0, 0], 1), ([0.3, 0.3], 0), ([-0.3, -0.3, -0.3], 0), ([0.3, 0.1 + 0.2], 0), ([-1.0, 1.0], 1)]
)
@pytest.mark.filterwarnings("error")
def test_differences_without_variance_have_a_p_value_and_no_warning(values: list[float], p: float) -> None:
    assert paired_p_value(np.array(values)) == p


def test_holm_by_hand() -> None:
    # Sorted 0.01 0.02 0.03 0.4, times 4 3 2 1: 0.04 0.06 0.06 0.4.
    np.testing.assert_allclose(holm(np.array([0.4, 0.01, 0.03, 0.02])), [0.4, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.04, 0.03])), [0.06, 0.06])  # a smaller p-value is never adjusted higher
    np.testing.assert_allclose(holm(np.array([0.5, 0.9, 0.7])), 1)
    assert holm(np.array([0.03])).tolist() == [0.03]
    assert holm(np.array([])).shape == (0,)


def test_holm_keeps_nan_and_does_not_count_it_as_a_test() -> None:
    np.testing.assert_allclose(holm(np.array([math.nan, 0.03, math.nan, 0.01])), [math.nan, 0.03, math.nan, 0.02])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects_in_any_order(values: list[float], random, level) -> None:
    p = np.array(values)
    adjusted = holm(p)
    assert np.all((p <= adjusted) & (adjusted <= np.minimum(1, len(p) * p)))
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)
    turn = np.array(random.sample(range(len(p)), len(p)))
    assert holm(p[turn]).tolist() == adjusted[turn].tolist()
    # Holm's own words: from the smallest on, reject while p <= level / (number left), then stop.
    rejected = 0
    for left, value in zip(range(len(p), 0, -1), np.sort(p), strict=True):
        if left * value > level:
            break
        rejected += 1
    assert (adjusted <= level).sum() == rejected
