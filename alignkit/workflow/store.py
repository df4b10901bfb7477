"""Runs: what one is, its identity, and where its result is kept.

A run is one call of a training function, `train(out, seed=..., data=..., **settings) -> metrics`, that
writes into the folder `out`.  Its identity is the hash of everything that its result depends on, so
the same call loads, and edited code, other data or another library never serve an old result.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import identity
from alignkit.world.reviews import fingerprint

LIBRARIES = (
    *("torch", "transformers", "trl", "datasets", "tokenizers", "accelerate", "peft", "safetensors", "numpy", "pandas"),
    *("scipy", "scikit-learn", "nltk"),
)
"""What a training function may call: another version of one of them is another run."""


RECORD = "run.json"


# A notebook asks for hundreds of runs: what takes longest in telling them apart is done once.
version = lru_cache(importlib.metadata.version)


class Run(NamedTuple):
    """A finished run; as a setting of another run it stands for its folder and counts by its id."""

    id: str
    path: Path

    @property
    def record(self) -> dict[str, Any]:
        """Function, settings, seed, data fingerprint, versions, sources, metrics, seconds, hardware, checksums."""
        return json.loads((self.path / RECORD).read_text())

    @property
    def metrics(self) -> dict[str, float]:
        """What the training function returned."""
        return self.record["metrics"]


def get(train: Callable[..., dict[str, Any]], *, seed: int, data: dict[str, Any], **settings: Any) -> Run:
    """The run of this function with these settings: loaded if the store has it, else trained and kept.

    settings are JSON values, other runs or lists of them.  A run is written to a temporary folder and renamed when it
    is whole, so the store never holds half a run; processes that ask for the same run wait for the one
    that trains it.  Raises UserFault if the stored run is damaged.
    """
    known = identify(train, seed=seed, data=data, **settings)
    run_id = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    home = paths.store()
    run = Run(run_id, home / f"{train.__name__}-{run_id}")
    if not run.path.exists():
        (home / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(home / "locks" / f"{run_id}.lock"):
            if not run.path.exists():
                # Holding the lock, nobody else writes this run: what is there was left by a killed process.
                for left in home.glob(f"tmp-{run_id}-*"):
                    shutil.rmtree(left, ignore_errors=True)
                _announce(f"training {train.__name__} for seed {seed} ...")
                _train(train, run, known, seed=seed, data=data, **settings)
                _announce("")
    _verify(run)
    return run


def identify(train: Callable[..., Any], *, seed: int, data: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Everything that the result depends on, as JSON values."""
    return {
        "function": train.__name__,
        "seed": seed,
        # Where the reviews lie does not matter, what they say does.
        "data": fingerprint(**data),
        "settings": {name: _counted(name, value) for name, value in settings.items()},
        "versions": {name: version(name) for name in LIBRARIES},
        "source": identity.source(train),
    }


def _counted(name: str, value: Any) -> Any:
    """A setting as it counts: another run by its id, a model in a local folder by its files."""
    if name in ("policy", "base") and isinstance(value, str) and value != "scratch":
        return paths.content(value) or value
    return _replaced(value, lambda run: run.id)


def _replaced(value: Any, by: Callable[[Run], Any]) -> Any:
    """A setting with each run in it, alone or in a list, replaced."""
    if isinstance(value, Run):
        return by(value)
    return [_replaced(item, by) for item in value] if isinstance(value, list) else value


def _train(train: Callable[..., dict[str, Any]], run: Run, known: dict[str, Any], **settings: Any) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f"tmp-{run.id}-", dir=run.path.parent))
    try:
        started = time.monotonic()
        resolved = {name: _replaced(value, lambda run: run.path) for name, value in settings.items()}
        metrics = train(folder, **resolved)
        record = {
            **known,
            "id": run.id,
            "metrics": metrics,
            "seconds": round(time.monotonic() - started, 1),
            "hardware": hardware(),
            "files": {str(f.relative_to(folder)): _checksum(f) for f in sorted(folder.rglob("*")) if f.is_file()},
        }
        record["checksum"] = _checksum_of(record)
        (folder / RECORD).write_text(json.dumps(record, indent=1))
        os.chmod(folder, 0o755)
        os.replace(folder, run.path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _verify(run: Run) -> None:
    try:
        record = run.record
        sound = record.pop("checksum") == _checksum_of(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    files = record["files"].items() if sound else ()
    damaged = [name for name, checksum in files if _damaged(run.path / name, checksum)] if sound else [RECORD]
    if damaged:
        raise UserFault(f"run: {run.path} is damaged: {', '.join(damaged)}; delete this folder to train it again")


def _damaged(file: Path, checksum: str) -> bool:
    try:
        return _checksum(file) != checksum
    except OSError:
        return True


def _checksum(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def hardware() -> str:
    """The processor or GPU, in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _announce(line: str) -> None:
    """Tell a reader at the keyboard what is being trained; leaves no trace in the notebook's outputs."""
    try:
        from IPython import get_ipython
        from IPython.display import clear_output
    except ImportError:
        return
    if get_ipython() is None:
        return
    if line:
        print(line)
    else:
        clear_output()
