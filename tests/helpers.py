"""What several test files call."""

import inspect
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from alignkit import paths
from alignkit.workflow import identity, parameters
from alignkit.workflow.schema import NOTEBOOKS
from alignkit.workflow.store import RECORD, Run
from alignkit.world.reviews import Reviews


def times(few: int, many: int) -> int:
    """How often something is tried at random: `many` under `make torture`."""
    return many if os.environ.get("ALIGNKIT_TORTURE") else few


def in_a_copy(call: Callable[..., Any], *given: Any, build: Path) -> multiprocessing.Process:
    """Start a call in a copy of this process, which may be killed; what it prints lies in `<build>.out`.

    A copy has the libraries that this one has imported, whose imports take longer than most of what is tried here.
    """

    def start() -> None:
        os.environ |= {"ALIGNKIT_BUILD": str(build), "ALIGNKIT_PINNED": str(os.getpid())}
        with build.with_suffix(".out").open("w", buffering=1) as told:
            sys.stdout = sys.stderr = told
            try:
                call(*given)
            except Exception:
                traceback.print_exc()
                raise

    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    return process


def called(train: Callable[..., Any], out: Path, **given: Any) -> Any:
    """Call a training function with its settings and its inputs in one list of names; data may be a dict."""
    if isinstance(given.get("data"), dict):
        given["data"] = Reviews(**given["data"])
    kind = settings_of(train)
    if kind is None:
        return train(out, **given)
    names = {field.name for field in fields(kind)} & set(given)
    return train(out, kind(**{name: given.pop(name) for name in names}), **given)


def settings_of(train: Callable[..., Any]) -> type | None:
    """The class of a training function's settings; None for a function without one."""
    parameters = inspect.signature(train).parameters
    kind = parameters["settings"].annotation if "settings" in parameters else None
    return kind if is_dataclass(kind) else None


def as_run(folder: Path, name: str) -> Run:
    """A folder that a training function wrote outside the store, as a run."""
    files = {str(f.relative_to(folder)): name for f in folder.rglob("*") if f.is_file() and f.name != RECORD}
    (folder / RECORD).write_text(json.dumps({"files": files, "metrics": {}}))
    return Run(name, folder)


def sources(*functions: Any, words: frozenset[str] = frozenset()) -> list[str]:
    """The source of each training function as the files are now; within a process they are else read once."""
    identity._read.cache_clear()
    found = [identity.source.__wrapped__(function, words) for function in functions]
    identity._read.cache_clear()
    return found


def profile_values(profile: str, notebook: str) -> dict[str, Any]:
    """What the files of a shipped profile say about one notebook, each key of the notebook once."""
    folders = dict.fromkeys(("pocket", parameters.base(profile), profile))
    files = [paths.PARAMS / folder / f"{name}.yaml" for folder in folders for name in ("shared", notebook)]
    values = {key: value for file in files if file.exists() for key, value in yaml.safe_load(file.read_text()).items()}
    values |= {"notebook": notebook, "profile": profile}  # by its place where the profile has no file of the notebook
    return {key: values[key] for key in NOTEBOOKS[notebook].model_fields}
