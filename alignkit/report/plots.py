"""House style of the figures, and the one way to save a figure or a table."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure
from PIL import Image

from alignkit import paths

COLOURS = sns.color_palette("colorblind")
"""Safe for colour-blind readers; the same quantity keeps its colour through all notebooks."""
POSITIVE, NEGATIVE, NEUTRAL = COLOURS[0], COLOURS[3], "0.45"
PIXELS_PER_INCH = 110


def house_style() -> None:
    """Set fonts, grid and palette; makes PNG and SVG repeat byte for byte."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 4.2),
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "legend.frameon": False,
            "svg.hashsalt": "alignkit",
            "svg.fonttype": "none",
        }
    )


def save_figure(figure: Figure, name: str, *, alt: str, profile: str) -> None:
    """Save <name>.png and <name>.svg among the profile's figures, show the PNG with its alt text, close the figure."""
    folder = paths.figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Description": alt})
    png = _png(figure)
    (folder / f"{name}.png").write_bytes(png)
    plt.close(figure)
    display({"image/png": png, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)


def _png(figure: Figure) -> bytes:
    """The figure as a PNG with a palette of 256 colours: a third of the size, so that a notebook stays below 1 MB."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def say(text: str) -> None:
    """Show a sentence whose numbers were computed in the cell, so that prose and table cannot disagree."""
    display(Markdown(text))


def show_table(table: pd.DataFrame, digits: int = 3) -> None:
    """Show a table without its index; the same HTML every time."""
    html = table.to_html(index=False, border=0, float_format=lambda x: f"{x:,.{digits}f}", na_rep="")
    display(HTML(html))


def save_table(table: pd.DataFrame, name: str, *, profile: str) -> Path:
    """Save <name>.csv among the profile's figures, with as many digits as a reader can use."""
    folder = paths.figures(profile)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.csv"
    table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
    return file
