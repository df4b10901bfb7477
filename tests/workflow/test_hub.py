"""The original task's parameter files as they stand, on tiny models under the Hub's own names and without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from datasets import Dataset, DatasetDict

from alignkit import paths
from alignkit.pocket import generate_reviews
from alignkit.workflow.schema import NOTEBOOKS
from alignkit.world.models import train_tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home of the Hub's libraries in which the reviews and both models of the profile imdb lie, small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(paths.CHECKOUT / "benchmarks")
        import standins
    home = tmp_path_factory.mktemp("home")
    splits = {"train": (1000, 1), "test": (300, 2), "unsupervised": (300, 3)}
    reviews = DatasetDict({name: Dataset.from_pandas(generate_reviews(*how)) for name, how in splits.items()})
    reviews["unsupervised"] = reviews["unsupervised"].map(lambda row: {"label": -1})
    standins.cache_reviews(home, "stanfordnlp/imdb", reviews)
    texts = reviews["train"]["text"][:]
    words, pieces = train_tokenizer("bpe", texts, 400), train_tokenizer("wordpiece", texts, 400)
    small = standins.policy(words, vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=256)
    standins.cache_model(home, "lvwerra/gpt2-imdb", small, words)
    base = standins.encoder(vocab_size=len(pieces), dim=16, hidden_dim=32, n_layers=1, n_heads=2)
    standins.cache_model(home, "distilbert/distilbert-base-cased", base, pieces)
    return home


def sizes(notebook: str) -> dict[str, object]:
    """What makes a run of the notebook short: the smoke profile's own values, but for its models' shapes."""
    files = [paths.PARAMS / "smoke" / f"{name}.yaml" for name in ("shared", notebook)]
    values = {key: value for file in files for key, value in yaml.safe_load(file.read_text()).items()}
    known = set(NOTEBOOKS[notebook].model_fields) - {"notebook", "profile"}
    return {key: values[key] for key in known & set(values) if not key.startswith(("policy_", "reward_", "sft_lr"))}


@pytest.fixture(scope="module")
def place(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of that home; one store for all notebooks."""
    made = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
    made |= {"HF_DATASETS_CACHE": str(home / "datasets"), "ALIGNKIT_BUILD": str(tmp_path_factory.mktemp("build"))}
    return os.environ | made


@pytest.mark.batch
@pytest.mark.parametrize("notebook", ["1_reward_model", "2_dpo_losses", "4_warp"])
def test_the_original_task_runs_from_a_cache_of_the_hub(notebook: str, place: dict[str, str], tmp_path: Path) -> None:
    given = {**sizes(notebook), "sft_held_out": 50, "reward_tokens": 128}
    given |= {"train_reviews": None, "test_reviews": None, "unsupervised_reviews": None}
    given |= {} if notebook == "1_reward_model" else {"judge_reviews": 100}
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3", "-y", json.dumps(given)]
    files = [paths.CHECKOUT / "notebooks" / f"{notebook}.ipynb", tmp_path / "out.ipynb"]
    run = subprocess.run(
        [*command, *files, "-f", paths.PARAMS / "imdb" / f"{notebook}.yaml"],
        env=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    build = Path(place["ALIGNKIT_BUILD"])
    rewards = [json.loads(record.read_text()) for record in (build / "store").glob("train_reward-*/run.json")]
    assert {run["settings"]["base"] for run in rewards} == {"distilbert/distilbert-base-cased"}
    if notebook != "1_reward_model":
        rows = pd.read_csv(build / "imdb" / "figures" / f"{notebook}.csv")
        assert rows.gold.notna().all()
