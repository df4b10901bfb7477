"""The source of a run: which edits of a small package change it, and that no training code hides what it calls."""

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import sources

from alignkit import paths
from alignkit.workflow import identity

MODULES = [f"alignkit.training.{file.stem}" for file in sorted((paths.PACKAGE / "training").glob("[a-z]*.py"))]
TRAINING = {
    name: function
    for module in MODULES
    for name, function in inspect.getmembers(importlib.import_module(module), inspect.isfunction)
    if function.__module__ == module and list(inspect.signature(function).parameters)[:1] == ["out"]
}
"""Functions that make a run: they write into the folder `out`."""


UNFOLLOWED = {"getattr", "eval", "exec", "globals", "locals", "importlib", "__import__"}
"""Names that reach definitions in ways that a syntax tree does not show."""


# Training code


def unfollowed(function: Callable[..., Any]) -> list[str]:
    """One line for each use of a name of UNFOLLOWED in the definitions that the function reaches."""
    return sorted(
        f"{module}.{name or 'its statements'}: {word}"
        for (module, name), node in identity.reached(function.__module__, function.__name__).items()
        for word in identity.global_names(node) & UNFOLLOWED
    )


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_training_code_calls_nothing_that_cannot_be_followed(name: str):
    assert unfollowed(TRAINING[name]) == []


def test_every_function_that_a_notebook_asks_for_is_among_them():
    asked = set()
    for file in (paths.PACKAGE / "report").glob("*.py"):
        tree = ast.parse(file.read_text())
        trained = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module.startswith("alignkit.training")
            for alias in node.names
        }
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        asked |= {
            ast.unparse(call.args[0]) for call in calls if call.args and ast.unparse(call.func) == "get"
        } & trained
        judged = [call.args[1] for call in calls if ast.unparse(call.func) == "assessed"]
        asked |= {ast.unparse(name) for name in judged} & trained
    assert {"train_sft", "train_reward", "train_dpo", "evaluate", "merge_policies", "evaluate_by_judge"} <= asked
    assert asked <= set(TRAINING)


def hidden(out: Path) -> Any:
    return getattr(out, "n" + "ame")


def test_a_name_that_is_looked_up_while_running_is_told():
    assert unfollowed(hidden) == [f"{__name__}.hidden: getattr"]


# A small package

PACKAGE = {
    "train.py": '''
"""Training."""
from statistics import mean

from alignkit.losses import LOSSES
from alignkit.numbers import RATE, other


def train(out):
    """Trains."""
    return step(mean([RATE, 2]))


def step(x):
    return LOSSES["hinge"](x)


def apart(x):
    return other(x)
''',
    "losses.py": '''
"""Losses."""


def hinge(x):
    """A loss."""
    return max(0, 1 - x)  # of one number


def square(x):
    return x**2


LOSSES = {"hinge": hinge, "square": square}
''',
    "losses.yaml": "margin: 1\n",
    "numbers.yaml": "unit: nats\n",
    "numbers.py": """
RATE = 3
OTHER = 4


def other(x):
    return OTHER * x
""",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of PACKAGE, in place of the real ones."""
    for name, text in PACKAGE.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    return tmp_path


def source(module: str = "train", words: frozenset[str] = frozenset()) -> str:
    """The source of `train`, read anew."""
    train = SimpleNamespace(__module__=f"alignkit.{module}", __name__="train", __qualname__="train")
    return sources(train, words=words)[0]


def edited(file: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(package: Path) -> None:
        text = (package / file).read_text()
        assert old in text
        (package / file).write_text(text.replace(old, new))

    return edit


def move_a_function(package: Path) -> None:
    """`step` moves to a file of its own."""
    text = (package / "train.py").read_text()
    moved = 'def step(x):\n    return LOSSES["hinge"](x)\n'
    assert moved in text
    (package / "train.py").write_text(text.replace(moved, ""))
    edited("train.py", "from alignkit.losses import LOSSES", "from alignkit.steps import step")(package)
    (package / "steps.py").write_text(f"from alignkit.losses import LOSSES\n\n\n{moved}")


@pytest.mark.parametrize(
    "edit",
    [
        edited("losses.py", "# of one number", "# of a margin"),
        edited("losses.py", '"""A loss."""', '"""A loss.\n\n    Of a margin."""'),
        edited("train.py", '"""Training."""', ""),
        edited("train.py", "return other(x)", "return x"),
        edited("numbers.py", "OTHER = 4", "OTHER = 5"),
        edited("losses.py", "max(0, 1 - x)", "max(\n        0, 1 - x\n    )"),
        edited("losses.yaml", "margin:", "# of a pair\nmargin:  "),
        move_a_function,
    ],
    ids=[
        "comment",
        "docstring",
        "docstring of a module",
        "not reached",
        "constant not reached",
        "layout",
        "comment in data",
        "moved",
    ],
)
def test_what_a_run_does_not_depend_on_leaves_its_source(edit: Callable[[Path], None], package: Path):
    before = source()
    edit(package)
    assert source() == before


@pytest.mark.parametrize(
    "edit",
    [
        edited("train.py", "return step(", "return 2 * step("),
        edited("losses.py", "max(0, 1 - x)", "max(0, 2 - x)"),
        edited("losses.py", "return x**2", "return x**4"),
        edited("losses.yaml", "margin: 1", "margin: 2"),
        edited("losses.py", '"square": square', '"square": hinge'),
        edited("numbers.py", "RATE = 3", "RATE = 4"),
        edited("train.py", "from statistics import mean", "from statistics import median as mean"),
        edited("train.py", "from alignkit.numbers import RATE", "from alignkit.numbers import OTHER as RATE"),
    ],
    ids=[
        "itself",
        "called",
        "entry of a registry",
        "data",
        "registry",
        "constant",
        "another library's",
        "another name's",
    ],
)
def test_what_a_run_depends_on_changes_its_source(edit: Callable[[Path], None], package: Path):
    before = source()
    edit(package)
    assert source() != before


@pytest.mark.parametrize(
    "registry",
    [
        'LOSSES = {"hinge": hinge, "square": square}',
        "LOSSES: dict = {f.__name__: f for f in (hinge, square)}",
        'LOSSES = {d.name: d for d in (Loss(name="hinge", of=hinge), Loss(name="square", of=square))}',
    ],
    ids=["written out", "by the name of a function", "by the name that is given"],
)
def test_of_a_registry_the_entries_count_that_the_settings_name(registry: str, package: Path):
    edited("losses.py", 'LOSSES = {"hinge": hinge, "square": square}', registry)(package)
    words = [frozenset({"hinge", "x"}), frozenset({"square"}), frozenset({"another"}), frozenset()]
    before = [source(words=w) for w in words]
    assert before[0] != before[1]
    assert before[2] == before[3]
    edited("losses.py", "max(0, 1 - x)", "max(0, 2 - x)")(package)
    assert [a != b for a, b in zip(before, [source(words=w) for w in words], strict=True)] == [True, False, True, True]


@pytest.mark.parametrize(
    "registry",
    [
        "LOSSES = {f.__name__: twice(f) for f in (hinge, square)}",
        "LOSSES = {f.__name__: f for f in (hinge, square) if f is not square}",
        'LOSSES = {"hinge": hinge, **{"square": square}}',
        "LOSSES = {f.__name__: f for f in (hinge, *(square,))}",
    ],
    ids=["wrapped", "chosen", "joined", "with others"],
)
def test_a_registry_that_is_not_plain_counts_whole(registry: str, package: Path):
    plain = source(words=frozenset({"hinge"}))
    edited("losses.py", 'LOSSES = {"hinge": hinge, "square": square}', registry)(package)
    before = source(words=frozenset({"hinge"}))
    assert before != plain
    edited("losses.py", "square", "cube")(package)
    assert source(words=frozenset({"hinge"})) != before


def test_a_training_function_that_moves_keeps_its_source(package: Path):
    before = source()
    (package / "train.py").rename(package / "elsewhere.py")
    assert source("elsewhere") == before


def test_reviews_count_by_what_they_say_not_by_who_reads_them():
    found = identity.reached("alignkit.training.sft", "train_sft")
    reviews = {name for module, name in found if module == "alignkit.world.reviews"}
    assert "load_reviews" in reviews
    assert not {"_load", "_cut", "_clean"} & reviews
    assert ("alignkit.pocket", "generate_reviews") not in found


def test_a_function_of_a_function_is_refused(package: Path):
    (package / "train.py").write_text("def outer():\n    def train(out):\n        return 1\n    return train\n")
    with pytest.raises(ValueError, match="must stand at the top of a module"):
        source()
