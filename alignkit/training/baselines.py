"""What one would try before preference learning: no training on pairs, or none at all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers

from alignkit.faults import UserFault
from alignkit.sampling import decode, full_texts, sample
from alignkit.training.evaluate import evaluation_prompts, measures, with_rewards
from alignkit.training.sft import fine_tune
from alignkit.world.known import truth_of
from alignkit.world.models import load_policy, save
from alignkit.world.reviews import Reviews


@dataclass(frozen=True)
class FineTuning:
    """How a policy is fine-tuned further."""

    tokens: int
    """Reviews are cut to this many policy tokens."""
    held_out: int
    """Reviews that give the validation loss."""
    epochs: float
    batch: int
    lr: float


def train_on_positive(out: Path, settings: FineTuning, *, seed: int, data: Reviews, policy: Path) -> dict[str, Any]:
    """Fine-tune the SFT policy further on the positive train reviews only.

    Writes the policy, its tokenizer and history.csv.  Raises UserFault if all positive reviews are held out.
    """
    s = settings
    transformers.set_seed(seed)
    model, tokenizer = load_policy(policy)
    train = data.load(seed)["train"].to_pandas()
    texts = train.text[train.label == 1].tolist()
    if s.held_out >= len(texts):
        raise UserFault(f"sft_held_out: {s.held_out}, but only {len(texts)} train reviews are positive; allowed: fewer")
    training = {"seed": seed, "epochs": s.epochs, "batch": s.batch, "lr": s.lr}
    end = fine_tune(out, model, tokenizer, texts, s.tokens, s.held_out, **training)
    save(out, model, tokenizer)
    return end


def positive_words(data: Reviews, tokenizer, n: int, strength: float) -> dict[str, float]:
    """The n tokens whose presence speaks most for a positive train review, each with the same bias in nats.

    Log-odds of presence with add-one smoothing, among tokens in at least 0.2 % of the reviews.
    """
    train = data.load(0)["train"].to_pandas()
    present = np.zeros((2, len(tokenizer)))
    for ids, label in zip(tokenizer(train.text.tolist())["input_ids"], train.label, strict=True):
        present[label, list(set(ids))] += 1
    log_odds = np.log(present[1] + 1) - np.log(present[0] + 1)
    log_odds[present.sum(axis=0) < 0.002 * len(train)] = -np.inf
    return {tokenizer.convert_ids_to_tokens(int(i)): strength for i in np.argsort(-log_odds)[:n]}


def best_of(samples: pd.DataFrame, n: int) -> pd.DataFrame:
    """The best of each n completions of a prompt by reward.  Raises ValueError if n does not divide them."""
    if (samples.groupby("prompt").size() % n).any():
        raise ValueError(f"best of {n}: {n} must divide the number of completions of every prompt")
    group = samples.groupby("prompt", sort=False).cumcount() // n
    return samples.loc[samples.groupby([samples.prompt, group], sort=False).reward.idxmax()]


@dataclass(frozen=True)
class SearchSettings:
    """How a guided search goes: every `chunk` tokens the best `beams` of beams x tries continuations are kept."""

    n_prompts: int
    max_new_tokens: int
    reward_tokens: int
    beams: int = 2
    tries: int = 4
    chunk: int = 8


def guided_search(
    out: Path, settings: SearchSettings, *, seed: int, data: Reviews, policy: Path, reward: Path
) -> dict[str, Any]:
    """Reward-guided beam search over sampled continuations.

    The reward model judges unfinished texts, for which it was not made.  The result is no sample of a policy, so it
    has no KL.  Writes completions.parquet with the best text of each test prompt; returns `measures` of them.
    """
    s = settings
    truth = truth_of(data.source)
    model, tokenizer = load_policy(policy)
    texts = evaluation_prompts(data, tokenizer, s.n_prompts)
    start = [list(ids) for ids in tokenizer(texts)["input_ids"]]
    state = pd.DataFrame({"which": range(len(texts)), "ids": start, "finished": False, "reward": -np.inf})
    generated = 0
    for step in range(-(-s.max_new_tokens // s.chunk)):
        open_ids = state[~state.finished]
        if open_ids.empty:
            break
        more = {"k": s.tries, "max_new_tokens": min(s.chunk, s.max_new_tokens - step * s.chunk)}
        drawn = sample(model, tokenizer, open_ids.ids.tolist(), **more, seed=seed + 1000 * step)
        generated += int(drawn.completion_ids.map(len).sum())
        drawn["which"] = np.repeat(open_ids.which.to_numpy(), s.tries)
        drawn["ids"] = [list(p) + list(c) for p, c in zip(drawn.prompt_ids, drawn.completion_ids, strict=True)]
        drawn["text"] = full_texts(drawn, tokenizer)
        both = pd.concat([with_rewards(drawn, reward, s.reward_tokens, truth), state[state.finished]])
        state = both.sort_values("reward", ascending=False, kind="stable").groupby("which").head(s.beams)
    best = state.groupby("which").head(1).sort_values("which").reset_index(drop=True)
    best["prompt"] = texts
    said = [ids[len(first) :] for ids, first in zip(best.ids, start, strict=True)]
    best["completion"] = decode(said, tokenizer)
    keep = ["prompt", "completion", "text", "finished", "reward", *(("gold", "well_formed") if truth else ())]
    best[keep].to_parquet(out / "completions.parquet", index=False)
    return {"status": "ok", **measures(best), "completions": 1, "tokens_generated": generated}
