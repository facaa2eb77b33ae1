"""Print the whole book as one PDF: Chromium prints the single-page build, with its formulas set and every answer unfolded.

    python book/print_pdf.py --check                                             # is everything here that printing needs?
    python book/print_pdf.py book/_build/singlehtml/index.html book.pdf

``make pdf`` builds the single page first and then calls this.
"""
from __future__ import annotations

import argparse
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 600_000  # milliseconds: the whole book is a large page, and a busy machine is no failure
FOOTER = '<div style="width: 100%; text-align: center; font: 8px sans-serif; color: #555"><span class="pageNumber"></span></div>'

# jupyter-book's index.html only leads on to the first page.
ARRIVED = "() => document.readyState === 'complete' && !document.querySelector('meta[http-equiv=refresh i]')"

SCALE = 0.75  # the screen's type is large for paper
MARGIN = {"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
WIDTH = round((210 - 2 * 16) / 25.4 * 96 / SCALE)  # the text's width on A4 in the page's own pixels

UNFOLD = """async () => {
    await window.MathJax?.startup?.promise;
    document.documentElement.dataset.theme = document.documentElement.dataset.mode = "light";
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const folded of document.querySelectorAll(".toggle-hidden")) folded.classList.remove("toggle-hidden");
    for (const image of document.images) image.loading = "eager";
    await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
    await document.fonts.ready;
    for (const table of document.querySelectorAll("article table")) {  // one that is wider than the paper is set smaller
        const room = table.parentElement.clientWidth, wide = table.scrollWidth;
        if (room && wide > room) table.style.zoom = room / wide;
    }
}"""

# A font without a character draws the same box for every character that it lacks, such as one of the private use area.
DRAWS_CHINESE = """() => {
    const draw = text => {
        const canvas = Object.assign(document.createElement("canvas"), {width: 40, height: 40}), pen = canvas.getContext("2d");
        pen.font = "32px sans-serif";
        pen.fillText(text, 2, 34);
        return canvas.toDataURL();
    };
    return draw("\\u76ee") !== draw("\\uf6ab");
}"""


class CannotPrint(Exception):
    """What is missing, and how to get it."""


def find_chromium(playwright):
    """The path of a Chromium or Chrome: ``$CSIST_CHROMIUM``, one on the search path, or playwright's own; None if there is none."""
    names = [os.environ.get("CSIST_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", playwright.chromium.executable_path]
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


@contextmanager
def chromium_page():
    """An empty page in a headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise CannotPrint("printing needs the Python package playwright; install it with: pip install playwright") from None
    with sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            raise CannotPrint(
                "printing needs Chromium. Install it (Debian: apt-get install chromium), or run `playwright install chromium`, "
                "or set CSIST_CHROMIUM to the path of a Chromium or Chrome"
            )
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page()
            page.set_default_timeout(PATIENCE)
            yield page
        finally:
            browser.close()


def check_fonts(page):
    if not page.evaluate(DRAWS_CHINESE):
        raise CannotPrint("the glossary's Chinese terms need a Chinese font. Install one (Debian: apt-get install fonts-noto-cjk; Windows and macOS have one)")


def print_pdf(html: Path, pdf: Path) -> None:
    """Print a local page to A4, under a temporary name first.

    Raises
    ------
    CannotPrint
        Chromium, playwright or a Chinese font is missing, the page does not exist, or a script of it failed.
    """
    html, pdf = Path(html), Path(pdf)
    if not html.is_file():
        raise CannotPrint(f"{html} does not exist. Build the single page first: jupyter-book build book --builder singlehtml, or simply: make pdf")
    with chromium_page() as page:
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(html.resolve().as_uri())
        page.wait_for_function(ARRIVED)
        page.emulate_media(media="print", color_scheme="light")
        page.set_viewport_size({"width": WIDTH, "height": 1200})
        page.evaluate(UNFOLD)
        page.wait_for_timeout(1500)  # what was folded away is drawn a moment after it is unfolded, and would print blank
        if page.evaluate(r"() => /\p{Script=Han}/u.test(document.body.textContent)"):
            check_fonts(page)
        if errors:
            raise CannotPrint(f"a script of {html} failed: {errors[0]}")
        pdf.parent.mkdir(parents=True, exist_ok=True)
        part = pdf.with_name(pdf.name + ".part")
        page.pdf(
            path=part, format="A4", margin=MARGIN, scale=SCALE, print_background=True, outline=True, tagged=True,
            display_header_footer=True, header_template="<span></span>", footer_template=FOOTER,
        )  # fmt: skip
        os.replace(part, pdf)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("html", nargs="?", type=Path, help="the single-page build's index.html")
    parser.add_argument("pdf", nargs="?", type=Path, help="the file to write")
    parser.add_argument("--check", action="store_true", help="only look whether Chromium and a Chinese font are there")
    options = parser.parse_args(arguments)
    if not options.check and not (options.html and options.pdf):
        parser.error("needs a page and the name of the PDF, or --check")
    try:
        if options.check:
            with chromium_page() as page:
                check_fonts(page)
        else:
            print_pdf(options.html, options.pdf)
    except CannotPrint as error:
        print(f"print_pdf: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
