"""Parameters: what is shipped passes, and each fault is one line that says where, what, and what is allowed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import paths
from alignkit.__main__ import main
from alignkit.faults import UserFault
from alignkit.workflow import parameters, schema

NOTEBOOK = "1_reward_model"
POCKET = parameters.profile_values("pocket", NOTEBOOK)
SHIPPED = sorted(paths.PARAMS.glob("*/*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / f"{NOTEBOOK}.yaml"


def check(file: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """The lines of `python -m alignkit check`, which must exit with 2 if there are any."""
    code = main(["check", str(file)])
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert code == (2 if lines else 0)
    assert told.out == ""
    return lines


# What is shipped


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_shipped_file_passes_and_is_for_the_profile_of_its_folder(shipped: Path, capsys: pytest.CaptureFixture):
    assert check(shipped, capsys) == []
    assert parameters.load(shipped).profile == shipped.parent.name


def test_the_profiles_of_the_readme_are_shipped():
    assert {file.parent.name for file in SHIPPED} == {"smoke", "pocket", "imdb_scratch", "imdb"}


def test_checking_all_shipped_files_answers_without_importing_a_deep_learning_library(alone):
    code = (
        "import sys; from alignkit.__main__ import main; code = main(['check', 'params']);"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules); sys.exit(code)"
    )
    done = alone("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


# Faults

NUMBER = "a whole number >= 1, <= 4096"
FAULTS = {
    "an unknown key": ("sft_bach: 64", ["sft_bach: unknown key", "sft_batch"]),
    "a nested key": ("sft:\n  batch: 64", ["sft: unknown key"]),
    "a key that is a number": ("1: 2", ["1: unknown key"]),
    "a key that is null": ("null: 2", ["unknown key"]),
    "a key of two lines": ('"a\\nb": 2', ["unknown key"]),
    "text for a number": ("sft_batch: many", ["sft_batch: 'many' (text)", NUMBER]),
    "1e-5, which YAML reads as text": ("reward_lr: 1e-5", ["reward_lr: '1e-5' (text)", "> 0, <= 0.1", "write 1.0e-5"]),
    "a quoted number": ("sft_batch: '64'", ["sft_batch: '64' (text)", NUMBER]),
    "a truth value for a whole number": ("sft_batch: true", ["sft_batch: true", NUMBER]),
    "a fraction for a whole number": ("sft_batch: 64.0", ["sft_batch: 64.0", NUMBER]),
    "a date for a number": ("sft_batch: 2020-01-01", ["sft_batch: ", NUMBER]),
    "a list for a number": ("sft_batch: [64]", ["sft_batch: [64]", NUMBER]),
    "a mapping for a number": ("sft_batch: {size: 64}", ["sft_batch: {'size': 64}", NUMBER]),
    "a number for text": ("data: 3", ["data: 3", "text"]),
    "a whole number below its range": ("sft_batch: 0", ["sft_batch: 0", NUMBER]),
    "a whole number above its range": ("sft_batch: 4097", ["sft_batch: 4097", NUMBER]),
    "a share of one": ("reward_dropout: 1.0", ["reward_dropout: 1.0", ">= 0, < 1"]),
    "a learning rate of zero": ("reward_lr: 0.0", ["reward_lr: 0.0", "> 0, <= 0.1"]),
    "an odd batch": ("reward_batch: 33", ["reward_batch: 33", "a multiple of 2"]),
    "an odd number of reviews": ("train_reviews: 2001", ["train_reviews: 2001", "a multiple of 2 or null"]),
    "not a number": ("reward_lr: .nan", ["reward_lr: nan", "> 0, <= 0.1"]),
    "infinity": ("reward_lr: .inf", ["reward_lr: inf", "> 0, <= 0.1"]),
    "infinity without bounds in the way": ("reward_epochs: -.inf", ["reward_epochs: -inf", "> 0, <= 100"]),
    "null where it is not allowed": ("sft_batch: null", ["sft_batch: ", NUMBER]),
    "an unknown choice": ("policy_tokenizer: words", ["policy_tokenizer: 'words'", "'word' or 'bpe'"]),
    "empty text": ("data: ''", ["data: ''"]),
    "a profile that is no name": ("profile: ../pocket", ["profile: '../pocket'", "matching ^[a-z]"]),
    "a number for a list": ("seeds: 0", ["seeds: 0", "a list of 1 to 20 items"]),
    "an empty list": ("seeds: []", ["seeds: []", "a list of 1 to 20 items"]),
    "a list that is too long": (f"seeds: {[*range(21)]}", ["seeds: [0, 1,", "a list of 1 to 20 items"]),
    "a wrong item of a list": ("seeds: [0, one]", ["seeds[1]: 'one' (text)", "each a whole number >= 0"]),
    "an item out of range": ("seeds: [0, 1, -1]", ["seeds[2]: -1", "each a whole number >= 0"]),
    "a list in a list": ("seeds: [[0]]", ["seeds[0]: [0]"]),
    "a seed given twice": ("seeds: [1, 0, 1]", ["seeds: [1, 0, 1]", "twice"]),
    "a key given twice": ("sft_batch: 64\nsft_lr: 0.1\nsft_batch: 32", ["sft_batch: given twice"]),
    "a policy width that its heads do not divide": ("policy_width: 130", ["policy_width: 130", "policy_heads (4)"]),
    "a reward width that its heads do not divide": ("reward_heads: 7", ["reward_width: 64", "reward_heads (7)"]),
    "more held-out reviews than there are": ("held_out: 30000", ["held_out", "train_reviews (25000)"]),
    "a curve longer than the reviews": ("curve_reviews: [30000]", ["curve_reviews", "train_reviews (25000)"]),
    "an unknown notebook": ("notebook: 9_none", ["notebook: '9_none'", "allowed: 0_primer, 1_reward_model"]),
    "a notebook that is a list": (
        f"notebook: [{NOTEBOOK}]",
        ["notebook: ['1_reward_model']", "allowed: 0_primer, 1_reward_model"],
    ),
    "no notebook": ("notebook: null", ["notebook: ", "allowed: 0_primer, 1_reward_model"]),
    "an empty file": ("", ["key: value"]),
    "a file of comments": ("# nothing yet", ["key: value"]),
    "a list in place of a mapping": ("- sft_batch", ["key: value"]),
    "bare text": ("sft_batch", ["key: value"]),
    "broken YAML": ("seeds: [0, 1\n", ["cannot be read as YAML"]),
    "a tab": ("seeds:\t- 0", ["cannot be read as YAML"]),
    "two documents": ("sft_batch: 8\n---\nsft_batch: 9", ["cannot be read as YAML"]),
    "a Python object": ("data: !!python/object/apply:os.getcwd []", ["cannot be read as YAML"]),
    "a day that no calendar has": ("sft_batch: 2020-02-31", ["cannot be read as YAML"]),
    "a number of five thousand digits": (f"sft_batch: {'1' * 5000}", ["cannot be read as YAML"]),
    "an endless list": (f"seeds: {'[' * 3000}", ["cannot be read as YAML"]),
}


@pytest.mark.parametrize(("text", "told"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_is_one_line_with_file_key_value_and_what_is_allowed(
    text: str, told: list[str], file: Path, capsys: pytest.CaptureFixture
):
    file.write_text(text)
    lines = check(file, capsys)
    assert len(lines) == 1
    assert lines[0].startswith(f"{file}: ")
    for part in told:
        assert part in lines[0]


def test_a_missing_file_is_one_line(file: Path, capsys: pytest.CaptureFixture):
    assert [line.startswith(f"{file}: cannot be read") for line in check(file, capsys)] == [True]


def test_a_file_that_is_not_text_is_one_line(file: Path, capsys: pytest.CaptureFixture):
    file.write_bytes(b"\xff\xfe\x00\x80")
    assert [line.startswith(f"{file}: cannot be read") for line in check(file, capsys)] == [True]


def test_a_folder_without_parameter_files_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert check(tmp_path, capsys) == [f"{tmp_path}: holds no parameter file (*.yaml)"]


def test_a_file_named_after_a_notebook_must_be_for_it(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(parameters.NOTEBOOKS, "2_other", schema.RewardModel)
    file.write_text("notebook: 2_other")
    assert [NOTEBOOK in line for line in check(file, capsys)] == [True]
    free = tmp_path / "mine.yaml"
    free.write_text(f"notebook: {NOTEBOOK}")
    assert check(free, capsys) == []


def test_a_missing_parameter_is_one_line():
    rest = {key: value for key, value in POCKET.items() if key != "sft_lr"}
    assert parameters.faults(rest, "here") == ["here: sft_lr: missing; allowed: a number > 0, <= 0.1"]


def test_several_faults_are_several_lines(file: Path, capsys: pytest.CaptureFixture):
    file.write_text("sft_batch: 0\nreward_lr: fast\nseeds: [0, x, y]\nno_such_key: 1")
    told = [line.removeprefix(f"{file}: ").split(":")[0] for line in check(file, capsys)]
    assert sorted(told) == ["no_such_key", "reward_lr", "seeds[1]", "seeds[2]", "sft_batch"]


def test_all_files_of_a_folder_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{NOTEBOOK}.yaml").write_text("sft_batch: 0")
    assert len(check(tmp_path, capsys)) == 2


def test_a_partial_file_is_filled_from_the_pocket_values(file: Path, capsys: pytest.CaptureFixture):
    file.write_text("sft_batch: 8")
    assert check(file, capsys) == []
    assert parameters.load(file).model_dump() == {**POCKET, "sft_batch": 8}


def test_the_command_line_prints_the_fault_without_a_traceback_and_exits_with_2(file: Path, alone):
    file.write_text("reward_lr: 1e-5")
    done = alone("-m", "alignkit", "check", str(file))
    assert done.returncode == 2
    assert (len(done.stderr.splitlines()), done.stdout) == (1, "")
    assert "write 1.0e-5" in done.stderr


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.dates()
    | st.sampled_from([0, 1, 2, 64, -1, 0.5, 10**400, "scratch", "pocket", "1e-5", [0, 0], "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2),
    max_leaves=5,
)
keys = st.sampled_from(list(POCKET)) | st.text(max_size=12) | st.integers() | st.none()


@settings(max_examples=150, deadline=None)
@given(changed=st.dictionaries(keys, values, min_size=1, max_size=3))
def test_any_value_at_any_key_is_right_or_told_in_one_line_for_each_fault(changed: dict[Any, Any]):
    lines = parameters.faults({**POCKET, **changed}, "here")
    if lines:
        assert all(line.startswith("here: ") and line.splitlines() == [line] for line in lines)
        assert len(lines) == len(set(lines))
    else:
        assert set(changed) <= set(POCKET)
        parameters.NOTEBOOKS[NOTEBOOK].model_validate({**POCKET, **changed})


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60) | st.builds(lambda key, value: f"{key}: {value}", keys, values))
def test_any_text_is_a_file_of_parameters_or_told_in_one_line_for_each_fault(tmp_path_factory, text: str):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8", errors="replace")
    assert all(line.startswith(f"{file}: ") for line in parameters.check([file]))


# The other commands


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("sft_batch: 0", ["--seed", "0"], "sft_batch: 0"),
        ("sft_batch: 8", ["--seed", "-1"], "seeds[0]: -1"),
        ("sft_batch: 8", ["--seed", "0", "--data", "nowhere.csv"], "data: 'nowhere.csv' does not exist"),
        ("policy: ./nowhere", ["--seed", "0"], "policy: './nowhere' does not exist"),
        ("reward_model: no/such", ["--seed", "0"], "reward_model: 'no/such' is a Hub id"),
        ("", ["--seed", "0"], "key: value"),
    ],
    ids=["value", "seed", "data", "policy", "Hub", "empty"],
)
def test_train_with_a_wrong_file_exits_with_2_and_one_line_and_leaves_the_store_alone(
    text: str, arguments: list[str], told: str, file: Path, build: Path, capsys: pytest.CaptureFixture
):
    file.write_text(text)
    assert main(["train", str(file), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert told in err
    assert not build.exists()


def test_check_reach_names_data_and_models_that_are_out_of_reach(file: Path, capsys: pytest.CaptureFixture):
    file.write_text("policy: no/such-policy")
    assert main(["check", str(file)]) == 0
    assert main(["check", str(file), "--reach"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "policy: 'no/such-policy' is a Hub id and the Hub cannot be reached" in err
    file.write_text("sft_batch: 8")
    assert main(["check", str(file), "--reach", "--data", str(file.parent / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


# In a notebook


def in_notebook(monkeypatch: pytest.MonkeyPatch, injected: str = "", **changed: Any) -> dict[str, Any]:
    """The names of a notebook after its parameters cell and what papermill injected."""
    namespace = {**POCKET, **changed, "In": ["", "seeds = [0]", f"# Parameters\n{injected}\n"]}
    exec(injected, namespace)
    monkeypatch.setattr(parameters, "_namespace", lambda: namespace)
    return namespace


def test_the_parameters_of_a_notebook_are_those_of_its_cells(monkeypatch: pytest.MonkeyPatch):
    in_notebook(monkeypatch, "sft_batch = 8\n", an_own_name_of_the_reader=3)
    assert parameters.from_notebook().model_dump() == {**POCKET, "sft_batch": 8}


@pytest.mark.parametrize(
    ("injected", "told"),
    [
        ("reward_lr = '1e-5x'", ["parameters: reward_lr: '1e-5x' (text); allowed: a number > 0, <= 0.1"]),
        ("no_such_key = 1", ["parameters: no_such_key: unknown key; allowed: notebook, profile"]),
        ("sft_batch = 0\nseeds = []", ["parameters: seeds: []", "parameters: sft_batch: 0"]),
        ("notebook = '9_none'", ["parameters: notebook: '9_none'; allowed: 0_primer, 1_reward_model"]),
        ("notebook = ['1_reward_model']", ["parameters: notebook: ['1_reward_model']; allowed: 0_primer, 1_"]),
        ("policy = 'no/such-policy'", ["policy: 'no/such-policy' is a Hub id and the Hub cannot be reached"]),
    ],
)
def test_what_papermill_injects_wrongly_is_told_in_one_line_for_each_fault(
    injected: str, told: list[str], monkeypatch: pytest.MonkeyPatch
):
    in_notebook(monkeypatch, injected)
    with pytest.raises(UserFault) as fault:
        parameters.from_notebook()
    lines = str(fault.value).splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(sorted(lines), told, strict=True))


def test_a_reader_takes_over_the_values_of_another_profile_in_one_line(monkeypatch: pytest.MonkeyPatch):
    namespace = in_notebook(monkeypatch)
    parameters.use_profile("imdb_scratch")
    assert {key: namespace[key] for key in POCKET} == yaml.safe_load(
        (paths.PARAMS / "imdb_scratch" / f"{NOTEBOOK}.yaml").read_text()
    )
    with pytest.raises(UserFault, match=re.escape("'none' has no parameters") + ".*allowed: .*pocket"):
        parameters.use_profile("none")
