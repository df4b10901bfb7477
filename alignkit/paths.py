"""Named absolute paths.  ALIGNKIT_BUILD is the one setting: where runs, tables and figures are kept."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else None
"""The repository root, or None if alignkit was installed without it (Colab, Kaggle)."""

PARAMS = PACKAGE / "params" if CHECKOUT is None else CHECKOUT / "params"


def build() -> Path:
    """The folder of everything computed: ALIGNKIT_BUILD, else build/ in the checkout or the working folder."""
    named = os.environ.get("ALIGNKIT_BUILD")
    return Path(named).expanduser().resolve() if named else (CHECKOUT or Path.cwd()) / "build"


def store() -> Path:
    """Trained runs, shared by all notebooks and profiles."""
    return build() / "store"


def figures(profile: str) -> Path:
    """Figures and tables of a profile, before they are published."""
    return build() / profile / "figures"
