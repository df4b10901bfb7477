"""One's own reviews: what people's files hold is read as it is meant, or one line says which row and column is not."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from alignkit.faults import UserFault
from alignkit.world import reach
from alignkit.world.own import Columns, read

LABELS = [i % 2 for i in range(30)]
REVIEWS = pd.DataFrame({"text": [f"film {i}, said he" for i in range(30)], "label": LABELS})
TRAIN = [i for i in range(30) if i % 5 != 4]
Make = Callable[[Path], Any]


def csv(**changed: Any) -> str:
    """A CSV file of reviews, some columns changed or added."""
    return REVIEWS.assign(**changed).to_csv(index=False)


def renamed(label: str = "label", text: str = "text", **words: Any) -> str:
    """The file with other names and, by `v0` and `v1`, other labels."""
    labels = [words.get(f"v{x}", x) for x in LABELS]
    return pd.DataFrame({text: REVIEWS.text, label: labels}).to_csv(index=False)


def damaged() -> bytes:
    """An archive with other bytes in it."""
    whole = gzip.compress(csv().encode())
    return whole[:40] + b"\xff" * 20 + whole[60:]


def objects(*rows: Any) -> str:
    return "\n".join(map(json.dumps, rows))


def of_lines(*lines: str, header: str = "text,label") -> str:
    return "\n".join([header, *lines]) + "\n"


def put(folder: Path, name: str, content: str | bytes) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(file)


def hub_folder(folder: Path, names: list[str]) -> str:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        rows = Dataset.from_pandas(REVIEWS, preserve_index=False).cast(features)
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return str(folder)


def fault(source: str, **asked: Any) -> str:
    with pytest.raises(UserFault) as raised:
        read(source, Columns(**asked))
    (line,) = str(raised.value).splitlines()
    return line


# What is read


FORMS: dict[str, str | bytes] = {
    "reviews.csv": csv(),
    "R.CSV": csv(),
    "reviews.csv.gz": gzip.compress(csv().encode()),
    "reviews.tsv": REVIEWS.to_csv(index=False, sep="\t"),
    "semicolons.csv": REVIEWS.to_csv(index=False, sep=";"),
    "byte_order_mark.csv": "\ufeff" + csv(),
    "windows.csv": csv().replace("\n", "\r\n"),
    "blank_lines.csv": csv().replace("\n", "\n\n"),
    "index.csv": REVIEWS.to_csv(),
    "trailing_commas.csv": csv().replace("\n", ",,\n"),
    "long.csv": csv(more="w" * 200_000),
    "trailing_commas_below.csv": csv().replace("\n", ",,\n").replace("label,,", "label"),
    "spreadsheet.csv": "sep=,\n" + csv(),
    "reviews.jsonl": REVIEWS.to_json(orient="records", lines=True),
    "reviews.json": REVIEWS.to_json(orient="records"),
    "reviews.parquet": REVIEWS.to_parquet(),
    "floats.csv": csv(label=[float(x) for x in LABELS]),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_a_file_gives_the_same_rows(name: str, tmp_path: Path):
    frames, notes = read(put(tmp_path, name, FORMS[name]), Columns())
    assert frames["train"].text.tolist() == REVIEWS.text[TRAIN].tolist()
    assert frames["train"].label.tolist() == REVIEWS.label[TRAIN].tolist()
    assert len(frames["test"]) == 6
    assert notes == ["'label' is the label (1: positive; 0: negative)", "every fifth review is kept for tests"]


KNOWN: dict[str, tuple[str, str]] = {
    "Kaggle": (renamed("sentiment", "review", v0="negative", v1="positive"), "'sentiment' is the label (positive: pos"),
    "SST": (renamed(text="sentence"), "'sentence' is the text"),
    "capitals": (
        renamed("Sentiment", "Review", v0="Neg", v1="POS"),
        "'Sentiment' is the label (pos: positive; neg: neg",
    ),
    "truth values": (renamed(v0=False, v1=True), "(true: positive; false: negative)"),
    "stars": (renamed("stars", v0=2, v1=5), "(5: positive; 2: negative)"),
    "ratings": (renamed("rating", v0=1.0, v1=9.0), "(9: positive; 1: negative)"),
    "half stars": (renamed("stars", v0=0.5, v1=4.5), "(4.5: positive; 0.5: negative)"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_common_names_are_taken_by_themselves_and_told(name: str, tmp_path: Path):
    content, told = KNOWN[name]
    frames, notes = read(put(tmp_path, "r.csv", content), Columns())
    assert frames["train"].text.tolist() == REVIEWS.text[TRAIN].tolist()
    assert frames["train"].label.tolist() == REVIEWS.label[TRAIN].tolist()
    assert told in "; ".join(notes)


@pytest.mark.parametrize(("top", "out"), [(5, {3}), (10, {5, 6})])
def test_the_middle_of_stars_and_points_is_left_out_and_told(top: int, out: set[int], tmp_path: Path):
    stars = [i % top + 1 for i in range(30)]
    frames, notes = read(put(tmp_path, "r.csv", csv(label=stars)), Columns())
    read_as = dict(zip([*frames["train"].text, *frames["test"].text], [*frames["train"].label, *frames["test"].label],
                       strict=True))  # fmt: skip
    assert read_as == {text: int(x > top / 2) for text, x in zip(REVIEWS.text, stars, strict=True) if x not in out}
    assert f"left out: {', '.join(map(str, sorted(out)))})" in notes[0]


def test_neutral_reviews_are_left_out_and_told(tmp_path: Path):
    labels = ["negative", "Neutral", "positive"] * 10
    frames, notes = read(put(tmp_path, "r.csv", csv(label=labels)), Columns())
    rows = {**dict(frames["train"].to_numpy()), **dict(frames["test"].to_numpy())}
    assert rows == {text: int(x == "positive") for text, x in zip(REVIEWS.text, labels, strict=True) if x != "Neutral"}
    assert "(positive: positive; negative: negative; left out: neutral)" in notes[0]


def test_columns_and_labels_are_named_by_parameters(tmp_path: Path):
    source = put(tmp_path, "r.csv", renamed("mood", "words", v0="rotten", v1="Fresh"))
    assert "no column 'text'; its columns are words, mood; set text_column" in fault(source)
    assert "no column 'label'; its columns are words, mood; set label_column" in fault(source, text="words")
    assert "labels 'fresh', 'rotten'; set positive" in fault(source, text="words", label="mood")
    assert "positive: 'ripe' is no label" in fault(source, text="words", label="mood", positive=("ripe",))
    frames, _ = read(source, Columns("words", "mood", ("fresh",)))
    assert frames["train"].label.tolist() == REVIEWS.label[TRAIN].tolist()


@pytest.mark.parametrize("names", [["neg", "pos"], ["pos", "neg"]])
def test_labels_mean_what_their_names_say_in_any_order(names: list[str], tmp_path: Path):
    frames, _ = read(hub_folder(tmp_path / "r", names), Columns())
    assert frames["test"].label.tolist() == [int(names[x] == "pos") for x in LABELS]


@pytest.mark.parametrize("word", ["None", "null", "N/A", "nan", "NA"])
def test_a_text_that_reads_like_a_missing_value_is_a_text(word: str, tmp_path: Path):
    text = [word, *REVIEWS.text[1:]]
    for name in ("train", "test"):
        put(tmp_path, f"folder/{name}.csv", csv(text=text))
        put(tmp_path, f"lines/{name}.jsonl", REVIEWS.assign(text=text).to_json(orient="records", lines=True))
    for source in (tmp_path / "folder", tmp_path / "lines", tmp_path / "folder" / "train.csv"):
        assert read(str(source), Columns())[0]["train"].text[0] == word


def test_a_folder_is_split_by_its_files_names_or_else_by_rows(tmp_path: Path):
    half = {"a": REVIEWS[:15], "b": REVIEWS[15:]}
    for name, part in half.items():
        put(tmp_path, f"plain/{name}.csv", part.to_csv(index=False))
        put(tmp_path, f"named/train/{name}.csv", part.to_csv(index=False))
    put(tmp_path, "named/Test_1.csv", csv())
    put(tmp_path, "named/validation.csv", "nothing\n")
    put(tmp_path, "named/unsupervised.csv", csv().replace("label", "id"))
    sizes = {name: len(frame) for name, frame in read(str(tmp_path / "named"), Columns())[0].items()}
    assert sizes == {"train": 30, "test": 30, "unsupervised": 30}
    notes = read(str(tmp_path / "named"), Columns())[1]
    assert notes[1:] == [
        "30 of 30 test reviews stand in train too, and are left out",
        "split valid (0 reviews) is not used",
    ]
    assert {n: len(f) for n, f in read(str(tmp_path / "plain"), Columns())[0].items()} == {"train": 24, "test": 6}


@pytest.mark.parametrize("name", ["title, short", "title; short; long; wide", "title,\nof two lines"])
def test_a_header_is_read_like_its_rows(name: str, tmp_path: Path):
    other = [1 - label for label in LABELS]
    frames, notes = read(put(tmp_path, "r.csv", renamed("stars", v0=1, v1=5)), Columns())
    table = pd.DataFrame({"text": REVIEWS.text, name: "t", "stars": [1 + 4 * x for x in LABELS], "delivered": other})
    again, told = read(put(tmp_path, "q.csv", table.to_csv(index=False)), Columns())
    assert again["train"].equals(frames["train"])
    assert told == notes


def test_a_text_of_several_lines_stays_one(tmp_path: Path):
    source = put(tmp_path, "r.csv", of_lines('"a film,\nas they say\n10/10",1', *csv().splitlines()[1:]))
    assert read(source, Columns())[0]["train"].text[0] == "a film,\nas they say\n10/10"


def test_files_beside_the_reviews_are_passed_over(tmp_path: Path):
    put(tmp_path, "README.md", "# Reviews\n")
    put(tmp_path, "labels.json", '{\n"0": "neg", "1": "pos"}')
    put(tmp_path, "reviews.csv", csv())
    assert len(read(str(tmp_path), Columns())[0]["train"]) == 24


SPELT = (
    "<END> <EOT> <eot> <eod> <EOS> <S> </S> [EOD] [gMASK] <<SYS>> <extra_id_0> <fim_prefix> <unused0> <think> </think> "
    "<start_of_turn> <\uff5cend\u2581of\u2581sentence\uff5c> <|end\u00a0of\u00a0text|>"
)


@pytest.mark.parametrize("token", SPELT.split(" "))
def test_each_form_of_special_tokens_is_seen(token: str, tmp_path: Path):
    spelt = [f"a {token} b", *REVIEWS.text[1:]]
    assert read(put(tmp_path, "r.csv", csv(text=spelt)), Columns())[0]["train"].text[0] == f"a {token[0]} {token[1:]} b"


def test_special_tokens_in_a_text_are_text(tmp_path: Path):
    spelt = ["<|endoftext|> </s> [SEP] <s> <pad> a < b, <b> [sic]", *REVIEWS.text[1:]]
    frames, notes = read(put(tmp_path, "r.csv", csv(text=spelt)), Columns())
    assert frames["train"].text[0] == "< |endoftext|> < /s> [ SEP] < s> < pad> a < b, <b> [sic]"
    assert notes[-1].startswith("1 texts spell a model's own token")


@pytest.mark.parametrize(
    "text",
    [
        "Sicherheitsbeh\u00f6rden untersuchten Atomkraftwerksbetreiber",
        "ep\u00e4johdonmukaisuus k\u00e4sikirjoituksessa h\u00e4iritsi minua",
        "\uc774 \uc601\ud654 \uc815\ub9d0 \uc88b\uc558\uc5b4\uc694",
        "\u6211 \u5f88 \u559c\u6b22 \u770b \u8fd9\u90e8 \u7535\u5f71",
        "Superb!" + " " * 200,
        "https://films.example/reviews/2026/a-long-address-of-one-review nice",
        "<div>\n            <p>good</p>\n        </div>",
    ],
)
def test_words_that_stand_apart_are_read_however_long(text: str, tmp_path: Path):
    frames, _ = read(put(tmp_path, "r.csv", csv(text=[text] * 30)), Columns())
    assert len(frames["train"]) == 24


# What is refused, in one line


PLAIN = csv(text=[f"film {i}" for i in range(30)]).splitlines()[1:]


def with_line(i: int, line: str, j: int = 0, other: str = "") -> str:
    lines = [*PLAIN]
    lines[i], lines[j] = line, other or lines[j]
    return of_lines(*lines)


FAULTS: dict[str, tuple[str, str | bytes, list[str]]] = {
    "two stray quotes": (
        "r.csv",
        with_line(5, '"film 5,1', 16, 'film 16",0'),
        ["row 5 (line 7)", "'film 5,1'", "quotes"],
    ),
    "one stray quote": ("r.csv", with_line(25, '"film 25,1'), ["row 25 (line 27)", "stray quotes"]),
    "stray quotes, label first": (
        "r.tsv",
        of_lines('0\t"a', "1\tb", '0\tc"', *["1\td", "0\te"] * 9, header="label\ttext"),
        ["row 0 (line 2)", "'1\\tb'"],
    ),
    "an empty text": ("r.csv", with_line(6, ",1"), ["row 6 (line 8): text '' with label '1'", "must not be empty"]),
    "a blank text": ("r.csv", with_line(6, "<br /> ,1"), ["row 6 (line 8)", "must not be empty, blank"]),
    "a text behind blank lines": ("r.csv", "\n\n" + with_line(3, " ,1"), ["row 3 (line 7)"]),
    "a wrong label": ("r.csv", with_line(20, "film 20,2"), ["row 20 (line 22)", "label '2'", "allowed here: 0, 1"]),
    "no label": ("r.csv", with_line(20, "film 20"), ["row 20 (line 22)", "label ''"]),
    "commas without quotes": ("r.csv", with_line(2, "a, b,1"), ["row 2 (line 4)", "more cells than its header"]),
    "unknown labels": ("r.csv", renamed(v0=0, v1=4), ["labels '0', '4'; set positive"]),
    "two columns of texts": (
        "r.csv",
        csv(review="x", comment="y").replace("text,", "title,"),
        ["'review' and 'comment'"],
    ),
    "no header": ("r.csv", "\n".join(PLAIN), ["no column 'text'; its columns are film 0, 0"]),
    "nothing": ("r.csv", "", ["is empty"]),
    "two reviews": ("r.csv", "\n".join(csv().split("\n")[:3]), ["has 2 reviews, none for test"]),
    "a header": ("r.csv", "text,label\n", ["holds no rows"]),
    "a scale of six": ("r.csv", csv(label=[i % 6 + 1 for i in range(30)]), ["'5', '6'; set positive"]),
    "inner quotes": ("r.csv", of_lines('"a \\"film\\", they say",1'), ["double the quotes in them"]),
    "no blanks between words": (
        "r.csv",
        csv(text=[f"\u6211\u5f88\u559c\u6b22\u770b\u8fd9\u90e8\u7535\u5f71\uff0c{i}\u3002" for i in range(30)]),
        ["column 'text': no blanks between words"],
    ),
    "numbers": ("r.csv", csv(text=range(30)), ["column 'text': holds no text"]),
    "another encoding": ("r.csv", csv(text="caf\u00e9").encode("latin-1"), ["cannot be read as CSV in UTF-8"]),
    "a broken archive": ("r.csv.gz", b"text,label\n", ["cannot be read as CSV"]),
    "damaged bytes": ("r.csv.gz", damaged(), ["cannot be read as CSV"]),
    "UTF-16": ("r.csv", csv().encode("utf-16-le"), ["in UTF-8: it holds NUL characters"]),
    "two columns of splits": (
        "r.csv",
        csv(a=1, b=2).replace("a,b", "split,split"),
        ["2 columns are called 'split'; allowed: one"],
    ),
    "two columns of one name": ("r.csv", "text,text,label\na,b,1\n", ["2 columns are called 'text'"]),
    "a split that is a list": ("r.jsonl", objects({"text": "a", "label": 1, "split": [0]}), ["row 0", "found '[0]'"]),
    "half a character": (
        "r.jsonl",
        objects({"text": "a", "label": 1}, {"text": "b\ud800", "label": 0}),
        ["row 1 (line 2): holds '\\ud800'"],
    ),
    "an empty list": ("r.json", "[]", ["holds no reviews"]),
    "an empty object": ("r.jsonl", "{}", ["holds no reviews"]),
    "no lines": ("r.jsonl", "", ["holds no reviews"]),
    "an unknown split": (
        "r.csv",
        csv(split=["train"] * 29 + ["dev"]),
        ["row 29 (line 31)", "found 'dev'", "train, test"],
    ),
    "a broken object": ("r.jsonl", '{"text": "a", "label": 1}\n{"text": "b"\n', ["row 1 (line 2)", "a JSON object"]),
    "a text that is none": (
        "r.jsonl",
        '{"text": 3, "label": 1}\n{"text": "b", "label": 0}\n',
        ["row 0 (line 1)", "number"],
    ),
    "a broken parquet": ("r.parquet", b"junk", ["cannot be read as a data set"]),
    "another kind": ("r.docx", b"junk", ["is not a file or folder of reviews", ".csv, .tsv, .json"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_read_is_one_line_with_the_files_own_row(name: str, tmp_path: Path):
    file, content, told = FAULTS[name]
    source = put(tmp_path, file, content)
    line = fault(source)
    assert [word for word in [repr(source), *told] if word not in line] == []


@pytest.mark.parametrize(
    ("content", "asked", "told"),
    [
        (csv().replace("text", "t" * 100_000), {}, f"its columns are {'t' * 37}..., label;"),
        (csv().replace("text", "\x1b[31mred"), {}, "its columns are \\x1b[31mred, label;"),
        (csv(text=[f"{i} {'w' * 900}" for i in range(30)]), {"label": "text"}, "labels '0 wwww"),
        (csv(), {"label": "l" * 900}, "no column 'llll"),
        (csv(text=""), {"text": "label", "label": "text"}, "column 'label': holds no text"),
    ],
)
def test_names_and_labels_are_printed_short_and_plain(content: str, asked: dict, told: str, tmp_path: Path):
    source = put(tmp_path, "r.csv", content)
    line = fault(source, **asked)
    assert told in line
    assert len(line) < 400 + len(source)
    assert line.isprintable()


@pytest.mark.parametrize(("labels", "told"), [([float("nan"), 1.0] * 15, "missing;"), ([7] + [0, 1] * 14 + [0], "7;")])
def test_numbers_of_parquet_files_are_shown_plainly(labels: list, told: str, tmp_path: Path):
    assert f"with label {told}" in fault(put(tmp_path, "r.parquet", REVIEWS.assign(label=labels).to_parquet()))


@pytest.mark.parametrize(("text", "told"), [(None, "missing"), (["one", "two"], "['one', 'two']")])
def test_a_text_of_a_parquet_file_that_is_none_is_shown(text: object, told: str, tmp_path: Path):
    texts = [text, *REVIEWS.text[1:]] if text is None else [text] * len(REVIEWS)
    source = put(tmp_path, "r.parquet", REVIEWS.assign(text=texts).to_parquet())
    assert f"row 0: text {told} with label" in fault(source)


def other_columns(folder: Path) -> None:
    put(folder, "train.parquet", REVIEWS.to_parquet())
    put(folder, "test.parquet", REVIEWS.assign(more=1).to_parquet())


def too_many(folder: Path) -> None:
    only_train(folder)
    for i in range(10):
        put(folder, f"{i}.txt", "")


def only_train(folder: Path) -> None:
    put(folder, "train.csv", csv())


def no_labels_in_test(folder: Path) -> None:
    only_train(folder)
    put(folder, "test.csv", "text\ngood\n")


def two_kinds(folder: Path) -> None:
    only_train(folder)
    put(folder, "test.tsv", csv())


def a_stray_file(folder: Path) -> None:
    only_train(folder)
    put(folder, "more.csv", csv())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: folder.mkdir(), "is not a file or folder of reviews"),
        (only_train, "has no split 'test'; found train"),
        (no_labels_in_test, "split test: no column 'label'; its columns are text"),
        (two_kinds, "several kinds (.csv, .tsv)"),
        (other_columns, "test.parquet has columns text, label, more, others have text, label"),
        (too_many, "holds over 10 files"),
        (a_stray_file, "more.csv', row 0 (line 2): its file names no split, others do"),
        (lambda folder: hub_folder(folder, ["rotten", "fresh"]), "labels 'fresh', 'rotten'; set positive"),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line(make: Make, told: str, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(reach, "MOST_FILES", 10)
    make(tmp_path / "folder")
    assert told in fault(str(tmp_path / "folder"))
    assert "Couldn't cast" not in capfd.readouterr().err
