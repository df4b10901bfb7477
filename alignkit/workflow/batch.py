"""What a batch depends on, by content and not by file time, and publishing what it made."""

import ast
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow.parameters import NOTEBOOKS

WIDGET = "application/vnd.jupyter.widget-view+json"


def notebooks(profile: str) -> list[str]:
    """The notebooks that exist and have parameters in this profile, in reading order."""
    return [name for name in NOTEBOOKS if _source(name).is_file() and _parameters(profile, name).is_file()]


def content_key(notebook: str, profile: str, data: str = "") -> str:
    """Hash of all that an executed notebook depends on: its cells, its parameters, the modules and the lock, and what
    lies at a local path among its parameters; `data` is in place of the parameters' own."""
    digest = hashlib.sha256()
    for cell in nbformat.read(_source(notebook), as_version=4).cells:
        digest.update(json.dumps([cell.cell_type, cell.source, cell.metadata.get("tags", [])]).encode())
    root = paths.CHECKOUT
    for file in [_parameters(profile, notebook), root / "requirements.lock", *sorted(paths.PACKAGE.rglob("*.py"))]:
        digest.update(file.name.encode() + file.read_bytes())
    values = {**yaml.safe_load(_parameters(profile, notebook).read_text()), **({"data": data} if data else {})}
    for name in ("data", "policy", "reward_model"):
        if values.get(name) not in (None, "pocket", "scratch"):
            digest.update(f"{values[name]} {paths.content(str(values[name]))}".encode())
    return digest.hexdigest()[:16]


def _source(notebook: str) -> Path:
    return paths.CHECKOUT / "notebooks" / f"{notebook}.ipynb"


def _parameters(profile: str, notebook: str) -> Path:
    return paths.PARAMS / profile / f"{notebook}.yaml"


def publish(profile: str) -> list[str]:
    """Copy a profile's executed notebooks, figures and tables out of the build folder; returns the files that changed.

    The pocket notebooks go into notebooks/, so that what is read is what ran; those of other profiles
    lie beside their figures.  Raises UserFault if nothing of the profile was executed, or without a repository.
    """
    if paths.CHECKOUT is None:
        raise UserFault("publish: alignkit was installed without its repository; run this in a clone of it")
    target = paths.CHECKOUT / "figures" / profile
    executed = [n for n in NOTEBOOKS if (paths.build() / profile / f"{n}.ipynb").is_file()]
    if not executed:
        raise UserFault(
            f"publish: no executed notebook of profile {profile!r} in {paths.build()}; run make report first"
        )
    changed = []
    for name in executed:
        run = nbformat.read(paths.build() / profile / f"{name}.ipynb", as_version=4)
        if profile == "pocket":
            clean, file = with_outputs(nbformat.read(_source(name), as_version=4), run), _source(name)
        else:
            clean, file = normalised(run), target / f"{name}.ipynb"
        changed += _write(file, nbformat.writes(clean) + "\n")
        # A figure that the notebook no longer draws must not stay behind.
        fresh = {f.name for f in paths.figures(profile).glob(f"{name[0]}_*")}
        stale = [f for f in target.glob(f"{name[0]}_*") if f.suffix != ".ipynb" and f.name not in fresh]
        for old in stale:
            old.unlink()
            changed.append(f"{old.relative_to(paths.CHECKOUT)} (removed)")
        for figure in sorted(fresh):
            changed += _write(target / figure, (paths.figures(profile) / figure).read_bytes())
    return changed + _write_results(target)


def _write_results(target: Path) -> list[str]:
    """results.csv: the rows of every notebook that puts policies on the KL-reward plane, in one table."""
    tables = [pd.read_csv(target / f"{n}.csv") for n in NOTEBOOKS if (target / f"{n}.csv").is_file()]
    placed = [table for table in tables if "kl" in table]
    if not placed:
        return []
    both = pd.concat(placed).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return _write(target / "results.csv", both)


def _write(file: Path, content: str | bytes) -> list[str]:
    content = content.encode() if isinstance(content, str) else content
    if file.is_file() and file.read_bytes() == content:
        return []
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(file.suffix + ".part")
    part.write_bytes(content)
    shutil.move(part, file)
    return [str(file.relative_to(paths.CHECKOUT))]


def with_outputs(source: nbformat.NotebookNode, run: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The source notebook with the outputs of its execution; papermill's own cell and metadata left out.

    Raises UserFault if the notebook was executed with other values than its parameters cell holds.
    """
    _check_parameters(run)
    _check_cells(source, run)
    outputs = {cell.id: cell for cell in normalised(run).cells}
    for cell in source.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs[cell.id].outputs
    return _renumbered(source)


def _check_cells(source: nbformat.NotebookNode, run: nbformat.NotebookNode) -> None:
    def code(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
        cells = [c for c in notebook.cells if c.cell_type == "code"]
        return [(c.id, c.source) for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]

    if code(source) != code(run):
        name = _assigned(source.cells[1].source)["notebook"]
        raise UserFault(f"publish: {name} was edited after it was executed; run make report again")


def _check_parameters(run: nbformat.NotebookNode) -> None:
    values = _assigned("\n".join(c.source for c in run.cells if "parameters" in c.metadata.get("tags", [])))
    injected = _assigned("\n".join(c.source for c in run.cells if "injected-parameters" in c.metadata.get("tags", [])))
    other = [key for key, value in injected.items() if values.get(key) != value]
    if other:
        raise UserFault(
            f"publish: {values['notebook']} was executed with other values of {', '.join(other)} than its parameters "
            "cell holds; publishing needs the profile's own"
        )


def _assigned(source: str) -> dict[str, Any]:
    body = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in body}


def normalised(run: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook without papermill's metadata, times, widget state and the reader's own data folder."""
    run.metadata = nbformat.from_dict(
        {k: run.metadata[k] for k in ("kernelspec", "language_info") if k in run.metadata}
    )
    for cell in run.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if "injected-parameters" in cell.metadata.get("tags", []):
            source = _assigned(cell.source).get("data", "")
            if Path(source).is_absolute() or source.startswith("."):
                cell.source = re.sub(r"(?m)^data = .*$", f'data = "{Path(source).name}"', cell.source)
        if cell.cell_type == "code":
            # An erased progress line leaves an empty stream behind, a progress bar a widget without its state.
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and not o.text.strip())]
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    return _renumbered(run)


def _renumbered(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    return notebook
