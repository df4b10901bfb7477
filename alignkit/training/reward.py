"""The Bradley-Terry reward model, trained on all positive x negative pairs, on top of TRL's RewardTrainer."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import Dataset
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from alignkit.faults import UserFault
from alignkit.merging import lerp
from alignkit.metrics import pairwise_accuracy
from alignkit.sampling import by_length
from alignkit.world.models import (
    MODEL,
    SCRATCH,
    load_encoder,
    new_encoder,
    processes,
    quiet_training,
    run_trainer,
    save,
    train_tokenizer,
    trainer_arguments,
)
from alignkit.world.reviews import Reviews

ANCHORS = 2000
"""Unlabelled reviews whose mean reward fixes the zero when two reward models are compared."""


def all_pairs_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """-log sigma(r_w - r_l), averaged over all P x N differences of a batch; scalar, nats.

    chosen is (P,), rejected is (N,).  Bradley & Terry (1952); P + N forwards give P * N comparisons.
    """
    return -logsigmoid(chosen[:, None] - rejected[None, :]).mean()


class AllPairsRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer with `all_pairs_loss` in place of the loss on the P pairs of the diagonal."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        _, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        if processes() > 1:  # the other processes' reviews are of the same batch
            chosen, rejected = (torch.cat(all_gather(side)) for side in (chosen, rejected))
        loss = all_pairs_loss(chosen, rejected)
        return (loss, outputs) if return_outputs else loss


TRAINERS = {"all": AllPairsRewardTrainer, "matched": RewardTrainer}
"""How the reviews of a batch are compared: every positive with every negative, or each with one partner."""


@dataclass(frozen=True)
class RewardSettings:
    """How a reward model is made."""

    base: str = field(metadata=MODEL)
    """"scratch" for a DistilBERT built on the spot, of the tokenizer and shape below; else a folder or Hub id."""
    tokenizer: str
    vocab: int
    width: int
    layers: int
    heads: int
    sinusoidal: bool
    tokens: int
    """Reviews are cut to this many tokens (`encode`)."""
    dropout: float
    word_dropout: float
    """Share of a review's tokens that are left out at random while training."""
    epochs: float
    batch: int
    """Reviews a step, half of them positive."""
    lr: float
    min_steps: int = 1
    """At least so many steps, so that the small ends of a learning curve are trained as well."""
    pairs: str = "all"
    """One of TRAINERS."""
    n_train: int | None = None
    """Reviews to train on, half of each label; None for all."""
    held_out: int = 0
    """Train reviews that are kept apart, for validation and the sign boundary."""


def train_reward(
    out: Path, settings: RewardSettings, *, seed: int, data: Reviews, start: Path | None = None
) -> dict[str, Any]:
    """Train a reward model on labelled reviews, from `start` on where one is given, and score the test reviews with it.

    Writes the model, its tokenizer, history.csv and scores.parquet (split, label, reward; splits test, held_out and
    anchor, in the order of `Reviews.load(0)`, held_out in the seed's own order).  Returns status, pairwise accuracy on
    test, number of reviews, text forwards and distinct pairs an epoch.  Raises UserFault if fewer reviews are left than
    asked for.
    """
    s = settings
    transformers.set_seed(seed)
    kept, apart = _split(data.load(seed)["train"].to_pandas(), s)
    if start is not None or s.base != SCRATCH:
        model, tokenizer = load_encoder(start or s.base, s.dropout)
    else:
        # The tokenizer may see only what the model sees.
        tokenizer = train_tokenizer(s.tokenizer, kept[1] + kept[0], s.vocab)
        shape = {"width": s.width, "layers": s.layers, "heads": s.heads, "positions": s.tokens}
        model = new_encoder(tokenizer, **shape, sinusoidal=s.sinusoidal, dropout=s.dropout)

    rows = max(map(len, kept.values()))
    epochs = max(s.epochs, s.min_steps * (s.batch // 2) / rows)
    with quiet_training(out) as folder:
        arguments = trainer_arguments(folder, seed=seed, epochs=epochs, batch=s.batch // 2, lr=s.lr, reports=12)
        if not s.held_out:
            arguments |= {"eval_strategy": "no", "eval_on_start": False}
        pairs = _pair_up(kept[1], kept[0], tokenizer, s.tokens)
        trainer = TRAINERS[s.pairs](
            model=model,
            args=RewardConfig(**arguments, max_length=None, disable_dropout=s.dropout == 0),
            train_dataset=pairs.with_transform(partial(_drop_words, s.word_dropout)),
            eval_dataset=_pair_up(apart[1], apart[0], tokenizer, s.tokens) if s.held_out else None,
            processing_class=tokenizer,
        )
        _, end = run_trainer(trainer, out)
    model.eval()
    save(out, model, tokenizer)
    labelled = {"held_out": (apart[1] + apart[0], [1] * len(apart[1]) + [0] * len(apart[0])), **fixed_reviews(data)}
    scores = write_scores(out, labelled, model, tokenizer, s.tokens)
    test = scores[scores.split == "test"]
    return {
        **end,
        "pairwise_accuracy": pairwise_accuracy(test.reward.to_numpy(), test.label.to_numpy()),
        "reviews": sum(map(len, kept.values())),
        "epochs": epochs,
        **pair_count(rows, s.batch, s.pairs),
    }


def _split(train: pd.DataFrame, s: RewardSettings) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Texts to train on and texts kept apart, each by label."""
    parts = {label: train[train.label == label].text.tolist() for label in (1, 0)}
    fewest, held_out = min(map(len, parts.values())), s.held_out // 2
    if held_out >= fewest:
        raise UserFault(f"held_out: {s.held_out} asked for, half of each label; allowed: less than {2 * fewest}")
    kept = {label: texts[: len(texts) - held_out] for label, texts in parts.items()}
    apart = {label: texts[len(texts) - held_out :] for label, texts in parts.items()}
    if s.n_train is None:
        return kept, apart
    if s.n_train // 2 > fewest - held_out:
        left = sum(map(len, kept.values()))
        raise UserFault(f"curve_reviews or weak_reviews: {s.n_train} asked for, but {left} are left to train")
    return {label: texts[: s.n_train // 2] for label, texts in kept.items()}, apart


def pair_count(rows: int, batch: int, pairs: str) -> dict[str, int]:
    """Text forwards and compared pairs in an epoch over `rows` positives and `rows` negatives, `batch` texts a step."""
    full, rest = divmod(rows, batch // 2)
    compared = full * (batch // 2) ** 2 + rest**2 if pairs == "all" else rows
    return {"forwards_per_epoch": 2 * rows, "pairs_per_epoch": compared}


def _pair_up(positive: list[str], negative: list[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> Dataset:
    """One row for each positive and its partner; the shorter side is used again from its start."""
    n = max(len(positive), len(negative))
    sides = {"chosen_ids": positive, "rejected_ids": negative}
    again = {name: [texts[i % len(texts)] for i in range(n)] for name, texts in sides.items()}
    # Encoded here: RewardTrainer would drop what is longer than max_length, and append an eos.
    return Dataset.from_dict({name: encode(tokenizer, texts, tokens) for name, texts in again.items()})


def _drop_words(rate: float, batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Leave out tokens at random, anew each time a review is read, but never the first and the last.

    Word dropout (Iyyer et al. 2015, "Deep unordered composition") keeps the model from learning names by heart:
    reviews of one film share its names and, often, their label.  The chances are those of the batch, which no other
    epoch has, so that a run that goes on after it was killed leaves out the same words.
    """
    rows = [np.asarray(row) for rows in batch.values() for row in rows]
    chances = torch.Generator().manual_seed(zlib.crc32(np.concatenate(rows).tobytes()))

    def keep(row: list[int]) -> list[int]:
        kept = torch.rand(len(row), generator=chances) >= rate
        kept[[0, -1]] = True
        return torch.tensor(row)[kept].tolist()

    return {name: [keep(row) for row in rows] for name, rows in batch.items()} if rate else batch


def fixed_reviews(data: Reviews) -> dict[str, tuple[list[str], list[int]]]:
    """Texts and labels that every reward model scores: the test reviews, and those whose mean is `zero_of`."""
    reviews = data.load(0)
    test = reviews["test"]
    anchor = reviews.get("unsupervised", test)["text"][:ANCHORS]
    return {"test": (list(test["text"]), list(test["label"])), "anchor": (list(anchor), [-1] * len(anchor))}


def write_scores(
    out: Path,
    texts: dict[str, tuple[list[str], list[int]]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
) -> pd.DataFrame:
    """Score texts and keep them in scores.parquet: columns split, label, reward; `texts`: split -> texts and labels."""
    parts = []
    for split, (here, labels) in texts.items():
        rewards = score(model, tokenizer, here, tokens=tokens)
        # An empty list of labels becomes integers as well.
        parts.append(pd.DataFrame({"split": split, "label": np.array(labels, dtype=int), "reward": rewards}))
    scores = pd.concat(parts)
    scores.to_parquet(out / "scores.parquet", index=False)
    return scores


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: int) -> list[list[int]]:
    """Token ids of each text, at most `tokens`: the first half and the last half of a text that is longer.

    Reviewers judge at the beginning and at the end (Sun et al. 2019, "How to fine-tune BERT", head+tail).
    """
    ids = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    head = tokens // 2
    return [row if len(row) <= tokens else row[:head] + row[head - tokens :] for row in ids]


@torch.no_grad()
def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, tokens: int, batch: int = 128
) -> np.ndarray:
    """The reward of each text, float64, shape (texts,); texts are cut to `tokens` tokens as in training."""
    ids = encode(tokenizer, list(texts), tokens)
    out = np.zeros(len(ids))
    for some in by_length(ids, batch):
        inputs = tokenizer.pad({"input_ids": [ids[i] for i in some]}, return_tensors="pt").to(model.device)
        out[some] = model(**inputs).logits.squeeze(-1).double().cpu().numpy()
    return out


def score_with(folder: Path, texts: list[str], *, tokens: int) -> np.ndarray:
    """`score` with the reward model kept in a run's folder."""
    model, tokenizer = load_encoder(folder)
    return score(model, tokenizer, texts, tokens=tokens)


def sign_boundary(rewards: np.ndarray, labels: np.ndarray) -> float:
    """The maximum-likelihood b of P(positive) = sigma(r - b): sum of sigma(r - b) = number of positives.

    Raises ValueError if only one label is present.
    """
    if len(np.unique(labels)) != 2:
        raise ValueError("a boundary needs both labels")
    low, high = rewards.min() - 50, rewards.max() + 50
    return float(brentq(lambda b: expit(rewards - b).sum() - labels.sum(), low, high))


def tfidf_baseline(texts: list[str], labels: list[int], *, ngrams: int = 1) -> Pipeline:
    """TF-IDF and logistic regression, fitted: the baseline that a reward model has to beat (scikit-learn).

    Words of one letter and ends of sentences count as well, so that a pair is one of neighbours.
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, ngrams), token_pattern=r"\w+|[.!?]", min_df=2, sublinear_tf=True)
    return make_pipeline(vectorizer, LogisticRegression(C=10, max_iter=1000)).fit(texts, labels)


def zero_of(reward: Path) -> float:
    """The mean reward of the unlabelled reviews; Bradley-Terry leaves the zero free, here an average review has it."""
    scores = pd.read_parquet(reward / "scores.parquet")
    return float(scores.reward[scores.split == "anchor"].mean())


def average_rewards(out: Path, *, data: Reviews, rewards: Sequence[Path], tokens: int) -> dict[str, Any]:
    """The reward model whose weights are the mean of those of several that were trained from one start.

    WARM (Ramé et al. 2024, "WARM: On the Benefits of Weight Averaged Reward Models").  Writes it like `train_reward`:
    the model, its tokenizer and scores.parquet (splits test and anchor).  Returns status and how many there were.
    """
    model, tokenizer = load_encoder(rewards[0])
    states = [load_encoder(folder)[0].state_dict() for folder in rewards]
    model.load_state_dict(lerp(states[0], states))
    save(out, model, tokenizer)
    write_scores(out, fixed_reviews(data), model, tokenizer, tokens)
    return {"status": "ok", "members": len(rewards)}
