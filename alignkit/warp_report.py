"""The tables of notebook 4: what WARP and its variations reach, at what drift, and what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from alignkit.params import Warp
from alignkit.runs import Run
from alignkit.warp_recipe import Point

SETTINGS = ("beta", "ema_rate", "anchor", "baseline", "lr", "batch", "k", "greedily", "token_mean")
"""Columns that show a training run's settings."""
SPENT = ("generation_seconds", "scoring_seconds", "update_seconds")

PointsBySeed = Mapping[int, Sequence[Point]]


def rows(points: PointsBySeed, sft: Mapping[int, Run], p: Warp) -> pd.DataFrame:
    """One row for each evaluated (policy, seed): its settings, reward, gold, KL, diversity, cost and status.

    Tokens are those of all runs that the policy was made of.  `iteration`, `eta` and `steps` say where on a front it
    stands; SFT has 0.  A policy made of a diverged run has status "diverged" and no numbers.
    """
    out = [_sft_row(run, seed) for seed, run in sft.items()]
    out += [_row(point, seed) for seed, found in points.items() for point in found]
    table = pd.DataFrame(out).assign(profile=p.profile, notebook=p.notebook)
    measured = table.columns.difference([*SETTINGS, "method", "seed", "status", "profile", "notebook"])
    table.loc[table.status != "ok", measured.intersection(["kl", "reward", "gold"])] = float("nan")
    return table


def _sft_row(run: Run, seed: int) -> dict[str, Any]:
    return {
        "method": "sft",
        "seed": seed,
        "row": "main",
        "run": run.id,
        "iteration": 0,
        "eta": 0.0,
        "steps": 0,
        **run.metrics,
    }


def _row(point: Point, seed: int) -> dict[str, Any]:
    variation, settings = point.variation, point.thetas[0].record["settings"]
    trained = [run.metrics for run in point.thetas]
    status = "ok" if all(run["status"] == "ok" for run in trained) else "diverged"
    return {
        "method": variation.name, "seed": seed, "row": "main" if variation.main else "side",
        "run": point.evaluation.id, "iteration": point.iteration, "eta": point.eta, "steps": point.steps,
        "runs": variation.runs, "merge": variation.how, **{name: settings.get(name) for name in SETTINGS},
        **{name: sum(run[name] for run in trained) for name in ("tokens_generated", "tokens_trained")},
        "angle": point.merged.metrics["angle"], **point.evaluation.metrics,
        "status": status if status != "ok" else point.evaluation.metrics["status"],
    }  # fmt: skip


def histories(points: PointsBySeed, names: Sequence[str]) -> pd.DataFrame:
    """The training logs of variations, one row for each step; further columns method, seed and run (1, 2, ...)."""
    found = []
    for seed, here in points.items():
        for name in names:
            thetas = [p.thetas for p in here if p.variation.name == name]
            for number, run in enumerate(max(thetas, key=len, default=[]), start=1):
                log = pd.read_csv(run.path / "history.csv")
                found.append(log.assign(method=name, seed=seed, run=number))
    return pd.concat(found, ignore_index=True)


def angle_table(points: PointsBySeed, name: str) -> pd.DataFrame:
    """Angle between the first two task vectors of each layer, in degrees; columns seed, iteration, layer, angle."""
    found = []
    for seed, here in points.items():
        merges = {p.iteration: p.merged for p in here if p.variation.name == name and p.eta == 1}
        for iteration, merged in merges.items():
            angles = pd.read_csv(merged.path / "angles.csv")
            angles["layer"] = angles.layer.str.removeprefix("transformer.")
            found.append(angles.assign(seed=seed, iteration=iteration))
    return pd.concat(found, ignore_index=True)


def front(table: pd.DataFrame, methods: Sequence[str], **at: Any) -> pd.DataFrame:
    """Rows of methods where columns have these values, and SFT; with column family for `dpo_report.at_kl`."""
    kept = table[table.method.isin(methods)]
    for column, value in at.items():
        kept = kept[kept[column] == value]
    both = pd.concat([table[table.method == "sft"], kept])
    return both.assign(family=both.method)


def seconds_of(points: PointsBySeed, name: str) -> pd.DataFrame:
    """Seconds of Algorithm 1 for each seed, its runs one after the other: generation, scoring, update."""
    out = []
    for seed, here in points.items():
        thetas = max((p.thetas for p in here if p.variation.name == name), key=len)
        spent = {part.removesuffix("_seconds"): sum(run.metrics[part] for run in thetas) for part in SPENT}
        out.append({"seed": seed, "runs": len(thetas), **spent, "total": sum(run.record["seconds"] for run in thetas)})
    return pd.DataFrame(out)


def texts(points: Sequence[Point], sft: Run, name: str, eta: float, n: int) -> pd.DataFrame:
    """The first completions of the first n test prompts, before and after: prompt, and a column for each policy."""
    last = max((p for p in points if p.variation.name == name and p.eta == eta), key=lambda p: p.iteration)
    before, after = (
        pd.read_parquet(Path(run.path) / "completions.parquet").groupby("prompt", sort=False).first().head(n)
        for run in (sft, last.evaluation)
    )
    return pd.DataFrame({"SFT": before.completion, name: after.completion}).reset_index()
