"""No text cell of a notebook states a result: as far as a lint can tell what a sentence says."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\[[^\]]*\]\([^)]*\)|<[^>]*>|\"[^\"]*\"", re.DOTALL)
"""Code, formulas, links, tags and quotes."""
METHOD = (
    r"\b(c?DPO|IPO|KTO|PPO|hinge|sigmoid|WARP|REINFORCE|RLOO|SFT|reverse KL|forward KL|Jensen\S+|GAN|total variation|"
    r"TF-IDF|anchored|S?LERP|LITI|EMA|best of n|merg\w+|reward models?|loss(es)?|divergences?|methods?|runs)\b"
)
COMPARED = (
    r"\b(beats?|outperforms?|dominates?|lies? (above|below)|does (better|worse)|at least as good|"
    r"(better|worse|higher|lower|more|less|fewer|cheaper|faster|larger|smaller)\b[^.;:]* than|"
    r"(raises?|lowers?|improves?) (the )?(reward|gold|KL|diversity))\b"
)
STATED = re.compile(rf"{METHOD}[^.;:?]{{0,60}}?{COMPARED}", re.IGNORECASE)
OPEN = re.compile(r"\?|\b(if|whether|when|where|would|could|can|may|should|must|which|what|who|how|no|not)\b", re.I)
"""In sentences that ask, or say what would follow."""
SUMMED_UP = re.compile(r"\bwhat worked\b|\bin all \w+ seeds\b", re.IGNORECASE)
NUMBER = re.compile(r"(?<![\w.])(?<![=≈<>≤≥] )\d+(\.\d+|\s?(%|percent))")
"""A decimal number or a share that is no setting (μ = 0.01)."""
LEVELS = {"95 %", "5 %", "100 %"}
CONSTANTS = {
    "world-text": {"0.66", "0.82", "0.94"},  # how the grammar was written
    "dpo-text": {"0.1", "0.5", "0.05"},  # usual values of β
    "implicit-figure-text": {"0.5"},  # chance
    "bt": {"3.7"},  # an example
    "plane-after": {"4.3", "2.8"},  # quantiles of Student's t
    "others-text": {"2.5", "1.75"},  # the task's own limits of a reward
    "overflow-text": {"88.7"},  # the range of float32
    "order-after": {"0.05"},  # a level
    "tuning-text": {"0.25", "0.01"},  # rules of the choice
}
"""Numbers in a cell's text that are the same whatever comes out."""


def stated(text: str) -> list[str]:
    """What a Markdown text seems to state: sentences that compare methods, and numbers."""
    plain = re.sub(r"\s+", " ", HIDDEN.sub("…", text))
    sentences = re.split(r"(?<=[.:?!;])\s", plain)
    told = [s for s in sentences if SUMMED_UP.search(s) or (STATED.search(s) and not OPEN.search(s))]
    return told + [number[0] for number in NUMBER.finditer(plain) if number[0] not in LEVELS]


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda file: file.stem)
def test_no_text_cell_states_a_result(file: Path):
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "markdown"]
    told = {cell.id: [t for t in stated(cell.source) if t not in CONSTANTS.get(cell.id, ())] for cell in cells}
    assert {name: found for name, found in told.items() if found} == {}


@pytest.mark.parametrize(
    "text",
    [
        "WARP gains more reward than DPO at every KL.",
        "REINFORCE **beats** WARP.",
        "Its share is 0.83 of the optimum's.",
        "It wins in 73 % of the cases.",
        "At equal KL more runs lie above one, at each T.",
        "**What worked**",
        "Both are convex, in all three seeds.",
        "DPO raises the reward.",
    ],
)
def test_a_typed_result_is_told(text: str):
    assert len(stated(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Does WARP gain more reward than DPO?",
        "If REINFORCE beats WARP, the average buys nothing.",
        "The default is μ = 0.01, and `eta=0.5` is its front's middle.",
        "The reward lies within $[0.1, 0.7]$; see [version 2.5](https://example.org/1.5).",
        "Intervals are 95 % t intervals over seeds.",
    ],
)
def test_questions_settings_and_formulas_are_no_results(text: str):
    assert stated(text) == []
