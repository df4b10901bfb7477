"""What gold says of methods: what the proxy loses and what optimisation does, what a fault costs, what is written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from alignkit import paths
from alignkit.frontier import optimal_reward
from alignkit.pocket import FAULT_COST
from alignkit.training.evaluate import evaluate
from alignkit.training.judge import evaluate_by_judge
from alignkit.training.merge import evaluate_interpolation
from alignkit.training.pool import Pool

COSTS = (2.0, 5.0, 10.0)
"""Nats that a fault may cost; the gold of all tables has `FAULT_COST`."""
EVALUATIONS = (evaluate, evaluate_interpolation, evaluate_by_judge)
"""The functions whose runs hold evaluated completions."""
Frontiers = Mapping[int, pd.DataFrame]  # the optimal one of each seed


def by_seed(measure: Callable[..., np.ndarray], rows: pd.DataFrame, frontiers: Frontiers, *columns: str) -> np.ndarray:
    """A measure of some columns of rows, such as `optimal_reward`, each row by its own seed's frontier; (rows,)."""
    out = np.full(len(rows), np.nan)
    for seed, frontier in frontiers.items():
        own = rows[rows.seed == seed]
        out[rows.seed == seed] = measure(*(own[column].to_numpy(dtype=float) for column in columns), frontier)
    return out


def loss_split(at: pd.DataFrame, frontiers: Frontiers, of_gold: Frontiers) -> pd.DataFrame:
    """What each family misses of the possible gold at its KL, seed by seed, in two parts; column part is the proxy's.

    proxy error: gold of the policy that is optimal for gold, less that of the one optimal for the reward at this KL.
    optimisation error: gold of the latter, less the family's.
    """
    possible = by_seed(optimal_reward, at, of_gold, "at_kl")
    tilt = by_seed(partial(optimal_reward, column="gold"), at, frontiers, "at_kl")
    start = at.seed.map({seed: table.reward.iloc[0] for seed, table in of_gold.items()})
    parts = {"possible gain": possible - start, "proxy error": possible - tilt, "optimisation error": tilt - at.gold}
    split = at[["family", "seed", "at_kl", "draws", "gold"]].assign(**parts)
    return split.assign(status="ok", part=split["proxy error"] / (split["proxy error"] + split["optimisation error"]))


def fault_counts(samples: pd.DataFrame) -> pd.Series:
    """Sentences of each text (prompt, completion) that the grammar cannot derive, from the share that it can."""
    few = samples.loc[samples.well_formed < 1, ["prompt", "completion", "well_formed"]]
    words = [f"{prompt} {text}".split() for prompt, text in zip(few.prompt, few.completion, strict=True)]
    sentences = [text.count(".") + (text[-1:] != ["."]) for text in words]
    return ((1 - few.well_formed) * sentences).round().reindex(samples.index, fill_value=0.0)


def pool_of_faults(pool: Pool, folder: Path) -> Pool:
    """A pool with the faults of each text in place of its gold, so that means of gold become means of faults."""
    table = pd.read_parquet(folder / "pool.parquet").sort_values(["place", "policy"], kind="stable")
    return pool._replace(gold=fault_counts(table).to_numpy().reshape(pool.reward.shape))


def evaluated_texts(run: str) -> pd.DataFrame | None:
    """The completions of an evaluation by its id; None where they are not kept here."""
    folder = next(filter(Path.is_dir, (paths.store() / f"{kind.__name__}-{run}" for kind in EVALUATIONS)), None)
    return None if folder is None else pd.read_parquet(folder / "completions.parquet")


def text_measures(runs: Iterable[str]) -> pd.DataFrame:
    """What the completions of evaluations say beside their rows: faults a text where known, and the KL's own standard
    error over draws; NaN where they are not kept here.  Indexed by run."""
    out: dict[str, dict[str, float]] = {run: {} for run in runs}
    for run, row in out.items():
        if (samples := evaluated_texts(run)) is not None:
            row["kl_error"] = np.sqrt(samples.groupby("prompt").kl.var().mean() / len(samples))
            row |= {"faults": fault_counts(samples).mean()} if "well_formed" in samples else {}
    return pd.DataFrame(list(out.values()), index=list(out), columns=["kl_error", "faults"], dtype=float)


def gains_at_costs(at: pd.DataFrame, frontiers: Frontiers) -> pd.DataFrame:
    """Gain in gold at each of COSTS, seed by seed, in columns "cost 2", ...; and in faults a text.

    Gold is linear in the cost: another one takes (cost - FAULT_COST) more for each fault.
    """
    gold, faults = (at.seed.map({s: t[column].iloc[0] for s, t in frontiers.items()}) for column in ("gold", "faults"))
    more = at.faults - faults
    gained = {f"cost {cost:g}": at.gold - gold - (cost - FAULT_COST) * more for cost in COSTS}
    return at[["family", "seed", "at_kl"]].assign(faults=more, **gained, status="ok")


def texts_near(
    placed: pd.DataFrame, kept: pd.DataFrame, families: Sequence[str], kl: float, folder: Path, prompts: int = 2
) -> pd.DataFrame:
    """One completion of each of the first prompts by each family's policy whose KL is nearest to a given one.

    `placed` are evaluated rows of one seed, `kept` those of `resampling_rows`, `folder` is their pool.
    """
    parts = []
    for family in families:
        own = pd.concat([placed[placed.family == family], kept[kept.family == family]])
        if own.kl.notna().any():
            nearest = own.loc[(own.kl - kl).abs().idxmin()]
            several = pd.notna(nearest.get("position", np.nan))
            texts = kept_texts(folder, nearest, prompts) if several else evaluated_texts(nearest.run)
            if texts is not None:
                first = texts.drop_duplicates("prompt").head(prompts).assign(family=family, kl=nearest.kl)
                parts.append(first.assign(place=range(len(first))))
    columns = [c for c in ("prompt", "family", "kl", "completion", "reward", "gold") if parts and c in parts[0]]
    return pd.concat(parts).sort_values("place", kind="stable")[columns] if parts else pd.DataFrame()


def kept_texts(folder: Path, row: pd.Series, prompts: int) -> pd.DataFrame:
    """One of a policy's first draws of each of the first prompts, kept by its weight; a row of `resampling_rows`."""
    table = pd.read_parquet(folder / "pool.parquet")
    position, random, kept = int(row.position), np.random.default_rng(0), []
    for _, draws in table[(table.policy == position) & (table.place < prompts)].groupby("place"):
        few = draws.head(int(row.draws))
        weights = softmax(few.reward / row.beta - few[f"log_prob_{position}"] + few.log_prob_0)
        kept.append(few.iloc[random.choice(len(few), p=weights)])
    return pd.DataFrame(kept)
