"""One evaluation for every method: the same test prompts, plain sampling at temperature 1, the same measures."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.metrics import distinct_n, repetition_rate, self_bleu, unigram_entropy
from alignkit.pocket import gold_reward, well_formed
from alignkit.sampling import full_texts, pad_left, sample, sequence_kl
from alignkit.training.reward import score_with, zero_of
from alignkit.world.models import load_policy
from alignkit.world.reviews import load_reviews, prompts

SELF_BLEU_GROUP = 4
"""Completions of a prompt that are compared with each other."""


def evaluate(
    out: Path,
    *,
    seed: int,
    data: dict[str, Any],
    policy: Path,
    reference: Path,
    reward: Path,
    reward_tokens: int,
    n_prompts: int,
    k: int,
    max_new_tokens: int,
    prefix: str = "",
    bias: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Sample k completions of each of n test prompts (5-20 tokens, the same for every run) and measure them.

    The reference is the SFT policy.  `prefix` is put before each prompt for the policy only; `bias` adds to the
    logits of single tokens: both make another policy of the same weights, and the KL is that policy's.
    Writes completions.parquet: prompt, completion, text, finished, reward, gold (pocket), kl, k1.  Returns `measures`,
    the mean KL to the reference (exact at each step, nats a sequence) and status; a diverged policy has no numbers.
    """
    model, tokenizer = load_policy(policy)
    texts = evaluation_prompts(data, tokenizer, n_prompts)
    if not _can_be_sampled(model, tokenizer, texts):
        return {"status": "diverged"}
    by_id = {tokenizer.convert_tokens_to_ids(token): value for token, value in (bias or {}).items()}
    asked = [f"{prefix} {text}".strip() for text in texts]
    samples = sample(model, tokenizer, asked, k=k, max_new_tokens=max_new_tokens, seed=seed, bias=by_id)
    own_prompt_ids = samples.prompt_ids.tolist()
    samples["prompt"] = [text for text in texts for _ in range(k)]
    samples["prompt_ids"] = [ids for ids in tokenizer(texts)["input_ids"] for _ in range(k)]
    samples["text"] = full_texts(samples, tokenizer)
    anchor, _ = load_policy(reference)
    samples["kl"], samples["k1"] = sequence_kl(
        model, anchor, own_prompt_ids, samples.prompt_ids.tolist(), samples.completion_ids.tolist(), by_id
    )
    samples = with_rewards(samples, reward, reward_tokens, gold=data["source"] == "pocket")
    samples.drop(columns=["prompt_ids", "completion_ids"]).to_parquet(out / "completions.parquet", index=False)
    tokens = int(samples.completion_ids.map(len).sum())
    return {
        "status": "ok",
        "kl": float(samples.kl.mean()),
        **measures(samples),
        "completions": k,
        "mean_tokens": tokens / len(samples),
        "finished": float(samples.finished.mean()),
    }


def evaluation_prompts(data: dict[str, Any], tokenizer: PreTrainedTokenizerBase, n: int) -> list[str]:
    """The beginnings of n test reviews, 5-20 tokens each, the same for every run and seed."""
    test = load_reviews(seed=0, **data)["test"]["text"]
    return prompts(test, tokenizer, n=n, shortest=5, longest=20, seed=0)


@torch.no_grad()
def _can_be_sampled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> bool:
    """Whether the logits after every prompt are finite; weights may be finite and overflow all the same."""
    ids, mask = (t.to(model.device) for t in pad_left(tokenizer(texts)["input_ids"], 0))
    return bool(model(ids, attention_mask=mask, logits_to_keep=1).logits.isfinite().all())


def with_rewards(samples: pd.DataFrame, reward: Path, tokens: int, *, gold: bool) -> pd.DataFrame:
    """Samples (column text) with their reward, less that of an average review, and in the pocket world their truth."""
    texts = samples.text.tolist()
    samples = samples.assign(reward=score_with(reward, texts, tokens=tokens) - zero_of(reward))
    return samples.assign(gold=gold_reward(texts), well_formed=well_formed(texts)) if gold else samples


def measures(samples: pd.DataFrame) -> dict[str, float]:
    """Mean reward and truth of samples (columns prompt, completion, reward), and how diverse their completions are.

    Entropy in nats over all words of all completions, distinct-2, self-BLEU within a prompt (of at most
    SELF_BLEU_GROUP completions, NaN for single ones), share of repeated 4-grams.
    """
    texts = samples.completion.tolist()
    groups = [group.head(SELF_BLEU_GROUP).tolist() for _, group in samples.groupby("prompt", sort=False).completion]
    groups = [group for group in groups if len(group) > 1]
    truth = {name: float(samples[name].mean()) for name in ("gold", "well_formed") if name in samples}
    return {
        "reward": float(samples.reward.mean()),
        **truth,
        "unigram_entropy": unigram_entropy(texts),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(groups) if groups else float("nan"),
        "repetition": float(repetition_rate(texts).mean()),
    }


def sample_completions(
    out: Path,
    *,
    seed: int,
    data: dict[str, Any],
    policy: Path,
    n_prompts: int,
    k: int,
    shortest: int,
    longest: int,
    max_new_tokens: int,
) -> dict[str, float]:
    """Sample k completions of n test prompts (`shortest` to `longest` tokens) and keep them in completions.parquet.

    The prompts are the same for every seed.  Columns as in `sample`, plus text (prompt and completion).
    """
    model, tokenizer = load_policy(policy)
    test = load_reviews(seed=0, **data)["test"]["text"]
    texts = prompts(list(test), tokenizer, n=n_prompts, shortest=shortest, longest=longest, seed=0)
    samples = sample(model, tokenizer, texts, k=k, max_new_tokens=max_new_tokens, seed=seed)
    samples["text"] = full_texts(samples, tokenizer)
    samples.to_parquet(out / "completions.parquet", index=False)
    return {"finished": float(samples.finished.mean()), "mean_tokens": float(samples.completion_ids.map(len).mean())}
