"""How time grows with seeds, pairs, steps and length of completions, at the sizes of pocket, one thread."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
from starts import Start, pairs, policy_gradient, seconds, start

from alignkit.training.dpo import DpoSettings, train_dpo

SCALES = (1, 2, 4)


def by_seeds(scale: int) -> None:
    """A small SFT run and a run of the policy gradient for each seed."""
    for seed in range(scale):
        with tempfile.TemporaryDirectory() as folder:
            policy_gradient(start(Path(folder), "pocket", 500, trained=True, seed=seed), steps=5, seed=seed)


def by_pairs(here: Start, scale: int) -> None:
    """Drawing completions of 40 prompts and more, pairing them, and DPO on the pairs."""
    with tempfile.TemporaryDirectory() as folder:
        given = pairs(Path(folder) / "pairs", here, 40 * scale)
        settings = DpoSettings("sigmoid", "reverse_kl", beta=0.5, epochs=1.0, batch=32, lr=4e-4)
        train_dpo(Path(folder), settings, seed=0, policy=here.policy, pairs=given)


def growing(here: Start) -> dict[str, Callable[[int], None]]:
    """What is done at each scale, by what grows."""
    return {
        "seeds": by_seeds,
        "pairs": lambda scale: by_pairs(here, scale),
        "steps of the policy gradient": lambda scale: policy_gradient(here, 10 * scale),
        "tokens of a completion": lambda scale: policy_gradient(here._replace(new_tokens=16 * scale), 10),
    }


def timed(done: dict[str, Callable[[int], None]], repeats: int, scales: tuple[int, ...] = SCALES) -> pd.DataFrame:
    """Median seconds at each scale, a row for each thing that grows; and the last by the first."""
    rows = {}
    for name, do in done.items():
        do(1)
        rows[name] = {f"{scale}×": median(seconds(do, scale) for _ in range(repeats)) for scale in scales}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("seconds against")
    return table.assign(growth=table[f"{scales[-1]}×"] / table[f"{scales[0]}×"])


def growth(repeats: int) -> pd.DataFrame:
    """The table of all that grows."""
    with tempfile.TemporaryDirectory() as folder:
        return timed(growing(start(Path(folder), "pocket")), repeats)  # untrained, so that it ends no text
