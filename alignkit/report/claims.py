"""What the report claims, notebook by notebook.

A claim is a function of the report's tables.  Its name is its id, its docstring what it asks; it returns the sentence
that these tables allow, the number behind it with its interval, and whether the claim that its name makes holds.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from alignkit.report import claims_of_front
from alignkit.report.statements import (
    Finding,
    Tables,
    Unanswered,
    all_level,
    difference,
    family_of_warp,
    in_bounds,
    more_or_less,
    of_one_number,
    over_seeds,
    rows_of,
)
from alignkit.report.tables import at_kl, gains_over_sft

# Notebook 0


def implicit_reward_follows_the_reward(tables: Tables) -> Finding:
    """Does the reward that DPO implies agree with the reward model on held-out pairs?"""
    found = over_seeds(tables("0_agreement")["correlation of differences"])
    words = ("rises with", "falls with", "has no measurable relation to")
    rest = "the reward model's on held-out pairs (correlation of differences within a pair)"
    return difference(found, "The reward that DPO implies", rest, words)


def losses_end_in_the_optimum(tables: Tables) -> Finding:
    """Does DPO's loss have the optimal policy as its minimum, under every divergence that the condition allows?"""
    furthest = tables("0_minimum").groupby("divergence").distance.max()
    words = ("DPO's loss is least at the optimal policy", "DPO's loss is not always least at the optimal policy")
    rest = f"where responses are listed, under {len(furthest)} divergences (total variation up to {furthest.max():.0e})"
    return of_one_number(furthest.max(), furthest.max() < 1e-3, words, rest)


# Notebook 1


def reward_model_against_words(tables: Tables) -> Finding:
    """Does the reward model order as many pairs as counts of words and word pairs, or at most 0.01 fewer?"""
    table = tables("1_reward_model")
    own, theirs = (rows_of(table, method=m).pairwise_accuracy for m in ("reward", "tfidf_word_pairs"))
    said = f"Of pairs of a positive and a negative review TF-IDF with word pairs orders {theirs.iloc[0]:.3f} rightly"
    words = (f"{said}, the reward model at most 0.01 fewer:", f"{said}, the reward model more than 0.01 fewer:")
    return in_bounds(own, words, "{}", least=theirs.iloc[0] - 0.01, digits=3)


def reward_model_orders(tables: Tables) -> Finding:
    """How near is the reward model to the exact posterior, which nobody can beat?"""
    mine, best = (rows_of(tables("1_reward_model"), method=m).pairwise_accuracy for m in ("reward", "exact posterior"))
    words = ("The reward model is near the best possible order:", "The reward model is far from the best order:")
    return in_bounds(mine / best.mean(), words, "{} of the exact posterior's pairwise accuracy", least=0.98, digits=3)


def reward_model_is_calibrated(tables: Tables) -> Finding:
    """Can its probabilities be believed?"""
    error = rows_of(tables("1_reward_model"), method="reward").ece
    words = ("Its probabilities are right to within 0.05", "Its probabilities are off by more than 0.05")
    return in_bounds(error, words, "in the mean: calibration error {}", most=0.05, digits=3)


def all_pairs_order_more(tables: Tables) -> Finding:
    """Do all pairs of a batch teach more than one partner for each review?"""
    words = ("orders more pairs than", "orders fewer pairs than", "orders not measurably more or fewer pairs than")
    found = over_seeds(tables("1_all_pairs_gain").pairwise_accuracy)
    rest = "training on plain pairs of the same reviews (difference in pairwise accuracy)"
    return difference(found, "Training on all pairs of a batch", rest, words, digits=3)


def sft_is_near_the_grammar(tables: Tables) -> Finding:
    """How near is the supervised policy to the grammar that wrote the reviews?"""
    ratio = tables("1_sft").ratio
    words = ("The supervised policy is near the grammar:", "The supervised policy is far from the grammar:")
    return in_bounds(ratio, words, "its cross-entropy is {} times the grammar's entropy", most=1.05, digits=3)


# Notebooks 2 and 3


def losses_do_not_differ_at_equal_kl(tables: Tables) -> Finding:
    """Which loss differs in reward from the sigmoid loss, at the same KL?"""
    others = tables("2_matched").family.nunique()
    none = f"None of {others} other losses differs measurably in reward from DPO's at the same KL"
    some = "Losses that differ in reward from DPO's at the same KL"
    rows = rows_of(tables("2_matched"), measure="reward")
    return all_level(rows, none, some, "reward", gain=_gained(tables("2_dpo_losses"), rows, "DPO, sigmoid loss"))


def _gained(placed: pd.DataFrame, rows: pd.DataFrame, base: str | pd.Series) -> np.ndarray:
    """What the families that rows are compared with, `base`, gain in reward over SFT at each row's KL, (rows,), by the
    policies of `placed`; mean over seeds."""
    wanted = pd.MultiIndex.from_frame(rows.assign(base=base)[["base", "at_kl"]])
    own = placed[placed.family.isin({"sft", *wanted.levels[0]})]
    of_each = own.groupby([own.method, own.get("eta", own.method)], dropna=False).seed
    own = own[of_each.transform("nunique") == own.seed.nunique()]
    means = at_kl(gains_over_sft(own), wanted.levels[1], ["reward"]).groupby(["family", "at_kl"]).reward.mean()
    return means.reindex(wanted).to_numpy()


def _over_sft(gains: pd.DataFrame, subject: str, measure: str, kl: float) -> Finding:
    """That a policy's gain over SFT in reward or gold is above zero; told with its KL."""
    rest = f"the {measure.replace('gold', 'gold reward')} over SFT, at a mean KL of {kl:.2f} nats"
    return difference(rows_of(gains, measure=measure), subject, rest)


def _of_dpo(tables: Tables, measure: str) -> Finding:
    kl = rows_of(tables("2_dpo_losses"), method="sigmoid", row="main", status="ok").kl.mean()
    return _over_sft(rows_of(tables("2_gain"), method="sigmoid"), "DPO", measure, kl)


def dpo_raises_reward(tables: Tables) -> Finding:
    """Does DPO raise the reward that it never saw?"""
    return _of_dpo(tables, "reward")


def dpo_raises_gold(tables: Tables) -> Finding:
    """Does it raise the true reward?"""
    return _of_dpo(tables, "gold")


def losses_do_not_differ(tables: Tables) -> Finding:
    """Which loss ends at a reward that differs from the sigmoid loss's, each at the KL where it stops?"""
    none = "No other loss ends at a reward that differs measurably from the sigmoid loss's"
    some = "Losses that end at a reward that differs from the sigmoid loss's, each at its own KL"
    gained = rows_of(tables("2_gain"), method="sigmoid", measure="reward").difference.iloc[0]
    return all_level(rows_of(tables("2_against_sigmoid"), measure="reward"), none, some, "reward", gain=gained)


def _more(table: pd.DataFrame, subject: str, rest: str, of: str = "reward", kl: str = "KL") -> Finding:
    """That a policy has more of a measure than another at the largest KL of both, by their differences at equal KLs;
    those at smaller ones are told beside it."""
    rows = rows_of(table, measure=of).sort_values("at_kl")
    smaller = ", ".join(f"at {kl} {row.at_kl:g} {row.difference:+z.2f}" for row in rows[:-1].itertuples())
    at = f"{kl} {rows.at_kl.iloc[-1]:g}" + (f" ({smaller})" if smaller else "")
    return difference(rows[-1:], subject, f"{rest}, at {at}", more_or_less("gains", of))


def a_larger_beta_keeps_more_gold(tables: Tables) -> Finding:
    """Does DPO have more gold with the usual β than with the smallest, with which it drifts further?"""
    rows = rows_of(tables("2_dpo_losses"), family="DPO, sigmoid loss", row="main", status="ok")
    usual, least = rows_of(rows, method="sigmoid"), rows[rows.beta == rows.beta.min()]
    if (least.method == "sigmoid").any():
        raise Unanswered("the usual β is the smallest")
    more = over_seeds((usual.set_index("seed").gold - least.set_index("seed").gold).dropna())
    subject = f"DPO with β = {usual.beta.iloc[0]:g}, which ends at a mean KL of {usual.kl.mean():.2f},"
    rest = f"with β = {least.beta.iloc[0]:g}, at {least.kl.mean():.2f} (difference)"
    return difference(more, subject, rest, more_or_less("has", "gold"))


def more_pairs_raise_gold(tables: Tables) -> Finding:
    """Do the pairs of all prompts in place of those of an eighth raise the gold, at as many steps?"""
    return _on_all_pairs(tables, "gold", 0.125)


def twice_the_pairs_raise_reward(tables: Tables) -> Finding:
    """Do the pairs of twice the prompts raise the reward, at as many steps?"""
    return _on_all_pairs(tables, "reward", 0.5)


def _on_all_pairs(tables: Tables, measure: str, share: float) -> Finding:
    """That DPO on the pairs of all prompts has more of a measure than on those of a share of them."""
    gains, kl = (rows_of(tables("2_size_gain"), measure=name, share=share) for name in (measure, "kl"))
    subject = f"DPO on all pairs instead of those of {100 * share:g} % of the prompts, at as many steps,"
    rest = f"the {measure.replace('gold', 'gold reward')} (and moves the KL by {kl.difference.iloc[0]:+.2f} nats)"
    return difference(gains, subject, rest)


def on_policy_gains_more(tables: Tables) -> Finding:
    """Does DPO gain more reward if its pairs are drawn anew from the current policy, at the largest KL of both?"""
    rows = rows_of(tables("2_beyond"), family="DPO, on-policy")
    return _more(rows, "DPO on pairs of the current policy", "off-policy DPO with as many completions and steps")


def imitation_reaches_more_gold(tables: Tables) -> Finding:
    """Does fine-tuning on positive reviews gain more gold than DPO, at the largest KL of both?"""
    rows = rows_of(tables("2_beyond"), family="fine-tuning on positive reviews")
    return _more(rows, "Fine-tuning on positive reviews", "DPO", of="gold")


def _gains_no_more(table: pd.DataFrame, placed: pd.DataFrame, under: str = "") -> Finding:
    """That no divergence has more reward than reverse KL at equal KL, by its differences; names those with less."""
    rows = rows_of(table, measure="reward")
    base = rows.family.str.rpartition(", ")[0] + ", reverse_kl"
    none = f"{_none_of(rows)} gains measurably more reward than reverse KL at the same KL{under}"
    some = f"Divergences that gain more reward than reverse KL at the same KL{under}"
    less, gained = ("Measurably less", rows[rows.difference < 0]), _gained(placed, rows, base)
    return all_level(rows, none, some, "reward", above=True, also=less, gain=gained)


def _none_of(rows: pd.DataFrame) -> str:
    """The words for none of the divergences of a table of differences, which the last part of a family's name tells."""
    return f"No divergence among {', '.join(sorted(rows.family.str.split(', ').str[-1].unique()))}"


def divergences_gain_no_more(tables: Tables) -> Finding:
    """Which divergence gains more reward than reverse KL, at the same KL?"""
    return _gains_no_more(tables("3_matched"), tables("3_f_divergences"), ", rate and length of training")


def divergences_keep_no_more_diversity(tables: Tables) -> Finding:
    """Which divergence differs from reverse KL in the entropy of words, at the same KL?"""
    rows = rows_of(tables("3_matched"), measure="unigram_entropy")
    none = f"{_none_of(rows)} differs measurably from reverse KL in the entropy of words at the same KL"
    some = "Divergences that differ from reverse KL in the entropy of words at the same KL"
    return all_level(rows, none, some, "entropy")


# Notebook 4


def _interpolated(tables: Tables, begins: str, measure: str, subject: str = "{}") -> Finding:
    """The gain of 4_gain's first policy whose name begins so, with the smallest η; in `subject`, {} is its name."""
    gains = tables("4_gain")
    first = next((name for name in gains.policy if name.startswith(begins)), begins)
    rows = rows_of(gains, policy=first)
    return _over_sft(rows, subject.format(first), measure, rows_of(rows, measure="kl").difference.iloc[0])


def warp_raises_reward(tables: Tables) -> Finding:
    """Does WARP raise the reward, halfway back to SFT?"""
    return _interpolated(tables, "WARP, η", "reward")


def warp_raises_gold(tables: Tables) -> Finding:
    """Does it raise the true reward?"""
    return _interpolated(tables, "WARP, η", "gold")


def warp_of_the_task_raises_reward(tables: Tables) -> Finding:
    """Does WARP raise the reward with as many steps as the task names?"""
    return _interpolated(tables, "WARP, T=", "reward", "The task's own setting ({})")


def longer_runs_buy_no_more(tables: Tables) -> Finding:
    """Do runs with the task's steps, of which there are more, differ in reward at the same KL?"""
    table = tables("4_task_matched")
    rows = rows_of(table, measure="reward")
    task, own = rows.family.iloc[0], family_of_warp(tables("4_warp"))
    gained = _gained(tables("4_warp"), rows, own)
    none = f"At no KL does {task} (the task's steps) differ measurably in reward from {own}"
    some = f"Where {task} (the task's steps) differs in reward from {own}"
    return all_level(rows, none, some, "reward", also=("In gold it does", table[table.measure == "gold"]), gain=gained)


def anchors_rates_do_not_differ(tables: Tables) -> Finding:
    """With which other rate of the anchor does WARP differ in reward at the same KL?"""
    rows, warp = rows_of(tables("4_mu_matched"), measure="reward"), tables("4_warp")
    none = f"At no KL does WARP with an anchor of {' or '.join(rows.family.unique())} differ measurably in reward"
    some = "Rates of the anchor with which WARP differs in reward at the same KL"
    return all_level(rows, none, some, "reward", gain=_gained(warp, rows, family_of_warp(warp)))


def merged_runs_gain_more(tables: Tables) -> Finding:
    """Does a merge of runs have more reward than one of them, both interpolated back to the same KL?"""
    runs = rows_of(tables("4_warp"), method="WARP").runs.max()
    rest = f"one run of that length, with {runs:.0f} times its tokens"
    return _more(tables("4_runs_matched"), "The merge of WARP's first runs", rest)


def another_iteration_gains_more(tables: Tables) -> Finding:
    """Does WARP have more reward after its last iteration than after its first, both interpolated back to one KL?"""
    last = rows_of(tables("4_iterations_matched"), family=f"WARP, iteration {tables('4_warp').iteration.max():.0f}")
    return _more(last, "WARP after its last iteration", "WARP after its first")


def going_back_gains_more(tables: Tables) -> Finding:
    """Does a run interpolated back to SFT have more reward than at an earlier step, at the KL that it had there?"""
    rest = "the same run stopped earlier"  # at the last step before its end, where both ways meet
    return _more(tables("4_back_matched"), "REINFORCE interpolated back to SFT", rest, kl="a mean KL of")


# Notebook 5


def _anchored_against_warp(tables: Tables, measure: str) -> Finding:
    gains = rows_of(tables("5_confirmation_gain"), measure=measure, method="WARP")
    tokens = tables("5_confirmation").groupby("method").tokens.mean()
    if (factor := tokens.max() / tokens.min()) > 1.15:
        raise Unanswered(f"the most tokens that a method saw are {factor:.2f} times the fewest")
    alike = f"WARP at equal tokens (to a factor of {factor:.2f}) up to the KL that both reach"
    rest = f"{alike}, in {measure}, on seeds that it was not chosen on (nats²)"
    return difference(gains, "Anchored RLOO with credit by sentence", rest, more_or_less("has", "hypervolume"))


def anchored_beats_warp(tables: Tables) -> Finding:
    """Has the chosen method a larger hypervolume than WARP at equal tokens, on seeds that it was not chosen on?"""
    return _anchored_against_warp(tables, "reward")


def anchored_beats_warp_in_gold(tables: Tables) -> Finding:
    """And in the true reward?"""
    return _anchored_against_warp(tables, "gold")


def no_single_change_moves_warp(tables: Tables) -> Finding:
    """Which single change of WARP moves its hypervolume in reward?"""
    changes = rows_of(tables("5_causes"), base="WARP")
    none = "No single change of WARP moves its hypervolume in reward, up to the KL that both reach"
    some = "Single changes of WARP that move its hypervolume in reward, up to the KL that both reach (nats²)"
    reward, gold = (changes[changes.measure == name] for name in ("reward", "gold"))
    return all_level(reward, none, some, "volume", also=("In gold these do", gold))


def _distilled(tables: Tables, measure: str) -> Finding:
    gains = gains_over_sft(tables("5_improvements")).set_index("seed")
    rows = rows_of(gains, method="distilled draws", eta=1, status="ok")
    gain = over_seeds(rows[measure]).assign(measure=measure)
    return _over_sft(gain, "Distilling the supervised policy's weighted draws", measure, rows.kl.mean())


def distilling_raises_reward(tables: Tables) -> Finding:
    """Does the supervised policy, fine-tuned on its own draws, resampled by their reward, have more reward?"""
    return _distilled(tables, "reward")


def distilling_raises_gold(tables: Tables) -> Finding:
    """And more of the true reward?"""
    return _distilled(tables, "gold")


def ipo_and_kto_gain_no_more(tables: Tables) -> Finding:
    """Under which divergence do IPO and KTO gain more reward than under reverse KL, at the same KL?"""
    return _gains_no_more(tables("5_losses_against"), tables("5_improvements"), " with the losses of IPO and KTO")


Claim = Callable[[Tables], Finding]
NAMES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BY_NAME = vars(claims_of_front) | globals()
CLAIMS: dict[str, list[Claim]] = {notebook: [BY_NAME[name] for name in names] for notebook, names in NAMES.items()}
"""The claims that each notebook opens with, in the order of claims.yaml."""
