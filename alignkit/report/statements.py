"""What the report claims: each function reads from the tables whether the sentence of its docstring holds.

`python -m alignkit verify` asks them all of a regenerated report.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

Tables = Callable[[str], pd.DataFrame]
"""A table of one profile by its name, such as 2_gain; raises Unanswered if the report has none of that name."""


class Unanswered(Exception):
    """This report cannot say: a table or a row is not in it, or it has a single seed and so no interval."""


class Answer(NamedTuple):
    """Whether a statement holds, and the numbers that say so."""

    holds: bool
    value: str


def rows_of(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows with these values; raises Unanswered if there are none."""
    kept = table[(table[list(where)] == list(where.values())).all(axis=1)]
    if kept.empty:
        raise Unanswered("no row with " + ", ".join(f"{column} {value}" for column, value in where.items()))
    return kept


def mean(table: pd.DataFrame, method: str, column: str) -> float:
    """A method's mean over its rows."""
    return float(rows_of(table, method=method)[column].mean())


def gold_per_reward(tables: Tables) -> float:
    """Of the policy that is optimal for the proxy, at a KL of 2."""
    optimum = rows_of(tables("6_frontier_gains"), kl=2)
    return float((optimum.gold / optimum.reward).iloc[0])


def family_of_warp(table: pd.DataFrame) -> str:
    """What notebook 6 calls WARP as published, from the table of notebook 4."""
    return rows_of(table, method="WARP").family.dropna().iloc[0]


def clear_of_zero(gains: pd.DataFrame) -> Answer:
    """Whether every difference lies above zero with its whole interval (columns difference, low, high)."""
    if gains.low.isna().any():
        raise Unanswered("one seed has no interval")
    told = [f"{row.difference:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in gains.itertuples()]
    return Answer(bool((gains.low > 0).all()), ", ".join(told))


def bounded(value: float, least: float = -np.inf, most: float = np.inf) -> Answer:
    """Whether a number reaches a bound, and stays within another."""
    return Answer(bool(least <= value <= most), f"{value:.3f}")


# The statements: a function's name is the id of its sentence


def reward_model_orders(tables: Tables) -> Answer:
    """The reward model's pairwise accuracy is at least 0.98 of the exact posterior's."""
    mine, best = (mean(tables("1_reward_model"), name, "pairwise_accuracy") for name in ("reward", "exact posterior"))
    return bounded(mine / best, least=0.98)


def reward_model_is_calibrated(tables: Tables) -> Answer:
    """The reward model's calibration error is at most 0.05."""
    return bounded(mean(tables("1_reward_model"), "reward", "ece"), most=0.05)


def sft_is_near_the_grammar(tables: Tables) -> Answer:
    """The supervised policy's cross-entropy is at most 1.05 of the grammar's entropy, for every seed."""
    return bounded(tables("1_sft").ratio.max(), most=1.05)


def all_pairs_are_not_worse(tables: Tables) -> Answer:
    """All pairs order at least as well as plain pairs of the same reviews, on average over seeds."""
    return bounded(tables("1_all_pairs_gain").pairwise_accuracy.mean(), least=0)


def imdb_reward_model_orders(tables: Tables) -> Answer:
    """The reward model of real reviews orders at least 0.95 of the pairs."""
    return bounded(mean(tables("1_reward_model"), "reward", "pairwise_accuracy"), least=0.95)


def imdb_reward_model_has_the_signs(tables: Tables) -> Answer:
    """The reward model of real reviews gets at least 0.87 of the signs."""
    return bounded(mean(tables("1_reward_model"), "reward", "sign_accuracy"), least=0.87)


def dpo_raises_reward(tables: Tables) -> Answer:
    """DPO raises the reward over SFT, with an interval clear of zero."""
    return clear_of_zero(rows_of(tables("2_gain"), method="sigmoid", measure="reward"))


def dpo_raises_gold(tables: Tables) -> Answer:
    """DPO raises gold over SFT, with an interval clear of zero."""
    return clear_of_zero(rows_of(tables("2_gain"), method="sigmoid", measure="gold"))


def warp_raises_reward(tables: Tables) -> Answer:
    """WARP raises the reward over SFT at both of its main points, with intervals clear of zero."""
    return clear_of_zero(rows_of(tables("4_gain"), measure="reward"))


def warps_time_is_accounted_for(tables: Tables) -> Answer:
    """Generation, scoring and updates take at least 0.8 of WARP's time, for every seed."""
    table = tables("4_timings_of_warp")
    return bounded((table[["generation", "scoring", "update"]].sum(axis=1) / table.total).min(), least=0.8)


def anchored_beats_warp(tables: Tables) -> Answer:
    """Anchored RLOO dominates more than WARP and WARP + RLOO, in reward and gold, on seeds not chosen on."""
    return clear_of_zero(tables("5_confirmation_gain"))


def confirmation_is_at_equal_tokens(tables: Tables) -> Answer:
    """No method of that comparison generated more than 1.15 of the tokens of another."""
    tokens = tables("5_confirmation").groupby("method").tokens.mean()
    return bounded(tokens.max() / tokens.min(), most=1.15)


def best_is_near_the_optimum(tables: Tables) -> Answer:
    """The best policy with every seed has at least 0.98 of the optimal gain at a KL of 1, and at a KL of 2."""
    table = tables("6_efficiency")
    return bounded(table[table.seeds == table.seeds.max()][["KL 1", "KL 2"]].max().min(), least=0.98)


def none_lies_above_the_optimum(tables: Tables) -> Answer:
    """No policy lies above the optimal frontier by more than noise explains."""
    table = tables("6_above")
    return Answer(not table.above.any(), f"{table.above.sum()} of {len(table)}")


def reinforce_is_level_with_warp(tables: Tables) -> Answer:
    """REINFORCE interpolated back has WARP's share of the optimal gain to 0.03, at KLs of 0.5, 1 and 2."""
    table, kls = tables("6_efficiency"), ["KL 0.5", "KL 1", "KL 2"]
    warps = rows_of(table, family=family_of_warp(tables("4_warp")))[kls].iloc[0]
    own = rows_of(table, family="REINFORCE, EMA anchor")[kls].iloc[0]
    return bounded((own - warps).abs().max(), most=0.03)


def reinforce_is_cheaper_than_warp(tables: Tables) -> Answer:
    """REINFORCE takes less than 0.25 of WARP's tokens."""
    table = tables("6_hypervolume")
    warps = mean(table, family_of_warp(tables("4_warp")), "tokens")
    return bounded(mean(table, "REINFORCE, EMA anchor", "tokens") / warps, most=0.25)


def proxys_optimum_keeps_gold(tables: Tables) -> Answer:
    """The proxy's optimum at a KL of 2 gains 0.70 ± 0.02 of gold for one of reward."""
    return bounded(gold_per_reward(tables), least=0.68, most=0.72)


def anchored_keeps_more_gold(tables: Tables) -> Answer:
    """Anchored RLOO, at every β, gains more gold for one of reward than the proxy's optimum does."""
    swept = rows_of(tables("6_settings"), family="anchored RLOO, over β")
    least, kept = (swept.gold / swept.reward).min(), gold_per_reward(tables)
    return Answer(bool(least > kept), f"{least:.3f} and {kept:.3f}")


STATEMENTS: dict[str, dict[str, list[Callable[[Tables], Answer]]]] = {
    "pocket": {
        "1_reward_model": [
            reward_model_orders, reward_model_is_calibrated, sft_is_near_the_grammar, all_pairs_are_not_worse,
        ],
        "2_dpo_losses": [dpo_raises_reward, dpo_raises_gold],
        "4_warp": [warp_raises_reward, warps_time_is_accounted_for],
        "5_improvements": [anchored_beats_warp, confirmation_is_at_equal_tokens],
        "6_one_front": [
            best_is_near_the_optimum, none_lies_above_the_optimum, reinforce_is_level_with_warp,
            reinforce_is_cheaper_than_warp, proxys_optimum_keeps_gold, anchored_keeps_more_gold,
        ],
    },
    "imdb_scratch": {"1_reward_model": [imdb_reward_model_orders, imdb_reward_model_has_the_signs]},
}  # fmt: skip
"""By profile and notebook; each raises Unanswered where the tables do not say."""
