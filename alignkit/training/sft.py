"""Supervised fine-tuning (SFT): the policy that every later method starts from and is compared with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import SFTConfig, SFTTrainer

from alignkit.faults import UserFault
from alignkit.sampling import sequence_log_probs
from alignkit.world.models import (
    MODEL,
    POSITIONS,
    SCRATCH,
    device,
    load_policy,
    new_policy,
    quiet_training,
    run_trainer,
    save,
    train_tokenizer,
    trainer_arguments,
)
from alignkit.world.reviews import Reviews


@dataclass(frozen=True)
class SftSettings:
    """How the supervised policy is made."""

    policy: str = field(metadata=MODEL)
    """"scratch" for a GPT-2 built on the spot, of the tokenizer and shape below; else a folder or Hub id."""
    tokenizer: str
    vocab: int
    width: int
    layers: int
    heads: int
    tokens: int
    """Reviews are cut to this many policy tokens."""
    epochs: float
    """0 keeps a policy as it is (lvwerra/gpt2-imdb is fine-tuned already)."""
    batch: int
    lr: float
    held_out: int
    """Reviews that give the validation loss."""


class PlainSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer with a batch's logits computed at once: in chunks, as TRL has them, they slow a small model."""

    compute_loss = Trainer.compute_loss


def train_sft(out: Path, settings: SftSettings, *, seed: int, data: Reviews) -> dict[str, Any]:
    """Fine-tune (or train from scratch) the policy on the train and unsupervised reviews with TRL's SFTTrainer.

    Writes the policy, its tokenizer and history.csv to `out`; returns status ("diverged" after a weight that was not
    finite), validation and test cross-entropy in nats a token (the first token of a text is given, its end is
    predicted).  Raises UserFault if no review is left to train on.
    """
    s = settings
    transformers.set_seed(seed)
    reviews = data.load(seed)
    texts = [text for name in ("train", "unsupervised") if name in reviews for text in reviews[name]["text"]]
    if s.held_out >= len(texts):
        raise UserFault(f"sft_held_out: {s.held_out} asked for, but there are only {len(texts)} reviews")
    np.random.default_rng(seed).shuffle(texts)
    if s.policy == SCRATCH:
        tokenizer = train_tokenizer(s.tokenizer, texts, s.vocab)
        shape = {"width": s.width, "layers": s.layers, "heads": s.heads, "positions": max(s.tokens, POSITIONS)}
        model = new_policy(tokenizer, **shape)
    else:
        model, tokenizer = load_policy(s.policy)
    end = {"status": "ok", "tokens_trained": 0}
    if s.epochs > 0:
        training = {"seed": seed, "epochs": s.epochs, "batch": s.batch, "lr": s.lr}
        end = fine_tune(out, model, tokenizer, texts, s.tokens, s.held_out, **training)
    save(out, model, tokenizer)
    model.to(device()).eval()
    # In the order of seed 0, so that the same test reviews serve every seed.
    test = list(data.load(0)["test"]["text"])[: s.held_out]
    return {
        **end,
        "held_out_cross_entropy": cross_entropy(model, tokenizer, texts[: s.held_out], s.tokens),
        "test_cross_entropy": cross_entropy(model, tokenizer, test, s.tokens),
        "texts": len(test),
    }


def fine_tune(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    tokens: int,
    held_out: int,
    **arguments: Any,
) -> dict[str, Any]:
    """Train the model in place on texts, cut to `tokens` tokens, the first `held_out` for validation.

    out: where history.csv is written.  arguments: seed, epochs, batch and lr.  Returns status, where it diverged, and
    the tokens trained on.
    """
    with quiet_training(out) as folder:
        trainer = PlainSFTTrainer(
            model=model,
            args=SFTConfig(**trainer_arguments(folder, reports=10, **arguments), max_length=tokens),
            train_dataset=Dataset.from_dict({"text": texts[held_out:]}),
            eval_dataset=Dataset.from_dict({"text": texts[:held_out]}),
            processing_class=tokenizer,
        )
        _, end = run_trainer(trainer, out)
    read = sum(min(tokens, len(ids)) for ids in tokenizer(texts[held_out:], verbose=False)["input_ids"])
    return {**end, "tokens_trained": round(arguments["epochs"] * read)}


def cross_entropy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: int) -> float:
    """Nats a token over the texts, each cut to `tokens` tokens; the end-of-text token counts where it fits."""
    ids = [([*row, tokenizer.eos_token_id])[:tokens] for row in tokenizer(texts)["input_ids"]]
    ids = [row for row in ids if len(row) > 1]
    log_probs = sequence_log_probs(model, [row[:1] for row in ids], [row[1:] for row in ids])
    return float(-log_probs.sum() / sum(len(row) - 1 for row in ids))
