"""Models with random weights and given reviews under the Hub's own names: profile imdb runs without a network.

    python benchmarks/standins.py HOME path/to/imdb path/to/gpt2-tokenizer
    HF_HOME=HOME HF_HUB_OFFLINE=1 papermill notebooks/4_warp.ipynb out.ipynb -f params/imdb/4_warp.yaml -p warp_steps 2

The models have the published shapes (124 M and 66 M parameters), so time and memory are real, and results mean nothing.
"""

import sys
from pathlib import Path

import datasets
import torch
from datasets.arrow_writer import ArrowWriter
from transformers import (
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.world.models import save, train_tokenizer

POLICY, ENCODER, REVIEWS = "lvwerra/gpt2-imdb", "distilbert/distilbert-base-cased", "stanfordnlp/imdb"
PIECES = 28_996
"""Words of DistilBERT's vocabulary."""


def policy(tokenizer: PreTrainedTokenizerBase, **shape: int) -> GPT2LMHeadModel:
    """GPT-2 in the published shape, or another one, for a tokenizer of at most its words."""
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return GPT2LMHeadModel(GPT2Config(**ends, **shape))


def encoder(**shape: int) -> DistilBertForMaskedLM:
    """DistilBERT as it comes from the Hub: with a head for words, and none for rewards."""
    torch.manual_seed(0)
    return DistilBertForMaskedLM(DistilBertConfig(**{"vocab_size": PIECES, **shape}))


def cache_model(home: Path, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Lay a model into the Hub's cache as if it had been fetched."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    save(repository / "snapshots" / "0" / "", model, tokenizer)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")


def cache_reviews(home: Path, name: str, reviews: datasets.DatasetDict) -> None:
    """Lay reviews into the cache of `datasets` as if they had been fetched."""
    short = name.partition("/")[2]
    folder = home / "datasets" / name.replace("/", "___") / "plain_text" / "0.0.0" / "0"
    folder.mkdir(parents=True)
    splits = datasets.SplitDict(dataset_name=short)
    for split, rows in reviews.items():
        with ArrowWriter(path=str(folder / f"{short}-{split}.arrow"), features=rows.features) as writer:
            writer.write_table(rows.data.table.combine_chunks())
            writer.finalize()
        splits[split] = datasets.SplitInfo(split, num_examples=len(rows), dataset_name=short)
    told = {"builder_name": "parquet", "dataset_name": short, "config_name": "plain_text", "version": "0.0.0"}
    datasets.DatasetInfo(features=rows.features, splits=splits, **told).write_to_directory(str(folder))


def fill(home: Path, reviews: Path, gpt2: Path) -> None:
    """A home of the Hub's libraries with the models at full size; GPT-2's own tokenizer, another one for DistilBERT."""
    found = datasets.load_dataset(str(reviews))
    cache_reviews(home, REVIEWS, found)
    words = AutoTokenizer.from_pretrained(gpt2, trust_remote_code=False)
    cache_model(home, POLICY, policy(words), words)
    cache_model(home, ENCODER, encoder(), train_tokenizer("wordpiece", found["train"]["text"][:], PIECES))


if __name__ == "__main__":
    fill(*map(Path, sys.argv[1:4]))
