"""What the report claims, notebook by notebook.

A claim is a function of the report's tables.  Its name is its id, its docstring what it asks; it returns the sentence
that these tables allow, the number behind it with its interval, and whether the claim that its name makes holds.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from alignkit.frontier import along_root_kl
from alignkit.metrics import seed_interval
from alignkit.report.statements import (
    DIFFERENT,
    LEVEL,
    Finding,
    Tables,
    Unanswered,
    bounded,
    compared_at,
    counted,
    difference,
    family_of_warp,
    over_seeds,
    plain,
    rows_of,
    settled,
    shares,
)
from alignkit.report.tables import clear, interval_text, turned

# Notebook 0


def implicit_reward_follows_the_reward(tables: Tables) -> Finding:
    """Does the reward that DPO implies agree with the reward model on held-out pairs?"""
    found = over_seeds(tables("0_agreement")["correlation of differences"])
    words = ("agrees with", "contradicts", "has no measurable relation to")
    return difference(found, "The reward that DPO implies", "the reward model on held-out pairs (correlation)", words)


# Notebook 1


def reward_model_against_words(tables: Tables) -> Finding:
    """Does the reward model order as many pairs as counts of words and word pairs, or at most 0.01 fewer?"""
    table = tables("1_reward_model")
    words = rows_of(table, method="tfidf_word_pairs").pairwise_accuracy.iloc[0]
    own = rows_of(table, method="reward").pairwise_accuracy
    mean, low, high = seed_interval(own)
    if np.isnan(low):
        raise Unanswered("one seed has no interval")
    sign = "more" if low > words else "fewer" if high < words - 0.01 else "about as many"
    text = f"The reward model orders {sign} (positive, negative) pairs {'as' if 'as' in sign else 'than'} TF-IDF with "
    text += f"word pairs: {interval_text(mean, low, high)} and {words:.3f}."
    return Finding(text, settled(low, high, least=words - 0.01), mean, low, high, len(own))


def reward_model_orders(tables: Tables) -> Finding:
    """How near is the reward model to the exact posterior, which nobody can beat?"""
    table = tables("1_reward_model")
    mine, best = (rows_of(table, method=m).pairwise_accuracy for m in ("reward", "exact posterior"))
    words = ("The reward model is near the best possible order:", "The reward model is far from the best order:")
    return bounded(mine / best.mean(), words, "{} of the exact posterior's pairwise accuracy", least=0.98, digits=3)


def reward_model_is_calibrated(tables: Tables) -> Finding:
    """Can its probabilities be believed?"""
    error = rows_of(tables("1_reward_model"), method="reward").ece
    words = ("Its probabilities can be read as such:", "Its probabilities are off:")
    return bounded(error, words, "calibration error {}", most=0.05, digits=3)


def all_pairs_order_more(tables: Tables) -> Finding:
    """Do all pairs of a batch teach more than one partner for each review?"""
    words = ("orders more pairs than", "orders fewer pairs than", "does not measurably change the order learned from")
    found = over_seeds(tables("1_all_pairs_gain").pairwise_accuracy)
    return difference(found, "Comparing all pairs of a batch", "plain pairs of the same reviews", words)


def sft_is_near_the_grammar(tables: Tables) -> Finding:
    """How near is the supervised policy to the grammar that wrote the reviews?"""
    ratio = tables("1_sft").ratio
    words = ("The supervised policy is near the grammar:", "The supervised policy is far from the grammar:")
    return bounded(ratio, words, "{} of the nats a token that its entropy has", most=1.05, digits=3)


# Notebooks 2 and 3


def losses_do_not_differ_at_equal_kl(tables: Tables) -> Finding:
    """Which loss gains another reward than the sigmoid loss, at the same KL?"""
    none = "No other loss gains a measurably other reward than the sigmoid loss at the same KL"
    some = "Losses that gain another reward than the sigmoid loss at the same KL"
    return counted(rows_of(tables("2_matched"), measure="reward"), none, some, LEVEL["reward"])


def dpo_raises_reward(tables: Tables) -> Finding:
    """Does DPO raise the reward that it never saw?"""
    return difference(rows_of(tables("2_gain"), method="sigmoid", measure="reward"), "DPO", "the reward over SFT")


def dpo_raises_gold(tables: Tables) -> Finding:
    """Does it raise the true reward?"""
    return difference(rows_of(tables("2_gain"), method="sigmoid", measure="gold"), "DPO", "the gold reward over SFT")


def losses_do_not_differ(tables: Tables) -> Finding:
    """Which loss ends at another reward than the sigmoid loss, each at the KL where it stops?"""
    none = "No other loss ends at a measurably other reward than the sigmoid loss"
    some = "Losses that end at another reward than the sigmoid loss, each at its own KL"
    return counted(rows_of(tables("2_against_sigmoid"), measure="reward"), none, some, LEVEL["reward"])


def _halfway(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The row of a table at matched KLs at the middle one of those that it has."""
    rows = rows_of(table, **where).sort_values("at_kl")
    return rows.iloc[[(len(rows) - 1) // 2]]


def twice_the_pairs_raise_reward(tables: Tables) -> Finding:
    """Do twice the pairs raise the reward, at as many steps?"""
    gains = rows_of(tables("2_size_gain"), measure="reward").nlargest(1, "share")
    kl = rows_of(tables("2_size_gain"), measure="kl").nlargest(1, "share").difference.iloc[0]
    share = f"{gains.share.iloc[0]:.0%} of them, at as many steps (and moves the KL by {kl:+.2f} nats)"
    return difference(gains, "DPO on all pairs instead of " + share, "the reward")


def on_policy_gains_more(tables: Tables) -> Finding:
    """Does DPO gain more reward if its pairs are drawn anew from the current policy, at the same KL?"""
    row = _halfway(tables("2_beyond"), family="DPO, on-policy", measure="reward")
    words = ("gains more reward than", "gains less reward than", "gains no measurably other reward than")
    rest = f"off-policy DPO at KL {row.at_kl.iloc[0]:g}, at as many completions and steps"
    return difference(row, "DPO on pairs of the current policy", rest, words)


def imitation_reaches_more_gold(tables: Tables) -> Finding:
    """Does fine-tuning on positive reviews reach more gold than DPO, at the same KL?"""
    row = _halfway(tables("2_beyond"), family="fine-tuning on positive reviews", measure="gold")
    words = ("reaches more gold than", "reaches less gold than", "reaches no measurably other gold than")
    return difference(row, "Fine-tuning on positive reviews", f"DPO at KL {row.at_kl.iloc[0]:g}", words)


def divergences_gain_no_more(tables: Tables) -> Finding:
    """Which divergence gains more reward than reverse KL, at the same KL?"""
    table = rows_of(tables("3_matched"), measure="reward")
    above = table.assign(holm=table.holm.where(table.difference > 0, 1.0), low=table.low.clip(lower=0))
    none = "No divergence gains measurably more reward than reverse KL at the same KL"
    return counted(above, none, "Divergences that gain more reward than reverse KL at the same KL", LEVEL["reward"])


def divergences_keep_no_more_diversity(tables: Tables) -> Finding:
    """Which divergence keeps another entropy of words than reverse KL, at the same KL?"""
    none = "No divergence changes the entropy of the words measurably against reverse KL at the same KL"
    some = "Divergences with another entropy of words than reverse KL at the same KL"
    return counted(rows_of(tables("3_matched"), measure="unigram_entropy"), none, some, LEVEL["entropy"])


# Notebook 4


def _interpolated(tables: Tables, begins: str, measure: str) -> pd.DataFrame:
    """The gain of the first policy of notebook 4 whose name begins so: the one with the smaller η."""
    gains = rows_of(tables("4_gain"), measure=measure)
    return rows_of(gains.assign(ours=gains.policy.str.startswith(begins)), ours=True)


def warp_raises_reward(tables: Tables) -> Finding:
    """Does WARP raise the reward, halfway back to SFT?"""
    return difference(_interpolated(tables, "WARP, η", "reward"), "WARP, interpolated back,", "the reward over SFT")


def warp_raises_gold(tables: Tables) -> Finding:
    """Does it raise the true reward?"""
    return difference(_interpolated(tables, "WARP, η", "gold"), "WARP, interpolated back,", "the gold reward over SFT")


def warp_of_the_task_raises_reward(tables: Tables) -> Finding:
    """Does WARP raise the reward with as many steps as the task names?"""
    row = _interpolated(tables, "WARP, T=", "reward")
    return difference(row, f"The task's own setting ({row.policy.iloc[0]})", "the reward over SFT")


def longer_runs_buy_no_more(tables: Tables) -> Finding:
    """Do the task's own steps, of which there are more, buy another reward at the same KL?"""
    none = "Runs as long as the task names them buy no measurably other reward than shorter ones at the same KL"
    some = "KLs at which runs as long as the task names them buy another reward than shorter ones"
    return counted(rows_of(tables("4_task_matched"), measure="reward"), none, some, LEVEL["reward"])


def anchors_rates_do_not_differ(tables: Tables) -> Finding:
    """Which other rate of the anchor buys another reward at the same KL?"""
    none = "No other rate of the anchor buys a measurably other reward at the same KL"
    some = "Rates of the anchor that buy another reward than WARP's own, at the same KL"
    return counted(rows_of(tables("4_mu_matched"), measure="reward"), none, some, LEVEL["reward"])


# Notebook 5


def _anchored_against_warp(tables: Tables, measure: str, rest: str) -> Finding:
    words = ("dominates more than", "dominates less than", "does not measurably differ from")
    gains = rows_of(tables("5_confirmation_gain"), measure=measure, method="WARP")
    return difference(gains, "Anchored RLOO with credit by sentence", f"WARP at equal tokens {rest}", words)


def anchored_beats_warp(tables: Tables) -> Finding:
    """Does the chosen method dominate more than WARP at equal tokens, on seeds that it was not chosen on?"""
    return _anchored_against_warp(tables, "reward", "(hypervolume in reward, fresh seeds)")


def anchored_beats_warp_in_gold(tables: Tables) -> Finding:
    """And in the true reward?"""
    return _anchored_against_warp(tables, "gold", "in gold (fresh seeds)")


def no_single_change_moves_warp(tables: Tables) -> Finding:
    """Which single change of WARP moves its hypervolume in reward?"""
    none = "No single change of WARP moves its hypervolume in reward"
    some = "Single changes of WARP that move its hypervolume in reward (nats²)"
    return counted(rows_of(tables("5_causes"), measure="reward", base="WARP"), none, some, LEVEL["volume"])


def confirmation_is_at_equal_tokens(tables: Tables) -> Finding:
    """Did the compared methods see as many tokens?"""
    tokens = tables("5_confirmation").groupby("method").tokens.mean()
    ratio = tokens.max() / tokens.min()
    words = ("That comparison is at equal tokens:", "That comparison is not at equal tokens:")
    return plain(ratio, ratio <= 1.15, words, f"the most that a method saw are {ratio:.2f} times the fewest")


# Notebook 6


def _share(tables: Tables, row: pd.Series, name: str, least: float, kl: float = 0) -> Finding:
    at = f"KL {kl or compared_at(tables):g}"
    low, high = row[f"{at}_low"], row[f"{at}_high"]
    where = f"of the possible gain at a {at.replace('KL', 'KL of')}"
    text = f"{name} ({row.family}) gets {interval_text(row[at], low, high, 2)} {where}."
    return Finding(text, settled(low, high, least), row[at], low, high, row.seeds)


def _one_draw(tables: Tables) -> pd.Series:
    """The efficiencies of the family that comes nearest to the optimum with one draw."""
    table = shares(tables)
    return table[table.draws.isna()].iloc[0]


def best_with_many_draws(tables: Tables) -> Finding:
    """How near to the optimum does keeping one of several draws come?"""
    table = shares(tables)
    return _share(tables, table[table.draws.notna()].iloc[0], "Keeping one of several draws", 0.98)


def best_with_one_draw(tables: Tables) -> Finding:
    """How near does the best policy come that is used with one draw?"""
    return _share(tables, _one_draw(tables), "The best policy used with one draw", 0.9)


def one_draw_far_from_sft(tables: Tables) -> Finding:
    """And how near does the same one come at a KL of 2?"""
    row = _one_draw(tables)
    if np.isnan(row["KL 2"]):
        raise Unanswered(f"{row.family} does not reach it with every seed")
    return _share(tables, row, "The same policy", 0.9, kl=2)


def one_draw_at_warps_tokens(tables: Tables) -> Finding:
    """How near does RLOO in small steps come, with as many completions as WARP?"""
    row = rows_of(shares(tables), family="RLOO in small steps, WARP's tokens").iloc[0]
    return _share(tables, row, "With no more completions than WARP, the best way with one draw", 0.8)


def tuned_alike_none_beats_warp(tables: Tables) -> Finding:
    """Under the same tuning and the same budget, which method gains another share than WARP at the least KL?"""
    none = "Tuned alike, no method gains a measurably other share of the possible gain than WARP"
    some = "Tuned alike, methods that gain another share of the possible gain than WARP"
    return counted(tables("6_tuned_order"), none, some, LEVEL["share"])


def none_lies_above_the_optimum(tables: Tables) -> Finding:
    """Does any policy lie above the optimal frontier by more than noise explains?"""
    above, every = int(tables("6_above").above.sum()), len(tables("6_above"))
    if not every:
        raise Unanswered("no policy stands where the frontier is known")
    words = ("No policy lies above the optimal frontier", "Some policies lie above the optimal frontier")
    return plain(above, above == 0, words, f"by more than noise explains ({above} of {every})")


def reinforce_is_level_with_warp(tables: Tables) -> Finding:
    """Does one run, interpolated back, do as well as WARP at the same KL?"""
    rows = rows_of(tables("6_order"), against=family_of_warp(tables("4_warp")))
    row = rows_of(rows, family="REINFORCE, EMA anchor").iloc[0]
    holds = settled(row.low, row.high, -LEVEL["share"], LEVEL["share"])
    said = "is level with" if holds else "differs from" if clear(row.low, row.high) else "is not clear of"
    text = f"REINFORCE interpolated back {said} WARP in its share of the possible gain at a KL of {row.at_kl:g} "
    text += f"(difference): {interval_text(row.difference, row.low, row.high, 2)}."
    return Finding(text, holds, row.difference, row.low, row.high, row.seeds)


def reinforce_is_cheaper_than_warp(tables: Tables) -> Finding:
    """At which cost?"""
    tokens = tables("6_hypervolume").pivot(index="seed", columns="method", values="tokens")
    share = (tokens["REINFORCE, EMA anchor"] / tokens[family_of_warp(tables("4_warp"))]).dropna()
    words = ("REINFORCE takes a fraction of WARP's tokens:", "REINFORCE is not much cheaper than WARP:")
    return bounded(share, words, "{}", most=0.3)


def best_with_one_draw_beats_warp(tables: Tables) -> Finding:
    """Does the best policy used with one draw get more of the possible gain than WARP, at the same KL?"""
    warp = family_of_warp(tables("4_warp"))
    if _one_draw(tables).family == warp:
        return Finding("The best policy used with one draw is WARP's own.", False, 0.0)
    rows = rows_of(tables("6_order"), family=warp)
    words = ("gets more of the possible gain than", "gets less of it than", "does not measurably differ from")
    subject = f"The best policy used with one draw ({rows.against.iloc[0]})"
    return difference(turned(rows), subject, f"WARP at a KL of {rows.at_kl.iloc[0]:g} (difference in share)", words)


def proxy_loses_more_gold_than_optimisation(tables: Tables) -> Finding:
    """How much of the gold that the best policy used with one draw misses is lost by the proxy?"""
    family, kl = _one_draw(tables).family, compared_at(tables)
    parts = rows_of(tables("6_losses"), family=family, at_kl=kl).part
    part, low, high = seed_interval(parts)
    told = f"the proxy loses {interval_text(part, low, high, 2)} of it, optimisation the rest"
    if part > 1:
        told = f"the proxy's own optimum misses {interval_text(part, low, high, 2)} times as much: it keeps more gold"
    text = f"Of the gold that the best policy used with one draw ({family}) misses at a KL of {kl:g}, {told}."
    return Finding(text, settled(low, high, least=0.5), part, low, high, len(parts))


def order_in_gold_survives_the_cost_of_a_fault(tables: Tables) -> Finding:
    """Is the order of methods in gold another one if a fault costs 2 or 10 nats?"""
    ranks = tables("6_fault_costs").filter(like="rank, ")
    if len(ranks) < 3:
        raise Unanswered("fewer than three methods stand there")
    alike, moved = ranks.corr().min(axis=None), int((ranks.nunique(axis=1) > 1).sum())
    words = ("The order of methods in gold hardly hangs", "The order of methods in gold hangs")
    rest = f"on whether a fault costs 2, 5 or 10 nats: rank correlation {alike:.2f} at least"
    return plain(alike, alike >= 0.9, words, f"{rest}, {moved} of {len(ranks)} methods change their place")


def anchored_keeps_more_gold(tables: Tables) -> Finding:
    """Does anchored RLOO gain more gold for one of reward than the proxy's own optimum does?"""
    rows, both, kl = tables("6_rows"), ["reward", "gold"], compared_at(tables)
    start = rows_of(rows, family="sft").groupby("seed")[both].mean()
    swept = rows_of(rows, family="anchored RLOO, over β").set_index("seed")
    gains = swept[both] - start.reindex(swept.index)
    kept = {}
    for seed, frontier in rows_of(tables("6_frontier"), optimal_for="reward").groupby("seed"):
        reward, gold = (along_root_kl(kl, frontier.kl, frontier[name]) - frontier[name].iloc[0] for name in both)
        kept[seed] = gold / reward
    more = ((gains.gold / gains.reward).groupby("seed").min() - pd.Series(kept)).dropna()
    words = ("gains more gold than", "gains less gold than", "gains no measurably other gold than")
    rest = f"the proxy's own optimum at a KL of {kl:g}, for one of reward (difference)"
    return difference(over_seeds(more), "Anchored RLOO", rest, words)


def a_temperature_narrows_the_spread(tables: Tables) -> Finding:
    """Does one temperature for each reward model bring the seeds' optimal gains nearer to each other?"""
    kl = f"KL {compared_at(tables):g}"
    row = rows_of(tables("6_calibration"), quantity=f"optimal gain at {kl}").iloc[0]
    before, after, p = row["spread / mean"], row["spread / mean, divided"], row["p"]
    if np.isnan(p):
        raise Unanswered("fewer than three seeds have no spread to compare")
    holds = bool(after < before) if p < DIFFERENT else None
    words = {True: "nearer to each other", False: "further apart", None: "as far apart, as far as these seeds tell"}
    text = f"Calibrated rewards lie {words[holds]}: the seeds' optimal gains at {kl} spread by {after:.1%} of their "
    return Finding(f"{text}mean, in place of {before:.1%} (p = {p:.2f}).", holds, after / before)


CLAIMS: Mapping[str, tuple[Callable[[Tables], Finding], ...]] = {
    "0_primer": (implicit_reward_follows_the_reward,),
    "1_reward_model": (
        reward_model_against_words, reward_model_orders, reward_model_is_calibrated, all_pairs_order_more,
        sft_is_near_the_grammar,
    ),
    "2_dpo_losses": (
        losses_do_not_differ_at_equal_kl, dpo_raises_reward, dpo_raises_gold, losses_do_not_differ,
        twice_the_pairs_raise_reward, on_policy_gains_more, imitation_reaches_more_gold,
    ),
    "3_f_divergences": (divergences_gain_no_more, divergences_keep_no_more_diversity),
    "4_warp": (
        warp_raises_reward, warp_raises_gold, warp_of_the_task_raises_reward, longer_runs_buy_no_more,
        anchors_rates_do_not_differ,
    ),
    "5_improvements": (
        anchored_beats_warp, anchored_beats_warp_in_gold, confirmation_is_at_equal_tokens, no_single_change_moves_warp,
    ),
    "6_one_front": (
        best_with_many_draws, best_with_one_draw, one_draw_far_from_sft, one_draw_at_warps_tokens,
        tuned_alike_none_beats_warp, none_lies_above_the_optimum, reinforce_is_level_with_warp,
        reinforce_is_cheaper_than_warp, best_with_one_draw_beats_warp, proxy_loses_more_gold_than_optimisation,
        order_in_gold_survives_the_cost_of_a_fault, anchored_keeps_more_gold, a_temperature_narrows_the_spread,
    ),
}  # fmt: skip
