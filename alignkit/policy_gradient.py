"""REINFORCE and RLOO with a KL to an anchor that follows the policy as its exponential moving average."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.data import load_reviews, prompts
from alignkit.evaluation import completion_logits
from alignkit.faults import UserFault
from alignkit.kl import kl_estimates
from alignkit.merging import ema_
from alignkit.metrics import repetition_rate
from alignkit.models import load_encoder, load_policy
from alignkit.pairs import zero_of
from alignkit.reward import score
from alignkit.sampling import full_texts, pad_left, sample
from alignkit.warp_deviations import greedy, mean_with_prompt

BASELINES = ("none", "mean", "rloo")
KL_EVERY = 5
"""Steps between two measurements of the KL to the SFT policy, each of which takes one more forward pass."""
CLIP = 1.0
"""Largest gradient norm."""
PARTS = 3
"""Forward passes that a batch is split into, by length of completion."""


def advantages(rewards: torch.Tensor, baseline: str) -> torch.Tensor:
    """Rewards (prompts, k) less a baseline, same shape.

    "none": the rewards as they are.  "mean": less the mean of the prompt's samples, each itself included, which shrinks
    the expected gradient to (k-1)/k.  "rloo": less the mean of the prompt's k-1 other samples, which leaves it as it is
    (Ahmadian et al. 2024, "Back to Basics", section 3.2).

    Raises UserFault for another baseline, and for "rloo" with k = 1, where there is no other sample.
    """
    if baseline not in BASELINES:
        raise UserFault(f"baseline: {baseline!r}; allowed: {', '.join(BASELINES)}")
    k = rewards.shape[1]
    if baseline == "rloo" and k < 2:
        raise UserFault(f"baseline: 'rloo' with {k} sample a prompt; allowed: 2 or more samples")
    if baseline == "none":
        return rewards
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred * k / (k - 1) if baseline == "rloo" else centred


def reinforce_loss(log_probs: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """-mean(A log π(y|x)), with REINFORCE's gradient (Williams 1992); no gradient flows through A.  Both (batch,)."""
    return -(advantage.detach() * log_probs).mean()


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
    greedily: bool = False,
    token_mean: bool = False,
) -> dict[str, Any]:
    """WARP's inner loop (Ramé et al. 2024, Algorithm 1, lines 4 to 9) from `policy`; also plain REINFORCE and RLOO.

    Each step draws k completions of batch / k train prompts (5-15 tokens), gives each the reward
    r(x, y) - β log(π(y|x) / anchor(y|x)), a sequence sum that no gradient flows through, takes one AdamW step (linear
    warm-up, then constant) and moves the anchor.  The anchor: "ema" follows the policy at `ema_rate`, "reference" stays
    at the SFT policy, "none" takes the KL away.  With k = 1 a baseline is taken over the whole batch.

    Runs that differ in `stream` alone start equal and see other prompts and other chances.  `keep` names steps at which
    the weights are kept as well, in step-<n>/; the rate is constant, so they are those of a shorter run.
    `greedily` and `token_mean` do what an earlier report did (`warp_deviations`).

    Writes the policy, its tokenizer and history.csv (`_row`).  Returns status ("diverged" after a gradient that was not
    finite), tokens, and the seconds spent on generation, scoring and update.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(stream)))
    model, tokenizer = load_policy(policy)  # line 4; dropout is off
    sft, _ = load_policy(reference)
    anchored = load_policy(policy)[0] if anchor == "ema" else sft
    judge, zero = load_encoder(reward), zero_of(reward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / max(1, warmup)))
    asked = _prompts(data, tokenizer, seed, rng, batch // k)
    draw = greedy if greedily else sample
    log, seconds, status = [], np.zeros(3), "ok"
    for step in range(1, steps + 1):
        times = [time.perf_counter()]
        chance = int(rng.integers(2**31))
        samples = draw(model, tokenizer, next(asked), k=k, max_new_tokens=max_new_tokens, seed=chance)  # line 6
        times.append(time.perf_counter())
        rewards = torch.tensor(score(*judge, full_texts(samples, tokenizer), tokens=reward_tokens) - zero)
        times.append(time.perf_counter())
        log_probs, against = completion_sums(model, anchored, samples)
        if token_mean:
            log_probs, against["k1"] = mean_with_prompt(model, anchored, samples)
        penalised = rewards - (0 if anchor == "none" else beta) * against["k1"].double().cpu()  # line 7
        gain = advantages(penalised.view(-1, k) if k > 1 else penalised.view(1, -1), baseline).flatten()
        norm = _update(model, optimizer, reinforce_loss(log_probs, gain.to(log_probs)))  # line 8
        schedule.step()
        if anchor == "ema":
            ema_(anchored.state_dict(), model.state_dict(), ema_rate)  # line 9
        seconds += np.diff([*times, time.perf_counter()])
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
    parts = ("generation_seconds", "scoring_seconds", "update_seconds")
    spent = dict(zip(parts, seconds.round(2).tolist(), strict=True))
    return {"status": status, "tokens_generated": tokens, "tokens_trained": tokens, **spent}


def completion_sums(
    model: PreTrainedModel, anchored: PreTrainedModel, samples: pd.DataFrame
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """log π(completion | prompt), (batch,) and differentiable, and the `kl_estimates` to the anchor, (batch,) each.

    In nats, summed over the tokens of a completion, its end among them; the prompt does not count.  `entropy` is that
    of the policy's next token, averaged over the completion.  Left padding gets no position.
    """
    samples = samples.reset_index(drop=True)
    by_length = samples.completion_ids.map(len).sort_values(kind="stable").index
    parts = []
    # Short completions apart from long ones: less padding.
    for some in np.array_split(by_length, min(PARTS, len(by_length))):
        prompt_ids, completion_ids = samples.prompt_ids[some].tolist(), samples.completion_ids[some].tolist()
        tokens, mask = (t.to(model.device) for t in pad_left(completion_ids, 0))
        logits = completion_logits(model, prompt_ids, completion_ids)
        log_pi = torch.log_softmax(logits, dim=-1)
        with torch.no_grad():
            anchor_logits = completion_logits(anchored, prompt_ids, completion_ids)
            against = kl_estimates(logits, anchor_logits, tokens, mask)
            entropy = -(log_pi.exp() * log_pi).sum(dim=-1)
            against["entropy"] = (entropy * mask).sum(dim=1) / mask.sum(dim=1)
        parts.append({"own": (log_pi.gather(2, tokens[..., None]).squeeze(2) * mask).sum(dim=1), **against})
    back = torch.tensor(np.argsort(by_length), device=model.device)
    whole = {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
    return whole.pop("own"), whole


def _update(model: PreTrainedModel, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """One step, unless the gradient is not finite; returns the gradient's norm before it is clipped."""
    optimizer.zero_grad()
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), CLIP)
    if norm.isfinite():
        optimizer.step()
    return norm.item()


def _prompts(
    data: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int, rng: np.random.Generator, n: int
) -> Iterator[list[str]]:
    """n train prompts a step without end, none a second time before all have been seen.

    They are the beginnings of half of the train reviews, since some are too short.
    """
    train = list(load_reviews(seed=seed, **data)["train"]["text"])
    pool = prompts(train, tokenizer, n=max(n, len(train) // 2), shortest=5, longest=15, seed=seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < n:
            waiting += rng.permutation(len(pool)).tolist()
        now, waiting = waiting[:n], waiting[n:]
        yield [pool[i] for i in now]


def _row(
    step: int, samples: pd.DataFrame, rewards: torch.Tensor, against: dict[str, torch.Tensor], norm: float
) -> dict[str, float]:
    """What is logged at each step: means over its completions."""
    return {
        "step": step,
        "reward": rewards.mean().item(),
        "kl_anchor": against["exact"].mean().item(),
        "entropy": against["entropy"].mean().item(),
        "length": float(samples.completion_ids.map(len).mean()),
        "repetition": float(repetition_rate(samples.completion.tolist()).mean()),
        "grad_norm": norm,
    }


@torch.no_grad()
def _drift(step: int, model: PreTrainedModel, sft: PreTrainedModel, samples: pd.DataFrame) -> dict[str, float]:
    """The exact KL to the SFT policy after the step, now and then."""
    if step > 1 and step % KL_EVERY:
        return {}
    return {"kl_sft": completion_sums(model, sft, samples)[1]["exact"].mean().item()}


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
