"""The tables of notebook 6: the optimal frontier, every method's distance from it, and what each one costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.frontier import (
    LEAST_KL,
    best_of_n,
    chance_of_best,
    efficiency,
    fit,
    optimal_frontier,
    optimal_reward,
    resampled,
)
from alignkit.metrics import seed_interval
from alignkit.report.dpo_report import at_kl, families
from alignkit.report.improvements_recipe import ANCHORED
from alignkit.training.pool import Pool
from alignkit.workflow.schema import OneFront
from alignkit.workflow.store import Run

SWEPT = "anchored RLOO, over β"
"""The method that is notebook 6's own."""

Frontiers = Mapping[int, pd.DataFrame]
"""The optimal frontier of each seed."""


def optimum(pool: Pool, betas: Sequence[float]) -> pd.DataFrame:
    """`optimal_frontier` from all policies' completions by the balance heuristic, and the gold of the same optima.

    Columns beta, kl, reward, ess, gold: what the truth is along the policies that are optimal for the proxy.
    """
    log_weights = pool.log_weights()
    table = optimal_frontier(pool.reward, betas, log_weights)
    if pool.gold is None:
        return table
    gold = []
    for beta in table.beta:
        log_w = log_weights + pool.reward / beta
        weights = np.exp(log_w - log_w.max(axis=1, keepdims=True))
        gold.append(((weights * pool.gold).sum(axis=1) / weights.sum(axis=1)).mean())
    return table.assign(gold=np.where(table.kl.isna(), np.nan, gold))


def frontier_error(pool: Pool, betas: Sequence[float], kls: Sequence[float], groups: int = 10) -> dict[float, float]:
    """Standard error of the frontier's reward at given KLs, by the delete-a-group jackknife over the pool's draws.

    The frontier is computed `groups` times, each time without one of the groups.  A KL that one of these frontiers does
    not reach has no entry.
    """
    found = []
    for group in range(groups):
        part = pool.without(group, groups)
        table = optimal_frontier(part.reward, betas, part.log_weights())
        found.append([optimal_reward(kl, table) for kl in kls])
    errors = np.sqrt((groups - 1) * np.var(found, axis=0))
    return {kl: float(error) for kl, error in zip(kls, errors, strict=True) if np.isfinite(error)}


def tables(profile: str, notebooks: Sequence[str]) -> pd.DataFrame:
    """The tables of other notebooks in one: those just made, or those that are published.

    Raises UserFault if one is missing.
    """
    found = []
    for name in notebooks:
        places = [paths.figures(profile), (paths.CHECKOUT or paths.PACKAGE) / "figures" / profile]
        files = [place / f"{name}.csv" for place in places]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise UserFault(f"{files[0]}: missing; notebook {name} writes it, execute that one first")
        found.append(pd.read_csv(file))
    return pd.concat(found, ignore_index=True)


def sweep_rows(runs: Mapping[int, Mapping[str, Run]], p: OneFront) -> pd.DataFrame:
    """One row for each β and seed of notebook 6's own sweep, and SFT's, like those of the other notebooks."""
    out = []
    for seed, by_name in runs.items():
        start = by_name["sft: evaluation"]
        out.append({"method": "sft", "seed": seed, "run": start.id, **start.metrics})
        for beta in p.front_betas:
            trained = by_name[f"β={beta:g}"].metrics
            tokens = {name: trained[name] for name in ("tokens_generated", "tokens_trained")}
            run = by_name[f"β={beta:g}: evaluation"]
            measured = run.metrics if trained["status"] == "ok" else {"status": "diverged"}
            row = {"method": SWEPT, "seed": seed, "beta": beta, "steps": p.front_steps, "run": run.id, **tokens}
            out.append({**row, **measured})
    return pd.DataFrame(out).assign(row="main", profile=p.profile, notebook=p.notebook)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column family: what a sweep (over β, η or steps) belongs to, in the words of this notebook.

    Rows that are no policy of one method's usual setting (other pairs, rates, what earlier reports did) have none, and
    earlier iterations and steps have none where the last one is interpolated back: they would be joined to its front.
    """
    method, pairs = table.method, table.loss.notna()
    each = table.groupby(["notebook", "method"])
    early = table.steps < each.steps.transform("max")
    front = each.eta.transform("min") < 1
    snapshots = method + np.where((each.steps.transform("nunique") > 1) & ~front, ", over steps", "")
    side = "WARP, one iteration, " + snapshots
    cases = [
        (method == "sft", "sft"),
        (pairs & (table.usual != True), None),  # noqa: E712
        (pairs & (table.notebook == "2_dpo_losses"), "DPO, " + table.loss + " (notebook 2)"),
        (pairs & (table.loss == "sigmoid"), "DPO, " + families(table)),
        (pairs, "DPO, " + method),
        (method == "positive reviews", "fine-tuning on positive reviews"),
        (~table.notebook.isin(["4_warp", "5_improvements", "6_one_front"]), None),
        (method.isin(["frozen θ^m", "greedy decoding", "token mean with prompt"]), None),
        (table.iteration < each.iteration.transform("max"), None),
        (early & front, None),
        (method == "WARP", "WARP, T=" + table.steps.map("{:g}".format)),
        ((table.notebook == "5_improvements") & (method == ANCHORED), f"{ANCHORED}, over η"),
        ((table.notebook == "4_warp") & method.str.contains(r"^(?:M=|β=|LERP|raw SLERP)"), side),
    ]
    family = snapshots.astype(object)
    for rows, name in reversed(cases):  # the first case that holds counts
        family = family.mask(rows, name)
    return table.assign(family=family)


def of_other_runs(table: pd.DataFrame, sweep: pd.DataFrame) -> list[str]:
    """The notebooks whose rows in `table` start from another supervised policy than those of `sweep`, or measured it
    with other code: tables of an earlier run, or of other data."""
    own = set(sweep[sweep.method == "sft"].run)
    start = table[(table.method == "sft") & table.seed.isin(sweep.seed)]
    return sorted(start[~start.run.isin(own)].notebook.unique())


def efficiencies(table: pd.DataFrame, frontiers: Frontiers) -> pd.DataFrame:
    """Rows with their efficiency, the frontier's reward at their KL and what they miss, each by its own seed."""
    kept = table[table.seed.isin(list(frontiers)) & (table.status == "ok")].copy()
    kept["optimal"] = [optimal_reward(r.kl, frontiers[r.seed]) for r in kept.itertuples()]
    kept["efficiency"] = [efficiency(r.kl, r.reward, frontiers[r.seed]) for r in kept.itertuples()]
    return kept


def at_matched_kl(table: pd.DataFrame, frontiers: Frontiers, kls: Sequence[float]) -> pd.DataFrame:
    """Efficiency of each family's front at given KLs, seed by seed (`dpo_report.at_kl`); NaN beyond its reach."""
    columns = [c for c in ("reward", "gold") if c in table]
    usable = table[table.family.notna() & table.seed.isin(list(frontiers))]
    found = at_kl(usable, kls, columns)
    values = [efficiency(r.at_kl, r.reward, frontiers[r.seed]) for r in found.itertuples()]
    return found.assign(efficiency=values, status="ok")


def above(
    table: pd.DataFrame, spreads: Mapping[int, float], errors: Mapping[int, Mapping[float, float]]
) -> pd.DataFrame:
    """Each row's excess over the frontier, its standard error, and the simultaneous 95 % bound (Bonferroni).

    `table` is one of `efficiencies` with columns completions and prompts; `spreads` are those of `spread`, `errors` the
    frontier's own standard error by KL, each for a seed; beyond their last KL the error there counts.  Column above:
    whether the excess is beyond the bound.  The KL's own noise is left out: near the optimum it makes reward and KL err
    together along the frontier.
    """
    measured = table.seed.map(lambda seed: bool(errors.get(seed)))
    known = table[table.optimal.notna() & (table.kl >= LEAST_KL) & measured].copy()
    z = norm.ppf(1 - 0.05 / max(1, len(known)))
    own = [spreads[r.seed] / np.sqrt(r.completions * r.prompts) for r in known.itertuples()]
    other = [np.interp(r.kl, list(errors[r.seed]), list(errors[r.seed].values())) for r in known.itertuples()]
    error = np.hypot(own, other)
    excess = known.reward - known.optimal
    return known.assign(excess=excess, error=error, bound=z * error, above=excess > z * error)


def resampling_rows(
    pools: Mapping[int, Pool], names: Mapping[int, str], ns: Sequence[int], betas: Sequence[float]
) -> pd.DataFrame:
    """`resampled` for the draws of some of a pool's policies (position -> name), each n and seed."""
    out = []
    for seed, pool in pools.items():
        for position, name in names.items():
            own = pool.of(position)
            ratios = own.log_probs[position] - own.log_probs[0]
            for n in ns:
                rows = resampled(own.reward, ratios, n, betas, own.gold, seed=seed)
                out.append(rows.assign(seed=seed, family=f"{name}, one of {n}", status="ok"))
    return pd.concat(out, ignore_index=True)


def held_out_shares(
    pools: Mapping[int, Pool], position: int, n: int, betas: Sequence[float], grid: Sequence[float], kl: float
) -> list[float]:
    """Efficiency at one KL of keeping one of n, with method and frontier from different halves of the pool's draws.

    One for each seed, the mean of both ways round; both are computed from the same draws elsewhere.  `betas` are those
    of the method, `grid` those of the frontier.
    """
    out = []
    for pool in pools.values():
        shares = []
        for half in (0, 1):
            own, other = pool.without(half, 2), pool.without(1 - half, 2)
            rows = resampling_rows({0: own}, {position: ""}, [n], betas)
            shares.append(at_matched_kl(rows, {0: optimum(other, grid)}, [kl]).efficiency.item())
        out.append(float(np.mean(shares)))
    return out


def ceiling(frontier: pd.DataFrame, kl: float) -> float:
    """What no policy of this KL exceeds: the lowest tangent of the frontier there.

    max_π E[r] - β KL is reached by π*_β, so E_π[r] <= r_β + β (KL(π) - KL_β) for every policy and every β.
    """
    known = frontier.dropna(subset=["kl", "reward"])
    known = known[np.isfinite(known.beta)]
    return float((known.reward + known.beta * (kl - known.kl)).min())


def best_of_rows(pools: Mapping[int, Pool], ns: Sequence[int]) -> pd.DataFrame:
    """Best of n of the reference's draws for each seed: kl (the bound log n - (n-1)/n), reward and gold."""
    out = []
    for seed, pool in pools.items():
        own = pool.of(0)
        rows = best_of_n(own.reward, ns).rename(columns={"kl_bound": "kl"})
        if own.gold is not None:
            gold = np.take_along_axis(own.gold, own.reward.argsort(axis=1), axis=1).mean(axis=0)
            rows = rows.assign(gold=[gold @ chance_of_best(len(gold), n) for n in ns])
        out.append(rows.assign(seed=seed, family="best of n", status="ok"))
    return pd.concat(out, ignore_index=True)


def best_of_fit(best_of: pd.DataFrame, frontiers: Frontiers) -> pd.DataFrame:
    """Gao et al.'s form for best-of-n fitted to the gain in gold of `best_of_rows`, for each seed."""
    out = []
    for seed, rows in best_of.groupby("seed"):
        start = frontiers[seed].gold.iloc[0]
        found = fit(rows.kl.to_numpy(), rows.gold.to_numpy() - start, "bon")
        out.append({"family": "best of n", "seed": seed, **found._asdict(), "status": "ok"})
    return pd.DataFrame(out)


def spread(pool: Pool) -> float:
    """Standard deviation of the reward within a prompt, the largest among the pool's policies."""
    each = [pool.of(i).reward.var(axis=1, ddof=1).mean() for i in range(len(pool.log_probs))]
    return float(np.sqrt(max(each)))


SETTING = ("beta", "eta", "steps", "n")
"""What tells the policies of one family apart."""


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with reward and gold as gains over their seed's SFT policy: rewards of different seeds have other zeros."""
    columns = [c for c in ("reward", "gold") if c in table and table[c].notna().any()]
    start = table[table.method == "sft"].groupby("seed")[columns].mean()
    return table.assign(**{c: table[c] - table.seed.map(start[c]) for c in columns})


def setting_means(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Means over seeds for each setting of each family, by KL, and 95 % t intervals: <column>_low, <column>_high."""
    groups = table.groupby(["family", *(name for name in SETTING if name in table)], sort=False, dropna=False)
    means = groups[["kl", *columns]].mean()
    for column in columns:
        ends = groups[column].agg(seed_interval)
        means[f"{column}_low"], means[f"{column}_high"] = ends.str[1], ends.str[2]
    return means.reset_index().sort_values("kl")


def frontier_gains(frontiers: Frontiers, kls: np.ndarray) -> pd.DataFrame:
    """The optimal gain in reward over SFT at given KLs, mean over seeds, and gold's along the same policies."""
    out = {"kl": kls}
    for column in ("reward", "gold"):
        if all(column in table for table in frontiers.values()):
            curves = [
                [optimal_reward(kl, table.assign(reward=table[column])) - table[column].iloc[0] for kl in kls]
                for table in frontiers.values()
            ]
            out[column] = np.mean(curves, axis=0)
    return pd.DataFrame(out)
