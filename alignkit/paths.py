"""Named absolute paths.  ALIGNKIT_BUILD is the one setting: where runs, tables and figures are kept."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "Snakefile").is_file() else None
"""The repository root, or None if alignkit was installed without it (Colab, Kaggle)."""

PARAMS = PACKAGE / "params" if CHECKOUT is None else CHECKOUT / "params"


def build() -> Path:
    """The folder of everything computed: ALIGNKIT_BUILD, else build/ in the checkout or the working folder."""
    named = os.environ.get("ALIGNKIT_BUILD")
    return Path(expanded(named)).resolve() if named else (CHECKOUT or Path.cwd()) / "build"


def store() -> Path:
    """Trained runs, shared by all notebooks and profiles."""
    return build() / "store"


def figures(profile: str) -> Path:
    """Figures and tables of a profile, before they are published."""
    return build() / profile / "figures"


def published(profile: str) -> Path:
    """Figures and tables of a profile as they were published."""
    return (CHECKOUT or PACKAGE) / "figures" / profile


def expanded(source: str) -> str:
    """The name of data or of a model; of a path that begins with ~, the whole path, where there is such a home."""
    return os.path.expanduser(source)  # noqa: PTH111  Path's raises where there is none


Stamp = tuple[tuple[str, int, int], ...]
"""Name, time (ns) and size (bytes) of each file at a local path."""
