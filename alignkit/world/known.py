"""Worlds that are written here and not read from files: how their reviews are drawn, and what is true of a text.

To add one, register both under its name, which is then a value of the parameter `data`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from alignkit import pocket
from alignkit.world import letters


class Truth(NamedTuple):
    """What is known of every text of a world; each function maps texts to numbers, (texts,)."""

    gold_reward: Callable[[Sequence[str]], np.ndarray]
    """The true reward in nats."""
    well_formed: Callable[[Sequence[str]], np.ndarray]
    """The share of sentences that the world could have written, 0 to 1."""
    log_probability: Callable[..., np.ndarray]
    """The log-prob of a text in nats; with prefix=True that of all texts that begin with it."""


GENERATORS: dict[str, Callable[[int, int], pd.DataFrame]] = {
    "pocket": pocket.generate_reviews,
    "letters": letters.generate_reviews,
}
"""A number of reviews and a seed -> columns text and label (1 positive, 0 negative)."""
READ = "reviews that are read"
"""The entry of TRUTHS for reviews from files or the Hub, so that a world added here changes none of their runs."""
TRUTHS: dict[str, Truth | None] = {
    "pocket": Truth(pocket.gold_reward, pocket.well_formed, pocket.log_probability),
    "letters": Truth(letters.gold_reward, letters.well_formed, letters.log_probability),
    "reviews that are read": None,  # READ, spelt out: a run's identity finds its entry by the literal key
}
"""Kept apart from GENERATORS, so that an edit of a truth repeats evaluations in that world and trains nothing."""


def truth_of(source: str) -> Truth | None:
    """What is true of the texts of this source of reviews; None where nobody knows."""
    return TRUTHS.get(source)
