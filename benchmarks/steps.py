"""Steps of training at full size on one core: seconds, matrix products and memory, with the models of profile imdb."""

import ctypes
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from standins import encoder, policy
from starts import RATE, Start, pairs
from torch.utils.flop_counter import FlopCounterMode

from alignkit import paths
from alignkit.training.dpo import DpoSettings, train_dpo
from alignkit.training.evaluate import EvaluationSettings, evaluate
from alignkit.training.reinforce import LoopSettings, train_policy_gradient
from alignkit.training.reward import RewardSettings, fixed_reviews, train_reward, write_scores
from alignkit.training.sft import fine_tune
from alignkit.workflow import parameters
from alignkit.world.models import load_encoder, load_policy, save, train_tokenizer
from alignkit.world.reviews import Reviews

WORDS = 50_257
"""GPT-2's vocabulary."""
Shapes = tuple[dict[str, int], dict[str, int]]
"""Of the policy and the encoder, where they are not the published ones."""
DRAWN = 512
"""Completions that are drawn at a time."""
P = parameters.load(paths.PARAMS / "imdb" / "5_improvements.yaml")
BATCHES = {
    "gradient": (4, 16, P.warp_batch),
    "pairs": (2, 8, P.dpo_batch),
    "texts": (4, 16, P.sft_batch),
    "reviews": (2, 8, P.reward_batch),
    "drawn": (8, 32, DRAWN),
}
"""Of each kind of step two that fit in 5 GB, and the profile's own: completions, pairs, texts, reviews, completions."""


def full_size(folder: Path, data: Reviews, words: int = WORDS, shapes: Shapes = ({}, {})) -> Start:
    """GPT-2 and DistilBERT with random weights, in their published shapes or smaller; a word is a token."""
    here = Start(data, folder / "policy", folder / "reward", P.new_tokens)
    texts = list(data.load(0)["train"]["text"])
    filled = train_tokenizer("word", [*texts, " ".join(f"word{i}" for i in range(words))], words)
    save(here.policy, policy(filled, vocab_size=words, **shapes[0]), filled)
    save(here.reward, encoder(**shapes[1]), train_tokenizer("encoder_word", texts, 20_000))
    write_scores(here.reward, fixed_reviews(data), *load_encoder(here.reward), tokens=8)
    return here


def gradient(here: Start, batch: int, steps: int, out: Path) -> None:
    sizes = {"max_new_tokens": here.new_tokens, "reward_tokens": P.reward_tokens}
    how = {"baseline": "none", "beta": P.warp_beta, "lr": RATE, "warmup": 0, "anchor": "ema", "ema_rate": 0.01}
    models = {"policy": here.policy, "reference": here.policy, "reward": here.reward}
    train_policy_gradient(out, LoopSettings(steps, batch, k=1, **how, **sizes), seed=0, data=here.data, **models)


def on_pairs(here: Start, batch: int, steps: int, out: Path, given: Path) -> None:
    epochs = steps * batch / len(pd.read_parquet(given / "pairs" / "train.parquet"))
    settings = DpoSettings("sigmoid", "reverse_kl", P.main_beta, epochs, batch, RATE)
    train_dpo(out, settings, seed=0, policy=here.policy, pairs=given)


def on_texts(here: Start, batch: int, steps: int, out: Path) -> None:
    texts = sorted(here.data.load(0)["train"]["text"], key=len)[-1 - batch * steps :]
    how = {"seed": 0, "epochs": 1, "batch": batch, "lr": RATE}
    fine_tune(*load_policy(here.policy), texts, P.sft_tokens, 1, **how)


def on_reviews(here: Start, batch: int, steps: int, out: Path) -> None:
    scratch = {"tokenizer": "", "vocab": 0, "width": 0, "layers": 0, "heads": 0, "sinusoidal": False}
    how = {"tokens": P.reward_tokens, "dropout": P.reward_dropout, "word_dropout": 0.0, "epochs": 1, "lr": RATE}
    settings = RewardSettings(str(here.reward), **scratch, **how, batch=batch, n_train=batch * steps)
    train_reward(out, settings, seed=0, data=here.data)


def drawing(here: Start, batch: int, steps: int, out: Path) -> None:
    """No training: completions of four prompts a step are drawn, scored, and their KL taken."""
    settings = EvaluationSettings(4 * steps, batch // 4, here.new_tokens, P.reward_tokens)
    evaluate(out, settings, seed=0, data=here.data, policy=here.policy, reference=here.policy, reward=here.reward)


def cost(run: Callable[..., None], batch: int, steps: int) -> np.ndarray:
    """Core seconds, teraflop, and by how many GB memory grew at its peak."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = resident("VmRSS"), time.process_time()
    with tempfile.TemporaryDirectory() as out, FlopCounterMode(display=False) as counter:
        run(batch, steps, Path(out))
    return np.array([time.process_time() - started, counter.get_total_flops() / 1e12, resident("VmHWM") - before])


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def measured(data: Reviews, batches: dict[str, tuple[int, int, int]] = BATCHES, **size: Any) -> pd.DataFrame:
    """Each kind of step at its first two batches, and on the line through both at the third.

    What a run costs before and after its steps is taken away, but not from its memory: models, gradient and optimizer.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        here = full_size(Path(folder), data, **size)
        given = pairs(Path(folder) / "pairs", here, prompts=10)
        kinds = {"gradient": gradient, "pairs": partial(on_pairs, given=given), "texts": on_texts}
        for kind, run in {**kinds, "reviews": on_reviews, "drawn": drawing}.items():
            low, high, whole = batches[kind]
            at = []
            for batch in (low, high):
                once, twice = (cost(partial(run, here), batch, steps) for steps in (1, 2))
                at.append(np.array([*(twice - once)[:2], once[2]]))
                rows.append((kind, batch, "measured", *at[-1]))
            line = at[0] + (at[1] - at[0]) / (high - low) * (whole - low)
            rows.append((kind, whole, "on the line", *line))
            print(*rows[-1], flush=True)
    return pd.DataFrame(rows, columns=["step", "batch", "how", "core_seconds", "teraflop", "peak_gb"])
