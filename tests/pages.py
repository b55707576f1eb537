"""The rendered pages in headless Chromium, without a network. Run by `make pages` after `make book`.

Every page is opened from disk, wide, in dark mode and on a phone: no request may leave the machine, nothing may fail or
overflow, no figure may lack its text, and axe-core may find no serious fault.
"""

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
AXE = ROOT / "_build/npm/node_modules/axe-core/axe.min.js"
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
WIDE = {"width": 1280, "height": 900}
FORMS = {
    "wide": {"viewport": WIDE},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
# The theme names its search and colour buttons "Search" and "Color mode"; what they show besides is the key to press
# and the mode that is on.
THEME = [".search-button-field", ".search-button", ".theme-switch-button"]
MEGABYTES = 3.0  # of a page with all that it loads, compressed as servers send it
SCREENS = 2.5  # of plain text that a cell may put out

# The text of what Bokeh shows at the pointer, which lies below nested shadow roots.
TOOLTIP = """() => {
  const seen = (root) => [...root.querySelectorAll('*')].flatMap((e) => [
    e.matches('.bk-tooltip-content') && e.getBoundingClientRect().width ? e.innerText : '',
    e.shadowRoot ? seen(e.shadowRoot) : '',
  ]).join('');
  return seen(document);
}"""
# Figures that reach beyond the page, where nothing can be pushed aside to see the rest.
CLIPPED = """all => all.filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .filter(e => getComputedStyle(e.closest('figure, .cell_output') ?? document.body).overflowX !== 'auto')
  .map(e => e.alt || e.className)"""
FOCUSED = "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]"


def pytest_generate_tests(metafunc):
    html = ROOT / "_build" / metafunc.config.getoption("--profile-built") / "html"
    pages = sorted(p for folder in ("book", "notebooks") for p in (html / folder).rglob("*.html"))
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages, ids=[str(p.relative_to(html)) for p in pages])
    if "form" in metafunc.fixturenames:
        metafunc.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def html(pytestconfig):
    folder = ROOT / "_build" / pytestconfig.getoption("--profile-built") / "html"
    assert (folder / "index.html").exists(), "run make book first"
    return folder


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page in a form: its tab, what went wrong, and the files it has loaded."""
    contexts = []

    def visited(page, form="wide"):
        faults, loaded = [], {page}
        contexts.append(browser.new_context(offline=True, **FORMS[form]))
        tab = contexts[-1].new_page()
        tab.on("console", lambda m: faults.append(f"console: {m.text}") if m.type == "error" else None)
        tab.on("pageerror", lambda error: faults.append(f"script: {error}"))
        tab.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))

        def follow(request):
            if not request.url.startswith(("file:", "data:", "blob:")):
                faults.append(f"left: {request.url}")
            elif request.url.startswith("file:"):
                loaded.add(Path(re.sub(r"[?#].*", "", request.url.removeprefix("file://"))))

        tab.on("request", follow)
        tab.goto(page.as_uri())
        tab.wait_for_timeout(500)
        return tab, faults, loaded

    yield visited
    for context in contexts:
        context.close()


def test_page_is_whole(visit, page, form):
    tab, faults, loaded = visit(page, form)
    assert faults == []
    assert tab.locator("article h1").count() == 1
    assert tab.evaluate("document.documentElement.scrollWidth") <= FORMS[form]["viewport"]["width"]
    assert tab.eval_on_selector_all("article img", CLIPPED) == []
    if form != "phone":
        # An interactive figure keeps its size and scrolls inside the column of a phone.
        assert tab.eval_on_selector_all(".cropnb-interactive > *", CLIPPED) == []
        tab.add_script_tag(path=AXE)
        options = {"resultTypes": ["violations"]}
        found = tab.evaluate("options => axe.run({exclude: options.exclude}, options)", options | {"exclude": THEME})
        serious = [fault for fault in found["violations"] if fault["impact"] in ("serious", "critical")]
        assert [(fault["id"], [node["target"] for node in fault["nodes"]]) for fault in serious] == []
    if form == "wide":
        without_text = tab.eval_on_selector_all("article img", "all => all.filter(i => !i.alt).map(i => i.src)")
        assert without_text == []
        broken = tab.eval_on_selector_all("article img", "all => all.filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == []
        text = tab.inner_text("article")
        assert not re.search(r"\{glue:|\{ref\}|\{cite|\{\{|Traceback", text)
        prose = "\n".join(tab.locator("article :is(p, li)").all_inner_texts())
        assert not re.search(r"(?<!\w)\*\w[\w-]*\*(?!\w)", prose), "Markdown inside a value"
        assert tab.locator("article .output.stderr").all_inner_texts() == []
        equations = tab.locator("article .math").count()
        assert tab.locator("article .math mjx-container").count() == equations
        heights = tab.eval_on_selector_all(".cell_output pre", "all => all.map(e => e.getBoundingClientRect().height)")
        assert max(heights, default=0) < SCREENS * WIDE["height"], "a wall of output"
        assert sum(len(gzip.compress(file.read_bytes(), 6)) for file in loaded) / 1e6 < MEGABYTES


def test_interactive_figures_answer(visit, page):
    if "cropnb-interactive" not in page.read_text():
        pytest.skip("no interactive figure on this page")
    tab, _, _ = visit(page)
    for figure in tab.locator(".cropnb-interactive").all():
        assert figure.get_attribute("aria-label")
        figure.scroll_into_view_if_needed()
        canvas = figure.locator(".bk-Canvas, canvas").first
        canvas.wait_for(timeout=10_000)
        box = figure.bounding_box()
        diagonal = [(box["height"] * step / 20, box["height"] * step / 20) for step in range(1, 20)]
        across = [(box["width"] * i / 40, box["height"] * j / 15) for j in range(1, 15) for i in range(1, 40)]
        for x, y in diagonal + across:  # somewhere the pointer meets a mark; between fields it meets no number
            tab.mouse.move(box["x"] + x, box["y"] + y)
            tab.wait_for_timeout(60)
            if re.search(r"\d", tab.evaluate(TOOLTIP) or ""):
                break
        else:
            pytest.fail("no hover answer")


def test_the_keyboard_is_enough(visit, html):
    tab, _, _ = visit(html / "notebooks/05_tcnn.html")
    tab.keyboard.press("Tab")
    assert "Skip to main content" in tab.evaluate("document.activeElement.innerText")
    tab.keyboard.press("Enter")
    assert tab.evaluate("location.hash") == "#main-content"
    reached = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        tag, outline = tab.evaluate(FOCUSED)
        assert outline != "none" or tag == "BODY", f"one cannot see where one is: {tag}"
        reached.add(tag)
    assert {"A", "SUMMARY"} <= reached  # links, and the code that a page folds away
    before = tab.locator("details[open]").count()
    tab.locator("details.hide > summary").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("details[open]").count() == before + 1


def test_search_finds_a_chapter(visit, html):
    tab, faults, _ = visit(html / "search.html")
    tab.goto((html / "search.html").as_uri() + "?q=oversampling")
    tab.locator("#search-results a[href^='notebooks/11_augmentation']").first.wait_for(timeout=20_000)
    assert faults == []


def test_a_page_prints_its_article_and_nothing_else(visit, html):
    tab, _, _ = visit(html / "notebooks/10_feature_comparison.html")
    tab.emulate_media(media="print")
    for away in (".bd-sidebar-primary", ".bd-header-article", ".bd-sidebar-secondary"):
        assert not tab.locator(away).first.is_visible(), away
    assert tab.locator("article img").first.is_visible()
    assert tab.pdf(format="A4").startswith(b"%PDF")


def test_sphinx_renders_the_pages_without_jupyter_book(html, tmp_path):
    """The way out of Jupyter Book 1: Sphinx, MyST-NB and the theme make the same of what it reads."""
    source = shutil.copytree(html.parent / "book", tmp_path / "source")
    pages = ["notebooks/05_tcnn", "notebooks/10_feature_comparison", "book/parameters"]
    listed = "".join(f"- file: {page}\n" for page in pages)
    (source / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:\n{listed}")
    programs = Path(sys.executable).parent
    subprocess.run([programs / "jupyter-book", "config", "sphinx", source], check=True, capture_output=True)
    plain = ["myst_nb", "sphinx_external_toc", "sphinx_togglebutton", "sphinx_copybutton", "sphinx_design"]
    plain += ["sphinx_book_theme", "sphinx-mathjax-offline", "sphinxcontrib.bibtex", "cropnb_book"]
    command = [programs / "sphinx-build", "-q", "-D", f"extensions={','.join(plain)}", source, tmp_path / "html"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(source / "book/_ext")}, capture_output=True)
    parts = re.compile(r"<(?:figure|table|img|h[1-3]|details|pre|div class=\"math|div class=\"cropnb)|\{glue:")
    for page in pages:
        ours, theirs = ((folder / f"{page}.html").read_text() for folder in (tmp_path / "html", html))
        found = [parts.findall(text.partition("<article")[2].partition("</article")[0]) for text in (ours, theirs)]
        assert len(found[0]) > 5
        assert found[0] == found[1], page
