"""Reviews and prompts: one loader for the pocket world, a local path, a CSV file and a Hub id."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.world.known import GENERATORS
from alignkit.world.reach import check_data

datasets.disable_progress_bars()

SPLITS = ("train", "test", "unsupervised")
SIZES = {"train": 25_000, "test": 12_500, "unsupervised": 50_000}
"""How many reviews a world of our own has where no number is asked for; as many as IMDB at hand."""
WORLD_SEEDS = {"train": 1, "test": 2, "unsupervised": 3}
"""The reviews of such a world are a fixed data set; a run's own seed only shuffles them."""


@dataclass(frozen=True)
class Reviews:
    """Which reviews: where they are from and how many of each split, None for all (`load_reviews`)."""

    source: str
    train_reviews: int | None = None
    test_reviews: int | None = None
    unsupervised_reviews: int | None = None

    def load(self, seed: int) -> datasets.DatasetDict:
        """Cleaned reviews with columns text and label, shuffled with the seed."""
        return load_reviews(**asdict(self), seed=seed)

    def fingerprint(self) -> str:
        """SHA-256 of the cleaned texts and labels, the same wherever they lie (first 16 hex digits)."""
        return fingerprint(**asdict(self))


def load_reviews(
    source: str,
    *,
    seed: int,
    train_reviews: int | None = None,
    test_reviews: int | None = None,
    unsupervised_reviews: int | None = None,
) -> datasets.DatasetDict:
    """Cleaned reviews with columns text and label (1 positive, 0 negative, -1 unknown), shuffled with the seed.

    `source` is a world of `known`, a folder or CSV file, or a Hub id.  Train is kept whole; texts that also
    stand in train leave test and unsupervised, and texts of test leave unsupervised.  The *_reviews
    cut a split to that many reviews, half of each label, the same ones for every seed; None keeps all.
    A CSV file has the columns text and label, and either a column split or gives every fifth review to test.

    Raises UserFault if the source cannot be reached or lacks a split, a column, a text or a label, if a split
    is empty once its overlaps are gone, or if train or test holds one label only.
    """
    sizes = (train_reviews, test_reviews, unsupervised_reviews)
    reviews = _load(source, _stamp(source), sizes)
    return datasets.DatasetDict({name: split.shuffle(seed=seed) for name, split in reviews.items()})


def fingerprint(source: str, **sizes: int | None) -> str:
    """SHA-256 of the cleaned texts and labels, the same wherever the reviews lie (first 16 hex digits)."""
    return _fingerprint(source, _stamp(source), **sizes)


def _stamp(source: str) -> paths.Stamp:
    """With it in a cache's key, an edited file is read again."""
    return () if source in GENERATORS else paths.stamp(source)


@lru_cache(maxsize=8)
def _fingerprint(source: str, _: paths.Stamp, **sizes: int | None) -> str:
    digest = hashlib.sha256()
    for name, split in load_reviews(source, seed=0, **sizes).items():
        rows = sorted(zip(split["text"][:], split["label"][:], strict=True))
        digest.update(repr((name, rows)).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def _load(source: str, _: paths.Stamp, sizes: tuple[int | None, ...]) -> dict[str, datasets.Dataset]:
    """Cleaned reviews by split, in the order of their texts, so that where they lie and in which order says nothing."""
    if source in GENERATORS:
        return _load_generated(source, sizes)
    raw = _load_raw(source)
    frames = {name: _sorted(_clean(raw[name], source, name)) for name in SPLITS if name in raw}
    for name in ("train", "test"):
        if name not in frames:
            raise UserFault(f"data: {source!r} has no split {name!r}; found {', '.join(raw) or 'none'}")
    seen: set[str] = set()
    for name, frame in frames.items():
        # Train is kept whole, repeated texts and all.
        frames[name] = frame[~frame.text.isin(seen)]
        seen |= set(frame.text)
        _check_labels(frames[name], source, name)
    cut = {name: _cut(frames[name], size, name) for name, size in zip(SPLITS, sizes, strict=True) if name in frames}
    return {name: datasets.Dataset.from_pandas(frame, preserve_index=False) for name, frame in cut.items()}


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["text", "label"], ignore_index=True)


def _load_generated(source: str, sizes: tuple[int | None, ...]) -> dict[str, datasets.Dataset]:
    seen: set[str] = set()
    out = {}
    for name, size in zip(SPLITS, sizes, strict=True):
        frame = _sorted(GENERATORS[source](SIZES[name] if size is None else size, WORLD_SEEDS[name]))
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
        # "NA" and "null" are texts; what is missing is an empty cell.
        rows = pd.read_csv(path, keep_default_na=False, low_memory=False)
    except Exception as error:
        raise UserFault(f"data: {str(path)!r} cannot be read as CSV: {_first_line(error)}") from None
    if not isinstance(rows.index, pd.RangeIndex):
        # pandas takes what stands before the last cells for an index.
        raise UserFault(f"data: {str(path)!r} has rows of more cells than its header; put texts with commas in quotes")
    if "split" not in rows:
        rows["split"] = np.where(np.arange(len(rows)) % 5 == 4, "test", "train")
    unknown = rows[~rows.split.isin(SPLITS)]
    if len(unknown):
        found = ", ".join(repr(name) for name in unknown.split.unique().tolist()[:5])
        raise UserFault(
            f"data: {str(path)!r}, row {unknown.index[0]}: unknown split; found {found}; allowed: {', '.join(SPLITS)}"
        )
    parts = {name: part.drop(columns="split") for name, part in rows.groupby("split")}
    return {name: datasets.Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items()}


def _first_line(error: BaseException) -> str:
    # `datasets` says no more than that something went wrong, and gives the reason as the cause.
    error = error.__cause__ or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _clean(split: datasets.Dataset, source: str, name: str) -> pd.DataFrame:
    for column in ("text", "label"):
        if column not in split.column_names:
            found = ", ".join(split.column_names)
            raise UserFault(f"data: {source!r}, split {name}: no column {column!r}; found {found}")
    frame = split.to_pandas()[["text", "label"]]
    allowed = [-1] if name == "unsupervised" else [0, 1]
    # One word among the labels of a CSV file makes strings of them all.
    label = pd.to_numeric(frame.label, errors="coerce")
    text = frame.text.where(frame.text.map(lambda value: isinstance(value, str)), "").astype(str)
    text = text.str.replace(r"<br\s*/?>", " ", regex=True).str.replace(r"\s+", " ", regex=True).str.strip()
    wrong = np.flatnonzero(~label.isin(allowed) | (text == ""))
    if len(wrong):
        row = wrong[0]
        found = f"label {frame.label.tolist()[row]!r} with text {str(frame.text.tolist()[row])[:30]!r}"
        raise UserFault(
            f"data: {source!r}, split {name}, row {row}: {found}; labels allowed here: {allowed}, "
            "text must not be empty, blank or a number"
        )
    return pd.DataFrame({"text": text, "label": label.astype(int)})


def _check_labels(frame: pd.DataFrame, source: str, name: str) -> None:
    if frame.empty:
        raise UserFault(
            f"data: {source!r}: split {name} has no review of its own; texts of earlier splits do not count"
        )
    found = sorted(frame.label.unique().tolist())
    if name != "unsupervised" and len(found) < 2:
        raise UserFault(f"data: {source!r}: every review of {name} has label {found[0]}; reviews of 0 and 1 are needed")


def _cut(frame: pd.DataFrame, size: int | None, name: str) -> pd.DataFrame:
    """`size` reviews, the first of each label in a fixed shuffle, half of each (IMDB is sorted by label)."""
    if size is None:
        return frame
    if size > len(frame):
        raise UserFault(f"{name}_reviews: {size} asked for, but the data has {len(frame)} in {name}")
    shuffled = frame.sample(frac=1, random_state=0)
    parts = []
    labels = sorted(shuffled.label.unique())
    for i, label in enumerate(labels):
        part, share = shuffled[shuffled.label == label], (size + i) // len(labels)
        if share > len(part):
            raise UserFault(
                f"{name}_reviews: {size} asked for, half of each label, but {name} has {len(part)} with label {label}"
            )
        parts.append(part.head(share))
    return pd.concat(parts).sort_index()


def prompts(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, n: int, shortest: int, longest: int, seed: int
) -> list[str]:
    """The beginnings of the first n texts, each `shortest` to `longest` policy tokens long, drawn with the seed.

    Texts that are not longer than their drawn length are passed over.  A length that would end inside a character
    (of several byte-level tokens) gives way to the next shorter one.  The task: 5-15 tokens of train reviews for
    training, 5-20 tokens of test reviews for evaluation.

    Raises UserFault if fewer than n texts are long enough, or if the tokenizer cannot tell where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise UserFault("prompts: the policy's tokenizer does not tell where its tokens stand; a fast one is needed")
    rng = np.random.default_rng(seed)
    out: list[str] = []
    for text in texts:
        if len(out) == n:
            return out
        length = int(rng.integers(shortest, longest + 1))
        cut = {"truncation": True, "max_length": longest + 1, "add_special_tokens": False}
        places = tokenizer(text, **cut, return_offsets_mapping=True)["offset_mapping"]
        if len(places) <= length:
            continue
        while length and places[length][0] < places[length - 1][1]:
            length -= 1
        if length >= shortest:
            # The text itself: decoding would show <unk>, or other blanks than the text's.
            out.append(text[: places[length - 1][1]])
    if len(out) < n:
        raise UserFault(f"prompts: {n} asked for, but only {len(out)} reviews are longer than {longest} tokens")
    return out
