"""Colab and Kaggle: a notebook's first cell, and a notebook run from a wheel, in no repository."""

import importlib
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from helpers import times
from nbformat.v4 import new_code_cell
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from alignkit import ADDRESS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "1_reward_model.ipynb", as_version=4)
INSTALL = next(cell.source for cell in NOTEBOOK.cells if cell.id == "install")
HOSTS = {"COLAB_RELEASE_TAG": "release-colab_20260101", "KAGGLE_KERNEL_RUN_TYPE": "Interactive"}


def commands(monkeypatch: pytest.MonkeyPatch, host: str | None, installed: bool, fits: bool = True) -> list[list[str]]:
    """The commands that the first cell starts; `fits` says whether alignkit can be installed beside what is there."""
    started: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        started.append(command)
        return SimpleNamespace(stdout=b"numpy==2.0.2\n", returncode=int("-c" in command and not fits))

    for name in HOSTS:
        monkeypatch.delenv(name, raising=False)
    if host:
        monkeypatch.setenv(host, HOSTS[host])
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if installed else None)
    exec(INSTALL, {})
    return started


@pytest.mark.parametrize(("host", "installed"), [(None, True), (None, False), *((host, True) for host in HOSTS)])
def test_the_first_cell_does_nothing_elsewhere_or_a_second_time(host, installed, monkeypatch, capsys):
    assert commands(monkeypatch, host, installed) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("host", HOSTS)
def test_on_a_host_it_installs_under_the_constraint_of_what_is_there(host: str, monkeypatch):
    listed, install = commands(monkeypatch, host, installed=False)
    assert listed[-2:] == ["list", "--format=freeze"]
    assert install[-3:-1] == [f"alignkit @ git+{ADDRESS}", "-c"]


def test_where_what_is_there_is_too_old_pip_may_change_it(monkeypatch):
    _, first, second = commands(monkeypatch, "COLAB_RELEASE_TAG", installed=False, fits=False)
    assert second == first[:-2]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A Python with this environment's libraries and without alignkit; another package there has a folder notebooks."""
    libraries = tmp_path / "libraries" / "site-packages"  # dill tells a library's modules by this name
    libraries.mkdir(parents=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "alignkit" not in entry.name and entry.suffix != ".pth":
            (libraries / entry.name).symlink_to(entry)
    venv.create(tmp_path / "env")
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(f"{libraries}\n")
    (site / "notebooks").mkdir()
    return tmp_path / "env" / "bin" / "python"


def execute(python: Path, notebook: nbformat.NotebookNode, folder: Path, host: str, wheel: Path) -> None:
    """Run a notebook's cells one after the other, with what the host sets; alignkit comes from the wheel."""
    for cell in notebook.cells:
        cell.source = cell.source.replace(f"alignkit @ git+{ADDRESS}", str(wheel)).replace("'pocket'", "'smoke'")
    nbformat.write(notebook, folder / "page.ipynb")
    code = (
        "import nbformat; from nbclient import NotebookClient\n"
        "page = nbformat.read('page.ipynb', as_version=4)\n"
        "NotebookClient(page, timeout=None, kernel_name='python3').execute()"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "JUPYTER"))}
    environment |= {host: HOSTS[host], "PIP_NO_INDEX": "1"}
    done = subprocess.run([python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(to), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    return next(to.glob("*.whl"))


def told_in(folder: Path) -> nbformat.NotebookNode:
    """A cell that fails unless the package there is alone, builds in this folder, and has pocket's tables."""
    return new_code_cell(
        "from alignkit import paths\nfrom alignkit.report import one_front\n"
        f"assert paths.CHECKOUT is None and paths.build() == paths.Path({str(folder)!r}) / 'build'\n"
        "assert p.profile == 'smoke' and len(one_front.tables_of_notebooks('pock' 'et', ['2_dpo_losses']))"
    )


@pytest.mark.batch
def test_a_notebook_starts_from_a_wheel_without_a_clone(elsewhere: Path, wheel: Path, tmp_path: Path, monkeypatch):
    """On the second host; the whole one below runs on the first."""
    monkeypatch.delenv("ALIGNKIT_BUILD", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    page = nbformat.from_dict(NOTEBOOK)
    page.cells = [*page.cells[: [cell.id for cell in page.cells].index("check") + 1], told_in(folder)]
    execute(elsewhere, page, folder, [*HOSTS][1], wheel)


@pytest.mark.batch
def test_whole_notebooks_run_from_a_wheel_without_a_clone(elsewhere: Path, wheel: Path, tmp_path: Path, monkeypatch):
    """One of them; all seven, one after the other in one folder, under `make torture`."""
    monkeypatch.delenv("ALIGNKIT_BUILD", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    for file, host in zip(PAGES[: times(1, 7)], cycle(HOSTS), strict=False):
        page = nbformat.read(file, as_version=4)
        page.cells.append(told_in(folder))
        execute(elsewhere, page, folder, host, wheel)
        assert list((folder / "build" / "smoke" / "figures").glob(f"{file.stem[0]}_findings.csv"))


# What is there


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COLAB = yaml.safe_load((ROOT / "tests" / "colab.yaml").read_text())


@pytest.mark.parametrize("wanted", map(Requirement, PROJECT["dependencies"]), ids=str)
def test_what_colab_has_moves_only_where_it_is_too_old(wanted: Requirement):
    if wanted.name not in COLAB:
        pytest.skip("it is not there, so it is installed")
    assert wanted.specifier.contains(COLAB[wanted.name]) == (wanted.name not in COLAB["moves"])


def test_alignkit_runs_on_colabs_python():
    assert SpecifierSet(PROJECT["requires-python"]).contains(COLAB["python"])


def test_every_link_to_the_repository_leads_to_one_address(tracked: list[Path]):
    texts = [(ROOT / file).read_text("utf-8") for file in tracked if file.suffix in (".md", ".ipynb", ".toml", ".cff")]
    found = {link for text in texts for link in re.findall(r"github\.com/(alignkit[\w./-]*)", text)}
    home = ADDRESS.removeprefix("https://github.com/")
    assert found
    assert [link for link in found if link != home and not link.startswith(f"{home}/")] == []
    pages = re.findall(rf"{home}/blob/main/([\w./-]+)", "\n".join(texts))
    assert {page for page in pages if not (ROOT / page).is_file()} == set()
