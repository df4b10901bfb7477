"""The colour and marker of a method: the same in every figure."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import to_hex

COLOURS = sns.color_palette("colorblind")
"""Safe for colour-blind readers."""
MARKERS = "osD^vPX<>phd"
POSITIVE, NEGATIVE, NEUTRAL = COLOURS[0], COLOURS[3], "0.45"


class Look(NamedTuple):
    """How a method is drawn."""

    color: Any
    marker: str


BLUE, ORANGE, GREEN, VERMILION, PURPLE, BROWN, PINK, GREY, _, SKY = COLOURS.as_hex()
WINE, INDIGO, OLIVE = "#882255", "#332288", "#7f7f1f"  # of Paul Tol's muted scheme, olive made darker
LOOKS = {
    name: Look(colour, marker)
    for colour, marker, names in [
        ("black", "*", ["sft"]),
        (BLUE, "o", ["DPO, reverse_kl", "DPO, sigmoid loss"]),
        (ORANGE, "s", ["DPO, forward_kl"]),
        (GREEN, "D", ["DPO, js"]),
        (VERMILION, "^", ["DPO, alpha 0.5", "DPO, pearson_chi2"]),
        (PURPLE, "v", ["DPO, neyman_chi2"]),
        (BROWN, "P", ["DPO, cnp_chi2"]),
        (SKY, "X", ["DPO, hellinger"]),
        (INDIGO, "<", ["DPO, jeffrey"]),
        (WINE, ">", ["DPO, chi_po"]),
        (OLIVE, "p", ["DPO, chi_alpha"]),
        (GREY, "h", ["DPO, total_variation"]),
        (PINK, "d", ["DPO, gan"]),
        (ORANGE, "v", ["DPO, hinge loss"]),
        (GREEN, "P", ["DPO, ipo loss"]),
        (VERMILION, "X", ["DPO, kto_pair loss"]),
        (PURPLE, "D", ["DPO, cdpo loss", "DPO, robust loss"]),
        (GREEN, "p", ["DPO, ipo_per_token loss"]),
        (ORANGE, "<", ["threshold pairs"]),
        (VERMILION, ">", ["top_bottom pairs"]),
        (BROWN, "d", ["all_pairs pairs"]),
        (WINE, "^", ["bernoulli pairs"]),
        (GREY, "X", ["no near-duplicates"]),
        (SKY, "h", ["lora"]),
        (ORANGE, "d", ["chosen texts"]),
        (BROWN, "s", ["positive prefix"]),
        (INDIGO, "D", ["keyword bias"]),
        (OLIVE, "P", ["fine-tuning on positive reviews"]),
        (VERMILION, "v", ["guided search"]),
        (NEUTRAL, "X", ["best of n", "best of n (KL bound)"]),
        (GREEN, "^", ["REINFORCE, EMA anchor"]),
        (ORANGE, "D", ["REINFORCE, SFT anchor", "REINFORCE, SFT anchor, over steps"]),
        (VERMILION, "d", ["REINFORCE, no anchor", "REINFORCE, no anchor, over steps"]),
        (WINE, "p", ["WARP", "SLERP", "WARP, T="]),
        (BLUE, "s", ["LERP"]),
        (OLIVE, "X", ["raw SLERP (one seed)"]),
        (PURPLE, "h", ["WARP + RLOO"]),
        (SKY, "D", ["anchored RLOO", "anchored RLOO, over η", "anchored RLOO, over β"]),
        (INDIGO, "v", ["anchored, sentence credit"]),
        (BROWN, "X", ["anchored RLOO, β="]),
    ]
    for name in names
}
"""Safe for colour-blind readers; two that stand in one figure differ in colour and in marker.  A name that ends in "="
stands for all that begin so."""
SPARE = (PURPLE, BROWN, SKY, INDIGO, OLIVE, WINE, GREY, PINK, VERMILION, GREEN, ORANGE, BLUE)


def look(name: str) -> Look | None:
    """The colour and marker of a method, the same in every figure; None if it has none of its own."""
    begun = (start for start in LOOKS if start.endswith("=") and name.startswith(start))
    return LOOKS.get(name) or next((LOOKS[start] for start in begun), None)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """The look of each name of one figure.

    Stages of a method ("WARP, iteration 1") have shades of its colour.  Other names without a look of their own, such
    as the values of a parameter, have shades in this order, or beside methods the colours that those leave.
    """
    own = {name: look(name) for name in names}
    used, taken = ({found[i] for found in own.values() if found} for i in (0, 1))
    markers = cycle([marker for marker in MARKERS if marker not in taken] or MARKERS)
    others = [name for name, found in own.items() if found is None]
    stages = {name: known for name in others for known in LOOKS if name.startswith(f"{known}, ")}
    for method in dict.fromkeys(stages.values()):
        alike = [name for name in others if stages.get(name) == method]
        light = sns.light_palette(LOOKS[method].color)[2]
        own |= _shaded(alike, sns.blend_palette([light, LOOKS[method].color], len(alike)), markers)
    others = [name for name in others if name not in stages]
    left = [colour for colour in SPARE if colour not in used]
    if used <= {"black"} or len(others) > len(left):
        left = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(others)))
    return own | _shaded(others, left, markers)


def _shaded(names: Sequence[str], colours: Sequence[Any], markers: Iterator[str]) -> dict[str, Look]:
    return {
        name: Look(to_hex(colour), next(markers)) for name, colour in zip(names, colours[: len(names)], strict=True)
    }
