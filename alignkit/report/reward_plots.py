"""The figures of notebook 1: each function takes a tidy table and returns a figure."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alignkit.report.plots import COLOURS, NEGATIVE, NEUTRAL, POSITIVE


def training(log: pd.DataFrame) -> Figure:
    """Training and held-out loss against texts seen; columns seed, texts, loss, eval_loss."""
    figure, axis = plt.subplots()
    for i, (_, one) in enumerate(log.groupby("seed")):
        axis.plot(one.texts, one.loss, color=NEUTRAL, alpha=0.6, label=None if i else "training")
        axis.plot(one.texts, one.eval_loss, color=POSITIVE, label=None if i else "held-out")
    axis.axhline(np.log(2), color="black", linewidth=1, linestyle=":", label="log 2")
    axis.set(xlabel="texts run through the network", ylabel="Bradley–Terry loss (nats a pair)", ylim=(0, None))
    axis.legend()
    return figure


def reliability(bins: pd.DataFrame) -> Figure:
    """Reliability diagram; columns seed, predicted, observed, low, high."""
    figure, axis = plt.subplots(figsize=(4.8, 4.6))
    axis.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":", label="calibrated")
    for colour, (seed, one) in zip(COLOURS, bins.groupby("seed"), strict=False):
        bars = [one.observed - one.low, one.high - one.observed]
        axis.errorbar(one.predicted, one.observed, yerr=bars, fmt="o-", color=colour, label=f"seed {seed}")
    axis.set(xlabel="predicted P(positive) = σ(reward)", ylabel="observed share of positives", xlim=(0, 1), ylim=(0, 1))
    axis.legend()
    return figure


def learning_curve(points: pd.DataFrame, each: pd.DataFrame, others: pd.DataFrame) -> Figure:
    """Pairwise accuracy against reviews: interval over seeds, each seed, and lines for what it is compared with."""
    figure, axis = plt.subplots()
    mean = points.pairwise_accuracy
    bars = [mean - points.pairwise_accuracy_low, points.pairwise_accuracy_high - mean]
    axis.errorbar(points.reviews, mean, yerr=bars, color=POSITIVE, fmt="-", capsize=4, label="mean over seeds")
    axis.plot(each.reviews, each.pairwise_accuracy, "o", color=POSITIVE, alpha=0.5, label="each seed")
    for style, (_, other) in zip(("--", "-.", ":"), others.iterrows(), strict=False):
        axis.axhline(other.pairwise_accuracy, color="black", linewidth=1, linestyle=style, label=other.method)
    axis.set(xscale="log", xlabel="labelled reviews (log scale)", ylabel="pairwise accuracy on test")
    axis.legend(fontsize="small")
    return figure


def all_pairs(log: pd.DataFrame) -> Figure:
    """Held-out pair accuracy against texts seen; columns training, seed, texts, eval_accuracy."""
    figure, axis = plt.subplots()
    for (name, by_name), colour in zip(log.groupby("training", sort=False), COLOURS, strict=False):
        for i, (_, one) in enumerate(by_name.groupby("seed")):
            axis.plot(one.texts, one.eval_accuracy, color=colour, alpha=0.8, label=None if i else name)
    axis.set(xlabel="texts run through the network", ylabel="accuracy on held-out pairs")
    axis.legend()
    return figure


def words(effects: pd.Series, n: int = 12) -> Figure:
    """The n lowest and n highest of the sorted word effects."""
    ends = pd.concat([effects.head(n), effects.tail(n)])
    figure, axis = plt.subplots(figsize=(6.2, 5.6))
    axis.barh(ends.index, ends, color=[NEGATIVE] * n + [POSITIVE] * n)
    axis.tick_params(axis="y", labelsize="small")
    axis.set(xlabel="change in reward if the word is present (nats)")
    return figure


def distributions(rewards: np.ndarray, labels: np.ndarray, generated: np.ndarray) -> Figure:
    """Reward of test reviews by label, and of generated texts."""
    figure, axis = plt.subplots()
    edges = np.histogram_bin_edges(np.concatenate([rewards, generated]), bins=40)
    for label, colour, name in ((0, NEGATIVE, "negative reviews"), (1, POSITIVE, "positive reviews")):
        axis.hist(rewards[labels == label], edges, density=True, alpha=0.5, color=colour, label=name)
    style = {"histtype": "step", "linewidth": 2, "color": "black"}
    axis.hist(generated, edges, density=True, label="SFT generations", **style)
    axis.axvline(0, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel="reward (nats from its zero; mean over the seeds' models)", ylabel="density")
    axis.legend()
    return figure


def second_opinion(reviews: pd.DataFrame, generated: pd.DataFrame, attacks: pd.DataFrame, against: str) -> Figure:
    """The reward against a second opinion: column reward against column `against` of three tables."""
    figure, axis = plt.subplots(figsize=(5.6, 4.8))
    axis.scatter(reviews[against], reviews.reward, s=5, alpha=0.3, color=NEUTRAL, label="test reviews", rasterized=True)
    axis.scatter(
        generated[against], generated.reward, s=5, alpha=0.3, color=POSITIVE, label="SFT generations", rasterized=True
    )
    axis.scatter(attacks[against], attacks.reward, s=60, marker="X", color=NEGATIVE, label="constructed texts")
    axis.axline((0, 0), slope=1, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel=f"{against} (nats)", ylabel="reward model (nats)")
    axis.legend(fontsize="small")
    return figure
