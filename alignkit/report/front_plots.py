"""The figures of notebooks 5 and 6: each function takes tidy tables and returns a figure."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from alignkit.frontier import curve
from alignkit.report.dpo_plots import AXES, MARKERS
from alignkit.report.plots import COLOURS, NEUTRAL

GAINS = {"reward": "gain in reward over SFT (proxy, nats)", "gold": "gain in gold reward over SFT (nats)"}


def one_front(
    means: pd.DataFrame, optimum: pd.DataFrame, families: Sequence[str], most_kl: float, best_of: pd.DataFrame
) -> Figure:
    """Families on the planes of KL and gain in reward, and in gold, below the optimal frontier.

    `means` has columns family, kl, reward, gold: means over seeds of each setting, as gains over SFT, with the ends of
    their intervals (<measure>_low, <measure>_high).  `optimum` and `best_of` have kl and the same gains.  Lines are
    linear in √KL, as `dpo_report.at_kl` reads them; a family with settings of η goes back to SFT.
    """
    ys = [y for y in GAINS if y in optimum and y in means and means[y].notna().any()]
    figure, axes = plt.subplots(1, len(ys), figsize=(6.2 * len(ys), 5.8), squeeze=False)
    for axis, y in zip(axes[0], ys, strict=True):
        axis.plot(optimum.kl, optimum[y], color="black", linewidth=2.4, label="optimal policies")
        near = best_of[best_of.kl <= most_kl]
        axis.plot(near.kl, near[y], color=NEUTRAL, linestyle="--", linewidth=1.6, label="best of n (KL bound)")
        for i, name in enumerate(families):
            rows = means[means.family == name].sort_values("kl")
            shown = rows[rows.kl <= most_kl]
            colour = COLOURS[i % len(COLOURS)]
            d, values = np.sqrt(rows.kl.to_numpy()), rows[y].to_numpy()
            if "eta" in rows and rows.eta.min() < 1:
                d, values = np.append(0, d), np.append(0, values)
            between = np.linspace(d.min(), d.max(), 200)
            axis.plot(between**2, np.interp(between, d, values), color=colour, linewidth=1.1)
            axis.vlines(shown.kl, shown[f"{y}_low"], shown[f"{y}_high"], color=colour, linewidth=1, alpha=0.4)
            style = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
            axis.plot(shown.kl, shown[y], markersize=5, label=name, **style)
        most = means[(means.kl <= most_kl) & means.family.isin(families)][y].max()
        axis.set(xlabel=AXES["kl"], ylabel=GAINS[y], xlim=(0, most_kl), ylim=(0, 1.05 * max(most, optimum[y].max())))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="x-small", loc="outside lower center", ncols=4)
    return figure


def hypervolumes(volume: pd.DataFrame, measures: Sequence[str], order: Sequence[str]) -> Figure:
    """Hypervolume of each method: seeds as points, the mean as a bar; columns method, seed and the measures."""
    figure, axes = plt.subplots(1, len(measures), figsize=(5.6 * len(measures), 0.42 * len(order) + 1.2), sharey=True,
                                squeeze=False)  # fmt: skip
    for axis, measure in zip(axes[0], measures, strict=True):
        for i, name in enumerate(order):
            values = volume[volume.method == name][measure]
            axis.barh(i, values.mean(), color=COLOURS[0], alpha=0.35)
            axis.plot(values, np.full(len(values), i), "o", color=COLOURS[0], markersize=4)
        axis.set(xlabel=f"hypervolume up to KL 4, {measure} (nats²)")
    seeds = volume.groupby("method").seed.nunique()
    labels = [f"{name} (1 seed)" if seeds[name] == 1 < seeds.max() else name for name in order]
    axes[0][0].set_yticks(range(len(order)), labels, fontsize="small")
    axes[0][0].invert_yaxis()
    return figure


def bends(table: pd.DataFrame, fits: pd.DataFrame, families: Sequence[str]) -> Figure:
    """Gain in gold against √KL for each family, with d (α - β log d) at the mean α and β of its seeds.

    `table` has columns family, seed, kl, gold (gains over SFT).
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.6))
    for i, name in enumerate(families):
        rows, found = table[table.family == name], fits[fits.family == name]
        axis.plot(np.sqrt(rows.kl), rows.gold, MARKERS[i], color=COLOURS[i], markersize=4, alpha=0.6, label=name)
        d = np.linspace(0.05, np.sqrt(rows.kl.max()), 100)
        axis.plot(d, curve(d**2, found.alpha.mean(), found.beta.mean()), color=COLOURS[i], linewidth=1.6)
    axis.axhline(0, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel="d = √KL(π ‖ π_sft) (√nats)", ylabel=GAINS["gold"])
    axis.legend(fontsize="small")
    return figure


def bars(table: pd.DataFrame, label: str, value: str, xlabel: str) -> Figure:
    """One bar for each row, with its interval if there are columns <value>_low and <value>_high."""
    figure, axis = plt.subplots(figsize=(7.2, 0.34 * len(table) + 1.1))
    places = np.arange(len(table))
    axis.barh(places, table[value], color=COLOURS[0], alpha=0.45)
    if f"{value}_low" in table:
        axis.hlines(places, table[f"{value}_low"], table[f"{value}_high"], color=COLOURS[0], linewidth=2)
    axis.set(xlabel=xlabel)
    axis.set_yticks(places, table[label], fontsize="small")
    axis.invert_yaxis()
    return figure


def diversity(table: pd.DataFrame, measure: str) -> Figure:
    """A measure of diversity against the gain in reward: one marker for each policy; columns family, seed, reward."""
    figure, axis = plt.subplots(figsize=(7.2, 4.6))
    for i, (name, rows) in enumerate(table.groupby("family", sort=False)):
        colour = "black" if name == "sft" else COLOURS[i % len(COLOURS)]
        axis.plot(rows.reward, rows[measure], MARKERS[i % len(MARKERS)], color=colour, markersize=4, label=name)
    axis.set(xlabel=GAINS["reward"], ylabel=AXES[measure])
    axis.legend(fontsize="x-small")
    return figure
