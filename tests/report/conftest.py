"""Runs made by hand, for the tests of tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from alignkit.workflow.store import RECORD, Run

Make = Callable[..., Run]


@pytest.fixture
def run(tmp_path: Path) -> Make:
    """A function that makes a run of these metrics and settings; its folder holds the record and given CSV tables."""
    calls = iter(range(1000))

    def make(
        metrics: dict[str, Any], settings: dict[str, Any] | None = None, *, share: float = 1, **files: pd.DataFrame
    ) -> Run:
        made = Run(f"id{next(calls)}", tmp_path / f"{next(calls)}")
        made.path.mkdir()
        (made.path / RECORD).write_text(
            json.dumps({"settings": settings or {}, "metrics": metrics, "inputs": {"share": share}})
        )
        for name, table in files.items():
            table.to_csv(made.path / f"{name}.csv", index=False)
        return made

    return make
