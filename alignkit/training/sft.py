"""Supervised fine-tuning (SFT): the policy that every later method starts from and is compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from alignkit.faults import UserFault
from alignkit.sampling import sequence_log_probs
from alignkit.world.models import (
    POSITIONS,
    SCRATCH,
    device,
    load_policy,
    new_policy,
    quiet_training,
    run_trainer,
    train_tokenizer,
    trainer_arguments,
)
from alignkit.world.reviews import load_reviews


def train_sft(
    out: Path,
    *,
    seed: int,
    data: dict[str, Any],
    policy: str,
    tokenizer: str,
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    tokens: int,
    epochs: float,
    batch: int,
    lr: float,
    held_out: int,
) -> dict[str, float]:
    """Fine-tune (or train from scratch) the policy on the train and unsupervised reviews with TRL's SFTTrainer.

    Reviews are cut to `tokens` policy tokens; `held_out` of them give the validation loss.  epochs=0
    keeps a policy as it is (lvwerra/gpt2-imdb is fine-tuned already).
    Writes the policy, its tokenizer and history.csv to `out`; returns validation and test cross-entropy
    in nats a token (the first token of a text is given, its end is predicted).
    """
    transformers.set_seed(seed)
    reviews = load_reviews(seed=seed, **data)
    texts = [text for name in ("train", "unsupervised") if name in reviews for text in reviews[name]["text"]]
    if held_out >= len(texts):
        raise UserFault(f"sft_held_out: {held_out} asked for, but there are only {len(texts)} reviews")
    np.random.default_rng(seed).shuffle(texts)
    if policy == SCRATCH:
        codec = train_tokenizer(tokenizer, texts, vocab)
        model = new_policy(codec, width=width, layers=layers, heads=heads, positions=max(tokens, POSITIONS))
    else:
        model, codec = load_policy(policy)
    if epochs > 0:
        history = fine_tune(model, codec, texts, tokens, held_out, seed=seed, epochs=epochs, batch=batch, lr=lr)
        history.to_csv(out / "history.csv", index=False)
    model.save_pretrained(out)
    codec.save_pretrained(out)
    model.to(device()).eval()
    # In the order of seed 0, so that the same test reviews serve every seed.
    test = list(load_reviews(seed=0, **data)["test"]["text"])[:held_out]
    return {
        "held_out_cross_entropy": cross_entropy(model, codec, texts[:held_out], tokens),
        "test_cross_entropy": cross_entropy(model, codec, test, tokens),
        "texts": len(test),
    }


def fine_tune(
    model: PreTrainedModel,
    codec: PreTrainedTokenizerBase,
    texts: list[str],
    tokens: int,
    held_out: int,
    **arguments: Any,
) -> pd.DataFrame:
    """Train the model in place on texts, cut to `tokens` tokens, the first `held_out` for validation; returns the log.

    `arguments` are seed, epochs, batch and lr.
    """
    with quiet_training() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**trainer_arguments(folder, reports=10, **arguments), max_length=tokens),
            train_dataset=Dataset.from_dict({"text": texts[held_out:]}),
            eval_dataset=Dataset.from_dict({"text": texts[:held_out]}),
            processing_class=codec,
        )
        return run_trainer(trainer)


def cross_entropy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: int) -> float:
    """Nats a token over the texts, each cut to `tokens` tokens; the end-of-text token counts where it fits."""
    ids = [([*row, tokenizer.eos_token_id])[:tokens] for row in tokenizer(texts)["input_ids"]]
    ids = [row for row in ids if len(row) > 1]
    log_probs = sequence_log_probs(model, [row[:1] for row in ids], [row[1:] for row in ids])
    return float(-log_probs.sum() / sum(len(row) - 1 for row in ids))
