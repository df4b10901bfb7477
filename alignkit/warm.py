"""Reward models averaged in weight space (WARM, Ramé et al. 2024, "WARM: On the Benefits of Weight Averaged Reward
Models"): members share their start and data, and differ in how they were trained from there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from alignkit.merging import lerp
from alignkit.models import load_encoder
from alignkit.reward import fixed_reviews, scored


def average_rewards(
    out: Path, *, seed: int, data: dict[str, Any], rewards: Sequence[Path], tokens: int
) -> dict[str, Any]:
    """The reward model whose weights are the mean of those of several, trained from one start.

    Writes it like `reward.train_reward`: the model, its tokenizer and scores.parquet (splits test and anchor).  Returns
    status and how many there were.
    """
    model, codec = load_encoder(rewards[0])
    states = [load_encoder(folder)[0].state_dict() for folder in rewards]
    model.load_state_dict(lerp(states[0], states))
    model.save_pretrained(out)
    codec.save_pretrained(out)
    fixed = fixed_reviews(data).items()
    scores = pd.concat([scored(name, *rows, model, codec, tokens) for name, rows in fixed])
    scores.to_parquet(out / "scores.parquet", index=False)
    return {"status": "ok", "members": len(rewards)}
