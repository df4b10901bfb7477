"""Where texts and models come from."""

import os
from pathlib import Path

from alignkit import paths


def settle() -> None:
    """Set what the Hub's libraries read when they are imported: they know no "false", and datasets writes to a cache
    at home for local files, too, where that may not be allowed."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("false", "no", "off"):
        os.environ["HF_HUB_OFFLINE"] = "0"
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "datasets"
    try:
        home.mkdir(parents=True, exist_ok=True)
        writable = os.access(home, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        os.environ.setdefault("HF_DATASETS_CACHE", str(paths.build() / "cache"))


settle()
