"""The tables of notebook 5: fronts at equal tokens, their hypervolume, and what averaging does to hacking."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from alignkit.frontier import LEAST_KL, Fit, fit, hypervolume
from alignkit.metrics import holm, pairwise_accuracy
from alignkit.report.dpo_report import differences
from alignkit.report.improvements_recipe import Hacked
from alignkit.workflow.store import Run

MOST_KL = 4.0
"""Nats up to which the hypervolume counts."""
STEP = 0.02
"""Nats between the points at which a front is read."""


def front_reward(front: pd.DataFrame, measure: str, kls: np.ndarray) -> np.ndarray:
    """A front's measure at given KLs: linear in √KL between its points, level beyond the last one.

    `front` has columns kl and the measure, SFT's row (KL 0) among them.
    """
    ordered = front.sort_values("kl")
    return np.interp(np.sqrt(kls), np.sqrt(ordered.kl.clip(lower=0)), ordered[measure])


def volumes(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Hypervolume of each method's front for each seed, one column for each measure; columns method, seed, tokens.

    `table` has one row for each (method, seed, eta), SFT's rows among them.  The fronts are read every STEP nats, so
    that the volume does not hang on which η were evaluated.  Status is "diverged" if any point is.
    """
    kls = np.arange(0, MOST_KL + STEP, STEP)
    out = []
    for (method, seed), rows in table[table.method != "sft"].groupby(["method", "seed"], sort=False):
        start = table[(table.method == "sft") & (table.seed == seed)]
        sound = (rows.status == "ok").all()
        front = pd.concat([start, rows])
        found = {
            m: hypervolume(kls, front_reward(front, m, kls), start[m].iloc[0], MOST_KL) if sound else np.nan
            for m in measures
        }
        row = {"method": method, "seed": seed, "tokens": rows.tokens_generated.max(), **found}
        out.append({**row, "status": "ok" if sound else "diverged"})
    return pd.DataFrame(out)


def against(volume: pd.DataFrame, method: str, others: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """Hypervolume of a method less that of each of the others, seed by seed: mean, 95 % t interval, p, and Holm's p
    over all of them."""
    kept = volume[volume.method.isin([method, *others])]
    flipped = differences(kept, method, list(measures))
    mean, low, high = -flipped.difference, -flipped.high, -flipped.low
    label = method + " − " + flipped.method
    return flipped.assign(label=label, difference=mean, low=low, high=high, holm=holm(flipped.p.to_numpy()))


def hack_rows(found: Mapping[int, Sequence[Hacked]], sft: Mapping[int, Run]) -> pd.DataFrame:
    """One row for each (proxy, seed, steps): KL, proxy reward, gold and repetition; SFT's rows have 0 steps.

    The SFT policy's proxy reward is the full reward model's; other proxies have another zero.
    """
    rows = [{"proxy": "sft", "seed": s, "steps": 0, "run": r.id, **r.metrics} for s, r in sft.items()]
    for seed, here in found.items():
        for h in here:
            measured = h.evaluation.metrics if h.trained.metrics["status"] == "ok" else {"status": "diverged"}
            rows.append({"proxy": h.proxy, "seed": seed, "steps": h.steps, "run": h.evaluation.id, **measured})
    return pd.DataFrame(rows)


def accuracy(reward: Run) -> float:
    """Pairwise accuracy of a reward model on the test reviews."""
    scores = pd.read_parquet(reward.path / "scores.parquet")
    test = scores[scores.split == "test"]
    return pairwise_accuracy(test.reward.to_numpy(), test.label.to_numpy())


def fits(table: pd.DataFrame) -> pd.DataFrame:
    """Gao et al.'s d (α - β log d) fitted to the gain in gold for each family and seed; columns of `Fit` (NaN with
    fewer than three points), and most_kl.

    `table` has columns family, seed, kl, gold, SFT's rows ("sft") among them.
    """
    out = []
    sound = table[(table.family != "sft") & (table.status == "ok")]
    for (name, seed), rows in sound.groupby(["family", "seed"], sort=False):
        start = table[(table.family == "sft") & (table.seed == seed)].gold.iloc[0]
        few = (rows.kl >= LEAST_KL).sum() < 3
        found = Fit(*[np.nan] * 4) if few else fit(rows.kl.to_numpy(), rows.gold.to_numpy() - start)
        out.append({"family": name, "seed": seed, **found._asdict(), "most_kl": rows.kl.max(), "status": "ok"})
    return pd.DataFrame(out)
