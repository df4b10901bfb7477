"""The figures of notebook 0: each function takes a tidy table or arrays and returns a figure."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alignkit.report.plots import COLOURS, NEGATIVE, NEUTRAL, POSITIVE

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
"""Line styles, so that lines that lie on each other can be seen."""


def climb(trail: pd.DataFrame) -> Figure:
    """The reward model's score along a climb, and the gold reward where it is known; columns step, score, gold."""
    figure, axis = plt.subplots()
    axis.plot(trail.step, trail.score, color=POSITIVE, label="reward model (proxy)")
    if "gold" in trail:
        axis.plot(trail.step, trail.gold, color=NEGATIVE, linestyle="--", label="gold reward")
    axis.axhline(0, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel="step of the climb", ylabel="reward (nats)")
    axis.legend()
    return figure


def tilting(policies: pd.DataFrame, optima: pd.DataFrame) -> Figure:
    """π* for several β, and what it earns at which KL.

    policies: one row for each β (index; inf is the reference), one column for each response.  optima: columns beta,
    kl and reward along all β; the rows of policies are marked.
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


def implicit(table: pd.DataFrame) -> Figure:
    """The implicit reward against the reward model, response by response and pair by pair.

    Columns of `primer.implicit_rewards`, and accuracy is the share of pairs above zero on the right.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.6))
    for side, colour in (("rejected", NEGATIVE), ("chosen", POSITIVE)):
        left.scatter(table[side], table[f"implicit_{side}"], s=10, alpha=0.4, color=colour, linewidths=0, label=side)
    right.scatter(table.gap, table.implicit_gap, s=10, alpha=0.4, color=NEUTRAL, linewidths=0)
    for axis in (left, right):
        axis.axhline(0, color="black", linewidth=1, linestyle=":")
    left.set(xlabel="reward model (nats)", ylabel="implicit reward (nats)")
    right.set(xlabel="reward model, chosen − rejected (nats)", ylabel="implicit, the same (nats)")
    left.legend(markerscale=3)
    return figure


AXES = {
    "u": "ratio u = π/π_ref",
    "log_u": "log-ratio log u (nats)",
    "f": "f(u) − f(1)",
    "score": "score f′(u) − f′(1)",
    "slope": "slope u f″(u) (score a nat)",
}
LIMITS = {"f": (-1.8, 5), "score": (-6, 6), "slope": (5e-3, 2e2)}


def divergences(table: pd.DataFrame, x: str, ys: Sequence[str]) -> Figure:
    """One column of panels for each family of divergences, one row for each y; columns family, divergence, x and ys."""
    families = table.family.unique()
    size = (8.6, 1.3 + 2.5 * len(ys))
    figure, axes = plt.subplots(len(ys), len(families), figsize=size, sharex=True, sharey="row", squeeze=False)
    for row, y in zip(axes, ys, strict=True):
        for axis, family in zip(row, families, strict=True):
            lines = table[(table.family == family) & (table[y] != 0)] if y == "slope" else table[table.family == family]
            for i, (name, one) in enumerate(lines.groupby("divergence", sort=False)):
                style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
                axis.plot(one[x], one[y], **style, label=name)
            axis.axvline(1 if x == "u" else 0, color="black", linewidth=1, linestyle=":")
        row[0].set(ylabel=AXES[y], yscale="log" if y == "slope" else "linear", ylim=LIMITS[y])
    for top, bottom, family in zip(axes[0], axes[-1], families, strict=True):
        top.set_title(family)
        bottom.set_xlabel(AXES[x])
        legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2, "fontsize": "x-small"}
        bottom.legend(*top.get_legend_handles_labels(), **legend)
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
        axis.set_xticks(places, one.response)
        axis.tick_params(axis="x", labelsize="small")
        axis.set(xlabel="reward (nats)", title=name)
    axes[0].set_ylabel("probability")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def losses(table: pd.DataFrame, *, limits: tuple[float, float]) -> Figure:
    """Each loss against the margin, and its pull; columns loss, margin, value, pull."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4.1))
    for i, (name, one) in enumerate(table.groupby("loss", sort=False)):
        style = {"color": COLOURS[i], "linestyle": DASHES[i % len(DASHES)]}
        left.plot(one.margin, one.value, **style, label=name)
        right.plot(one.margin, one.pull, **style)
    left.set(ylabel="loss", ylim=limits)
    right.set(ylabel="pull: −d loss / d margin", ylim=(-1.0, limits[1] / 2))
    for axis in (left, right):
        axis.axvline(0, color="black", linewidth=1, linestyle=":")
        axis.axhline(0, color="black", linewidth=1, linestyle=":")
        axis.set(xlabel="margin s_w − s_l (nats), β = 1")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def training(log: pd.DataFrame) -> Figure:
    """Loss, log-probs and margin against the training step, each seed a line; columns as in a run's history.csv."""
    figure, axes = plt.subplots(1, 3, figsize=(8.8, 3.2))
    panels = (
        {"loss": ("training", NEUTRAL, "-"), "eval_loss": ("validation", POSITIVE, "-")},
        {"chosen": ("chosen", POSITIVE, "-"), "rejected": ("rejected", NEGATIVE, "--")},
        {"eval_margin": ("margin", POSITIVE, "-")},
    )
    for axis, lines in zip(axes, panels, strict=True):
        for i, (_, one) in enumerate(log.groupby("seed")):
            for column, (name, colour, style) in lines.items():
                kept = one.dropna(subset=column)
                shown = {"color": colour, "linestyle": style, "label": None if i else name}
                axis.plot(kept.step, kept[column], **shown, alpha=0.8)
        axis.set_xlabel("training step")
    axes[0].axhline(np.log(2), color="black", linewidth=1, linestyle=":", label="log 2")
    axes[1].axhline(0, color="black", linewidth=1, linestyle=":")
    axes[0].set_ylabel("DPO loss (nats a pair)")
    axes[1].set_ylabel("log-prob − its start (nats)")
    axes[2].set_ylabel("margin (nats)")
    axes[0].legend(fontsize="small", loc="upper right", bbox_to_anchor=(1, 0.95))
    axes[1].legend(fontsize="small")
    return figure
