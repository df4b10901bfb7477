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
from trl import SFTConfig, SFTTrainer

from alignkit.decoding import NotFinite
from alignkit.policy_gradient import reinforce_loss, token_terms
from alignkit.sampling import full_texts, sample, sequence_log_probs
from alignkit.training.pairs import GenerationSettings
from alignkit.training.reinforce import CLIP
from alignkit.training.reward import score, score_with, zero_of
from alignkit.world.models import load_encoder, load_policy, quiet_training, run_trainer, save, trainer_arguments
from alignkit.world.reviews import Reviews, prompts

VALIDATION = 0.05
"""Share of the prompts whose draws give the validation loss."""


def draw_towards(
    out: Path,
    settings: GenerationSettings,
    *,
    seed: int,
    data: Reviews,
    policy: Path,
    reference: Path,
    reward: Path,
    stream: int = 0,
) -> dict[str, Any]:
    """Draw completions of train prompts from a policy and score them; another `stream` draws other completions.

    Writes draws.parquet, rows in prompt order: prompt, prompt_ids, completion_ids, reward, and the log-probs of the
    completion in nats under the policy (own_logps) and under the reference (ref_logps).
    """
    s = settings
    model, tokenizer = load_policy(policy)
    train = data.load(seed)["train"]["text"]
    texts = prompts(list(train), tokenizer, n=s.n_prompts, shortest=5, longest=15, seed=seed)
    chance = int(np.random.SeedSequence(seed, spawn_key=(stream, 2)).generate_state(1)[0] >> 1)
    samples = sample(model, tokenizer, texts, k=s.k, max_new_tokens=s.max_new_tokens, seed=chance)
    rewards = score_with(reward, full_texts(samples, tokenizer), tokens=s.reward_tokens)
    ids = samples.prompt_ids.tolist(), samples.completion_ids.tolist()
    anchor, _ = load_policy(reference)
    samples = samples.assign(
        place=np.repeat(np.arange(s.n_prompts), s.k),
        reward=rewards - zero_of(reward),
        own_logps=sequence_log_probs(model, *ids),
        ref_logps=sequence_log_probs(anchor, *ids),
    )
    samples.drop(columns=["completion", "finished"]).to_parquet(out / "draws.parquet", index=False)
    return {"status": "ok", "tokens_generated": int(samples.completion_ids.map(len).sum())}


def log_tilts(draws: pd.DataFrame, beta: float) -> np.ndarray:
    """log(π_ref exp(r/β) / π) of draws from π, (prompts, draws): the logarithm of each draw's weight."""
    tilts = draws.reward / beta + draws.ref_logps - draws.own_logps
    return tilts.to_numpy().reshape(draws.place.nunique(), -1)


def optimal_values(draws: pd.DataFrame, beta: float) -> np.ndarray:
    """V* = β log E_ref[exp(r/β)] of each prompt, (prompts,): the reward less the penalty that the optimum earns.

    Estimated from its draws (A*-PO, Brantley et al. 2025, arXiv 2505.20686, eq. 4); too low by about half of β / their
    effective number.
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
    table = pd.read_parquet(draws / "draws.parquet")
    tilts = log_tilts(table, s.beta)
    rows = resampled_rows(tilts, s.per_prompt, np.random.default_rng(seed))
    held_out = rows[: max(1, round(VALIDATION * len(rows)))]
    with quiet_training() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **trainer_arguments(folder, seed=seed, epochs=1, batch=s.batch, lr=s.lr, reports=8), max_length=None
            ),
            train_dataset=_as_dataset(table, rows[len(held_out) :].ravel()),
            eval_dataset=_as_dataset(table, held_out.ravel()),
            processing_class=tokenizer,
        )
        log = run_trainer(trainer)
    log.to_csv(out / "history.csv", index=False)
    save(out, model, tokenizer)
    shares = softmax(tilts, axis=1)
    sound = np.isfinite(log.iloc[-1].eval_loss)
    return {
        "status": "ok" if sound else "diverged",
        "tokens_trained": int(table.completion_ids.map(len).to_numpy()[rows].sum()),
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
    """Token ids, of which the completion's count."""
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
    """Completions a step, each of another prompt."""
    lr: float
    warmup: int
    """Steps over which the learning rate rises, before it falls."""
    on_policy: bool
    """Whether the completions are drawn from the policy at each step, or are those of `draws`."""
    max_new_tokens: int
    reward_tokens: int


def regress(
    out: Path, settings: RegressionSettings, *, seed: int, policy: Path, reference: Path, reward: Path, draws: Path
) -> dict[str, Any]:
    """Least squares of r(x, y) - V*(x) - β log(π/π_ref)(y|x), which is 0 everywhere for the optimum and for it alone.

    On policy this is A*-PO (arXiv 2505.20686, algorithm 1); on the draws of the reference, off policy, as in QRPO
    (arXiv 2507.08068), with the reward as it is.  V* comes from `draws` (`optimal_values`), no gradient flows through
    sampling.  Writes the policy, its tokenizer and history.csv: step, reward, error (mean squared, nats²).
    """
    s = settings
    rng = np.random.default_rng(seed)
    model, tokenizer = load_policy(policy)
    anchor, _ = load_policy(reference)
    encoder, words = load_encoder(reward)
    table = pd.read_parquet(draws / "draws.parquet")
    table["value"] = optimal_values(table, s.beta)[table.place]
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=0.0, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, s.warmup, s.steps)
    each = table.drop_duplicates("place") if s.on_policy else table
    passes = [rng.permutation(len(each)) for _ in range(-(-s.steps * s.batch // len(each)))]
    log, tokens, status = [], 0, "ok"
    for step, rows in enumerate(np.concatenate(passes)[: s.steps * s.batch].reshape(s.steps, -1), start=1):
        given = each.iloc[rows].reset_index(drop=True)
        if s.on_policy:
            try:
                asked, chance = given.prompt_ids.tolist(), int(rng.integers(2**31))
                drawn = sample(model, tokenizer, asked, k=1, max_new_tokens=s.max_new_tokens, seed=chance)
            except NotFinite:
                status = "diverged"
                break
            rewards = score(encoder, words, full_texts(drawn, tokenizer), tokens=s.reward_tokens) - zero_of(reward)
            given = given.assign(completion_ids=drawn.completion_ids, reward=rewards)
            tokens += int(given.completion_ids.map(len).sum())
        terms = token_terms(model, anchor, given)
        missing = torch.tensor((given.reward - given.value).to_numpy()) / s.beta
        error = missing.to(terms["own"]) - terms["k1"].detach().sum(dim=1)
        loss = reinforce_loss(terms["own"].sum(dim=1), error)  # its gradient is that of error² / 2
        optimizer.zero_grad()
        loss.backward()
        if not clip_grad_norm_(model.parameters(), CLIP).isfinite():
            status = "diverged"
            break
        optimizer.step()
        schedule.step()
        log.append({"step": step, "reward": given.reward.mean(), "error": s.beta**2 * error.square().mean().item()})
    save(out, model, tokenizer)
    pd.DataFrame(log, columns=["step", "reward", "error"]).to_csv(out / "history.csv", index=False)
    return {"status": status, "tokens_generated": tokens}
