"""Averaged reward models."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from helpers import called

from alignkit.training.reward import average_rewards, score_with, train_reward, zero_of
from alignkit.world.models import load_encoder


def member(world, out: Path, lr: float) -> Path:
    """Trained on from the world's reward model."""
    out.mkdir()
    shape = {"tokenizer": "encoder_word", "vocab": 400, "width": 16, "layers": 1, "heads": 2, "sinusoidal": True}
    training = {"tokens": 64, "dropout": 0.0, "word_dropout": 0.1, "epochs": 0.2, "min_steps": 2, "batch": 8, "lr": lr}
    inputs = {"seed": 0, "data": world.data, "start": world.reward}
    called(train_reward, out, **inputs, base="scratch", **shape, **training)
    return out


def test_its_weights_are_the_mean_and_it_serves_as_a_reward_model(world, tmp_path: Path):
    folders = [member(world, tmp_path / str(lr), lr) for lr in (1e-3, 2e-3, 4e-3)]
    out = tmp_path / "mean"
    out.mkdir()
    assert average_rewards(out, data=world.data, rewards=folders, tokens=64)["members"] == 3
    states = [load_encoder(folder)[0].state_dict() for folder in folders]
    for name, weight in load_encoder(out)[0].state_dict().items():
        mean = torch.stack([state[name].double() for state in states]).mean(dim=0)
        torch.testing.assert_close(weight.double(), mean, rtol=0, atol=1e-6)
    scores = pd.read_parquet(out / "scores.parquet")
    assert {"test", "anchor"} <= set(scores.split)
    assert np.isfinite(score_with(out, ["a dull film ."], tokens=64) - zero_of(out)).all()


def test_a_member_begins_at_the_model_that_it_is_given(world, tmp_path: Path):
    out = member(world, tmp_path / "still", 1e-9)
    texts = world.data.load(0)["test"]["text"][:20]
    still, given = (score_with(folder, texts, tokens=64) for folder in (out, world.reward))
    np.testing.assert_allclose(still, given, atol=1e-4)


def test_the_mean_of_one_is_that_one(world, tmp_path: Path):
    average_rewards(tmp_path, data=world.data, rewards=[world.reward], tokens=64)
    texts = ["a dull film .", "i loved every minute ."]
    np.testing.assert_allclose(score_with(tmp_path, texts, tokens=64), score_with(world.reward, texts, tokens=64))
