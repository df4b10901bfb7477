"""REINFORCE and RLOO with a KL to an anchor: the loop inside WARP, and the loops that improve on it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from alignkit.decoding import NotFinite
from alignkit.faults import UserFault
from alignkit.merging import ema_
from alignkit.metrics import repetition_rate
from alignkit.policy_gradient import (
    BASELINES,
    Terms,
    completion_sums,
    reinforce_loss,
    token_advantages,
    token_terms,
)
from alignkit.sampling import full_texts, sample
from alignkit.training.credit import sentence_ends, sentence_starts, values_before
from alignkit.training.reward import score, zero_of
from alignkit.world import resume
from alignkit.world.models import load_encoder, load_policy, save
from alignkit.world.reviews import Reviews, prompts

SENTENCE = "sentence"
"""The baseline that gives each sentence what it adds (`policy_gradient.token_advantages`)."""
ANCHORS = ("ema", "reference", "none")
KL_EVERY = 10
"""Steps between two measurements of the KL to the SFT policy, each of which takes one more forward pass."""
CLIP = 1.0
"""Largest gradient norm."""
HISTORY = "step reward kl_anchor entropy length repetition grad_norm kl_sft".split()
LEAST_RATE = 0.02
"""Share of the learning rate that a falling rate never goes below."""


@dataclass(frozen=True)
class LoopSettings:
    """How a policy is trained on the rewards of its own completions."""

    steps: int
    batch: int
    """Completions a step."""
    k: int
    """Completions of each prompt; with 1 a baseline is taken over the whole batch."""
    baseline: str
    """One of `policy_gradient.BASELINES`, or SENTENCE."""
    beta: float
    """Strength of the KL to the anchor."""
    lr: float
    warmup: int
    """Steps over which the learning rate rises; then it is constant, or falls with `decay`."""
    anchor: str
    """"ema" follows the policy at `ema_rate`, "reference" stays at the SFT policy, "none" takes the KL away."""
    ema_rate: float
    max_new_tokens: int
    reward_tokens: int
    keep: tuple[int, ...] = ()
    """Steps at which the weights are kept as well; under a constant rate they are those of a shorter run."""
    decay: bool = False
    """Whether the rate falls linearly after the warm-up, towards LEAST_RATE of itself."""
    exact_kl: bool = False
    """Whether the exact KL of each step is differentiated, in place of sampling it."""


def train_policy_gradient(
    out: Path,
    settings: LoopSettings,
    *,
    seed: int,
    data: Reviews,
    policy: Path,
    reference: Path,
    reward: Path,
    stream: Sequence[int] = (),
) -> dict[str, Any]:
    """WARP's inner loop (Ramé et al. 2024, Algorithm 1, lines 4 to 9) from `policy`; also plain REINFORCE and RLOO.

    Each step draws k completions of batch / k train prompts (5-15 tokens), gives each the reward
    r(x, y) - β log(π(y|x) / anchor(y|x)), a sequence sum that no gradient flows through, takes one AdamW step and moves
    the anchor.  Runs that differ in `stream` alone start equal and see other prompts and other chances.

    Writes the policy, its tokenizer, history.csv (`_row`) and step-<n>/ for each step to keep.  Returns status
    ("diverged", and diverged_at, the step whose gradient or logits were not finite), tokens, texts_scored (what the
    reward model read), and the seconds spent on generation, scoring and update.  Raises UserFault for another baseline
    or anchor.
    """
    inputs = {"seed": seed, "data": data, "policy": policy, "reference": reference, "reward": reward, "stream": stream}
    return policy_gradient_loop(out, settings, **inputs, draw=sample, credited=all_terms)


def all_terms(model: PreTrainedModel, anchored: PreTrainedModel, samples: pd.DataFrame, terms: Terms) -> Terms:
    """Each token's own log-prob and KL, as Algorithm 1 has them."""
    return terms


def policy_gradient_loop(
    out: Path,
    settings: LoopSettings,
    *,
    seed: int,
    data: Reviews,
    policy: Path,
    reference: Path,
    reward: Path,
    draw: Callable[..., pd.DataFrame],
    credited: Callable[..., Terms],
    stream: Sequence[int] = (),
) -> dict[str, Any]:
    """`train_policy_gradient`, with two parts that `deviations` replaces.

    draw: as `sampling.sample`.  credited: (model, anchored, samples, terms) -> the terms that rewards are given to.
    """
    s = settings
    _allowed("baseline", s.baseline, (*BASELINES, SENTENCE))
    _allowed("anchor", s.anchor, ANCHORS)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(stream)))
    model, tokenizer = load_policy(policy)  # line 4; dropout is off
    sft, _ = load_policy(reference)
    anchored = load_policy(policy)[0] if s.anchor == "ema" else sft
    read = reader(reward, s.reward_tokens)
    beta = 0.0 if s.anchor == "none" else s.beta
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=0.0, fused=True)
    schedule = LambdaLR(optimizer, lambda done: _rate(done, s))
    asked = train_prompts(data, reference, seed, rng, s.batch // s.k)
    ends = sentence_ends(tokenizer) if s.baseline == SENTENCE else set()
    log, texts, tokens, end = [], 0, 0, {"status": "ok"}
    spent = dict.fromkeys(("generation_seconds", "scoring_seconds", "update_seconds"), 0.0)
    moving = {"model": model, "anchored": anchored, "optimizer": optimizer, "schedule": schedule}
    if begun := resume.kept(out, moving):
        log, texts, tokens, spent = (begun[name] for name in ("log", "texts", "tokens", "spent"))
        for _ in log:  # the chances of the steps that are done
            rng.integers(2**31), next(asked)

    def keep(step: int, stopped: bool) -> None:
        """The weights at this step, if they are asked for; of a run that stops, those of all later steps too."""
        for kept in s.keep:
            if kept == step or (stopped and kept > step):
                save(out / f"step-{kept}", model, tokenizer)

    for step in range(len(log) + 1, s.steps + 1):
        try:
            with _timed(spent, "generation_seconds"):
                chance = int(rng.integers(2**31))
                sizes = {"k": s.k, "max_new_tokens": s.max_new_tokens}
                samples = draw(model, tokenizer, next(asked), **sizes, seed=chance)  # line 6
        except NotFinite:
            keep(step - 1, stopped=True)
            end = {"status": "diverged", "diverged_at": step}
            break
        with _timed(spent, "scoring_seconds"):
            rewards = read(full_texts(samples, tokenizer))
            starts = sentence_starts(samples, ends) if s.baseline == SENTENCE else []
            values = values_before(samples, starts, tokenizer, read) if starts else None
        with _timed(spent, "update_seconds"):
            terms = token_terms(model, anchored, samples, differentiable_kl=s.exact_kl)
            given = credited(model, anchored, samples, terms)
            how = {"beta": beta, "baseline": s.baseline, "k": s.k, "exact_kl": s.exact_kl}
            gains = token_advantages(rewards, given, values=values, **how)  # line 7
            loss = reinforce_loss(given["own"], gains.to(given["own"]))
            if s.exact_kl:
                loss = loss + beta * terms["exact"].sum(dim=1).mean()
            norm = _update(model, optimizer, schedule, loss)  # line 8
            if s.anchor == "ema":
                ema_(anchored.state_dict(), model.state_dict(), s.ema_rate)  # line 9
        texts += len(samples) + sum(map(len, starts))
        tokens += int(samples.completion_ids.map(len).sum())
        log.append(_row(step, samples, rewards, terms, norm) | _drift(step, model, sft, samples))
        keep(step, stopped=not np.isfinite(norm))
        if not np.isfinite(norm):
            end = {"status": "diverged", "diverged_at": step}
            break
        resume.keep(out, moving, log=log, texts=texts, tokens=tokens, spent=spent)
    resume.ended(out)
    save(out, model, tokenizer)
    pd.DataFrame(log, columns=HISTORY).to_csv(out / "history.csv", index=False)
    rounded = {name: round(seconds, 2) for name, seconds in spent.items()}
    return {**end, "tokens_generated": tokens, "tokens_trained": tokens, "texts_scored": texts, **rounded}


@contextmanager
def _timed(spent: dict[str, float], part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[part] += time.perf_counter() - started


def reader(reward: Path, tokens: int) -> Callable[[list[str]], torch.Tensor]:
    """A function from texts to their rewards, (texts,), less the mean reward of unlabelled reviews."""
    model, tokenizer = load_encoder(reward)
    zero = zero_of(reward)
    return lambda texts: torch.tensor(score(model, tokenizer, texts, tokens=tokens) - zero)


def train_prompts(data: Reviews, policy: Path, seed: int, rng: np.random.Generator, n: int) -> Iterator[list[str]]:
    """n train prompts a step without end, none a second time before all have been seen.

    They are the beginnings of half of the train reviews, since some are too short, in tokens of `policy`.
    """
    pool = _beginnings(policy, seed, data.fingerprint(), data)
    waiting: list[int] = []
    while True:
        while len(waiting) < n:
            waiting += rng.permutation(len(pool)).tolist()
        now, waiting = waiting[:n], waiting[n:]
        yield [pool[i] for i in now]


@lru_cache(maxsize=2)  # runs of a seed share them, and they take as long as several steps
def _beginnings(policy: Path, seed: int, _: str, data: Reviews) -> list[str]:
    train = data.load(seed)["train"]["text"][:]
    return prompts(train, load_policy(policy)[1], n=len(train) // 2, shortest=5, longest=15, seed=seed)


def _allowed(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserFault(f"{name}: {value!r}; allowed: {', '.join(allowed)}")


def _rate(done: int, s: LoopSettings) -> float:
    rising = min(1.0, (done + 1) / max(1, s.warmup))
    falling = 1 - max(0, done - s.warmup) / max(1, s.steps - s.warmup)
    return rising * (max(LEAST_RATE, falling) if s.decay else 1)


def _update(model: PreTrainedModel, optimizer: torch.optim.Optimizer, schedule: LambdaLR, loss: torch.Tensor) -> float:
    """One step, unless the gradient is not finite; returns the gradient's norm before it is clipped."""
    optimizer.zero_grad()
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), CLIP)
    if norm.isfinite():
        optimizer.step()
        schedule.step()
    return norm.item()


def _row(step: int, samples: pd.DataFrame, rewards: torch.Tensor, terms: Terms, norm: float) -> dict[str, float]:
    """What is logged at each step: means over its completions."""
    return {
        "step": step,
        "reward": rewards.mean().item(),
        "kl_anchor": terms["exact"].detach().sum(dim=1).mean().item(),
        "entropy": terms["entropy"].mean().item(),
        "length": float(samples.completion_ids.map(len).mean()),
        "repetition": float(repetition_rate(samples.completion.tolist()).mean()),
        "grad_norm": norm,
    }


@torch.no_grad()
def _drift(step: int, model: PreTrainedModel, sft: PreTrainedModel, samples: pd.DataFrame) -> dict[str, float]:
    """The exact KL to the SFT policy after the first and each KL_EVERY-th step, along the texts of that step."""
    if step > 1 and step % KL_EVERY:
        return {}
    return {"kl_sft": completion_sums(model, sft, samples)[1]["exact"].mean().item()}
