"""One's own reviews, read from the files that people have into one clean table for each split.

Which column is which, and what its values mean, is taken from common names or told by parameters.  This code is no
part of a run's identity: what the reviews say counts, however they were read.
"""

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pandas as pd
from pyarrow import parquet

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.world.reach import files, first_line

datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # a fault is told here, in one line
datasets.disable_progress_bars()

SPLITS = ("train", "test", "unsupervised")
TEXT = "text review review_text reviewtext review_body sentence content comment body tweet".split()
LABEL = "label sentiment stars star_rating rating polarity score".split()
"""Names of columns that are taken by themselves, in any case."""
NEITHER = -1
WORDS = {"0": 0, "1": 1, "false": 0, "true": 1, "neg": 0, "pos": 1, "negative": 0, "positive": 1, "bad": 0, "good": 1}
WORDS |= {"neutral": NEITHER, "mixed": NEITHER}
KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
FEW = 12
"""A column of at most so many different values, as of labels, shows whether a line in a text is a row of its own."""
UNSPACED = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{9}")
"""Nine letters in a row of a script that sets no blanks between words: Thai, Lao, Khmer, kana, Chinese characters."""
SPECIAL = re.compile(
    r"<(?=[|\uff5c][^|\uff5c<>]{1,40}[|\uff5c]|</?SYS>>"
    r"|/?(?i:s|pad|unk|mask|[be]o[dmst]|cls|sep|end|think|unused\d+|\w+_\w+)>)"
    r"|\[(?=(?:PAD|UNK|CLS|SEP|[gs]?MASK|[BE]O[DST]|/?INST|unused\d+)\])"
)
"""The beginning of what models read as the end of a text, padding and the like, where a text spells it."""


class Columns(NamedTuple):
    """Which columns hold text and label, and which labels are positive; None: the common names are looked for."""

    text: str | None = None
    label: str | None = None
    positive: tuple[str, ...] | None = None


def read(source: str, asked: Columns) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Columns text and label (1 positive, 0 negative, -1 in unsupervised) of each split, rows in order; what was taken
    for what, in words.  Raises UserFault, which names row and column of the file, for what cannot be read.
    """
    found = _tables(source)
    tables = {name: table for name, table in found.items() if name in ("", *SPLITS)}
    unused = [f"split {name} ({len(found[name])} reviews) is not used" for name in found if name not in tables]
    place = {name: f"{source!r}, split {name}" if name else repr(source) for name in tables}
    texts = {name: _column(place[name], table, "text_column", asked.text, TEXT) for name, table in tables.items()}
    labelled = {name: table for name, table in tables.items() if name != "unsupervised"}
    labels = {name: _column(place[name], table, "label_column", asked.label, LABEL) for name, table in labelled.items()}
    values = Counter(word for name, table in labelled.items() for word in table[labels[name]].map(_word))
    meaning = _meaning(source, values, asked.positive)
    frames = {n: _frame(place[n], table, texts[n], labels.get(n), meaning) for n, table in tables.items()}
    notes = [f"{_shown(name)} is the text" for name in set(texts.values()) - {"text"}]
    for name in sorted(set(labels.values())):
        as_ = [_listed(sorted((w for w in values if meaning.get(w) == at), key=len)) for at in (1, 0, NEITHER)]
        left_out = f"; left out: {as_[2]}" if as_[2] else ""
        notes.append(f"{_shown(name)} is the label ({as_[0]}: positive; {as_[1]}: negative{left_out})")
    if "" in frames:
        whole = frames.pop("")
        tested = whole.index % 5 == 4
        frames = {"train": whole[~tested], "test": whole[tested]}
        notes.append("every fifth review is kept for tests")
    if lost := [name for name in ("train", "test") if name not in frames]:
        raise UserFault(f"data: {source!r} has no split {lost[0]!r}; found {', '.join(found)}")
    if empty := [name for name, frame in frames.items() if frame.empty]:
        raise UserFault(f"data: {source!r} has {sum(map(len, frames.values()))} reviews, none for {empty[0]}; add some")
    if again := int(frames["test"].text.isin(set(frames["train"].text)).sum()):
        notes.append(f"{again} of {len(frames['test'])} test reviews stand in train too, and are left out")
    if spelt := sum(int(frame.text.str.contains(SPECIAL).sum()) for frame in frames.values()):
        notes.append(f"{spelt} texts spell a model's own token, such as [SEP], and get a blank in it")
        frames = {n: f.assign(text=f.text.str.replace(SPECIAL, r"\g<0> ", regex=True)) for n, f in frames.items()}
    return {name: frames[name].reset_index(drop=True) for name in SPLITS if name in frames}, notes + unused


# Files


def _tables(source: str) -> dict[str, pd.DataFrame]:
    """The rows of each split, or all under "" where nothing names splits; the index says where a row stands."""
    path = Path(paths.expanded(source))
    found = [f for f in files(source) if _kind(f) in KINDS and not f.name.startswith((".", "dataset_info"))]
    if len({_kind(file) for file in found}) > 1:
        found = [file for file in found if not _is_one_thing(file)]
    kinds = sorted({_kind(file) for file in found})
    if path.exists() and len(kinds) != 1:
        what = f"holds files of several kinds ({', '.join(kinds)})" if kinds else "is not a file or folder of reviews"
        raise UserFault(f"data: {source!r} {what}; allowed: one kind of {', '.join(KINDS)}, or these with .gz")
    if not path.exists() or (path.is_dir() and kinds == [".parquet"]):
        tables = _loaded(str(path) if path.exists() else source, source)  # in the Hub's layout
        unnamed = set(tables) == {"train"} and not any("train" in str(f.relative_to(path)).lower() for f in found)
        return {"": tables["train"]} if path.exists() and unnamed else tables
    parts: dict[str, list[pd.DataFrame]] = {}
    for file in found:
        table = _of_file(file, source if path.is_file() else str(file))
        parts.setdefault("" if path.is_file() else _split_of(file.relative_to(path)), []).append(table)
    if "" in parts and len(parts) > 1:
        place = parts[""][0].index[0]
        raise UserFault(f"data: {place}: its file names no split, others do; allowed: {', '.join(SPLITS)}")
    tables = {name: pd.concat(some) for name, some in parts.items()}
    if "" in tables and "split" in tables[""]:
        whole, name = tables[""], _column(repr(source), tables[""], "split", None, ["split"])
        splits = whole[name].map(str)
        if len(unknown := splits[~splits.isin(SPLITS)]):
            told = f"unknown split; found {_listed(map(repr, unknown.unique()))}; allowed: {', '.join(SPLITS)}"
            raise UserFault(f"data: {unknown.index[0]}: {told}")
        return dict(list(whole.groupby(splits)))
    return tables


def _is_one_thing(file: Path) -> bool:
    """Whether a JSON file beside others holds no rows but something else, such as the labels' names."""
    try:
        held = json.loads(file.read_bytes()) if _kind(file) == ".json" else [{}]
    except (ValueError, RecursionError):
        return False
    return not (isinstance(held, list) and any(isinstance(row, dict) for row in held))


def _kind(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _split_of(file: Path) -> str:
    found = re.findall(r"(?<![a-z])(train|test|unsup|valid|dev)(?:ing|ervised|ation)?(?![a-z])", str(file).lower())
    return {"unsup": "unsupervised"}.get(found[-1], found[-1]) if found else ""


def _loaded(name: str, source: str, **files: str) -> dict[str, pd.DataFrame]:
    """What `datasets` makes of a folder, a parquet file or a Hub id; labels that have names are called by them."""
    try:
        loaded = datasets.load_dataset(name, **files)
    except Exception as error:  # whatever a broken or empty folder makes the library raise
        raise UserFault(f"data: {source!r} cannot be read as a data set: {_why(error, source)}") from None
    out = {}
    for split, rows in loaded.items():
        table = rows.to_pandas()
        for column, kind in rows.features.items():
            if isinstance(kind, datasets.ClassLabel) and [WORDS.get(word.lower()) for word in kind.names] != [0, 1]:
                table[column] = table[column].map(dict(enumerate(kind.names))).fillna(table[column])
        where = repr(source) if files else f"{source!r}, split {split}"
        out[split] = table.set_axis([f"{where}, row {i}" for i in range(len(table))])
    return out


def _why(error: Exception, source: str) -> str:
    """What the library said in one line; which file has other columns than the first, where that is it."""
    if not isinstance(cast := error.__cause__, datasets.table.CastError):
        return first_line(error)
    other, held = cast.table_column_names, [f for f in files(source) if _kind(f) == ".parquet"]
    place = next((str(f) for f in held if set(parquet.read_schema(f).names) == set(other)), "one file")
    return f"{place} has columns {_listed(other)}, others have {_listed(cast.requested_column_names)}"


def _of_file(file: Path, name: str) -> pd.DataFrame:
    if _kind(file) == ".parquet":
        return _loaded("parquet", name, data_files=str(file))["train"]
    opened = gzip.open if file.name.lower().endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", newline="") as stream:
            if "\0" in stream.read(100):
                raise ValueError("it holds NUL characters, as UTF-16 does")
            stream.seek(0)
            return (_cells if _kind(file) in (".csv", ".tsv") else _objects)(stream, name)
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        if isinstance(error, UserFault):
            raise
        raise UserFault(f"data: {name!r} cannot be read as {_kind(file)[1:].upper()} in UTF-8: {error}") from None


def _cells(stream: Any, name: str) -> pd.DataFrame:
    """Cells between commas, semicolons or tabs, as texts; what stands behind the header's last one must be empty."""
    csv.field_size_limit(2**31 - 1)
    lines = ((n, line) for n, line in enumerate(stream, start=1) if not re.fullmatch(r'\s*"?(sep=.?)?"?\s*', line))
    head, first = next(lines, (1, ""))  # behind what spreadsheets put first
    if not first:
        raise UserFault(f"data: {name!r} is empty; a header and reviews are needed")
    separator = max(",;\t", key=re.sub(r'"[^"]*"', "", first).count)
    rows: dict[str, list[str]] = {}
    reader = csv.reader(chain([first.rstrip("\r\n" + separator) + "\n"], stream), delimiter=separator)
    columns, line = [column.strip() for column in next(reader)], reader.line_num + head
    for cells in reader:
        if any(cell.strip() for cell in cells):
            place = f"{name!r}, row {len(rows)} (line {line})"
            rows[place] = [*cells[: len(columns)], *[""] * (len(columns) - len(cells))]
            if any(cells[len(columns) :]):
                told = "more cells than its header; put texts with commas in quotes, double the quotes in them"
                raise UserFault(f"data: {place}: {told}")
        line = reader.line_num + head
    few = [set(values) - {""} for values in zip(*rows.values(), strict=True)]
    few = [values if len(values) <= FEW else set() for values in few]
    for place, cells in rows.items():
        # Two stray quotes make one text of all that stands between them.
        for inner in (inner for cell in cells if "\n" in cell for inner in cell.splitlines()[:-1]):
            own = inner.split(separator)
            ends = zip(few, own, own[-len(few) :], strict=False) if len(own) >= len(few) else ()
            if any(a in values or b in values for values, a, b in ends):
                raise UserFault(f"data: {place}: a quote opens a text of several lines there, but {inner[:40]!r} in it "
                                "looks like a row; take stray quotes away, or double them")  # fmt: skip
    return pd.DataFrame(rows.values(), index=list(rows), columns=columns)


def _objects(stream: Any, name: str) -> pd.DataFrame:
    """One JSON object a line, or one list of objects."""
    text = stream.read()
    listed = text.lstrip().startswith("[")
    rows: dict[str, dict] = {}
    for number, line in enumerate([text] if listed else text.split("\n"), start=1):
        try:
            values = json.loads(line if listed else f"[{line}]")
        except (ValueError, RecursionError):
            values = [line]
        for value in values:
            place = f"{name!r}, row {len(rows)}" + ("" if listed else f" (line {number})")
            if not isinstance(value, dict):
                raise UserFault(f"data: {place}: {str(value)[:40]!r}; a JSON object with text and label is needed")
            if found := re.search(r"[\ud800-\udfff]", "".join(map(str, [*value, *value.values()]))):
                raise UserFault(f"data: {place}: holds {found[0]!r}, half of a character; take it away")
            rows[place] = value
    return pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)


# Columns, labels, rows


def _column(place: str, table: pd.DataFrame, key: str, asked: str | None, common: list[str]) -> str:
    """The column that is asked for, or has the loader's own name, or else the only one with a common name."""
    columns = list(map(str, table))
    name = asked or common[0]
    found = [name] if asked or name in columns else []
    found = found or [column for column in columns if column.strip().lower() in common]
    if len(found) == 1 and columns.count(found[0]) == 1:
        return found[0]
    if not columns:
        raise UserFault(f"data: {place}: holds no reviews; rows with a text and a label are needed")
    what = f"{' and '.join(map(_shown, found))} are both there" if len(found) > 1 else f"no column {_shown(name)}"
    if len(found) == 1 and (count := columns.count(found[0])):
        raise UserFault(f"data: {place}: {count} columns are called {_shown(found[0])}; allowed: one")
    raise UserFault(f"data: {place}: {what}; its columns are {_listed(columns)}; set {key} to one of them")


def _shown(value: Any) -> str:
    """A name, label or text on one line, of about 40 characters at most."""
    plain = repr(value.tolist() if hasattr(value, "tolist") else value)
    said = "missing" if plain in ("None", "nan", "<NA>") else plain
    return said if len(said) <= 42 else f"{said[:38]}...{said[-1]}"


def _listed(names: Iterable[str]) -> str:
    said = ", ".join(_shown(name)[1:-1] for name in names)
    return said if len(said) <= 240 else f"{said[:240]} ..."


def _word(value: Any) -> str:
    """A label as it is compared: in lower case, 1.0 as 1, "" where there is none."""
    word = "" if value is None else str(value).strip().lower()
    try:
        return f"{float(word):g}".replace("nan", "")
    except ValueError:
        return word


def _meaning(source: str, values: Counter, positive: tuple[str, ...] | None) -> dict[str, int]:
    """What each label stands for: 1 positive, 0 negative, -1 neither."""
    known = sorted(set(values) - {""})
    shown = _listed(map(repr, known))
    if positive:
        chosen = set(map(_word, positive))
        if wrong := sorted(chosen - set(known)):
            raise UserFault(f"positive: {_shown(wrong[0])} is no label in {source!r}; found {shown}")
        return {word: int(word in chosen) for word in known}
    points = {word: float(word) for word in known if re.fullmatch(r"\d+(\.\d+)?", word) and 0.5 <= float(word) <= 10}
    top, half = max(points.values(), default=0), sum(values.values()) / 2
    if top in (4, 4.5, 5, 9, 9.5, 10) and "0" not in known and sum(values[word] for word in points) > half:
        # Stars up to 5, points up to 10: 3, or 5 and 6, are neither good nor bad.  Of 6 or 7 nobody knows.
        ends = 6 if top <= 5 else 11
        return {word: NEITHER if abs(2 * x - ends) < 2 else int(2 * x > ends) for word, x in points.items()}
    understood = [word for word in known if word in WORDS]
    both = {WORDS[word] for word in understood} >= {0, 1}
    if understood != known and (not both or sum(map(values.get, understood)) < half):
        raise UserFault(f"data: {source!r}: labels {shown}; set positive to those that stand for a positive review")
    return WORDS


def _frame(place: str, table: pd.DataFrame, text: str, label: str | None, meaning: dict[str, int]) -> pd.DataFrame:
    """Texts and labels, each row checked, without rows that are neither positive nor negative."""
    said = table[text].map(lambda value: value if isinstance(value, str) else "")
    words = table[label].map(_word) if label else pd.Series("", table.index)
    blank = said.str.fullmatch(r"(?:<br\s*/?>|\s)*")
    if said.str.fullmatch(r"[-+\d.,\s]+").all():
        what = f"column {_shown(text)}: holds no text; set text_column to one that does"
        raise UserFault(f"data: {place}, {what if len(table) else 'holds no rows; reviews are needed'}")
    if said.str.contains(UNSPACED).mean() > 0.5:
        raise UserFault(f"data: {place}, column {_shown(text)}: no blanks between words; they must stand apart")
    wrong = blank if label is None else blank | ~words.isin(list(meaning))
    if wrong.any():
        at = table[wrong.to_numpy()].iloc[0]
        found = " with ".join(f"{_listed([name])} {_shown(at[name])}" for name in (text, label) if name)
        there = sorted(set(words) & set(meaning))
        labels = _listed(there if len(there) > 1 else ["0", "1"])
        allowed = f"labels allowed here: {labels}, or set positive; text must not be empty, blank or a number"
        raise UserFault(f"data: {at.name}: {found}; {allowed}")
    frame = pd.DataFrame({"text": said.array, "label": words.map(meaning).array if label else NEITHER})
    return frame[frame.label != NEITHER] if label else frame
