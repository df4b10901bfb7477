"""What notebook 0 shows on small examples: a climb up the reward, finite sets of responses, formulas to be checked."""

import ast
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.divergences import examples
from alignkit.losses import LOSSES, needs, preference_loss
from alignkit.sampling import sequence_log_probs

# Climbing up a reward


def words_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that a tokenizer can write, each once: its printable ASCII tokens without blanks, in sorted order."""
    ids = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    tokens = {text.strip() for text in tokenizer.batch_decode([[i] for i in ids])}
    return sorted(token for token in tokens if token and token.isascii() and token.isprintable())


def hill_climb(
    text: str,
    score: Callable[[list[str]], np.ndarray],
    vocabulary: Sequence[str],
    *,
    steps: int,
    tries: int,
    most_words: int,
    seed: int,
    fixed: Collection[str] = (".",),
) -> pd.DataFrame:
    """Change one word of a text at a time so that its score rises; columns step, score, words, text.

    Each step tries `tries` random edits (a word swapped for another of the vocabulary, or one put in while there are
    less than `most_words`) and keeps the best of them if it scores higher than the text so far.  `fixed` words are
    neither swapped nor put in, so that a text keeps its sentences.
    """
    rng = np.random.default_rng(seed)
    vocabulary = [word for word in vocabulary if word not in fixed]
    words, best = text.split(), float(score([text])[0])
    trail = [(0, best, len(words), text)]
    for step in range(1, steps + 1):
        edits = [_edited(words, vocabulary, rng, most_words, fixed) for _ in range(tries)]
        scores = score([" ".join(edit) for edit in edits])
        if scores.max() > best:
            words, best = edits[int(scores.argmax())], float(scores.max())
        trail.append((step, best, len(words), " ".join(words)))
    return pd.DataFrame(trail, columns=["step", "score", "words", "text"])


def _edited(
    words: list[str], vocabulary: Sequence[str], rng: np.random.Generator, most_words: int, fixed: Collection[str]
) -> list[str]:
    word = vocabulary[rng.integers(len(vocabulary))]
    insert = len(words) < most_words and rng.random() < 0.5
    places = [i for i in range(len(words)) if insert or words[i] not in fixed]
    place = places[rng.integers(len(places))]
    return [*words[:place], word, *words[place + (not insert) :]]


# Implicit rewards, and batches by hand


def implicit_rewards(model: PreTrainedModel, rows: pd.DataFrame, beta: float) -> pd.DataFrame:
    """The reward model's view and the policy's view of pairs: one row for each pair, in nats.

    Columns chosen, rejected (reward model), implicit_chosen, implicit_rejected (β log π/π_ref), gap and implicit_gap
    (chosen minus rejected: here the part that all responses to a prompt share has cancelled).
    """
    out = pd.DataFrame({side: rows[f"{side}_reward"].to_numpy() for side in ("chosen", "rejected")})
    prompt_ids = rows.prompt_ids.map(list).tolist()
    for side in ("chosen", "rejected"):
        logps = sequence_log_probs(model, prompt_ids, rows[f"{side}_ids"].map(list).tolist())
        out[f"implicit_{side}"] = beta * (logps - rows[f"ref_{side}_logps"].to_numpy())
    gaps = {"gap": out.chosen - out.rejected, "implicit_gap": out.implicit_chosen - out.implicit_rejected}
    return out.assign(**gaps)


def concatenated(rows: Mapping[str, list[list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pairs as the trainer sees them: all chosen on top of all rejected, padded on the right.

    rows has prompt_ids, chosen_ids and rejected_ids; the result input_ids, attention_mask (1 real, 0 padding) and
    completion_mask (1 on tokens of the completion), each (2 * pairs, length).
    """
    prompts, completions = 2 * rows["prompt_ids"], rows["chosen_ids"] + rows["rejected_ids"]
    both = list(zip(prompts, completions, strict=True))
    return {
        "input_ids": _padded([[*p, *c] for p, c in both], pad_id),
        "attention_mask": _padded([[1] * len(p) + [1] * len(c) for p, c in both], 0),
        "completion_mask": _padded([[0] * len(p) + [1] * len(c) for p, c in both], 0),
    }


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


# Divergences and losses, tabulated

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.Pow: operator.pow}  # fmt: skip
FUNCTIONS = {"log": torch.log, "sqrt": torch.sqrt, "abs": torch.abs, "sign": torch.sign}


def value_of(formula: str, u: torch.Tensor, alpha: float | None = None) -> torch.Tensor:
    """A formula of `Divergence.formulas`, computed at u, so that what tables show can be checked."""

    def at(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name):
                return {"u": u, "α": alpha}[name]
            case ast.UnaryOp(ast.USub(), operand):
                return -at(operand)
            case ast.BinOp(left, how, right):
                return OPERATIONS[type(how)](at(left), at(right))
            case ast.Call(ast.Name(name), [argument]):
                return FUNCTIONS[name](at(argument))
        raise ValueError(f"{formula}: {ast.unparse(node)!r} is no part of a formula")

    return at(ast.parse(formula, mode="eval").body)


def readable(formula: str) -> str:
    """A formula with · for products and ^ for powers."""
    formula = re.sub(r"sqrt\((.*?)\)", r"√\1", formula)
    return re.sub(r"abs\((.*?)\)", r"|\1|", formula).replace("**", "^").replace("*", "·").replace("-", "−")


def formula_table(u: torch.Tensor) -> tuple[pd.DataFrame, float]:
    """f and f' of every divergence as formulas, and the largest difference at u between them, the module and autograd.

    Raises AssertionError where they do not agree.  u requires a gradient.
    """
    rows, worst = [], 0.0
    for div in examples():
        f, f_prime = (value_of(formula, u, div.alpha) for formula in div.formulas)
        (slope,) = torch.autograd.grad(div.f(u).sum(), u)
        for ours, written in ((div.f(u), f), (div.f_prime(u), f_prime), (slope, f_prime)):
            torch.testing.assert_close(ours, written)
            worst = max(worst, (ours - written).abs().max().item())
        torch.testing.assert_close(div.score(u.log()), div.f_prime(u))
        rows.append((div.label, *map(readable, div.formulas)))
    return pd.DataFrame(rows, columns=["divergence", "f(u)", "f′(u)"]), worst


def divergence_curves(log_u: np.ndarray) -> pd.DataFrame:
    """Each divergence at these log-ratios: columns family, divergence, log_u, u, f - f(1), score - score(0), slope."""
    out = []
    for div in examples():
        f = (div.f(np.exp(log_u)) - div.f(1.0)).numpy()
        at = {"family": div.family, "divergence": div.label, "log_u": log_u, "u": np.exp(log_u)}
        values = {"f": f, "score": div.centred_score(log_u).numpy(), "slope": div.slope(log_u).numpy()}
        out.append(pd.DataFrame({**at, **values}))
    return pd.concat(out, ignore_index=True)


def near_zero(ratios: Sequence[float]) -> pd.DataFrame:
    """f' of each divergence at small u, and whether it falls without bound (supports_dpo)."""
    rows = []
    for div in examples():
        at = {f"f'({u:g})": div.f_prime(u).item() for u in ratios}
        rows.append({"divergence": div.label, **at, "f'(0+) = −∞": "yes" if div.supports_dpo else "no"})
    return pd.DataFrame(rows)


def loss_curves(margins: np.ndarray, label_smoothing: float, tokens: tuple[int, int]) -> pd.DataFrame:
    """Each loss at β = 1 against the margin s_w - s_l: columns loss, margin, value, pull (minus its derivative).

    The scores are half the margin and its negative, each pair is a batch of its own; `tokens` are the lengths of
    chosen and rejected that the loss per token divides by.
    """
    known = {"label_smoothing": label_smoothing, "chosen_tokens": tokens[0], "rejected_tokens": tokens[1]}
    out = []
    for name in LOSSES:
        settings = {given: known[given] for given in needs(name)}
        for margin in margins:
            half = torch.tensor([margin / 2], dtype=torch.float64, requires_grad=True)
            value = preference_loss(name, half, -half, beta=1.0, **settings).sum()
            # Half the margin moves the margin twice as fast.
            (slope,) = torch.autograd.grad(value, half)
            out.append((name, margin, value.item(), -slope.item() / 2))
    return pd.DataFrame(out, columns=["loss", "margin", "value", "pull"])


def steps_of(pairs: int, batch: int, epochs: float) -> int:
    """Optimiser steps: batches an epoch, the last one perhaps smaller, times epochs, rounded up."""
    return int(np.ceil(epochs * np.ceil(pairs / batch)))
