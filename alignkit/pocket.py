"""The pocket world: a grammar of short film reviews whose true reward is known exactly.

A review has a hidden label (positive or negative), a hidden genre and 3-6 different sentences.  Each sentence is of a
family (opinion, negation, contrast, ...) and carries a valence, which agrees with the label with a probability that
grows with the strength of the wording.  Families are equally likely under both labels, and every sentence is possible
under both, so no single sentence decides, and negation, contrast, hearsay and genre make sentiment more than a bag of
words.  All sentences can be listed, so every probability below is a finite sum, not an estimate.

Texts are lower-case words separated by blanks; every sentence ends with " .".  The words, and how likely each is, stand
in pocket.yaml.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

_WORLD = yaml.safe_load(Path(__file__).with_name("pocket.yaml").read_text(encoding="utf-8"))
AGREEMENT: dict[int, float] = _WORLD["agreement"]
GENRE_SLIP: float = _WORLD["genre_slip"]
LENGTHS: dict[int, float] = _WORLD["lengths"]
FAMILIES: dict[str, float] = _WORLD["families"]
GENRES = tuple(_WORLD["genres"])
ADJECTIVES = {word: (valence, strength) for valence, strength, words in _WORLD["adjectives"] for word in words}
VERDICTS: dict[str, tuple[int, int]] = _WORLD["verdicts"]
FAULT_COST = 5.0
"""Nats that a sentence costs when the grammar cannot derive it at its place; more than any sentence earns."""


class Derivation(NamedTuple):
    """One way to derive a sentence; two derivations may give the same words."""

    family: str
    sentence: str
    valence: Mapping[str, int] | int = 0
    """+1, -1 or 0, or a mapping genre -> valence."""
    strength: int = 1
    genre: str | None = None
    """The genre that the sentence names, if any."""


@dataclass(frozen=True, eq=False)
class Grammar:
    """All sentences and their probabilities; S sentences, 2 labels (negative, positive), G genres."""

    sentences: list[str]
    """Sorted, so that the sentences with a common beginning are neighbours."""
    probability: np.ndarray
    """P(sentence | label, genre), shape (S, 2, G); sums to 1 over sentences."""
    lengths: Mapping[int, float]
    index: dict[str, int] = field(repr=False)


def build_grammar(
    derivations: Iterable[Derivation],
    families: Mapping[str, float],
    genres: Sequence[str],
    lengths: Mapping[int, float],
) -> Grammar:
    """Turn derivations into sentence probabilities; derivations of the same words add up.

    Within a family, a derivation weighs AGREEMENT (or 1 - AGREEMENT, or 1 if its valence is 0) times GENRE_SLIP if it
    names another genre; weights are normalised within each (family, label, genre).
    """
    rows = list(derivations)
    weight = np.array([[[_weight(d, label, g) for g in genres] for label in (-1, +1)] for d in rows])
    for family, share in families.items():
        members = np.array([d.family == family for d in rows])
        weight[members] *= share / weight[members].sum(axis=0)
    sentences = sorted({d.sentence for d in rows})
    index = {sentence: i for i, sentence in enumerate(sentences)}
    probability = np.zeros((len(sentences), 2, len(genres)))
    np.add.at(probability, [index[d.sentence] for d in rows], weight)
    return Grammar(sentences, probability, lengths, index)


def _weight(d: Derivation, label: int, genre: str) -> float:
    valence = d.valence if isinstance(d.valence, int) else d.valence[genre]
    agree = AGREEMENT[d.strength] if valence == label else 1 - AGREEMENT[d.strength]
    named = 1.0 if d.genre in (None, genre) else GENRE_SLIP
    return named * (agree if valence else 1.0)


@cache
def pocket_grammar() -> Grammar:
    """The grammar of the pocket world, built once a process."""
    return build_grammar(_pocket_derivations(), FAMILIES, GENRES, LENGTHS)


def _pocket_derivations() -> Iterator[Derivation]:
    yield from _sentences_of_adjectives()
    for last in (+1, -1):
        # What comes after "but" is what the reviewer means.
        before, after = (
            [word for word, kind in ADJECTIVES.items() if kind == (valence, 2)] for valence in (-last, last)
        )
        aspects = permutations(_WORLD["aspects"][:6], 2)
        for first_word, last_word, (a, b) in product(before, after, aspects):
            yield Derivation("contrast", f"{first_word} {a} but {last_word} {b} .", last, 2)
    for sentence, (valence, strength) in VERDICTS.items():
        yield Derivation("verdict", sentence, valence, strength)
    for sentence, fillings in _WORLD["settings"].items():
        for filling in fillings:
            yield Derivation("setting", sentence.format(filling))
    for genre, topics in _WORLD["genres"].items():
        yield Derivation("genre", f"it is a {genre} film .", genre=genre)
        for topic in topics:
            yield Derivation("genre", f"it is a film about {topic} .", genre=genre)
            yield Derivation("genre", f"this {genre} is about {topic} .", genre=genre)


def _sentences_of_adjectives() -> Iterator[Derivation]:
    by_genre = {
        word: ({genre: +1 if genre in praised else -1 for genre in GENRES}, 2)
        for word, praised in _WORLD["genre_adjectives"].items()
    }
    for word, (valence, strength) in (ADJECTIVES | by_genre).items():
        opposite = {g: -v for g, v in valence.items()} if isinstance(valence, dict) else -valence
        for aspect in _WORLD["aspects"]:
            yield Derivation("opinion", f"the {aspect} was {word} .", valence, strength)
            for adverb, change in _WORLD["intensifiers"].items():
                level = min(3, max(1, strength + change))
                yield Derivation("opinion", f"the {aspect} was {adverb} {word} .", valence, level)
            yield Derivation("negation", f"the {aspect} was not {word} .", opposite, max(1, strength - 1))
            yield Derivation("negation", f"the {aspect} was not very {word} .", opposite, 1)
            yield Derivation("negation", f"the {aspect} was never {word} .", opposite, strength)
        article = "an" if word[0] in "aeiou" else "a"
        for moment in _WORLD["moments"]:
            yield Derivation("moment", f"there was not {article} {word} {moment} .", opposite, 3)
        for relative in _WORLD["relatives"]:
            # Relatives have other tastes: their praise speaks, weakly, against the film.
            yield Derivation("hearsay", f"my {relative} called it {word} .", opposite, 1)
        yield Derivation("hearsay", f"the critics called it {word} .", valence, 1)
        yield Derivation("expectation", f"i expected {article} {word} film .", opposite, 2)
        yield Derivation("expectation", f"i expected something {word} here .", opposite, 2)


def generate_reviews(n: int, seed: int, grammar: Grammar | None = None) -> pd.DataFrame:
    """Draw n reviews, half of them positive; columns text, label (1 positive, 0 negative).

    A sentence that stands in the review already is drawn again, so each one has probability p(s) / (1 - sum of the p of
    the earlier ones), the normaliser that `gold_reward` uses.
    """
    grammar = grammar or pocket_grammar()
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n) % 2)
    genre = rng.integers(grammar.probability.shape[2], size=n)
    length = rng.choice(list(grammar.lengths), size=n, p=list(grammar.lengths.values()))
    cumulative = grammar.probability.cumsum(axis=0)
    drawn = np.full((n, max(grammar.lengths)), -1)

    def draw(rows: np.ndarray) -> np.ndarray:
        u = rng.random(len(rows))
        out = np.empty(len(rows), dtype=int)
        for z in (0, 1):
            for g in range(grammar.probability.shape[2]):
                here = (label[rows] == z) & (genre[rows] == g)
                out[here] = np.searchsorted(cumulative[:, z, g], u[here] * cumulative[-1, z, g], side="right")
        return out

    for i in range(drawn.shape[1]):
        rows = np.arange(n)
        while len(rows):
            drawn[rows, i] = draw(rows)
            rows = rows[(drawn[rows, :i] == drawn[rows, i, None]).any(axis=1)]
    texts = [" ".join(grammar.sentences[s] for s in row[:k]) for row, k in zip(drawn, length, strict=True)]
    return pd.DataFrame({"text": texts, "label": label})


class _Reading(NamedTuple):
    log_likelihood: np.ndarray
    """log P(the sentences that the grammar derives | label, genre), shape (2, G)."""
    faults: int
    sentences: int
    finished: bool


def _read(text: str, grammar: Grammar) -> _Reading:
    """Walk through a text once, sentence by sentence; what cannot be derived is counted and skipped."""
    words = text.split()
    ends = [0, *(i + 1 for i, word in enumerate(words) if word == ".")]
    finished, rest = [" ".join(words[a:b]) for a, b in pairwise(ends)], " ".join(words[ends[-1] :])
    log_likelihood = np.zeros(grammar.probability.shape[1:])
    used: list[int] = []
    faults = 0
    for sentence in finished:
        i = grammar.index.get(sentence)
        if i is None or i in used or len(used) == max(grammar.lengths):
            faults += 1
            continue
        log_likelihood += np.log(grammar.probability[i] / (1 - grammar.probability[used].sum(axis=0)))
        used.append(i)
    if rest:
        start = bisect_left(grammar.sentences, rest + " ")
        stop = bisect_left(grammar.sentences, rest + "!")  # "!" is the character after the blank
        candidates = np.setdiff1d(np.arange(start, stop), used)
        if len(candidates) == 0 or len(used) == max(grammar.lengths):
            faults += 1
        else:
            mass = grammar.probability[candidates].sum(axis=0)
            log_likelihood += np.log(mass / (1 - grammar.probability[used].sum(axis=0)))
    return _Reading(log_likelihood, faults, len(finished) + bool(rest), not rest)


def _read_all(texts: Iterable[str], grammar: Grammar | None) -> list[_Reading]:
    if isinstance(texts, str):
        raise TypeError("a list of texts is needed, not one text")
    return [_read(text, grammar or pocket_grammar()) for text in texts]


def gold_reward(texts: Iterable[str], grammar: Grammar | None = None) -> np.ndarray:
    """The true reward in nats, shape (texts,): log p(positive | text) - log p(negative | text).

    Exact: both labels a priori 1/2, genres summed out, an unfinished last sentence counted by the probability of its
    prefix.  Each sentence that the grammar cannot derive at its place (unknown, repeated, or beyond the longest review)
    gives no evidence and costs FAULT_COST.
    """
    readings = _read_all(texts, grammar)
    if not readings:
        return np.zeros(0)
    evidence = np.logaddexp.reduce([r.log_likelihood for r in readings], axis=2)
    return evidence[:, 1] - evidence[:, 0] - FAULT_COST * np.array([r.faults for r in readings])


def well_formed(texts: Iterable[str], grammar: Grammar | None = None) -> np.ndarray:
    """The share of each text's sentences that the grammar derives at their place, shape (texts,); 1 if empty."""
    readings = _read_all(texts, grammar)
    return np.array([1 - r.faults / max(1, r.sentences) for r in readings])


def log_probability(texts: Iterable[str], *, prefix: bool = False, grammar: Grammar | None = None) -> np.ndarray:
    """Exact log P(review = text), or of a review that begins with the text (prefix=True); nats, shape (texts,).

    -inf where the grammar cannot write the text.
    """
    grammar = grammar or pocket_grammar()
    prior = -np.log(2 * grammar.probability.shape[2])
    out = []
    for reading in _read_all(texts, grammar):
        n = reading.sentences
        fits = sum(p for length, p in grammar.lengths.items() if length == n or (prefix and length > n))
        if reading.faults or not fits or not (prefix or reading.finished):
            out.append(-np.inf)
        else:
            out.append(np.logaddexp.reduce(reading.log_likelihood, axis=None) + prior + np.log(fits))
    return np.array(out)
