"""The project's own files: versions that agree, parameters that are explained, nothing that does not belong."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import alignkit
from alignkit.workflow import parameters
from alignkit.workflow.schema import NOTEBOOKS

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "alignkit").rglob("*.py"))
PARAMETERS = sorted((ROOT / "params").glob("*/*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

of_each_module = pytest.mark.parametrize("module", MODULES, ids=lambda file: file.stem)


def locked() -> dict[str, str]:
    """Name and version of each line of the lock."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


def direct() -> list[Requirement]:
    """What pyproject.toml asks for: to run, to test, to build.  Dashboards are of the user's choice and version."""
    project = PROJECT["project"]
    asked = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in ("batch", "test"):
        asked += [line for line in project["optional-dependencies"][extra] if not line.startswith("alignkit")]
    return [Requirement(line) for line in asked]


# Versions


def test_the_lock_holds_exact_versions_and_nothing_else():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in pins)
    assert len(locked()) == len(pins)
    assert not [line for line in lines if re.search(r"--|@|://", line)]
    assert locked()["torch"] == "2.13.0"


@pytest.mark.parametrize("wanted", direct(), ids=str)
def test_the_lock_has_each_direct_dependency_in_its_range(wanted: Requirement):
    assert wanted.specifier.contains(locked()[canonicalize_name(wanted.name)])


def test_environment_yml_pins_the_direct_dependencies_as_the_lock_does():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    pins = dict(line.split("==") for line in pip if "==" in line)
    assert {name: locked()[canonicalize_name(name)] for name in pins} == pins
    build = {canonicalize_name(Requirement(line).name) for line in PROJECT["build-system"]["requires"]}
    assert {canonicalize_name(name) for name in pins} == {canonicalize_name(r.name) for r in direct()} - build
    assert "-r requirements.lock" in pip


def test_every_imported_library_is_a_direct_dependency():
    owners = packages_distributions()
    imported = {name.split(".")[0] for module in MODULES for name in imports(module)}
    foreign = imported - set(sys.stdlib_module_names) - {"alignkit"}
    lines = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["batch"]]
    asked = {canonicalize_name(Requirement(line).name) for line in lines}
    assert {name for name in foreign if not asked & {canonicalize_name(o) for o in owners[name]}} == set()


def test_the_changelog_names_no_version_but_the_packages():
    text = re.sub(r"https?://\S+", "", (ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert set(re.findall(r"\d+\.\d+\.\d+", text)) == {alignkit.__version__}


def test_the_hooks_run_ruff_and_fetch_nothing():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert all(hook["language"] == "system" and hook["entry"].startswith("ruff ") for hook in repos[0]["hooks"])


# Parameters


def test_every_key_has_words():
    told = {key: field.description for kind in NOTEBOOKS.values() for key, field in kind.model_fields.items()}
    assert [key for key, words in told.items() if not words] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_pocket_profile_holds_every_key_of_a_notebook_once(notebook: str):
    folder = ROOT / "params" / "pocket"
    shared, own = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("shared", notebook))
    assert set(shared) & set(own) == set()
    assert set(NOTEBOOKS[notebook].model_fields) <= set(shared) | set(own)


@pytest.mark.parametrize("profile", sorted({file.parent.name for file in PARAMETERS} - {"pocket"}))
def test_a_profile_says_only_what_differs_from_what_it_is_laid_on(profile: str):
    def said(*files: Path) -> dict[str, object]:
        return {key: value for file in files for key, value in yaml.safe_load(file.read_text()).items()}

    folders = [ROOT / "params" / name for name in ("pocket", parameters.base(profile)) if name != profile]
    below = said(*(file for folder in folders for file in sorted(folder.glob("*.yaml"), reverse=True)))
    # Whoever runs pocket with other seeds may happen on those of a profile: the committed ones count.
    pocket = subprocess.run(
        ["git", "show", "HEAD:params/pocket/shared.yaml"], cwd=ROOT, capture_output=True, check=True
    )
    below |= (
        {"seeds": yaml.safe_load(pocket.stdout)["seeds"]} if parameters.base(profile) in (profile, "pocket") else {}
    )
    shared = said(ROOT / "params" / profile / "shared.yaml")
    for file in sorted((ROOT / "params" / profile).glob("*.yaml")):
        without = below if file.stem == "shared" else below | shared
        assert [key for key, value in said(file).items() if key != "notebook" and without.get(key) == value] == []


# Sources


def imports(module: Path) -> list[str]:
    """Full names of the modules that a file imports anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `runs.sources` follows absolute imports only.
            assert node.level == 0, f"{module.name}, line {node.lineno}: a relative import"
            names.append(node.module)
    return names


@of_each_module
def test_a_module_and_its_public_functions_say_what_they_are_for(module: Path):
    tree = ast.parse(module.read_text())
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node for node in (tree, *public) if not ast.get_docstring(node)] == []


@of_each_module
def test_a_module_loads_nothing_that_can_run_code(module: Path):
    assert not {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & set(imports(module))
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert call != "torch.load" or given.get("weights_only") == "True"
            assert not call.endswith((".read_pickle", ".to_pickle"))
            assert given.get("allow_pickle", "False") == "False"
            assert given.get("trust_remote_code", "False") == "False"
            said = "trust_remote_code" in given or None in given  # **settings that hold it
            assert said or not call.endswith(".from_pretrained")


def test_no_file_names_a_place_on_somebodys_machine_or_a_registry(tracked: list[Path]):
    place = re.compile(
        r"(?<![\w.:/}-])/(home|root|tmp|work|Users|mnt)/|--(extra-)?index[-]url|//[\w.]*(pypi|pythonhosted)\."
    )
    found = []
    for file in tracked:
        if file.suffix not in (".ipynb", ".png"):  # notebooks are read by test_notebooks.py
            lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
            found += [f"{file}:{number}" for number, line in enumerate(lines, start=1) if place.search(line)]
    assert found == []


SECRETS = {
    "a key": r"\b(AKIA[0-9A-Z]{16}|AIza[\w-]{35}|gh[pousr]_\w{36}|github_pat_\w{22,}|glpat-[\w-]{20}|sk-[\w-]{20,}"
    r"|hf_[A-Za-z0-9]{30,}|xox[abeoprs]-[\w-]{10,}|pypi-[\w-]{16,}|eyJ[\w-]{10,}\.eyJ)|BEGIN [A-Z ]*PRIVATE KEY",
    "a password": r"(?i)(api_?key|secret|passw(or)?d|auth_?token)[\"']?\s*[:=]\s*[\"'][^\"'\s]{8,}"
    r"|://[^/\s:@\"]+:[^/\s@\"]+@",
    "a user": r"(?<![\w.}])/(home|Users)/\w|(?i:\b[a-z]:\\{1,2}users\\)|\w@(?!example)[\w-]+\.[a-z]{2,}\b",
    "a place on a machine": r"(?<![\w.:/})-])/(root|tmp|work|mnt|private)/\w",
}
"""What no committed file holds, and how it looks."""
PICTURE = re.compile(r'"image/png": "[^"]*"|base64,[\w+/=\s]*')


def secrets(text: str) -> list[str]:
    """What a text holds of them; of pictures in it the letters say nothing."""
    plain = PICTURE.sub("", text)
    return [f"{kind}: {found[0]}" for kind, look in SECRETS.items() if (found := re.search(look, plain))]


@pytest.mark.slow
def test_no_file_holds_a_key_a_users_name_or_a_place(tracked: list[Path]):
    texts = {file: (ROOT / file).read_text("utf-8") for file in tracked if file.suffix != ".png"}
    assert {str(file): found for file, text in texts.items() if (found := secrets(text))} == {}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("a key", "hf" + "_" + "a1B2" * 9),
        ("a key", "token = gh" + "p_" + "a1B2" * 9),
        ("a key", "AK" + "IA" + "ABCD" * 4),
        ("a key", "-----BEGIN RSA PRIV" + "ATE KEY-----"),
        ("a password", "api_" + "key = 'correcthorse'"),
        ("a password", "https:" + "//me:secret@example.org"),
        ("a user", "read from /ho" + "me/anna/reviews.csv"),
        ("a user", "C:" + r"\Users\anna"),
        ("a user", "anna" + "@reviews.org"),
        ("a place on a machine", "saved to /tm" + "p/build"),
    ],
)
def test_a_key_a_users_name_and_a_place_are_seen(kind: str, text: str):
    assert [found.partition(":")[0] for found in secrets(text)] == [kind]


def test_every_file_is_below_1_mb_a_drawing_below_3_and_of_a_known_kind(tracked: list[Path]):
    # A scatter plot of 12,000 reviews is a large drawing; notebooks are held to 1 MB by their own lint.
    limit = {".svg": 3_000_000}
    assert [str(f) for f in tracked if (ROOT / f).stat().st_size >= limit.get(f.suffix, 1_000_000)] == []
    kinds = Counter(file.suffix for file in tracked)
    allowed = {
        ".py",
        ".ipynb",
        ".yaml",
        ".yml",
        ".md",
        ".toml",
        ".lock",
        ".cff",
        ".cfg",
        ".png",
        ".svg",
        ".csv",
        ".html",
        "",
    }
    assert set(kinds) <= allowed


def test_every_sanitize_rule_is_one_that_nbval_loads():
    plugin = pytest.importorskip("nbval.plugin")
    text = (ROOT / "tests" / "nbval_sanitize.cfg").read_text()
    rules = plugin.get_sanitize_patterns(text)
    assert len(rules) == len(re.findall(r"^\[\w+\]$", text, re.MULTILINE))
    assert len(rules) == text.count("regex:")
    for regex, replacement in rules:
        re.compile(regex)
        assert replacement.strip()


@pytest.mark.parametrize(
    "pair",
    [("<Axes at 0x7f3a1c2b4d50>", "<Axes at 0x7f0000aabbcc>"), ('<table id="T_a1b2c">', '<table id="T_00fff">')],
    ids=["address", "style"],
)
def test_the_sanitize_rules_hide_what_differs_between_two_executions(pair: tuple[str, str]):
    plugin = pytest.importorskip("nbval.plugin")
    left = set(pair)
    for regex, replacement in plugin.get_sanitize_patterns((ROOT / "tests" / "nbval_sanitize.cfg").read_text()):
        left = {re.sub(regex, replacement, shown) for shown in left}
    assert len(left) == 1


def test_what_a_shell_reads_has_unix_line_ends_in_any_checkout(tmp_path: Path):
    windows = ["git", "-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    files = [".ci/run", "Makefile", "Snakefile", "alignkit/paths.py", "params/pocket/shared.yaml"]
    subprocess.run([*windows, "checkout-index", f"--prefix={tmp_path}/", *files], cwd=ROOT, check=True)
    assert [name for name in files if b"\r" in (tmp_path / name).read_bytes()] == []


def test_the_table_of_faults_names_tests_that_exist():
    asked = re.findall(r"`(test_\w+)`", (ROOT / "tests" / "README.md").read_text(encoding="utf-8"))
    there = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert asked
    assert set(asked) <= there
