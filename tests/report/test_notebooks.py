"""Every notebook in the repository, read but not run: what a reader sees, and what git keeps."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from helpers import profile_values

from alignkit import ADDRESS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("figures/*/*.ipynb")])
MACHINE_PATH = re.compile(r"/(home|root|tmp|work|Users|mnt|private)/")

pytestmark = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def cells(file: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(file).cells if cell.cell_type == kind]


def written(file: Path) -> list[nbformat.NotebookNode]:
    """The code cells that somebody wrote: not the list of parameters, nor papermill's copy of it."""
    return [c for c in cells(file, "code") if not {"parameters", "injected-parameters"} & set(tags(c))]


def outputs(file: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in cells(file, "code") for output in cell.outputs]


def assigned(cell: nbformat.NotebookNode) -> dict[str, Any]:
    """The values that a cell of plain assignments gives."""
    statements = ast.parse(cell.source).body
    return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}


def values(file: Path) -> dict[str, Any]:
    """The values of the profile that a page shows."""
    return profile_values("pocket" if file.parent.name == "notebooks" else file.parent.name, file.stem)


def trees(file: Path) -> Iterator[ast.AST]:
    for cell in written(file):
        yield from ast.walk(ast.parse(cell.source))


def test_it_is_a_valid_notebook_of_one_megabyte_at_most(file: Path):
    notebook = read(file)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))
    assert file.stat().st_size <= 1_000_000


def test_its_metadata_holds_nothing_of_papermill_widgets_or_times(file: Path):
    notebook = read(file)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


def test_it_shows_no_error_and_no_warning(file: Path):
    shown = [output.get("name", output.output_type) for output in outputs(file)]
    assert not {"error", "stderr"} & set(shown)


def test_it_holds_no_progress_bar_and_no_widget(file: Path):
    for output in outputs(file):
        assert not [kind for kind in output.get("data", {}) if "widget" in kind]
        assert not re.search(r"\d+%\|", json.dumps(output.get("text", "")))


def test_it_was_executed_from_top_to_bottom(file: Path):
    if not outputs(file):
        pytest.skip("not yet executed")
    counts = [cell.execution_count for cell in cells(file, "code")]
    assert counts == list(range(1, len(counts) + 1))


def test_its_cells_are_short_and_narrow_enough_to_read(file: Path):
    for cell in written(file):
        assert len(cell.source.splitlines()) <= 30, cell.id
    for cell in cells(file, "code"):
        assert max(map(len, cell.source.splitlines())) <= 100, cell.id


def test_its_text_holds_no_control_characters(file: Path):
    for cell in read(file).cells:
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", cell.source), cell.id


def test_it_explains_at_least_as_often_as_it_computes(file: Path):
    own = [cell for cell in cells(file, "code") if "injected-parameters" not in tags(cell)]
    assert len(cells(file, "markdown")) >= len(own)
    assert all(cell.source.strip() for cell in read(file).cells)


def test_it_names_no_place_on_somebodys_machine(file: Path):
    for cell in read(file).cells:
        # Encoded images are left out: their letters mean nothing.
        shown = [{k: v for k, v in o.get("data", {}).items() if k != "image/png"} for o in cell.get("outputs", [])]
        streams = [output.get("text", "") for output in cell.get("outputs", [])]
        assert not MACHINE_PATH.search(json.dumps([cell.source, cell.metadata, shown, streams])), cell.id
        assert cell.cell_type == "markdown" or "../" not in cell.source, cell.id


def test_every_picture_has_a_text_that_says_what_it_shows(file: Path):
    pictures = [o for o in outputs(file) if any(kind.startswith("image/") for kind in o.get("data", {}))]
    if not pictures:
        pytest.skip("not yet executed")
    for picture in pictures:
        kind = next(kind for kind in picture.data if kind.startswith("image/"))
        assert len(picture.metadata[kind]["alt"].split()) >= 5


def test_its_first_code_cell_names_notebook_and_profile_and_little_else(file: Path):
    first, *others = [cell for cell in cells(file, "code") if "install" not in tags(cell)]
    assert tags(first) == ["parameters"]
    assert not any("parameters" in tags(cell) for cell in others)
    if file.parent.name == "notebooks":  # a page of another profile keeps the cells of the day on which it ran
        assert assigned(first) == {"notebook": file.stem, "profile": "pocket", "seeds": None, "data": None}


def test_it_opens_on_colab_and_kaggle_and_installs_from_one_address(file: Path):
    if file.parent.name != "notebooks":
        pytest.skip("a page of another profile keeps the cells of the day on which it ran")
    place = f"{ADDRESS.removeprefix('https://github.com/')}/blob/main/notebooks/{file.name}"
    title, first = cells(file, "markdown")[0].source, cells(file, "code")[0]
    assert f"(https://colab.research.google.com/github/{place})" in title
    assert f"(https://kaggle.com/kernels/welcome?src=https://github.com/{place})" in title
    assert (tags(first), first.outputs, first.execution_count) == (["install"], [], 1)
    assert f'"alignkit @ git+{ADDRESS}"' in first.source
    assert first.source == cells(ROOT / "notebooks" / "0_primer.ipynb", "code")[0].source
    kept = "\n".join(cell.source for cell in cells(file, "markdown")[:3])
    assert [place for place in ("ALIGNKIT_BUILD", "drive.mount", "/kaggle/working") if place not in kept] == []


def test_what_papermill_injected_are_values_of_its_profile(file: Path):
    injected = [cell for cell in cells(file, "code") if "injected-parameters" in tags(cell)]
    if file.parent.name == "notebooks":
        assert not injected
    else:
        assert len(injected) == 1
        given = {key: value for key, value in assigned(injected[0]).items() if key != "data"}  # may lie anywhere
        assert given["profile"] == file.parent.name
        assert given.items() <= values(file).items()


def test_no_cell_takes_the_name_of_a_parameter(file: Path):
    taken = set()
    for node in trees(file):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            taken.add(node.id)
        elif isinstance(node, ast.alias):
            taken.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            taken.add(node.name)
    assert not taken & set(values(file))


def test_everything_that_it_takes_from_alignkit_exists(file: Path):
    if file.parent.name != "notebooks":
        pytest.skip("a page of another profile shows the code of the day on which it ran")
    taken: dict[str, Any] = {}
    for node in trees(file):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "alignkit":
            taken |= {alias.asname or alias.name: found(node.module, alias.name) for alias in node.names}
    assert taken
    stored = {node.id for node in trees(file) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert not stored & {name for name, what in taken.items() if isinstance(what, ModuleType)}
    for node in trees(file):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            what = taken.get(node.value.id)
            assert not isinstance(what, ModuleType) or hasattr(what, node.attr), f"{node.value.id}.{node.attr}"


def test_its_contents_link_to_every_heading_in_order(file: Path):
    if file.parent.name != "notebooks":
        pytest.skip("a page of another profile keeps the cells of the day on which it ran")
    texts = {cell.id: cell.source for cell in cells(file, "markdown")}
    headings = re.findall(r"(?m)^## (.+)$", "\n".join(texts.values()))
    links = re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", texts["contents"])
    assert links == [(name, name.replace(" ", "-")) for name in headings if name != "What this page found"]


def test_its_links_to_other_pages_lead_somewhere(file: Path):
    text = "\n".join(cell.source for cell in read(file).cells)
    for page, heading in re.findall(r"\]\((\d_\w+\.ipynb)(?:#([^)]+))?\)", text):
        there = "\n".join(cell.source for cell in cells(ROOT / "notebooks" / page, "markdown"))
        assert not heading or f"## {heading.replace('-', ' ')}\n" in there


def found(module: str, name: str) -> Any:
    """What an import of a name from a module gives: something in it, or a module below it."""
    here = importlib.import_module(module)
    return getattr(here, name) if hasattr(here, name) else importlib.import_module(f"{module}.{name}")
