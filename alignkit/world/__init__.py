"""Where texts and models come from."""

import contextlib
import os
from pathlib import Path

from alignkit import paths


def hub_home() -> Path:
    """The folder below which the Hub's libraries keep what they load."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(paths.expanded(os.environ.get("HF_HOME", f"{cache}/huggingface")))


def settle() -> None:
    """Set variables that the Hub's libraries read when they are imported: they do not understand "false", take an empty
    name for the working folder, and datasets writes to its cache even for local files, where it may be forbidden."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("false", "no", "off"):
        os.environ["HF_HUB_OFFLINE"] = "0"
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        if os.environ.get(name) == "":
            del os.environ[name]
    named = os.environ.get("HF_DATASETS_CACHE", str(hub_home() / "datasets"))
    place = Path(paths.expanded(named)).absolute()  # datasets opens no file at a relative one
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
    writable = place.is_dir() and os.access(place, os.W_OK)
    if not writable or str(place) != named:
        os.environ["HF_DATASETS_CACHE"] = str(place if writable else paths.build() / "cache")


settle()
