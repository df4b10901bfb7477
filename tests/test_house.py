"""The house: which part may import which, how large it may grow, and that the library needs no trainer."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "alignkit"
MODULES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOKS = [file.stem.partition("_")[2] for file in (PACKAGE.parent / "notebooks").glob("*.ipynb")]
"""Modules of `report` that are one notebook's; the others serve several."""
NEVER = {
    "library": {"world", "training", "workflow", "report"},
    "world": {"training", "workflow", "report"},
    "training": {"workflow", "report"},
    "workflow": {"training", "report"},
}
"""What each part must not import; the command line, `__main__`, starts all of them."""
LIBRARY = "decoding divergences finite frontier kl losses merging metrics pocket policy_gradient sampling".split()
TRAINERS = "trl datasets sklearn transformers".split()


def part(module: str) -> str:
    """ "alignkit.world.reach" is of "world", "alignkit.kl" of "library"."""
    names = module.split(".")
    return names[1] if len(names) > 1 and (PACKAGE / names[1]).is_dir() else "library"


def name_of(file: Path) -> str:
    names = ["alignkit", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imported(file: Path) -> set[str]:
    """The modules of this package that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    modules = {name_of(module) for module in MODULES}
    return found & modules - {"alignkit"}


def lines(files: list[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def code_lines(file: Path) -> int:
    """Lines without blank ones, comments, imports, docstrings and the words under constants."""
    text = file.read_text(encoding="utf-8")
    words = set()
    for node in ast.walk(ast.parse(text)):
        told = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if told or isinstance(node, ast.Import | ast.ImportFrom):
            words |= set(range(node.lineno, node.end_lineno + 1))
    kept = [line.strip() for number, line in enumerate(text.splitlines(), start=1) if number not in words]
    return sum(bool(line) and not line.startswith("#") for line in kept)


def test_no_part_imports_one_that_builds_on_it():
    arrows = {
        (name_of(file), other)
        for file in MODULES
        if file.name != "__main__.py"
        for other in imported(file)
        if part(other) in NEVER.get(part(name_of(file)), ())
    }
    assert sorted(arrows) == []


def test_no_notebooks_module_imports_anothers():
    own = {f"alignkit.report.{name}" for name in NOTEBOOKS}
    files = [file for file in MODULES if name_of(file) in own]
    assert len(files) == len(NOTEBOOKS)
    assert [(file.stem, sorted(imported(file) & own - {name_of(file)})) for file in files if imported(file) & own] == []


def test_the_library_has_at_most_2000_lines():
    assert lines([file for file in PACKAGE.glob("*.py") if file.name != "__main__.py"]) <= 2000


def test_no_module_has_more_than_400_lines():
    assert [file.name for file in MODULES if lines([file]) > 400] == []


def test_the_package_has_fewer_than_7000_lines_of_code():
    assert sum(map(code_lines, MODULES)) < 7_000


def test_every_data_file_belongs_to_the_module_of_its_name():
    """The identity of runs and the keys of notebooks count a module's data by its name."""
    data = [file for file in PACKAGE.rglob("*.yaml") if not {"params", "profiles"} & {*file.parts}]
    assert data
    assert [file.name for file in data if not file.with_suffix(".py").is_file()] == []


def test_every_tests_name_is_shorter_than_70_characters():
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in TESTS.rglob("test_*.py")]
    names = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [name for name in names if name.startswith("test_") and len(name) >= 70] == []


def packages(tree: ast.AST) -> set[str]:
    """The packages that a module imports, anywhere but under TYPE_CHECKING."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            found |= packages(node)
    return found


def test_the_library_needs_the_packages_that_the_readme_names():
    own = {"alignkit", *sys.stdlib_module_names}
    asked = {name: packages(ast.parse((PACKAGE / f"{name}.py").read_text("utf-8"))) - own for name in LIBRARY}
    assert set().union(*asked.values()) == {"numpy", "scipy", "pandas", "torch", "yaml", "nltk"}
    assert [name for name, needed in asked.items() if "yaml" in needed] == ["pocket"]
    assert [name for name, needed in asked.items() if "nltk" in needed] == ["metrics"]


def test_the_library_is_imported_without_a_trainer(alone: Callable[..., CompletedProcess]):
    blocked = f"""
import importlib
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINERS}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
for module in {LIBRARY}:
    importlib.import_module("alignkit." + module)
print(sorted(set(sys.modules) & set({TRAINERS})))
"""
    done = alone("-c", blocked)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
