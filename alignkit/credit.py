"""REINFORCE with less noise: who is credited for a reward, and how the KL to the reference enters.

`policy_gradient.py` is Algorithm 1 as published: one number for a whole completion.  Here that number may differ from
token to token.  The expected gradient of E[r] - β KL stays what it is; the noise does not.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.evaluation import completion_logits
from alignkit.faults import UserFault
from alignkit.merging import ema_
from alignkit.models import load_encoder, load_policy
from alignkit.pairs import zero_of
from alignkit.policy_gradient import PARTS, _drift, _prompts, _row, _save, _update, advantages
from alignkit.reward import score
from alignkit.sampling import full_texts, pad_left, sample

CREDITS = ("rloo", "sentence")
ANCHORS = ("ema", "reference")
SENTENCE_ENDS = (".", "!", "?")
LEAST_RATE = 0.02
"""Share of the learning rate that is left at the last step."""

Terms = dict[str, torch.Tensor]


def train_with_credit(
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
    exact_kl: bool = False,
    decay: bool = True,
) -> dict[str, Any]:
    """`policy_gradient.train_policy_gradient` with token advantages; what both have means the same.

    baseline: "rloo" gives every token of a completion the same advantage, "sentence" what its sentence and those after
    it add (`token_advantages`).  exact_kl differentiates the exact KL of each step instead of sampling it.  With decay
    the learning rate falls linearly after the warm-up, to LEAST_RATE of itself at the last step.

    Writes the policy, its tokenizer and history.csv.  Returns status, tokens, texts_scored (what the reward model read)
    and seconds.  Raises UserFault for another baseline or anchor.
    """
    if baseline not in CREDITS:
        raise UserFault(f"baseline: {baseline!r}; allowed: {', '.join(CREDITS)}")
    if anchor not in ANCHORS:
        raise UserFault(f"anchor: {anchor!r}; allowed: {', '.join(ANCHORS)}")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(stream)))
    model, tokenizer = load_policy(policy)
    sft, _ = load_policy(reference)
    anchored = load_policy(policy)[0] if anchor == "ema" else sft
    judge, zero = load_encoder(reward), zero_of(reward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda done: _rate(done, steps, warmup, decay))
    asked = _prompts(data, tokenizer, seed, rng, batch // k)
    ends = {i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip().endswith(SENTENCE_ENDS)}
    log, texts, status, started = [], 0, "ok", time.perf_counter()
    for step in range(1, steps + 1):
        chance = int(rng.integers(2**31))
        samples = sample(model, tokenizer, next(asked), k=k, max_new_tokens=max_new_tokens, seed=chance)
        read = lambda some: torch.tensor(score(*judge, some, tokens=reward_tokens) - zero)  # noqa: E731
        rewards = read(full_texts(samples, tokenizer))
        terms = token_terms(model, anchored, samples)
        starts = sentence_starts(samples, ends) if baseline == "sentence" else []
        values = values_before(samples, starts, tokenizer, read) if starts else None
        gains = token_advantages(rewards, terms, beta=beta, k=k, values=values, exact_kl=exact_kl)
        loss = -(gains.to(terms["own"]) * terms["own"]).sum(dim=1).mean()
        if exact_kl:
            loss = loss + beta * terms["exact"].sum(dim=1).mean()
        norm = _update(model, optimizer, loss)
        schedule.step()
        if anchor == "ema":
            ema_(anchored.state_dict(), model.state_dict(), ema_rate)
        texts += len(samples) + sum(map(len, starts))
        against = {"exact": terms["exact"].detach().sum(dim=1), "entropy": terms["entropy"]}
        log.append(_row(step, samples, rewards, against, norm) | _drift(step, model, sft, samples))
        if not np.isfinite(norm):
            status = "diverged"
            break
        if step in keep:
            _save(out / f"step-{step}", model, tokenizer)
    _save(out, model, tokenizer)
    history = pd.DataFrame(log)
    history.to_csv(out / "history.csv", index=False)
    tokens = round((history.length * batch).sum())
    spent = round(time.perf_counter() - started, 2)
    return {"status": status, "tokens_generated": tokens, "tokens_trained": tokens, "texts_scored": texts,
            "training_seconds": spent}  # fmt: skip


def _rate(done: int, steps: int, warmup: int, decay: bool) -> float:
    rising = min(1.0, (done + 1) / max(1, warmup))
    falling = 1 - max(0, done - warmup) / max(1, steps - warmup)
    return rising * (max(LEAST_RATE, falling) if decay else 1)


def token_advantages(
    rewards: torch.Tensor,
    terms: Terms,
    *,
    beta: float,
    k: int = 1,
    values: torch.Tensor | None = None,
    exact_kl: bool = False,
) -> torch.Tensor:
    """What each token is credited with, (batch, longest completion), float64; rewards are (batch,), k to a prompt.

    Without values: RLOO of r - β KL for all tokens alike.  With values V(t), the reward of the text before the token's
    sentence (`values_before`): r - V(t) - β Σ_{s >= t} log-ratio(s), less the mean of the same quantity over the
    batch's other completions at that position.  What was written before a token cannot depend on it, so nothing
    that is subtracted here changes the expected gradient.

    The KL is k1, or with exact_kl the sum of exact steps, to which the caller adds β times its own gradient: the sum
    over steps of what a step changes at once and of what it changes later (product rule).
    """
    kl = terms["exact" if exact_kl else "k1"].detach().double()
    mask = terms["mask"]
    if values is None:
        penalised = rewards - beta * kl.sum(dim=1)
        return advantages(penalised.view(-1, k), "rloo").view(-1, 1) * mask
    to_go = kl.flip(1).cumsum(1).flip(1)
    gains = (rewards[:, None] - values - beta * to_go) * mask
    others = (gains.sum(dim=0) - gains) / (mask.sum(dim=0) - 1).clamp(min=1)
    return (gains - others) * mask


def sentence_starts(samples: pd.DataFrame, ends: set[int]) -> list[list[int]]:
    """The positions at which each completion's sentences begin, the first at 0; `ends` are tokens that end one."""
    return [
        [0, *(t + 1 for t, token in enumerate(completion[:-1]) if token in ends)]
        for completion in samples.completion_ids
    ]


def values_before(
    samples: pd.DataFrame, starts: list[list[int]], tokenizer: PreTrainedTokenizerBase, read: Callable
) -> torch.Tensor:
    """The reward of the text before each token's sentence, (batch, longest completion), float64.

    In a completion's first sentence that text is the prompt.  `read` maps texts to rewards, (texts,).
    """
    rows = list(zip(samples.prompt_ids, samples.completion_ids, starts, strict=True))
    before = [list(p) + list(c[:start]) for p, c, here in rows for start in here]
    rewards = read([tokenizer.decode(ids, skip_special_tokens=True) for ids in before])
    values = torch.zeros(len(samples), max(map(len, samples.completion_ids)), dtype=torch.float64)
    places = [(row, start) for row, here in enumerate(starts) for start in here]
    for (row, start), value in zip(places, rewards, strict=True):
        values[row, start:] = value
    return values


def token_terms(model: PreTrainedModel, anchored: PreTrainedModel, samples: pd.DataFrame) -> Terms:
    """Of each token of each completion, (batch, longest completion), from its first token on, 0 after its end:

    own, log π (differentiable); k1, its log-ratio to the anchor; exact, the KL of the whole next-token distribution
    (differentiable); mask.  Also entropy, (batch,), the mean over a completion of the next token's.  In nats.
    """
    samples = samples.reset_index(drop=True)
    longest = int(samples.completion_ids.map(len).max())
    by_length = samples.completion_ids.map(len).sort_values(kind="stable").index
    parts = []
    for some in np.array_split(by_length, min(PARTS, len(by_length))):
        prompt_ids, completion_ids = samples.prompt_ids[some].tolist(), samples.completion_ids[some].tolist()
        tokens, mask = (t.to(model.device) for t in pad_left(completion_ids, 0))
        log_pi = torch.log_softmax(completion_logits(model, prompt_ids, completion_ids), dim=-1)
        with torch.no_grad():
            log_ref = torch.log_softmax(completion_logits(anchored, prompt_ids, completion_ids), dim=-1)
        own = log_pi.gather(2, tokens[..., None]).squeeze(2)
        terms = {
            "own": own,
            "k1": own.detach() - log_ref.gather(2, tokens[..., None]).squeeze(2),
            "exact": (log_pi.exp() * (log_pi - log_ref)).sum(dim=-1),
            "entropy": -(log_pi.exp() * log_pi).detach().sum(dim=-1),
            "mask": mask.to(own),
        }
        parts.append({name: _from_the_left(values * mask, mask, longest) for name, values in terms.items()})
    back = torch.tensor(np.argsort(by_length), device=model.device)
    whole = {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
    whole["entropy"] = whole["entropy"].sum(dim=1) / whole["mask"].sum(dim=1)
    return whole


def _from_the_left(values: torch.Tensor, mask: torch.Tensor, longest: int) -> torch.Tensor:
    """Rows that were padded on the left, padded on the right with zeros instead, up to `longest`."""
    lengths = mask.sum(dim=1)
    places = torch.arange(longest, device=values.device)
    source = (places + (values.shape[1] - lengths)[:, None]).clamp(max=values.shape[1] - 1)
    return values.gather(1, source) * (places < lengths[:, None])
