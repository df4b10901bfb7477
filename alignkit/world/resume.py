"""What a long run goes on from after it was killed: its own state, kept now and then in a folder beside its results.

A run that went on ends equal to the bit to one that was not interrupted.  The folder is gone once the run has ended.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.faults import UserFault

EVERY = 120.0
"""Seconds from one kept state to the next: short runs keep none."""
FOLDER = "resume"
STATE, LATEST = "state.pt", "latest"


def keep(out: Path, moving: Mapping[str, Any], **rest: Any) -> None:
    """Keep the states of what has a state_dict, and the rest (numbers, lists, texts), if it is time to."""
    file = out / FOLDER / STATE
    if time.time() - (file if file.exists() else out).stat().st_mtime >= EVERY:
        file.parent.mkdir(exist_ok=True)
        state = {name: part.state_dict() for name, part in moving.items()}
        torch.save(state | rest, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)


def kept(out: Path, moving: Mapping[str, Any]) -> dict[str, Any]:
    """Give everything its kept state back, and return the rest; {} where nothing is kept that can be read."""
    file = out / FOLDER / STATE
    if not file.is_file():
        return {}
    try:
        state = torch.load(file, weights_only=True)
        for name, part in moving.items():
            part.load_state_dict(state.pop(name))
    except Exception:  # whatever a damaged file makes torch raise
        file.unlink()
        raise UserFault(
            f"{file}: was damaged, and is deleted; the same command trains this run from its start"
        ) from None
    return state


def ended(out: Path) -> None:
    """Remove the kept state of a run that has ended."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def checkpoint(folder: Path) -> str | None:
    """The trainer's last whole checkpoint in its folder, if any."""
    named = folder / LATEST
    found = folder / named.read_text() if named.is_file() else None
    return str(found) if found and found.is_dir() else None


PARTS = ("*.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state*.pth")
"""What a trainer's checkpoint must have: without some of these it goes on silently, and ends in other bits."""


class Unusable(UserFault):
    """A run cannot go on from what was kept of it, which is out of the way now: it can begin anew."""


def begun(out: Path) -> str:
    """What a run in this folder will go on from, and since when that lies there; "" for nothing.

    Raises Unusable where a checkpoint lacks a part; it is then set aside.
    """
    folder = out / FOLDER
    last = checkpoint(folder)
    if last and (lacking := [part for part in PARTS if not list(Path(last).glob(part))]):
        raise set_aside(out, f"{lacking[0]} is missing")
    return " ".join(f"{f.name} {f.stat().st_mtime_ns}" for f in (folder / STATE, folder / LATEST) if f.is_file())


def set_aside(out: Path, why: str) -> Unusable:
    """Rename the folder of a run that cannot go on from it, and return the fault that says so."""
    aside = out.with_name(f"{out.name}-aside")
    shutil.rmtree(aside, ignore_errors=True)
    out.rename(aside)
    return Unusable(f"{aside}: could not be gone on from and was set aside; the run begins anew ({why})")


def steps_done(out: Path) -> int:
    """The steps of a loop that were done when its state was last kept."""
    try:
        return len(torch.load(out / FOLDER / STATE, weights_only=True)["log"])
    except Exception:  # no state, a damaged one, or one of something else
        return 0


@contextmanager
def held() -> Iterator[None]:
    """Until this ends, `ended` removes nothing: what a run could go on from stays until its result is whole."""
    global ended
    usual, ended = ended, lambda _: None
    try:
        yield
    finally:
        ended = usual


class Watch(TrainerCallback):
    """Ends training at the first weights that are not finite; keeps checkpoints where the log has just been written.

    Elsewhere a trainer's running means would begin anew, and the log of the run that went on would be another one.
    """

    def __init__(self) -> None:
        self.kept_at, self.diverged_at = time.monotonic(), None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: torch.nn.Module, **_: Any
    ) -> None:
        # A gradient that is NaN is so after clipping too, and AdamW takes it to all weights.  An infinite one becomes
        # NaN in its own tensor alone; the next step's loss takes that to all others.
        least = min((weights for weights in model.parameters() if weights.requires_grad), key=torch.numel)
        if not least.isfinite().all():
            self.diverged_at, control.should_training_stop = state.global_step, True
        elif control.should_log and time.monotonic() - self.kept_at >= EVERY:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder, name = Path(args.output_dir), f"checkpoint-{state.global_step}"
        (folder / "latest.new").write_text(name)
        os.replace(folder / "latest.new", folder / LATEST)
        for old in folder.glob("checkpoint-*"):
            if old.name != name:
                shutil.rmtree(old)
        self.kept_at = time.monotonic()
