"""The tables of notebook 4: what WARP and its variations reach, at what drift, and what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from alignkit.policy_gradient import completion_sums
from alignkit.report.warp_recipe import Point
from alignkit.sampling import pad_left
from alignkit.workflow.schema import Warp
from alignkit.workflow.store import Run
from alignkit.world.models import load_policy, quiet_training

SETTINGS = ("beta", "ema_rate", "anchor", "baseline", "lr", "batch", "k")
"""Columns that show a training run's settings."""
SPENT = ("generation_seconds", "scoring_seconds", "update_seconds")

PointsBySeed = Mapping[int, Sequence[Point]]


def rows(points: PointsBySeed, sft: Mapping[int, Run], p: Warp) -> pd.DataFrame:
    """One row for each evaluated (policy, seed): its settings, reward, gold, KL, diversity, cost and status.

    Tokens are those of all runs that the policy was made of.  `iteration`, `eta` and `steps` say where on a front it
    stands; SFT has 0.  A row is a main one if it has all seeds and `main_completions`.  A policy made of a diverged run
    has status "diverged" and no numbers.
    """
    out = [_sft_row(run, seed) for seed, run in sft.items()]
    out += [_row(point, seed, p) for seed, found in points.items() for point in found]
    return pd.DataFrame(out).assign(profile=p.profile, notebook=p.notebook)


def _sft_row(run: Run, seed: int) -> dict[str, Any]:
    place = {"iteration": 0, "eta": 0.0, "steps": 0}
    return {"method": "sft", "seed": seed, "row": "main", "run": run.id, **place, **run.metrics}


def _row(point: Point, seed: int, p: Warp) -> dict[str, Any]:
    variation, settings = point.variation, point.thetas[0].record["settings"]
    trained = [run.metrics for run in point.thetas]
    measured = point.evaluation.metrics
    if any(run["status"] != "ok" for run in trained):
        measured = {"status": "diverged"}
    main = variation.main and point.evaluation.record["settings"]["k"] == p.main_completions
    return {
        "method": variation.name, "seed": seed, "row": "main" if main else "side", "run": point.evaluation.id,
        "iteration": point.iteration, "eta": point.eta, "steps": point.steps, "runs": variation.runs,
        "merge": variation.how, **{name: settings.get(name) for name in SETTINGS},
        **{name: sum(run[name] for run in trained) for name in ("tokens_generated", "tokens_trained")},
        "angle": point.merged.metrics["angle"], **measured,
    }  # fmt: skip


def histories(points: PointsBySeed, names: Sequence[str], window: int = 5) -> pd.DataFrame:
    """The training logs of the first run of each variation, as means over windows of steps.

    Columns method, seed, step (the window's last) and those of the log.
    """
    found = []
    for seed, here in points.items():
        for name in names:
            first = next((p.thetas[0] for p in here if p.variation.name == name), None)
            if first is not None:
                log = pd.read_csv(first.path / "history.csv")
                means = log.groupby((log.step - 1) // window).mean().assign(step=lambda t: t.step.round().astype(int))
                found.append(means.assign(method=name, seed=seed))
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


def padding_table(policy: Path, text: str, prompt_tokens: int, pads: Sequence[int]) -> pd.DataFrame:
    """log π(rest of the text | its first tokens) with padding on the left: here, and in TRL's RLOOTrainer.

    The completion's log-prob should not depend on padding; RLOOTrainer gives GPT-2 no positions, which then counts the
    padding as words.  Columns left_pads, alignkit, trl (nats).
    """
    model, tokenizer = load_policy(policy)
    ids = tokenizer(text)["input_ids"]
    prompt, completion = ids[:prompt_tokens], ids[prompt_tokens:]
    with quiet_training() as folder:
        args = RLOOConfig(output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, beta=0.0)
        asked = Dataset.from_dict({"prompt": [text]})
        judge = lambda completions, **_: [0.0] * len(completions)  # noqa: E731
        trainer = RLOOTrainer(model, judge, args, asked, processing_class=tokenizer)
    out = []
    for n in pads:
        # Beside a prompt that is n tokens longer, the text gets n tokens of padding.
        both = pd.DataFrame(
            {"prompt_ids": [prompt, [*prompt, *prompt * n][: len(prompt) + n]], "completion_ids": [completion] * 2}
        )
        with torch.no_grad():
            ours = completion_sums(model, model, both)[0][0].item()
            row, mask = pad_left([prompt + completion, [0] * (n + len(ids))], tokenizer.pad_token_id)
            theirs, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, row[:1], mask[:1], len(completion))
        out.append((n, ours, theirs.sum().item()))
    return pd.DataFrame(out, columns=["left_pads", "alignkit", "trl"])


def front(table: pd.DataFrame, families: Mapping[str, str] | Sequence[str], **at: Any) -> pd.DataFrame:
    """SFT's rows, then those of each method where columns have these values; with column family for `dpo_report.at_kl`.

    `families` are methods, or what each method is called.
    """
    named = families if isinstance(families, Mapping) else {method: method for method in families}
    kept = table
    for column, value in at.items():
        kept = kept[kept[column] == value]
    parts = [kept[kept.method == method].assign(family=family) for method, family in named.items()]
    return pd.concat([table[table.method == "sft"].assign(family="sft"), *parts], ignore_index=True)


def seconds_of(points: PointsBySeed, name: str) -> pd.DataFrame:
    """Seconds of Algorithm 1 for each seed, its runs one after the other: generation, scoring, update."""
    out = []
    for seed, here in points.items():
        thetas = max((p.thetas for p in here if p.variation.name == name), key=len)
        spent = {part.removesuffix("_seconds"): sum(run.metrics[part] for run in thetas) for part in SPENT}
        out.append({"seed": seed, "runs": len(thetas), **spent, "total": sum(run.record["seconds"] for run in thetas)})
    return pd.DataFrame(out)


def texts(points: Sequence[Point], sft: Run, name: str, etas: Sequence[float], n: int) -> pd.DataFrame:
    """The first completion of each of the first n test prompts: prompt, SFT, and the last front at each η."""
    last = {p.eta: p.evaluation for p in sorted(points, key=lambda p: p.iteration) if p.variation.name == name}
    policies = {"SFT": sft} | {f"{name}, η={eta:g}": last[eta] for eta in etas}
    firsts = {
        policy: pd.read_parquet(run.path / "completions.parquet").groupby("prompt", sort=False).completion.first()
        for policy, run in policies.items()
    }
    return pd.DataFrame(firsts).head(n).reset_index()
