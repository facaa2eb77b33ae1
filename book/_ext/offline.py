"""Make the HTML book self-contained and honest.

* MathJax 3 comes from the PyPI wheel ``sphinx-mathjax-offline`` (unmodified MathJax 3.2.2 files, Apache-2.0). Only the bundle that the book uses and
  its fonts are copied: 1.7 MB instead of 24 MB.
* A page that would load anything from another host is a warning, an error with ``-W``.
* Cached notebook outputs are thrown away when the package, the stored results, the weights or a numerical library change, not only when a
  notebook's own code does.
* Chapters are executed two at a time.
"""
from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from myst_nb.core.read import is_myst_markdown_notebook
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from sphinx.errors import ExtensionError
from sphinx.util import logging

logger = logging.getLogger(__name__)
BUNDLE = "tex-chtml-full.js"
FONTS = "output/chtml/fonts/woff-v2"
ELSEWHERE = r"""(?:https?:)?//[^"'\s>]+"""
EXTERNAL = re.compile(
    rf"""<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\s(?:src|data)\s*=\s*["']?{ELSEWHERE}"""
    rf"""|<link\b(?=[^>]*\brel\s*=\s*["']?(?:stylesheet|preload|preconnect|icon|modulepreload|prefetch|dns-prefetch))[^>]*\bhref\s*=\s*["']?{ELSEWHERE}"""
    rf"""|url\(\s*["']?{ELSEWHERE}""",
    re.I,
)
SOURCES = {".py", ".js", ".css"}
LIBRARIES = ("numpy", "scipy", "matplotlib", "torch", "anywidget", "myst-nb")


class AuthorYearLabels(BaseLabelStyle):
    """Labels such as "Han et al., 2025", as the text cites them; pybtex's own are "HYZ+25" or numbers."""

    def format_labels(self, sorted_entries):
        seen: dict[str, int] = {}
        for entry in sorted_entries:
            persons = entry.persons.get("author", entry.persons.get("editor", []))
            people = [Text.from_latex(" ".join(p.prelast_names + p.last_names)).render_as("text") for p in persons]
            names = people[0] + " et al." if len(people) > 2 else " and ".join(people) or entry.key
            label = f"{names}, {entry.fields.get('year', 'n.d.')}"
            seen[label] = seen.get(label, 0) + 1
            yield label if seen[label] == 1 else label + "abcdefgh"[seen[label] - 1]


class CsistStyle(Style):
    default_label_style = AuthorYearLabels
    default_sorting_style = "author_year_title"


def cache_by_source(app):
    """jupyter-cache compares the notebooks' code only; give it another folder when anything else that an output depends on has changed."""
    root = Path(app.confdir).resolve().parent
    package = Path(next(iter(importlib.util.find_spec("csist").submodule_search_locations)))
    files = [p for p in package.rglob("*") if p.suffix in SOURCES]
    for name in ("results", "weights", "paper"):
        files += [p for p in (root / "reproduce" / name).rglob("*") if p.is_file()]
    total = hashlib.sha256(platform.python_version().encode())
    for library in LIBRARIES:
        try:
            total.update(f"{library}={importlib.metadata.version(library)}\n".encode())
        except importlib.metadata.PackageNotFoundError:
            continue
    for line in sorted(f"{path.parent.name}/{path.name}\n".encode() + hashlib.sha256(path.read_bytes()).digest() for path in files):  # wherever the files lie
        total.update(line)
    app.config.nb_execution_cache_path = str(Path(app.outdir).parent / ".jupyter_cache" / total.hexdigest()[:16])


def execute_two_at_a_time(app, env, docnames):
    """Execute the chapters that the cache lacks, two at a time, as ``make`` runs two results pages; myst-nb takes one after the other.

    A chapter that fails is executed once more when its page is read, which then reports the error.
    """
    if app.config.nb_execution_mode != "cache":
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    pages = [page for page in map(env.doc2path, docnames) if page.endswith(".md") and is_myst_markdown_notebook(Path(page).read_text(encoding="utf8"))]
    records = [cache.add_nb_to_project(page, read_data={"type": "plugin", "name": "myst_nb_md"}) for page in pages]
    executor = load_executor("local-serial", cache)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda record: executor.run_and_cache(filter_pks=[record.pk], timeout=app.config.nb_execution_timeout), records))


def without_thebe(app, config):
    """sphinx-thebe writes its address on a content network on every page, twice (a JavaScript error), used or not. Keep only its local style sheet."""
    if not config.html_theme_options.get("launch_buttons", {}).get("thebe"):
        for event in ("env-before-read-docs", "doctree-resolved"):
            for listener in list(app.events.listeners.get(event, [])):
                if listener.handler.__module__ == "sphinx_thebe":
                    app.disconnect(listener.id)


def singlehtml_handlers(app, config):
    """sphinx-exercise registers nodes for "singlehtml", which would hide all handlers of "html" there."""
    handlers = app.registry.translation_handlers
    if "singlehtml" in handlers:
        handlers["singlehtml"] = {**handlers.get("html", {}), **handlers["singlehtml"]}


def examples_section(app, what, name, obj, options, lines):
    """Doctests close the docstrings of the package without a heading; napoleon would take them for one more parameter."""
    first = next((k for k, line in enumerate(lines) if line.startswith(">>>")), None)
    if first is not None and not any(line.startswith("Examples") for line in lines):
        lines[first:first] = ["Examples", "--------"]


def list_of_works(app, pagename, templatename, context, doctree):
    """Entries of the bibliography are items of a list; docutils gives them a role that has been withdrawn, which leaves a list without items."""
    context["body"] = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')


def copy_mathjax(app, exception):
    if exception or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None:
        raise ExtensionError('MathJax is missing; install it with: pip install "csist[book]"')
    source, target = Path(spec.origin).parent / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
    (target / FONTS).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / BUNDLE, target / BUNDLE)
    for font in (source / FONTS).glob("*.woff"):
        shutil.copyfile(font, target / FONTS / font.name)


def check_external(app, exception):
    if exception or app.builder.format != "html":
        return
    for page in sorted(Path(app.outdir).rglob("*.html")):
        for hit in EXTERNAL.findall(page.read_text(encoding="utf8")):
            logger.warning("%s would load something from another host: %s", page.relative_to(app.outdir), hit[:200])


def setup(app):
    register_plugin("pybtex.style.formatting", "csist", CsistStyle)
    app.connect("config-inited", singlehtml_handlers)
    app.connect("config-inited", without_thebe)
    app.connect("builder-inited", cache_by_source, priority=100)  # before myst-nb reads its settings
    app.connect("env-before-read-docs", execute_two_at_a_time)
    app.connect("autodoc-process-docstring", examples_section, priority=400)  # before napoleon
    app.connect("html-page-context", list_of_works)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", check_external, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
