"""The one reader and checker of params/, and of what a notebook's cell of values or papermill sets.

A notebook's values are laid over each other: params/pocket, which holds every key; its profile's shared.yaml; its
profile's file for this notebook, if there is one; and last what was set in the notebook.  A replica lies on the profile
that it repeats, a tiny one on the profile that it cuts.  What the keys mean and allow stands in
`alignkit.workflow.schema`.  A fault is one line: where, key, value, what is allowed.
"""

import ast
import html
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow.schema import NOTEBOOKS, Rewarded

SHARED = "shared"
"""The file of a profile (without its suffix) whose values go to all notebooks that know them."""
REPLICA, TINY = "_replica", "_tiny"
"""What follows the name of a profile in the name of one that lies on it: that repeats it with fresh seeds, or cuts it
to sizes that prove no more than that it runs."""
LONGEST_FILE, MOST_TOLD = 20_000, 20
"""Bytes, and faults of one file; so that any file is answered within a second."""
DEEPEST = 8
"""Lists and mappings inside each other; the time that YAML takes grows with the square of it."""
REPORTED = "notebooks"
"""The key of shared.yaml that names the notebooks of the profile's report, where these are not all."""
KNOWN = {key for kind in NOTEBOOKS.values() for key in kind.model_fields} - {"notebook"}


# Faults


def validated(values: dict[str, Any], where: str, given_by: Mapping[str, str] | None = None) -> Rewarded:
    """The parameters of one notebook.  Raises UserFault with one line for each fault.

    `given_by` says for some keys which file they are from, if it is another place than `where`.
    """
    kind = NOTEBOOKS[_notebook(values.get("notebook"), where)]
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = dict.fromkeys(line for e in error.errors() for line in _told(e, kind).splitlines())
    lines = [f"{(given_by or {}).get(re.split('[:[]', line)[0], where)}: {line}" for line in told]
    more = [f"{where}: and {len(lines) - MOST_TOLD} more faults"] if lines[MOST_TOLD:] else []
    raise UserFault("\n".join(lines[:MOST_TOLD] + more))


def _notebook(name: Any, where: str) -> str:
    if isinstance(name, str) and name in NOTEBOOKS:
        return name
    raise UserFault(f"{where}: notebook: {_shown(name)}; allowed: {', '.join(NOTEBOOKS)}")


def _told(error: Any, kind: type[Rewarded]) -> str:
    """A fault in pydantic's words, on one line for each value."""
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    key, value = error["loc"][0], error["input"]
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(value if error["type"] == "invalid_key" else key, kind.model_fields)
    place = key + "".join(f"[{i}]" for i in error["loc"][1:] if isinstance(i, int))
    allowed = re.sub(r"^\w+ should (be |have )?| after validation, not .*$", "", error["msg"])
    if error["type"] == "missing":
        return f"{place}: missing ({kind.model_fields[key].description})"
    hint = "; papermill -p passes it as text, -y as a list" if error["type"] == "list_type" else ""
    return f"{place}: {_shown(value)}; allowed: {allowed}{hint}"


def _unknown(key: Any, known: Iterable[str]) -> str:
    name = key if isinstance(key, str) and key.isprintable() else repr(key)
    return f"{_cut(name)}: unknown key; allowed: {', '.join(known)}"


def _shown(value: Any) -> str:
    """A value as YAML has it, on one line."""
    names = {"None": "null", "True": "true", "False": "false"}
    return f"{_cut(repr(value))} (text)" if isinstance(value, str) else _cut(names.get(repr(value), repr(value)))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


# Files


def read_file(path: Path) -> dict[str, Any]:
    """The values of a parameter file.  Raises UserFault unless it is a short file of flat YAML, each key once."""
    try:
        if not path.exists():
            raise UserFault(f"{path}: cannot be read: there is no such file")
        if not path.is_file() or path.stat().st_size > LONGEST_FILE:
            raise UserFault(f"{path}: cannot be read: a plain file of at most {LONGEST_FILE // 1000} kB is needed")
        text = path.read_text(encoding="utf-8")
        _check_flat(text, path)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        values = loader.construct_document(node) if node else None
    except UserFault:
        raise
    except (OSError, RecursionError, yaml.YAMLError, ValueError) as error:  # PyYAML raises ValueError for 2020-02-31
        reason = _cut(" ".join(str(error).split()))
        raise UserFault(f"{path}: cannot be read as YAML ({reason}); a file of 'key: value' lines is needed") from None
    if not isinstance(values, dict):
        raise UserFault(f"{path}: holds no 'key: value' lines")
    if twice := sorted(key for key, count in Counter(str(key.value) for key, _ in node.value).items() if count > 1):
        raise UserFault(f"{path}: {', '.join(twice)}: given twice; each key is allowed once")
    return values


def _check_flat(text: str, path: Path) -> None:
    """Raise UserFault for YAML whose value may be far larger than its text, or take hours to read."""
    depth = 0
    for token in yaml.scan(text):
        depth += token.id in ("[", "{", "<block sequence start>", "<block mapping start>")
        depth -= token.id in ("]", "}", "<block end>")
        if depth > DEEPEST or isinstance(token, yaml.AliasToken):
            raise UserFault(f"{path}: cannot be read: aliases (*name) and lists in lists in lists are not allowed")


Layers = list[tuple[Path, dict[str, Any]]]
"""Files and what they say about one notebook; a later one wins."""


def _folder(folder: Path, notebook: str) -> Layers:
    """What the files of a profile's folder say about one notebook."""
    layers = []
    shared, own = folder / f"{SHARED}.yaml", folder / f"{notebook}.yaml"
    if shared.exists():
        values = read_file(shared)
        _reported(shared)
        if unknown := [key for key in values if key not in KNOWN | {REPORTED}][:MOST_TOLD]:
            raise UserFault("\n".join(f"{shared}: {_unknown(key, sorted(KNOWN))}" for key in unknown))
        _named(shared, "profile", values.get("profile", folder.name), folder.name)
        layers.append((shared, {key: values[key] for key in values if key in NOTEBOOKS[notebook].model_fields}))
    if own.exists():  # papermill -f reads this file alone, so it says itself what it is for
        values = read_file(own)
        _named(own, "notebook", values.get("notebook"), notebook)
        _named(own, "profile", values.get("profile"), folder.name)
        layers.append((own, values))
    if not layers:
        raise UserFault(f"{folder}: cannot be read: it holds neither {shared.name} nor {own.name}")
    return layers


def _named(file: Path, key: str, value: Any, wanted: str) -> None:
    if value != wanted:
        raise UserFault(f"{file}: {key}: {_shown(value)}; allowed: {wanted!r}, by which the file or folder is named")


def profiles() -> list[str]:
    """The shipped profiles."""
    return sorted({file.parent.name for file in paths.PARAMS.glob("*/*.yaml")})


def check_profile(profile: Any, where: str = "batch") -> None:
    """Raise UserFault unless this is the name of a shipped profile."""
    if profile not in profiles():
        raise UserFault(f"{where}: profile: {_shown(profile)}; allowed: {', '.join(profiles())}, the folders of params")


def _profile(profile: Any, notebook: str, where: str) -> Layers:
    """What a shipped profile says about one notebook.  Raises UserFault if there is no such profile."""
    check_profile(profile, where)
    below = [] if profile == "pocket" else _below(profile, notebook, where)
    return [*below, *_folder(paths.PARAMS / profile, notebook)]


def _below(profile: str, notebook: str, where: str) -> Layers:
    """What a profile is laid on: a replica or a tiny one on the profile of that name, any other on pocket."""
    return _profile(base(profile) if base(profile) != profile else "pocket", notebook, where)


def base(profile: str) -> str:
    """The profile that a replica repeats or a tiny one cuts; of any other, its own name."""
    return profile.removesuffix(REPLICA).removesuffix(TINY)


def reported(profile: str) -> list[str]:
    """The notebooks of a profile's report, in reading order."""
    return _reported(paths.PARAMS / base(profile) / f"{SHARED}.yaml")


def _reported(shared: Path) -> list[str]:
    named = (read_file(shared) if shared.exists() else {}).get(REPORTED, list(NOTEBOOKS))
    if not isinstance(named, list) or [name for name in named if name not in list(NOTEBOOKS)]:
        raise UserFault(f"{shared}: {REPORTED}: {_shown(named)}; allowed: a list of {', '.join(NOTEBOOKS)}")
    return [name for name in NOTEBOOKS if name in named]


def _merged(layers: Layers) -> dict[str, Any]:
    return {key: value for _, values in layers for key, value in values.items()}


def load(path: Path, data: str | None = None, **override: Any) -> Rewarded:
    """The checked parameters of a notebook, some of them overridden.  Raises UserFault with all faults.

    `path` is a notebook's file in the folder of a profile, and may be missing there if shared.yaml says all; or a file
    of one's own, which says by `notebook` and `profile` what it is laid on.
    """
    override |= {"data": data} if data else {}
    if path.parent.resolve() == paths.PARAMS and not path.exists():
        _profile(path.name, next(iter(NOTEBOOKS)), str(path))
    in_profile = (path.parent / f"{SHARED}.yaml").exists() or path.parent.parent.resolve() == paths.PARAMS
    if in_profile and path.stem in NOTEBOOKS and path.suffix == ".yaml":
        profile, notebook = path.parent.name, path.stem
        layers = [*_below(profile, notebook, str(path)), *_folder(path.parent, notebook)]
    else:
        values = read_file(path)
        notebook, profile = _notebook(values.get("notebook", path.stem), str(path)), values.get("profile", "pocket")
        if path.stem in NOTEBOOKS:
            _named(path, "notebook", notebook, path.stem)
        if in_profile:
            _named(path, "profile", profile, path.parent.name)
        layers = [*_profile(profile, notebook, str(path)), (path, values)]
    # A value that the profile leaves as pocket has it is at fault only beside one of the profile's own.
    own = [(f, given) for f, given in layers if profile == "pocket" or f.parent != paths.PARAMS / "pocket"]
    given_by = {key: str(file) for file, given in own for key in given if key not in override}
    return validated({**_merged(layers), "notebook": notebook, "profile": profile, **override}, str(path), given_by)


def check(where: list[Path], data: str | None = None, ask: Callable[[Rewarded], object] = lambda p: None) -> list[str]:
    """One line for each fault in parameter files, or in all *.yaml files of folders; `ask` may find more in their
    values."""
    lines = [f"{path}: holds no parameter file (*.yaml)" for path in where if path.is_dir() and not files([path])]
    for file in files(where):
        try:
            ask(load(file, data))
        except UserFault as fault:
            lines += str(fault).splitlines()
    return list(dict.fromkeys(lines))


def files(where: Iterable[Path]) -> list[Path]:
    """Parameter files as they are, folders replaced by the files in them, a shared.yaml by all notebooks beside it."""
    listed = [file for path in where for file in (sorted(path.rglob("*.y*ml")) if path.is_dir() else [path])]
    each = [[f.parent / f"{n}.yaml" for n in _reported(f)] if f.name == f"{SHARED}.yaml" else [f] for f in listed]
    return list(dict.fromkeys(file for some in each for file in some))


# In a notebook


def from_notebook() -> Any:
    """The notebook's parameters, checked and shown; to be called in the cell after that of its values.

    Any parameter can be set by a line of that cell, or by papermill.  Raises UserFault with one line for each
    fault: wrong types and ranges, names that no parameter has, and data or models out of reach.
    """
    from IPython import get_ipython
    from IPython.display import display

    namespace = get_ipython().user_ns
    cells = namespace.get("In", [])
    # Where a kernel keeps no history (nbval's), the names that are parameters are all that can be known.
    names = (_assigned(cells) or KNOWN | {"notebook"}) & set(namespace)
    given = {key: namespace[key] for key in names if namespace[key] is not None or key not in ("seeds", "data")}
    named = {*re.findall(r"(?m)^notebook = ['\"](\w+)['\"]", "\n".join(cells))}
    if len(named) > 1:
        raise UserFault(f"parameters: notebook: {', '.join(sorted(named))}; allowed: the parameters of one notebook")
    notebook = _notebook(given.get("notebook"), "parameters")
    p = validated({**_merged(_profile(given.get("profile"), notebook, "parameters")), **given}, "parameters")
    notes = p.check_reach()
    display({"text/html": as_html(p), "text/plain": as_text(p)}, raw=True)
    print(*notes, sep="\n", end="\n" * bool(notes))
    return p


def _assigned(cells: list[str]) -> set[str]:
    """The names that the notebook's cell of values assigns, when it was last run, and papermill's cells after it.

    The cell of values is the one that assigns `notebook`; papermill's begin with a comment that says so.
    """
    names: set[str] = set()
    for cell in cells:
        try:
            body = ast.parse(cell).body
        except SyntaxError:
            continue
        found = {t.id for node in body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)}
        if cell.startswith("# Parameters\n"):
            names |= found
        elif "notebook" in found:
            names = found
    return names


def grouped(p: Rewarded) -> dict[str, list[tuple[str, str, str, str]]]:
    """Key, value, pocket's value ("" if it is the same) and words of each parameter, grouped as in the schema."""
    pocket = load(paths.PARAMS / "pocket" / f"{p.notebook}.yaml")
    groups, seen = {}, {"notebook", "profile"}
    for kind in reversed(type(p).__mro__):
        rows = []
        for key in [key for key in inspect.get_annotations(kind) if key in type(p).model_fields and key not in seen]:
            now, usual = _value(getattr(p, key)), _value(getattr(pocket, key))
            rows.append((key, now, "" if now == usual else usual, type(p).model_fields[key].description))
        seen |= {key for key, *_ in rows}
        if rows:
            groups[str(kind.__doc__).rstrip(".")] = rows
    return groups


def _value(value: Any) -> str:
    """A value as it is written in a cell; of a path on this machine, its last part only."""
    if isinstance(value, str) and is_local(value):
        value = Path(value).name
    return _cut(repr(value))


def is_local(source: Any) -> bool:
    """Whether the name of data or of a model is a path that means something on this machine only."""
    return isinstance(source, str) and (source.startswith((".", "~")) or Path(source).is_absolute())


def as_text(p: Rewarded) -> str:
    """The values with their words, one on a line."""
    rows = [row for group in grouped(p).values() for row in group]
    return "\n".join(f"{key} = {now}  # {words}{usual and f' (pocket: {usual})'}" for key, now, usual, words in rows)


LEFT = 'style="text-align: left"'
SUMMARY = 'style="display: list-item; cursor: pointer"'
"""Without it, some style sheets hide the triangle that shows that there is something to open."""


def as_html(p: Rewarded) -> str:
    """The values as HTML: what differs from pocket in bold, one group after the other, the notebook's own opened."""
    escape, groups = partial(html.escape, quote=False), grouped(p)
    shared = paths.PARAMS / p.profile / f"{SHARED}.yaml"  # whose first line may say what the profile is
    about = re.match("# (.*)", shared.read_text("utf-8") if shared.is_file() else "")
    said = f"<p>{escape(about[1])}</p>" if about else ""
    out = [f"<p>{p.notebook}, profile <b>{p.profile}</b>; bold values differ from pocket's.</p>{said}"]
    for title, rows in groups.items():
        opened = " open" if title == list(groups)[-1] else ""
        count = f"{len(rows)} values, {sum(bool(usual) for _, _, usual, _ in rows) or 'none'} changed"
        out.append(f"<details{opened}><summary {SUMMARY}>{title} ({count})</summary><table>")
        for key, value, usual, words in rows:
            now = f"<b>{escape(value)}</b>, pocket {escape(usual)}" if usual else escape(value)
            cells = "".join(f"<td {LEFT}>{text}</td>" for text in (key, now, escape(words)))
            out.append(f"<tr>{cells}</tr>")
        out.append("</table></details>")
    return "\n".join(out)
