"""What the tests share: the files of the checkout, a copy of them, and no trace in the user's own caches."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest
from filelock import FileLock
from helpers import called

# How long an example takes says something about the machine, nothing about the code.
hypothesis.settings.register_profile("alignkit", deadline=None)
hypothesis.settings.load_profile("alignkit")

ROOT = Path(__file__).resolve().parent.parent
CACHE = tempfile.TemporaryDirectory(prefix="alignkit-tests-")
# Set before any test imports a library that reads them; commands that tests start inherit them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of a hundred processes would compile the package anew
os.environ |= {"HF_DATASETS_CACHE": CACHE.name, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def pytest_unconfigure() -> None:
    CACHE.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that the other worker has all other files to fill the time with."""
    items.sort(key=lambda item: item.path.name != "test_batch.py")


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


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """A function that returns a folder of the given name, made by the first worker that asks for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name: str, make: Callable[[Path], Any]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()  # fails where another worker has failed
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture
def alone() -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs Python with these arguments in a process of its own, in the root of the checkout."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="session")
def lively_policy() -> Callable[..., Any]:
    """A function that builds a policy whose log-probs depend strongly on every token and its place; a fresh GPT-2 is
    near uniform."""

    import torch

    from alignkit.world.models import new_policy

    def build_policy(tokenizer: Any, seed: int) -> Any:
        model = new_policy(tokenizer, width=16, layers=2, heads=2, positions=128).eval()
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(0, 0.3, generator=noise)
        return model

    return build_policy


class World(NamedTuple):
    """A small pocket world with what preference training starts from, each in a folder of its own."""

    data: Any
    """`Reviews`."""
    sft: Path
    reward: Path
    generations: Path
    pairs: Path
    generation: dict[str, Any]
    """The settings of `generations`."""
    sft_training: dict[str, Any]
    """Batch, rate and lengths of `sft`."""


@pytest.fixture(scope="session")
def world(made_once: Callable[[str, Callable[[Path], Any]], Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    """Trained once for all workers: seconds; each has a copy of its own, since tests write records into it."""
    from alignkit.training.pairs import build_pairs, generate
    from alignkit.training.reward import train_reward
    from alignkit.training.sft import train_sft
    from alignkit.world.reviews import Reviews

    names = ("sft", "reward", "generations", "pairs")
    data = Reviews("pocket", 1000, 100, 100)
    shared = {"seed": 0, "data": data}
    shape = {"vocab": 400, "width": 16, "layers": 1, "heads": 2, "tokens": 64}
    training = {"tokens": 64, "batch": 16, "lr": 1e-2, "held_out": 50}
    encoder = {"base": "scratch", "tokenizer": "encoder_word", "sinusoidal": True, "dropout": 0.0, "word_dropout": 0.2}
    generation = {"n_prompts": 30, "k": 6, "max_new_tokens": 16, "reward_tokens": 64}

    def train(folder: Path) -> None:
        sft, reward, generations, pairs = made = [folder / name for name in names]
        for out in made:
            out.mkdir()
        called(train_sft, sft, **shared, policy="scratch", tokenizer="word", epochs=3, **shape | training)
        called(train_reward, reward, **shared, **shape, **encoder, epochs=16, min_steps=1, batch=32, lr=1e-2)
        called(generate, generations, **shared, **generation, policy=sft, reference=sft, reward=reward)
        called(build_pairs, pairs, seed=0, generations=generations, construction="top_bottom")

    folder = shutil.copytree(made_once("world", train), tmp_path_factory.mktemp("world"), dirs_exist_ok=True)
    sft, reward, generations, pairs = (folder / name for name in names)
    generation |= {"policy": sft, "reference": sft, "reward": reward}
    return World(data, sft, reward, generations, pairs, generation, training)
