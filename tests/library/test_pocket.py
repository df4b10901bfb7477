"""The pocket world against an enumeration of all reviews that shares no code with it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import bisect
from scipy.special import expit, logsumexp
from scipy.stats import chisquare
from sklearn.metrics import roc_auc_score

from alignkit import pocket
from alignkit.pocket import (
    AGREEMENT,
    FAMILIES,
    FAULT_COST,
    GENRE_SLIP,
    GENRES,
    LENGTHS,
    Derivation,
    build_grammar,
    generate_reviews,
    gold_reward,
    log_probability,
    pocket_grammar,
    well_formed,
)


class World(NamedTuple):
    """The arguments of build_grammar."""

    derivations: Sequence[Derivation]
    families: Mapping[str, float]
    genres: Sequence[str]
    lengths: Mapping[int, float]


SMALL = World(
    [
        Derivation("opinion", "it was good .", +1, 2),
        # "good" must not be read as the beginning of this one
        Derivation("opinion", "it was good-looking .", +1, 1),
        Derivation("opinion", "it was bad .", -1, 3),
        Derivation("opinion", "it was scary .", {"horror": +1, "comedy": -1}, 2),
        Derivation("remark", "it was good .", {"horror": 0, "comedy": -1}, 1),
        Derivation("remark", "we saw it .", 0),
        Derivation("genre", "it is a horror film .", genre="horror"),
        Derivation("genre", "it is a comedy film .", genre="comedy"),
    ],
    {"opinion": 0.5, "remark": 0.3, "genre": 0.2},
    ("horror", "comedy"),
    {1: 0.5, 2: 0.3, 3: 0.2},
)
# Lengths with a gap, the longest of which uses every sentence up; same words twice in one family.
GAPPED = World(
    [
        Derivation("opinion", "a fine film .", +1, 3),
        Derivation("opinion", "a fine film .", -1, 1),
        Derivation("opinion", "a sad film .", {"drama": +1, "comedy": -1}, 3),
        Derivation("opinion", "a sad drama .", +1, 2, genre="drama"),
        Derivation("other", "a drama .", 0, genre="drama"),
        Derivation("other", "so dull .", -1, 2),
    ],
    {"opinion": 0.7, "other": 0.3},
    ("comedy", "drama"),
    {2: 0.6, 5: 0.4},
)


def sentence_probabilities(world: World, label: int, genre: str) -> dict[str, float]:
    weights, totals = [], defaultdict(float)
    for d in world.derivations:
        valence = d.valence if isinstance(d.valence, int) else d.valence[genre]
        agreement = AGREEMENT[d.strength]
        weight = {0: 1.0, label: agreement, -label: 1 - agreement}[valence]
        weight *= GENRE_SLIP if d.genre not in (None, genre) else 1.0
        weights.append(weight)
        totals[d.family] += weight
    out = defaultdict(float)
    for d, weight in zip(world.derivations, weights, strict=True):
        out[d.sentence] += world.families[d.family] * weight / totals[d.family]
    return dict(out)


def enumerate_reviews(world: World) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """P(review, label) of every review, and P(a review begins with the tokens, label) of every beginning."""
    reviews, beginnings = defaultdict(lambda: np.zeros(2)), defaultdict(lambda: np.zeros(2))
    for positive in (0, 1):
        for genre in world.genres:
            p = sentence_probabilities(world, 2 * positive - 1, genre)
            for length, share in world.lengths.items():
                for sentences in permutations(p, length):
                    probability, left = share / (2 * len(world.genres)), 1.0
                    for sentence in sentences:
                        probability *= p[sentence] / left
                        left -= p[sentence]
                    reviews[" ".join(sentences)][positive] += probability
    for text, probability in reviews.items():
        tokens = text.split()
        for n in range(len(tokens) + 1):
            beginnings[" ".join(tokens[:n])] += probability
    return dict(reviews), dict(beginnings)


def log_odds(joint: Mapping[str, np.ndarray]) -> list[float]:
    return [float(np.log(positive / negative)) for negative, positive in joint.values()]


def log_totals(joint: Mapping[str, np.ndarray], texts: Sequence[str]) -> list[float]:
    return [float(np.log(joint[text].sum())) if text in joint else -np.inf for text in texts]


def score(text: str) -> float:
    return float(gold_reward([text])[0])


@pytest.fixture(scope="module")
def reviews() -> pd.DataFrame:
    frame = generate_reviews(20_000, seed=7)
    return frame.assign(gold=gold_reward(frame["text"]))


small_worlds = pytest.mark.parametrize("world", [SMALL, GAPPED], ids=["small", "gapped"])


# --- The reward is exact ---


@small_worlds
def test_gold_reward_of_every_finished_review_is_its_posterior_log_odds(world: World) -> None:
    joint, _ = enumerate_reviews(world)
    np.testing.assert_allclose(gold_reward(joint, build_grammar(*world)), log_odds(joint), rtol=0, atol=1e-9)


@small_worlds
def test_gold_of_a_beginning_is_the_log_odds_over_its_continuations(world: World) -> None:
    _, joint = enumerate_reviews(world)
    np.testing.assert_allclose(gold_reward(joint, build_grammar(*world)), log_odds(joint), rtol=0, atol=1e-9)


@small_worlds
def test_a_finished_review_has_the_same_odds_read_as_a_beginning(world: World) -> None:
    joint, beginnings = enumerate_reviews(world)
    np.testing.assert_allclose(log_odds(joint), log_odds({t: beginnings[t] for t in joint}), rtol=0, atol=1e-9)


@small_worlds
def test_log_probability_equals_the_enumeration(world: World) -> None:
    joint, beginnings = enumerate_reviews(world)
    texts, grammar = list(beginnings), build_grammar(*world)
    whole = log_probability(texts, grammar=grammar)
    np.testing.assert_allclose(whole, log_totals(joint, texts), rtol=0, atol=1e-9)
    begun = log_probability(texts, prefix=True, grammar=grammar)
    np.testing.assert_allclose(begun, log_totals(beginnings, texts), rtol=0, atol=1e-9)


@small_worlds
def test_the_probabilities_of_all_reviews_sum_to_one(world: World) -> None:
    joint, _ = enumerate_reviews(world)
    assert np.exp(log_probability(joint, grammar=build_grammar(*world))).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("text", ["it was odd .", "we saw it . we saw it .", "we", "it was good . we saw it ", "was"])
@pytest.mark.parametrize("prefix", [False, True])
def test_only_what_the_grammar_cannot_write_has_probability_zero(text: str, prefix: bool) -> None:
    joint, beginnings = enumerate_reviews(SMALL)
    found = log_probability([text], prefix=prefix, grammar=build_grammar(*SMALL))
    assert np.isneginf(found[0]) == (text.strip() not in (beginnings if prefix else joint))


def test_the_reward_of_a_lone_opinion_is_the_log_odds_of_its_agreement() -> None:
    grammar = build_grammar(
        [Derivation("opinion", "good .", +1, 2), Derivation("opinion", "bad .", -1, 2)],
        {"opinion": 1},
        ["drama"],
        {1: 1},
    )
    odds = np.log(AGREEMENT[2] / (1 - AGREEMENT[2]))
    np.testing.assert_allclose(gold_reward(["good .", "bad .", "good"], grammar), [odds, -odds, odds])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    genres = ("comedy", "drama")
    valences = st.sampled_from([-1, 0, 1])
    parts = draw(st.lists(st.integers(1, 9), min_size=2, max_size=3))
    # the sentences share words, so that beginnings are ambiguous
    words = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda w: " ".join([*w, "."]))
    sentences = draw(st.lists(words, min_size=3, max_size=5, unique=True))
    sentences += draw(st.lists(st.sampled_from(sentences), max_size=2))  # second derivations of the same words
    derivations = [
        Derivation(
            str(i % len(parts)),  # no family is empty
            sentence,
            draw(valences | st.fixed_dictionaries(dict.fromkeys(genres, valences))),
            draw(st.sampled_from(sorted(AGREEMENT))),
            draw(st.sampled_from([None, *genres])),
        )
        for i, sentence in enumerate(sentences)
    ]
    families = {str(i): part / sum(parts) for i, part in enumerate(parts)}
    return World(
        derivations, families, genres, draw(st.sampled_from([{1: 0.5, 2: 0.3, 3: 0.2}, {2: 1.0}, {1: 0.4, 3: 0.6}]))
    )


@settings(max_examples=40, deadline=None, database=None)
@given(worlds(), st.integers(0, 2**32 - 1))
def test_reward_and_probability_are_exact_on_reviews_of_any_small_grammar(world: World, seed: int) -> None:
    joint, beginnings = enumerate_reviews(world)
    grammar = build_grammar(*world)
    texts = generate_reviews(20, seed, grammar)["text"].tolist()
    begun = {text: p for text, p in beginnings.items() if any(t.startswith(text) for t in texts)}
    np.testing.assert_allclose(gold_reward(begun, grammar), log_odds(begun), rtol=0, atol=1e-9)
    np.testing.assert_allclose(log_probability(texts, grammar=grammar), log_totals(joint, texts), rtol=0, atol=1e-9)


# --- Generation ---


@small_worlds
def test_generated_reviews_follow_the_enumerated_distribution(world: World) -> None:
    n = 40_000
    joint, _ = enumerate_reviews(world)
    counts = generate_reviews(n, seed=3, grammar=build_grammar(*world)).value_counts(["text", "label"])
    cells = [(text, label) for text in joint for label in (0, 1)]
    observed = counts.reindex(cells, fill_value=0).to_numpy()
    expected = n * np.array([joint[text][label] for text, label in cells])
    assert observed.sum() == n  # nothing drawn that the enumeration lacks
    pooled = np.where(expected < 5, -1, np.arange(len(cells)))
    _, group = np.unique(pooled, return_inverse=True)
    # ddof: exactly half of the labels are positive
    assert chisquare(np.bincount(group, observed), np.bincount(group, expected), ddof=1).pvalue > 1e-3


def test_the_same_seed_gives_the_same_reviews_and_another_seed_others() -> None:
    frame = generate_reviews(50, seed=1)
    pd.testing.assert_frame_equal(frame, generate_reviews(50, seed=1))
    assert not frame["text"].equals(generate_reviews(50, seed=2)["text"])


def test_half_of_the_generated_reviews_are_positive(reviews: pd.DataFrame) -> None:
    assert list(reviews.columns[:2]) == ["text", "label"]
    assert (reviews["label"] == 1).sum() == (reviews["label"] == 0).sum() == 10_000


# --- The reward predicts the labels of the pocket world ---


def test_accuracy_of_the_reward_is_the_bayes_rate_that_it_predicts(reviews: pd.DataFrame) -> None:
    correct = (reviews["gold"] > 0) == (reviews["label"] == 1)
    gap = correct - expit(reviews["gold"].abs())
    assert abs(gap.mean()) < 1.96 * gap.std() / np.sqrt(len(gap))


def test_the_reward_is_calibrated(reviews: pd.DataFrame) -> None:
    p = expit(reviews["gold"])
    gap = (reviews["label"] - p).groupby(np.minimum(p * 15, 14).astype(int)).sum()
    assert gap.abs().sum() / len(reviews) < 0.01


def test_gold_ranks_96_to_99_percent_of_the_pairs_rightly(reviews: pd.DataFrame) -> None:
    assert 0.96 < roc_auc_score(reviews["label"], reviews["gold"]) < 0.99


def test_the_optimal_reward_still_rises_from_kl_2_to_kl_4() -> None:
    reward = gold_reward(generate_reviews(60_000, seed=11)["text"])

    def tilt(beta: float) -> tuple[float, float]:
        """The KL divergence of the policy proportional to exp(reward / beta), and its reward."""
        log_weight = reward / beta - logsumexp(reward / beta)
        mean = float(np.exp(log_weight) @ reward)
        return mean / beta - float(logsumexp(reward / beta) - np.log(len(reward))), mean

    at = {kl: tilt(bisect(lambda beta, kl=kl: tilt(beta)[0] - kl, 0.05, 50))[1] for kl in (2, 4)}
    assert at[4] > 1.1 * at[2] > 0


# --- The shape of the pocket world ---


def test_reviews_have_3_to_6_sentences_and_15_to_45_tokens(reviews: pd.DataFrame) -> None:
    assert set(reviews["text"].str.count(r" \.")) == {3, 4, 5, 6}
    assert reviews["text"].str.split().str.len().between(15, 45).all()
    tokens = [len(sentence.split()) for sentence in pocket_grammar().sentences]
    assert min(LENGTHS) * min(tokens) >= 15  # not only in those drawn
    assert max(LENGTHS) * max(tokens) <= 45


def test_no_review_repeats_a_sentence(reviews: pd.DataFrame) -> None:
    sentences = reviews["text"].str.removesuffix(" .").str.split(" . ", regex=False)
    assert (sentences.map(len) == sentences.map(lambda s: len(set(s)))).all()


def test_the_vocabulary_has_200_to_400_words() -> None:
    words = {word for sentence in pocket_grammar().sentences for word in sentence.split()}
    assert 200 <= len(words - {"."}) <= 400


def test_sentences_are_lower_case_words_that_end_with_one_full_stop() -> None:
    # gold_reward cuts texts at " .", so a sentence with another one inside could never be read
    assert all(
        s == " ".join(s.lower().split()) and s.split().index(".") == len(s.split()) - 1
        for s in pocket_grammar().sentences
    )


def test_a_sentences_probability_is_the_sum_over_its_derivations() -> None:
    grammar = pocket_grammar()
    world = World(list(pocket._pocket_derivations()), FAMILIES, GENRES, LENGTHS)
    for z, label in enumerate((-1, +1)):
        for g, genre in enumerate(GENRES):
            p = sentence_probabilities(world, label, genre)
            np.testing.assert_allclose(grammar.probability[:, z, g], [p[s] for s in grammar.sentences], rtol=1e-9)


def test_every_family_has_its_share_under_both_labels_and_every_genre() -> None:
    grammar = pocket_grammar()
    family = {d.sentence: d.family for d in pocket._pocket_derivations()}
    for name, share in FAMILIES.items():
        rows = [family[s] == name for s in grammar.sentences]
        np.testing.assert_allclose(grammar.probability[rows].sum(axis=0), share, rtol=1e-9)


def test_probabilities_of_sentences_and_of_lengths_sum_to_one() -> None:
    np.testing.assert_allclose(pocket_grammar().probability.sum(axis=0), np.ones((2, len(GENRES))), rtol=1e-12)
    assert sum(LENGTHS.values()) == pytest.approx(1)


def test_every_sentence_is_possible_under_both_labels_and_every_genre() -> None:
    assert (pocket_grammar().probability > 0).all()


def test_no_sentence_alone_earns_as_much_as_a_fault_costs() -> None:
    assert np.abs(gold_reward(pocket_grammar().sentences)).max() < FAULT_COST


def test_no_sentence_earns_as_much_as_a_fault_costs() -> None:
    p = pocket_grammar().probability
    # What stands before a sentence can make any genre certain under one label and another under the other,
    # and takes at most five sentences out of the normaliser.
    spread = np.abs(np.log(p[:, 1, :, None] / p[:, 0, None, :])).max()
    assert spread - np.log(1 - 5 * p.max()) < FAULT_COST


# --- More than a bag of words ---


def test_negation_turns_praise_into_complaint() -> None:
    assert score("the plot was not good .") < 0 < score("the plot was good .")


def test_negation_turns_complaint_into_praise() -> None:
    assert score("the plot was bad .") < 0 < score("the plot was not bad .")


def test_scary_is_praise_in_a_horror_film_and_complaint_in_a_comedy() -> None:
    assert score("it is a comedy film . the plot was scary .") < 0 < score("it is a horror film . the plot was scary .")


def test_naming_a_genre_is_no_evidence_by_itself() -> None:
    assert score("it is a horror film .") == pytest.approx(0, abs=1e-9)


def test_what_follows_but_decides() -> None:
    assert score("good plot but bad acting .") < 0 < score("bad acting but good plot .")


def test_praise_by_relatives_counts_against_and_by_critics_for_a_film() -> None:
    assert score("my sister called it good .") < 0 < score("the critics called it good .")


# --- Faults ---

SIX = [
    "the plot was good .",
    "it is a drama film .",
    "the ending was slow .",
    "it stayed with me .",
    "good plot but bad acting .",
    "i saw it on a monday .",
]


def assert_one_fault(text: str, without: str) -> None:
    assert score(text) == pytest.approx(score(without) - FAULT_COST, abs=1e-12)


@pytest.mark.parametrize("place", range(4))
def test_an_unknown_sentence_costs_one_fault_wherever_it_stands(place: int) -> None:
    sentences = SIX[:3]
    assert_one_fault(" ".join([*sentences[:place], "what a film .", *sentences[place:]]), " ".join(sentences))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_a_repeated_sentence_costs_one_fault_and_nothing_else(first: int, second: int) -> None:
    sentences = SIX[:3]
    assert_one_fault(" ".join([*sentences[:second], sentences[first], *sentences[second:]]), " ".join(sentences))


@pytest.mark.parametrize("seventh", ["the music was awful .", "the music was awful", "the"])
def test_a_seventh_sentence_finished_or_not_costs_one_fault(seventh: str) -> None:
    assert_one_fault(" ".join([*SIX, seventh]), " ".join(SIX))


def test_the_sixth_sentence_costs_nothing_even_after_a_fault() -> None:
    assert_one_fault(" ".join(["what a film .", *SIX]), " ".join(SIX))


def test_faults_add_up() -> None:
    assert score("the plot was good . . the plot was good . what") == pytest.approx(score(SIX[0]) - 3 * FAULT_COST)


@pytest.mark.parametrize("rest", ["what", "plot was", "the plo", "the plot was good ! .", "The plot"])
def test_words_that_begin_no_sentence_cost_one_fault(rest: str) -> None:
    assert_one_fault(f"it stayed with me . {rest}", "it stayed with me .")


def test_a_beginning_costs_one_fault_once_its_only_completion_is_used() -> None:
    assert_one_fault("it stayed with me . it stayed", "it stayed with me .")
    assert score("it stayed") == pytest.approx(score("it stayed with me ."))


def test_a_beginning_with_an_unused_completion_costs_nothing() -> None:
    assert abs(score("it stayed with me . it") - score("it stayed with me .")) < 1


def test_the_empty_text_has_reward_0_and_is_well_formed() -> None:
    assert score("") == 0
    assert well_formed([""])[0] == 1


def test_no_texts_have_no_rewards() -> None:
    assert gold_reward([]).shape == well_formed([]).shape == log_probability([]).shape == (0,)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("what a film .", 0),
        ("what", 0),
        ("it stayed", 1),
        ("it stayed with me . it stayed with me .", 1 / 2),
        ("the plot was good . what a film . it stayed with me . it stayed", 2 / 4),
        (" ".join([*SIX, "the music was awful ."]), 6 / 7),
    ],
)
def test_well_formed_is_the_share_of_sentences_without_fault(text: str, share: float) -> None:
    assert well_formed([text])[0] == pytest.approx(share)


def test_generated_reviews_are_well_formed(reviews: pd.DataFrame) -> None:
    assert (well_formed(reviews["text"][:5000]) == 1).all()


known_words = st.sampled_from(sorted({word for s in pocket_grammar().sentences for word in s.split()}))
pieces = st.text() | known_words | st.sampled_from(pocket_grammar().sentences)


@settings(deadline=None, database=None)
@given(st.lists(pieces, max_size=12).map(" ".join))
def test_any_text_has_a_finite_reward_and_a_share_between_0_and_1(text: str) -> None:
    assert np.isfinite(score(text))
    assert 0 <= well_formed([text])[0] <= 1
    assert log_probability([text], prefix=True)[0] <= 0
