"""Runs that merge policies: WARP's lines 12 and 13, and the evaluation of points on its front."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from alignkit.merging import State, angles, lerp, liti, slerp
from alignkit.training.evaluate import EvaluationSettings, evaluate
from alignkit.world.models import load_policy, save


def slerp_of_raw_weights(init: State, thetas: Sequence[State]) -> dict[str, torch.Tensor]:
    """SLERP with the angle between the weights themselves in place of the task vectors, as in an earlier report."""
    return slerp({name: torch.zeros_like(weight) for name, weight in init.items()}, thetas)


MERGES = {"slerp": slerp, "lerp": lerp, "raw slerp": slerp_of_raw_weights}
"""What `merge_policies` can do, by name."""


def merge_policies(
    out: Path, *, init: Path, thetas: Sequence[Path], how: str = "slerp", step: int | None = None
) -> dict[str, Any]:
    """Merge policies that were trained from `init`, each with weight 1/M (WARP, Algorithm 1, line 12).

    `how` names one of MERGES, SLERP per layer by default; `step` takes the weights that each run kept at that step.
    Writes the merged policy and its tokenizer, and angles.csv: layer, and the angle between the first two task vectors
    there in degrees.  Returns its mean over layers.
    """
    folders = [theta if step is None else theta / f"step-{step}" for theta in thetas]
    start, ends = state_of(init), [state_of(folder) for folder in folders]
    save_policy(out, init, MERGES[how](start, ends))
    between = {layer: found[0, 1].item() for layer, found in angles(start, ends).items()} if len(ends) > 1 else {}
    pd.Series(between, name="angle", dtype=float).rename_axis("layer").to_csv(out / "angles.csv")
    return {"status": "ok", "angle": float(pd.Series(between, dtype=float).mean())}


def interpolate(out: Path, *, init: Path, merged: Path, eta: float) -> dict[str, Any]:
    """Write (1 - η) θ_init + η θ_merged (WARP, Algorithm 1, line 13) and its tokenizer."""
    save_policy(out, init, liti(state_of(init), state_of(merged), eta))
    return {"status": "ok"}


def evaluate_interpolation(
    out: Path, settings: EvaluationSettings, *, init: Path, merged: Path, eta: float, **inputs: Any
) -> dict[str, Any]:
    """`evaluate` of (1 - η) θ_init + η θ_merged, whose weights are not kept: one point of WARP's front."""
    with TemporaryDirectory() as folder:
        save_policy(Path(folder), init, liti(state_of(init), state_of(merged), eta))
        return evaluate(out, settings, policy=Path(folder), **inputs)


def state_of(policy: Path) -> dict[str, torch.Tensor]:
    """The weights of the policy in a folder, on the CPU; tied embeddings under both of their names."""
    return {name: weight.cpu() for name, weight in load_policy(policy)[0].state_dict().items()}


def save_policy(folder: Path, like: Path, state: dict[str, torch.Tensor]) -> None:
    """Write weights as a policy of the same architecture and tokenizer as the one in the folder `like`."""
    model, tokenizer = load_policy(like)
    model.load_state_dict(state)
    save(folder, model, tokenizer)


def between(out: Path, *, init: Path, first: Path, second: Path, share: float) -> dict[str, Any]:
    """Write a point on the arc between two policies, both seen as task vectors from θ_init, and its tokenizer.

    That is slerp(θ_init, {θ_first, θ_second}) with weights 1 - share and share, per layer.
    """
    save_policy(out, init, slerp(state_of(init), [state_of(first), state_of(second)], [1 - share, share]))
    return {"status": "ok"}
