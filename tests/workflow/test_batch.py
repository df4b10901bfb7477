"""The batch: what it depends on, what it publishes, and the whole of it once at the smoke sizes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pandas as pd
import pytest
import yaml
from helpers import in_a_copy
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from snakemake.cli import get_argument_parser

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import batch, identity, parameters

NOTEBOOK = "1_reward_model"
ASKED = batch.values(NOTEBOOK, "smoke").train_reviews
NOTEBOOKS = sorted(file.stem for file in (paths.CHECKOUT / "notebooks").glob("*.ipynb"))
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def checkout(tmp_path: Path, build: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout: the real modules, parameters and lock, and a notebook of four cells."""
    root = tmp_path / "checkout"
    for folder in ("alignkit", "params"):
        shutil.copytree(paths.CHECKOUT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(paths.CHECKOUT / "requirements.lock", root)
    monkeypatch.setattr(paths, "CHECKOUT", root)
    monkeypatch.setattr(paths, "PACKAGE", root / "alignkit")
    monkeypatch.setattr(paths, "PARAMS", root / "params")
    values = "notebook = '1_reward_model'\nprofile = 'pocket'\nseeds = None\ndata = None"
    cells = [
        new_markdown_cell("# A title", id="title"),
        new_code_cell(values, id="parameters", metadata={"tags": ["parameters"]}),
        new_code_cell("from alignkit.report import figures\nprint(1 + 1)", id="sum"),
        new_code_cell("'a figure'", id="figure"),
    ]
    save(new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}), source())
    return root


def source() -> Path:
    return paths.CHECKOUT / "notebooks" / f"{NOTEBOOK}.ipynb"


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


def save(notebook: nbformat.NotebookNode, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)


def executed(injected: str = "profile = 'pocket'") -> nbformat.NotebookNode:
    """What papermill makes of the small notebook."""
    run = read(source())
    run.metadata |= {
        "papermill": {"duration": 3.2, "start_time": "2026-01-01T00:00:00"},
        "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}},
        "language_info": {"name": "python", "version": "3.11.7"},
    }
    cell = new_code_cell(f"# Parameters\n{injected}\n", id="made-up", metadata={"tags": ["injected-parameters"]})
    run.cells.insert(2, cell)
    for count, cell in enumerate((c for c in run.cells if c.cell_type == "code"), start=1):
        cell.outputs = []
        cell.metadata |= {"papermill": {"duration": 0.1}, "execution": {"iopub.status.busy": "2026-01-01"}}
        cell.execution_count = count
    outputs = {cell.id: cell.outputs for cell in run.cells if cell.cell_type == "code"}
    outputs["sum"] += [new_output("stream", name="stdout", text="2\n"), new_output("stream", name="stdout", text="\n")]
    data = {"image/png": PNG, "text/plain": "<Image>"}
    outputs["figure"].append(
        new_output("execute_result", data, execution_count=4, metadata={"image/png": {"alt": "a dot"}})
    )
    return run


def finish(build: Path, profile: str, run: nbformat.NotebookNode, figures: Sequence[str] = (), data: str = "") -> None:
    """Lay an executed notebook and its figures where the batch puts them, and seal them."""
    for old in (build / profile / "executed").glob("*"):
        old.unlink()
    save(run, build / profile / f"{NOTEBOOK}.ipynb")
    shutil.rmtree(build / profile / "figures", ignore_errors=True)
    (build / profile / "figures").mkdir()
    for name in figures:
        (build / profile / "figures" / name).write_text(name)
    batch.seal_up(profile, NOTEBOOK, batch.content_key(NOTEBOOK, profile, data), data)


# What it depends on


def edit_cell(checkout: Path) -> None:
    notebook = read(source())
    notebook.cells[2].source = "print(2 + 2)"
    save(notebook, source())


def tag_cell(checkout: Path) -> None:
    notebook = read(source())
    notebook.cells[2].metadata["tags"] = ["nbval-ignore-output"]
    save(notebook, source())


def append(file: str, text: str = "# edited") -> Callable[[Path], None]:
    def edit(checkout: Path) -> None:
        with open(checkout / file, "a") as stream:
            stream.write(f"\n{text}\n")

    return edit


def edit_parameter(checkout: Path) -> None:
    file = checkout / "params" / "smoke" / f"{NOTEBOOK}.yaml"
    file.write_text(file.read_text().replace("completions: 4", "completions: 5"))


def touch_everything(checkout: Path) -> None:
    for file in checkout.rglob("*"):
        os.utime(file, (1_900_000_000, 1_900_000_000))


def execute(checkout: Path) -> None:
    run = read(source())
    run.cells[2].outputs = [new_output("stream", name="stdout", text="2\n")]
    run.cells[2].execution_count = 7
    run.metadata["language_info"] = {"name": "python", "version": "3.13.0"}
    save(run, source())


@pytest.mark.parametrize(
    "edit",
    [
        edit_cell,
        tag_cell,
        append("alignkit/report/figures.py"),
        append("alignkit/report/looks.yaml"),
        append("alignkit/report/__init__.py"),
        append("alignkit/paths.py"),
        edit_parameter,
        append("params/smoke/shared.yaml", "reward_batch: 8"),
        append("requirements.lock"),
    ],
    ids=["cell", "tag", "module", "its data", "package", "module of a module", "parameter", "shared parameter", "lock"],
)
def test_an_edit_of_what_a_notebook_depends_on_changes_its_key(edit: Callable[[Path], None], checkout: Path):
    before = batch.content_key(NOTEBOOK, "smoke")
    edit(checkout)
    assert batch.content_key(NOTEBOOK, "smoke") != before


def test_edited_files_at_a_local_path_change_the_key_and_times_do_not(checkout: Path, tmp_path: Path):
    def keys() -> list[str]:
        return [batch.content_key(NOTEBOOK, "smoke"), batch.content_key(NOTEBOOK, "smoke", str(tmp_path / "data.csv"))]

    (tmp_path / "data.csv").write_text("text,label")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1")
    append("params/smoke/shared.yaml", f"reward_model: {tmp_path / 'model'}")(checkout)
    first = keys()
    assert len(set(first)) == 2
    os.utime(tmp_path / "data.csv", (1_900_000_000, 1_900_000_000))
    assert keys() == first
    (tmp_path / "data.csv").write_text("text,label\n")
    assert [new == old for new, old in zip(keys(), first, strict=True)] == [True, False]
    (tmp_path / "model" / "weights").write_text("2")
    assert keys()[0] != first[0]


@pytest.mark.parametrize(
    "edit",
    [
        touch_everything,
        execute,
        append("params/imdb/shared.yaml", "reward_batch: 8"),
        append("params/smoke/shared.yaml"),
        append("params/smoke/4_warp.yaml", "ema_rates: [0.2]"),
        append("alignkit/report/primer.py"),
        append("notebooks/README.md"),
    ],
    ids=["times", "outputs", "another profile", "comment", "another notebook", "another's module", "another file"],
)
def test_what_a_notebook_does_not_depend_on_leaves_its_key(edit: Callable[[Path], None], checkout: Path):
    before = batch.content_key(NOTEBOOK, "smoke")
    edit(checkout)
    assert batch.content_key(NOTEBOOK, "smoke") == before


def test_a_profile_runs_the_notebooks_that_have_a_source_and_parameters(checkout: Path):
    assert batch.notebooks("smoke") == [NOTEBOOK]
    assert batch.notebooks("none") == []
    source().unlink()
    assert batch.notebooks("smoke") == []


def test_a_notebook_that_reads_tables_depends_on_what_made_them(checkout: Path):
    shutil.copy(source(), source().with_name("6_one_front.ipynb"))
    shutil.copy(source(), source().with_name("4_warp.ipynb"))
    before = batch.content_key("6_one_front", "imdb")
    append("params/imdb/4_warp.yaml", "ema_rates: [0.2]")(checkout)
    assert batch.content_key("6_one_front", "imdb") != before


@pytest.mark.parametrize(("profile", "moves"), [("imdb", True), ("pocket", False), ("pocket_replica", False)])
def test_the_last_page_of_another_profile_depends_on_pockets_findings(profile: str, moves: bool, checkout: Path):
    shutil.copy(source(), source().with_name("6_one_front.ipynb"))
    before = batch.content_key("6_one_front", profile), batch.content_key(NOTEBOOK, profile)
    (checkout / "figures" / "pocket").mkdir(parents=True)
    (checkout / "figures" / "pocket" / "findings.csv").write_text("id,statement")
    after = batch.content_key("6_one_front", profile), batch.content_key(NOTEBOOK, profile)
    assert [new != old for new, old in zip(after, before, strict=True)] == [moves, False]


def test_the_last_page_depends_on_what_was_tuned(checkout: Path):
    shutil.copy(source(), source().with_name("6_one_front.ipynb"))
    before = batch.content_key("6_one_front", "pocket"), batch.content_key(NOTEBOOK, "pocket")
    (checkout / "figures" / "pocket").mkdir(parents=True)
    (checkout / "figures" / "pocket" / "tuning.csv").write_text("method,share")
    after = batch.content_key("6_one_front", "pocket"), batch.content_key(NOTEBOOK, "pocket")
    assert [new != old for new, old in zip(after, before, strict=True)] == [True, False]


@pytest.mark.slow
def test_a_key_is_the_same_in_every_process():
    code = "from alignkit.workflow import batch; print(batch.content_key('6_one_front', 'imdb'))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=paths.CHECKOUT, capture_output=True, text=True, check=True,
        ).stdout
        for seed in "123"
    }  # fmt: skip
    assert len(keys) == 1


def test_the_longest_chain_of_notebooks_is_followed_to_its_start():
    assert batch.with_those_before("5_improvements") == [
        "1_reward_model",
        "2_dpo_losses",
        "3_f_divergences",
        "5_improvements",
    ]
    assert batch.with_those_before("0_primer") == ["0_primer"]


# Seals


def test_a_second_batch_in_the_same_folder_is_one_line(checkout: Path, build: Path):
    finish(build, "smoke", executed("profile = 'smoke'"))
    with batch.lock_build("smoke"):
        for start_another in (batch.lock_build, batch.publish):
            with pytest.raises(UserFault, match=r"^profile 'smoke': another batch is running in [^\n]*$"):
                start_another("smoke")
        batch.lock_build("pocket").release()
    batch.publish("smoke")


def test_a_second_execution_of_the_same_notebook_is_one_line(checkout: Path, build: Path):
    finish(build, "smoke", executed("profile = 'smoke'"))
    with (
        batch.lock_build("smoke", f".{NOTEBOOK}-lock"),
        pytest.raises(UserFault, match=r"^profile 'smoke': another batch is running in [^\n]*$"),
    ):
        batch.execute("smoke", NOTEBOOK)
    assert batch.executed("smoke", NOTEBOOK).is_file()


def test_a_build_folder_that_cannot_be_written_is_one_line(build: Path):
    build.write_text("a file")
    with pytest.raises(UserFault, match=r"^profile 'smoke': .* cannot be written"):
        batch.lock_build("smoke")


@pytest.mark.parametrize("damaged", ["figures/1_table.csv", f"{NOTEBOOK}.ipynb", "executed"])
def test_what_was_damaged_is_not_published_and_loses_its_seal(damaged: str, checkout: Path, build: Path):
    finish(build, "smoke", executed("profile = 'smoke'"), ["1_table.csv"])
    file = build / "smoke" / damaged
    file = next(file.iterdir()) if file.is_dir() else file
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserFault, match=r"^publish: 1_reward_model: .* not as it was made; run make report again$"):
        batch.publish("smoke")
    assert not (checkout / "figures").exists()
    batch.break_seals("smoke")
    assert not list((build / "smoke" / "executed").iterdir())
    with pytest.raises(UserFault, match=r"^publish: 1_reward_model: its execution did not end"):
        batch.publish("smoke")


def test_a_seal_is_kept_while_its_files_are_as_they_were_made(checkout: Path, build: Path):
    finish(build, "smoke", executed("profile = 'smoke'"), ["1_table.csv"])
    (build / "smoke" / "figures" / "10_table.csv").write_text("of another notebook")
    batch.break_seals("smoke")
    key = batch.content_key(NOTEBOOK, "smoke")
    assert list((build / "smoke" / "executed").iterdir()) == [batch.seal("smoke", NOTEBOOK, key)]


@pytest.mark.parametrize("sealed", [True, False])
def test_a_page_whose_tables_are_not_sealed_loses_its_seal(sealed: bool, checkout: Path, build: Path):
    for name in ("4_warp", "6_one_front"):
        shutil.copy(source(), source().with_name(f"{name}.ipynb"))
        save(executed("profile = 'imdb'"), batch.executed("imdb", name))
        if sealed or name == "6_one_front":
            batch.seal_up("imdb", name, batch.content_key(name, "imdb"))
    batch.break_seals("imdb")
    left = [file.name.partition("-")[0] for file in sorted((build / "imdb" / "executed").iterdir())]
    assert left == ["4_warp", "6_one_front"] * sealed


# What its training depends on


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(checkout: Path) -> None:
        text = (checkout / file).read_text()
        assert text.count(old) == 1
        (checkout / file).write_text(text.replace(old, new))

    return edit


def training_key() -> str:
    identity._read.cache_clear()
    return batch.training_key(NOTEBOOK, "smoke")


@pytest.fixture
def read_again():
    yield
    identity._read.cache_clear()


@pytest.mark.parametrize(
    "edit",
    [
        edit_cell,
        append("alignkit/report/figures.py", "DPI = 1"),
        append("alignkit/report/looks.yaml"),
        append("alignkit/report/tables.py", "DPI = 1"),
        append("alignkit/report/findings.py", "DPI = 1"),
        append("alignkit/report/reward_model.py", "def picture():\n    return 1"),
        append("alignkit/training/reward.py"),
        append("alignkit/training/dpo.py", "RATE = 1"),
    ],
    ids=["cell", "figure", "look", "table", "sentence", "its own picture", "comment", "another's training"],
)
def test_an_edit_of_what_is_shown_starts_no_training_job(
    edit: Callable[[Path], None], checkout: Path, read_again: None
):
    before = training_key()
    edit(checkout)
    assert training_key() == before


@pytest.mark.parametrize(
    "edit",
    [
        edit_parameter,
        append("requirements.lock"),
        replace(
            "alignkit/report/reward_model.py", "def recipe(p: RewardModel, seed", "def recipe(p: RewardModel, number"
        ),
        append("alignkit/training/reward.py", "def train_reward(out):\n    return {}"),
        append("alignkit/workflow/store.py", "RECORD = 'other.json'"),
    ],
    ids=["parameter", "lock", "recipe", "training function", "store"],
)
def test_an_edit_of_what_is_trained_starts_training_jobs(
    edit: Callable[[Path], None], checkout: Path, read_again: None
):
    before = training_key()
    edit(checkout)
    assert training_key() != before


@pytest.mark.parametrize("file", ["params/pocket/shared.yaml", "alignkit/report/figures.py"])
def test_what_was_executed_with_other_parameters_or_code_is_not_published(file: str, checkout: Path, build: Path):
    finish(build, "smoke", executed("profile = 'smoke'"))
    (checkout / file).write_text((checkout / file).read_text().replace("reward_batch: 32", "reward_batch: 8") + "\n")
    with pytest.raises(UserFault, match=r"^publish: 1_reward_model was executed with other parameters or code"):
        batch.publish("smoke")


# Publishing


def test_a_published_pocket_notebook_has_the_outputs_of_the_run(checkout: Path, build: Path):
    before = read(source())
    finish(build, "pocket", executed())
    assert batch.publish("pocket") == [f"notebooks/{NOTEBOOK}.ipynb"]
    after = read(source())
    assert after.metadata == before.metadata
    kept = ("id", "cell_type", "source", "metadata")
    assert [[cell[k] for k in kept] for cell in after.cells] == [[cell[k] for k in kept] for cell in before.cells]
    assert [cell.execution_count for cell in after.cells[1:]] == [1, 2, 3]
    assert after.cells[2].outputs == [new_output("stream", name="stdout", text="2\n")]
    figure = after.cells[3].outputs[0]
    assert (figure.execution_count, figure.metadata["image/png"]["alt"]) == (3, "a dot")
    assert figure.data["image/png"] == PNG


@pytest.mark.parametrize("profile", ["pocket", "smoke"])
def test_publishing_twice_changes_nothing(profile: str, checkout: Path, build: Path):
    finish(build, profile, executed(), ["1_words.png", "1_words.csv"])
    assert len(batch.publish(profile)) == 3
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in checkout.rglob("*") if f.is_file()}
    assert batch.publish(profile) == []
    finish(build, profile, executed(), ["1_words.png", "1_words.csv"])
    assert batch.publish(profile) == []
    assert {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in checkout.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    "changed",
    ["alignkit/report/readme.py", "params/smoke/shared.yaml", "requirements.lock", "README.md", "figures/smoke/1_x.csv",
     "figures/pocket/new.csv", "benchmarks/peers.csv", "notebooks/1_reward_model.ipynb", "build/smoke/figures/1_x.csv"],
)  # fmt: skip
def test_a_report_is_done_until_something_of_it_changes(changed: str, checkout: Path, build: Path):
    (checkout / "README.md").write_text("# A title")
    finish(build, "smoke", executed("profile = 'smoke'"), ["1_x.csv"])
    batch.publish("smoke")
    assert not batch.is_published("smoke")
    batch.note_published("smoke")
    touch_everything(checkout)
    for kept in (".ipynb_checkpoints", "__pycache__"):
        (checkout / "notebooks" / kept).mkdir()
        (checkout / "notebooks" / kept / "1.ipynb").touch()
    assert batch.is_published("smoke")
    assert not batch.is_published("smoke", data="pocket_letters")
    file = build.parent / changed if changed.startswith("build") else checkout / changed
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as stream:
        stream.write("\n")
    assert not batch.is_published("smoke")


def test_what_was_edited_while_it_was_published_is_not_noted(checkout: Path, build: Path):
    finish(build, "smoke", executed("profile = 'smoke'"))
    batch.publish("smoke")
    edit_cell(checkout)
    with pytest.raises(UserFault, match=r"^publish: 1_reward_model was executed with other parameters or code"):
        batch.note_published("smoke")
    assert not batch.is_published("smoke")


def test_a_report_that_lacks_a_notebook_is_never_done(checkout: Path, build: Path):
    finish(build, "smoke", executed("profile = 'smoke'"))
    batch.executed("smoke", NOTEBOOK).rename(build / "elsewhere.ipynb")
    batch.note_published("smoke")
    assert not batch.is_published("smoke")


def test_a_pocket_notebook_that_ran_on_other_data_is_not_published(checkout: Path, build: Path):
    finish(build, "pocket", executed("profile = 'pocket'\ndata = 'mine.csv'"), ["1_words.png"], data="mine.csv")
    before = source().read_bytes()
    with pytest.raises(UserFault, match=r"^data: 'mine.csv'; pocket has its own alone; allowed: another profile"):
        batch.publish("pocket")
    assert source().read_bytes() == before
    assert not (checkout / "figures").exists()


def test_notebooks_that_ran_on_different_reviews_are_not_published(build: Path, monkeypatch: pytest.MonkeyPatch):
    found = {"0_primer": "", "1_reward_model": "mine.csv"}
    (build / "smoke").mkdir(parents=True, exist_ok=True)
    for name in found:
        batch.executed("smoke", name).touch()
    monkeypatch.setattr(batch, "check_executed", lambda _, name: found[name])
    with pytest.raises(UserFault, match=r"^publish: 'smoke' has pages of other reviews: \['', 'mine.csv'\]; run"):
        batch.publish("smoke")


@pytest.mark.parametrize("edit", ["change", "add", "remove"])
def test_a_notebook_edited_after_its_run_is_not_published(edit: str, checkout: Path, build: Path):
    finish(build, "pocket", executed())
    notebook = read(source())
    if edit == "change":
        notebook.cells[2].source = "print(2 + 2)"
    elif edit == "add":
        notebook.cells.append(new_code_cell("print('new')", id="new"))
    else:
        del notebook.cells[2]
    save(notebook, source())
    before = source().read_bytes()
    with pytest.raises(UserFault, match=r"^publish: 1_reward_model "):
        batch.publish("pocket")
    assert source().read_bytes() == before


def test_publishing_what_was_not_executed_is_a_fault_of_one_line(checkout: Path):
    with pytest.raises(UserFault, match=r"^publish: no executed notebook of 'imdb' in [^\n]*$"):
        batch.publish("imdb")


def test_a_published_notebook_has_nothing_of_papermill_or_paths(checkout: Path, build: Path):
    finish(build, "imdb", executed("profile = 'imdb'\ndata = '/disk/reader/my data/imdb'\npolicy = '~/gpt2'"))
    assert batch.publish("imdb") == [f"figures/imdb/{NOTEBOOK}.ipynb"]
    file = checkout / "figures" / "imdb" / f"{NOTEBOOK}.ipynb"
    text = file.read_text()
    assert not re.search("papermill|iopub|widget|/disk|2026", text)
    published = read(file)
    nbformat.validate(published)
    assert published.cells[2].source == '# Parameters\nprofile = \'imdb\'\ndata = "imdb"\npolicy = "gpt2"\n'
    assert published.cells[2].metadata == {"tags": ["injected-parameters"]}
    assert published.cells[2].id == "injected-parameters"  # not papermill's, which is another one at each execution
    assert set(published.metadata) == {"kernelspec", "language_info"}
    assert [cell.execution_count for cell in published.cells[1:]] == [1, 2, 3, 4]
    assert "".join(output.text for output in published.cells[3].outputs) == "2\n"


def test_a_figure_that_is_no_longer_drawn_is_removed_and_others_stay(checkout: Path, build: Path):
    figures = checkout / "figures" / "smoke"
    finish(build, "smoke", executed(), ["1_old.png", "1_words.png"])
    batch.publish("smoke")
    (figures / "10_other_notebook.png").write_text("stays")
    (figures / "README.md").write_text("stays")
    finish(build, "smoke", executed(), ["1_words.png", "1_new.svg"])
    assert sorted(batch.publish("smoke")) == ["figures/smoke/1_new.svg", "figures/smoke/1_old.png (removed)"]
    assert sorted(f.name for f in figures.iterdir()) == [
        "10_other_notebook.png", "1_new.svg", f"{NOTEBOOK}.ipynb", "1_words.png", "README.md",
    ]  # fmt: skip


@pytest.mark.parametrize("mine", [True, False])
def test_what_was_published_of_other_reviews_is_removed(mine: bool, checkout: Path, build: Path):
    def made_of(fingerprint: str) -> nbformat.NotebookNode:
        run = executed("profile = 'imdb'")
        run.cells[3].outputs = [new_output("stream", name="stdout", text=f"reviews: fingerprint {fingerprint}\n")]
        return run

    figures = checkout / "figures" / "imdb"
    save(made_of("aa11"), figures / "5_improvements.ipynb")
    (figures / "5_improvements.csv").write_text("kl,reward\n1,2\n")
    for name in ("results", "tuning"):
        (figures / f"{name}.csv").write_text("kl,reward\n1.0,2.0\n")
    finish(build, "imdb", made_of("bb22" if mine else "aa11"), ["1_words.csv"])
    gone = ["5_improvements.csv", "5_improvements.ipynb", "results.csv", "tuning.csv"]
    removed = [f"figures/imdb/{name} (removed)" for name in gone]
    assert [line for line in sorted(batch.publish("imdb")) if "removed" in line] == removed * mine
    assert [(figures / name).is_file() for name in gone] == [not mine] * 4  # notebook 1 puts no policy on the plane


def test_a_page_without_a_fingerprint_removes_no_other(checkout: Path, build: Path):
    figures = checkout / "figures" / "imdb"
    save(executed("profile = 'imdb'"), figures / "4_warp.ipynb")
    run = executed("profile = 'imdb'")
    run.cells[3].outputs = [new_output("stream", name="stdout", text="reviews: fingerprint aa11\n")]
    save(run, figures / "5_improvements.ipynb")
    finish(build, "imdb", executed("profile = 'imdb'"))
    assert not [line for line in batch.publish("imdb") if "removed" in line]


def test_two_reports_never_tear_one_file(tmp_path: Path):
    line = "import sys; from pathlib import Path; from alignkit.workflow.batch import write\n"
    line += "for i in range(300): write(Path(sys.argv[1]), (sys.argv[2] + str(i)).encode() * 2000)"
    command = [sys.executable, "-c", line, str(tmp_path / "README.md")]
    both = [subprocess.Popen([*command, word], stderr=subprocess.PIPE, text=True) for word in ("one", "other")]
    assert [job.communicate()[1] for job in both] == ["", ""]
    assert (tmp_path / "README.md").read_text() in ("one299" * 2000, "other299" * 2000)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_of_a_replica_only_tables_are_kept(checkout: Path, build: Path):
    name = f"smoke{parameters.REPLICA}"
    (checkout / "params" / name).mkdir()
    (checkout / "params" / name / "shared.yaml").write_text("seeds: [7]")
    finish(build, name, executed(f"profile = '{name}'"), ["1_words.png", "1_words.svg", "1_words.csv"])
    assert batch.publish(name) == [f"figures/{name}/1_words.csv"]
    assert batch.values(NOTEBOOK, name).seeds == [7]


# End to end


class Batch(NamedTuple):
    """A copy of the checkout, its build folder, and the environment in which commands use both."""

    root: Path
    build: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess:
        """Run a command in the copy, or in another folder."""
        return subprocess.run(
            [str(word) for word in command], cwd=folder or self.root, env=self.environment,
            capture_output=True, text=True, timeout=1200,
        )  # fmt: skip

    def snakemake(self, *more: str) -> subprocess.CompletedProcess:
        """The Makefile's own command, with two cores and the smoke profile."""
        line = re.search(r"^SNAKEMAKE\s*:?=\s*(.*)$", (self.root / "Makefile").read_text(), re.MULTILINE)[1]
        return self.run(*line.replace('"$$JOBS"', "2").split(), "--config", "profile=smoke", *more)

    def figures(self) -> dict[str, bytes]:
        """The figures of the smoke profile before they are published."""
        return {f.name: f.read_bytes() for f in paths_in(self.build / "smoke" / "figures") if f.suffix != ".csv"}

    def executed(self, notebook: str = NOTEBOOK) -> Path:
        return self.build / "smoke" / f"{notebook}.ipynb"


def paths_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def start(root: Path, build: Path) -> Batch:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    kernel = {"PYTHONPATH": str(root), "JUPYTER_PREFER_ENV_PATH": "1", "ALIGNKIT_BUILD": str(build)}
    # The commands of the environment that runs the tests, whether it was activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return Batch(root, build, {**os.environ, **threads, **kernel, "PATH": path, "DATA": ""})


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, copy_checkout: Callable[[Path], Path]) -> Batch:
    """The smoke profile, executed once for all tests."""
    base = tmp_path_factory.mktemp("smoke")
    one = start(copy_checkout(base / "checkout"), base / "build")
    done = one.snakemake()
    assert done.returncode == 0, done.stderr
    return one


def errors(notebook: Path) -> list[nbformat.NotebookNode]:
    return [o for cell in read(notebook).cells for o in cell.get("outputs", []) if o.output_type == "error"]


@pytest.mark.batch
def test_one_command_trains_executes_and_draws(smoke: Batch):
    assert [errors(smoke.executed(name)) for name in NOTEBOOKS] == [[] for _ in NOTEBOOKS]
    drawn = {Path(name).stem for name in smoke.figures()}
    assert {"1_training", "1_reliability", "1_second_opinion", "2_plane", "3_plane"} <= drawn
    assert {name[0] for name in drawn} <= {name[0] for name in NOTEBOOKS}
    assert {Path(name).suffix for name in smoke.figures()} == {".png", ".svg"}
    # Notebook 1's three; notebook 5's weak one and three members; one for the new seed of the confirmation.
    assert len(list((smoke.build / "store").glob("train_reward-*"))) == 3 + 4 + 1
    assert not list(smoke.build.rglob("*.failed.ipynb"))
    assert not (smoke.root / "build").exists()


@pytest.mark.batch
@pytest.mark.parametrize("table", ["4_warp", "5_hacking"])
def test_weights_on_the_way_have_no_tokens_of_the_whole_run(table: str, smoke: Batch):
    rows = pd.read_csv(smoke.build / "smoke" / "figures" / f"{table}.csv").query("steps > 0")
    last = rows.groupby("method").steps.transform("max") == rows.steps
    assert 0 < last.sum() < len(rows)
    assert (rows.tokens_generated.notna() == last).all()


@pytest.mark.batch
def test_a_second_run_does_nothing_even_when_every_file_was_touched(smoke: Batch):
    def times() -> dict[Path, int]:
        return {f: f.stat().st_mtime_ns for f in paths_in(smoke.build) if f.suffix != ".lock"}

    for touched in (False, True):
        if touched:
            for file in [*paths_in(smoke.root / "alignkit"), *paths_in(smoke.root / "params"), *smoke.root.glob("*.*")]:
                file.touch()
            for file in [*paths_in(smoke.root / "notebooks"), *paths_in(smoke.build / "smoke" / "trained")]:
                file.touch()
        before = times()
        done = smoke.snakemake()
        assert done.returncode == 0
        assert "Nothing to be done" in done.stderr
        assert times() == before


@pytest.mark.batch
@pytest.mark.parametrize(
    ("edited", "text"),
    [
        ("alignkit/report/figures.py", "# edited"),
        ("params/smoke/shared.yaml", "reward_batch: 8"),
        ("Snakefile", "# edited"),
    ],
)
def test_an_edit_makes_the_notebook_run_again_whoever_made_the_build(edited: str, text: str, smoke: Batch):
    file, memory = smoke.root / edited, smoke.root / ".snakemake"
    before = file.read_bytes()
    file.write_bytes(before + f"\n{text}\n".encode())
    memory.rename(memory.with_name("away"))  # as in another clone that is given this build folder
    try:
        done = smoke.snakemake("--dry-run")
    finally:
        file.write_bytes(before)
        shutil.rmtree(memory, ignore_errors=True)
        memory.with_name("away").rename(memory)
    assert done.returncode == 0
    told = done.stderr + done.stdout
    assert ("Nothing to be done" in told) == (edited == "Snakefile")
    made = re.search(r"output files have to be generated:\s+(.*)", told)
    assert ("train" in (made[1] if made else "")) == edited.startswith("params")


@pytest.mark.batch
def test_a_second_batch_stops_with_one_line(smoke: Batch, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALIGNKIT_BUILD", str(smoke.build))
    with batch.lock_build("smoke"):
        done = smoke.snakemake()
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "another batch is running" in done.stderr


@pytest.mark.batch
def test_executed_notebooks_give_the_same_outputs_under_nbval(smoke: Batch):
    notebooks = [smoke.executed(name) for name in NOTEBOOKS]
    # In one process: notebooks outside the checkout have cells of the same name, which xdist would take for one.
    done = smoke.run(
        "pytest", "--nbval", "--nbval-sanitize-with", "tests/nbval_sanitize.cfg",
        "-p", "no:cacheprovider", *notebooks,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    cells = sum(cell.cell_type == "code" for notebook in notebooks for cell in read(notebook).cells)
    assert f"{cells} passed" in done.stdout


@pytest.mark.batch
def test_papermill_from_any_folder_draws_the_same_bytes(smoke: Batch, tmp_path: Path):
    other = start(smoke.root, tmp_path / "build")
    shutil.copytree(smoke.build / "store", other.build / "store")
    runs = sorted(f.name for f in (smoke.build / "store").iterdir())
    source = smoke.root / "notebooks" / f"{NOTEBOOK}.ipynb"
    values = smoke.root / "params" / "smoke" / f"{NOTEBOOK}.yaml"
    (tmp_path / "here").mkdir()
    done = other.run("papermill", source, "out.ipynb", "-k", "python3", "-f", values, folder=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert errors(tmp_path / "here" / "out.ipynb") == []
    drawn = other.figures()
    assert drawn
    assert drawn == {name: content for name, content in smoke.figures().items() if name.startswith("1_")}
    assert sorted(f.name for f in (other.build / "store").iterdir()) == runs
    assert [f.name for f in (tmp_path / "here").iterdir()] == ["out.ipynb"]


@pytest.mark.batch
@pytest.mark.parametrize(
    ("parameter", "value", "told"),
    [
        ("reward_lr", "1e-5x", "parameters: reward_lr: '1e-5x' (text); allowed: a valid number"),
        ("no_such_key", "1", "parameters: no_such_key: unknown key; allowed: notebook, profile"),
    ],
)
def test_a_wrong_parameter_given_to_papermill_stops_with_one_line(
    parameter: str, value: str, told: str, smoke: Batch, tmp_path: Path
):
    source = smoke.root / "notebooks" / f"{NOTEBOOK}.ipynb"
    done = smoke.run("papermill", source, "out.ipynb", "-k", "python3", "-p", parameter, value, folder=tmp_path)
    assert done.returncode != 0
    error = errors(tmp_path / "out.ipynb")
    assert len(error) == 1
    assert error[0].ename == "UserFault"
    assert [line.startswith(f"UserFault: {told}") for line in error[0].traceback] == [True]
    assert len(error[0].traceback[0].splitlines()) == 1


def run_cells(notebook: Path, values: dict[str, Any]) -> None:
    """The code cells one after another with these parameters, as a kernel would run them."""
    shell = InteractiveShell.instance()
    for cell in parameterize_notebook(load_notebook_node(str(notebook)), values).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()


@pytest.mark.batch
@pytest.mark.parametrize(
    ("notebook", "values"),
    [
        ("3_f_divergences", {"reverse_kl_betas": [0.3]}),  # no β that all families have
        ("5_improvements", {f"{name}_betas": [0.1] for name in ("reverse_kl", "forward_kl", "js")}),  # no β swept
        ("6_one_front", {"matched_kl": [0.25, 1.0]}),  # KLs that the notebook shows anyway
        ("6_one_front", {"matched_kl": [40.0]}),  # beyond all fronts
    ],
)
def test_values_that_are_allowed_run_though_they_leave_a_table_empty(
    notebook: str, values: dict[str, Any], smoke: Batch, tmp_path: Path
):
    for made in ("store", "smoke/figures"):
        shutil.copytree(smoke.build / made, tmp_path / "build" / made)
    source = paths.CHECKOUT / "notebooks" / f"{notebook}.ipynb"
    given = yaml.safe_load((paths.PARAMS / "smoke" / f"{notebook}.yaml").read_text()) | values
    process = in_a_copy(run_cells, source, given, build=tmp_path / "build")
    process.join()
    assert process.exitcode == 0, (tmp_path / "build.out").read_text()[-3000:]


@pytest.mark.batch
@pytest.mark.parametrize("name", ["o'brien.csv", "$(touch PWNED).csv", "{x}.csv", "a b.csv"])
def test_no_name_of_a_file_is_read_by_a_shell(name: str, copy_checkout: Callable[[Path], Path], tmp_path: Path):
    one = start(copy_checkout(tmp_path / "checkout"), tmp_path / "build")
    for other in set((one.root / "notebooks").glob("*.ipynb")) - {one.root / "notebooks" / f"{NOTEBOOK}.ipynb"}:
        other.unlink()
    pd.DataFrame({"text": [f"review {i}" for i in range(20)], "label": [0, 1] * 10}).to_csv(tmp_path / name)
    one.environment["DATA"] = str(tmp_path / name)
    done = one.snakemake()
    assert (done.returncode, f"train_reviews: {ASKED} asked for, but the data has 16" in done.stderr) == (1, True)
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.slow
def test_a_batch_of_a_profile_that_is_not_there_is_one_line(tmp_path: Path):
    done = start(paths.CHECKOUT, tmp_path).run("snakemake", "--dry-run", "--nolock", "--config", "profile=nope")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("batch: profile: 'nope' (text); allowed: ")


SLURM = paths.PACKAGE / "workflow" / "profiles" / "slurm" / "config.yaml"


def test_every_key_of_the_slurm_profile_is_an_option_of_snakemake():
    options = {name.lstrip("-") for action in get_argument_parser()._actions for name in action.option_strings}
    assert set(yaml.safe_load(SLURM.read_text())) <= options


@pytest.mark.slow
def test_the_slurm_profile_plans_the_batch_with_its_resources(tmp_path: Path):
    told = yaml.safe_load(SLURM.read_text())
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        del told["executor"]  # the option knows only what is installed
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
    done = start(paths.CHECKOUT, tmp_path / "build").run(
        "snakemake", "--workflow-profile", tmp_path, "--dry-run", "--config", "profile=smoke"
    )
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"rule (\w+):.*?resources: ([^\n]*)", done.stdout + done.stderr, re.DOTALL)
    asked = {rule: dict(part.split("=") for part in listed.split(", ")) for rule, listed in jobs}
    assert {rule: (asked[rule]["mem_mb"], asked[rule]["runtime"]) for rule in ("train", "notebook")} == {
        "train": ("8000", "1440"),
        "notebook": ("4000", "120"),
    }


@pytest.mark.slow
def test_a_job_on_another_machine_does_not_wait_for_its_own_batch(build: Path):
    with batch.lock_build("smoke"):
        done = start(paths.CHECKOUT, build).run(
            *"snakemake --mode remote --cores 1 --nolock --dry-run --config profile=smoke".split()
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.batch
def test_a_failing_notebook_stays_with_the_failing_cell_named(smoke: Batch, tmp_path: Path):
    broken = start(tmp_path / "checkout", tmp_path / "build")
    shutil.copytree(smoke.root, broken.root, ignore=shutil.ignore_patterns(".snakemake", "__pycache__"))
    shutil.copytree(smoke.build / "store", broken.build / "store")
    file = broken.root / "notebooks" / f"{NOTEBOOK}.ipynb"
    for other in set(file.parent.glob("*.ipynb")) - {file}:
        other.unlink()
    notebook = read(file)
    cell = next(c for c in notebook.cells if c.id == "check")
    cell.source = "raise RuntimeError('broken on purpose')"
    save(notebook, file)
    done = broken.snakemake()
    assert done.returncode != 0
    # after the one that installs, the parameters and papermill's own
    assert f'{NOTEBOOK} failed: Exception encountered at "In [4]"' in done.stderr
    assert f"logs/{NOTEBOOK}.failed.ipynb" in done.stderr
    kept = errors(broken.build / "smoke" / "logs" / f"{NOTEBOOK}.failed.ipynb")
    assert [error.evalue for error in kept] == ["broken on purpose"]
    assert not broken.executed().exists()
    assert len(paths_in(broken.build / "store")) == len(paths_in(smoke.build / "store"))


@pytest.mark.batch
def test_a_job_that_was_killed_is_told(copy_checkout: Callable[[Path], Path], tmp_path: Path):
    broken = start(copy_checkout(tmp_path / "checkout"), tmp_path / "build")
    file = broken.root / "notebooks" / f"{NOTEBOOK}.ipynb"
    for other in set(file.parent.glob("*.ipynb")) - {file}:
        other.unlink()
    recipes = broken.root / "alignkit" / "report" / "reward_model.py"
    recipes.write_text("import os\n\nos.kill(os.getpid(), 9)\n\n\ndef recipe():\n    pass\n")
    done = broken.snakemake()
    assert done.returncode != 0
    assert "killed by signal 9; if memory ran short, fewer JOBS need less; what has ended is kept" in done.stderr


@pytest.mark.batch
def test_publishing_puts_notebook_figures_and_tables_side_by_side(smoke: Batch):
    publish = ("python", "-m", "alignkit", "publish", "smoke")
    done = smoke.run(*publish)
    assert (done.returncode, done.stderr) == (0, "")
    target = smoke.root / "figures" / "smoke"
    assert {f"figures/smoke/{f.name}" for f in target.iterdir()} <= set(done.stdout.splitlines())
    made = {f.name for f in paths_in(smoke.build / "smoke" / "figures")}
    joined = {"results.csv", "findings.csv"}
    assert {f.name for f in target.iterdir()} == made | {f"{name}.ipynb" for name in NOTEBOOKS} | joined
    results = pd.read_csv(target / "results.csv")
    assert {"2_dpo_losses", "3_f_divergences"} <= set(results.notebook)
    assert {"method", "seed", "kl", "reward", "gold", "status"} <= set(results)
    injected = next(
        c for c in read(target / f"{NOTEBOOK}.ipynb").cells if "injected-parameters" in c.metadata.get("tags", "")
    )
    assert injected.source == '# Parameters\nprofile = "smoke"\n'
    assert smoke.run(*publish).stdout == ""
    done = smoke.run("python", "-m", "alignkit", "done", "smoke")
    assert (done.returncode, done.stdout) == (0, "smoke: nothing to do\n")
