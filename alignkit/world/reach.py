"""Whether the data and models that the parameters name are within reach; answers in seconds and imports little."""

import os
import re
from pathlib import Path

from alignkit.faults import UserFault
from alignkit.world.known import GENERATORS

HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
HUB_TIMEOUT = 5
"""Seconds."""
FILES = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".arrow", ".gz", ".zip", ".safetensors", ".bin"}


def check_data(source: str) -> None:
    """Raise UserFault if `source` is neither a world of `known` nor a folder, CSV file or Hub data set within reach."""
    path = Path(source).expanduser()
    if source in GENERATORS or path.is_dir() or (path.is_file() and path.suffix == ".csv"):
        return
    if path.exists() or not HUB_ID.fullmatch(source) or _looks_local(path):
        what = "is not a data set" if path.exists() else "does not exist"
        worlds = ", ".join(map(repr, GENERATORS))
        raise UserFault(
            f"data: {source!r} {what}; allowed: {worlds}, a folder or a file of reviews (CSV, TSV, JSON, parquet), "
            "or a Hub id such as 'stanfordnlp/imdb'"
        )
    cached = Path(os.environ.get("HF_DATASETS_CACHE", _hub_home() / "datasets")) / source.replace("/", "___")
    _check_hub("data", source, cached, "a local folder or CSV file that holds the reviews, or to 'pocket'")


def check_model(key: str, name: str) -> None:
    """Raise UserFault if the model under parameter `key` is neither "scratch" nor a folder or Hub model."""
    if name == "scratch" or Path(name).expanduser().is_dir():
        return
    if not re.fullmatch(r"[\w-]+(/[\w.-]+)?", name) or _looks_local(Path(name)):
        raise UserFault(f"{key}: {name!r} does not exist; allowed: 'scratch', a model's folder, or a Hub id")
    cached = Path(os.environ.get("HF_HUB_CACHE", _hub_home() / "hub")) / f"models--{name.replace('/', '--')}"
    _check_hub(key, name, cached, "a local folder that holds the model, or to 'scratch'")


def _looks_local(path: Path) -> bool:
    """Whether a path that does not exist was meant as one, although a Hub id may look the same."""
    return path.suffix in FILES or (len(path.parts) > 1 and Path(path.parts[0]).exists())


def _hub_home() -> Path:
    return Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()


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
