"""What a function's result depends on in this package: the definitions that it reaches, whatever file they stand in.

The source of a run is the set of all definitions that its training function names, directly or through others, as
normalised syntax trees: no comments, no docstrings, no module paths.  So wording a docstring or moving a function to
another file changes nothing, and an edit of one loss changes the runs that train with losses, and no others.

What cannot be followed must not stand in such code: `getattr`, `importlib`, `eval`, `exec`, `globals`, star imports
(`unfollowed` finds them).  A dictionary of functions counts with all of its entries.
"""

import ast
import hashlib
import symtable
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignkit import paths

PACKAGE = "alignkit"
UNFOLLOWED = {"getattr", "eval", "exec", "globals", "locals", "importlib", "__import__"}
"""Names that reach definitions in ways that a syntax tree does not show."""

Place = tuple[str, str]
"""A module and a name in it; the name is "" for the module's own statements."""


def source(function: Callable[..., Any]) -> str:
    """SHA-256 of all definitions that the function reaches (first 16 hex digits).

    Raises ValueError for a function that is not defined at the top of a file, such as one of a notebook's cell.
    """
    where = _read(function.__module__)
    if where is None or function.__name__ not in where.definitions:
        raise ValueError(f"{function.__qualname__}: a training function must stand at the top of a module")
    return _digest(_module_file(function.__module__), function.__module__, function.__name__)


def unfollowed(function: Callable[..., Any]) -> list[str]:
    """One line for each use of a name of UNFOLLOWED in the definitions that the function reaches."""
    found = []
    for (module, name), node in reached(function.__module__, function.__name__).items():
        used = _global_names(node) & UNFOLLOWED
        found += [f"{module}.{name or 'its statements'}: {word}" for word in sorted(used)]
    return sorted(found)


@lru_cache(maxsize=256)
def _digest(_: Path, module: str, name: str) -> str:
    lines = set()
    for (where, what), node in reached(module, name).items():
        lines.add(f"{what} {ast.dump(node)}")
        lines |= _imports(_read(where), node)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def reached(module: str, name: str) -> dict[Place, ast.AST]:
    """The definitions that a definition reaches, itself among them, and the other statements of their modules."""
    found: dict[Place, ast.AST] = {}
    waiting: list[Place] = [(module, name)]
    while waiting:
        place = waiting.pop()
        where = _read(place[0])
        if place in found or where is None:
            continue
        if place[1] not in where.definitions:
            # A name that the module only passes on, from where it imports it.
            waiting += [where.imported[place[1]]] if place[1] in where.imported else []
            continue
        found[place] = where.definitions[place[1]]
        waiting.append((place[0], ""))
        waiting += _named(place[0], where, found[place])
    return found


class _Module:
    """A module's definitions, its other statements (under ""), and what it imports."""

    def __init__(self, text: str):
        tree = _Plain().visit(ast.parse(text))
        self.definitions: dict[str, ast.AST] = {}
        self.imported: dict[str, Place] = {}
        """From this package: local name -> where it is from; the name there is "" for a module."""
        self.foreign: dict[str, str] = {}
        """From other packages: local name -> dotted path."""
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                self._imports(node)
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

    def _imports(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.Import):
                self.foreign[alias.asname or alias.name.partition(".")[0]] = alias.name
                continue
            local, whole = alias.asname or alias.name, f"{node.module}.{alias.name}"
            if node.module.partition(".")[0] != PACKAGE:
                self.foreign[local] = whole
            elif _module_file(whole) is not None:
                self.imported[local] = (whole, "")
            else:
                self.imported[local] = (node.module, alias.name)


def _is_for_types(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, under which imports for annotations stand."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


class _Plain(ast.NodeTransformer):
    """Takes away docstrings, those under constants and fields among them."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.body:
            node.body = [ast.Pass()]
        return node


def _read(module: str) -> _Module | None:
    file = _module_file(module)
    return _parsed(file, file.stat().st_mtime_ns) if file else None


@lru_cache(maxsize=256)
def _parsed(file: Path, _: int) -> _Module:
    return _Module(file.read_text(encoding="utf-8"))


@lru_cache(maxsize=512)
def _module_file(module: str) -> Path | None:
    """The file of a module."""
    package, *parts = module.split(".")
    if package != PACKAGE:
        # Nothing is followed out of this package, so this is where a training function of somebody else's stands.
        file = getattr(sys.modules.get(module), "__file__", None)
        return Path(file) if file else None
    base = paths.PACKAGE.joinpath(*parts)
    files = [base / "__init__.py"] if not parts else [base.with_suffix(".py"), base / "__init__.py"]
    return next((file for file in files if file.is_file()), None)


def _named(module: str, where: _Module, node: ast.AST) -> list[Place]:
    """What a definition names in this package: by itself, or as an attribute of a module."""
    names = _global_names(node)
    places = [where.imported.get(name, (module, name)) for name in names]
    out = [place for place in places if place[1]]
    for n in ast.walk(node):
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in names:
            whole = where.imported.get(n.value.id, ("", "x"))
            out += [(whole[0], n.attr)] if not whole[1] else []
    return out


def _imports(where: _Module, node: ast.AST) -> set[str]:
    """What the names of a definition stand for, where an import says so: another library's, or another name's."""
    names = _global_names(node)
    foreign = {f"{name} is {where.foreign[name]}" for name in names & set(where.foreign)}
    renamed = {name: where.imported[name][1] for name in names & set(where.imported)}
    return foreign | {f"{name} is {original}" for name, original in renamed.items() if original not in ("", name)}


def forget() -> None:
    """Read all sources anew; for a process in which they were edited."""
    for cached in (_digest, _parsed, _module_file):
        cached.cache_clear()


def _global_names(node: ast.AST) -> set[str]:
    """The names in a definition that are not its own variables."""

    def of(table: symtable.SymbolTable) -> set[str]:
        outermost = table.get_type() == "module"
        here = {s.get_name() for s in table.get_symbols() if s.is_global() or (outermost and s.is_referenced())}
        return here.union(*map(of, table.get_children()))

    return of(symtable.symtable(ast.unparse(node), "definition", "exec"))
