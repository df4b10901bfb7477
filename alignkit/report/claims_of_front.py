"""What the report claims in notebook 6, about every method on one front (`claims` has the others)."""

import numpy as np
import pandas as pd

from alignkit.frontier import along_root_kl
from alignkit.metrics import seed_interval
from alignkit.report.statements import (
    LEVEL,
    Finding,
    Tables,
    Unanswered,
    all_level,
    compared_at,
    difference,
    family_of_warp,
    more_or_less,
    of_one_number,
    outcome,
    over_seeds,
    rows_of,
    shares,
)
from alignkit.report.tables import DIFFERENT, interval_text, reversed_differences, side_of_zero


def _share(tables: Tables, row: pd.Series, name: str, least: float, kl: float = 0) -> Finding:
    kl = kl or compared_at(tables)
    at = f"KL {kl:g}"
    low, high = row[f"{at}_low"], row[f"{at}_high"]
    holds, firm = outcome(low, high, least)
    told = f"{name} ({row.family}) gets {interval_text(row[at], low, high, 2 + (holds is None))} of the possible gain"
    told += f" at a KL of {kl:g}" + (f", not clear of {least:g}" if holds is None else "")
    return Finding(f"{told}.", holds, firm, row[at], low, high, row.seeds, kl)


def _nearest(tables: Tables, several: bool = False) -> pd.Series:
    """The efficiencies of the family nearest to the optimum with one draw, or by keeping one of `several`."""
    table = shares(tables)
    return table[table.draws.notna() == several].iloc[0]


def best_with_many_draws(tables: Tables) -> Finding:
    """How near to the optimum does keeping one of several draws come?"""
    return _share(tables, _nearest(tables, several=True), "Keeping one of several draws", 0.98)


def one_draw_has_more_gold(tables: Tables) -> Finding:
    """Has the best policy used with one draw more gold than the best way of keeping one of several, at the same KL?"""
    one, several, kl = _nearest(tables).family, _nearest(tables, several=True).family, compared_at(tables)
    gold = rows_of(tables("6_losses"), at_kl=kl).pivot(index="seed", columns="family", values="gold")
    rest = f"the best way of keeping one of several draws ({several}) at a KL of {kl:g} (difference)"
    subject = f"The best policy used with one draw ({one})"
    more = over_seeds(gold[one] - gold[several]).assign(at_kl=kl)
    return difference(more, subject, rest, more_or_less("has", "gold"))


def best_with_one_draw(tables: Tables) -> Finding:
    """How near does the best policy come that is used with one draw?"""
    return _share(tables, _nearest(tables), "The best policy used with one draw", 0.9)


def one_draw_far_from_sft(tables: Tables) -> Finding:
    """How near does the policy come at a KL of 2 that is the best with one draw at a KL of 1?"""
    row = _nearest(tables)
    if np.isnan(row["KL 2"]):
        raise Unanswered(f"{row.family} does not reach it with every seed")
    return _share(tables, row, "The same policy", 0.9, kl=2)


def one_draw_at_warps_tokens(tables: Tables) -> Finding:
    """How near does the best way come that draws no more tokens than WARP, to within 1 %?"""
    table, warp = shares(tables).set_index("family", drop=False), family_of_warp(tables("4_warp"))
    tokens = tables("6_hypervolume").groupby("method").tokens.mean()
    cheap = table[table.draws.isna() & (table.family.map(tokens) <= 1.01 * tokens[warp])]
    told = _share(tables, cheap.iloc[0], "With no more tokens than WARP (to 1 %), the best way with one draw", 0.8)
    beside = (
        f"; {warp}, untuned, gets {table.loc[warp, f'KL {compared_at(tables):g}']:.2f}."
        if cheap.index[0] != warp
        else "."
    )
    return told._replace(statement=told.statement.removesuffix(".") + beside)


def tuned_alike_none_beats_warp(tables: Tables) -> Finding:
    """Under the same tuning and the same budget, which method's share differs from WARP's at the least KL?"""
    rows = tables("6_tuned_order")
    if rows.empty:
        raise Unanswered("no methods were tuned under one budget")
    where = f"the possible gain from WARP at KL {rows.at_kl.iloc[0]:g} with {rows.seeds.max():.0f} seeds"
    none = f"Tuned alike (four settings each), no method differs measurably in its share of {where}"
    some = f"Tuned alike (four settings each), methods that differ in their share of {where}"
    told = all_level(rows, none, some, "share")._replace(kl=rows.at_kl.iloc[0])
    left = {*tables("6_tuned").family} - {*rows.family, *rows.against}
    beside = f" Not compared, as not every seed reaches that KL: {'; '.join(sorted(left))}." if left else ""
    return told._replace(statement=told.statement + beside)


def none_lies_above_the_optimum(tables: Tables) -> Finding:
    """Does any policy lie above the optimal frontier by more than noise explains?"""
    above, every = int(tables("6_above").above.sum()), len(tables("6_above"))
    if not every:
        raise Unanswered("no policy stands where the frontier is known")
    words = ("No policy lies above the optimal frontier", "Some policies lie above the optimal frontier")
    return of_one_number(above, above == 0, words, f"by more than noise explains ({above} of {every})")


def reinforce_is_level_with_warp(tables: Tables) -> Finding:
    """Does one run, interpolated back, do as well as WARP at the same KL?"""
    rows = rows_of(tables("6_order"), against=family_of_warp(tables("4_warp")))
    row = rows_of(rows, family="REINFORCE, EMA anchor").iloc[0]
    holds, firm = outcome(row.low, row.high, -LEVEL["share"], LEVEL["share"])
    apart = "differs from" if side_of_zero(row.low, row.high) else "is not shown to be level with"
    where = f"in its share of the possible gain at a KL of {row.at_kl:g} (difference)"
    less = interval_text(row.difference, row.low, row.high, 2)
    text = f"REINFORCE interpolated back, {_paid(tables, row.family)}, {'is level with' if holds else apart}"
    text += f" {row.against} {where}: {less}."
    return Finding(text, holds, firm, row.difference, row.low, row.high, row.seeds, row.at_kl)


def _paid(tables: Tables, family: str) -> str:
    """What a family trained on, in WARP's tokens."""
    tokens, warp = tables("6_hypervolume").groupby("method").tokens.mean(), family_of_warp(tables("4_warp"))
    times = tokens.get(family, np.nan) / tokens[warp]
    return "tokens unknown" if np.isnan(times) else f"with {times:.2g} times WARP's training tokens"


def _best_beside(tables: Tables, other: str, paid: str = "") -> Finding:
    """That the best policy used with one draw gets more of the possible gain than another way at the same KL."""
    best = _nearest(tables).family
    rows = reversed_differences(rows_of(tables("6_order"), family=other, against=best))
    words = ("gets more of the possible gain than", "gets less of it than", "does not measurably differ in share from")
    rest = f"{other} at a KL of {rows.at_kl.iloc[0]:g} (difference in share)"
    return difference(rows, f"The best policy used with one draw ({best}){paid}", rest, words)


def best_with_one_draw_beats_warp(tables: Tables) -> Finding:
    """Does the best policy used with one draw get more of the possible gain than WARP, at the same KL?"""
    warp, best = family_of_warp(tables("4_warp")), _nearest(tables).family
    if best == warp:
        return Finding("The best policy used with one draw is WARP's own.", False, False, 0.0, kl=compared_at(tables))
    return _best_beside(tables, warp, f", {_paid(tables, best)},")


def one_draw_beats_best_of_n(tables: Tables) -> Finding:
    """Does the best policy used with one draw get more of the possible gain than best of n, which trains nothing?"""
    return _best_beside(tables, "best of n")


def one_draw_has_more_gold_than_the_proxys_optimum(tables: Tables) -> Finding:
    """Has the best policy used with one draw more gold than the reward model's own optimum at the same KL?"""
    family, kl = _nearest(tables).family, compared_at(tables)
    more = over_seeds(-rows_of(tables("6_losses"), family=family, at_kl=kl)["optimisation error"]).assign(at_kl=kl)
    rest = f"the reward model's own optimum at a KL of {kl:g} (difference)"
    return difference(more, f"The best policy used with one draw ({family})", rest, more_or_less("has", "gold"))


def proxy_loses_more_gold_than_optimisation(tables: Tables) -> Finding:
    """How much of the gold that the best policy used with one draw misses is lost by the proxy?"""
    family, kl = _nearest(tables).family, compared_at(tables)
    rows = rows_of(tables("6_losses"), family=family, at_kl=kl)
    if rows.part.isna().any():
        raise Unanswered(f"at KL {kl:g} the gold of the optimum is not known for every seed")
    part, low, high = seed_interval(rows.part)
    optimal, own = rows["proxy error"].mean(), (rows["proxy error"] + rows["optimisation error"]).mean()
    holds, firm = outcome(low, high, least=0.5)
    said = {True: "are more than half of", False: "are less than half of", None: "are not clear of half of"}[holds]
    text = f"Of the gold possible at a KL of {kl:g} the best policy used with one draw ({family}) misses {own:.2f} nats"
    text += f", the reward model's own optimum {optimal:.2f}, {interval_text(part, low, high, 2)} times as much"
    return Finding(
        f"{text}: the reward model's errors {said} what it misses.", holds, firm, part, low, high, len(rows), kl
    )


def order_in_gold_survives_the_cost_of_a_fault(tables: Tables) -> Finding:
    """Is the order of methods in gold the same if a fault costs 2 or 10 nats?"""
    ranks = tables("6_fault_costs").filter(like="rank, ")
    if len(ranks) < 3:
        raise Unanswered("fewer than three methods stand there")
    alike, moved = ranks.corr().min(axis=None), int((ranks.nunique(axis=1) > 1).sum())
    words = ("The order of methods in gold hardly depends", "The order of methods in gold depends")
    rest = f"on whether a fault costs 2, 5 or 10 nats: rank correlation {alike:.2f} at least"
    return of_one_number(alike, alike >= 0.9, words, f"{rest}, {moved} of {len(ranks)} methods change their place")


def anchored_keeps_more_gold(tables: Tables) -> Finding:
    """Does anchored RLOO gain more gold for one of reward than the proxy's own optimum does, at the same KL?"""
    kl, rows = compared_at(tables), tables("6_rows")
    rows = pd.concat([rows_of(rows, family=name) for name in ("sft", "anchored RLOO, over β")])
    optima = rows_of(tables("6_frontier"), optimal_for="reward")
    own, best = _gained_at(rows, kl), _gained_at(optima, kl)
    kept, less = own.gold / own.reward - best.gold / best.reward, (own.gold - best.gold).mean()
    if kept.isna().any():
        raise Unanswered(f"some seed has no such policy on both sides of a KL of {kl:g}")
    in_all = f"{abs(less):.2f} nats {'lower' if less < 0 else 'higher'} in all"
    rest = f"the reward model's own optimum, both at a KL of {kl:g}, where its gold is {in_all} (difference)"
    more = over_seeds(kept).assign(at_kl=kl)
    return difference(more, "For each nat of reward, anchored RLOO", rest, more_or_less("gains", "gold"))


def _gained_at(table: pd.DataFrame, kl: float) -> pd.DataFrame:
    """Gains in reward and gold at a KL, a row each seed, of a front (kl, reward, gold) whose first point is SFT."""
    gained = {}
    for seed, front in table.sort_values("kl", kind="stable").groupby("seed"):
        start, line = front.iloc[0], front.iloc[1:]  # SFT is no policy of the method, so no line begins there
        gained[seed] = {name: along_root_kl(kl, line.kl, line[name]) - start[name] for name in ("reward", "gold")}
    return pd.DataFrame(gained).T


def a_temperature_narrows_the_spread(tables: Tables) -> Finding:
    """Does one temperature for each reward model bring the seeds' optimal gains nearer to each other?"""
    table = tables("6_calibration")
    row = table[table.quantity.str.startswith("optimal gain at KL")].iloc[0]
    kl = float(row.quantity.split()[-1])
    before, after, p = row["spread / mean"], row["spread / mean, divided"], row["p"]
    if np.isnan(p) or len(tables("6_frontier").seed.unique()) < 5:
        raise Unanswered("one temperature for all seeds, or fewer than five seeds, leaves too little to compare")
    holds = bool(after < before) if p < DIFFERENT else None
    words = {True: "brings", False: "does not bring", None: "does not measurably bring"}
    text = f"Dividing rewards by their model's temperature {words[holds]} the seeds' optimal gains nearer to each other"
    text += f": at KL {kl:g} they spread by {after:.1%} of their mean, before it by {before:.1%} (p = {p:.2f})."
    return Finding(text, holds, False, after / before, kl=kl)
