"""The figures of notebooks 2 and 3: each function takes a tidy table and returns a figure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignkit.report.plots import COLOURS, NEGATIVE, NEUTRAL, POSITIVE

AXES = {
    "kl": "KL(π ‖ π_sft) (nats a completion)",
    "reward": "reward (proxy, nats)",
    "gold": "gold reward (nats)",
    "unigram_entropy": "entropy of the words (nats)",
    "mean_tokens": "length (tokens a completion)",
    "eval_accuracy": "accuracy on held-out pairs",
    "eval_logps/chosen": "log-prob of chosen (nats)",
    "eval_logps/rejected": "log-prob of rejected (nats)",
    "eval_loss": "validation loss",
    "well_formed": "well-formed share of sentences",
    "self_bleu": "self-BLEU within a prompt",
    "repetition": "share of repeated 4-grams",
    "kl_anchor": "KL to the anchor (nats)",
    "kl_sft": "KL to SFT (nats)",
    "entropy": "entropy of the next token (nats)",
    "length": "length (tokens a completion)",
}
"""What stands on an axis, with its unit."""
MARKERS = "osD^vPX*<>"
KEPT = ["sigmoid", "hinge", "ipo", "kto_pair", "cdpo"], ["reverse_kl", "forward_kl", "js", "alpha 0.5"]
"""Losses and divergences that keep their colour in every figure."""


def colour_of(name: str, position: int) -> Any:
    """The colour of a method: its own, or one of those that are nobody's; the supervised policy is black."""
    kind = name.split(" β=")[0]
    own = [group.index(kind) for group in KEPT if kind in group]
    return "black" if name == "sft" else COLOURS[own[0] if own else 5 + position % (len(COLOURS) - 5)]


def curves(
    log: pd.DataFrame, measures: Sequence[str], methods: Sequence[str], colour: Callable[[str, int], Any] = colour_of
) -> Figure:
    """Measures against training step, one panel each, one line for each (method, seed); columns method, seed, step."""
    figure, axes = plt.subplots(1, len(measures), figsize=(3.6 * len(measures), 3.6))
    for axis, measure in zip(np.atleast_1d(axes), measures, strict=True):
        for position, method in enumerate(methods):
            for i, (_, one) in enumerate(log[log.method == method].groupby("seed")):
                kept = one.dropna(subset=measure)
                label = None if i else method
                axis.plot(kept.step, kept[measure], color=colour(method, position), alpha=0.8, label=label)
        axis.set(xlabel="training step", ylabel=AXES[measure])
    np.atleast_1d(axes)[0].legend(fontsize="small")
    return figure


def planes(table: pd.DataFrame, x: str, ys: Sequence[str], *, lines: bool = False) -> Figure:
    """Each family of runs on planes (x, y): every seed a small point, the mean over seeds a large one.

    Columns family, beta, seed, x and ys.  With `lines` the means of a family are joined along beta.
    """
    ys = [y for y in ys if y in table and table[y].notna().any()]
    figure, axes = plt.subplots(1, len(ys), figsize=(4.6 * len(ys), 4.4), squeeze=False)
    for axis, y in zip(axes[0], ys, strict=True):
        for i, (name, rows) in enumerate(table.groupby("family", sort=False)):
            _seeds_and_means(axis, rows, x, y, colour_of(name, i), MARKERS[i % len(MARKERS)], name, lines)
        axis.set(xlabel=AXES[x], ylabel=AXES[y])
    axes[0][0].legend(fontsize="x-small")
    return figure


def _seeds_and_means(axis: Axes, rows: pd.DataFrame, x: str, y: str, colour, marker: str, name: str, lines: bool):
    means = rows.groupby("beta", dropna=False)[[x, y]].mean()
    axis.scatter(rows[x], rows[y], s=10, color=colour, alpha=0.45, marker=marker, linewidths=0)
    style = "-" if lines and len(means) > 1 else ""
    axis.plot(means[x], means[y], style, marker=marker, color=colour, markersize=6, linewidth=1.2, label=name)


def boxes(samples: Mapping[str, pd.Series], measure: str = "reward") -> Figure:
    """Box plot of a measure of single completions, one box for each method (whiskers: 5th and 95th percentile)."""
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(samples) + 1.2))
    axis.boxplot(
        list(samples.values()), orientation="horizontal", whis=(5, 95), showfliers=False, tick_labels=list(samples),
        patch_artist=True, boxprops={"facecolor": (*POSITIVE, 0.25)}, medianprops={"color": "black"},
    )  # fmt: skip
    axis.axvline(0, color=NEUTRAL, linewidth=1, linestyle=":")
    axis.invert_yaxis()
    axis.set(xlabel=f"{AXES[measure]}, single completions")
    return figure


def histograms(samples: Mapping[str, pd.Series], measure: str = "reward") -> Figure:
    """Histogram of a measure of single completions, one outline for each method on common bins."""
    figure, axis = plt.subplots()
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=40)
    for position, (name, values) in enumerate(samples.items()):
        style = {"histtype": "step", "linewidth": 1.6, "color": colour_of(name, position)}
        axis.hist(values, edges, density=True, label=name, **style)
    axis.set(xlabel=f"{AXES[measure]}, single completions", ylabel="density")
    axis.legend(fontsize="small")
    return figure


def forest(differences: pd.DataFrame, label: str, xlabel: str) -> Figure:
    """Differences with their 95 % intervals, one line each; filled where Holm's p is below 0.05.

    Columns `label`, difference, low, high, holm; single-seed rows have no interval.
    """
    figure, axis = plt.subplots(figsize=(7.2, 0.36 * len(differences) + 1.1))
    for i, row in enumerate(differences.itertuples()):
        axis.plot([row.low, row.high], [i, i], color=POSITIVE, linewidth=1.6)
        axis.plot(row.difference, i, "o", color=POSITIVE, fillstyle="full" if row.holm < 0.05 else "none")
    axis.axvline(0, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel=xlabel)
    axis.set_yticks(range(len(differences)), differences[label], fontsize="small")
    axis.invert_yaxis()
    return figure


def bells(grid: np.ndarray, target: np.ndarray, fits: Mapping[str, np.ndarray]) -> Figure:
    """A target with two modes and the closest single bell under each divergence."""
    figure, axis = plt.subplots()
    step = grid[1] - grid[0]
    axis.fill_between(grid, target / step, color="0.85", label="target")
    for colour, style, (name, bell) in zip(COLOURS, ("-", "--", "-.", ":", (0, (6, 3))), fits.items(), strict=False):
        axis.plot(grid, bell / step, color=colour, linestyle=style, linewidth=2, label=name)
    axis.set(xlabel="response (a point on a line)", ylabel="probability density")
    axis.legend(fontsize="small")
    return figure


def missed_optima(table: pd.DataFrame) -> Figure:
    """Total variation between DPO's minimum and the closed-form optimum; columns divergence, beta, gap."""
    figure, axis = plt.subplots(figsize=(7.2, 4.6))
    order = table.groupby("divergence").gap.max().sort_values().index
    sns.stripplot(
        table.assign(gap=table.gap.clip(lower=1e-12)), y="divergence", x="gap", hue="beta", order=order, size=3,
        jitter=False, dodge=True,
        palette=[POSITIVE, NEGATIVE], ax=axis,
    )  # fmt: skip
    axis.axvline(1e-3, color="black", linewidth=1, linestyle=":")
    axis.set(xscale="log", xlabel="total variation from the closed-form optimum (log scale)", ylabel="")
    return figure
