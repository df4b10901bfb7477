"""What a function's result depends on in this package: the definitions that it reaches, whatever file they stand in.

The source of a run is the set of all definitions that its training function names, directly or through others, as
normalised syntax trees: no comments, no docstrings, no module paths.  So wording a docstring or moving a function to
another file changes nothing, and an edit of one loss changes the runs that train with it, and no others: of a
registry, which maps names to definitions, the entries count that the settings name.  The data of a module, in a YAML
file of its name beside it, count with all that is reached in the module.

What reads the reviews does not count, since what they say does (`Reviews.fingerprint`).

What cannot be followed must not stand in such code: `getattr`, `importlib`, `eval`, `exec`, `globals`, star imports.
An edit while a process runs counts in the next one.
"""

import ast
import hashlib
import json
import re
import symtable
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from alignkit import paths

PACKAGE = "alignkit"
PLAIN = r"(?s)\{(\w+)\.(__name__|name): \1 for \1 in \(.*\)\}"
"""A registry that is made of a tuple: each item under its name, none of them changed or left out."""
Place = tuple[str, str]
"""A module and a name in it; the name is "" for the module's own statements."""
BY_CONTENT = {("alignkit.world.reviews", "_load"), ("alignkit.world.reviews", "_stamp")}
"""Not followed: what the reader of reviews returns counts by its fingerprint, however it is read."""


@lru_cache(maxsize=256)
def source(function: Callable[..., Any], words: frozenset[str] = frozenset()) -> str:
    """SHA-256 of all definitions that the function reaches (first 16 hex digits); words: the texts among its settings.

    Raises ValueError for a function that is not defined at the top of a file, such as one of a notebook's cell.
    """
    found = reached(function.__module__, function.__name__, words)
    if (function.__module__, function.__name__) not in found:
        raise ValueError(f"{function.__qualname__}: a training function must stand at the top of a module")
    return digest(found)


def digest(found: Mapping[Place, ast.AST]) -> str:
    """SHA-256 of definitions (first 16 hex digits), with the data of their modules and what their names stand for."""
    lines = set()
    for (module, name), node in found.items():
        meaning = _read(module).meaning
        lines |= {f"{name} {ast.dump(node)}", *_read(module).data}
        lines |= {f"{used} is {meaning[used]}" for used in global_names(node) & set(meaning)}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def reached(module: str, name: str, words: frozenset[str] = frozenset()) -> dict[Place, ast.AST]:
    """The definitions that a definition reaches, itself among them, and the other statements of their modules.

    Of a registry only the entries that `words` name, or all if they name none.
    """
    found: dict[Place, ast.AST] = {}
    waiting: list[Place] = [(module, name)]
    while waiting:
        place = waiting.pop()
        where = _read(place[0])
        if place in found or place in BY_CONTENT or where is None:
            continue
        if place[1] not in where.definitions:
            # A name that the module only passes on, from where it imports it.
            waiting += [where.imported[place[1]]] if place[1] in where.imported else []
            continue
        found[place] = _entries(where.definitions[place[1]], words)
        waiting += [(place[0], ""), *_named(place[0], where, found[place])]
    return found


def _entries(node: ast.AST, words: frozenset[str]) -> ast.AST:
    """A registry's entries of these names; all of a registry of which none is named, and of anything else.

    A registry is {"a": a, "b": b}, or {f.__name__: f for f in (a, b)}, or the same over calls with a name=.
    """
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    entries: dict[str | None, ast.AST] = {}
    if isinstance(value, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in value.keys]
        entries = dict(zip(keys, value.values, strict=True))
    elif isinstance(value, ast.DictComp) and re.fullmatch(PLAIN, ast.unparse(value)):
        entries = {_name(item): item for item in value.generators[0].iter.elts}
    if None in entries or not words & set(entries):  # what cannot be told apart counts whole
        return node
    return ast.Module([ast.Expr(ast.Tuple([ast.Constant(n), entries[n]])) for n in sorted(words & set(entries))], [])


def _name(item: ast.expr) -> str | None:
    named = [k.value.value for k in item.keywords if k.arg == "name"] if isinstance(item, ast.Call) else []
    return named[0] if named else item.id if isinstance(item, ast.Name) else None


class _Module:
    """What stands in a module."""

    def __init__(self, file: Path):
        data = file.with_suffix(".yaml")
        self.data = [json.dumps(yaml.safe_load(data.read_text(encoding="utf-8")))] if data.is_file() else []
        """As one line of JSON, so that comments and layout do not count."""
        self.definitions: dict[str, ast.AST] = {}
        """By name; the module's other statements under ""."""
        self.imported: dict[str, Place] = {}
        """From this package: local name -> where it is from; the name there is "" for a module."""
        self.meaning: dict[str, str] = {}
        """Local name -> what it stands for: another library's, by its dotted path, or this package's other name."""
        tree = _plain(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.meaning |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                self._import_from(node)
        others = []
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in (n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)):
                    before = self.definitions.get(target.id)
                    both = [*before.body, node] if isinstance(before, ast.Module) else [before, node]
                    self.definitions[target.id] = ast.Module(both, []) if before else node
            elif not isinstance(node, ast.Import | ast.ImportFrom) and not _is_for_types(node):
                others.append(node)
        self.definitions[""] = ast.Module(others, [])

    def _import_from(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            local, whole = alias.asname or alias.name, f"{node.module}.{alias.name}"
            if node.module.partition(".")[0] != PACKAGE:
                self.meaning[local] = whole
                continue
            is_module = _module_file(whole) is not None
            self.imported[local] = (whole, "") if is_module else (node.module, alias.name)
            if not is_module and local != alias.name:
                self.meaning[local] = alias.name


def _is_for_types(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, under which imports for annotations stand."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _plain(text: str) -> ast.Module:
    """A module without docstrings, those under constants and fields among them."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            node.body = [statement for statement in node.body if not _is_text(statement)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@lru_cache(maxsize=256)
def _read(module: str) -> _Module | None:
    file = _module_file(module)
    return _Module(file) if file else None


def _module_file(module: str) -> Path | None:
    package, *parts = module.split(".")
    if package != PACKAGE:
        # Nothing is followed out of this package, so this is where a training function of somebody else's stands.
        file = getattr(sys.modules.get(module), "__file__", None)
        return Path(file) if file else None
    base = paths.PACKAGE.joinpath(*parts)
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def _named(module: str, where: _Module, node: ast.AST) -> list[Place]:
    """What a definition names in this package: by itself, or as an attribute of a module."""
    names = global_names(node)
    modules = {name: place for name, (place, what) in where.imported.items() if name in names and not what}
    attributes = [n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    of_modules = [(modules[n.value.id], n.attr) for n in attributes if n.value.id in modules]
    return [where.imported.get(name, (module, name)) for name in names - set(modules)] + of_modules


def global_names(node: ast.AST) -> set[str]:
    """The names in a definition that are not its own variables."""

    def of(table: symtable.SymbolTable) -> set[str]:
        outermost = table.get_type() == "module"
        here = {s.get_name() for s in table.get_symbols() if s.is_global() or (outermost and s.is_referenced())}
        return here.union(*map(of, table.get_children()))

    return of(symtable.symtable(ast.unparse(node), "definition", "exec"))
