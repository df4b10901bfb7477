"""What notebook 0 shows on small examples: a climb up the reward, finite sets of responses, formulas to be checked."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.divergences import Divergence, examples
from alignkit.finite import newton
from alignkit.losses import LOSSES, needs, preference_loss
from alignkit.report.figures import seed_lines
from alignkit.report.looks import AXES, COLOURS, DASHES, NEGATIVE, NEUTRAL, POSITIVE, looks
from alignkit.report.policies import Method, Runs, aligned, dpo, prepared
from alignkit.sampling import sequence_log_probs
from alignkit.workflow.schema import Primer

Score = Callable[[list[str]], np.ndarray]
"""What a climb raises: from texts to a number each."""


def methods(p: Primer) -> list[Method]:
    """DPO, the main row of notebook 2."""
    return [Method("sigmoid", dpo("sigmoid", p.main_beta), main=True, family="DPO, sigmoid loss")]


def recipe(p: Primer, seed: int) -> Runs:
    """All runs of the notebook for one seed."""
    return aligned(p, seed, methods(p), prepared(p, seed))


# Climbing up a reward


def words_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that a tokenizer can write, each once: its printable ASCII tokens without blanks, in sorted order."""
    ids = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    tokens = {text.strip() for text in tokenizer.batch_decode([[i] for i in ids])}
    return sorted(token for token in tokens if token and token.isascii() and token.isprintable())


def hill_climb(
    text: str, score: Score, vocabulary: Sequence[str], *, steps: int, tries: int, most_words: int, seed: int
) -> pd.DataFrame:
    """Change one word of a text at a time so that its score rises; columns step, score, words, text.

    Each step tries `tries` random edits (a word swapped for another of the vocabulary, or one put in while there are
    less than `most_words`) and keeps the best of them if it scores higher than the text so far.  Full stops are neither
    swapped nor put in, so that a text keeps its sentences.
    """
    rng = np.random.default_rng(seed)
    vocabulary = [word for word in vocabulary if word != "."]
    words, best = text.split(), float(score([text])[0])
    trail = [(0, best, len(words), text)]
    for step in range(1, steps + 1):
        edits = [_edited(words, vocabulary, rng, most_words) for _ in range(tries)]
        scores = score([" ".join(edit) for edit in edits])
        if scores.max() > best:
            words, best = edits[int(scores.argmax())], float(scores.max())
        trail.append((step, best, len(words), " ".join(words)))
    return pd.DataFrame(trail, columns=["step", "score", "words", "text"])


def _edited(words: list[str], vocabulary: Sequence[str], rng: np.random.Generator, most_words: int) -> list[str]:
    word = vocabulary[rng.integers(len(vocabulary))]
    insert = len(words) < most_words and rng.random() < 0.5
    places = [i for i in range(len(words)) if insert or words[i] != "."]
    place = places[rng.integers(len(places))]
    return [*words[:place], word, *words[place + (not insert) :]]


# Implicit rewards


def implicit_rewards(model: PreTrainedModel, rows: pd.DataFrame, beta: float) -> pd.DataFrame:
    """The reward model's view and the policy's view of pairs: one row for each pair, in nats.

    Columns chosen, rejected (reward model), implicit_chosen, implicit_rejected (β log π/π_ref), gap and implicit_gap
    (chosen minus rejected: here the part that all responses to a prompt share has cancelled).
    """
    out = {side: rows[f"{side}_reward"].to_numpy() for side in ("chosen", "rejected")}
    for side in ("chosen", "rejected"):
        logps = sequence_log_probs(model, *(rows[name].map(list).tolist() for name in ("prompt_ids", f"{side}_ids")))
        out[f"implicit_{side}"] = beta * (logps - rows[f"ref_{side}_logps"].to_numpy())
    out["gap"] = out["chosen"] - out["rejected"]
    return pd.DataFrame({**out, "implicit_gap": out["implicit_chosen"] - out["implicit_rejected"]})


# Divergences and losses, tabulated


def value_of(formula: str, u: torch.Tensor, alpha: float | None = None) -> torch.Tensor:
    """A formula of `Divergence.formulas`, computed at u, so that what tables show can be checked."""
    return eval(formula, vars(torch) | {"u": u, "α": alpha})


def typeset(formula: str) -> str:
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
        rows.append((div.label, *map(typeset, div.formulas)))
    return pd.DataFrame(rows, columns=["divergence", "f(u)", "f′(u)"]), worst


def divergence_curves(log_u: np.ndarray) -> pd.DataFrame:
    """Each divergence at these log-ratios: columns family, divergence, log_u, u, f - f(1), score - score(0), slope.

    Where f' jumps at u = 1, as in total variation, the middle of the jump is taken for score(0).
    """

    def curve(div: Divergence) -> pd.DataFrame:
        at = {"family": div.family, "divergence": div.label, "log_u": log_u, "u": np.exp(log_u)}
        f = div.f(at["u"]) - div.f(1.0)
        middle = div.centred_score([-1e-9, 1e-9]).mean().round(decimals=6)
        return pd.DataFrame({**at, "f": f, "score": div.centred_score(log_u) - middle, "slope": div.slope(log_u)})

    return pd.concat(map(curve, examples()), ignore_index=True)


def loss_curves(margins: np.ndarray, label_smoothing: float, tokens: tuple[int, int]) -> pd.DataFrame:
    """Each loss at β = 1 against the margin s_w - s_l: columns loss, margin, value, pull (minus its derivative).

    The scores are half the margin and its negative, each pair a batch of its own; `tokens` are the lengths of chosen
    and rejected, for the loss per token.
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


# Figures


def _colours(names: Sequence[str], family: str) -> dict[str, Any]:
    """The colour of the policies that the later notebooks train with each divergence or loss."""
    trained = [family.format(name.replace(", α =", "")) for name in names]
    return {name: look.color for name, look in zip(names, looks(trained).values(), strict=True)}


def tilting(policies: pd.DataFrame, optima: pd.DataFrame) -> Figure:
    """π* for several β, and what it earns at which KL.

    policies has a row for each β (index; inf is the reference) and a column for each response, optima columns beta, kl
    and reward along all β; the rows of policies are marked there.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), width_ratios=[1.5, 1])
    width = 0.84 / len(policies)
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0.1, len(policies)))
    places = np.arange(policies.shape[1])
    for i, (beta, pi) in enumerate(policies.iterrows()):
        colour, name = (NEUTRAL, "π_ref") if np.isinf(beta) else (shades[i], f"β = {beta:g}")
        left.bar(places + (i - (len(policies) - 1) / 2) * width, pi, width, color=colour, label=name)
        here = optima.iloc[(optima.beta - beta).abs().argmin()] if np.isfinite(beta) else optima.loc[optima.kl.idxmin()]
        right.plot(here.kl, here.reward, "o", color=colour, zorder=3)
    right.plot(optima.kl, optima.reward, color="black", linewidth=1)
    left.set_xticks(places, policies.columns)
    left.set(xlabel="response and its reward (nats)", ylabel="probability")
    left.legend(fontsize="small")
    right.set(xlabel="KL(π* ‖ π_ref) (nats)", ylabel="expected reward (nats)")
    return figure


LIMITS = {"f": (-1.8, 5), "score": (-6, 6), "slope": (5e-3, 2e2)}


def divergences(table: pd.DataFrame, x: str, ys: Sequence[str]) -> Figure:
    """One column of panels for each family of divergences, one row for each y; columns family, divergence, x and ys."""
    families = table.family.unique()
    colours = _colours(table.divergence.unique(), "DPO, {}")
    size = (8.6, 1.3 + 2.5 * len(ys))
    figure, axes = plt.subplots(len(ys), len(families), figsize=size, sharex=True, sharey="row", squeeze=False)
    for row, y in zip(axes, ys, strict=True):
        for axis, family in zip(row, families, strict=True):
            for i, (name, one) in enumerate(table[table.family == family].groupby("divergence", sort=False)):
                drawn = one[one[y] != 0] if y == "slope" else one  # no place for a zero on a logarithmic axis
                axis.plot(drawn[x], drawn[y], color=colours[name], linestyle=DASHES[i % 5], label=name)
            axis.axvline(1 if x == "u" else 0, color="black", linewidth=1, linestyle=":")
        row[0].set(ylabel=AXES[y], yscale="log" if y == "slope" else "linear", ylim=LIMITS[y])
    for top, bottom, family in zip(axes[0], axes[-1], families, strict=True):
        top.set_title(family)
        bottom.set_xlabel(AXES[x])
        bottom.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize="x-small")
    return figure


def failures(table: pd.DataFrame) -> Figure:
    """The optimum beside what the loss ends in; columns divergence, response, reference, optimum, found."""
    groups = list(table.groupby("divergence", sort=False))
    figure, axes = plt.subplots(1, len(groups), figsize=(2.2 * len(groups), 3.4), sharey=True)
    for axis, (name, one) in zip(axes, groups, strict=True):
        places = np.arange(len(one))
        axis.bar(places - 0.2, one.optimum, 0.4, color=POSITIVE, label="optimum of the objective")
        axis.bar(places + 0.2, one.found, 0.4, color=COLOURS[1], label="minimum of the loss")
        axis.plot(places, one.reference, "_", color="black", markersize=14, label="π_ref")
        axis.set_xticks(places, one.response, fontsize="x-small")
        axis.set(xlabel="reward (nats)", title=name)
    axes[0].set_ylabel("probability")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def losses(table: pd.DataFrame) -> Figure:
    """Each loss against the margin, and its pull; columns loss, margin, value, pull."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4.1))
    colours = _colours(table.loss.unique(), "DPO, {} loss")
    for i, (name, one) in enumerate(table.groupby("loss", sort=False)):
        style = {"color": colours[name], "linestyle": DASHES[i % 5]}
        left.plot(one.margin, one.value, **style, label=name)
        right.plot(one.margin, one.pull, **style)
    for axis, ylabel, top in ((left, "loss", 6), (right, "pull: −d loss / d margin", 3)):
        axis.axvline(0, color="black", linewidth=1, linestyle=":")
        axis.axhline(0, color="black", linewidth=1, linestyle=":")
        axis.set(xlabel="margin s_w − s_l (nats), β = 1", ylabel=ylabel, ylim=(-1, top))
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def training(log: pd.DataFrame) -> Figure:
    """Loss, log-probs and margin against the training step, each seed a line; columns as in a run's history.csv."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8.8, 3.2))
    for axis, column, name, colour, dashes in (
        (left, "loss", "training", NEUTRAL, "-"),
        (left, "eval_loss", "validation", POSITIVE, "-"),
        (middle, "chosen", "chosen", POSITIVE, "-"),
        (middle, "rejected", "rejected", NEGATIVE, "--"),
        (right, "eval_margin", "margin", POSITIVE, "-"),
    ):
        seed_lines(axis, log, "step", column, color=colour, linestyle=dashes, alpha=0.8, label=name)
    left.axhline(np.log(2), color="black", linewidth=1, linestyle=":", label="log 2")
    middle.axhline(0, color="black", linewidth=1, linestyle=":")
    for axis, ylabel in ((left, "DPO loss (nats a pair)"), (middle, "log-prob − its start (nats)")):
        axis.set(xlabel="training step", ylabel=ylabel)
        axis.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
    right.set(xlabel="training step", ylabel="margin (nats)")
    return figure


# Finite sets of responses


def fit_bradley_terry(wins: np.ndarray) -> np.ndarray:
    """The rewards (responses,) that make these comparisons most likely; their mean, which is free, is zero."""

    def loss(reward: np.ndarray) -> tuple[float, np.ndarray]:
        gap = reward[:, None] - reward[None, :]
        surprise = wins * expit(-gap)
        return -(wins * log_expit(gap)).sum() / wins.sum(), (surprise.sum(axis=0) - surprise.sum(axis=1)) / wins.sum()

    found = minimize(loss, np.zeros(len(wins)), jac=True, method="BFGS", options={"gtol": 1e-10})
    return found.x - found.x.mean()


def maximise_objective(ref: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
    """The policy (responses,) that maximises E_π[r] - β KL(π ‖ ref), by Newton steps in its logits from ref on."""

    def gains(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_pi = log_softmax(logits)
        return np.exp(log_pi), reward - beta * (log_pi - np.log(ref))

    def derivatives(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pi, gain = gains(logits)
        above, both = gain - pi @ gain, np.outer(pi, pi)
        curvature = both * (above[:, None] + above[None, :]) - np.diag(pi * above) + beta * (np.diag(pi) - both)
        return -pi * above, curvature

    return newton(lambda logits: -float(np.dot(*gains(logits))), derivatives, ref, maxiter=2000)[0]
