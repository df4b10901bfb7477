"""The figures of notebook 4: each function takes a tidy table and returns a figure."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignkit.metrics import seed_interval
from alignkit.report.dpo_plots import AXES, MARKERS
from alignkit.report.plots import COLOURS, NEUTRAL

ALONG = {"eta": "interpolation rate η", "steps": "training steps T"}


def colour_of(name: str, position: int) -> Any:
    """The colour of a family: by its place in the figure; the supervised policy is black."""
    return "black" if name == "sft" else COLOURS[position % len(COLOURS)]


def fronts(
    table: pd.DataFrame,
    x: str,
    ys: Sequence[str],
    along: str,
    marked: float | None = None,
    most: float | None = None,
) -> Figure:
    """Families of policies on planes (x, y): seeds as small points, their means joined along `along` from SFT on.

    Columns family, seed, `along`, x and ys; rows of family "sft" are drawn as a star.  Where `along` has the value
    `marked`, the mean is large and carries the 95 % t intervals of both axes.  Points beyond x = `most` are left out.
    """
    ys = [y for y in ys if y in table and table[y].notna().any()]
    figure, axes = plt.subplots(1, len(ys), figsize=(4.8 * len(ys), 4.4), squeeze=False)
    if most is not None:
        table = table[table.groupby(["family", along])[x].transform("max") <= most]
    start = table[table.family == "sft"]
    families = table[table.family != "sft"].groupby("family", sort=False)
    for axis, y in zip(axes[0], ys, strict=True):
        for i, (name, rows) in enumerate(families):
            colour, marker = colour_of(name, i), MARKERS[i % len(MARKERS)]
            axis.scatter(rows[x], rows[y], s=9, color=colour, alpha=0.45, marker=marker, linewidths=0)
            means = pd.concat([start, rows]).groupby(along)[sorted({x, y} - {along})].mean().reset_index()
            axis.plot(means[x], means[y], "-", marker=marker, color=colour, markersize=5, linewidth=1.2, label=name)
            _mark(axis, rows[rows[along] == marked], x, y, colour, marker)
        if len(start):
            axis.plot(start[x].mean(), start[y].mean(), "k*", markersize=9, label="sft")
        axis.set(xlabel=AXES.get(x, ALONG.get(x, x)), ylabel=AXES.get(y, y))
    axes[0][0].legend(fontsize="x-small")
    return figure


def _mark(axis: Axes, rows: pd.DataFrame, x: str, y: str, colour, marker: str) -> None:
    if rows.empty:
        return
    (mx, *low_high_x), (my, *low_high_y) = seed_interval(rows[x]), seed_interval(rows[y])
    axis.plot(low_high_x, [my, my], color=colour, linewidth=1.4)
    axis.plot([mx, mx], low_high_y, color=colour, linewidth=1.4)
    axis.plot(mx, my, marker, color=colour, markersize=10, markeredgecolor="black")


def angles(table: pd.DataFrame) -> Figure:
    """Angle between two task vectors in each layer: a point for each seed; columns layer, angle, iteration."""
    figure, axis = plt.subplots(figsize=(7.2, 0.5 * table.layer.nunique() + 1.2))
    sns.stripplot(
        table, y="layer", x="angle", hue="iteration", dodge=True, jitter=False, size=6,
        palette=COLOURS[: table.iteration.nunique()], ax=axis,
    )  # fmt: skip
    axis.axvline(90, color=NEUTRAL, linewidth=1, linestyle=":")
    axis.set(xlabel="angle Ω between the task vectors of two runs (degrees)", ylabel="", xlim=(0, 100))
    return figure
