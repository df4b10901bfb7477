"""Reviews and prompts: one loader for the pocket world, a local path, a CSV file and a Hub id."""

import hashlib
import re
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
from alignkit.world.own import SPLITS, Columns, read
from alignkit.world.reach import check_data, stamp

datasets.disable_progress_bars()

SIZES = {"train": 25_000, "test": 12_500, "unsupervised": 50_000}
"""How many reviews a generated world has where no number is asked for: those of the IMDB copy of `imdb_scratch`."""
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

    `source` is a world of `known`, files that `own.read` can read, or a Hub id.  Train is kept whole; texts that also
    stand in train leave test and unsupervised, and texts of test leave unsupervised.  The *_reviews
    cut a split to that many reviews, half of each label, the same ones for every seed; None keeps all.

    Raises UserFault if the source cannot be reached or read, if a split is empty once its overlaps are gone, or if
    train or test holds one label only.
    """
    sizes = (train_reviews, test_reviews, unsupervised_reviews)
    reviews = _load(source, _stamp(source), sizes)
    return datasets.DatasetDict({name: split.shuffle(seed=seed) for name, split in reviews.items()})


def fingerprint(source: str, **sizes: int | None) -> str:
    """SHA-256 of the cleaned texts and labels, the same wherever the reviews lie (first 16 hex digits)."""
    return _fingerprint(source, _stamp(source), **sizes)


def _stamp(source: str) -> paths.Stamp:
    """The files' names, times and sizes: part of a cache's key, so that an edited file is read again."""
    return () if source in GENERATORS else stamp(source)


@lru_cache(maxsize=8)
def _fingerprint(source: str, _: paths.Stamp, **sizes: int | None) -> str:
    digest = hashlib.sha256()
    for name, split in load_reviews(source, seed=0, **sizes).items():
        rows = sorted(zip(split["text"][:], split["label"][:], strict=True))
        digest.update(repr((name, rows)).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def _load(source: str, _: paths.Stamp, sizes: tuple[int | None, ...]) -> dict[str, datasets.Dataset]:
    """Cleaned reviews by split, in the order of their texts, so that neither their files nor their order matter."""
    if source in GENERATORS:
        return _load_generated(source, sizes)
    if not Path(paths.expanded(source)).exists():
        check_data(source)
    frames = {name: _sorted(_clean(frame)) for name, frame in read(source, Columns())[0].items()}
    seen: set[str] = set()
    for name, frame in frames.items():
        # Train is kept whole, repeated texts and all.
        frames[name] = frame[~frame.text.isin(seen)]
        seen |= set(frame.text)
        _check_labels(frames[name], source, name)
    cut = {name: _cut(frames[name], size, name) for name, size in zip(SPLITS, sizes, strict=True) if name in frames}
    return {name: datasets.Dataset.from_pandas(frame, preserve_index=False) for name, frame in cut.items()}


def _clean(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the line breaks of web pages, and with one blank between words."""
    return frame.assign(text=[" ".join(re.sub(r"<br\s*/?>", " ", text).split()) for text in frame.text])


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
