"""One evaluation for every method: the same test prompts, plain sampling at temperature 1, the same measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from alignkit.decoding import NotFinite
from alignkit.metrics import distinct_n, repetition_rate, self_bleu, unigram_entropy
from alignkit.sampling import full_texts, sample, sequence_kl
from alignkit.training.reward import score_with, zero_of
from alignkit.world.known import Truth, truth_of
from alignkit.world.models import load_policy
from alignkit.world.reviews import Reviews, prompts

FEW = 4
"""Completions of a prompt that measures of diversity look at, so that rows with other numbers of draws compare."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How a policy is measured; the test prompts are the same for every run."""

    n_prompts: int
    k: int
    """Completions of each prompt."""
    max_new_tokens: int
    reward_tokens: int
    prefix: str = ""
    """Put before each prompt, for the policy only."""
    bias: Mapping[str, float] = field(default_factory=dict)
    """Added to the logits of single tokens, nats.  Prefix and bias make another policy of the same weights."""


def evaluate(
    out: Path, settings: EvaluationSettings, *, seed: int, data: Reviews, policy: Path, reference: Path, reward: Path
) -> dict[str, Any]:
    """Sample completions of test prompts (5-20 tokens) and measure them; the reference is the SFT policy.

    Writes completions.parquet: prompt, completion, text, finished, reward, gold (where the truth is known), kl, k1.
    Returns `measures`, the mean KL to the reference (exact at each step, nats a sequence) and status; a diverged policy
    has no numbers.
    """
    s = settings
    model, tokenizer = load_policy(policy)
    texts = evaluation_prompts(data, tokenizer, s.n_prompts)
    by_id = {tokenizer.convert_tokens_to_ids(token): value for token, value in s.bias.items()}
    asked = [f"{s.prefix} {text}" if s.prefix else text for text in texts]  # its last token may be a blank
    try:
        samples = sample(model, tokenizer, asked, k=s.k, max_new_tokens=s.max_new_tokens, seed=seed, bias=by_id)
    except NotFinite:
        return {"status": "diverged"}
    own_prompt_ids = samples.prompt_ids.tolist()
    samples["prompt"] = [text for text in texts for _ in range(s.k)]
    samples["prompt_ids"] = [ids for ids in tokenizer(texts)["input_ids"] for _ in range(s.k)]
    samples["text"] = full_texts(samples, tokenizer)
    anchor, _ = load_policy(reference)
    samples["kl"], samples["k1"] = sequence_kl(
        model, anchor, own_prompt_ids, samples.prompt_ids.tolist(), samples.completion_ids.tolist(), by_id
    )
    samples = with_rewards(samples, reward, s.reward_tokens, truth_of(data.source))
    samples.drop(columns=["prompt_ids", "completion_ids"]).to_parquet(out / "completions.parquet", index=False)
    tokens = int(samples.completion_ids.map(len).sum())
    return {
        "status": "ok",
        "kl": float(samples.kl.mean()),
        **measures(samples),
        "completions": s.k,
        "mean_tokens": tokens / len(samples),
        "finished": float(samples.finished.mean()),
    }


def evaluation_prompts(data: Reviews, tokenizer: PreTrainedTokenizerBase, n: int) -> list[str]:
    """The beginnings of n test reviews, 5-20 tokens each, the same for every run and seed."""
    test = data.load(0)["test"]["text"]
    return prompts(test, tokenizer, n=n, shortest=5, longest=20, seed=0)


def with_rewards(samples: pd.DataFrame, reward: Path, tokens: int, truth: Truth | None) -> pd.DataFrame:
    """Samples (column text) with their reward, less that of an average review, and what is true of them if known."""
    texts = samples.text.tolist()
    samples = samples.assign(reward=score_with(reward, texts, tokens=tokens) - zero_of(reward))
    return samples.assign(gold=truth.gold_reward(texts), well_formed=truth.well_formed(texts)) if truth else samples


def measures(samples: pd.DataFrame) -> dict[str, float]:
    """Mean reward and truth of samples (columns prompt, completion, reward), and how diverse their completions are.

    Entropy in nats over all words of all completions; distinct-2 over the first FEW completions of each prompt, and
    self-BLEU among them (NaN for single ones); share of repeated 4-grams.
    """
    texts = samples.completion.tolist()
    few = [group.head(FEW).tolist() for _, group in samples.groupby("prompt", sort=False).completion]
    groups = [group for group in few if len(group) > 1]
    truth = {name: float(samples[name].mean()) for name in ("gold", "well_formed") if name in samples}
    return {
        "reward": float(samples.reward.mean()),
        **truth,
        "unigram_entropy": unigram_entropy(texts),
        "distinct_2": distinct_n([text for group in few for text in group], 2),
        "self_bleu": self_bleu(groups) if groups else float("nan"),
        "repetition": float(repetition_rate(texts).mean()),
    }


@dataclass(frozen=True)
class SamplingSettings:
    """Which completions of test prompts are drawn."""

    n_prompts: int
    k: int
    """Completions of each prompt."""
    shortest: int
    """Tokens of a prompt."""
    longest: int
    max_new_tokens: int


def sample_completions(
    out: Path, settings: SamplingSettings, *, seed: int, data: Reviews, policy: Path
) -> dict[str, float]:
    """Sample completions of test prompts and keep them in completions.parquet; the prompts are the same for every seed.

    Columns as in `sampling.sample`, plus text (prompt and completion).
    """
    s = settings
    model, tokenizer = load_policy(policy)
    test = data.load(0)["test"]["text"]
    texts = prompts(list(test), tokenizer, n=s.n_prompts, shortest=s.shortest, longest=s.longest, seed=0)
    samples = sample(model, tokenizer, texts, k=s.k, max_new_tokens=s.max_new_tokens, seed=seed)
    samples["text"] = full_texts(samples, tokenizer)
    samples.to_parquet(out / "completions.parquet", index=False)
    return {"finished": float(samples.finished.mean()), "mean_tokens": float(samples.completion_ids.map(len).mean())}
