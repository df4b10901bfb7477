"""The world of letters: a second grammar, of letters to an editor about a picture, whose true reward is known as well.

It has no sentence in common with the pocket world, and its sentiment works otherwise: what follows "although" is
conceded, praise may be ironic, one thing is said to be better than another, and viewers take the place of genres.
`pocket.build_grammar` turns its derivations into probabilities, so that what is proven of pocket holds here.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from alignkit import pocket
from alignkit.pocket import Derivation, Grammar, build_grammar

_WORLD = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
VIEWERS = tuple(_WORLD["viewers"])
ADJECTIVES = {word: (valence, strength) for valence, strength, words in _WORLD["adjectives"] for word in words}
STARS = {"no": (-1, 3), "one": (-1, 3), "two": (-1, 2), "four": (+1, 2), "five": (+1, 3)}


@cache
def letters_grammar() -> Grammar:
    """The grammar of the world of letters, built once a process."""
    return build_grammar(_derivations(), _WORLD["families"], VIEWERS, _WORLD["lengths"])


def _derivations() -> Iterator[Derivation]:
    yield from _of_adjectives()
    yield from _although()
    for better, worse in permutations(_WORLD["aspects"], 2):
        yield Derivation("compared", f"the {better} made up for the {worse} .", +1, 1)
        yield Derivation("compared", f"the {better} could not save the {worse} .", -1, 1)
    for noun in _WORLD["nouns"]:
        yield Derivation("compared", f"it is a better {noun} than the last one .", +1, 2)
        yield Derivation("compared", f"the last {noun} was better than this one .", -1, 2)
        for count, (valence, strength) in STARS.items():
            yield Derivation("stars", f"i give this {noun} {count} stars .", valence, strength)
    for sentence, (valence, strength) in _WORLD["verdicts"].items():
        yield Derivation("verdict", sentence, valence, strength)
    for viewers in VIEWERS:
        yield Derivation("company", f"we {viewers} go every week .", genre=viewers)
        yield Derivation("company", f"this is a picture for {viewers} .", genre=viewers)
    for sentence, fillings in _WORLD["evenings"].items():
        for filling in fillings:
            yield Derivation("evening", sentence.format(filling))


def _of_adjectives() -> Iterator[Derivation]:
    by_viewer = {
        word: ({viewer: +1 if viewer in pleased else -1 for viewer in VIEWERS}, 2)
        for word, pleased in _WORLD["viewer_adjectives"].items()
    }
    for word, (valence, strength) in (ADJECTIVES | by_viewer).items():
        opposite = {g: -v for g, v in valence.items()} if isinstance(valence, dict) else -valence
        article = "an" if word[0] in "aeiou" else "a"
        for aspect in _WORLD["aspects"]:
            yield Derivation("praise", f"what {article} {word} {aspect} it has .", valence, strength)
            yield Derivation("praise", f"we found the {aspect} {word} .", valence, strength)
            yield Derivation("praise", f"nobody could call the {aspect} {word} .", opposite, strength)
        for noun in _WORLD["nouns"]:
            # Who thanks for a nap or asks for the money back does not mean the praise.
            yield Derivation("irony", f"thank you for {article} {word} nap at your {noun} .", -1, 2)
            yield Derivation("irony", f"please send us more of such {word} {noun} evenings .", valence, 1)


def _although() -> Iterator[Derivation]:
    for last in (+1, -1):
        # What comes before "although" is what the writer means.
        meant, conceded = ([w for w, kind in ADJECTIVES.items() if kind == (v, 2)] for v in (last, -last))
        for first, second, (a, b) in product(meant, conceded, permutations(_WORLD["aspects"][:6], 2)):
            yield Derivation("although", f"the {a} was {first} although the {b} was {second} .", last, 2)


def generate_reviews(n: int, seed: int) -> pd.DataFrame:
    """Draw n reviews, half of them positive (`pocket.generate_reviews`)."""
    return pocket.generate_reviews(n, seed, letters_grammar())


def gold_reward(texts: Iterable[str]) -> np.ndarray:
    """The true reward in nats, shape (texts,) (`pocket.gold_reward`)."""
    return pocket.gold_reward(texts, letters_grammar())


def well_formed(texts: Iterable[str]) -> np.ndarray:
    """The share of each text's sentences that the grammar derives, shape (texts,) (`pocket.well_formed`)."""
    return pocket.well_formed(texts, letters_grammar())


def log_probability(texts: Iterable[str], *, prefix: bool = False) -> np.ndarray:
    """Exact log-probs in nats, shape (texts,) (`pocket.log_probability`)."""
    return pocket.log_probability(texts, prefix=prefix, grammar=letters_grammar())
