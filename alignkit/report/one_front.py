"""Notebook 6: the optimal frontier, every method's distance from it, and what each one costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import norm

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.frontier import (
    LEAST_KL,
    best_of_n,
    chance_of_best,
    efficiency,
    optimal_frontier,
    optimal_reward,
    resampled,
)
from alignkit.metrics import seed_interval
from alignkit.report.figures import AXES, GAINS, joined, legend_below, panels
from alignkit.report.looks import NEUTRAL, looks
from alignkit.report.policies import (
    EVALUATION,
    LOOPED,
    Policy,
    Runs,
    each_once,
    loop_settings,
    measured,
    shared,
    started,
)
from alignkit.report.tables import at_kl
from alignkit.report.towards import approach, steps_of, tilted
from alignkit.training.evaluate import evaluate
from alignkit.training.pool import Pool, PoolSettings, draw_pool
from alignkit.training.reinforce import train_policy_gradient
from alignkit.workflow.schema import OneFront
from alignkit.workflow.store import get

SWEPT = "anchored RLOO, over β"  # the method that is notebook 6's own
FOLLOWED = ("2_dpo_losses", "3_f_divergences", "4_warp", "5_improvements")
"""Notebooks whose policies are put on the front."""
SETTING = ("beta", "eta", "steps", "n")
"""What tells the policies of one family apart."""
Frontiers = Mapping[int, pd.DataFrame]  # the optimal one of each seed


def recipe(p: OneFront, seed: int) -> Runs:
    """Its own sweep and the pool; the other policies come from the tables of the other notebooks."""
    runs = started(p, seed)
    for policy in sweep(p, seed, runs):
        name = f"β={policy.settings['beta']:g}"
        runs |= {name: policy.trained[0], name + EVALUATION: policy.evaluation}
    approached = approach(p, seed, runs)
    drawing = [runs["sft"], *tilted(approached).values()]
    counts = (p.pool_reference, *[p.pool_trained] * (len(drawing) - 1))
    runs = each_once(runs, [pair for policy in approached for pair in steps_of(policy)])
    settings = PoolSettings(counts, p.prompts, p.new_tokens, p.reward_tokens)
    return runs | {"pool": get(draw_pool, settings, **shared(p, seed), policies=drawing, reward=runs["reward"])}


def sweep(p: OneFront, seed: int, runs: Runs) -> list[Policy]:
    """Anchored RLOO for each β, in the order of `front_betas`."""
    anchored = {"steps": p.front_steps, "baseline": "rloo", "k": p.main_samples, "anchor": "reference", "decay": True}
    common = {**shared(p, seed), "reference": runs["sft"], "reward": runs["reward"]}
    found = []
    for beta in p.front_betas:
        settings = loop_settings(p, **anchored, lr=p.anchored_lr, beta=beta)
        trained = get(train_policy_gradient, settings, **common, policy=runs["sft"], stream=[0, 0])
        record = get(evaluate, measured(p, main=True), **common, policy=trained)
        shown = {name: vars(settings)[name] for name in LOOPED}
        found.append(Policy(SWEPT, seed, record, True, SWEPT, (trained,), None, shown, {"steps": p.front_steps}))
    return found


# The frontier


def optimum(pool: Pool, betas: Sequence[float]) -> pd.DataFrame:
    """`optimal_frontier` from all policies' completions by the balance heuristic, with gold where it is known."""
    return optimal_frontier(pool.reward, betas, pool.log_weights(), pool.gold)


def frontier_error(pool: Pool, betas: Sequence[float], kls: Sequence[float], groups: int = 10) -> dict[float, float]:
    """Standard error of the frontier's reward at given KLs, by the delete-a-group jackknife over the pool's draws.

    A KL that the frontier does not reach without one of the groups has no entry.
    """
    parts = [optimum(pool.without(group, groups), betas) for group in range(groups)]
    found = [[optimal_reward(kl, table) for kl in kls] for table in parts]
    errors = np.sqrt((groups - 1) * np.var(found, axis=0))
    return {kl: float(error) for kl, error in zip(kls, errors, strict=True) if np.isfinite(error)}


def ceiling(frontier: pd.DataFrame, kl: float) -> float:
    """What no policy of this KL exceeds: the lowest tangent of the frontier there.

    max_π E[r] - β KL is reached by π*_β, so E_π[r] <= r_β + β (KL(π) - KL_β) for every policy and every β.
    """
    known = frontier[np.isfinite(frontier.beta)].dropna(subset=["kl", "reward"])
    return float((known.reward + known.beta * (kl - known.kl)).min())


def frontier_gains(frontiers: Frontiers, kls: np.ndarray) -> pd.DataFrame:
    """The optimal gain in reward over SFT at given KLs, mean over seeds, and gold's along the same policies."""
    out = {"kl": kls}
    for column in ("reward", "gold"):
        if all(column in table for table in frontiers.values()):
            curves = [[optimal_reward(kl, t, column) - t[column].iloc[0] for kl in kls] for t in frontiers.values()]
            out[column] = np.mean(curves, axis=0)
    return pd.DataFrame(out)


# Every method


def tables(profile: str, notebooks: Sequence[str]) -> pd.DataFrame:
    """The tables of other notebooks in one: those just made, or those that are published.

    Raises UserFault if one is missing, or has no families (an older version wrote it).
    """
    found = []
    places = [paths.figures(profile), (paths.CHECKOUT or paths.PACKAGE) / "figures" / profile]
    for name in notebooks:
        files = [place / f"{name}.csv" for place in places]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise UserFault(f"{files[0]}: missing; notebook {name} writes it, execute that one first")
        table = pd.read_csv(file)
        if "family" not in table:
            raise UserFault(f"{file}: has no column family; execute notebook {name} again")
        found.append(table.assign(notebook=name))
    return pd.concat(found, ignore_index=True)


def of_other_runs(table: pd.DataFrame, own: pd.DataFrame) -> list[str]:
    """The notebooks whose rows in `table` start from another supervised policy than those of `own`, or measured it
    with other code: tables of an earlier run, or of other data."""
    start = table[(table.method == "sft") & table.seed.isin(own.seed)]
    return sorted(start[~start.run.isin(set(own[own.method == "sft"].run))].notebook.unique())


def efficiencies(table: pd.DataFrame, frontiers: Frontiers) -> pd.DataFrame:
    """Rows with their efficiency, the frontier's reward at their KL and what they miss, each by its own seed."""
    kept = table[table.seed.isin(list(frontiers)) & (table.status == "ok")].copy()
    kept["optimal"] = [optimal_reward(r.kl, frontiers[r.seed]) for r in kept.itertuples()]
    kept["efficiency"] = [efficiency(r.kl, r.reward, frontiers[r.seed]) for r in kept.itertuples()]
    return kept


def at_matched_kl(table: pd.DataFrame, frontiers: Frontiers, kls: Sequence[float]) -> pd.DataFrame:
    """Efficiency of each family's front at given KLs, seed by seed (`tables.at_kl`); NaN beyond its reach.

    A column draws, of families that keep one of several, goes along.
    """
    columns = [c for c in ("reward", "gold") if c in table]
    found = at_kl(table[table.seed.isin(list(frontiers))], sorted(set(kls)), columns)
    values = [efficiency(r.at_kl, r.reward, frontiers[r.seed]) for r in found.itertuples()]
    draws = table.groupby("family").draws.first() if "draws" in table else pd.Series(dtype=float)
    return found.assign(efficiency=values, draws=found.family.map(draws), status="ok")


def above(
    table: pd.DataFrame, spreads: Mapping[int, float], errors: Mapping[int, Mapping[float, float]]
) -> pd.DataFrame:
    """Each row's excess over the frontier, its standard error, and the simultaneous 95 % bound (Bonferroni).

    `table` is one of `efficiencies` with columns completions and prompts; `spreads` (of `spread`) and `errors` (of
    `frontier_error`, level beyond their last KL) are by seed.  The KL's own noise is left out: near the optimum it
    makes reward and KL err together along the frontier.
    """
    seeds = [seed for seed, error in errors.items() if error]
    known = table[table.optimal.notna() & (table.kl >= LEAST_KL) & table.seed.isin(seeds)]
    z = norm.ppf(1 - 0.05 / max(1, len(known)))
    own = known.seed.map(spreads) / np.sqrt(known.completions * known.prompts)
    other = [np.interp(r.kl, list(errors[r.seed]), list(errors[r.seed].values())) for r in known.itertuples()]
    error = np.hypot(own, other)
    excess = known.reward - known.optimal
    return known.assign(excess=excess, error=error, bound=z * error, above=excess > z * error)


def spread(pool: Pool) -> float:
    """Standard deviation of the reward within a prompt, the largest among the pool's policies."""
    each = [pool.of(i).reward.var(axis=1, ddof=1).mean() for i in range(len(pool.log_probs))]
    return float(np.sqrt(max(each)))


# Several draws, one kept


def resampling_rows(
    pools: Mapping[int, Pool], names: Mapping[int, str], ns: Sequence[int], betas: Sequence[float]
) -> pd.DataFrame:
    """`resampled` for the draws of some of a pool's policies (position -> name), each n and seed."""
    out = []
    for seed, drawn in pools.items():
        for position, name in names.items():
            own = drawn.of(position)
            ratios = own.log_probs[position] - own.log_probs[0]
            for n in ns:
                rows = resampled(own.reward, ratios, n, betas, own.gold, seed=seed)
                out.append(rows.assign(seed=seed, family=f"{name}, one of {n}", draws=n, status="ok"))
    return pd.concat(out, ignore_index=True)


def held_out_shares(
    pools: Mapping[int, Pool], position: int, n: int, betas: Sequence[float], grid: Sequence[float], kl: float
) -> list[float]:
    """Efficiency at one KL of keeping one of n, with method and frontier from different halves of the pool's draws.

    One for each seed, the mean of both ways round; elsewhere both come from the same draws.  `betas` are those of the
    method, `grid` those of the frontier.
    """

    def share(own: Pool, other: Pool) -> float:
        rows = resampling_rows({0: own}, {position: ""}, [n], betas)
        return at_matched_kl(rows, {0: optimum(other, grid)}, [kl]).efficiency.item()

    halves = [(drawn.without(0, 2), drawn.without(1, 2)) for drawn in pools.values()]
    return [(share(one, two) + share(two, one)) / 2 for one, two in halves]


def best_of_pool(pools: Mapping[int, Pool], ns: Sequence[int]) -> pd.DataFrame:
    """Best of n of the reference's draws for each seed: kl (the bound log n - (n-1)/n), reward and gold."""
    out = []
    for seed, drawn in pools.items():
        own = drawn.of(0)
        rows = best_of_n(own.reward, ns).rename(columns={"kl_bound": "kl"})
        if own.gold is not None:
            gold = np.take_along_axis(own.gold, own.reward.argsort(axis=1), axis=1).mean(axis=0)
            rows = rows.assign(gold=[gold @ chance_of_best(len(gold), n) for n in ns])
        out.append(rows.assign(seed=seed, family="best of n", draws=max(ns), status="ok"))
    return pd.concat(out, ignore_index=True)


def setting_means(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Means over seeds for each setting of each family, by KL, and 95 % t intervals: <column>_low, <column>_high."""
    groups = table.groupby(["family", *(name for name in SETTING if name in table)], sort=False, dropna=False)
    means = groups[["kl", *columns]].mean()
    for column in columns:
        ends = groups[column].agg(seed_interval)
        means[f"{column}_low"], means[f"{column}_high"] = ends.str[1], ends.str[2]
    return means.reset_index().sort_values("kl")


# Figures


def one_front(
    means: pd.DataFrame, optimum: pd.DataFrame, families: Sequence[str], most_kl: float, best_of: pd.DataFrame
) -> Figure:
    """Families on the planes of KL and gain in reward, and in gold, below the optimal frontier.

    `means` are `setting_means` of gains over SFT, `optimum` and `best_of` have columns kl and the same gains.
    """
    ys = [y for y in GAINS if y in optimum and y in means and means[y].notna().any()]
    figure, axes = panels(len(ys), 5.4)
    drawn = looks([name for name in families if (means.family == name).any()])
    for axis, y in zip(axes, ys, strict=True):
        axis.plot(optimum.kl, optimum[y], color="black", linewidth=2.4, label="optimal policies")
        near = best_of[best_of.kl <= most_kl]
        axis.plot(near.kl, near[y], color=NEUTRAL, linestyle="--", linewidth=1.6, label="best of n (KL bound)")
        for name, seen in drawn.items():
            joined(axis, means[means.family == name], y, name, seen)
        most = means[(means.kl <= most_kl) & means.family.isin(families)][y].max()
        axis.set(xlabel=AXES["kl"], ylabel=GAINS[y], xlim=(0, most_kl), ylim=(0, 1.05 * max(most, optimum[y].max())))
    legend_below(figure)
    return figure
