"""The report as web pages: `make html` writes an index of what was found, and every published notebook, to site/."""

import base64
import re
import shutil
from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path, PurePosixPath
from posixpath import normpath
from string import Template
from urllib.parse import quote, unquote

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.preprocessors.sanitize import SanitizeHTML

from alignkit import ADDRESS
from alignkit.report import readme

FRAME = Path(__file__).with_suffix(".html")
"""What stands around the body of each page, with the style of all."""
TAGS = "a b blockquote br code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img li ol p pre span".split()
TAGS += "strong sub summary sup table tbody td th thead tr ul".split()
ATTRIBUTES = {"*": ["class", "id", "style"], "a": ["href"], "img": ["src", "alt", "width"], "th": ["colspan"]}
STYLES = ["text-align", "display", "cursor", "min-width"]
LINK = re.compile(r'(<(?:a|img)\b[^>]*?\b(?:href|src)=)"([^"]*)"')
REPOSITORY = f"{ADDRESS}/blob/main"


def write_site(root: Path, site: Path) -> list[str]:
    """Write the pages of the repository at `root` into a folder, which is emptied first; returns their names."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir()
    pages = page_names(root)
    notebooks = {path: nbformat.read(root / path, as_version=4) for path in pages}
    for path, notebook in notebooks.items():
        nav = f'<a href="index.html">AlignKit</a> <a href="{REPOSITORY}/{quote(path)}">this notebook</a>'
        body = with_links(notebook_html(notebook), path, pages, root)
        (site / pages[path]).write_text(framed(heading(notebook), nav, body, HTMLExporter().mathjax_url), "utf-8")
    body = with_links(index(root, {pages[path]: notebook for path, notebook in notebooks.items()}), "", pages, root)
    (site / "index.html").write_text(framed("AlignKit", f'<a href="{ADDRESS}">repository</a>', body), "utf-8")
    return ["index.html", *pages.values()]


def page_names(root: Path) -> dict[str, str]:
    """The page of each published notebook, by the notebook's path in the repository."""
    main = {f"notebooks/{file.name}": f"{file.stem}.html" for file in sorted(root.glob("notebooks/*.ipynb"))}
    others = sorted(root.glob("figures/*/*.ipynb"))
    return main | {f.relative_to(root).as_posix(): f"{f.parent.name}-{f.stem}.html" for f in others}


def framed(title: str, nav: str, body: str, mathjax: str = "") -> str:
    """A whole page; `mathjax` is the address of what draws its formulas, if it has any."""
    script = f'<script async src="{mathjax}"></script>' if mathjax else ""
    return Template(FRAME.read_text("utf-8")).substitute(title=escape(title), nav=nav, body=body, mathjax=script)


def notebook_html(notebook: nbformat.NotebookNode) -> str:
    """The cells and outputs as HTML."""
    no_prompts = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="basic", sanitize_html=True, filters={"clean_html": clean}, **no_prompts)
    return exporter.from_notebook_node(notebook)[0]


def clean(html: object) -> str:
    """HTML in which whatever could run, such as a script in a review, is shown as text."""
    without_style = re.sub(r"<style\b.*?</style>", "", str(html), flags=re.DOTALL)
    return SanitizeHTML(tags=TAGS, attributes=ATTRIBUTES, styles=STYLES).sanitize_html_tags(without_style)


def index(root: Path, notebooks: Mapping[str, nbformat.NotebookNode]) -> str:
    """The README's opening, the main findings of pocket from its table, the front, and each notebook's question."""
    written_there = (root / "README.md").read_text("utf-8").replace("](#", "](README.md#")  # its places are not here,
    written_there = written_there.replace("](README.md#how-to-read-it)", "](#How-to-read-it)")  # but this one
    title, *sections = written_there.split("\n## ")
    what, *about = [part for part in title.strip().split("\n\n")[1:] if not part.startswith(("[![", "Contents:"))]
    found = next(part for part in sections if part.startswith("What was found\n"))
    front, words = found.split("\n### How to read it\n")
    parts = [
        f"# AlignKit\n\n{what}\n\n## {front.partition('<!--')[0]}",
        readme.main_findings(root / "figures"),
        f"### How to read it\n\n{words.partition('### ')[0]}\n\n## The notebooks",
        *(f"### [{heading(notebook)}]({page})\n\n{question(notebook)}" for page, notebook in notebooks.items()),
        "## About this report",
        *about,
        "The [README](README.md) says how to run it again, and has every method's share in a table.",
    ]
    return clean(markdown2html("\n\n".join(parts)))


def heading(notebook: nbformat.NotebookNode) -> str:
    """The title of a notebook."""
    return re.search(r"^# (.*)", text_of(notebook), re.MULTILINE)[1]


def question(notebook: nbformat.NotebookNode) -> str:
    """The paragraph with which a notebook asks, without its mark."""
    found = re.search(r"\*\*Question\.\*\* (.*?)(?:\n\n|$)", text_of(notebook), re.DOTALL)
    return found[1] if found else ""


def text_of(notebook: nbformat.NotebookNode) -> str:
    """The text cells."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def with_links(html: str, source: str, pages: Mapping[str, str], root: Path) -> str:
    """HTML made from a file of the repository, with its links resolved and each table in a box that scrolls."""
    boxed = re.sub(r"<table\b", '<div class="wide"><table', html).replace("</table>", "</table></div>")
    return LINK.sub(partial(resolved, source=source, pages=pages, root=root), boxed)


def resolved(match: re.Match, source: str, pages: Mapping[str, str], root: Path) -> str:
    """What stands in place of a link: the page of a notebook, the picture itself, else the repository's address."""
    start, link = match.groups()
    path, mark, place = link.partition("#")
    if not path or re.match(r"[a-z]+:|//", path) or path in pages.values():
        return match[0]
    file = normpath(PurePosixPath(source).parent / unquote(path))
    if start.endswith("src="):
        return f'{start}"data:image/png;base64,{base64.b64encode((root / file).read_bytes()).decode()}"'
    return f'{start}"{pages.get(file) or f"{REPOSITORY}/{quote(file)}"}{mark}{place}"'
