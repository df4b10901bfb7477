"""What an executed notebook depends on, by content and not by file time; executing it; publishing what it made."""

import ast
import json
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock, Timeout

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import checksums, identity, parameters
from alignkit.workflow.schema import NOTEBOOKS, World
from alignkit.world.known import GENERATORS

if TYPE_CHECKING:  # it takes more than a second to import
    import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"
NOTED = "published"
"""The file of a profile's build folder that keeps its `standing`."""
PAGE_LINK = re.compile(r"\]\((\d_\w+)(?=\.ipynb)")
"""The beginning of a link to a notebook."""
INJECTED = "injected-parameters"
"""The tag of the cell that papermill adds, and in a published notebook its id."""


def notebooks(profile: str) -> list[str]:
    """The notebooks of this profile's report that exist and have parameters in it, in reading order."""
    files = {file.stem for file in (paths.PARAMS / profile).glob("*.yaml")}
    return [n for n in parameters.reported(profile) if files & {n, parameters.SHARED} and _source(n).is_file()]


def values(notebook: str, profile: str, data: str = "") -> World:
    """The checked parameters of a notebook in a profile; `data` is in place of the profile's own."""
    return parameters.load(paths.PARAMS / profile / f"{notebook}.yaml", data)


def with_those_before(notebook: str) -> list[str]:
    """The notebook and those whose runs its own start from, one after the other."""
    return [*max((with_those_before(name) for name in NOTEBOOKS[notebook].after), key=len, default=[]), notebook]


# What an executed notebook depends on


def content_key(notebook: str, profile: str, data: str = "") -> str:
    """Hash of all that an executed notebook depends on.

    These are its cells, its parameters, the alignkit modules that they reach, the lock, what lies at a local path among
    the parameters, and all of this for the notebooks whose tables it reads; for the last notebook also what `tune`
    wrote, and pocket's published findings, which other profiles show beside their own.
    """
    p = values(notebook, profile, data)
    cells = json.loads(_source(notebook).read_text(encoding="utf-8"))["cells"]
    told = [[cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])] for cell in cells]
    code = "\n".join(source for kind, source, _ in told if kind == "code")
    modules = _reached(code, tuple((file, file.stat().st_mtime_ns) for file in _files(paths.PACKAGE)))
    files = [*modules, *(module.with_suffix(".yaml") for module in modules)]  # a module's data lie beside it
    if p.reads:
        beside = [] if parameters.base(profile) == "pocket" else [paths.published("pocket") / "findings.csv"]
        files += [paths.published(profile) / "tuning.csv", *beside]
    read = [content_key(name, profile, data) for name in sorted(set(p.reads) & set(notebooks(profile)))]
    return checksums.of_values([told, _given(p), checksums.of(paths.PACKAGE, filter(Path.is_file, files)), read])


def training_key(notebook: str, profile: str, data: str = "") -> str:
    """Hash of what decides which runs a notebook asks for, and what is in them.

    These are its parameters, the lock, what lies at a local path among the parameters, and all definitions that the
    `recipe` of its module reaches: neither its cells nor its figures, tables and sentences.
    """
    asked = identity.reached(f"{identity.PACKAGE}.report.{notebook.partition('_')[2]}", "recipe")
    return checksums.of_values([_given(values(notebook, profile, data)), identity.digest(asked)])


def _given(p: World) -> list[Any]:
    """Parameters, what lies at a local path among them, and the lock."""
    places = {p.data, p.policy, p.reward_model} - {*GENERATORS, "scratch"}
    lock = (paths.CHECKOUT / "requirements.lock").read_text(encoding="utf-8")
    return [p.model_dump(), {place: checksums.content(place) for place in places}, lock]


@lru_cache(maxsize=64)
def _reached(code: str, _: tuple[tuple[Path, int], ...]) -> list[Path]:
    """The files of the alignkit modules that a text of Python imports, directly or through one of them; found again
    when a file of the package has another time."""
    finder = ModuleFinder([str(paths.PACKAGE.parent)])
    finder.scan_code(compile(code, "cells", "exec"), finder.add_module("__main__"))
    return sorted(Path(module.__file__) for module in finder.modules.values() if module.__file__)


def _source(notebook: str) -> Path:
    return paths.CHECKOUT / "notebooks" / f"{notebook}.ipynb"


def figures_and_tables(folder: Path, notebook: str) -> list[Path]:
    """The figures and tables of a notebook in a folder; their names begin with its number."""
    return sorted(f for f in folder.glob(f"{notebook.partition('_')[0]}_*") if f.suffix != ".ipynb")


# Executing


def lock_build(profile: str, name: str = ".lock") -> FileLock:
    """The lock of this name on a profile's build folder, held until it is released or the process ends.

    Raises UserFault if another batch has it, if the folder cannot be written, or if Snakemake would read its name as a
    pattern.
    """
    folder = paths.build() / profile
    if {*"{}"} & {*str(folder)}:
        raise UserFault(f"profile {profile!r}: {folder}: braces mean something to Snakemake; allowed: a name without")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name)
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
    with lock_build(profile, f".{notebook}-lock"):  # two executions would write over each other
        # What it no longer draws must not stay behind, nor what an earlier execution made if this one fails.
        for old in [output, *_seals(profile, notebook), *figures_and_tables(paths.figures(profile), notebook)]:
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
    record = {"data": data, "files": _made(profile, notebook)}
    write(seal(profile, notebook, key), json.dumps(record, indent=1).encode())


def _made(profile: str, notebook: str) -> dict[str, str]:
    """The checksums of an executed notebook, its figures and its tables."""
    files = [executed(profile, notebook), *figures_and_tables(paths.figures(profile), notebook)]
    return checksums.of(paths.build() / profile, files)


def _seals(profile: str, notebook: str) -> list[Path]:
    return sorted((paths.build() / profile / "executed").glob(f"{notebook}-*.json"))


def _read(seal: Path) -> tuple[str, dict[str, str]]:
    """The data that were given and the checksums in a seal; of a damaged one, nothing."""
    try:
        record = json.loads(seal.read_text(encoding="utf-8"))
        return str(record["data"]), dict(record["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return "", {}


def first_damaged(profile: str, notebook: str, seal: Path) -> str:
    """Which of a sealed notebook's files are not as they were made: one name, or "" if all are."""
    _, files = _read(seal)
    return next(iter(checksums.differing(files, _made(profile, notebook))), "") if files else seal.name


def break_seals(profile: str) -> None:
    """Remove the seals of notebooks whose files are not as they were made, or which read tables of one that has no
    seal, so that they are executed again."""
    for name in notebooks(profile):
        others = [_seals(profile, other) for other in set(values(name, profile).reads) & set(notebooks(profile))]
        for file in _seals(profile, name):
            if first_damaged(profile, name, file) or not all(others):
                file.unlink()


def check_executed(profile: str, notebook: str) -> str:
    """The reviews that what lies in the build folder was made with, in place of the profile's own ("").

    Raises UserFault unless it is what this code makes of the profile's parameters.
    """
    file = next(iter(_seals(profile, notebook)), None)
    if file is None or (name := first_damaged(profile, notebook, file)):
        what = f"{name} is not as it was made" if file else "its execution did not end"
        raise UserFault(f"publish: {notebook}: {what}; run make report again")
    data, _ = _read(file)
    if file != seal(profile, notebook, content_key(notebook, profile, data)):
        raise UserFault(f"publish: {notebook} was executed with other parameters or code; run make report again")
    check_data(profile, data)
    return data


def check_data(profile: str, data: str) -> None:
    """Raise UserFault if a report with these data could not be published: pocket's pages show its own world."""
    if data not in ("", "pocket") and parameters.base(profile) == "pocket":
        raise UserFault(f"data: {data!r}; {profile} has its own alone; allowed: another profile, such as imdb_scratch")


# Publishing


def publish(profile: str) -> list[str]:
    """Copy a profile's executed notebooks, figures and tables out of the build folder; returns the files that changed.

    The pocket notebooks go into notebooks/, so that what is read is what ran; those of other profiles lie beside
    their figures; of a replica, tables alone are kept.  Pages of other reviews, and what belongs to them, are removed.
    Raises UserFault if nothing of the profile was executed, if what was executed is damaged or out of date, or while
    another batch runs.
    """
    import nbformat

    target = paths.CHECKOUT / "figures" / profile
    done = [n for n in NOTEBOOKS if executed(profile, n).is_file()]
    if not done:
        raise UserFault(f"publish: no executed notebook of {profile!r} in {paths.build()}; run make report first")
    with lock_build(profile):
        if len(given := {check_executed(profile, name) for name in done}) > 1:
            raise UserFault(f"publish: {profile!r} has pages of other reviews: {sorted(given)}; run make report again")
        changed, made = [], {_reviews(executed(profile, name)) for name in done} - {""}
        for name in NOTEBOOKS:
            file = (_source(name).parent if profile == "pocket" else target) / f"{name}.ipynb"
            if name in done:
                if not profile.endswith(parameters.REPLICA):
                    changed += write(file, f"{nbformat.writes(cleaned(profile, name))}\n".encode())
                changed += _write_figures(profile, name, target)
            elif made and profile != "pocket" and _reviews(file) not in {"", *made}:  # no report has two sets
                changed += _removed([file, target / "tuning.csv", *figures_and_tables(target, name)])
        # The rows of every notebook that puts policies on the KL-reward plane.
        tables = map(pd.read_csv, filter(Path.is_file, (target / f"{name}.csv" for name in NOTEBOOKS)))
        found, file = [table for table in tables if "kl" in table], target / "results.csv"
        return changed + (write_table(file, pd.concat(found)) if found else _removed([file]))


def standing(profile: str, data: str = "") -> str:
    """Hash of all that a whole report is made of and of all that it made; "" if one of its notebooks was not executed.

    These are the code, parameters, lock and data; pages, figures and README of this checkout; and the build folder's
    pages, figures and tables of the profile.
    """
    names, root = notebooks(profile), paths.CHECKOUT
    if not all(executed(profile, name).is_file() for name in names):
        return ""
    each = [[_given(values(name, profile, data)), _made(profile, name)] for name in names]
    folders = ("alignkit", "benchmarks", "figures", "notebooks", "params")
    files = [file for folder in folders for file in _files(root / folder)]
    return checksums.of_values([each, checksums.of(root, [*files, root / "README.md"])])


def _files(folder: Path) -> list[Path]:
    """All files in a folder but what Python and Jupyter keep there for themselves."""
    found = (file for file in folder.rglob("*") if not {"__pycache__", ".ipynb_checkpoints"} & {*file.parts})
    return sorted(file for file in found if file.is_file())


def is_published(profile: str, data: str = "") -> bool:
    """Whether everything stands as when this report, with these data, was published last: there is nothing to do."""
    file = paths.build() / profile / NOTED
    return file.is_file() and file.read_text(encoding="utf-8") == standing(profile, data) != ""


def note_published(profile: str) -> None:
    """Keep how everything stands, for `is_published`.  Raises UserFault if something was edited since it was executed.

    What stands now may be later than what was published: an editor saves at any time.
    """
    given = {_read(file)[0] for name in notebooks(profile) for file in _seals(profile, name)}
    told = standing(profile, *given) if len(given) == 1 else ""
    for name in notebooks(profile) if told else ():
        check_executed(profile, name)
    (paths.build() / profile / NOTED).write_text(told, encoding="utf-8")


def _write_figures(profile: str, notebook: str, target: Path) -> list[str]:
    """Figures and tables of a notebook; those that it no longer makes are removed."""
    drawn = figures_and_tables(paths.figures(profile), notebook)
    fresh = {file.name: file for file in drawn if file.suffix == ".csv" or not profile.endswith(parameters.REPLICA)}
    changed = _removed(old for old in figures_and_tables(target, notebook) if old.name not in fresh)
    for name, file in fresh.items():
        changed += write(target / name, file.read_bytes())
    return changed


def _removed(files: Iterable[Path]) -> list[str]:
    gone = [file for file in files if file.is_file()]
    for file in gone:
        file.unlink()
    return [f"{file.relative_to(paths.CHECKOUT)} (removed)" for file in gone]


def _reviews(page: Path) -> str:
    """The fingerprint of the reviews that a page says it was made with; "" where it says none."""
    return "".join(re.findall(r"reviews: fingerprint (\w+)", page.read_text("utf-8") if page.is_file() else "")[:1])


def write_table(file: Path, table: pd.DataFrame) -> list[str]:
    """Write a table into the checkout, if it says something else; returns the files that changed."""
    return write(file, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())


def write(file: Path, content: bytes) -> list[str]:
    """Write a file, whole or not at all; returns the files that changed, as seen from the checkout."""
    if file.is_file() and file.read_bytes() == content:
        return []
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f"{file.suffix}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(file)
    return [os.path.relpath(file, paths.CHECKOUT)]


def cleaned(profile: str, notebook: str) -> "nbformat.NotebookNode":
    """An executed notebook without papermill's metadata, times, widget state and the reader's own data folder.

    The pocket one is its source with the outputs of the run, and has nothing of papermill.  Of another profile, links
    to notebooks that it does not have lead to pocket's.
    """
    import nbformat

    run = nbformat.read(executed(profile, notebook), as_version=4)
    if profile == "pocket":
        cells = [cell for cell in run.cells if INJECTED not in cell.metadata.get("tags", [])]
        run = nbformat.read(_source(notebook), as_version=4)
        run.cells = cells
    run.metadata = nbformat.from_dict({k: v for k, v in run.metadata.items() if k in ("kernelspec", "language_info")})
    own = {name for name in NOTEBOOKS if profile == "pocket" or executed(profile, name).is_file()}
    for cell in run.cells:
        if cell.cell_type == "markdown":
            cell.source = PAGE_LINK.sub(lambda m: m[0] if m[1] in own else f"](../../notebooks/{m[1]}", cell.source)
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if INJECTED in tags:
            cell.id = INJECTED  # papermill's is another one at each execution
            cell.source = re.sub(r"(?m)^(data|policy|reward_model) = (.*)$", _without_folder, cell.source)
    code = [cell for cell in run.cells if cell.cell_type == "code" and cell.source.strip()]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        # An erased progress line leaves an empty stream behind, a progress bar a widget without its state.
        cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and not o.text.strip())]
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return run


def _without_folder(line: re.Match) -> str:
    value = ast.literal_eval(line[2])
    return f'{line[1]} = "{Path(value).name}"' if parameters.is_local(value) else line[0]
