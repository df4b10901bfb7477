"""REINFORCE and RLOO with a KL to an anchor: the loop inside WARP, and the loops that improve on it."""

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.faults import UserFault
from alignkit.merging import ema_
from alignkit.metrics import repetition_rate
from alignkit.policy_gradient import (
    BASELINES,
    Terms,
    completion_sums,
    reinforce_loss,
    sentence_ends,
    sentence_starts,
    token_advantages,
    token_terms,
    values_before,
)
from alignkit.sampling import full_texts, sample
from alignkit.training.deviations import greedy, mean_with_prompt
from alignkit.training.reward import score, zero_of
from alignkit.world.models import load_encoder, load_policy
from alignkit.world.reviews import fingerprint, load_reviews, prompts

SENTENCE = "sentence"
"""The baseline that gives each sentence what it adds (`credit.token_advantages`)."""


ANCHORS = ("ema", "reference", "none")


KL_EVERY = 5
"""Steps between two measurements of the KL to the SFT policy, each of which takes one more forward pass."""


CLIP = 1.0
"""Largest gradient norm."""


LEAST_RATE = 0.02
"""Share of the learning rate that a falling rate never goes below."""


def train_policy_gradient(
    out: Path,
    *,
    seed: int,
    data: dict[str, Any],
    policy: Path,
    reference: Path,
    reward: Path,
    reward_tokens: int,
    steps: int,
    batch: int,
    k: int,
    baseline: str,
    beta: float,
    lr: float,
    warmup: int,
    anchor: str,
    ema_rate: float,
    max_new_tokens: int,
    stream: Sequence[int] = (),
    keep: Sequence[int] = (),
    decay: bool = False,
    exact_kl: bool = False,
    greedily: bool = False,
    token_mean: bool = False,
) -> dict[str, Any]:
    """WARP's inner loop (Ramé et al. 2024, Algorithm 1, lines 4 to 9) from `policy`; also plain REINFORCE and RLOO.

    Each step draws k completions of batch / k train prompts (5-15 tokens), gives each the reward
    r(x, y) - β log(π(y|x) / anchor(y|x)), a sequence sum that no gradient flows through, takes one AdamW step (linear
    warm-up, then constant) and moves the anchor.  The anchor: "ema" follows the policy at `ema_rate`, "reference" stays
    at the SFT policy, "none" takes the KL away.  With k = 1 a baseline is taken over the whole batch.

    Beyond Algorithm 1: baseline "sentence" credits each sentence with what it adds; `decay` lets the rate fall linearly
    after the warm-up, towards LEAST_RATE of itself; `exact_kl` differentiates the exact KL of each step instead of
    sampling it.  `greedily` and `token_mean` do what an earlier report did (`warp_deviations`).

    Runs that differ in `stream` alone start equal and see other prompts and other chances.  `keep` names steps at which
    the weights are kept as well, in step-<n>/; under a constant rate they are those of a shorter run.

    Writes the policy, its tokenizer and history.csv (`_row`).  Returns status ("diverged" after a gradient that was not
    finite), tokens, texts_scored (what the reward model read), and the seconds spent on generation, scoring and update.
    Raises UserFault for another baseline or anchor, and for `token_mean`, which has no single tokens, with "sentence"
    or `exact_kl`.
    """
    _allowed("baseline", baseline, (*BASELINES, SENTENCE))
    _allowed("anchor", anchor, ANCHORS)
    if token_mean and (exact_kl or baseline == SENTENCE):
        raise UserFault(f"token_mean: true with exact_kl or the baseline {SENTENCE!r}; allowed: neither of them")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(stream)))
    model, tokenizer = load_policy(policy)  # line 4; dropout is off
    sft, _ = load_policy(reference)
    anchored = load_policy(policy)[0] if anchor == "ema" else sft
    judge, zero = load_encoder(reward), zero_of(reward)
    beta = 0.0 if anchor == "none" else beta
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda done: _rate(done, steps, warmup, decay))
    asked = train_prompts(data, reference, seed, rng, batch // k)
    draw = greedy if greedily else sample
    ends = sentence_ends(tokenizer) if baseline == SENTENCE else set()
    log, seconds, texts, status = [], np.zeros(3), 0, "ok"

    def read(some: list[str]) -> torch.Tensor:
        return torch.tensor(score(*judge, some, tokens=reward_tokens) - zero)

    for step in range(1, steps + 1):
        times = [time.perf_counter()]
        chance = int(rng.integers(2**31))
        samples = draw(model, tokenizer, next(asked), k=k, max_new_tokens=max_new_tokens, seed=chance)  # line 6
        times.append(time.perf_counter())
        rewards = read(full_texts(samples, tokenizer))
        starts = sentence_starts(samples, ends) if baseline == SENTENCE else []
        values = values_before(samples, starts, tokenizer, read) if starts else None
        texts += len(samples) + sum(map(len, starts))
        times.append(time.perf_counter())
        terms = token_terms(model, anchored, samples, differentiable_kl=exact_kl)
        credited = _one_token(*mean_with_prompt(model, anchored, samples)) if token_mean else terms
        gains = token_advantages(
            rewards, credited, beta=beta, baseline=baseline, k=k, values=values, exact_kl=exact_kl
        )  # line 7
        loss = reinforce_loss(credited["own"], gains.to(credited["own"]))
        if exact_kl:
            loss = loss + beta * terms["exact"].sum(dim=1).mean()
        norm = _update(model, optimizer, schedule, loss)  # line 8
        if anchor == "ema":
            ema_(anchored.state_dict(), model.state_dict(), ema_rate)  # line 9
        seconds += np.diff([*times, time.perf_counter()])
        log.append(_row(step, samples, rewards, terms, norm) | _drift(step, model, sft, samples))
        stopped = not np.isfinite(norm)
        for kept in keep:
            if kept == step or (stopped and kept > step):  # what comes after has the last finite weights
                _save(out / f"step-{kept}", model, tokenizer)
        if stopped:
            status = "diverged"
            break
    _save(out, model, tokenizer)
    history = pd.DataFrame(log)
    history.to_csv(out / "history.csv", index=False)
    tokens = round((history.length * k * (batch // k)).sum())
    parts = ("generation_seconds", "scoring_seconds", "update_seconds")
    spent = dict(zip(parts, seconds.round(2).tolist(), strict=True))
    return {"status": status, "tokens_generated": tokens, "tokens_trained": tokens, "texts_scored": texts, **spent}


def train_prompts(
    data: dict[str, Any], policy: Path, seed: int, rng: np.random.Generator, n: int
) -> Iterator[list[str]]:
    """n train prompts a step without end, none a second time before all have been seen.

    They are the beginnings of half of the train reviews, since some are too short, in tokens of `policy`.
    """
    pool = _beginnings(policy, seed, fingerprint(**data), tuple(data.items()))
    waiting: list[int] = []
    while True:
        while len(waiting) < n:
            waiting += rng.permutation(len(pool)).tolist()
        now, waiting = waiting[:n], waiting[n:]
        yield [pool[i] for i in now]


@lru_cache(maxsize=2)  # runs of a seed share them, and they take as long as several steps
def _beginnings(policy: Path, seed: int, _: str, data: tuple[tuple[str, Any], ...]) -> list[str]:
    train = load_reviews(seed=seed, **dict(data))["train"]["text"][:]
    return prompts(train, load_policy(policy)[1], n=len(train) // 2, shortest=5, longest=15, seed=seed)


def _allowed(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserFault(f"{name}: {value!r}; allowed: {', '.join(allowed)}")


def _rate(done: int, steps: int, warmup: int, decay: bool) -> float:
    rising = min(1.0, (done + 1) / max(1, warmup))
    falling = 1 - max(0, done - warmup) / max(1, steps - warmup)
    return rising * (max(LEAST_RATE, falling) if decay else 1)


def _one_token(own: torch.Tensor, k1: torch.Tensor) -> Terms:
    """Numbers of whole completions, (batch,), in the shape of `token_terms`."""
    return {"own": own[:, None], "k1": k1[:, None], "mask": torch.ones_like(k1[:, None])}


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
    """The exact KL to the SFT policy after the step, now and then, along texts drawn just before it."""
    if step > 1 and step % KL_EVERY:
        return {}
    return {"kl_sft": completion_sums(model, sft, samples)[1]["exact"].mean().item()}


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
