"""Every method's own tuning: as many settings for each, on seeds that the report does not use, and what they choose."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from alignkit import paths
from alignkit.frontier import along_root_kl, efficiency, optimal_frontier
from alignkit.report import dpo_losses, improvements, policies
from alignkit.report.policies import EVALUATION, Method, Policy, Variation, f_dpo
from alignkit.training.pool import PoolSettings, draw_pool, load_pool
from alignkit.workflow import parameters
from alignkit.workflow.schema import NOTEBOOKS, OneFront, World
from alignkit.workflow.store import get

SEEDS = (101, 102)
"""Used for tuning and for nothing else."""
FACTORS = (1.0, 3.0)
"""On pairs: of the profile's learning rate and of its epochs, each with each."""
BACK = (0.25, 0.5)
"""On pairs: a setting is trained at the method's own β, and its front goes back to SFT over these η."""
RATES = (1.0, 2.5)
"""By policy gradient: of the profile's learning rate; a method with a rate of its own has that as the second."""
STRONGER = 2.0
"""By policy gradient: how much stronger the KL is in two of the four settings; an anchor that moves is slower there."""
SLOWER = 0.1
KL = 1.0
"""Nats at which settings are compared."""
LEAST_REACH = 0.25
"""Nats; a setting that stays below is not chosen, so that it does not draw all others down to its KL."""
TIE = 0.01
"""Share of the optimal gain by which the best setting has to beat the profile's own."""
SETTING = ("rate", "epochs", "beta", "mu", "steps")


class Tried(NamedTuple):
    """One setting of one method with one seed."""

    method: str
    setting: Mapping[str, float]
    """Some of SETTING."""
    usual: bool
    """Whether it is what the profile has."""
    cost: Mapping[str, float]
    """completions, tokens: what was drawn in training."""
    front: Sequence[Policy]
    """Its policies on the way back to SFT."""
    eval_loss: float = np.nan
    """The last validation loss, which compares settings of one method on pairs."""


Chosen = Mapping[Any, Sequence[float]] | None
"""Two factors for each method, by its name; None: nothing is chosen yet, so a grid is tried."""


# What is tried.  A method joins by a function in GRIDS: a profile's parameters, seed, chosen -> one Tried a setting.


def factor_pairs(chosen: Chosen, name: str, *factors: Sequence[float]) -> Iterable[Sequence[float]]:
    """The settings of a method that are trained: each factor with each, or those that were chosen, if any were."""
    return product(*factors) if chosen is None else [pair for key, pair in chosen.items() if key == name]


def parameters_of(of: World, notebook: str, seed: int) -> Any:
    """A notebook's parameters with one seed, and what it shares with `of` as that has it."""
    common = (type(of).model_fields.keys() & NOTEBOOKS[notebook].model_fields) - {"notebook", "profile"}
    given = {name: getattr(of, name) for name in common} | {"seeds": [seed]}
    return parameters.load(paths.PARAMS / of.profile / f"{notebook}.yaml", **given)


def on_losses(of: World, seed: int, chosen: Chosen = None) -> Iterator[Tried]:
    """The losses of notebook 2 on its pairs."""
    p = parameters_of(of, "2_dpo_losses", seed)
    return tries_on_pairs(p, seed, [m for m in dpo_losses.methods(p) if m.name in dpo_losses.LOSSES], chosen)


def on_divergences(of: World, seed: int, chosen: Chosen = None) -> Iterator[Tried]:
    """The divergences of notebook 3 on its pairs, each at the middle β of its sweep."""
    p = parameters_of(of, "3_f_divergences", seed)
    sweeps = {"reverse_kl": p.reverse_kl_betas, "forward_kl": p.forward_kl_betas, "js": p.js_betas}
    methods = [Method(name, f_dpo(name, betas[len(betas) // 2])) for name, betas in sweeps.items()]
    return tries_on_pairs(p, seed, methods, chosen)


def tries_on_pairs(p: Any, seed: int, methods: Iterable[Method], chosen: Chosen) -> Iterator[Tried]:
    """Learning rate × epochs, each setting a front over η; what was chosen is drawn from as main rows are."""
    start, main = policies.prepared(p, seed), chosen is not None
    drawn = {"completions": p.pair_prompts * p.pair_samples, "tokens": start["generations"].metrics["tokens_generated"]}
    each = [(method, factors) for method in methods for factors in factor_pairs(chosen, method.name, FACTORS, FACTORS)]
    for method, (rate, longer) in each:
        changes = {"lr": rate * p.dpo()["lr"], "epochs": longer * p.dpo()["epochs"]}
        runs = policies.aligned(p, seed, [method._replace(settings={**method.settings, **changes}, main=main)], start)
        run = runs[method.name]
        shown = {**changes, "beta": method.settings["beta"], "tokens_generated": drawn["tokens"]}
        found = {1.0: runs[method.name + EVALUATION]}
        found |= {eta: policies.interpolated(p, seed, start, run, eta, main=main) for eta in BACK}
        known = {"trained": (run,), "settings": shown}
        front = [Policy(method.name, seed, record, main, **known, where={"eta": eta}) for eta, record in found.items()]
        setting = {"rate": changes["lr"], "epochs": changes["epochs"], "beta": method.settings["beta"]}
        yield Tried(method.name, setting, rate == longer == 1, drawn, front, run.metrics["eval_loss"])


def by_policy_gradient(of: World, seed: int, chosen: Chosen = None) -> Iterator[Tried]:
    """REINFORCE, WARP and anchored RLOO at WARP's tokens: learning rate × strength of the KL, each a front over η."""
    p = parameters_of(of, "5_improvements", seed)
    reinforce = Variation("REINFORCE, EMA anchor", {"steps": p.equal_steps, "keep": []}, etas=p.etas)
    names = ("WARP", improvements.ANCHORED, improvements.CHOSEN)
    sft, reward = policies.supervised(p, seed), policies.rewarding(p, seed)
    for idea in (reinforce, *(idea for idea in improvements.ideas(p) if idea.name in names)):
        own = {"lr": p.warp_lr, "beta": p.warp_beta, "ema_rate": p.ema_rate, "anchor": "ema", **idea.changes}
        other = RATES[1] if own["lr"] == p.warp_lr else own["lr"] / p.warp_lr
        for rate, strength in factor_pairs(chosen, idea.name, (RATES[0], other), (1.0, STRONGER)):
            changes = {**own, "lr": rate * p.warp_lr, "beta": strength * own["beta"]}
            moves = own["anchor"] == "ema"
            changes |= {"ema_rate": SLOWER * own["ema_rate"]} if moves and strength > 1 else {}
            tried_idea = idea._replace(changes=changes, main=chosen is not None, every=False)
            found = policies.points(p, seed, sft, reward, tried_idea)
            runs = found[0].trained
            drawn = {"completions": sum(changes["steps"] * run.record["settings"]["batch"] for run in runs)}
            drawn["tokens"] = sum(run.metrics["tokens_generated"] for run in runs)
            setting = {"rate": changes["lr"], "beta": changes["beta"], "steps": changes["steps"]}
            setting |= {"mu": changes["ema_rate"]} if moves else {}
            yield Tried(idea.name, setting, strength == 1 and bool(np.isclose(changes["lr"], own["lr"])), drawn, found)


Grid = Callable[..., Iterator[Tried]]
GRIDS: tuple[Grid, ...] = (on_divergences, on_losses, by_policy_gradient)


# What is chosen


def frontier(of: World, seed: int) -> pd.DataFrame:
    """The optimal frontier of one seed from draws of its supervised policy alone, twice as many as the report has."""
    p = parameters_of(of, "6_one_front", seed)
    settings = PoolSettings((2 * p.pool_reference,), p.prompts, p.new_tokens, p.reward_tokens)
    models = {"policies": [policies.supervised(p, seed)], "reward": policies.rewarding(p, seed)}
    pool = load_pool(get(draw_pool, settings, **policies.shared(p, seed), **models).path)
    return optimal_frontier(pool.reward, p.frontier_betas)


def shares_of_settings(tried: Sequence[Tried], optimal: pd.DataFrame) -> pd.DataFrame:
    """The settings of one method with one seed, a row each, all read at one KL of their fronts.

    That is KL, or the largest below it that all settings (and the frontier) reach; a front is straight in √KL from SFT
    on.  A setting that stays below LEAST_REACH has no share and cannot be chosen.  Columns: method, SETTING, usual,
    completions, tokens, eval_loss, reach (its largest KL), kl, reward (the gain over SFT), share.
    """
    start = float(optimal.reward.iloc[0])
    sound = [all(run.metrics["status"] == "ok" for policy in one.front for run in policy.trained) for one in tried]
    fronts = [[policy.evaluation.metrics for policy in one.front if ok] for one, ok in zip(tried, sound, strict=True)]
    reach = np.array([max((m["kl"] for m in front), default=0.0) for front in fronts])
    enough = reach >= LEAST_REACH
    kl = min(KL, optimal.kl.max(), reach[enough].min(initial=KL))
    rows = []
    for one, front, farthest, kept in zip(tried, fronts, reach, enough, strict=True):
        line = [0.0, *(m["kl"] for m in front)], [start, *(m["reward"] for m in front)]
        reward = float(along_root_kl(kl, *line)) if kept else np.nan
        row = {"method": one.method} | {name: one.setting.get(name, np.nan) for name in SETTING} | dict(one.cost)
        row |= {"usual": one.usual, "eval_loss": one.eval_loss, "reach": farthest, "kl": kl}
        rows.append(row | {"reward": reward - start, "share": efficiency(kl, reward, optimal)})
    return pd.DataFrame(rows)


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column chosen: of each method the setting with the best mean share over seeds.

    Its usual setting is kept if the best is not more than TIE above it, and where no setting has a share.
    """
    chosen = pd.Series(False, index=table.index)
    for _, rows in table.groupby("method", sort=False):
        number = rows.groupby(list(SETTING), dropna=False, sort=False).ngroup()
        means = rows.share.groupby(number).agg(lambda shares: shares.mean(skipna=False))
        usual = number[rows.usual]
        kept = len(usual) and (means.isna().all() or means.max() <= means[usual.iloc[0]] + TIE)
        if kept or means.notna().any():
            chosen[rows.index] = number == (usual.iloc[0] if kept else means.idxmax())
    return table.assign(chosen=chosen)


def try_all(profile: str, seed: int, grids: Iterable[Grid] = GRIDS) -> pd.DataFrame:
    """Every setting of every method with one seed: trained, or found in the store."""
    of = parameters.load(paths.PARAMS / profile / "6_one_front.yaml")
    optimal = frontier(of, seed)
    every = [one for grid in grids for one in grid(of, seed)]
    names = dict.fromkeys(one.method for one in every)
    found = [shares_of_settings([one for one in every if one.method == name], optimal) for name in names]
    return pd.concat(found, ignore_index=True).assign(seed=seed)


def tune(profile: str, seeds: Sequence[int] = SEEDS, grids: Iterable[Grid] = GRIDS) -> pd.DataFrame:
    """Every setting of every method with every tuning seed, and which is chosen."""
    return choose(pd.concat([try_all(profile, seed, grids) for seed in seeds], ignore_index=True))


# In notebook 6


def as_tuned(p: OneFront, seed: int) -> list[Policy]:
    """For one of `p.tuned_seeds`, all methods' fronts as tuned: side rows with as many completions as main ones."""
    if seed not in p.tuned_seeds or not p.tuned:
        return []
    found = []
    for one in chain.from_iterable(grid(p, seed, p.tuned) for grid in GRIDS):
        name = f"DPO, {one.method}, tuned" if "epochs" in one.setting else f"{one.method}, tuned"
        found += [replace(policy, method=name, family=name, main=False) for policy in one.front]
    return found


def published_tuning(profile: str) -> pd.DataFrame | None:
    """The published table of `tune`, if this profile was tuned."""
    file = paths.published(profile) / "tuning.csv"
    return pd.read_csv(file) if file.is_file() else None


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """One row a method: how many settings were tried, at which KL (nats), their shares, and what was chosen.

    All numbers are means over tuning seeds.  `by loss` is what the least validation loss would have chosen.
    """
    out = []
    for method, rows in table.groupby("method", sort=False):
        groups = rows.groupby([*SETTING, "usual", "chosen"], dropna=False, sort=False)
        means = groups[["kl", "share", "eval_loss"]].mean().reset_index()
        row = {"method": method, "settings": len(means), "KL": means.kl.min(), "least share": means.share.min()}
        row |= {"own share": means.share[means.usual].mean(), "chosen share": means.share[means.chosen].mean()}
        by_loss = means.nsmallest(1, "eval_loss") if means.eval_loss.notna().any() else means[:0]
        out.append(row | {"chosen": in_words(means[means.chosen]), "by loss": in_words(by_loss)})
    return pd.DataFrame(out)


def in_words(setting: pd.DataFrame) -> str:
    """The rate and what else was varied of a table of one setting; "" of an empty one."""
    known = [(name, value) for row in setting.to_dict("records") for name, value in row.items() if name in SETTING]
    return ", ".join(f"{name} {value:g}" for name, value in known if name != "steps" and not pd.isna(value))
