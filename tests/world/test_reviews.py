"""Reviews from every source: sizes, seeds, cleaning, overlaps, fingerprints and faults in one line."""

import os
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.pocket import generate_reviews
from alignkit.world import reviews as loader
from alignkit.world import settle
from alignkit.world.known import GENERATORS
from alignkit.world.models import train_tokenizer
from alignkit.world.reach import absolute, check_data, check_model
from alignkit.world.reviews import SPLITS, fingerprint, load_reviews, prompts

POCKET = {"train_reviews": 400, "test_reviews": 200, "unsupervised_reviews": 100}


def reviews(name: str, n: int = 20) -> pd.DataFrame:
    """n reviews, sorted by label as IMDB is; unlabelled if the split is unsupervised."""
    labels = [-1] * n if name == "unsupervised" else [0] * (n // 2) + [1] * (n - n // 2)
    return pd.DataFrame({"text": [f"{name} review {i}" for i in range(n)], "label": labels})


def frames(**changed: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {name: reviews(name) for name in SPLITS} | changed


def write_folder(folder: Path, splits: dict[str, pd.DataFrame]) -> str:
    """The layout of a data set on the Hub."""
    (folder / "data").mkdir(parents=True)
    for name, frame in splits.items():
        frame.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet", index=False)
    return str(folder)


def write_csv(file: Path, splits: dict[str, pd.DataFrame]) -> str:
    pd.concat([frame.assign(split=name) for name, frame in splits.items()]).to_csv(file, index=False)
    return str(file)


WRITERS = pytest.mark.parametrize(
    "write", [lambda p, s: write_folder(p / "folder", s), lambda p, s: write_csv(p / "r.csv", s)], ids=["folder", "csv"]
)
Writer = Callable[[Path, dict[str, pd.DataFrame]], str]


def rows(split: Dataset) -> list[tuple[str, int]]:
    return list(zip(split["text"], split["label"], strict=True))


def row_sets(loaded: DatasetDict) -> dict[str, list[tuple[str, int]]]:
    return {name: sorted(rows(split)) for name, split in loaded.items()}


# The pocket world


@pytest.mark.parametrize(("asked", "sizes"), [(POCKET, (400, 200, 100)), ({}, (25_000, 12_500, 50_000))])
def test_pocket_reviews_have_the_sizes_asked_for_and_balanced_labels(asked: dict[str, int], sizes) -> None:
    splits = load_reviews("pocket", seed=0, **asked)
    loaded = [splits[name].to_pandas() for name in SPLITS]
    assert tuple(map(len, loaded)) == sizes
    assert [frame.label.sum() for frame in loaded] == [sizes[0] / 2, sizes[1] / 2, -sizes[2]]
    train, test, unsupervised = (set(frame.text) for frame in loaded)
    assert not train & test
    assert not unsupervised & (train | test)


# Seeds


def test_pocket_reviews_are_the_same_for_every_seed_in_another_order() -> None:
    first, again, other = (load_reviews("pocket", seed=seed, **POCKET) for seed in (0, 0, 1))
    for name in SPLITS:
        assert rows(first[name]) == rows(again[name]) != rows(other[name])
    assert row_sets(first) == row_sets(other)


@WRITERS
def test_local_reviews_are_the_same_for_every_seed_in_another_order(tmp_path: Path, write: Writer) -> None:
    source = write(tmp_path, frames())
    first, again, other = (load_reviews(source, seed=seed) for seed in (3, 3, 4))
    for name in SPLITS:
        assert rows(first[name]) == rows(again[name]) != rows(other[name])
    assert row_sets(first) == row_sets(other)


@WRITERS
def test_a_cut_split_is_balanced_and_the_same_for_every_seed(tmp_path: Path, write: Writer) -> None:
    source = write(tmp_path, frames(train=reviews("train", 60)))
    first, other = (load_reviews(source, seed=seed, train_reviews=20, test_reviews=8) for seed in (0, 1))
    for name, size in {"train": 20, "test": 8}.items():
        assert len(first[name]) == size
        assert sum(first[name]["label"]) == size / 2
        assert sorted(rows(first[name])) == sorted(rows(other[name]))
    assert len(first["unsupervised"]) == 20


# Local sources


@WRITERS
def test_local_reviews_come_as_they_were_written(tmp_path: Path, write: Writer) -> None:
    written = frames()
    loaded = load_reviews(write(tmp_path, written), seed=0)
    assert list(loaded) == list(SPLITS)
    assert all(split.column_names == ["text", "label"] for split in loaded.values())
    expected = {name: sorted(frame.itertuples(index=False, name=None)) for name, frame in written.items()}
    assert row_sets(loaded) == expected


@WRITERS
def test_a_source_needs_no_unsupervised_reviews(tmp_path: Path, write: Writer) -> None:
    written = {name: reviews(name) for name in ("train", "test")}
    assert list(load_reviews(write(tmp_path, written), seed=0)) == ["train", "test"]


def test_a_csv_without_a_split_gives_every_fifth_review_to_test(tmp_path: Path) -> None:
    frame = reviews("some", 50)
    frame.to_csv(tmp_path / "r.csv", index=False)
    loaded = load_reviews(str(tmp_path / "r.csv"), seed=0)
    assert sorted(loaded["test"]["text"]) == sorted(frame.text[4::5])
    assert sorted([*loaded["train"]["text"], *loaded["test"]["text"]]) == sorted(frame.text)


@WRITERS
@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("good<br />film", "good film"),
        ("good<br /><br />film<br/>.<br>", "good film ."),
        ("  good \t\n\n film ", "good film"),
        ("a < b, <b>bold</b>", "a < b, <b>bold</b>"),
    ],
)
def test_line_breaks_and_white_space_become_one_blank(tmp_path: Path, write: Writer, raw: str, clean: str) -> None:
    frame = reviews("train")
    frame.loc[7, "text"] = raw
    assert (clean, 0) in rows(load_reviews(write(tmp_path, frames(train=frame)), seed=0)["train"])


@WRITERS
def test_train_is_kept_whole_and_later_splits_lose_what_earlier_ones_hold(tmp_path: Path, write: Writer) -> None:
    written = {
        "train": pd.DataFrame({"text": ["a", "a", "b", "c"], "label": [1, 1, 0, 1]}),
        "test": pd.DataFrame({"text": ["<br />b ", "d", "e", "c", "d"], "label": [0, 1, 0, 0, 1]}),
        "unsupervised": pd.DataFrame({"text": ["a", "d<br>", "f", "e"], "label": -1}),
    }
    loaded = load_reviews(write(tmp_path, written), seed=0)
    assert row_sets(loaded) == {
        "train": [("a", 1), ("a", 1), ("b", 0), ("c", 1)],
        "test": [("d", 1), ("d", 1), ("e", 0)],
        "unsupervised": [("f", -1)],
    }


# Fingerprints


def test_a_fingerprint_depends_on_neither_place_nor_order(tmp_path: Path) -> None:
    written = frames()
    backwards = {name: frame[::-1] for name, frame in written.items()}
    prints = {
        fingerprint(write_folder(tmp_path / "folder", written)),
        fingerprint(write_csv(tmp_path / "r.csv", written)),
        fingerprint(write_csv(tmp_path / "backwards.csv", backwards)),
    }
    assert len(prints) == 1


def test_a_fingerprint_of_cut_reviews_is_that_of_the_cut(tmp_path: Path) -> None:
    folder, csv = write_folder(tmp_path / "folder", frames()), write_csv(tmp_path / "r.csv", frames())
    assert fingerprint(folder, train_reviews=10) == fingerprint(csv, train_reviews=10) != fingerprint(folder)


@pytest.mark.parametrize("name", SPLITS)
def test_a_fingerprint_changes_with_one_text(tmp_path: Path, name: str) -> None:
    changed = reviews(name)
    changed.loc[3, "text"] += " !"
    before, after = write_csv(tmp_path / "a.csv", frames()), write_csv(tmp_path / "b.csv", frames(**{name: changed}))
    assert fingerprint(before) != fingerprint(after)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_fingerprint_changes_with_one_label(tmp_path: Path, name: str) -> None:
    changed = reviews(name)
    changed.loc[3, "label"] = 1
    before, after = write_csv(tmp_path / "a.csv", frames()), write_csv(tmp_path / "b.csv", frames(**{name: changed}))
    assert fingerprint(before) != fingerprint(after)


# Faults


def one_line(fault: pytest.ExceptionInfo[UserFault]) -> str:
    (line,) = str(fault.value).splitlines()
    return line


def missing_path(folder: Path) -> str:
    return str(folder / "missing")


def empty_folder(folder: Path) -> str:
    return str(folder)


def text_file(folder: Path) -> str:
    (folder / "reviews.txt").write_text("good film")
    return str(folder / "reviews.txt")


def bytes_named_csv(folder: Path) -> str:
    (folder / "reviews.csv").write_bytes(bytes(range(256)) * 20)
    return str(folder / "reviews.csv")


def empty_csv(folder: Path) -> str:
    (folder / "reviews.csv").touch()
    return str(folder / "reviews.csv")


def bytes_named_parquet(folder: Path) -> str:
    (folder / "data").mkdir()
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"junk")
    return str(folder)


def no_labels(folder: Path) -> str:
    return write_csv(folder / "r.csv", {"train": reviews("train").drop(columns="label")})


def label_2(folder: Path) -> str:
    return write_csv(folder / "r.csv", frames(test=reviews("test").replace({"label": {1: 2}})))


def label_in_words(folder: Path) -> str:
    words = {name: reviews(name).replace({"label": {0: "so-so"}}) for name in ("train", "test")}
    return write_csv(folder / "r.csv", words)


def empty_text(folder: Path) -> str:
    frame = reviews("train")
    frame.loc[6, "text"] = None
    return write_csv(folder / "r.csv", frames(train=frame))


def blank_text(blank: str) -> Callable[[Path], str]:
    return lambda folder: write_folder(folder / "f", frames(test=reviews("test").replace("test review 3", blank)))


def numbers_for_texts(folder: Path) -> str:
    numbers = {name: reviews(name).assign(text=range(20)) for name in ("train", "test")}
    return write_csv(folder / "r.csv", numbers)


def one_label_in_words(folder: Path) -> str:
    train = reviews("train").astype({"label": object})
    train.loc[4, "label"] = "so-so"
    return write_csv(folder / "r.csv", frames(train=train))


def row_without_split(folder: Path) -> str:
    return write_csv(folder / "r.csv", {"train": reviews("train"), None: reviews("some"), "test": reviews("test")})


def unknown_splits(folder: Path) -> str:
    return write_csv(folder / "r.csv", {"learn": reviews("train"), "exam": reviews("test")})


def commas_without_quotes(folder: Path) -> str:
    (folder / "r.csv").write_text("text,label\na good film, truly,1\n")
    return str(folder / "r.csv")


def all_test_reviews_in_train(folder: Path) -> str:
    return write_folder(folder / "f", frames(test=reviews("train")))


def one_label(split: str) -> Callable[[Path], str]:
    return lambda folder: write_folder(folder / "f", frames(**{split: reviews(split).assign(label=1)}))


def no_test_split(folder: Path) -> str:
    return write_folder(folder / "f", {name: reviews(name) for name in ("train", "unsupervised")})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing_path, ["does not exist", "'pocket', 'letters', a folder", "CSV", "Hub id"]),
        (empty_folder, ["is not a file or folder of reviews", ".parquet"]),
        (text_file, ["is not a file or folder of reviews", ".csv"]),
        (bytes_named_csv, ["cannot be read as CSV"]),
        (empty_csv, ["is empty", "a header and reviews are needed"]),
        (bytes_named_parquet, ["cannot be read as a data set"]),
        (no_labels, ["split train", "no column 'label'", "its columns are text", "label_column"]),
        (label_2, ["row 30 (line 32)", "label '2'", "allowed here: 0, 1", "'test review 10'"]),
        (label_in_words, ["'so-so'", "set positive"]),
        (empty_text, ["row 6 (line 8)", "text must not be empty"]),
        (no_test_split, ["no split 'test'", "found train, unsupervised"]),
        (blank_text("  "), ["split test", "row 3", "text must not be empty, blank"]),
        (blank_text("<br /><br>"), ["split test", "row 3", "'<br /><br>'", "text must not be empty, blank"]),
        (numbers_for_texts, ["column 'text'", "holds no text", "text_column"]),
        (one_label_in_words, ["row 4 (line 6): text 'train review 4' with label 'so-so'", "allowed here: 0, 1"]),
        (row_without_split, ["row 20", "unknown split; found ''", "train, test, unsupervised"]),
        (unknown_splits, ["row 0 (line 2)", "found 'learn', 'exam'", "train, test, unsupervised"]),
        (commas_without_quotes, ["more cells than its header", "in quotes"]),
        (all_test_reviews_in_train, ["split test", "no review of its own"]),
        (one_label("train"), ["every review of train has label 1", "0 and 1 are needed"]),
        (one_label("test"), ["every review of test has label 1", "0 and 1 are needed"]),
    ],
)
def test_bad_data_is_a_fault_that_names_what_where_and_what_is_allowed(tmp_path: Path, make, words: list[str]) -> None:
    source = make(tmp_path)
    with pytest.raises(UserFault) as fault:
        load_reviews(source, seed=0)
    line = one_line(fault)
    assert [word for word in ["data:", repr(source), *words] if word not in line] == []


def test_reviews_come_in_the_order_of_their_texts_however_they_lie(tmp_path: Path) -> None:
    """Their fingerprint says nothing of their order, so that this may hang on nothing else."""
    source = write_csv(tmp_path / "r.csv", frames(train=reviews("train")[::-1]))
    for sizes in ((None, None, None), (6, 6, 6)):
        for split in [*loader._load(source, (), sizes).values(), *loader._load("pocket", (), (40, 20, 20)).values()]:
            assert list(split["text"]) == sorted(split["text"])


@pytest.mark.parametrize("name", SPLITS)
def test_a_size_beyond_the_data_is_a_fault_that_names_both(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "f", frames(**{name: reviews(name, 12)}))
    with pytest.raises(UserFault) as fault:
        load_reviews(source, seed=0, **{f"{name}_reviews": 14})
    line = one_line(fault)
    assert line.startswith(f"{name}_reviews: 14 ")
    assert "12" in line


def test_labels_of_unsupervised_reviews_play_no_part(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "f", frames(unsupervised=reviews("more").assign(label=[0, 1] * 10)))
    assert set(load_reviews(source, seed=0)["unsupervised"]["label"]) == {-1}


def test_a_wrong_label_is_shown_as_a_plain_number(tmp_path: Path) -> None:
    with pytest.raises(UserFault, match="label '2'; labels") as fault:
        load_reviews(label_2(tmp_path), seed=0)
    assert "int64" not in one_line(fault)


@pytest.mark.parametrize("word", ["NA", "null", "nan", "None"])
def test_a_review_that_reads_like_a_missing_value_is_a_text(tmp_path: Path, word: str) -> None:
    source = write_csv(tmp_path / "r.csv", frames(train=reviews("train").replace("train review 3", word)))
    assert (word, 0) in rows(load_reviews(source, seed=0)["train"])


def test_a_cut_of_unbalanced_reviews_has_the_size_asked_for_or_is_a_fault(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "r.csv", frames(train=reviews("train").assign(label=[0] * 17 + [1] * 3)))
    assert sorted(load_reviews(source, seed=0, train_reviews=6)["train"]["label"]) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserFault) as fault:
        load_reviews(source, seed=0, train_reviews=8)
    assert one_line(fault).startswith("train_reviews: 8 asked for, half of each label, but train has 3 with label 1")


@WRITERS
def test_edited_reviews_are_read_again_in_the_same_process(tmp_path: Path, write: Writer) -> None:
    written = frames()
    source = write(tmp_path, written)
    before = fingerprint(source), row_sets(load_reviews(source, seed=0))
    written["train"].loc[3, "text"] += " !"
    other = write(tmp_path / "other" if Path(source).is_dir() else tmp_path, written)
    for file in Path(other).rglob("*.parquet"):
        file.replace(Path(source) / file.relative_to(other))
    after = fingerprint(source), row_sets(load_reviews(source, seed=0))
    assert before[0] != after[0]
    assert ("train review 3 !", 0) in after[1]["train"]


# Reach


@pytest.fixture
def no_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face home, and the network allowed."""
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


@pytest.fixture
def hub(no_hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hub that answers, with the status that is set."""

    class Answer(BaseHTTPRequestHandler):
        status = 200

        def do_HEAD(self) -> None:
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with socketserver.TCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        yield Answer
        server.shutdown()


def reach(key: str, name: str) -> None:
    if key == "data":
        check_data(name)
    else:
        check_model(key, name)


KEYS = pytest.mark.parametrize("key", ["data", "policy", "reward_model"])


def check_out_of_reach(key: str) -> None:
    with pytest.raises(UserFault) as fault:
        reach(key, "some-one/some.thing")
    line = one_line(fault)
    assert line.startswith(f"{key}: 'some-one/some.thing'")
    assert f"set {key} to" in line


@KEYS
def test_a_hub_id_out_of_reach_is_told_soon(no_hub_cache: Path, monkeypatch, key: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    check_out_of_reach(key)
    assert time.monotonic() - started < 10


@KEYS
def test_the_hub_is_not_asked_when_told_to_stay_offline(hub: None, monkeypatch, key: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_out_of_reach(key)


@pytest.mark.parametrize(
    ("said", "offline"), [("false", False), ("No", False), ("0", False), ("", False), ("true", True)]
)
def test_offline_is_what_the_variable_says_in_words_or_numbers(
    said: str, offline: bool, hub: None, monkeypatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", said)
    settle()
    if offline:
        check_out_of_reach("data")
    else:
        reach("data", "some-one/some.thing")


@pytest.mark.slow
def test_training_reports_nothing_to_the_hub(alone, monkeypatch) -> None:
    """Its thread and libraries that empty the environment for a moment end a process now and then."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    code = "import threading, alignkit.training.dpo; from huggingface_hub.utils import send_telemetry"
    done = alone("-c", f"{code}; before = threading.active_count(); send_telemetry('trainer'); "
                 "assert threading.active_count() == before")  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_hubs_variables_are_settled_before_a_trainer_reads_them(alone, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", "")
    code = "import alignkit.training.dpo; from huggingface_hub.constants import HF_HOME; assert HF_HOME"
    assert alone("-c", code).returncode == 0


CACHES = [("HOME", "home"), ("XDG_CACHE_HOME", "home"), ("HF_HOME", "home/x"), ("HF_DATASETS_CACHE", "home")]


@pytest.mark.parametrize(("variable", "place"), CACHES)
def test_a_folder_is_read_where_the_cache_cannot_be_written(
    variable: str, place: str, tmp_path: Path, alone, monkeypatch
) -> None:
    (tmp_path / "home").write_text("a file, so that nothing can be written below it")
    for name in ("HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / place))
    monkeypatch.setenv("ALIGNKIT_BUILD", str(tmp_path / "build"))
    (tmp_path / "reviews").mkdir()
    for name in ("train", "test"):
        reviews(name).to_parquet(tmp_path / "reviews" / f"{name}.parquet")
    code = f"from alignkit.world.reviews import load_reviews; load_reviews({str(tmp_path / 'reviews')!r}, seed=0)"
    done = alone("-c", code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "build" / "cache").is_dir()


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE"])
def test_an_empty_cache_is_not_the_working_folder(variable: str, tmp_path: Path, monkeypatch) -> None:
    for name in ("HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(variable, "")
    monkeypatch.chdir(tmp_path)
    settle()
    assert variable not in os.environ
    assert [file.name for file in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("place", ["~nosuchuser/x", "here"])
def test_a_relative_cache_is_named_in_full(place: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("HF_DATASETS_CACHE")
    monkeypatch.setenv("HF_HOME", place)
    monkeypatch.chdir(tmp_path)
    settle()
    assert os.environ["HF_DATASETS_CACHE"] == str(tmp_path / place / "datasets")


@KEYS
def test_the_home_of_nobody_is_a_path_that_does_not_exist(key: str) -> None:
    with pytest.raises(UserFault) as fault:
        reach(key, "~nosuchuser/x")
    assert one_line(fault).startswith(f"{key}: '~nosuchuser/x' does not exist")
    assert absolute("~nosuchuser/x") == paths.expanded("~nosuchuser/x") == "~nosuchuser/x"


@pytest.mark.parametrize("world", list(GENERATORS))
def test_a_folder_of_a_worlds_name_is_not_taken_for_it(world: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / world).mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute(world) == world
    assert absolute(f"./{world}") == str(tmp_path / world)


@KEYS
def test_a_hub_id_is_fine_where_the_hub_answers(hub: None, key: str) -> None:
    reach(key, "some-one/some.thing")


@KEYS
def test_a_proxy_that_answers_with_an_error_is_not_the_hub(hub: Any, key: str) -> None:
    hub.status = 503
    check_out_of_reach(key)


@pytest.mark.parametrize("source", ["reviews/mine.csv", "reviews/mine.parquet", "here/missing"])
def test_a_misspelt_local_path_is_not_taken_for_a_hub_id(hub: Any, tmp_path: Path, monkeypatch, source: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    for key in ("data", "policy"):
        with pytest.raises(UserFault) as fault:
            reach(key, source)
        assert one_line(fault).startswith(f"{key}: {source!r} does not exist")


@KEYS
def test_a_hub_id_in_the_cache_needs_no_network(no_hub_cache: Path, monkeypatch, key: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = "datasets/some-one___some.thing" if key == "data" else "hub/models--some-one--some.thing"
    (no_hub_cache / cached).mkdir(parents=True)
    reach(key, "some-one/some.thing")


@KEYS
def test_what_lies_here_needs_no_hub(no_hub_cache: Path, monkeypatch, key: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reach(key, str(no_hub_cache))
    reach(key, "pocket" if key == "data" else "scratch")


@pytest.mark.parametrize("name", ["no such name", "../missing/model", "a/b/c"])
def test_a_model_name_that_cannot_be_one_is_told_what_is_allowed(hub: None, name: str) -> None:
    with pytest.raises(UserFault) as fault:
        check_model("policy", name)
    assert one_line(fault).startswith(f"policy: {name!r}")
    assert "'scratch', a model's folder, or a Hub id" in one_line(fault)


# Prompts


TEXTS = generate_reviews(1000, seed=5).text.tolist()


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_prompts_are_beginnings_of_5_to_15_tokens(kind: str) -> None:
    tokenizer = train_tokenizer(kind, TEXTS, 400)
    found = prompts(TEXTS, tokenizer, n=300, shortest=5, longest=15, seed=0)
    assert len(found) == 300
    following = iter(TEXTS[:400])
    assert all(any(text.startswith(prompt) and text != prompt for text in following) for prompt in found)
    assert {len(ids) for ids in tokenizer(found)["input_ids"]} == set(range(5, 16))


def test_prompts_are_drawn_with_the_seed() -> None:
    tokenizer = train_tokenizer("word", TEXTS, 400)
    first, again, other = (prompts(TEXTS, tokenizer, n=50, shortest=5, longest=15, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_texts_not_longer_than_the_prompt_are_passed_over() -> None:
    tokenizer = train_tokenizer("word", ["a b c d"], 10)
    found = prompts(["a b", "a b c", "a b c d", "d c b a"], tokenizer, n=2, shortest=3, longest=3, seed=0)
    assert found == ["a b c", "d c b"]


def test_a_prompt_of_unknown_words_is_the_beginning_of_its_text() -> None:
    tokenizer = train_tokenizer("word", ["a b c"], 10)
    assert prompts(["a b zzz c a b"], tokenizer, n=1, shortest=4, longest=4, seed=0) == ["a b zzz c"]


def test_a_prompt_does_not_end_inside_a_character() -> None:
    tokenizer = train_tokenizer("bpe", ["a b c"], 300)
    film = "a b 🎬🎬 c"  # three tokens, four for each 🎬, one
    for seed in range(20):
        (found,) = prompts([film], tokenizer, n=1, shortest=2, longest=11, seed=seed)
        assert found in ("a b", "a b ", "a b 🎬", "a b 🎬🎬")
    # Not shorter than the shortest: such a text is passed over.
    assert prompts([film, "a b a b a b"], tokenizer, n=1, shortest=5, longest=5, seed=0) == ["a b a b"]


def test_too_few_long_reviews_are_a_fault_that_names_both_numbers() -> None:
    tokenizer = train_tokenizer("word", ["a b c d"], 10)
    with pytest.raises(UserFault) as fault:
        prompts(["a b c d", "a b"], tokenizer, n=2, shortest=3, longest=3, seed=0)
    line = one_line(fault)
    assert "prompts: 2" in line
    assert "only 1" in line
