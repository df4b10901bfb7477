"""SHA-256 of files, folders and JSON values."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignkit import paths
from alignkit.world.reach import stamp


def content(source: str) -> str:
    """SHA-256 of the file or all files of the folder at a local path (first 16 hex digits); "" where nothing lies."""
    return _content(source, stamp(source))


@lru_cache(maxsize=32)
def _content(source: str, files: paths.Stamp) -> str:
    digest, root = hashlib.sha256(), Path(paths.expanded(source))
    for name, *_ in files:
        digest.update(os.path.relpath(name, root).encode() + bytes.fromhex(_checksum(name)))
    return digest.hexdigest()[:16] if files else ""


def _checksum(file: str | Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_values(values: Any) -> str:
    """SHA-256 of JSON values (first 16 hex digits)."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their places in the folder; "" for one that cannot be read."""
    return {os.path.relpath(f, folder): _checksum(f) if os.access(f, os.R_OK) else "" for f in files}


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The files that one of two sets of checksums lacks, or whose content differs."""
    return sorted({name for name, _ in before.items() ^ after.items()})
