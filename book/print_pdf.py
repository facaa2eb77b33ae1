"""Print the whole book as one PDF: Chromium prints the single-page build, with its formulas set and every answer unfolded.

It prints twice: the first time tells on which page each chapter begins, the second time the contents say so. pypdf then writes the outline, and sets right
to which heights links lead: Chromium forgets scale and margin there.

    python book/print_pdf.py --check                                             # is everything here that printing needs?
    python book/print_pdf.py book/_build/singlehtml/index.html book.pdf

``make pdf`` builds the single page first and then calls this.
"""
from __future__ import annotations

import argparse
import logging
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
TOP = float(MARGIN["top"].removesuffix("mm")) / 25.4 * 72  # in points
LEVELS = 3  # of headings in the outline: chapters, sections, subsections

UNFOLD = """async () => {
    await window.MathJax?.startup?.promise;
    document.documentElement.dataset.theme = document.documentElement.dataset.mode = "light";
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const folded of document.querySelectorAll(".toggle-hidden")) folded.classList.remove("toggle-hidden");
    for (const image of document.images) image.loading = "eager";
    for (const card of document.querySelectorAll(".sd-card")) {  // on paper a card's title is its link
        const link = card.querySelector("a.sd-stretched-link"), title = card.querySelector(".sd-card-title");
        if (!link || !title) continue;
        link.textContent = title.textContent;
        link.classList.remove("sd-hide-link-text");
        title.replaceChildren(link);
    }
    await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
    await document.fonts.ready;
    for (const table of document.querySelectorAll("article table")) {  // one that is wider than the paper is set smaller
        const room = table.parentElement.clientWidth, wide = table.scrollWidth;
        if (room && wide > room) table.style.zoom = room / wide;
    }
}"""

# The first page: title, author, and the line of "How this book was built" that says from what.
TITLE = """about => {
    const page = Object.assign(document.createElement("div"), {className: "csist-title"});
    for (const [name, text] of [["h1", about.title], ["p", about.author], ["p", about.edition]])
        page.append(Object.assign(document.createElement(name), {textContent: text}));
    page.firstChild.setAttribute("role", "presentation");
    document.querySelector("#jb-print-docs-body, body").prepend(page);
}"""

# Ids are unique on each page. Put together they are not, and the first of equal ones would win: later ones are renamed, with the links of their own chapter.
# The bibliography's way back to the citations cannot be told apart any more, and is taken away.
UNIQUE_IDS = """() => {
    for (const link of document.querySelectorAll("a[role=doc-backlink]")) link.replaceWith(...link.childNodes);
    const seen = new Set();
    for (const [number, anchor] of [...document.querySelectorAll("article span[id^='document-']")].entries()) {
        const chapter = anchor.nextElementSibling, links = [...chapter.querySelectorAll("a[href^='#']")];
        const within = link => chapter.querySelector("#" + CSS.escape(decodeURIComponent(link.hash.slice(1))));
        const targets = new Map(links.map(link => [link, within(link)]).filter(([, target]) => target));
        for (const target of new Set(targets.values())) {
            if (seen.has(target.id)) target.id += `--${number}`;
            seen.add(target.id);
        }
        for (const [link, target] of targets) link.setAttribute("href", `#${target.id}`);
    }
}"""

NUMBER_CONTENTS = """pages => {
    for (const link of document.querySelectorAll("#jb-print-toc a[href^='#']")) {
        const page = pages[decodeURIComponent(link.hash.slice(1))];
        if (page) link.append(Object.assign(document.createElement("span"), {textContent: page}));
    }
}"""

# Level, words and id of every heading of the text. In the single page a chapter begins with an h2; its anchor stands before it.
HEADINGS = """() => [...document.querySelectorAll("article section[id] > :is(h1, h2, h3, h4)")].map(heading => {
    const words = heading.cloneNode(true), section = heading.parentElement;
    for (const extra of words.querySelectorAll(".headerlink, mjx-assistive-mml")) extra.remove();
    const first = section.previousElementSibling, chapter = first?.id?.startsWith("document-") ? first : null;
    const inside = section.closest("span[id^='document-'] + section") ? 2 : 1;
    return [Number(heading.tagName[1]) - inside, words.textContent.replace(/\\s+/g, " ").trim(), (chapter ?? section).id];
})"""

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


def about_the_book() -> dict:
    """What the title page says: title and author of ``_config.yml``, version, date and commit."""
    import yaml

    from csist.evaluation import provenance

    config, origin = yaml.safe_load((Path(__file__).parent / "_config.yml").read_text(encoding="utf8")), provenance()
    commit = f", commit {origin['commit']}" if origin["commit"] else ""
    return {"title": config["title"], "author": config["author"], "edition": f"csist {origin['versions']['csist']}, {origin['date']}{commit}"}


def destinations(pdf: Path) -> dict[str, int]:
    """On which page, counted from 1, each link target of a printed page lies."""
    from pypdf import PdfReader

    reader = PdfReader(pdf)
    return {name.removeprefix("/"): reader.get_destination_page_number(place) + 1 for name, place in reader.named_destinations.items()}


def finish(pdf: Path, headings, about: dict) -> None:
    """Give a printed book its outline and its author, and its links the right heights; the file is replaced."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import Fit, FloatObject, NameObject

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of Chromium's count of objects, which harms nothing
    writer = PdfWriter(clone_from=PdfReader(pdf))
    places = writer.root_object.get("/Dests", {})
    pages, parents = destinations(pdf), {}
    for entry in places.values():
        place, page = entry.get_object(), entry.get_object()[0].get_object()
        if place[1] == "/XYZ":
            height = float(page.mediabox.height)
            place[3] = FloatObject(height - TOP - (height - float(place[3])) * SCALE)
    for level, words, name in headings:
        if level <= LEVELS and name in pages:
            top = places[NameObject(f"/{name}")].get_object()[3]
            parent = parents.get(level - 1)
            fit = Fit.xyz(left=0, top=top)
            parents[level] = writer.add_outline_item(title=words, page_number=pages[name] - 1, parent=parent, fit=fit, is_open=False)
            parents = {known: item for known, item in parents.items() if known <= level}
    writer.add_metadata({"/Title": about["title"], "/Author": about["author"], "/Subject": about["edition"]})
    part = pdf.with_name(pdf.name + ".part")
    writer.write(part)
    os.replace(part, pdf)


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
        about = about_the_book()
        page.evaluate(TITLE, about)
        page.evaluate(UNIQUE_IDS)
        page.evaluate(UNFOLD)
        page.wait_for_timeout(1500)  # what was folded away is drawn a moment after it is unfolded, and would print blank
        if page.evaluate(r"() => /\p{Script=Han}/u.test(document.body.textContent)"):
            check_fonts(page)
        if errors:
            raise CannotPrint(f"a script of {html} failed: {errors[0]}")
        pdf.parent.mkdir(parents=True, exist_ok=True)
        part = pdf.with_name(pdf.name + ".printing")
        try:
            for _ in range(2):  # numbers in the contents move nothing to another page: each has a line of its own
                page.pdf(
                    path=part, format="A4", margin=MARGIN, scale=SCALE, print_background=True, tagged=True,
                    display_header_footer=True, header_template="<span></span>", footer_template=FOOTER,
                )  # fmt: skip
                page.evaluate(NUMBER_CONTENTS, destinations(part))
            finish(part, page.evaluate(HEADINGS), about)
            os.replace(part, pdf)
        finally:
            part.unlink(missing_ok=True)


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
