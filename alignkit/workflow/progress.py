"""How far a run is, on one line: steps, time gone and time to go, in a terminal or under a notebook's cell."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers import trainer as trainers

STEPS = "{desc}: {n_fmt} of {total_fmt} steps |{bar:20}| {elapsed} gone, {remaining} to go"
ALONE = "{desc}: {elapsed}"
"""Of what has no steps, such as an evaluation."""


class Line(tqdm):
    """A text bar without the thread that watches bars, since a job has one thread."""

    monitor_interval = 0

    def expect(self, steps: int, done: int = 0) -> None:
        """Say how many steps there will be, and how many are done before the first."""
        self.bar_format = STEPS
        self.reset(total=steps)
        self.update(done)


class Planned(TrainerCallback):
    """Tells a line how many steps a trainer will do."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.line.expect(state.max_steps, state.global_step)


@contextmanager
def shown(what: str, settings: Any, notebook: bool) -> Iterator[None]:
    """Count the optimizer's steps of a run on a line, where somebody looks; in a terminal the line stays.

    No training function knows of it, so that it changes no run.
    """
    with Line(desc=what, bar_format=ALONE, disable=False if notebook else None, file=sys.stderr) as line:
        if steps := getattr(settings, "steps", None):
            line.expect(steps)
        hook, planned = register_optimizer_step_post_hook(lambda *_: line.update()), Planned(line)
        trainers.DEFAULT_CALLBACKS.append(planned)
        try:
            yield
        finally:
            hook.remove()
            trainers.DEFAULT_CALLBACKS.remove(planned)
