"""Parameters: what is shipped passes, what is laid over what, and each fault is one line."""

import contextlib
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import IPython
import pytest
import yaml
from helpers import profile_values, times
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import paths
from alignkit.__main__ import main
from alignkit.faults import UserFault
from alignkit.workflow import parameters
from alignkit.workflow.schema import NOTEBOOKS

NOTEBOOK = "1_reward_model"
POCKET = profile_values("pocket", NOTEBOOK)
PROFILES = parameters.profiles()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / f"{NOTEBOOK}.yaml"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a new profile "mine" beside the shipped ones, with a shared.yaml that changes two values."""
    folder = tmp_path / "params" / "mine"
    folder.mkdir(parents=True)
    for shipped in paths.PARAMS.iterdir():
        (folder.parent / shipped.name).symlink_to(shipped)
    monkeypatch.setattr(paths, "PARAMS", folder.parent)
    (folder / "shared.yaml").write_text("sft_batch: 8\nfront_steps: 9\n")
    return folder


@pytest.mark.parametrize(
    ("first", "shown"), [("# Of <mine>.", "<p>Of &lt;mine&gt;.</p>"), ("sft_batch: 4", ""), (None, "")]
)
def test_a_page_says_what_its_profile_is_where_its_file_does(first: str | None, shown: str, profile: Path):
    (profile / "shared.yaml").unlink()
    (profile / f"{NOTEBOOK}.yaml").write_text(f"notebook: {NOTEBOOK}\nprofile: mine\n")
    if first:
        (profile / "shared.yaml").write_text(f"{first}\nprompts: 50\n")
    page = parameters.as_html(parameters.load(profile / f"{NOTEBOOK}.yaml"))
    assert page.splitlines()[0] == f"<p>{NOTEBOOK}, profile <b>mine</b>; bold values differ from pocket's.</p>{shown}"


def check(file: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """The lines of `python -m alignkit check`, which must exit with 2 if there are any."""
    code = main(["check", str(file)])
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert code == (2 if lines else 0)
    assert told.out == ""
    return lines


# What is shipped


@pytest.mark.parametrize("notebook", NOTEBOOKS)
@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_loads_for_every_notebook(name: str, notebook: str):
    p = parameters.load(paths.PARAMS / name / f"{notebook}.yaml")
    assert (p.profile, p.notebook) == (name, notebook)
    assert p.model_dump() == NOTEBOOKS[notebook].model_validate(profile_values(name, notebook)).model_dump()


@pytest.mark.parametrize("name", PROFILES)
def test_only_where_methods_were_tuned_are_they_trained_as_tuned(name: str):
    here = name.removesuffix("_replica")
    tuned = parameters.load(paths.PARAMS / name / "6_one_front.yaml").tuned
    assert bool(tuned) == (here == "smoke" or (paths.CHECKOUT / "figures" / here / "tuning.csv").is_file())


def test_the_profiles_of_the_readme_are_shipped():
    assert {*PROFILES} >= {"smoke", "pocket", "imdb_scratch", "imdb", "pretrained", "pretrained_tiny"}


def test_checking_all_shipped_files_imports_no_deep_learning_library(alone):
    code = (
        "import sys; from alignkit.__main__ import main; code = main(['check', 'params']);"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules); sys.exit(code)"
    )
    done = alone("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_show_prints_every_key_with_its_words(capsys: pytest.CaptureFixture):
    assert main(["show", str(paths.PARAMS / "imdb" / f"{NOTEBOOK}.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(" = ")[0] for line in lines} == set(POCKET) - {"notebook", "profile"}
    assert "sft_batch = 16  # reviews a step (pocket: 64)" in lines
    assert "reward_batch = 32  # reviews a step, half of them positive" in lines


def test_an_empty_path_is_not_the_working_folder(capsys: pytest.CaptureFixture):
    assert main(["check", ""]) == 2
    assert capsys.readouterr().err == "check: path: ''; allowed: a parameter file or a folder of them\n"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("base_seed: 99999999999999", "allowed: less than or equal to 2147483647"),
        ("seeds: [99999999999999]", "allowed: less than or equal to 2147483647"),
        ("positive: []", "positive: []; allowed: at least 1 item"),
        ("positive: {a: 1}", "positive[0]: {'a': 1}; allowed: a valid string"),
        ("text_column: ''", "text_column: '' (text); allowed: at least 1 character"),
        ("label_column: ''", "label_column: '' (text); allowed: at least 1 character"),
    ],
)
def test_values_that_would_fail_later_or_be_ignored_are_told(said: str, told: str, file: Path, capsys):
    file.write_text(f"profile: smoke\n{said}\n")
    (line,) = check(file, capsys)
    assert told in line


# Layers


def test_a_profile_needs_one_file(profile: Path, capsys: pytest.CaptureFixture):
    assert check(profile, capsys) == []
    loaded = parameters.load(profile / f"{NOTEBOOK}.yaml").model_dump()
    assert loaded == {**POCKET, "profile": "mine", "sft_batch": 8}
    assert parameters.load(profile / "6_one_front.yaml").front_steps == 9


def laid_on(profile: Path, name: str, text: str) -> Path:
    """Another profile beside it, with this in its shared file."""
    other = profile.with_name(name)
    other.mkdir()
    (other / "shared.yaml").write_text(text)
    return other


def test_a_replica_is_laid_on_the_profile_that_it_repeats(profile: Path, capsys: pytest.CaptureFixture):
    replica = laid_on(profile, "mine_replica", "seeds: [7]\n")
    assert check(replica, capsys) == []
    loaded = parameters.load(replica / f"{NOTEBOOK}.yaml").model_dump()
    assert loaded == {**POCKET, "profile": "mine_replica", "sft_batch": 8, "seeds": [7]}
    of_pocket = parameters.load(paths.PARAMS / "pocket_replica" / f"{NOTEBOOK}.yaml")
    assert of_pocket.model_dump() == {**POCKET, "profile": "pocket_replica", "seeds": of_pocket.seeds}
    assert not {*of_pocket.seeds} & {*POCKET["seeds"]}


def test_a_tiny_profile_is_laid_on_the_one_that_it_cuts(profile: Path, capsys: pytest.CaptureFixture):
    tiny = laid_on(profile, "mine_tiny", "prompts: 3\n")
    assert check(tiny, capsys) == []
    loaded = parameters.load(tiny / f"{NOTEBOOK}.yaml").model_dump()
    assert loaded == {**POCKET, "profile": "mine_tiny", "sft_batch": 8, "prompts": 3}


def test_a_profile_may_name_the_notebooks_of_its_report(profile: Path, capsys: pytest.CaptureFixture):
    assert parameters.reported("mine") == list(NOTEBOOKS)
    (profile / "shared.yaml").write_text("notebooks: [4_warp, 1_reward_model]\n")
    assert check(profile, capsys) == []
    assert parameters.reported("mine") == parameters.reported("mine_tiny") == ["1_reward_model", "4_warp"]
    assert parameters.load(profile / "6_one_front.yaml").profile == "mine"
    own = [file.name for file in parameters.files([profile / "shared.yaml"])]
    assert own == ["1_reward_model.yaml", "4_warp.yaml"]  # what its report does not have is not asked of it
    (profile / "shared.yaml").write_text("notebooks: [4_wrap]\n")
    (line,) = check(profile, capsys)
    assert line.startswith(f"{profile / 'shared.yaml'}: notebooks: ['4_wrap']; allowed: a list of 0_primer, ")


def test_an_override_wins_over_a_notebooks_file_and_that_over_shared(profile: Path):
    own = profile / f"{NOTEBOOK}.yaml"
    own.write_text(f"notebook: {NOTEBOOK}\nprofile: mine\nsft_batch: 4\nheld_out: 200\n")
    p = parameters.load(own)
    assert (p.sft_batch, p.held_out, p.reward_batch) == (4, 200, POCKET["reward_batch"])
    assert parameters.load(own, sft_batch=2).sft_batch == 2
    assert parameters.load(profile / "2_dpo_losses.yaml").sft_batch == 8


def test_a_fault_in_a_shared_file_is_told_once_and_of_that_file(profile: Path, capsys: pytest.CaptureFixture):
    (profile / "shared.yaml").write_text("sft_batch: 0\n")
    assert [line.startswith(f"{profile / 'shared.yaml'}: sft_batch: 0;") for line in check(profile, capsys)] == [True]
    (profile / "shared.yaml").write_text("sft_bach: 1\n")
    told = check(profile, capsys)
    assert [line.startswith(f"{profile / 'shared.yaml'}: sft_bach: unknown key") for line in told] == [True]


@pytest.mark.parametrize("said", ["profile: smoke", "profile: mine", f"notebook: {NOTEBOOK}", "notebook: 4_warp"])
def test_a_file_in_a_profile_says_the_notebook_and_profile_that_it_is_for(
    said: str, profile: Path, capsys: pytest.CaptureFixture
):
    (profile / f"{NOTEBOOK}.yaml").write_text(f"{said}\n")
    assert len(check(profile, capsys)) == 1
    (profile / f"{NOTEBOOK}.yaml").unlink()
    (profile / "shared.yaml").write_text("profile: smoke\n")
    assert [
        line.endswith("allowed: 'mine', by which the file or folder is named") for line in check(profile, capsys)
    ] == [True]


def test_a_file_of_ones_own_is_laid_on_the_profile_that_it_names(tmp_path: Path, capsys: pytest.CaptureFixture):
    free = tmp_path / "mine.yaml"
    free.write_text(f"notebook: {NOTEBOOK}\nprofile: imdb\nsft_batch: 8")
    assert check(free, capsys) == []
    assert parameters.load(free).model_dump() == {**profile_values("imdb", NOTEBOOK), "sft_batch": 8}
    free.write_text(f"notebook: {NOTEBOOK}\nprofile: nope")
    assert [f"profile: 'nope' (text); allowed: {', '.join(PROFILES)}" in line for line in check(free, capsys)] == [True]


def test_a_partial_file_is_filled_from_the_pocket_values(file: Path, capsys: pytest.CaptureFixture):
    file.write_text("sft_batch: 8")
    assert check(file, capsys) == []
    assert parameters.load(file).model_dump() == {**POCKET, "sft_batch": 8}


def test_a_number_that_yaml_takes_for_text_is_a_number(file: Path, capsys: pytest.CaptureFixture):
    file.write_text("reward_lr: 1e-5\nsft_lr: 2E-3")
    assert check(file, capsys) == []
    assert (parameters.load(file).reward_lr, parameters.load(file).sft_lr) == (1e-5, 2e-3)


# Faults

FAULTS = {
    "an unknown key": ("sft_bach: 64", ["sft_bach: unknown key", "sft_batch"]),
    "a nested key": ("sft:\n  batch: 64", ["sft: unknown key"]),
    "a key that is a number": ("1: 2", ["1: unknown key"]),
    "a key of two lines": ('"a\\nb": 2', ["unknown key"]),
    "text for a number": ("sft_batch: many", ["sft_batch: 'many' (text)", "integer"]),
    "a number in quotes": ("sft_batch: '64'", ["sft_batch: '64' (text)", "integer"]),
    "a truth value for a whole number": ("sft_batch: true", ["sft_batch: true", "integer"]),
    "a truth value for a number": ("sft_lr: true", ["sft_lr: true", "number"]),
    "a fraction for a whole number": ("sft_batch: 64.0", ["sft_batch: 64.0", "integer"]),
    "a number for text": ("data: 3", ["data: 3", "string"]),
    "a whole number below its range": ("sft_batch: 0", ["sft_batch: 0; allowed: greater than or equal to 1"]),
    "a share of one": ("reward_dropout: 1.0", ["reward_dropout: 1.0; allowed: less than 1"]),
    "an odd number of reviews": ("train_reviews: 2001", ["train_reviews: 2001; allowed: a multiple of 2"]),
    "not a number": ("reward_lr: .nan", ["reward_lr: nan; allowed: "]),
    "infinity": ("reward_epochs: -.inf", ["reward_epochs: -inf; allowed: "]),
    "null where it is not allowed": ("sft_batch: null", ["sft_batch: null", "integer"]),
    "an unknown choice": ("policy_tokenizer: words", ["policy_tokenizer: 'words' (text); allowed: 'word' or 'bpe'"]),
    "empty text": ("data: ''", ["data: ''", "at least 1 character"]),
    "a profile that is no name": ("profile: ../pocket", ["profile: '../pocket'", "allowed: "]),
    "a list as papermill -p gives it": ("seeds: '[0]'", ["seeds: '[0]' (text)", "papermill", "-y"]),
    "an empty list": ("seeds: []", ["seeds: []; allowed: at least 1 item"]),
    "a list that is too long": (f"seeds: {[*range(21)]}", ["seeds: [0, 1,", "at most 20 items"]),
    "a value of many letters": (f"sft_batch: {'x' * 5000}", ["sft_batch: 'xxxx", "..."]),
    "a wrong item of a list": ("seeds: [0, one]", ["seeds[1]: 'one' (text)", "integer"]),
    "a seed given twice": ("seeds: [1, 0, 1]", ["seeds: [1, 0, 1]", "twice"]),
    "a value given twice": ("curve_reviews: [400, 1000, 400]", ["curve_reviews: [400, 1000, 400]", "twice"]),
    "a key given twice": ("sft_batch: 64\nsft_lr: 0.1\nsft_batch: 32", ["sft_batch: given twice"]),
    "a policy width that its heads do not divide": ("policy_width: 130", ["policy_width: 130", "policy_heads (4)"]),
    "more held-out reviews than there are": ("held_out: 30000", ["held_out: 30000", "train_reviews (25000)"]),
    "an unknown notebook": ("notebook: 9_none", ["notebook: '9_none'", "allowed: "]),
    "another notebook than the file's": ("notebook: 4_warp", ["notebook: '4_warp'", f"allowed: '{NOTEBOOK}'"]),
    "a notebook that is a list": (f"notebook: [{NOTEBOOK}]", ["notebook: ['1_reward_model']; allowed: 0_primer"]),
    "an empty file": ("", ["key: value"]),
    "fewer tokens than bytes": ("policy_tokenizer: bpe\npolicy_vocab: 258", ["policy_vocab: 258", "259 or more"]),
    "a list in place of a mapping": ("- sft_batch", ["key: value"]),
    "broken YAML": ("seeds: [0, 1\n", ["cannot be read as YAML"]),
    "two documents": ("sft_batch: 8\n---\nsft_batch: 9", ["cannot be read as YAML"]),
    "a Python object": ("data: !!python/object/apply:os.getcwd []", ["cannot be read as YAML"]),
    "a day that no calendar has": ("sft_batch: 2020-02-31", ["cannot be read as YAML"]),
    "an endless list": (f"seeds: {'[' * 9_000}", ["lists in lists"]),
    "an alias": ("prompts: &a 1\nsft_batch: *a", ["aliases"]),
    "a file that is too long": ("# " + "x" * 1_000_000, ["kB"]),
}


@pytest.mark.parametrize(("text", "told"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_is_one_line_with_file_key_value_and_what_is_allowed(
    text: str, told: list[str], file: Path, capsys: pytest.CaptureFixture
):
    file.write_text(text)
    lines = check(file, capsys)
    assert len(lines) == 1
    assert lines[0].startswith(f"{file}: ")
    assert len(lines[0]) < 2000
    for part in told:
        assert part in lines[0]


@pytest.mark.parametrize("make", [lambda f: None, lambda f: f.write_bytes(b"\xff\xfe\x00\x80"), os.mkfifo],
                         ids=["missing", "not UTF-8", "pipe"])  # fmt: skip
def test_what_is_no_text_file_is_one_line(make: Any, file: Path, capsys: pytest.CaptureFixture):
    make(file)
    assert [line.startswith(f"{file}: cannot be read") for line in check(file, capsys)] == [True]


@pytest.mark.parametrize(
    "text",
    [f"seeds: [{'1,' * 9_000}]", "".join(f"k{i}: 1\n" for i in range(2_000)), f"a: {'[' * 8}{']' * 8}\n" * 800],
    ids=["a list", "keys", "lists in lists"],
)
def test_a_file_of_thousands_of_items_is_told_soon_and_in_few_lines(text: str, file: Path):
    file.write_text(text[: parameters.LONGEST_FILE])
    started = time.process_time()
    told = parameters.check([file])
    assert time.process_time() - started < 1
    assert 1 <= len(told) <= parameters.MOST_TOLD + 1


def test_a_folder_without_parameter_files_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert check(tmp_path, capsys) == [f"{tmp_path}: holds no parameter file (*.yaml)"]


def test_a_missing_parameter_is_one_line():
    rest = {key: value for key, value in POCKET.items() if key != "sft_lr"}
    with pytest.raises(UserFault, match=r"^here: sft_lr: missing \(highest learning rate\)$"):
        parameters.validated(rest, "here")


def test_several_faults_are_several_lines(file: Path, capsys: pytest.CaptureFixture):
    file.write_text("sft_batch: 0\nreward_lr: fast\nseeds: [0, x, y]\nno_such_key: 1")
    told = [line.removeprefix(f"{file}: ").split(":")[0] for line in check(file, capsys)]
    assert sorted(told) == ["no_such_key", "reward_lr", "seeds[1]", "seeds[2]", "sft_batch"]


def test_all_files_of_a_folder_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{NOTEBOOK}.yaml").write_text("sft_batch: 0")
    assert len(check(tmp_path, capsys)) == 2


def test_the_command_line_prints_the_fault_without_a_traceback(file: Path, alone):
    file.write_text("reward_lr: fast")
    done = alone("-m", "alignkit", "check", str(file))
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (2, 1, "")


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


@settings(max_examples=times(150, 5000), deadline=None)
@given(changed=st.dictionaries(keys, values, min_size=1, max_size=3))
def test_any_value_at_any_key_is_right_or_told_in_one_line_for_each_fault(changed: dict[Any, Any]):
    try:
        parameters.validated({**POCKET, **changed}, "here")
    except UserFault as fault:
        lines = str(fault).split("\n")
        assert all(line.startswith("here: ") and line.splitlines() == [line] for line in lines)
        assert len(lines) == len(set(lines))
    else:
        assert set(changed) <= set(POCKET)


@settings(max_examples=times(100, 3000), deadline=None)
@given(text=st.text(max_size=60) | st.builds(lambda key, value: f"{key}: {value}", keys, values))
def test_any_text_is_parameters_or_told_in_one_line_a_fault(tmp_path_factory, text: str):
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
def test_train_with_a_wrong_file_exits_with_2_and_trains_nothing(
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


def first_cell(**changed: Any) -> str:
    values = {"notebook": NOTEBOOK, "profile": "pocket", "seeds": None, "data": None, **changed}
    return "\n".join(f"{key} = {value!r}" for key, value in values.items())


def in_notebook(monkeypatch: pytest.MonkeyPatch, *cells: str) -> list[dict[str, str]]:
    """Run these cells in an empty notebook; what `from_notebook` will show goes into the list that is returned."""
    namespace: dict[str, Any] = {"In": ["", *cells]}
    for cell in cells:
        with contextlib.suppress(SyntaxError):
            exec(cell, namespace)
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(user_ns=namespace))
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    return shown


def papermill(text: str) -> str:
    return f"# Parameters\n{text}\n"


@pytest.mark.parametrize("name", ["pocket", "smoke"])
def test_a_notebook_has_the_values_of_the_profile_it_names(name: str, monkeypatch: pytest.MonkeyPatch):
    in_notebook(monkeypatch, first_cell(profile=name), "prompts = 3  # a reader's own name, in another cell")
    assert parameters.from_notebook().model_dump() == profile_values(name, NOTEBOOK)


def test_papermill_wins_over_the_first_cell(monkeypatch: pytest.MonkeyPatch):
    first = first_cell(seeds=[5], sft_batch=4, prompts=7, train_reviews=None)
    in_notebook(monkeypatch, first, papermill("sft_batch = 8\nprofile = 'smoke'\nseeds = None"))
    usual = profile_values("smoke", NOTEBOOK)
    assert parameters.from_notebook().model_dump() == {**usual, "sft_batch": 8, "prompts": 7, "train_reviews": None}


def test_a_first_cell_that_is_run_again_is_read_as_it_is_now(monkeypatch: pytest.MonkeyPatch):
    in_notebook(monkeypatch, first_cell(sft_batch=4), papermill("prompts = 3"), "1 +", first_cell(new_tokens=9))
    assert parameters.from_notebook().model_dump() == {**POCKET, "new_tokens": 9}


def test_a_kernel_without_a_history_has_the_same_parameters(monkeypatch: pytest.MonkeyPatch):
    in_notebook(monkeypatch, first_cell(), papermill("profile = 'smoke'\nsft_batch = 4"))
    monkeypatch.setitem(IPython.get_ipython().user_ns, "In", [""])
    assert parameters.from_notebook().model_dump() == profile_values("smoke", NOTEBOOK) | {"sft_batch": 4}


def test_the_file_of_a_profile_is_all_that_papermill_needs(monkeypatch: pytest.MonkeyPatch):
    for file in (paths.PARAMS / "imdb_scratch").glob("[0-9]*.yaml"):
        notebook, told = file.stem, yaml.safe_load(file.read_text())
        cell = papermill("\n".join(f"{key} = {value!r}" for key, value in told.items()))
        in_notebook(monkeypatch, first_cell(notebook=notebook), cell)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NOTEBOOKS[notebook], "check_reach", lambda p: [])
            assert parameters.from_notebook().model_dump() == profile_values("imdb_scratch", notebook)


def test_what_is_shown_names_each_value_and_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "r&d.csv").write_text("text,label\n")
    monkeypatch.setattr(NOTEBOOKS[NOTEBOOK], "check_reach", lambda p: [])
    shown = in_notebook(monkeypatch, first_cell(data=str(tmp_path / "r&d.csv"), prompts=7))
    parameters.from_notebook()
    text, page = shown[0]["text/plain"], shown[0]["text/html"]
    assert "data = 'r&d.csv'  # pocket, a file or folder of reviews, or a Hub id (pocket: 'pocket')" in text
    page = page.replace(f" {parameters.LEFT}", "")
    assert "<td><b>'r&amp;d.csv'</b>, pocket 'pocket'</td>" in page
    assert "<tr><td>prompts</td><td><b>7</b>, pocket 100</td>" in page
    assert all(f"<td>{key}</td>" in page for key in set(POCKET) - {"notebook", "profile"})
    assert str(tmp_path) not in text + page


@pytest.mark.parametrize(
    ("injected", "told"),
    [
        ("reward_lr = 'fast'", ["parameters: reward_lr: 'fast' (text); allowed: "]),
        ("no_such_key = 1", ["parameters: no_such_key: unknown key; allowed: notebook, profile"]),
        ("sft_batch = 0\nseeds = []", ["parameters: seeds: []", "parameters: sft_batch: 0"]),
        ("profile = 'none'", ["parameters: profile: 'none' (text); allowed: imdb, "]),
        ("notebook = ['1_reward_model']", ["parameters: notebook: ['1_reward_model']; allowed: 0_primer, 1_"]),
        ("notebook = '4_warp'", ["parameters: notebook: 1_reward_model, 4_warp; allowed: "]),
        ("policy = 'no/such-policy'", ["policy: 'no/such-policy' is a Hub id and the Hub cannot be reached"]),
    ],
)
def test_what_papermill_injects_wrongly_is_one_line_for_each_fault(
    injected: str, told: list[str], monkeypatch: pytest.MonkeyPatch
):
    in_notebook(monkeypatch, first_cell(), papermill(injected))
    with pytest.raises(UserFault) as fault:
        parameters.from_notebook()
    lines = str(fault.value).splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(sorted(lines), told, strict=True))


def test_a_misspelt_name_in_the_first_cell_is_one_line(monkeypatch: pytest.MonkeyPatch):
    in_notebook(monkeypatch, first_cell(sft_bach=3))
    with pytest.raises(UserFault, match=r"^parameters: sft_bach: unknown key"):
        parameters.from_notebook()


# The notebooks' order


def test_what_a_notebook_trains_after_and_reads_are_notebooks_before_it():
    order = list(NOTEBOOKS)
    for name, kind in NOTEBOOKS.items():
        assert all(order.index(other) < order.index(name) for other in (*kind.after, *kind.reads))
        assert kind.trained_with in (None, *order)


def test_notebook_5_trains_for_the_seeds_of_its_confirmation_too():
    p = parameters.load(paths.PARAMS / "pocket" / "5_improvements.yaml")
    assert p.training_seeds() == [*p.seeds, *p.confirm_seeds]
    assert parameters.load(paths.PARAMS / "pocket" / "4_warp.yaml").training_seeds() == p.seeds
