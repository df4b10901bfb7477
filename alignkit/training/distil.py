"""Towards the optimum π* ∝ π_ref exp(r/β) with one draw: fitting the policy to weighted draws, and least squares on
log π*.

Both use what is known of the optimum without training: which of several draws it would keep, and its normalising
constant.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.special import logsumexp, softmax
from torch.nn.utils import clip_grad_norm_
from transformers import get_linear_schedule_with_warmup
from trl import SFTConfig

from alignkit.decoding import NotFinite
from alignkit.policy_gradient import reinforce_loss, token_terms
from alignkit.sampling import full_texts, sample
from alignkit.training.reinforce import CLIP, reader
from alignkit.training.sft import PlainSFTTrainer
from alignkit.world import resume
from alignkit.world.models import load_policy, quiet_training, run_trainer, save, trainer_arguments

VALIDATION = 0.05
"""Share of the prompts whose draws give the validation loss."""


def log_tilts(draws: pd.DataFrame, beta: float) -> np.ndarray:
    """log(π_ref exp(r/β) / π) of draws from π, (prompts, draws): the logarithm of each draw's weight."""
    tilts = draws.reward / beta + draws.ref_logps - draws.own_logps
    return tilts.to_numpy().reshape(draws.place.nunique(), -1)


def optimal_values(draws: pd.DataFrame, beta: float) -> np.ndarray:
    """V* = β log E_ref[exp(r/β)] of each prompt, (prompts,): the optimum's expected reward less β times its KL.

    Estimated from its draws (A*-PO, Brantley et al. 2025, arXiv 2505.20686, eq. 4); too low by about β/2 over
    their effective number.
    """
    tilts = log_tilts(draws, beta)
    return beta * (logsumexp(tilts, axis=1) - np.log(tilts.shape[1]))


@dataclass(frozen=True)
class DistilSettings:
    """How a policy is fitted to weighted draws."""

    beta: float
    """Of the weights exp(r/β) π_ref/π; the smaller, the further from the reference."""
    per_prompt: int
    """Texts of each prompt that are trained on, resampled from its draws by their weights."""
    batch: int
    lr: float


def distil(out: Path, settings: DistilSettings, *, seed: int, policy: Path, draws: Path) -> dict[str, Any]:
    """Fine-tune a policy on draws that are resampled by their weights within each prompt, in one pass.

    Reward-weighted regression (Peters and Schaal 2007) of π* ∝ π_ref exp(r/β): the expected gradient is that of
    KL(π* ‖ π), whoever drew the texts.  Writes the policy, its tokenizer and history.csv; returns status, tokens
    trained on and the median effective number of draws of a prompt.
    """
    s = settings
    model, tokenizer = load_policy(policy)
    table = pd.read_parquet(draws / "generations.parquet")
    tilts = log_tilts(table, s.beta)
    rows = resampled_rows(tilts, s.per_prompt, np.random.default_rng(seed))
    held_out = rows[: max(1, round(VALIDATION * len(rows)))]
    with quiet_training(out) as folder:
        arguments = trainer_arguments(folder, seed=seed, epochs=1, batch=s.batch, lr=s.lr, reports=8)
        trainer = PlainSFTTrainer(
            model=model,
            # By default TRL heeds completion_mask only beside prompts that are texts.
            args=SFTConfig(**arguments, max_length=None, completion_only_loss=True),
            train_dataset=_as_dataset(table, rows[len(held_out) :].ravel()),
            eval_dataset=_as_dataset(table, held_out.ravel()),
            processing_class=tokenizer,
        )
        _, end = run_trainer(trainer, out)
    save(out, model, tokenizer)
    shares = softmax(tilts, axis=1)
    return {
        **end,
        "tokens_trained": int(table.completion_ids.map(len).to_numpy()[rows[len(held_out) :]].sum()),
        "effective_draws": float(np.median(1 / (shares**2).sum(axis=1))),
    }


def resampled_rows(tilts: np.ndarray, times: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of draws, (prompts, times), each prompt's taken by their weights; systematic, so with little noise."""
    count, size = tilts.shape
    levels = (rng.random((count, 1)) + np.arange(times)) / times
    cumulated = softmax(tilts, axis=1).cumsum(axis=1)
    picked = np.stack([np.searchsorted(c, level) for c, level in zip(cumulated, levels, strict=True)])
    return rng.permuted(picked.clip(max=size - 1), axis=1) + size * np.arange(count)[:, None]


def _as_dataset(draws: pd.DataFrame, rows: np.ndarray) -> Dataset:
    """Token ids of prompts and completions, and masks by which only the completions' count in the loss."""
    taken = draws.iloc[rows]
    pairs = list(zip(taken.prompt_ids, taken.completion_ids, strict=True))
    ids = [[*prompt, *completion] for prompt, completion in pairs]
    mask = [[0] * len(prompt) + [1] * len(completion) for prompt, completion in pairs]
    return Dataset.from_dict({"input_ids": ids, "completion_mask": mask})


@dataclass(frozen=True)
class RegressionSettings:
    """How log π is regressed on the optimum's."""

    beta: float
    steps: int
    batch: int
    """Completions a step; on policy each of another prompt."""
    lr: float
    warmup: int
    """Steps over which the learning rate rises from 0, at which the first step is taken, before it falls."""
    on_policy: bool
    """Whether the completions are drawn from the policy at each step, or are those of `draws`."""
    max_new_tokens: int
    reward_tokens: int


def regress(
    out: Path, settings: RegressionSettings, *, seed: int, policy: Path, reference: Path, reward: Path, draws: Path
) -> dict[str, Any]:
    """Least squares of r(x, y) - V*(x) - β log(π/π_ref)(y|x), which is 0 everywhere for the optimum and for it alone.

    On policy this is A*-PO (arXiv 2505.20686, algorithm 1); on the draws of the reference, off policy, as in QRPO
    (arXiv 2507.08068), with the reward in place of its quantile.  V* comes from `draws` (`optimal_values`), no gradient
    flows through sampling.  Writes the policy, its tokenizer and history.csv: step, reward, mean squared error (nats²).
    """
    s = settings
    rng = np.random.default_rng(seed)
    model, tokenizer = load_policy(policy)
    anchor, _ = load_policy(reference)
    read = reader(reward, s.reward_tokens)
    table = pd.read_parquet(draws / "generations.parquet")
    table["value"] = optimal_values(table, s.beta)[table.place]
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, s.warmup, s.steps)
    each = table.drop_duplicates("place") if s.on_policy else table
    passes = [rng.permutation(len(each)) for _ in range(-(-s.steps * s.batch // len(each)))]
    moving = {"model": model, "optimizer": optimizer, "schedule": schedule}
    begun = resume.kept(out, moving)
    log, tokens, end = begun.get("log", []), begun.get("tokens", 0), {"status": "ok"}
    chances = rng.integers(2**31, size=s.steps).tolist()
    every = np.concatenate(passes)[: s.steps * s.batch].reshape(s.steps, -1)
    for step, rows in list(enumerate(every, start=1))[len(log) :]:
        given = each.iloc[rows].reset_index(drop=True)
        if s.on_policy:
            try:
                asked, sizes = given.prompt_ids.tolist(), {"k": 1, "max_new_tokens": s.max_new_tokens}
                drawn = sample(model, tokenizer, asked, **sizes, seed=chances[step - 1])
            except NotFinite:
                end = {"status": "diverged", "diverged_at": step}
                break
            rewards = read(full_texts(drawn, tokenizer)).numpy()
            given = given.assign(completion_ids=drawn.completion_ids, reward=rewards)
        tokens += int(given.completion_ids.map(len).sum())
        terms = token_terms(model, anchor, given)
        missing = torch.tensor((given.reward - given.value).to_numpy()) / s.beta
        error = missing.to(terms["own"]) - terms["k1"].detach().sum(dim=1)
        loss = reinforce_loss(terms["own"].sum(dim=1), error)  # its gradient is that of error² / 2
        optimizer.zero_grad()
        loss.backward()
        if not clip_grad_norm_(model.parameters(), CLIP).isfinite():
            end = {"status": "diverged", "diverged_at": step}
            break
        optimizer.step()
        schedule.step()
        squared = s.beta**2 * error.square().mean().item()
        log.append({"step": step, "reward": float(given.reward.mean()), "error": squared})
        resume.keep(out, moving, log=log, tokens=tokens)
    resume.ended(out)
    save(out, model, tokenizer)
    pd.DataFrame(log, columns=["step", "reward", "error"]).to_csv(out / "history.csv", index=False)
    return {**end, "tokens_generated": tokens if s.on_policy else 0, "tokens_trained": tokens}
