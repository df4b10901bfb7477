"""Notebook 6: the optimal frontier, every method's distance from it, and what each one costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
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
from alignkit.metrics import holm, seed_interval
from alignkit.report import policies
from alignkit.report.figures import AXES, GAINS, draw_family, legend_below, panels
from alignkit.report.findings import of_folders
from alignkit.report.gold import Frontiers, by_seed
from alignkit.report.looks import NEUTRAL, looks
from alignkit.report.policies import EVALUATION, LOOPED, Policy, Runs
from alignkit.report.statements import Unanswered
from alignkit.report.tables import at_kl, differences
from alignkit.report.towards import APPROACHED, anchored, approach, named_steps
from alignkit.report.tuning import as_tuned
from alignkit.training.judge import judge_pool
from alignkit.training.pool import Pool, PoolSettings, draw_pool
from alignkit.workflow import parameters
from alignkit.workflow.schema import OneFront
from alignkit.workflow.store import get

SFT = "SFT"  # what draws of the supervised policy are called
SWEPT = "anchored RLOO, over β"  # the method that is notebook 6's own
SETTING = ("beta", "eta", "steps", "n")
"""What tells the policies of one family apart."""
KINDS, DRAWN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).values()
"""What a family is to its user, by how its name begins (the first that fits; others are kinds of their own); and the
families that the front shows, beside WARP and one of n draws of the last of `pool_policies`."""
SEVERAL = "a trained policy, one of n draws kept by weight"
Pools = Mapping[int, Pool]  # one of each seed


def recipe(p: OneFront, seed: int) -> Runs:
    """Anchored RLOO over β, `approach`, tuned settings, the pool; other policies come from other notebooks' tables."""
    runs = policies.started(p, seed)
    for policy in rloo_over_beta(p, seed, runs):
        name = f"β={policy.settings['beta']:g}"
        runs |= {name: policy.trained[0], name + EVALUATION: policy.evaluation}
    others = [*approach(p, seed, runs), *as_tuned(p, seed)]
    runs = policies.each_once(runs, [pair for policy in others for pair in named_steps(policy)])
    last = (policy.trained[-1] for policy in pool_policies(p, seed, runs).values())
    drawing = [runs["sft"], *(policies.finite("approach", run) for run in last)]
    counts = (p.pool_reference, *[p.pool_trained] * (len(drawing) - 1))
    settings = PoolSettings(counts, p.prompts, p.new_tokens, p.reward_tokens)
    pool = get(draw_pool, settings, **policies.shared(p, seed), policies=drawing, reward=runs["reward"])
    return runs | {"pool": pool if p.judge_reviews is None else get(judge_pool, pool=pool, judge=policies.judge(p))}


def pool_policies(p: OneFront, seed: int, runs: Runs) -> dict[str, Policy]:
    """The policies that draw the pool beside the supervised one, by name, in the pool's order; others join here."""
    whole = [x for x in approach(p, seed, runs) if x.method == APPROACHED and x.where["eta"] == 1]
    return {f"{APPROACHED}, β={policy.settings['beta']:g}": policy for policy in whole}


def warp_family(p: OneFront) -> str:
    """The family of WARP as notebook 4 runs it."""
    return f"WARP, T={p.warp_steps}"


def one_of(name: str, n: int) -> str:
    """The family that keeps one of n of a policy's draws."""
    return f"{name}, one of {n}"


def sweep(p: OneFront, seed: int, runs: Runs) -> list[Policy]:
    """The notebook's own policies: anchored RLOO over β; and those of `approach`, if no notebook 5 lists them."""
    own = rloo_over_beta(p, seed, runs)
    return own if "5_improvements" in notebooks_read(p.profile) else [*own, *approach(p, seed, runs)]


def rloo_over_beta(p: OneFront, seed: int, runs: Runs) -> list[Policy]:
    """Anchored RLOO for each β, in the order of `front_betas`."""
    found = []
    for beta in p.front_betas:
        trained = anchored(p, seed, runs, runs["sft"], beta=beta, steps=p.front_steps, lr=p.anchored_lr)
        record = policies.evaluated(p, seed, runs | {SWEPT: trained}, SWEPT, main=True)[SWEPT + EVALUATION]
        shown = {name: trained.record["settings"][name] for name in LOOPED}
        found.append(Policy(SWEPT, seed, record, True, SWEPT, (trained,), None, shown, {"steps": p.front_steps}))
    return found


# The frontier


def optimum(pool: Pool, betas: Sequence[float]) -> pd.DataFrame:
    """`optimal_frontier` from all policies' completions by the balance heuristic, with gold where it is known."""
    return optimal_frontier(pool.reward, betas, pool.log_weights(), pool.gold)


def jackknife(pool: Pool, betas: Sequence[float], kls: Sequence[float], groups: int = 10) -> pd.DataFrame:
    """What a finite pool does to the frontier's reward at given KLs: columns kl, error and bias.

    From the frontiers without one group of the pool's draws after the other (delete-a-group jackknife): the standard
    error, and by how much the reward is too high (Quenouille 1956).  NaN where one of them does not reach the KL.
    """
    parts = [optimum(pool.without(group, groups), betas) for group in range(groups)]
    left = np.array([optimal_reward(kls, table) for table in parts])
    whole = optimal_reward(kls, optimum(pool, betas))
    error, bias = np.sqrt((groups - 1) * left.var(axis=0)), (groups - 1) * (left.mean(axis=0) - whole)
    return pd.DataFrame({"kl": kls, "error": error, "bias": bias})


def ceiling(frontier: pd.DataFrame, kl: float) -> float:
    """What no policy of this KL exceeds: the lowest tangent of the frontier there.

    max_π E[r] - β KL is reached by π*_β, so E_π[r] <= r_β + β (KL(π) - KL_β) for every policy and every β.
    """
    known = frontier[np.isfinite(frontier.beta)].dropna(subset=["kl", "reward"])
    return float((known.reward + known.beta * (kl - known.kl)).min())


def frontier_gains(frontiers: Frontiers, kls: np.ndarray, of_gold: Frontiers | None = None) -> pd.DataFrame:
    """The optimal gain in reward over SFT at given KLs, mean over seeds, and gold's along the same policies.

    With `of_gold`, the frontiers of gold itself, also "possible gold": that of the policies that are optimal for it.
    """
    wanted = {"reward": (frontiers, "reward"), "gold": (frontiers, "gold"), "possible gold": (of_gold or {}, "reward")}
    out = {"kl": kls}
    for name, (tables_of, column) in wanted.items():
        if tables_of and all(column in table for table in tables_of.values()):
            curves = [optimal_reward(kls, t, column) - t[column].iloc[0] for t in tables_of.values()]
            out[name] = np.mean(curves, axis=0)
    return pd.DataFrame(out)


# Every method


def tables_of_notebooks(profile: str, notebooks: Sequence[str]) -> pd.DataFrame:
    """The tables of other notebooks in one: those just made, or those published; UserFault if one is missing."""
    read = of_folders(paths.figures(profile), paths.published(profile))
    try:
        return pd.concat(map(read, notebooks), ignore_index=True)
    except Unanswered as reason:
        raise UserFault(f"{paths.figures(profile)}: {reason}; the notebook of this name writes it") from None


def notebooks_read(profile: str) -> list[str]:
    """Those of the notebooks whose tables this one reads that the profile's report has."""
    return [name for name in OneFront.reads if name in parameters.reported(profile)]


def of_other_runs(table: pd.DataFrame, own: pd.DataFrame) -> list[str]:
    """The notebooks whose rows in `table` start from another supervised policy than those of `own`, or measured it
    with other code: tables of an earlier run, or of other data."""
    start = table[(table.method == "sft") & table.seed.isin(own.seed)]
    return sorted(start[~start.run.isin(set(own[own.method == "sft"].run))].notebook.unique())


def with_zero(table: pd.DataFrame, frontiers: Frontiers) -> pd.DataFrame:
    """Rows in which SFT has the pool's mean reward, gold and faults: gains, shares and areas then have one zero."""
    out, sft = table.copy(), table.family == "sft"
    for column in [c for c in ("reward", "gold", "faults") if c in table and all(c in t for t in frontiers.values())]:
        zero = out.seed.map({seed: t[column].iloc[0] for seed, t in frontiers.items()})
        out[column] = out[column].where(~sft | zero.isna(), zero)
    return out


def with_efficiency(table: pd.DataFrame, frontiers: Frontiers) -> pd.DataFrame:
    """Rows with their efficiency, the frontier's reward at their KL and what they miss, each by its own seed."""
    kept = table[table.seed.isin(list(frontiers)) & (table.status == "ok")]
    optimal = by_seed(optimal_reward, kept, frontiers, "kl")
    return kept.assign(optimal=optimal, efficiency=by_seed(efficiency, kept, frontiers, "kl", "reward"))


def at_matched_kl(table: pd.DataFrame, frontiers: Frontiers, kls: Sequence[float]) -> pd.DataFrame:
    """Efficiency of each family's front at given KLs, seed by seed (`tables.at_kl`); NaN beyond its reach.

    The column draws of families that keep one of several is carried over.
    """
    columns = [c for c in ("reward", "gold", "faults") if c in table]
    found = at_kl(table[table.seed.isin(list(frontiers))], sorted(set(kls)), columns)
    shares = by_seed(efficiency, found, frontiers, "at_kl", "reward")
    draws = table.groupby("family").draws.first() if "draws" in table else pd.Series(dtype=float)
    return found.assign(efficiency=shares, draws=found.family.map(draws), status="ok")


def kind(family: str, draws: float) -> str:
    """What a family is to its user: one of KINDS, SEVERAL, or itself."""
    named = next((told for start, told in KINDS.items() if family.startswith(start)), None)
    return SEVERAL if np.isfinite(draws) and not (named or "").startswith("no training") else named or family


def best_of_each(shares: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The best family of each kind (column kind) that has all seeds, by the first of `columns` that says anything."""
    full = shares[shares.seeds == shares.seeds.max()].dropna(subset=list(columns), how="all")
    return full.sort_values(list(columns), ascending=False).drop_duplicates("kind")


def with_others(told: pd.DataFrame, shares: pd.DataFrame, family: str) -> dict[str, str]:
    """A family's row of texts, with the best family of its kind, and its name, at each KL that it does not reach.

    `told` has families as index and a KL at the end of each column's name, `shares` is the table of efficiencies.
    """
    kind = shares.kind[shares.family == family].item()
    alike, row = shares[(shares.kind == kind) & (shares.seeds == shares.seeds.max())], told.loc[family].to_dict()
    for column in (name for name, text in row.items() if not text):
        best = alike.sort_values(column[column.index("KL") :], ascending=False).family.iloc[0]
        row[column] = f"{told.loc[best, column]} ({best})" if told.loc[best, column] else ""
    return row


def order_of_shares(at: pd.DataFrame, families: Sequence[str], against: Sequence[str], kl: float) -> pd.DataFrame:
    """Share at one KL less that of each family in `against`, seed by seed: difference, low, high, p; Holm over all.

    `at` is one of `at_matched_kl`; who is compared already is not compared the other way round.
    """
    here = at[(at.at_kl == kl) & at.family.isin([*families, *against])]
    known = here.groupby("family").efficiency.agg(lambda x: x.notna().all())
    found, others = [], [name for name in dict.fromkeys(against) if known.get(name, False)]
    for done, other in enumerate(others):
        rows = here[~here.family.isin(others[:done])]
        less = differences(rows, other, ["efficiency"], by="family").sort_values("difference", ascending=False)
        found.append(less.assign(against=other, label=less.family + " − " + other))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["family", "p"])
    return table.assign(at_kl=kl, holm=holm(table.p.to_numpy(dtype=float)))


def excess_over_frontier(
    table: pd.DataFrame, spreads: Mapping[int, float], errors: Mapping[int, Mapping[float, float]]
) -> pd.DataFrame:
    """Each row's excess over the frontier, its standard error, and the simultaneous 95 % bound (Bonferroni).

    `table` is one of `with_efficiency` with columns completions and prompts; `spreads` (of `reward_spread`) and
    `errors` (of `jackknife`, level beyond their last KL) are by seed.  The KL's own noise is left out: near the optimum
    it makes reward and KL err together along the frontier.
    """
    seeds = [seed for seed, error in errors.items() if error]
    known = table[table.optimal.notna() & (table.kl >= LEAST_KL) & table.seed.isin(seeds)]
    z = norm.ppf(1 - 0.05 / max(1, len(known)))
    own = known.seed.map(spreads) / np.sqrt(known.completions * known.prompts)
    other = [np.interp(r.kl, list(errors[r.seed]), list(errors[r.seed].values())) for r in known.itertuples()]
    error = np.hypot(own, other)
    excess = known.reward - known.optimal
    return known.assign(excess=excess, error=error, bound=z * error, above=excess > z * error)


def reward_spread(pool: Pool) -> float:
    """Standard deviation of the reward within a prompt, the largest among the pool's policies."""
    return float(np.sqrt(max(pool.of(i).reward.var(axis=1, ddof=1).mean() for i in range(len(pool.log_probs)))))


def links_to_other_reports(profile: str) -> str:
    """Where other reports stand beside pocket's findings; with links on pocket's page, of which the place is known."""
    if profile != "pocket" or paths.CHECKOUT is None:
        return "Pages of profiles with a report of their own answer this here, beside pocket's findings."
    pages = [file.relative_to(paths.CHECKOUT) for file in sorted(paths.CHECKOUT.glob("figures/*/6_one_front.ipynb"))]
    told = ", ".join(f"[{page.parent.name}](../{page.as_posix()})" for page in pages)
    table = "The [README](../README.md#what-was-found) has the same as a table."
    return f"The pages of other reviews answer this, beside these findings: {told or 'there is none yet'}. {table}"


# Several draws, one kept


def resampling_rows(
    pools: Pools, names: Mapping[int, str], ns: Sequence[int], betas: Sequence[float], faults: Pools | None = None
) -> pd.DataFrame:
    """`resampled` for the draws of some of a pool's policies (position -> name), each n and seed; `faults` are
    `gold.pool_of_faults` pools.  The KL is less its bias; column position says whose draws they are."""
    out = []
    for seed, drawn in pools.items():
        for position, name in names.items():
            own = drawn.of(position)
            counts = {"faults": faults[seed].of(position).gold} if faults else {}
            for n in ns:
                rows = kept_one(own, position, n, betas, seed, **counts)
                rows["kl"] -= bias_of_kl(own, position, n, betas, rows.kl, seed)
                out.append(rows.assign(seed=seed, family=one_of(name, n), draws=n, position=position, status="ok"))
    return pd.concat(out, ignore_index=True)


def kept_one(own: Pool, position: int, n: int, betas: Sequence[float], seed: int, **others: np.ndarray) -> pd.DataFrame:
    """`resampled` for one policy's own draws in a pool."""
    return resampled(own.reward, own.log_probs[position] - own.log_probs[0], n, betas, own.gold, seed, **others)


def bias_of_kl(own: Pool, position: int, n: int, betas: Sequence[float], kl: pd.Series, seed: int) -> np.ndarray:
    """By how much a finite number of draws leaves the KL of `resampled` too high: what half as many add to it.

    The log of an estimated share is convex, so its bias falls as one over the draws; 0 where a half has fewer than n.
    """
    if 2 * n > own.reward.shape[1]:
        return np.zeros(len(betas))
    found = [kept_one(own.without(half, 2), position, n, betas, seed).kl for half in (0, 1)]
    return np.mean(found, axis=0) - kl.to_numpy()


def held_out_shares(
    pools: Pools, position: int, n: int, betas: Sequence[float], grid: Sequence[float], kl: float
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


def best_of_pool(pools: Pools, ns: Sequence[int]) -> pd.DataFrame:
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


def one_front(means: pd.DataFrame, optimum: pd.DataFrame, families: Sequence[str], most_kl: float) -> Figure:
    """Families on the planes of KL and gain in reward, and in gold, below the optimal frontier.

    `means` are `setting_means` of gains over SFT, best of n among them, `optimum` has columns kl and the same gains; in
    gold also the frontier of the policies that are optimal for it, "possible gold" of `optimum`.
    """
    ys = [y for y in GAINS if y in optimum and y in means and means[y].notna().any()]
    figure, axes = panels(len(ys), 5.4)
    drawn = looks([name for name in families if (means[means.kl <= most_kl].family == name).any()])
    for axis, y in zip(axes, ys, strict=True):
        axis.plot(optimum.kl, optimum[y], color="black", linewidth=2.4, label="optimal for the reward")
        if possible := f"possible {y}" in optimum:
            axis.plot(optimum.kl, optimum[f"possible {y}"], "k:", linewidth=2.4, label="optimal for gold")
        near = means[(means.family == "best of n") & (means.kl <= most_kl)]
        axis.plot(near.kl, near[y], color=NEUTRAL, linestyle="--", linewidth=1.6, label="best of n (KL bound)")
        for name, look in drawn.items():
            draw_family(axis, means[means.family == name], y, name, look)
        most = means[(means.kl <= most_kl) & means.family.isin(families)][y].max()
        most = max(most, optimum[f"possible {y}" if possible else y].max())
        axis.set(xlabel=AXES["kl"], ylabel=GAINS[y], xlim=(0, most_kl), ylim=(0, 1.05 * most))
    legend_below(figure)
    return figure
