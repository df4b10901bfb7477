"""How far a run is, on one line: steps, time gone and time to go, in a terminal or under a cell; where curves go."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers import trainer as trainers
from transformers.integrations import get_available_reporting_integrations

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.world.models import REPORT_TO

STEPS = "{desc}: {n_fmt} of {total_fmt} steps |{bar:20}| {elapsed} gone, {remaining} to go"
ALONE = "{desc}: {elapsed}"
"""The line of a run without steps, such as an evaluation."""


class Line(tqdm):
    """A text bar without the thread that watches bars, since a job has one thread."""

    monitor_interval = 0

    def expect(self, steps: int, done: int = 0) -> None:
        """Say how many steps there will be, and how many are done before the first."""
        self.bar_format = STEPS
        self.reset(total=steps)
        self.initial = self.n = self.last_print_n = done
        self.refresh()


class Planned(TrainerCallback):
    """Tells a line how many steps a trainer will do, and sees that it ends with a validation."""

    def __init__(self, line: Line) -> None:
        self.line = line

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.line.expect(state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The first releases of transformers 5 have no validation after the last step, where runs read their figures.
        # In training it would change the id of every run, though later releases do the same by themselves.
        control.should_evaluate |= state.global_step >= state.max_steps and args.eval_strategy == "steps"


@contextmanager
def shown(what: str, settings: Any, done: int, notebook: bool) -> Iterator[None]:
    """Count the optimizer's steps of a run on a line, in a notebook or in a terminal, where the line stays.

    done: the steps after which the run goes on.  No training function knows of the line, so it changes no run.
    """
    with Line(desc=what, bar_format=ALONE, disable=False if notebook else None, file=sys.stderr) as line:
        if steps := getattr(settings, "steps", None):
            line.expect(steps, done)
        hook, planned = register_optimizer_step_post_hook(lambda *_: line.update()), Planned(line)
        trainers.DEFAULT_CALLBACKS.append(planned)
        try:
            yield
        finally:
            hook.remove()
            trainers.DEFAULT_CALLBACKS.remove(planned)


def reporting(run: str) -> None:
    """Give TensorBoard's curves of a run a folder of their own, `tensorboard/` in the build folder.

    Raises UserFault if trainers are to report to what is not installed.
    """
    installed = get_available_reporting_integrations()
    asked = [name for name in map(str.strip, os.environ.get(REPORT_TO, "").split(",")) if name not in ("", "none")]
    if wrong := [name for name in asked if name not in installed]:
        raise UserFault(f"{REPORT_TO}: {wrong[0]!r} is not installed here; allowed: {', '.join(['none', *installed])}")
    os.environ[REPORT_TO] = ",".join(asked) or "none"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(paths.build() / "tensorboard" / run)
