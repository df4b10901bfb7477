"""What is checked once before training: own reviews are written down as the loader reads them, and are enough."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from alignkit.__main__ import main
from alignkit.faults import UserFault
from alignkit.pocket import generate_reviews
from alignkit.training import judge
from alignkit.workflow import intake, parameters, schema
from alignkit.world import foreign, own
from alignkit.world.models import new_policy, save, train_tokenizer
from alignkit.world.reviews import Reviews, load_reviews, prompts

FEW = {"train_reviews": None, "test_reviews": None, "unsupervised_reviews": None, "seeds": [0]}


@pytest.fixture(autouse=True)
def place(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write files in, beside an empty build folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def reviews() -> pd.DataFrame:
    return generate_reviews(500, 0)[["text", "label"]]


def given(data: Path | str, notebook: str = "1_reward_model", **changed: Any) -> Any:
    """The parameters of a notebook at tiny sizes for these reviews."""
    sizes = {"held_out": 40, "curve_reviews": [60]} if notebook == "1_reward_model" else {}
    values = {**FEW, "sft_held_out": 50, **sizes, **changed}
    return parameters.load(parameters.paths.PARAMS / "smoke" / f"{notebook}.yaml", str(data), **values)


def told(p: Any) -> list[str]:
    with pytest.raises(UserFault) as fault:
        p.check_reach()
    return str(fault.value).splitlines()


def write_folder(folder: Path, reviews: pd.DataFrame) -> Path:
    folder.mkdir()
    reviews[:400].to_parquet(folder / "train.parquet", index=False)
    reviews[400:].to_parquet(folder / "test.parquet", index=False)
    return folder


def test_reviews_that_the_loader_reads_as_they_are_stay_where_they_are(place: Path, reviews: pd.DataFrame):
    folder = write_folder(place / "reviews", reviews)
    p = given(folder)
    assert p.check_reach() == ["data: reviews: 'label' is the label (1: positive; 0: negative)"]
    assert p.reviews() == Reviews(str(folder))
    assert given("pocket", train_reviews=200).reviews().source == "pocket"


@pytest.mark.parametrize("named", [{}, {"text_column": "said", "label_column": "mood"}])
def test_other_files_are_checked_once_and_say_the_same_to_the_loader(
    place: Path, build: Path, reviews: pd.DataFrame, named: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    reviews.to_csv("plain.csv", index=False)
    text, label = named.values() or ("review", "sentiment")
    words = reviews.assign(**{label: reviews.label.map({0: "negative", 1: "positive"})}).drop(columns="label")
    words.rename(columns={"text": text}).to_csv("kaggle.csv", index=False)
    p = given("kaggle.csv", **named)
    (line,) = p.check_reach()
    assert line.startswith(f"data: kaggle.csv: '{text}' is the text; '{label}' is the label (positive: positive; neg")
    assert p.reviews().fingerprint() == Reviews("plain.csv").fingerprint()
    before = load_reviews("plain.csv", seed=3)
    assert p.reviews().load(3)["train"].to_pandas().equals(before["train"].to_pandas())
    monkeypatch.setattr(own, "read", lambda *_: pytest.fail("read again"))
    assert given("kaggle.csv", **named).check_reach() == [line]
    # The loader knows the common names; what is named here it finds under them.
    assert len(list((build / "cache").glob("reviews-*/reviews/data/t*.parquet"))) == len(named)


def test_unsupervised_reviews_arrive_as_well(place: Path, reviews: pd.DataFrame):
    splits = ["train"] * 300 + ["test"] * 100 + ["unsupervised"] * 100
    reviews.assign(split=splits).rename(columns={"text": "review"}).to_csv("r.csv", index=False)
    assert {n: len(split) for n, split in given("r.csv").reviews().load(0).items()} == {
        n: splits.count(n) for n in splits
    }
    hub = place / "hub" / "data"
    hub.mkdir(parents=True)
    for name, part in reviews.assign(split=splits).groupby("split"):
        part = part.assign(label=-1) if name == "unsupervised" else part
        part[["text", "label"]].to_parquet(hub / f"{name}-00000-of-00001.parquet", index=False)
    assert given(hub.parent).reviews().source == str(hub.parent)


def test_an_edited_file_is_read_again(place: Path, reviews: pd.DataFrame):
    reviews.rename(columns={"text": "review"}).to_csv("r.csv", index=False)
    before = given("r.csv").reviews().fingerprint()
    reviews.assign(text=reviews.text + " !").rename(columns={"text": "review"}).to_csv("r.csv", index=False)
    assert given("r.csv").reviews().fingerprint() != before


def test_names_by_parameter_enter_neither_data_nor_settings_of_a_run(place: Path, reviews: pd.DataFrame):
    reviews.to_csv("plain.csv", index=False)
    labels = reviews.label.map({0: "meh", 1: "wow"})
    pd.DataFrame({"words": reviews.text, "mood": labels}).to_csv("own.csv", index=False)
    own = given("own.csv", text_column="words", label_column="mood", positive="wow")
    assert own.positive == ["wow"]
    assert own.reviews().fingerprint() == given("plain.csv").reviews().fingerprint()
    assert own.sft() == given("plain.csv").sft()


def test_check_and_train_tell_a_fault_in_a_file_at_once(place: Path, capsys: pytest.CaptureFixture):
    Path("r.csv").write_text("text,label\ngood,1\n,0\n")
    file = parameters.paths.PARAMS / "smoke" / "1_reward_model.yaml"
    for command in (["check", str(file)], ["train", str(file), "--seed", "0"]):
        assert main([*command, "--data", "r.csv"]) == 2
        assert "row 1 (line 3): text '' with label '0'" in capsys.readouterr().err


def test_a_file_that_is_fine_passes_and_says_what_is_what(place: Path, reviews: pd.DataFrame, capsys):
    reviews.rename(columns={"text": "Review"}).to_csv("R.CSV", index=False)
    lines = [f"{key}: {value}".replace("None", "null") for key, value in FEW.items()]
    Path("1_reward_model.yaml").write_text("\n".join(["profile: smoke", "sft_held_out: 50", "held_out: 40",
                                                      "curve_reviews: [60]", *lines]))  # fmt: skip
    assert main(["check", "1_reward_model.yaml", "--data", "R.CSV"]) == 0
    assert capsys.readouterr().out == (
        "data: R.CSV: 'Review' is the text; 'label' is the label (1: positive; 0: negative); "
        "every fifth review is kept for tests\n"
    )


def test_faults_of_all_files_are_told_at_once_and_each_once(place: Path, reviews: pd.DataFrame, capsys):
    reviews.to_csv("r.csv", index=False)
    lines = [f"{key}: {value}".replace("None", "null") for key, value in FEW.items()]
    for name, value in (("4_warp", "prompts: 200"), ("5_improvements", "prompts: 200\nweak_reviews: [900]")):
        Path(f"{name}.yaml").write_text("\n".join(["profile: smoke", "sft_held_out: 50", value, *lines]))
    assert main(["check", "4_warp.yaml", "5_improvements.yaml", "--data", "r.csv"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == ["prompts", "weak_reviews"]


def test_a_build_folder_that_cannot_be_written_is_one_line(place: Path, reviews: pd.DataFrame, monkeypatch):
    reviews.to_csv("r.csv", index=False)
    Path("file").touch()
    monkeypatch.setenv("ALIGNKIT_BUILD", str(place / "file"))
    assert ["cannot be written" in line for line in told(given("r.csv"))] == [True]


# Few or short reviews


def test_twenty_reviews_are_told_in_a_line_for_each_split(place: Path, reviews: pd.DataFrame):
    reviews[:20].assign(label=[0, 1] * 10).to_csv("r.csv", index=False)
    assert told(given("r.csv")) == [
        "data: 'r.csv' has 16 train reviews; at least 80 are needed",
        "data: 'r.csv' has 4 test reviews; at least 20 are needed",
        "sft_held_out: 50 of 16 reviews; allowed: less, such as 3",
        "held_out: 40 and 60 of curve_reviews; allowed: 16 at most in all, half of each label",
    ]


@pytest.mark.parametrize(
    ("notebook", "changed", "line"),
    [
        ("1_reward_model", {"sft_held_out": 400}, "sft_held_out: 400 of 400 reviews; allowed: less, such as 80"),
        (
            "2_dpo_losses",
            {"sft_held_out": 250},
            "sft_held_out: 250 of 200 positive train reviews; allowed: less, such as",
        ),
        ("1_reward_model", {"curve_reviews": [400]}, "held_out: 40 and 400 of curve_reviews; allowed: 400 at most"),
        ("5_improvements", {"weak_reviews": [402]}, "weak_reviews: 402; allowed: at most the 400 train reviews"),
        ("4_warp", {"judge_reviews": 81}, "judge_reviews: 81; allowed: null (no judge), or 50 to 80, as"),
        ("4_warp", {"judge_reviews": 60, "prompts": 50}, "prompts: of 40 reviews 50 must be longer than a prompt of 5"),
        ("4_warp", {"prompts": 101}, "prompts: of 100 reviews 101 must be longer than a prompt of 5 to 20 tokens"),
        (
            "2_dpo_losses",
            {"pair_prompts": 500},
            "pair_prompts: of 400 reviews 500 must be longer than a prompt of 5 to 15",
        ),
        (
            "4_warp",
            {"train_reviews": 600},
            "train_reviews: 600 asked for, but the data has 400 in train; allowed: less",
        ),
    ],
)
def test_what_the_reviews_are_too_few_for_is_one_line(
    notebook: str, changed: dict[str, Any], line: str, place: Path, reviews: pd.DataFrame
):
    balanced = pd.concat([reviews[reviews.label == 1][:200], reviews[reviews.label == 0][:200], reviews[400:]])
    folder = place / "r"
    folder.mkdir()
    balanced[:400].to_parquet(folder / "train.parquet", index=False)
    generate_reviews(100, 9)[["text", "label"]].to_parquet(folder / "test.parquet", index=False)
    (said,) = told(given(folder, notebook, **changed))
    assert said.startswith(line)


def test_what_a_judge_needs_is_asked_as_its_training_asks_it():
    assert (intake.JUDGES, intake.FOLDS) == (judge.MOST, judge.FOLDS)
    assert f"ge={intake.LEAST_JUDGED})" in repr(schema.Judge)


def test_a_judge_needs_enough_reviews_of_each_label(place: Path, reviews: pd.DataFrame):
    test = generate_reviews(62, 9)[["text", "label"]]
    reviews.to_parquet(place / "train.parquet", index=False)
    test.to_parquet(place / "test.parquet", index=False)
    few = "judge_reviews: 50; allowed: null (no judge)"
    assert told(given(place, "4_warp", judge_reviews=50, prompts=5)) == [few]
    test = generate_reviews(100, 9)[["text", "label"]].sort_values("text")
    test.assign(label=[1] * 21 + [0] * 4 + [1] * 75).to_parquet(place / "test.parquet", index=False)
    (line,) = told(given(place, "4_warp", judge_reviews=60, prompts=5))
    assert line.startswith("judge_reviews: 60; allowed: null (no judge), or 50 to 80")
    assert line.endswith("with 5 of each label at least")


def test_short_texts_without_blanks_are_told_what_helps(place: Path):
    texts = [f"\u8fd9\u90e8\u7535\u5f71{i}\u5f88\u597d\u770b" for i in range(400)]
    pd.DataFrame({"text": texts, "label": [0, 1] * 200}).to_csv("r.csv", index=False)
    for line in told(given("r.csv", "4_warp")):
        assert ", and 0 are; allowed: longer reviews, or policy_tokenizer: bpe" in line


def test_tweets_are_told_what_makes_them_long_enough_and_then_are(place: Path):
    words = [f"film {i} was very good today said john" for i in range(400)]
    pd.DataFrame({"text": words, "label": [0, 1] * 200}).to_csv("r.csv", index=False)
    (line,) = [line for line in told(given("r.csv", "4_warp")) if line.startswith("data: ")]
    assert line.startswith("data: of 320 reviews 160 must be longer than a prompt of 5 to 15 tokens, and ")
    assert line.endswith("or policy_tokenizer: bpe with a small policy_vocab (more tokens)")
    changed = given("r.csv", "4_warp", policy_tokenizer="bpe", policy_vocab=270)
    assert changed.check_reach() == [
        "data: r.csv: 'label' is the label (1: positive; 0: negative); every fifth review is kept for tests"
    ]
    train = changed.reviews().load(0)["train"]["text"][:]
    assert len(prompts(train, train_tokenizer("bpe", train, 270), n=160, shortest=5, longest=15, seed=0)) == 160


def test_prompts_are_asked_for_with_every_seed(place: Path):
    words = [f"film {i} was very good today said john" + " again" * (i % 3) for i in range(400)]
    pd.DataFrame({"text": words, "label": [0, 1] * 200}).to_csv("r.csv", index=False)
    trains = [given("r.csv", "2_dpo_losses").reviews().load(seed)["train"]["text"][:] for seed in range(6)]
    tokenizer = train_tokenizer("word", trains[0], 2000)
    count = [intake._usable(tokenizer, 320, *one, 15) for one in zip(trains, range(6), strict=True)]
    low, high = int(np.argmin(count)), int(np.argmax(count))
    assert count[low] < count[high]
    sizes = {"policy_tokenizer": "word", "policy_vocab": 2000, "pair_prompts": count[high]}
    given("r.csv", "2_dpo_losses", seeds=[high], **sizes).check_reach()
    for seeds in ([high, low], [high, *(seed for seed in range(6) if count[seed] < count[high])]):  # the fewest of all
        (line,) = told(given("r.csv", "2_dpo_losses", seeds=seeds, **sizes))
        assert line.startswith("pair_prompts: ")
        assert f"and {count[low]} are; allowed: at most {count[low]}, or" in line


# Models


def test_a_policy_that_cannot_be_used_is_told_before_anything_is_trained(place: Path, build: Path, capsys):
    tokenizer = train_tokenizer("word", ["a good film ."], 100)
    save(place / "policy", new_policy(tokenizer, width=8, layers=1, heads=1, positions=40), tokenizer)
    Path("4_warp.yaml").write_text("profile: smoke\npolicy: policy\nnew_tokens: 48\n")
    assert main(["check", "4_warp.yaml"]) == 0
    capsys.readouterr()
    for command in (["check", "4_warp.yaml", "--reach"], ["train", "4_warp.yaml", "--seed", "0"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            "policy: 'policy' has 40 positions, and 68 are needed (sft_tokens: 64, or new_tokens: 48"
        )
    assert not (build / "store").exists()


def test_a_model_is_tried_once_and_again_when_it_has_changed(place: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = train_tokenizer("word", ["a good film ."], 100)
    model = new_policy(tokenizer, width=8, layers=1, heads=1, positions=128)
    save(place / "policy", model, tokenizer)
    tried: list[str] = []
    monkeypatch.setattr(foreign, "check_policy", lambda name, **_: tried.append(name))
    for _ in range(2):
        assert given("pocket", "4_warp", train_reviews=200, policy="policy").check_reach() == []
    save(place / "policy", new_policy(tokenizer, width=8, layers=2, heads=1, positions=128), tokenizer)
    given("pocket", "4_warp", train_reviews=200, policy="policy").check_reach()
    assert tried == ["policy"] * 2


@pytest.mark.parametrize("key", ["policy", "reward_model"])
def test_a_token_of_a_foreign_model_that_reviews_spell_is_told(
    key: str, place: Path, reviews: pd.DataFrame, monkeypatch
):
    tokenizer = train_tokenizer("word", ["a good film ."], 100)
    tokenizer.add_special_tokens({"eos_token": "~END~"})
    save(place / "model", new_policy(tokenizer, width=8, layers=1, heads=1, positions=128), tokenizer)
    for name in ("check_policy", "check_encoder"):
        monkeypatch.setattr(foreign, name, lambda *_, **__: None)
    reviews.to_csv("r.csv", index=False)
    assert len(given("r.csv", **{key: "model"}).check_reach()) == 1
    reviews.assign(text=[*reviews.text[:-1], "good ~END~ bad"]).to_csv("r.csv", index=False)
    (line,) = told(given("r.csv", **{key: "model"}))
    assert line == f"{key}: 'model' has '~END~', which reviews spell, for a token; take it out of them"


# What a world or a data set cannot serve


@pytest.mark.parametrize(
    ("notebook", "values", "said"),
    [
        ("2_dpo_losses", {"train_reviews": 1000, "sft_held_out": 500}, "sft_held_out: 500 of 500 positive"),
        ("2_dpo_losses", {"pair_prompts": 5000}, "pair_prompts: of 1200 reviews 5000 must be longer"),
        ("4_warp", {"prompts": 10_000, "test_reviews": 100}, "prompts: of 100 reviews 10000 must be longer"),
        ("4_warp", {"train_reviews": 100, "unsupervised_reviews": 10, "sft_held_out": 200}, "sft_held_out: 200 of 110"),
        ("4_warp", {"test_reviews": 4}, "data: 'pocket' has 4 test reviews; at least 20"),
    ],
)
def test_a_generated_world_is_asked_for_enough_before_training(notebook: str, values: dict[str, Any], said: str):
    p = parameters.load(parameters.paths.PARAMS / "smoke" / f"{notebook}.yaml", "", **values)
    assert [line for line in told(p) if line.startswith(said)]


def test_what_save_to_disk_wrote_is_told_what_to_write(place: Path, reviews: pd.DataFrame):
    DatasetDict(train=Dataset.from_pandas(reviews[:400]), test=Dataset.from_pandas(reviews[400:])).save_to_disk("disk")
    for folder, file in (("disk", "dataset_dict.json"), ("disk/test", "state.json")):
        (line,) = told(given(place / folder))
        assert f"has a {file}, so save_to_disk wrote it; allowed: parquet, CSV or JSON files" in line


def test_reviews_and_a_policy_below_the_home_are_found(place: Path, reviews: pd.DataFrame, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    reviews.to_csv(place / "own.csv", index=False)
    tokenizer = train_tokenizer("word", list(reviews.text), 500)
    save(place / "policy", new_policy(tokenizer, width=8, layers=1, heads=1, positions=128), tokenizer)
    p = given("~/own.csv", policy="~/policy")
    p.check_reach()
    assert (p.data, p.policy) == (str(place / "own.csv"), str(place / "policy"))
    assert len(p.reviews().load(0)["train"]) == 400
