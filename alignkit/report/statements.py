"""How findings are worded: sentences about differences, bounds, and counts of what is clear of zero."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from alignkit.metrics import seed_interval
from alignkit.report.tables import interval_text

Tables = Callable[[str], pd.DataFrame]
"""A table of one profile by its name, such as 2_gain; raises Unanswered if the report has none of that name."""
Words = tuple[str, str, str]
"""What is said of a difference above zero, below zero, and of one whose interval includes zero."""
CHANGES: Words = ("raises", "lowers", "does not measurably change")
DIFFERENT = 0.05
"""Holm-adjusted p value below which a difference counts."""


class Unanswered(Exception):
    """This report cannot say: a table or a row is not in it, or it has a single seed and so no interval."""


class Finding(NamedTuple):
    """A sentence with its numbers; `holds` says whether the claim of the function's name does."""

    statement: str
    holds: bool
    value: float
    low: float = np.nan
    high: float = np.nan
    seeds: float = np.nan


def rows_of(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows with these values; raises Unanswered if there are none."""
    kept = table[(table[list(where)] == list(where.values())).all(axis=1)]
    if kept.empty:
        raise Unanswered("no row with " + ", ".join(f"{column} {value}" for column, value in where.items()))
    return kept


def family_of_warp(table: pd.DataFrame) -> str:
    """What notebook 6 calls WARP as published, from the table of notebook 4."""
    if "family" not in table:
        raise Unanswered("its table has no families")
    return rows_of(table, method="WARP").family.dropna().iloc[0]


def difference(gains: pd.DataFrame, subject: str, rest: str, words: Words = CHANGES, wanted: str = "+") -> Finding:
    """A finding about a row of differences (difference, low, high, seeds); wanted: "+", "-" or "0"."""
    row = gains.iloc[0]
    if np.isnan(row.low):
        raise Unanswered("one seed has no interval")
    sign = "+" if row.low > 0 else "-" if row.high < 0 else "0"
    said = words["+-0".index(sign)]
    text = f"{subject} {said} {rest}: {interval_text(row.difference, row.low, row.high, 2)}."
    return Finding(text, sign == wanted, row.difference, row.low, row.high, row.get("seeds", np.nan))


def over_seeds(values: pd.Series) -> pd.DataFrame:
    """A number for each seed as a row of differences."""
    mean, low, high = seed_interval(values)
    return pd.DataFrame([{"difference": mean, "low": low, "high": high, "seeds": len(values)}])


def bounded(value: float, words: tuple[str, str], rest: str, least: float = -np.inf, most: float = np.inf) -> Finding:
    """A finding about a number that should lie between two bounds; words: what is said if it does, and if not."""
    holds = bool(least <= value <= most)
    return Finding(f"{words[not holds]} {rest}.", holds, value)


def counted(table: pd.DataFrame, none: str, some: str) -> Finding:
    """That no row of a table of differences (label or method, holm) lies clear of zero; names those that do."""
    if table.holm.isna().all():
        raise Unanswered("one seed has no interval")
    name = "label" if "label" in table else "method"
    clear = table[table.holm < DIFFERENT]
    told = [f"{row[name]} ({row['difference']:+.2f})" for _, row in clear.iterrows()]
    text = f"{some}: {', '.join(told)}" if told else none
    return Finding(f"{text} ({len(clear)} of {len(table)} after Holm).", clear.empty, len(clear))
