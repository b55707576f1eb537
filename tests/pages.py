"""The rendered pages in headless Chromium, without a network. Run by `make pages` after `make book`.

Every page is opened from disk: no request may leave the machine, nothing may fail, no figure may lack its text.
"""

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)


# The text of what Bokeh shows at the pointer, which lies below nested shadow roots.
TOOLTIP = """() => {
  const seen = (root) => [...root.querySelectorAll('*')].flatMap((e) => [
    e.matches('.bk-tooltip-content') && e.getBoundingClientRect().width ? e.innerText : '',
    e.shadowRoot ? seen(e.shadowRoot) : '',
  ]).join('');
  return seen(document);
}"""


def pytest_generate_tests(metafunc):
    html = ROOT / "_build" / metafunc.config.getoption("--profile-built") / "html"
    pages = sorted(p for folder in ("book", "notebooks") for p in (html / folder).rglob("*.html"))
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages, ids=[str(p.relative_to(html)) for p in pages])


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page):
    """A page opened, and what went wrong on it."""
    faults = []
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.on("console", lambda m: faults.append(f"console: {m.text}") if m.type == "error" else None)
    tab.on("pageerror", lambda error: faults.append(f"script: {error}"))
    tab.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    local = ("file:", "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(local) else faults.append(f"left: {r.url}"))
    tab.goto(page.as_uri())
    tab.wait_for_timeout(500)
    yield tab, faults
    context.close()


def test_page_is_whole(opened, page):
    tab, faults = opened
    assert faults == []
    assert tab.locator("article h1").count() == 1
    without_text = tab.eval_on_selector_all("article img", "all => all.filter(i => !i.alt).map(i => i.src)")
    assert without_text == []
    broken = tab.eval_on_selector_all("article img", "all => all.filter(i => !i.naturalWidth).map(i => i.src)")
    assert broken == []
    text = tab.inner_text("article")
    assert not re.search(r"\{glue:|\{ref\}|\{cite|\{\{|Traceback", text)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_interactive_figures_answer(opened, page):
    tab, _ = opened
    figures = tab.locator(".cropnb-interactive")
    if figures.count() == 0:
        pytest.skip("no interactive figure on this page")
    for figure in figures.all():
        assert figure.get_attribute("aria-label")
        figure.scroll_into_view_if_needed()
        canvas = figure.locator(".bk-Canvas, canvas").first
        canvas.wait_for(timeout=10_000)
        box = figure.bounding_box()
        for step in range(1, 20):  # somewhere along the diagonal the pointer meets a mark
            tab.mouse.move(box["x"] + box["height"] * step / 20, box["y"] + box["height"] * step / 20)
            tab.wait_for_timeout(60)
            if answer := tab.evaluate(TOOLTIP):
                break
        assert re.search(r"\d", answer), "no hover answer"


def test_pages_exist(pytestconfig):
    html = ROOT / "_build" / pytestconfig.getoption("--profile-built") / "html"
    assert (html / "index.html").exists(), "run make book first"
