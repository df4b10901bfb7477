"""What the tests share: the files of the checkout, a copy of them, and no trace in the user's own caches."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CACHE = tempfile.TemporaryDirectory(prefix="alignkit-tests-")
# Set before any test imports a library that reads them; commands that tests start inherit them.
os.environ |= {"HF_DATASETS_CACHE": CACHE.name, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def pytest_unconfigure() -> None:
    CACHE.cleanup()


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """The files of the checkout that git tracks or would track, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Path(name) for name in sorted({*listed.stdout.split("\0")} - {""}) if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def copy_checkout(tracked: list[Path]) -> Callable[[Path], Path]:
    """A function that copies those files to a new folder and returns it."""

    def copy(to: Path) -> Path:
        for file in tracked:
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, to / file)
        return to

    return copy


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty build folder, in place of the checkout's own."""
    monkeypatch.setenv("ALIGNKIT_BUILD", str(tmp_path / "build"))
    return tmp_path / "build"


@pytest.fixture
def alone() -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs Python with these arguments in a process of its own, in the root of the checkout."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)

    return run
