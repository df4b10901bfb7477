"""House style, the one way to save a figure or a table, and the figures that several notebooks draw."""

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import inf, nan
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from alignkit import paths
from alignkit.frontier import along_root_kl
from alignkit.metrics import seed_interval
from alignkit.report.looks import AXES, COLOURS, DASHES, HEADERS, POSITIVE, Look, looks
from alignkit.report.tables import curve, goes_back, unbroken

PIXELS_PER_INCH = 110
GAINS = {"reward": "gain in reward over SFT (proxy, nats)", "gold": "gain in gold reward over SFT (nats)"}
WIDEST = 9.0
"""Inches; a page shows a wider picture smaller, and its letters with it."""
DOLLAR = '<span class="tex2jax_ignore">&#36;</span>'
"""A dollar in a review. Two are a formula otherwise: to Jupyter as they are written, to MathJax as they are shown."""
_saved: list[str] = []
"""A link to the table that was saved last, as seen from the page that shows it."""


def house_style() -> None:
    """Set fonts, grid and palette; makes PNG and SVG repeat byte for byte."""
    sns.set_theme(style="whitegrid", palette="colorblind", rc={
        "figure.figsize": (7.2, 4.2), "figure.constrained_layout.use": True, "axes.titlesize": "medium",
        "legend.frameon": False, "svg.hashsalt": "alignkit", "svg.fonttype": "none",
    })  # fmt: skip


def save_figure(figure: Figure, name: str, *, alt: str, profile: str) -> None:
    """Save <name>.png and <name>.svg among the profile's figures, show the PNG with its alt text, close the figure."""
    svg, png = (_folder(profile) / f"{name}.{kind}" for kind in ("svg", "png"))
    figure.savefig(svg, metadata={"Date": None, "Description": alt})
    figure.savefig(png, dpi=PIXELS_PER_INCH, metadata={"Software": None})
    with Image.open(png) as picture:  # 256 colours are a third of the size, so that a notebook stays below 1 MB
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(png, optimize=True)
    plt.close(figure)
    display({"image/png": png.read_bytes(), "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)


def say(text: str) -> None:
    """Show a sentence whose numbers were computed in the cell, so that prose and table cannot disagree; a tag in it is
    text."""
    display(Markdown(text.replace("<", "&lt;").replace(DOLLAR.replace("<", "&lt;"), DOLLAR)))


def quoted(text: str) -> str:
    """A text in one line for `say`: nothing in it is Markdown, HTML, a link, or with two dollars a formula."""
    plain = re.sub(r"[\\`*_{}\[\]<>#|~&:]", lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
    return plain.replace("$", DOLLAR)


def show_table(table: pd.DataFrame, digits: int = 3, most: int = 10) -> None:
    """Show a table without its index, without rows and columns that say nothing; the same HTML every time.

    A row says nothing if it has no value beside its first column and its number of seeds.  Numbers have no more than
    the `digits` that their column needs, text stands on the left.  Of more than `most` rows the first are shown, and a
    line says where the others are: in the table that was saved last.
    """
    kept = table.replace("", np.nan).dropna(axis=1, how="all")
    if table.empty:
        say("No row: what this would compare was not trained in this profile, or not at one KL in every seed.")
        return
    measured = kept.drop(columns=[table.columns[0], "seeds"], errors="ignore")
    kept = kept[measured.notna().any(axis=1)] if measured.shape[1] else kept
    shown = pd.DataFrame({column: _readable(kept[column], digits) for column in kept})
    html = shown.head(most).rename(columns=HEADERS).to_html(index=False, border=0, justify="left", na_rep="")
    left = ["" if pd.api.types.is_numeric_dtype(kept[column]) else ' style="text-align: left"' for column in kept]
    styles = cycle(left)  # a page's style sheet sets each cell to the right, those of the header too
    display(HTML(re.sub("<(t[hd])>", lambda cell: f"<{cell[1]}{next(styles)}>", unbroken(html).replace("$", DOLLAR))))
    if (more := len(kept) - most) > 0:
        say(f"{more} more row{'s' * (more > 1)}{f' in {_saved[-1]}' if _saved else ''}.")


def say_unreached(matched: pd.DataFrame) -> None:
    """Name each family of a table of `tables.at_kl` that has no number in some seed, and the KLs where this is so."""
    known = matched.reward.notna().groupby([matched.family, matched.at_kl], sort=False).sum()
    short = known[known < matched.seed.nunique()].reset_index("at_kl").at_kl
    for family, kls in short.groupby(level="family", sort=False):
        places = ", ".join(f"{kl:g}" for kl in sorted(kls))
        say(f"**{family}**: in some seed no policies on both sides of KL {places}, so no row there.")


def _readable(column: pd.Series, digits: int) -> pd.Series:
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column.astype(object).where(column.notna(), "")
    known = column.dropna()
    needed = next((d for d in range(digits) if (known == known.round(d)).all()), digits)
    least = 0.5 * 10.0**-needed
    return column.map(lambda x: "" if pd.isna(x) else f"{x:.1g}" if 0 < abs(x) < least else f"{x:,.{needed}f}")


def save_table(table: pd.DataFrame, name: str, *, profile: str) -> None:
    """Save <name>.csv among the profile's figures, with as many digits as a reader can use; say what diverged in it."""
    file = _folder(profile) / f"{name}.csv"
    table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
    beside = "../figures/pocket/" if profile == "pocket" else ""  # pages of other profiles lie beside their tables
    _saved[:] = [f"[{file.name}]({beside}{file.name})"]
    if lost := np.sum(table.get("status") == "diverged"):
        say(f"{lost} of the {len(table)} rows of {_saved[-1]} diverged: no numbers, and no place in a figure.")


def _folder(profile: str) -> Path:
    folder = paths.figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# Figures of several notebooks


def panels(n: int, height: float = 4.6) -> tuple[Figure, list[Axes]]:
    """A figure of n panels side by side, no wider than WIDEST."""
    figure, axes = plt.subplots(1, n, figsize=(min(WIDEST, 5.2 * n), height), squeeze=False)
    for side in (side for axis in axes[0] for side in (axis.xaxis, axis.yaxis)):
        side.label.set_size("medium" if n < 3 else "small")  # narrow panels have no room for more
    return figure, list(axes[0])


def legend_below(figure: Figure, drawn: pd.DataFrame | None = None) -> None:
    """One legend for all panels, below them, where it covers nothing; above them a note if all that is drawn has one
    seed."""
    named = {label: handle for a in figure.axes for handle, label in zip(*a.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(len(named), 4, int(12 * figure.get_figwidth() / (max(map(len, named)) + 6))))
    figure.legend(list(named.values()), list(named), fontsize="small", loc="outside lower center", ncols=columns)
    if drawn is not None and drawn.seed.nunique() == 1:
        figure.suptitle(f"one seed ({drawn.seed.iloc[0]:g})", fontsize="small")


def curves(log: pd.DataFrame, measures: Sequence[str], methods: Mapping[str, str] | Sequence[str]) -> Figure:
    """Measures against training step, one panel each; columns method, seed, step.

    For each method a thin line for each seed, and their mean as far as all of them go.  `methods` are the methods, or
    the family of each one, which decides its colour.
    """
    families = methods if isinstance(methods, Mapping) else dict(zip(methods, methods, strict=True))
    look_of = looks(list(families.values()))
    figure, axes = panels(len(measures), 3.9)
    for axis, y in zip(axes, measures, strict=True):
        lines = log.pivot(index="step", columns=["method", "seed"], values=y).interpolate("index", limit_area="inside")
        for k, (method, family) in enumerate(families.items()):
            style = {"color": look_of[family].color, "linestyle": DASHES[k % 5]}
            axis.plot(lines[method], **style, alpha=0.3, linewidth=0.7)
            axis.plot(lines[method].dropna().mean(axis=1), **style, label=method)
        axis.set(xlabel="training step", ylabel=AXES[y])
    legend_below(figure, log)
    return figure


def fronts(
    table: pd.DataFrame, x: str, ys: list[str], along: str, marked: float = nan, most: float = inf, apart: Sequence = ()
) -> Figure:
    """Families of policies on planes (x, y): seeds as small points, their means joined along `along` from SFT on.

    Columns family, seed, `along`, x and ys.  Rows of family "sft" are drawn as a star, and lines start there, if
    `along` has a value for them, as η = 0; along β, which SFT has none of, they are a family like the others.  Where
    `along` has the value `marked`, the mean is large and carries the 95 % t intervals of both axes.  Points beyond
    x = `most` are left out.  Points of the families in `apart` are not joined: there are too few of them for a line.
    """
    ys = [y for y in ys if y in table and table[y].notna().any()]
    figure, axes = panels(len(ys))
    if most < inf:
        table = table[table.groupby(["family", along])[x].transform("max") <= most]
    from_here = (table.family == "sft") & table[along].notna()
    start, families = table[from_here], table[~from_here].groupby("family", sort=False)
    look_of = looks(list(families.groups))
    for axis, y in zip(axes, ys, strict=True):
        for name, rows in families:
            colour, marker = look_of[name]
            axis.scatter(rows[x], rows[y], s=9, color=colour, alpha=0.45, marker=marker, linewidths=0)
            joined = rows if name in apart else pd.concat([start, rows])
            means = joined.groupby(along, dropna=False)[sorted({x, y} - {along})].mean().reset_index()
            line = {"linestyle": "-" if len(means) > 1 and name not in apart else "none", "linewidth": 1.2}
            axis.plot(means[x], means[y], marker=marker, color=colour, markersize=5, label=name, **line)
            _mark(axis, rows[rows[along] == marked], x, y, colour, marker)
        if len(start):
            axis.plot(start[x].mean(), start[y].mean(), "k*", markersize=9, label="sft")
        axis.set(xlabel=AXES.get(x, x), ylabel=AXES.get(y, y))
        if x == "kl":
            root_scale(axis, "x")
    legend_below(figure, families.obj)
    return figure


def root_scale(axis: Axes, side: str) -> None:
    """Give the axis of a KL, "x" or "y", the scale of its root, in which lines are read; marked are round numbers with
    room between them, as the root brings large ones together."""
    (_, most), label = (getattr(axis, f"get_{side}{what}")() for what in ("lim", "label"))
    marks = [0.0]
    for kl in [digits * 10.0**power for power in range(-4, 4) for digits in (1, 2.5, 5)]:
        if kl <= most and np.sqrt(kl) - np.sqrt(marks[-1]) > np.sqrt(most) / 9:
            marks.append(kl)
    roots = (lambda kl: np.sign(kl) * np.abs(kl) ** 0.5, lambda root: root * np.abs(root))
    getattr(axis, f"set_{side}scale")("function", functions=roots)
    told = {"ticks": marks, "ticklabels": [f"{kl:g}" for kl in marks], "label": f"{label}, √ scale"}
    told["lim"] = (-0.002 * most, most)  # a root makes a margin below zero wide
    axis.set(**{f"{side}{what}": value for what, value in told.items()})


def _mark(axis: Axes, rows: pd.DataFrame, x: str, y: str, colour: Any, marker: str) -> None:
    if rows.empty:
        return
    (mx, *low_high_x), (my, *low_high_y) = seed_interval(rows[x]), seed_interval(rows[y])
    axis.plot(low_high_x, [my, my], color=colour, linewidth=1.4)
    axis.plot([mx, mx], low_high_y, color=colour, linewidth=1.4)
    axis.plot(mx, my, marker, color=colour, markersize=10, markeredgecolor="black")


def forest(differences: pd.DataFrame, label: str, xlabel: str) -> Figure:
    """Differences with their 95 % intervals, one line each; filled where Holm's p is below 0.05.

    Columns `label`, difference, low, high, holm; single-seed rows have no interval.  Where there is a column against,
    each of its values has a block, below a line that names it.
    """
    if "against" in differences:
        blocks = differences.groupby("against", sort=False)
        differences = pd.concat(pd.concat([pd.DataFrame([{label: f"minus {name}:"}]), rows]) for name, rows in blocks)
    figure, axis = plt.subplots(figsize=(7.2, 0.36 * len(differences) + 1.1))
    for i, row in enumerate(differences.itertuples()):
        axis.plot([row.low, row.high], [i, i], color=POSITIVE, linewidth=1.6)
        axis.plot(row.difference, i, "o", color=POSITIVE, fillstyle="full" if row.holm < 0.05 else "none")
    axis.axvline(0, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel=xlabel, ylim=(len(differences) - 0.5, -0.5))  # the first one on top, none on the frame
    axis.set_yticks(range(len(differences)), differences[label], fontsize="small")
    return figure


def bars(table: pd.DataFrame, label: str, value: str, xlabel: str, seeds: pd.DataFrame | None = None) -> Figure:
    """One bar for each row, with its interval if there are columns <value>_low and <value>_high.

    `seeds` are single seeds, drawn as points, with columns `label`, seed and value; those of the first seed are black,
    since a row that has it alone compares with nothing else, and has no bar.
    """
    figure, axis = plt.subplots(figsize=(7.2, 0.34 * len(table) + 1.1))
    places, counts = np.arange(len(table)), pd.Series(dtype=float) if seeds is None else seeds[label].value_counts()
    alone = table[label].map(counts) == 1
    axis.barh(places, table[value].mask(alone & (counts.max() > 1)), color=COLOURS[0], alpha=0.35)
    if f"{value}_low" in table:
        axis.hlines(places, table[f"{value}_low"], table[f"{value}_high"], color=COLOURS[0], linewidth=2)
    if seeds is not None:
        beside = seeds[label].map(dict(zip(table[label], places, strict=True)))
        axis.plot(seeds[value], beside, "o", color=COLOURS[0], markersize=4)
        first = seeds.seed == seeds.seed.min()
        axis.plot(seeds[value][first], beside[first], "ko", markersize=4, label=f"seed {seeds.seed.min()}")
        legend_below(figure)
    axis.set(xlabel=xlabel, xlim=(min(0, axis.get_xlim()[0]), None))
    axis.set_yticks(places, table[label] + alone.map({True: " (one seed)", False: ""}), fontsize="small")
    axis.invert_yaxis()
    return figure


def bends(table: pd.DataFrame, fits: pd.DataFrame, families: Sequence[str]) -> Figure:
    """Gain in gold against √KL for each family, with the d (α - β log d) of each seed over the KLs of its points.

    `table` has columns family, seed, kl, gold (gains over SFT).
    """
    look_of = looks(families)
    figure, axis = plt.subplots(figsize=(7.2, 4.6))
    for name in families:
        rows, found = table[table.family == name], fits[fits.family == name].dropna(subset="alpha")
        colour, marker = look_of[name]
        axis.plot(np.sqrt(rows.kl.clip(lower=0)), rows.gold, marker, color=colour, markersize=4, alpha=0.6, label=name)
        for fit in found.itertuples():
            own = rows.kl[rows.seed == fit.seed]
            d = np.linspace(*np.sqrt([max(0.0025, own.min()), own.max()]), 100)
            axis.plot(d, curve(d**2, fit.alpha, fit.beta), color=colour, linewidth=1.1)
    axis.axhline(0, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel="d = √KL(π ‖ π_sft) (√nats)", ylabel=GAINS["gold"])
    legend_below(figure)
    return figure


def draw_family(axis: Axes, rows: pd.DataFrame, y: str, name: str, look: Look) -> None:
    """A family's gains on the plane of KL and y: points with intervals, joined as `tables.at_kl` reads between them."""
    ordered = rows.sort_values("kl")
    # An estimate of a KL near zero may lie below it.
    kls, values = ordered.kl.clip(lower=0).to_numpy(), ordered[y].to_numpy()
    if goes_back(rows):
        kls, values = np.append(0, kls), np.append(0, values)
    between = np.linspace(np.sqrt(kls.min()), np.sqrt(kls.max()), 200) ** 2
    axis.plot(between, along_root_kl(between, kls, values, beyond=True), color=look.color, linewidth=1.1)
    axis.vlines(ordered.kl, ordered[f"{y}_low"], ordered[f"{y}_high"], color=look.color, linewidth=1, alpha=0.4)
    axis.plot(ordered.kl, ordered[y], look.marker, color=look.color, markersize=5, label=name)


def seed_lines(axis: Axes, log: pd.DataFrame, x: str, y: str, *, label: str, **style: Any) -> None:
    """A line for each seed of a log, in matplotlib's `style`; the first of them carries the label."""
    for i, (_, one) in enumerate(log.dropna(subset=y).groupby("seed")):
        axis.plot(one[x], one[y], label=None if i else label, **style)
