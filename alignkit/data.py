"""Reviews and prompts: one loader for the pocket world, a local path, a CSV file and a Hub id."""

import hashlib
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from alignkit.faults import UserFault
from alignkit.pocket import generate_reviews
from alignkit.reach import check_data

datasets.disable_progress_bars()

SPLITS = ("train", "test", "unsupervised")
POCKET_SEEDS = {"train": 1, "test": 2, "unsupervised": 3}
"""The pocket reviews are a fixed data set like IMDB; a run's own seed only shuffles them."""


def load_reviews(
    source: str,
    *,
    seed: int,
    train_reviews: int | None = None,
    test_reviews: int | None = None,
    unsupervised_reviews: int | None = None,
) -> datasets.DatasetDict:
    """Cleaned reviews with columns text and label (1 positive, 0 negative, -1 unknown), shuffled with the seed.

    `source` is "pocket", a folder or CSV file, or a Hub id.  Train is kept whole; texts that also
    stand in train leave test and unsupervised, and texts of test leave unsupervised.  The *_reviews
    cut a split to that many reviews, half of each label, the same ones for every seed; None keeps all.
    A CSV file has the columns text and label, and either a column split or gives every fifth review to test.

    Raises UserFault if the source cannot be reached or lacks a split, a column or a label.
    """
    sizes = (train_reviews, test_reviews, unsupervised_reviews)
    reviews = _load(source, sizes)
    return datasets.DatasetDict({name: split.shuffle(seed=seed) for name, split in reviews.items()})


@lru_cache(maxsize=8)
def fingerprint(source: str, **sizes: int | None) -> str:
    """SHA-256 of the cleaned texts and labels, the same wherever the reviews lie (first 16 hex digits)."""
    digest = hashlib.sha256()
    for name, split in load_reviews(source, seed=0, **sizes).items():
        rows = sorted(zip(split["text"], split["label"], strict=True))
        digest.update(repr((name, rows)).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def _load(source: str, sizes: tuple[int | None, ...]) -> dict[str, datasets.Dataset]:
    if source == "pocket":
        return _load_pocket(sizes)
    frames = {name: _clean(split, source, name) for name, split in _load_raw(source).items() if name in SPLITS}
    for name in ("train", "test"):
        if name not in frames:
            raise UserFault(f"data: {source!r} has no split {name!r}; found {', '.join(frames) or 'none'}")
    seen = set(frames["train"].text)
    for name in SPLITS[1:]:
        if name in frames:
            frames[name] = frames[name][~frames[name].text.isin(seen)]
            seen |= set(frames[name].text)
    cut = {name: _cut(frames[name], size, name) for name, size in zip(SPLITS, sizes, strict=True) if name in frames}
    return {name: datasets.Dataset.from_pandas(frame, preserve_index=False) for name, frame in cut.items()}


def _load_pocket(sizes: tuple[int | None, ...]) -> dict[str, datasets.Dataset]:
    full = {"train": 25_000, "test": 12_500, "unsupervised": 50_000}
    seen: set[str] = set()
    out = {}
    for name, size in zip(SPLITS, sizes, strict=True):
        frame = generate_reviews(full[name] if size is None else size, POCKET_SEEDS[name])
        if name != "train":
            frame = frame[~frame.text.isin(seen)]
        seen |= set(frame.text)
        if name == "unsupervised":
            frame = frame.assign(label=-1)
        out[name] = datasets.Dataset.from_pandas(frame, preserve_index=False)
    return out


def _load_raw(source: str) -> dict[str, datasets.Dataset]:
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".csv":
        return _load_csv(path)
    if path.is_dir():
        try:
            return dict(datasets.load_dataset(str(path)))
        except Exception as error:  # whatever a broken or empty folder makes the library raise
            raise UserFault(f"data: {source!r} cannot be read as a data set: {_first_line(error)}") from None
    check_data(source)
    try:
        return dict(datasets.load_dataset(source))
    except Exception as error:
        raise UserFault(f"data: {source!r} cannot be loaded from the Hub: {_first_line(error)}") from None


def _load_csv(path: Path) -> dict[str, datasets.Dataset]:
    try:
        rows = datasets.load_dataset("csv", data_files=str(path))["train"].to_pandas()
    except Exception as error:
        raise UserFault(f"data: {str(path)!r} cannot be read as CSV: {_first_line(error)}") from None
    if "split" not in rows:
        rows["split"] = np.where(np.arange(len(rows)) % 5 == 4, "test", "train")
    parts = {str(name): part.drop(columns="split") for name, part in rows.groupby("split")}
    return {name: datasets.Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _clean(split: datasets.Dataset, source: str, name: str) -> pd.DataFrame:
    for column in ("text", "label"):
        if column not in split.column_names:
            found = ", ".join(split.column_names)
            raise UserFault(f"data: {source!r}, split {name}: no column {column!r}; found {found}")
    frame = split.to_pandas()[["text", "label"]]
    allowed = {-1} if name == "unsupervised" else {0, 1}
    wrong = frame[~frame.label.isin(allowed) | frame.text.isna()]
    if len(wrong):
        raise UserFault(
            f"data: {source!r}, split {name}, row {wrong.index[0]}: label {wrong.label.iloc[0]!r} with text "
            f"{str(wrong.text.iloc[0])[:30]!r}; labels allowed here: {sorted(allowed)}, text must not be empty"
        )
    text = frame.text.str.replace(r"<br\s*/?>", " ", regex=True).str.replace(r"\s+", " ", regex=True).str.strip()
    return pd.DataFrame({"text": text, "label": frame.label.astype(int)})


def _cut(frame: pd.DataFrame, size: int | None, name: str) -> pd.DataFrame:
    """The first `size` reviews of a fixed shuffle, half of each label (IMDB is sorted by label)."""
    if size is None:
        return frame
    if size > len(frame):
        raise UserFault(f"{name}_reviews: {size} asked for, but the data has {len(frame)} in {name}")
    shuffled = frame.sample(frac=1, random_state=0)
    labels = sorted(shuffled.label.unique())
    parts = [shuffled[shuffled.label == label].head(size // len(labels)) for label in labels]
    return pd.concat(parts).sort_index()


def prompts(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, *, n: int, shortest: int, longest: int, seed: int
) -> list[str]:
    """The beginnings of the first n texts, each `shortest` to `longest` policy tokens long, drawn with the seed.

    Texts that are not longer than their drawn length are passed over.  The task: 5-15 tokens of train
    reviews for training, 5-20 tokens of test reviews for evaluation.
    """
    rng = np.random.default_rng(seed)
    out: list[str] = []
    for text in texts:
        if len(out) == n:
            return out
        length = int(rng.integers(shortest, longest + 1))
        ids = tokenizer(text, truncation=True, max_length=longest + 1, add_special_tokens=False)["input_ids"]
        if len(ids) > length:
            out.append(tokenizer.decode(ids[:length]))
    if len(out) < n:
        raise UserFault(f"prompts: {n} asked for, but only {len(out)} reviews are longer than {longest} tokens")
    return out
