"""Whether the data and models that the parameters name are within reach; answers in seconds and imports little."""

import os
import re
from itertools import islice
from pathlib import Path

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.world import hub_home
from alignkit.world.known import GENERATORS

HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
HUB_TIMEOUT = 5
"""Seconds."""
FILES = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".arrow", ".gz", ".zip", ".safetensors", ".bin"}
MOST_FILES = 10_000
"""So that a home folder, named by mistake, is told at once."""


def absolute(source: str) -> str:
    """A local path in full; the names of a world of `known` and of Hub data as they are."""
    path = Path(paths.expanded(source))
    return str(path.resolve()) if source and source not in GENERATORS and path.exists() else source


def files(source: str) -> list[Path]:
    """The files at a local path, in order; none where nothing lies.  Raises UserFault for a folder of too many."""
    path = Path(paths.expanded(source))
    found = [path] if path.is_file() else list(islice(path.rglob("*"), MOST_FILES + 1))
    if len(found) > MOST_FILES:
        raise UserFault(f"data or model: {source!r} holds over {MOST_FILES:,} files; allowed: a folder of it alone")
    return sorted(file for file in found if file.is_file())


def stamp(source: str) -> paths.Stamp:
    """Name, time and size of each file at a local path."""
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files(source))


def check_data(source: str) -> None:
    """Raise UserFault if `source` is neither a world of `known`, nor a folder, file or Hub data set within reach."""
    path = Path(paths.expanded(source))
    if source in GENERATORS or path.exists():  # faults in files are told by their reader
        return
    if not HUB_ID.fullmatch(source) or _looks_local(path):
        worlds = ", ".join(map(repr, GENERATORS))
        raise UserFault(
            f"data: {source!r} does not exist; allowed: {worlds}, a folder or a file of reviews (CSV, TSV, JSON, "
            "parquet), or a Hub id such as 'stanfordnlp/imdb'"
        )
    cached = Path(os.environ.get("HF_DATASETS_CACHE", hub_home() / "datasets")) / source.replace("/", "___")
    _check_hub("data", source, cached, "a local folder or file that holds the reviews, or to 'pocket'")


def check_model(key: str, name: str) -> None:
    """Raise UserFault if the model under parameter `key` is neither "scratch" nor a folder or Hub model."""
    if name == "scratch" or Path(paths.expanded(name)).is_dir():
        return
    if not re.fullmatch(r"[\w-]+(/[\w.-]+)?", name) or _looks_local(Path(name)):
        raise UserFault(f"{key}: {name!r} does not exist; allowed: 'scratch', a model's folder, or a Hub id")
    cached = Path(os.environ.get("HF_HUB_CACHE", hub_home() / "hub")) / f"models--{name.replace('/', '--')}"
    _check_hub(key, name, cached, "a local folder that holds the model, or to 'scratch'")


def _looks_local(path: Path) -> bool:
    """Whether a path that does not exist was meant as one, although a Hub id may look the same."""
    return path.suffix in FILES or (len(path.parts) > 1 and Path(path.parts[0]).exists())


def _check_hub(key: str, name: str, cached: Path, instead: str) -> None:
    if cached.is_dir():
        return
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("0", "") and _hub_answers():
        return
    raise UserFault(f"{key}: {name!r} is a Hub id and the Hub cannot be reached; set {key} to {instead}")


def _hub_answers() -> bool:
    import requests

    try:
        # A proxy that answers with an error is not the Hub.
        return requests.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=HUB_TIMEOUT).ok
    except requests.RequestException:
        return False


def first_line(error: BaseException) -> str:
    """What a library said, in one line: the reason, where it wraps one, or the error's name where it said nothing."""
    said = error.__cause__ or error
    return next(iter(str(said).strip().splitlines()), type(said).__name__)
