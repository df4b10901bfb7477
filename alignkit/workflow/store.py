"""Runs: what one is, its identity, and where its result is kept.

A run is one call of a training function, `train(out, settings, **inputs) -> metrics`, that writes into the folder
`out`.  Its identity is the hash of everything that its result depends on, so the same call loads, and edited code,
other data or another library never serve an old result:

- its settings (a frozen dataclass) and its inputs: seed, reviews by what they say, other runs by the checksums of their
  files, so that an input that was trained again to the same bits changes nothing
- the definitions that the function reaches (`identity.source`)
- the versions of the libraries, the numerics in force (`numerics.in_force`), precision and kind of device
"""

import gc
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from errno import EDQUOT, ENOSPC
from functools import cache, lru_cache
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from IPython import get_ipython
from IPython.display import clear_output

from alignkit import numerics, paths
from alignkit.faults import UserFault
from alignkit.workflow import checksums, identity, progress
from alignkit.world import resume
from alignkit.world.known import READ, TRUTHS
from alignkit.world.models import precision, processes
from alignkit.world.reach import first_line, stamp
from alignkit.world.reviews import Reviews

LIBRARIES = (
    *("torch", "transformers", "trl", "datasets", "tokenizers", "accelerate", "peft", "safetensors", "numpy", "pandas"),
    *("scipy", "scikit-learn", "nltk"),
)
"""What a training function may call: another version of one of them is another run."""
RECORD, LOCKS, ASIDE = "run.json", "locks", "damaged"
ABANDONED = 7
"""Days after which nobody will go on with a run that was killed."""
FULL = 100_000
"""Bytes of free space below which any error counts as a full disk, where writers fail in many ways."""
# A notebook asks for hundreds of runs, and versions are the slowest part of an identity: each is looked up once.
version = lru_cache(importlib.metadata.version)


class Run(NamedTuple):
    """A finished run, or a part of one; as an input of another run it stands for its folder."""

    id: str
    folder: Path
    part: str = ""
    """A folder in the run's own, such as the weights that it kept at a step."""

    @property
    def path(self) -> Path:
        """Where its files lie."""
        return self.folder / self.part

    @property
    def record(self) -> dict[str, Any]:
        """Function, settings, seed, data, versions, source, numerics, inputs, metrics, seconds, hardware, checksums."""
        return json.loads((self.folder / RECORD).read_text())

    @property
    def metrics(self) -> dict[str, Any]:
        """What the training function returned."""
        return self.record["metrics"]

    def at(self, part: str) -> "Run":
        """A part of this run."""
        return self._replace(part=part)

    @property
    def content(self) -> str:
        """SHA-256 of its files' names and checksums (first 16 hex digits)."""
        files = self.record["files"].items()
        own = f"{self.part}/" if self.part else ""
        here = [(os.path.relpath(name, self.part or "."), sha) for name, sha in files if name.startswith(own)]
        return checksums.of_values(sorted(here))


def get(train: Callable[..., dict[str, Any]], settings: Any = None, **inputs: Any) -> Run:
    """The run of this function with these settings and inputs: loaded if the store has it, else trained and kept.

    settings: an instance of the function's settings class, None for a function without one.  inputs: seed, data
    (`Reviews`), runs or lists of them, JSON values.  A run is written to a temporary folder and renamed when it is
    whole, so the store never holds half a run; a long one that was killed goes on from its last kept state, if that is
    sound.  A run that was damaged since is set aside, and trained again.  Processes that ask for the same run wait for
    the one that trains it.  Raises UserFault if the store cannot be written.
    """
    known = identify(train, settings, **inputs)
    run_id = checksums.of_values(known)
    home = paths.store()
    run = Run(run_id, home / f"{train.__name__}-{run_id}")
    if damaged(run):
        if processes() > 1:
            resume.EVERY = inf  # each process would keep states by a clock of its own
        if int(os.environ.get("RANK", 0)):
            _take_part(train, run, settings, inputs)
            return run
        try:
            (home / LOCKS).mkdir(parents=True, exist_ok=True)
            held = FileLock(home / LOCKS / f"{run_id}.lock").acquire()
        except OSError as error:
            raise UserFault(f"{home}: cannot be written ({error.strerror}); set ALIGNKIT_BUILD to a folder") from None
        with held:
            if files := damaged(run):
                _tidy(home)
                if run.folder.exists():
                    _set_aside(run, files)
                try:
                    _train(train, run, known, settings, inputs)
                except resume.Unusable as fault:
                    print(fault, file=sys.stderr, flush=True)
                    _train(train, run, known, settings, inputs)
    return run


def identify(train: Callable[..., Any], settings: Any = None, **inputs: Any) -> dict[str, Any]:
    """Everything that the result depends on, as JSON values: a run by its files, reviews by what they say."""
    counted = {k: v.fingerprint() if isinstance(v, Reviews) else v for k, v in inputs.items()}
    given = {} if settings is None else _as_dict(settings)
    worlds = [v.source if v.source in TRUTHS else READ for v in inputs.values() if isinstance(v, Reviews)]
    words = frozenset(value for value in (*given.values(), *inputs.values(), *worlds) if isinstance(value, str))
    return {
        "function": train.__name__,
        "settings": given,
        "inputs": {name: _each(value, attrgetter("content")) for name, value in counted.items()},
        "source": identity.source(train, words),
        "versions": {name: version(name) for name in LIBRARIES},
        "numerics": numerics.in_force() | ({"processes": processes()} if processes() > 1 else {}),
        "precision": precision(),
    }


def _as_dict(settings: Any) -> dict[str, Any]:
    """Settings; a model in a local folder counts by its files."""
    out = dict(vars(settings))
    for field in fields(settings):
        if field.metadata.get("model") and isinstance(out[field.name], str):
            out[field.name] = checksums.content(out[field.name]) or out[field.name]
    return out


def _each(value: Any, run_as: Callable[[Run], Any]) -> Any:
    """An input with something else in place of each run in it."""
    if isinstance(value, Run):
        return run_as(value)
    return [_each(item, run_as) for item in value] if isinstance(value, list | tuple) else value


def _named(value: Any) -> Any:
    """The ids of the runs among an input, for readers of the record; None where there is none."""
    if isinstance(value, Run):
        return "/".join(filter(None, (value.id, value.part)))
    found = [_named(item) for item in value] if isinstance(value, list | tuple) else []
    return found if any(found) else None


def _train(train: Callable[..., dict[str, Any]], run: Run, known: dict[str, Any], settings: Any, inputs: Any) -> None:
    progress.reporting(run.folder.name)
    # Holding the lock, nobody else writes this run: what is there was left by a killed process.
    folder = run.folder.with_name(f"tmp-{run.id}")
    _clear(folder)
    begun, done = resume.begun(folder), resume.steps_done(folder)
    in_notebook = get_ipython() is not None
    what = train.__name__ + (f", seed {inputs['seed']}" if "seed" in inputs else "")
    try:
        folder.mkdir(exist_ok=True)
        started = time.monotonic()
        with progress.shown(what, settings, done, in_notebook), resume.held():
            metrics = _called(train, folder, settings, inputs)
        resume.ended(folder)
        record = {
            **known,
            "id": run.id,
            "runs": {name: found for name, value in inputs.items() if (found := _named(value))},
            "metrics": metrics,
            "seconds": round(time.monotonic() - started, 1),
            "hardware": hardware(),
            "files": _checksums(folder),
        }
        record["checksum"] = checksums.of_values(record)
        (folder / RECORD).write_text(json.dumps(record, indent=1))
        os.replace(folder, run.folder)
    except BaseException as error:
        home = folder.parent
        full = getattr(error, "errno", None) in (ENOSPC, EDQUOT) or shutil.disk_usage(home).free < FULL
        _clear(folder)
        if begun and isinstance(error, UserFault) and not resume.begun(folder):
            raise resume.Unusable(str(error)) from None
        if isinstance(error, UserFault) or not isinstance(error, Exception):
            raise
        if full:
            what = "the disk is full; what has ended is whole, and with more room the same command goes on"
            raise UserFault(f"{getattr(error, 'filename', None) or home}: {what}") from None
        if begun and begun == resume.begun(folder):
            raise resume.set_aside(folder, first_line(error)) from error
        raise
    if in_notebook:  # the progress line is no part of the page
        clear_output()


def _take_part(train: Callable[..., dict[str, Any]], run: Run, settings: Any, inputs: Any) -> None:
    """Train beside the first process of `accelerate launch`, which keeps the run and does alone what has no trainer."""
    if ("alignkit.world.models", "run_trainer") in identity.reached(train.__module__, train.__name__):
        kept = run.folder.with_name(f"tmp-{run.id}") / resume.FOLDER
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / resume.FOLDER).symlink_to(kept)
            _called(train, Path(folder), settings, inputs)
    while damaged(run):
        time.sleep(0.2)


def _called(train: Callable[..., dict[str, Any]], folder: Path, settings: Any, inputs: Any) -> dict[str, Any]:
    opened = {name: _each(value, attrgetter("path")) for name, value in inputs.items()}
    _settle()
    return train(folder, **opened) if settings is None else train(folder, settings, **opened)


@cache
def _settle() -> None:
    """What a process needs once, before its first run."""
    gc.freeze()  # a trainer collects garbage after each run: 0.3 s if it looks through all that the libraries hold
    # On an H100 cuDNN's attention gives gradients that are not finite for some lengths (pytorch's issue 196678).
    torch.backends.cuda.enable_cudnn_sdp(False)


def _clear(folder: Path) -> None:
    """Remove what an interrupted run left, unless it can go on from it."""
    if folder.is_file():
        folder.unlink()
    if not (folder / resume.FOLDER).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _tidy(home: Path) -> None:
    """Remove what runs left that were killed and, for ABANDONED days, not asked for again."""
    for folder in home.glob("tmp-*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > ABANDONED * 86_400:
            lock = home / LOCKS / f"{folder.name.removeprefix('tmp-')}.lock"
            with suppress(Timeout, FileNotFoundError), FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def damaged(run: Run) -> list[str]:
    """The files of a run that are not as they were kept; only its record if that is unsound, or nothing lies there."""
    return _damaged(run, stamp(str(run.folder)))


@lru_cache(maxsize=4096)  # for each state of its files, a run is read through once a process
def _damaged(run: Run, _: paths.Stamp) -> list[str]:
    try:
        record = run.record
        sound = record.pop("checksum") == checksums.of_values(record) and record["id"] == run.id
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    return checksums.differing(record["files"], _checksums(run.folder)) if sound else [RECORD]


def _set_aside(run: Run, files: list[str]) -> None:
    """Move a damaged run out of the way, since whoever edited it may want it, and say so."""
    home = run.folder.parent / ASIDE
    home.mkdir(exist_ok=True)
    aside = home / f"{run.folder.name}-{len(list(home.glob(f'{run.folder.name}-*'))) + 1}"
    run.folder.rename(aside)
    what = f"was damaged ({', '.join(files)}); what is left lies in {aside}, and the run is trained again"
    print(f"run: {run.folder} {what}", file=sys.stderr, flush=True)


def _checksums(folder: Path) -> dict[str, str]:
    """Of all files of a run but its record."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / RECORD)
    return checksums.of(folder, files)


def hardware() -> str:
    """The processor or GPU, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"
