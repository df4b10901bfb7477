"""The report as web pages: links that resolve, texts that cannot run, and what a browser makes of it."""

import base64
import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nbconvert.filters import markdown2html

from alignkit import ADDRESS, paths
from alignkit.__main__ import main
from alignkit.report import figures, page, readme

ROOT = paths.CHECKOUT
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MATHJAX = Path("/usr/share/javascript/mathjax/MathJax.js")
SCREEN = 390
"""A phone's width in CSS pixels."""
PROBE = """<script>
const errors = [];
const far = e => e.target.src && e.target.src.startsWith("http");
addEventListener("error", e => far(e) || errors.push(e.message || e.target.src), true);
const tell = () => parent.postMessage({
  page: location.href.split("/").pop(), errors, wide: document.documentElement.scrollWidth - innerWidth,
  formulas: document.querySelectorAll(".mjx-chtml").length,
  wrong: document.querySelectorAll("merror, mtext[mathcolor=red]").length,
  raw: [...document.querySelectorAll(".text_cell_render p, .text_cell_render li, .text_cell_render td")]
    .map(e => e.cloneNode(true)).filter(e => {
      e.querySelectorAll("script, code, pre, .MathJax_Preview, .mjx-chtml").forEach(x => x.remove());
      return /\\$|\\\\[a-z]/.test(e.textContent);
    }).map(e => e.textContent.slice(0, 80)),
  light: (c => Math.max(...c.match(/\\d+/g).slice(0, 3)))(getComputedStyle(document.body).backgroundColor),
  broken: [...document.images].filter(i => !i.src.startsWith("http") && !i.naturalWidth).length}, "*");
addEventListener("load", () => window.MathJax && MathJax.Hub ? MathJax.Hub.Queue(tell) : tell());
</script>"""
FRAMES = """<pre id="found"></pre><script>
addEventListener("message", e => found.textContent += JSON.stringify(e.data) + "\\n");
</script>"""


class Parts(HTMLParser):
    """Ids, links and pictures of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, list[Any]] = defaultdict(list)
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found[tag].append(given)
        self.found["ids"] += [given["id"]] if "id" in given else []


@pytest.fixture(scope="module")
def site(made_once: Callable[[str, Callable[[Path], Any]], Path]) -> Path:
    """All pages of pocket, and the last one of each other profile."""
    names = {
        path: name for path, name in page.page_names(ROOT).items() if path.startswith("notebooks/") or "/6_" in path
    }

    def write(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page, "page_names", lambda _: names)
            page.write_site(ROOT, folder)

    return made_once("site", write)


@pytest.fixture(scope="module")
def parts(site: Path) -> dict[str, dict[str, list[Any]]]:
    return {file.name: Parts(file.read_text("utf-8")).found for file in site.glob("*.html")}


def written(*outputs: dict[str, str]) -> str:
    """The page of a notebook whose one cell shows these."""
    shown = [nbformat.v4.new_output("display_data", data) for data in outputs]
    return page.notebook_html(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=shown)]))


def test_each_notebook_has_a_page_of_another_name():
    names = page.page_names(ROOT)
    notebooks = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("figures/*/*.ipynb")]
    assert {ROOT / path for path in names} == set(notebooks)
    assert len(set(names.values())) == len(notebooks)


@pytest.mark.slow
def test_the_index_links_to_every_page(parts: dict[str, Any]):
    assert len(parts) > 8
    assert set(parts) - {"index.html"} <= {link["href"] for link in parts["index.html"]["a"]}


@pytest.mark.slow
def test_every_link_resolves(parts: dict[str, Any]):
    lost = []
    for name, found in parts.items():
        for link in (link["href"] for link in found["a"]):
            file, _, place = link.partition("#")
            if file.startswith(ADDRESS):
                known = (ROOT / unquote(file.removeprefix(f"{ADDRESS}/blob/main").removeprefix(ADDRESS)[1:])).exists()
            else:
                known = file.startswith("https://") or (file or name) in parts
            ids = parts.get(file or name, {}).get("ids", [place])
            lost += [] if known and (not place or {place, unquote(place)} & set(ids)) else [(name, link)]
    assert lost == []


@pytest.mark.slow
def test_every_picture_is_inline_and_told_in_words(parts: dict[str, Any]):
    pictures = [picture for found in parts.values() for picture in found["img"]]
    assert len(pictures) > len(parts)
    for picture in pictures:
        assert picture["alt"].strip()
        kind, _, data = picture["src"].partition("base64,")
        if not kind.startswith("https://"):  # a badge
            assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_index_tells_the_main_findings_of_the_table(site: Path):
    told = re.sub(r"\s+", " ", unescape(re.sub("<[^>]*>", "", (site / "index.html").read_text("utf-8"))))
    found = pd.read_csv(ROOT / "figures" / "pocket" / "findings.csv").dropna(subset="value")
    main_ones = found[found.id.isin(readme.MAIN)].statement
    assert len(main_ones)
    assert [statement for statement in main_ones if statement not in told] == []


def test_what_a_review_holds_is_shown_and_cannot_run():
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)><a href='javascript:alert(1)'>here</a>"
    shown = written({"text/html": f"<table><tr><td>{evil}</td></tr></table>"}, {"text/markdown": f"- it said {evil}"})
    shown += written({"text/plain": evil}, {"application/javascript": "alert(1)"})
    found = Parts(shown).found
    assert not found["script"]
    assert not [given for tags in found.values() for given in tags if "onerror" in given]
    assert not [link for link in found["a"] if link.get("href", "").startswith("javascript")]
    assert shown.count("alert(1)&lt;/script&gt;") == 3


def test_formulas_and_signs_below_and_above_stay_what_they_are():
    cell = nbformat.v4.new_markdown_cell("Where $a < b$ and $x_1 \\& y_2$, KL < 1 & more.\n\n$$\\frac{1}{2}$$")
    shown = unescape(page.notebook_html(nbformat.v4.new_notebook(cells=[cell])))
    assert "$a < b$ and $x_1 \\& y_2$, KL < 1 & more." in shown
    assert "$$\\frac{1}{2}$$" in shown


def test_without_a_repository_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(paths, "CHECKOUT", None)
    assert main(["html"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    (tmp_path / "site").touch()
    assert main(["html"]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'site'}: ")


browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def shown(pages: dict[str, str], folder: Path, width: int, *flags: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What the probe tells of each page in a frame of this width, without network, and what the console says."""
    for name, html in pages.items():
        (folder / name).write_text(html.replace("<head>", f"<head>{PROBE}", 1), "utf-8")
    frames = [f'<iframe width="{width}" height="844" src="{name}"></iframe>' for name in pages]
    (folder / "frames.htm").write_text(FRAMES + "".join(frames), "utf-8")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom", *flags),
            "--host-resolver-rules=MAP * ~NOTFOUND",  # a badge that loads slowly would hold its page back
            *("--virtual-time-budget=120000", f"--user-data-dir={folder / 'user'}", f"{folder}/frames.htm"),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    found = {told["page"]: told for told in map(json.loads, unescape(told).splitlines())}
    assert set(found) == set(pages)
    return found, [line for line in done.stderr.splitlines() if "CONSOLE" in line and "http" not in line]


@pytest.mark.slow
@browser
@pytest.mark.parametrize(("width", "dark"), [(SCREEN, False), (1280, True)], ids=["phone", "dark"])
def test_a_browser_shows_every_page_whole(width: int, dark: bool, site: Path, tmp_path: Path):
    """Formulas only where MathJax lies on this machine."""
    script = f'<script src="{MATHJAX.as_uri()}?config=TeX-AMS_CHTML-full"></script>' if MATHJAX.exists() else ""
    far = r'<script async src="https:[^"]*"></script>'
    pages = {file.name: re.sub(far, lambda _: script, file.read_text("utf-8")) for file in site.glob("*.html")}
    found, console = shown(pages, tmp_path, width, *["--blink-settings=preferredColorScheme=0"] * dark)
    faults = {n: told for n, told in found.items() if told["errors"] or told["wide"] > 0 or told["broken"]}
    assert faults == {}
    assert {told["light"] < 100 for told in found.values()} == {dark}
    assert not MATHJAX.exists() or all(told["formulas"] for name, told in found.items() if name != "index.html")
    assert console == []


@pytest.mark.slow
@browser
@pytest.mark.skipif(not MATHJAX.exists(), reason="no MathJax here")
def test_nbviewers_template_shows_every_formula_whole(tmp_path: Path):
    from nbconvert import HTMLExporter

    place = f"{MATHJAX.as_uri()}?config=TeX-AMS_CHTML-full,Safe"
    exporter = HTMLExporter(template_name="classic", mathjax_url=place)
    pages = {f"{file.stem}.html": exporter.from_filename(str(file))[0] for file in ROOT.glob("notebooks/*.ipynb")}
    cells = [nbformat.v4.new_markdown_cell(cell) for cell in ("$\\nosuch{1}$", "$\\frac{1$", "half $a formula")]
    pages["faults.html"] = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]
    found, _ = shown(pages, tmp_path, 1100)
    faults = found.pop("faults.html")
    assert (faults["wrong"], len(faults["raw"])) == (2, 1)
    assert {name: told for name, told in found.items() if told["wrong"] or told["raw"] or told["broken"]} == {}
    assert all(told["formulas"] for told in found.values())


@example("see http://films.example/1 or www.films.example")
@example("it cost $20 , not $10 : *why* _me_ ? [x](y) `z` <br /> &amp; \\$ 1 # 2 | 3 ~~4~~")
@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" \n\\`*_{}[]<>#|~$&")))
def test_a_quoted_text_is_no_markdown_no_html_and_no_formula(text: str):
    page = markdown2html(f"**A text:** x{figures.quoted(text)}")
    for_mathjax = re.sub('<span class="tex2jax_ignore">.*?</span>', "", page)
    assert "$" not in unescape(for_mathjax)
    assert {*re.findall(r"</?(\w+)", page)} <= {"p", "strong", "span"}
    shown = unescape(re.sub("<[^>]*>", "", page)).strip()
    assert shown == f"A text: x{' '.join(text.split())}".strip()
