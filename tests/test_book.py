"""The built book in a browser: self-contained, free of errors, readable on a telephone, and its explorers right.

Build it first (``make book``), or name another build with ``CSIST_BOOK_HTML``. Without a build or without Chromium these tests are skipped, unless
the environment variable ``CI`` is set: there a missing book is a failure.
"""
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_widgets import PATIENCE, assert_same_frame, browser, need, state  # noqa: F401

from csist.metrics import cso_map_from_lists

BOOK = Path(__file__).parents[1] / "book"
HTML = Path(os.environ.get("CSIST_BOOK_HTML") or BOOK / "_build" / "html")
PAGES = sorted(p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts) if HTML.is_dir() else []
LISTINGS = [p for p in PAGES if p.startswith("_modules/csist/")]  # the package's source: all made alike by the theme, so the longest stands for their looks
OWN = [p for p in PAGES if p not in LISTINGS] + sorted(LISTINGS, key=lambda p: (HTML / p).stat().st_size)[-1:]
HERE_ONLY = ("file:", "data:", "blob:")
MODES = ("light", "dark")
WIDTHS = {"wide": 1280, "narrow": 380}

# Formulas that MathJax did not set: TeX between delimiters that a reader would see.
UNSET = r"""() => [...document.querySelectorAll("article .math")].filter(e => !e.querySelector("mjx-container") && /\\\(|\\\[/.test(e.textContent))
    .map(e => e.textContent.slice(0, 60))"""

# Every figure, table, formula and explorer of a page that cannot be seen whole: one that sticks out of the text's column, or is cut off by a box that does not
# scroll. What lies in a box that scrolls can be reached; a number that its own equation runs under cannot.
STICKS_OUT = """() => {
    const article = document.querySelector("article") || document.querySelector("main");
    const main = document.querySelector("main").getBoundingClientRect(), column = article.getBoundingClientRect(), found = [];
    const name = e => `${e.tagName.toLowerCase()}.${e.getAttribute("class") || ""} ${(e.alt || e.textContent || "").trim().slice(0, 60)}`;
    const scrolls = style => ["auto", "scroll"].includes(style.overflowX);
    const cuts = style => ["hidden", "clip"].includes(style.overflowX);
    for (const e of article.querySelectorAll("figure, img, svg, canvas, table, pre, mjx-container, .csist-widget, .admonition, .sd-card")) {
        const box = e.getBoundingClientRect();
        if (!box.width || !box.height || e.matches("svg svg") || e.closest("mjx-container") !== (e.matches("mjx-container") ? e : null)) continue;
        let frame = e.closest(".tag_full-width") ? main : column;
        for (let p = e.parentElement; p && p !== article; p = p.parentElement) {
            const style = getComputedStyle(p);
            if (scrolls(style)) { frame = null; break; }
            if (cuts(style) && p.clientWidth > 1) { frame = p.getBoundingClientRect(); break; }
        }
        if (frame && (box.right > frame.right + 1.5 || box.left < frame.left - 1.5)) found.push(`${name(e)}: ${box.left} to ${box.right}`);
    }
    for (const number of article.querySelectorAll(".eqno")) {
        const formula = number.parentElement.querySelector("mjx-container"), a = number.getBoundingClientRect(), b = formula?.getBoundingClientRect();
        if (b && a.width && a.left < b.right - 1 && a.right > b.left + 1 && a.top < b.bottom - 1 && a.bottom > b.top + 1)
            found.push(`number ${number.textContent} lies on its equation`);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def pages(browser):  # noqa: F811
    need((HTML / "index.html").exists(), f"needs a built book at {HTML}; run: make book")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


class Visit:
    """One page, with everything noted that it asked for or complained about."""

    def __init__(self, context, path):
        self.outside, self.failed, self.errors = [], [], []
        self.page = context.new_page()
        self.page.on("request", lambda r: None if r.url.startswith(HERE_ONLY) else self.outside.append(r.url))
        self.page.on("requestfailed", lambda r: self.failed.append(r.url))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto((HTML / path).as_uri())
        # index.html leads on to the first page: wait for that one
        self.page.wait_for_function("() => document.readyState === 'complete' && !document.querySelector('meta[http-equiv=refresh i]')")
        self.page.evaluate("() => window.MathJax?.startup?.promise")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.page.close()


def test_there_is_a_book():
    need(PAGES, f"needs a built book at {HTML}; run: make book")
    assert len(PAGES) >= 5


@pytest.fixture(scope="module", params=OWN)
def visit(pages, request):
    """Each page in turn, loaded once for all tests that look at it."""
    with Visit(pages, request.param) as visit:
        yield visit


def show(page, mode, width):
    page.evaluate("mode => { document.documentElement.dataset.theme = mode; }", mode)
    page.set_viewport_size({"width": WIDTHS[width], "height": 900})
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_page_is_whole(visit):
    page = visit.page
    assert (visit.outside, visit.failed, visit.errors) == ([], [], [])
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate(UNSET) == []
    assert page.evaluate("() => [...document.querySelectorAll('main img')].filter(i => !(i.alt || '').trim()).map(i => i.src.slice(-60))") == []
    assert page.evaluate("() => [...document.querySelectorAll('main img')].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(-60))") == []


@pytest.mark.parametrize("path", [p for p in LISTINGS if p not in OWN])
def test_listing_loads(pages, path):
    with Visit(pages, path) as visit:
        assert (visit.outside, visit.failed, visit.errors) == ([], [], [])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("mode", MODES)
def test_page_fits(visit, mode, width):
    show(visit.page, mode, width)
    for _ in range(20):  # a page may still be laying itself out anew
        if not visit.page.evaluate(STICKS_OUT):
            break
        visit.page.wait_for_timeout(100)
    assert visit.page.evaluate(STICKS_OUT) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], "the page is wider than the window"
    assert (visit.outside, visit.failed, visit.errors) == ([], [], [])


def grave_faults(page, context):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    options = {"resultTypes": ["violations"], "preload": False, "iframes": False}
    found = axe.run(page, context=context, options=options).response["violations"]
    return [(rule["id"], node["target"], node["failureSummary"]) for rule in found if rule["impact"] in ("serious", "critical") for node in rule["nodes"]]


@pytest.mark.parametrize("mode, width", [("light", "wide"), ("dark", "narrow")])
def test_page_is_accessible(visit, mode, width):
    """axe-core finds nothing serious in what the book itself says; header and sidebar are the theme's.

    The pieces of formulas and of coloured code, which are most of a page and the same on all, are taken out first: they cost two thirds of the time.
    """
    show(visit.page, mode, width)
    visit.page.evaluate("() => document.querySelectorAll('mjx-container > mjx-math, .highlight pre > *').forEach(e => e.remove())")
    assert grave_faults(visit.page, "article" if visit.page.locator("article").count() else "main") == []


@pytest.mark.parametrize("mode, width", [("light", "wide"), ("dark", "narrow")])
def test_code_is_legible(pages, mode, width):
    """The colours of code against its background, on the page that shows the most of it."""
    path = max(PAGES, key=lambda p: (HTML / p).read_text(encoding="utf8").count('class="highlight"'), default=None)
    need(path, f"needs a built book at {HTML}; run: make book")
    with Visit(pages, path) as visit:
        show(visit.page, mode, width)
        assert grave_faults(visit.page, ".bd-article .highlight") == []


@pytest.mark.parametrize("path", [p for p in PAGES if not p.startswith("_modules/") and "genindex" not in p and "search" not in p])
def test_text_is_finished(path):
    """No leftovers: an unresolved glue key, a failing cell, a note to self, the path of somebody's machine."""
    text = re.sub(r'"data:[^"]*"', "", (HTML / path).read_text(encoding="utf8"))
    for leftover in ["Traceback (most recent call last)", "TODO", "FIXME", "/home/", "/tmp/", "{glue", "undefined label"]:
        assert leftover not in text, leftover


@pytest.mark.parametrize("path", [p for p in PAGES if "psfx-handle" in (HTML / p).read_text(encoding="utf8")])
def test_psf_explorer_follows_the_keys(pages, path):
    with Visit(pages, path) as visit:
        page = visit.page
        page.wait_for_selector(".psfx-handle")
        before = state(page)
        page.locator(".psfx-handle").first.focus()
        for key in ["ArrowDown", "ArrowRight", "ArrowRight", "Shift+ArrowUp"]:
            page.keyboard.press(key)
        after = state(page)
        np.testing.assert_allclose(np.subtract(after["targets"][0], before["targets"][0]), [0.04, 0.10, 0], atol=1e-9)
        assert_same_frame(before)
        assert_same_frame(after)
        assert visit.errors == []


@pytest.mark.parametrize("path", [p for p in PAGES if "metx-handle" in (HTML / p).read_text(encoding="utf8")])
def test_metric_explorer_follows_the_keys(pages, path):
    with Visit(pages, path) as visit:
        page = visit.page
        page.wait_for_selector(".metx-handle")
        read = lambda: page.locator(".metx").first.evaluate("e => e.csist")
        before = read()
        page.locator(".metx-detection").first.focus()
        for key in ["ArrowDown", "ArrowRight", "Shift+ArrowUp"]:
            page.keyboard.press(key)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        after = read()
        np.testing.assert_allclose(np.subtract(after["detections"][0], before["detections"][0]), [0.015, 0.02, 0], atol=1e-9)
        assert after["map"] == pytest.approx(cso_map_from_lists([after["detections"]], [after["targets"]]).map, abs=1e-9)
        assert visit.errors == []


@pytest.mark.parametrize("path", [p for p in PAGES if "modv-sheet" in (HTML / p).read_text(encoding="utf8")])
def test_model_viewer_follows_the_keys(pages, path):
    with Visit(pages, path) as visit:
        page = visit.page
        page.wait_for_selector(".modv")
        drawn = "e => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(e.csist))))"  # keys only ask for a drawing
        read = lambda: page.locator(".modv").first.evaluate(drawn)
        before = read()
        page.locator(".modv-row input").first.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        earlier = read()
        assert (earlier["method"], earlier["stage"]) == ("dista-net", before["stages"] - 2) and earlier["image"] != before["image"]
        page.locator(".modv-pair button").nth(1).focus()
        page.keyboard.press("Enter")
        after = read()
        assert after["frame"] != before["frame"] and after["pixels"] != before["pixels"] and after["stage"] == earlier["stage"]
        page.locator(".modv-radio:checked").first.focus()
        page.keyboard.press("ArrowLeft")
        assert read()["method"] != "dista-net"
        assert visit.errors == []


@pytest.mark.parametrize("path", [p for p in PAGES if "unmix-sheet" in (HTML / p).read_text(encoding="utf8")])
def test_unmixing_explorer_follows_the_keys(pages, path):
    offgrid = pytest.importorskip("csist.solvers.offgrid")
    with Visit(pages, path) as visit:
        page = visit.page
        page.wait_for_selector(".unmix .psfx-handle")
        read = lambda: page.locator(".unmix").first.evaluate("e => e.csist")
        before = read()
        page.locator(".unmix .psfx-handle").first.focus()
        for key in ["ArrowDown", "ArrowRight", "Shift+ArrowUp"]:
            page.keyboard.press(key)
        page.wait_for_function("() => document.querySelector('.unmix').csist.done")
        after = read()
        np.testing.assert_allclose(np.subtract(after["targets"][0], before["targets"][0]), [0.04, 0.05, 0], atol=1e-9)
        for s in (before, after):
            wanted = offgrid.unmix_offgrid(np.reshape(s["frame"], (1, 11, 11)), tier=s["tier"])
            found = sorted([t["x"], t["y"]] for t in s["answer"])
            np.testing.assert_allclose(found, sorted(wanted.xy[0].tolist()), atol=0.01)
        assert visit.errors == []


def test_paired_notebooks_agree():
    """Each notebook's two forms hold the same cells, and the .ipynb holds no outputs."""
    jupytext = pytest.importorskip("jupytext")
    sources = sorted((BOOK.parent / "notebooks").glob("*.md"))
    assert sources
    key = lambda notebook: [(c.cell_type, c.source, sorted(c.metadata.get("tags", []))) for c in notebook.cells]
    for source in sources:
        twin = jupytext.read(source.with_suffix(".ipynb"))
        assert key(jupytext.read(source)) == key(twin), source.name
        assert not any(c.get("outputs") for c in twin.cells), source.name
