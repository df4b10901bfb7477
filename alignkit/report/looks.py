"""The colour and marker of a method, the same in every figure; the words on an axis.  Both stand in looks.yaml."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import yaml
from matplotlib.colors import to_hex

COLOURS = sns.color_palette("colorblind")
"""Safe for colour-blind readers."""
MARKERS = "osD^vPX<>phd8H"
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # so that lines that lie on each other can be seen
POSITIVE, NEGATIVE, NEUTRAL = COLOURS[0], COLOURS[3], "0.45"
NAMES = "blue orange green vermilion purple brown pink grey _ sky".split()
HUES = dict(zip(NAMES, COLOURS.as_hex(), strict=True)) | {"black": "black", "neutral": NEUTRAL}
HUES |= {"wine": "#882255", "indigo": "#332288", "olive": "#7f7f1f", "teal": "#44aa99"}  # Paul Tol's, olive darker
SPARE = [HUES[name] for name in "purple brown sky indigo olive wine grey pink vermilion green orange blue".split()]


class Look(NamedTuple):
    """How a method is drawn."""

    color: Any
    marker: str


DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
LOOKS = {name: Look(HUES[colour], marker) for colour, marker, names in DATA["methods"] for name in names}
AXES: dict[str, str] = DATA["axes"]
"""What stands on an axis, with its unit."""
HEADERS: dict[str, str] = DATA["headers"]
"""What stands above a column of a shown table, where it is not the column's name."""


def look(name: str) -> Look | None:
    """The colour and marker of a method; None if it has none of its own."""
    begun = (start for start in LOOKS if start.endswith("=") and name.startswith(start))
    return LOOKS.get(name) or next((LOOKS[start] for start in begun), None)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """The look of each name of one figure.

    Stages of a method ("WARP, iteration 1") have shades of its colour.  Other names without a look of their own, such
    as the values of a parameter, have shades in this order, or beside methods the colours that those leave.  Of names
    with one look the first has it, the others count as without.
    """
    own = {name: found for found, name in {look(name): name for name in reversed(names)}.items() if found}
    others = [name for name in names if name not in own]
    used, taken = {seen.color for seen in own.values()}, {seen.marker for seen in own.values()}
    stages = {name: method for name in others for method in LOOKS if name.startswith(f"{method}, ")}
    colours: dict[str, Any] = {}
    for method in dict.fromkeys(stages.values()):
        alike = [name for name in others if stages.get(name) == method]
        light = sns.light_palette(LOOKS[method].color)[2]
        colours |= zip(alike, sns.blend_palette([light, LOOKS[method].color], len(alike)), strict=True)
    others = [name for name in others if name not in stages]
    left = [colour for colour in SPARE if colour not in used]
    if used <= {"black"} or len(others) > len(left):
        left = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(others)))
    colours |= zip(others, left, strict=False)
    markers = cycle([marker for marker in MARKERS if marker not in taken] or MARKERS)
    made = {name: Look(to_hex(colour), next(markers)) for name, colour in colours.items()}
    return {name: own.get(name) or made[name] for name in names}
