"""What an executed notebook depends on, by content and not by file time; executing it; publishing what it made."""

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from filelock import FileLock, Timeout

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import parameters
from alignkit.workflow.schema import NOTEBOOKS, World

WIDGET = "application/vnd.jupyter.widget-view+json"


def notebooks(profile: str) -> list[str]:
    """The notebooks that exist and have parameters in this profile, in reading order."""
    folder = paths.PARAMS / profile
    named = (
        NOTEBOOKS if (folder / "shared.yaml").is_file() else [n for n in NOTEBOOKS if (folder / f"{n}.yaml").is_file()]
    )
    return [name for name in named if _source(name).is_file()]


def values(notebook: str, profile: str, data: str = "") -> World:
    """The checked parameters of a notebook in a profile; `data` is in place of the profile's own."""
    return parameters.load(paths.PARAMS / profile / f"{notebook}.yaml", **({"data": data} if data else {}))


def chain(notebook: str) -> list[str]:
    """The notebook and those whose runs its own start from, one after the other."""
    before = max((chain(name) for name in NOTEBOOKS[notebook].after), key=len, default=[])
    return [*before, notebook]


# What an executed notebook depends on


def content_key(notebook: str, profile: str, data: str = "") -> str:
    """Hash of all that an executed notebook depends on.

    These are its cells, its parameters, the alignkit modules that they reach, the lock, what lies at a local path among
    the parameters, and all of this of the notebooks whose tables it reads.
    """
    digest = hashlib.sha256()
    cells = nbformat.read(_source(notebook), as_version=4).cells
    for cell in cells:
        digest.update(json.dumps([cell.cell_type, cell.source, cell.metadata.get("tags", [])]).encode())
    p = values(notebook, profile, data)
    digest.update(json.dumps(p.model_dump(), sort_keys=True).encode())
    for source in sorted({p.data, p.policy, p.reward_model} - {"pocket", "scratch"}):
        digest.update(f"{source} {paths.content(source)}".encode())
    digest.update((paths.CHECKOUT / "requirements.lock").read_bytes())
    for module in reached("\n".join(cell.source for cell in cells if cell.cell_type == "code")):
        for file in filter(Path.is_file, (module, module.with_suffix(".yaml"))):  # a module's data lie beside it
            digest.update(str(file.relative_to(paths.PACKAGE)).encode() + file.read_bytes())
    for name in sorted(set(p.reads) & set(notebooks(profile))):
        digest.update(content_key(name, profile, data).encode())
    return digest.hexdigest()[:16]


def reached(code: str) -> list[Path]:
    """The files of the alignkit modules that a text of Python imports, directly or through one of them."""
    found: set[Path] = set()
    waiting = [code]
    while waiting:
        new = {file for name in _imported(waiting.pop()) for file in _files(name)} - found
        found |= new
        waiting += [file.read_text(encoding="utf-8") for file in new]
    return sorted(found)


@lru_cache(maxsize=512)
def _imported(code: str) -> set[str]:
    """Dotted names that may be modules: what is imported anywhere in the text; all imports here are absolute."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.partition(".")[0] == paths.PACKAGE.name}


def _files(name: str) -> Iterator[Path]:
    """The files that are executed when a dotted name of this package is imported."""
    folder = paths.PACKAGE
    yield folder / "__init__.py"
    for part in name.split(".")[1:]:
        if (folder / f"{part}.py").is_file():
            yield folder / f"{part}.py"
        folder = folder / part
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"


def _source(notebook: str) -> Path:
    return paths.CHECKOUT / "notebooks" / f"{notebook}.ipynb"


def number(name: str) -> str:
    """What stands before the first underscore in the name of a notebook, of a figure or of a table."""
    return name.partition("_")[0]


def of_notebook(folder: Path, notebook: str) -> list[Path]:
    """The figures and tables of a notebook in a folder."""
    listed = folder.iterdir() if folder.is_dir() else []
    return sorted(f for f in listed if f.suffix != ".ipynb" and "_" in f.name and number(f.name) == number(notebook))


# Executing


def only(profile: str) -> FileLock:
    """The lock on a profile's build folder, held until it is released or the process ends.

    Raises UserFault if another batch has it, or if the folder cannot be written.
    """
    folder = paths.build() / profile
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserFault(f"profile {profile!r}: another batch is running in {folder}; wait until it has ended") from None
    except OSError as error:
        raise UserFault(f"profile {profile!r}: {folder} cannot be written ({error.strerror})") from None
    return lock


def executed(profile: str, notebook: str) -> Path:
    """Where an executed notebook lies."""
    return paths.build() / profile / f"{notebook}.ipynb"


def seal(profile: str, notebook: str, key: str) -> Path:
    """The file that says that a notebook was executed under this key, and the checksums of what it made."""
    return paths.build() / profile / "executed" / f"{notebook}-{key}.json"


def execute(profile: str, notebook: str, data: str = "", key: str | None = None) -> None:
    """Execute a notebook into the build folder and seal it; a failed one stays in logs/ with the failing cell marked.

    Raises UserFault if a cell fails, or if `key` is given and what the notebook depends on has another one by now.
    """
    import papermill

    output, failed = executed(profile, notebook), paths.build() / profile / "logs" / f"{notebook}.failed.ipynb"
    now = content_key(notebook, profile, data)
    if key not in (None, now):
        raise UserFault(f"{notebook}: its code or parameters were edited while the batch ran; run make report again")
    # What it no longer draws must not stay behind, nor what an earlier execution made if this one fails.
    for old in [output, *_seals(profile, notebook), *of_notebook(paths.figures(profile), notebook)]:
        old.unlink(missing_ok=True)
    failed.parent.mkdir(parents=True, exist_ok=True)
    given = {"profile": profile, **({"data": data} if data else {})}
    try:
        papermill.execute_notebook(_source(notebook), failed, given, kernel_name="python3", progress_bar=False)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        if hasattr(error, "exec_count"):  # papermill's own error
            what = f'Exception encountered at "In [{error.exec_count}]": {error.ename}: {error.evalue}'
        raise UserFault(f"{notebook} failed: {what.splitlines()[0]} - see {failed}") from error
    failed.rename(output)
    seal_up(profile, notebook, now, data)


def seal_up(profile: str, notebook: str, key: str, data: str = "") -> None:
    """Write the seal of what lies in the build folder now."""
    made = [executed(profile, notebook), *of_notebook(paths.figures(profile), notebook)]
    record = {"data": data, "files": {str(f.relative_to(paths.build() / profile)): _checksum(f) for f in made}}
    file = seal(profile, notebook, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".part").write_text(json.dumps(record, indent=1))
    file.with_suffix(".part").rename(file)


def _seals(profile: str, notebook: str) -> list[Path]:
    return sorted((paths.build() / profile / "executed").glob(f"{notebook}-*.json"))


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _read(seal: Path) -> tuple[str, dict[str, str]]:
    """The data that were given and the checksums in a seal; of a damaged one, nothing."""
    try:
        record = json.loads(seal.read_text(encoding="utf-8"))
        return str(record["data"]), dict(record["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return "", {}


def damage(profile: str, notebook: str, seal: Path) -> str:
    """Which of a sealed notebook's files are not as they were made: one name, or "" if all are."""
    _, files = _read(seal)
    folder = paths.build() / profile
    made = {str(f.relative_to(folder)) for f in of_notebook(paths.figures(profile), notebook)}
    other = [name for name, checksum in files.items() if _checksum(folder / name) != checksum]
    return next(iter([*other, *sorted(made - set(files))]), "" if files else seal.name)


def break_seals(profile: str) -> None:
    """Remove the seals of notebooks whose files are not as they were made, so that they are executed again."""
    for name in notebooks(profile):
        for file in _seals(profile, name):
            if damage(profile, name, file):
                file.unlink()


def check_executed(profile: str, notebook: str) -> None:
    """Raise UserFault unless what lies in the build folder is what this code makes of these parameters."""
    again = "run make report again"
    file = next(iter(_seals(profile, notebook)), None)
    if file is None or (name := damage(profile, notebook, file)):
        what = f"{name} is not as it was made" if file else "its execution did not end"
        raise UserFault(f"publish: {notebook}: {what}; {again}")
    data, _ = _read(file)
    if file != seal(profile, notebook, content_key(notebook, profile, data)):
        raise UserFault(f"publish: {notebook} was executed with other parameters or code; {again}")


# Publishing


def publish(profile: str) -> list[str]:
    """Copy a profile's executed notebooks, figures and tables out of the build folder; returns the files that changed.

    The pocket notebooks go into notebooks/, so that what is read is what ran; those of other profiles
    lie beside their figures.  Raises UserFault if nothing of the profile was executed, if what was executed is
    damaged or out of date, while another batch runs, or without a repository.
    """
    if paths.CHECKOUT is None:
        raise UserFault("publish: alignkit was installed without its repository; run this in a clone of it")
    target = paths.CHECKOUT / "figures" / profile
    done = [n for n in NOTEBOOKS if executed(profile, n).is_file()]
    if not done:
        raise UserFault(
            f"publish: no executed notebook of profile {profile!r} in {paths.build()}; run make report first"
        )
    with only(profile):
        for name in done:
            check_executed(profile, name)
        changed = []
        for name in done:
            run = nbformat.read(executed(profile, name), as_version=4)
            if profile == "pocket":
                clean, file = with_outputs(nbformat.read(_source(name), as_version=4), run), _source(name)
            else:
                clean, file = normalised(run), target / f"{name}.ipynb"
            changed += _write(file, nbformat.writes(clean) + "\n")
            changed += _write_figures(profile, name, target)
        return changed + _write_results(target)


def _write_figures(profile: str, notebook: str, target: Path) -> list[str]:
    """Figures and tables of a notebook; those that it no longer makes are removed."""
    changed = []
    fresh = of_notebook(paths.figures(profile), notebook)
    for old in of_notebook(target, notebook):
        if old.name not in {f.name for f in fresh}:
            old.unlink()
            changed.append(f"{old.relative_to(paths.CHECKOUT)} (removed)")
    for file in fresh:
        changed += _write(target / file.name, file.read_bytes())
    return changed


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

    Raises UserFault if the notebook was executed with other cells, or with other values than its profile's.
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
        name = _parameters(source)["notebook"]
        raise UserFault(f"publish: {name} was edited after it was executed; run make report again")


def _parameters(notebook: nbformat.NotebookNode, tag: str = "parameters") -> dict[str, Any]:
    """What the cells with a tag assign: the first cell, or papermill's (injected-parameters)."""
    body = ast.parse("\n".join(c.source for c in notebook.cells if tag in c.metadata.get("tags", []))).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign)}


def _check_parameters(run: nbformat.NotebookNode) -> None:
    given = _parameters(run)
    own = {**given, **parameters.profile_values(given["profile"], given["notebook"])}
    injected = _parameters(run, "injected-parameters")
    if other := [key for key, value in injected.items() if value != own.get(key)]:
        raise UserFault(
            f"publish: {given['notebook']} was executed with other values of {', '.join(other)} than its profile has; "
            "publishing needs the profile's own"
        )


def normalised(run: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook without papermill's metadata, times, widget state and the reader's own data folder."""
    run.metadata = nbformat.from_dict(
        {k: run.metadata[k] for k in ("kernelspec", "language_info") if k in run.metadata}
    )
    for cell in run.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r"(?m)^(data|policy|reward_model) = (.*)$", _without_folder, cell.source)
        if cell.cell_type == "code":
            # An erased progress line leaves an empty stream behind, a progress bar a widget without its state.
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and not o.text.strip())]
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    return _renumbered(run)


def _without_folder(line: re.Match) -> str:
    value = ast.literal_eval(line[2])
    return f'{line[1]} = "{Path(value).name}"' if parameters.is_local(value) else line[0]


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
