"""How findings are worded: sentences about differences, bounds, and counts of what is clear of zero."""

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import numpy as np
import pandas as pd

from alignkit.metrics import seed_interval
from alignkit.report.tables import DIFFERENT, interval_text, side_of_zero

Tables = Callable[[str], pd.DataFrame]
"""A table of one profile by its name, such as 2_gain; raises Unanswered if the report has none of that name."""
Numbers = float | pd.Series
Words = tuple[str, str, str]
"""What is said of a difference above zero, below zero, and of one that is not shown."""
Also = tuple[str, pd.DataFrame] | None
CHANGES: Words = ("raises", "lowers", "does not measurably change")
LEVEL = {"reward": 0.25, "share": 0.1, "entropy": 0.03, "volume": 1.0}
"""Differences within which two policies count as level; 0.25 nats of reward multiply the odds of "positive" by 1.28,
0.03 nats is what the entropy of words moves from SFT's at the KLs that are compared."""
PART = 0.25
"""And, where it is less, this part of what the method that others are compared with gains over SFT itself."""
UNITS = {"reward": "nats", "share": "of the possible gain", "entropy": "nats", "volume": "nats²"}
REPEAT = 1 + 2**0.5
"""How many half-widths of its interval a mean has to be away from a bound if fresh seeds are to show the same: the mean
of as many fresh seeds lies within √2 half-widths of this one (95 % prediction interval), and has a half-width of its
own, taken to be as large."""


class Unanswered(Exception):
    """This report cannot say: a table or a row is not in it, or it has a single seed and so no interval."""


class Finding(NamedTuple):
    """A sentence with its numbers; `holds` says whether the claim of the function's name does, None if its interval, or
    Holm's p, leaves that open; `firm` whether it holds and as many fresh seeds are expected to show that too."""

    statement: str
    holds: bool | None
    firm: bool
    value: float
    low: float = np.nan
    high: float = np.nan
    seeds: float = np.nan
    kl: float = np.nan
    """The KL (nats) at which the claim was asked, which may be another in another report; NaN if at none or at several.
    """
    asked: float = np.nan
    """How many comparisons a claim that nothing differs rests on."""


def rows_of(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows with these values; raises Unanswered if there are none."""
    kept = table[(table[list(where)] == list(where.values())).all(axis=1)]
    if kept.empty:
        raise Unanswered("its table has no row of " + ", ".join(map(str, where.values())))
    return kept


def family_of_warp(table: pd.DataFrame) -> str:
    """The family that notebook 6 shows as WARP, from the table of notebook 4."""
    return rows_of(table, method="WARP").family.dropna().iloc[0]


def compared_at(tables: Tables) -> float:
    """The KL at which the report compares: 1, or the largest below it that methods with every seed reach."""
    table = tables("6_efficiency")
    known = table[table.seeds == table.seeds.max()].filter(regex=r"^KL [\d.]+$").dropna(axis=1, how="all")
    return max((kl for kl in known.columns.str[3:].astype(float) if kl <= 1), default=1.0)


def shares(tables: Tables) -> pd.DataFrame:
    """Efficiencies of methods that have every seed at that KL, the best first."""
    table, at = tables("6_efficiency"), f"KL {compared_at(tables):g}"
    return table[(table.seeds == table.seeds.max()) & table[at].notna()].sort_values(at, ascending=False)


def lies_between(low: float, high: float, least: float = -np.inf, most: float = np.inf) -> bool | None:
    """Whether an interval lies between two bounds: False if it lies outside; None if it crosses one, or is not known.

    So "no difference" has to be shown as well: an interval that includes zero does not show it, one between two bounds
    does (two one-sided tests, Schuirmann 1987).
    """
    if low >= least and high <= most:
        return True
    return False if high < least or low > most else None


def outcome(low: Numbers, high: Numbers, least: Numbers = -np.inf, most: Numbers = np.inf) -> tuple[bool | None, bool]:
    """`holds` and `firm` of a finding that an interval, or each of several, lies between two bounds, or its own two.

    It does not hold if one of them lies outside.
    """

    def inside(low: Numbers, high: Numbers) -> set[bool | None]:
        return {lies_between(*row) for row in np.column_stack(np.broadcast_arrays(low, high, least, most))}

    middle, room, each = (low + high) / 2, REPEAT * (high - low) / 2, inside(low, high)
    holds = False if False in each else None if None in each else True
    return holds, inside(middle - room, middle + room) == {True}


def more_or_less(verb: str, what: str) -> Words:
    """What is said of two methods, one of which may have more of something."""
    return f"{verb} more {what} than", f"{verb} less {what} than", f"does not measurably differ in {what} from"


def difference(gains: pd.DataFrame, subject: str, rest: str, words: Words = CHANGES, digits: int = 2) -> Finding:
    """A finding that a row of differences (difference, low, high; holm, seeds and at_kl, if it has them) is above zero;
    where it is one of several, only if Holm's p is small as well."""
    row = gains.iloc[0]
    if np.isnan(row.low):
        raise Unanswered("one seed has no interval")
    side, open_ = side_of_zero(row.low, row.high), row.get("holm", 0) >= DIFFERENT
    said, told = words[(2, 0, 1)[side * (not open_)]], interval_text(row.difference, row.low, row.high, digits)
    text = f"{subject} {said} {rest}: {told}{f', after Holm p = {row.holm:.2f}' if side and open_ else ''}."
    found = (None, False) if open_ else outcome(row.low, row.high, least=np.nextafter(0, 1))
    return Finding(text, *found, row.difference, row.low, row.high, row.get("seeds", np.nan), row.get("at_kl", np.nan))


def over_seeds(values: pd.Series) -> pd.DataFrame:
    """Mean and interval over seeds of one number a seed, as a table of one row that `difference` takes."""
    if values.isna().all():
        raise Unanswered("no seed has it")
    mean, low, high = seed_interval(values)
    return pd.DataFrame([{"difference": mean, "low": low, "high": high, "seeds": len(values)}])


def in_bounds(
    values: pd.Series, words: tuple[str, str], rest: str, least: float = -np.inf, most: float = np.inf, digits: int = 2
) -> Finding:
    """A finding that a number, one for each seed, lies between two bounds; words: what is said unless its interval lies
    outside, and if it does; rest follows them, with {} where mean and interval go."""
    mean, low, high = over_seeds(values)[["difference", "low", "high"]].iloc[0]
    holds, firm = outcome(low, high, least, most)
    told = f"{words[holds is False]} {rest.format(interval_text(mean, low, high, digits))}"
    if holds is None:
        told = f"Open: {told}, not clear of {least if np.isfinite(least) else most:g}"
    return Finding(f"{told}.", holds, firm, mean, low, high, len(values))


def of_one_number(value: float, holds: bool, words: tuple[str, str], rest: str) -> Finding:
    """A finding about one number that has no seeds, and so counts as firm where it holds; words: what is said if it
    holds, and if not."""
    return Finding(f"{words[not holds]} {rest}.", bool(holds), bool(holds), value)


def all_level(
    table: pd.DataFrame, none: str, some: str, measure: str, above: bool = False, also: Also = None, gain: Numbers = inf
) -> Finding:
    """That all rows of a table of differences (label or method, low, high, holm) are level, or with `above` that none
    has more; names what is clear of zero.

    Level is an interval within ±LEVEL of the measure and within PART of the `gain` over SFT of the method that the row
    is compared with; where one crosses that bound and none lies beyond it, it is open.  `also`: words, and
    differences whose clear ones follow them.
    """
    if table.holm.isna().all():
        raise Unanswered("one seed has no interval")
    level, unit = np.clip(PART * np.broadcast_to(gain, len(table)), 0, LEVEL[measure]), UNITS[measure]
    apart = table[(table.holm < DIFFERENT) & ((table.difference > 0) | (not above))]
    holds, firm = outcome(table.low, table.high, -np.inf if above else -level, level)
    told, most = listed(apart), f"{level.max():.2g} {unit}"
    within = f"none has {most} more" if above else f"none by more than {most}"
    within += f" ({level.min():.2f} where a quarter of the gain is less)" * bool(level.min() < level.max())
    text = f"{some}{f', {within}' if holds else ''}: {told}" if told else none
    text += f" ({len(apart)} of {len(table)} after Holm)"
    if holds is None:
        reach = table.high if above else np.maximum(-table.low, table.high)
        worst = (reach / level).argmax()
        text += f"; but up to {reach.iloc[worst]:.2f} {unit} is not excluded (below {level[worst]:.2g} is level)"
    elif holds and not told:
        text += f", and {within}"
    if also and (clear := listed(also[1][also[1].holm < DIFFERENT])):
        text += f". {also[0]}: {clear}"
    return Finding(f"{text}.", holds, firm, len(apart), asked=len(table))


def listed(differences: pd.DataFrame) -> str:
    """Each row's label or method with its difference."""
    name = "label" if "label" in differences else "method"
    return "; ".join(f"{row[name]} ({row['difference']:+z.2f})" for _, row in differences.iterrows())
