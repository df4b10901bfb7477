"""Which runs a notebook's parameters ask for, each once, and none of them trained."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any, NamedTuple
from unittest.mock import patch

from alignkit.workflow.schema import World

ASKING = "policies algorithm dpo_losses improvements one_front reward_model towards tuning".split()
"""The modules of `report` that ask the store for runs."""


class Planned(NamedTuple):
    """A run, as a recipe takes it from the store."""

    id: str
    function: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    metrics: dict[str, Any]
    path: str = ""

    def __repr__(self) -> str:
        return f"{self.id}/{self.path}"

    @property
    def record(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def at(self, part: str) -> "Planned":
        return self._replace(path=part)


def planned(p: World) -> list[Planned]:
    """The runs of a notebook with all its seeds."""
    found: dict[str, Planned] = {}

    def get(train: Callable[..., object], settings: object = None, **inputs: Any) -> Planned:
        asked = repr((train.__name__, settings, sorted(inputs.items())))
        given = {} if settings is None else vars(settings)
        metrics = defaultdict(float, status="ok", train_pairs=pairs(train.__name__, given, inputs))
        name = hashlib.sha256(asked.encode()).hexdigest()[:16]
        return found.setdefault(name, Planned(name, train.__name__, given, inputs, metrics))

    module = import_module(f"alignkit.report.{p.notebook.partition('_')[2]}")
    with ExitStack() as stack:
        for name in ASKING:
            stack.enter_context(patch(f"alignkit.report.{name}.get", get))
        for reader in ("AutoTokenizer.from_pretrained", "positive_words"):  # what the recipe reads itself
            stack.enter_context(patch(f"alignkit.report.dpo_losses.{reader}", return_value={}))
        for seed in p.training_seeds():
            module.recipe(p, seed)
    return list(found.values())


def pairs(function: str, settings: dict[str, Any], inputs: dict[str, Any]) -> float:
    """How many pairs a run leaves for training, where it makes any; of a filter or a threshold, at most."""
    if function == "fewer_pairs":
        return inputs["share"] * inputs["pairs"].metrics["train_pairs"]
    if function != "build_pairs":
        return 0.0
    drawn = inputs["generations"]
    prompts, k = drawn.settings["n_prompts"] / drawn.inputs.get("parts", 1), drawn.settings["k"]
    each = k - 1 if settings["construction"] == "top_bottom" else k * (k - 1) / 2
    return (1 - settings["test_share"]) * prompts * each
