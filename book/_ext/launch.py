"""Each page's ways out of the browser: a notebook to download and, once the repository has a public address, buttons for Colab and Binder.

The address is one setting: ``repository: url`` in ``_config.yml``, or the environment variable ``CSIST_REPOSITORY``, which wins. While it is unset no
page has a button that would lead nowhere. All buttons are plain links: a page asks nobody for anything when it is opened.
"""
from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parents[2]
INSTALL = """\
import importlib.util
import os
import sys

if importlib.util.find_spec("csist") is None:  # a fresh machine, such as Colab: get the repository, and what its package needs
    _repository = {address}
    !git clone --quiet --depth 1 {{_repository}} csist-repository
    %cd csist-repository/{folder}
    %pip install --quiet "{up}[notebooks]"
    sys.path.insert(0, os.path.abspath("{up}"))  # the clone itself: the package finds weights and results beside it"""
ASK = 'os.environ.get("CSIST_REPOSITORY") or input("Address of the csist repository: ")'
ABOUT = """\
*A chapter of the book as a notebook. What only the book can show, such as numbered equations, cross-references and computed numbers inside sentences, stands
here as it is written. Run the next cell first.*"""


def install_cell(folder: str, address: str = "") -> str:
    """The cell that makes a notebook of this folder of the repository run on a machine without the package."""
    up = "/".join([".."] * len(Path(folder).parts))
    return INSTALL.format(address=f'"{address}"' if address else ASK, folder=folder, up=up)


def as_notebook(source: Path, folder: str, address: str = "") -> NotebookNode:
    """A chapter's MyST text as a notebook without outputs, which installs what it needs."""
    notebook = jupytext.read(source)
    notebook.cells[:0] = [new_markdown_cell(ABOUT, id="about"), new_code_cell(install_cell(folder, address), id="install")]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same source gives the same file
    return notebook


def interactive_notebooks(text: str) -> list[str]:
    """The stand-alone notebooks of the explorers that a page shows: ``PsfExplorer`` has notebooks/psf_explorer.ipynb."""
    names = re.findall(r"\b([A-Z]\w+)\b", " ".join(re.findall(r"^from csist\.widgets import (.+)$", text, re.M)))
    paths = [f"notebooks/{re.sub(r'(?<!^)(?=[A-Z])', '_', name).lower()}.ipynb" for name in dict.fromkeys(names)]
    return [path for path in paths if (ROOT / path).is_file()]


def launch_links(address: str, branch: str, page: str, path: str) -> list[dict]:
    """Buttons for one file of the repository. Colab opens notebooks of GitHub only; Binder also opens a chapter's text as a notebook."""
    address = address.removesuffix("/").removesuffix(".git")
    github = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address)
    where = f"gh/{github[1]}" if github else f"git/{quote(address, safe='')}"
    links = [("Binder", "logo_binder.svg", f"https://mybinder.org/v2/{where}/{branch}?urlpath=lab/tree/{path}")]
    if github and path.endswith(".ipynb"):
        links.insert(0, ("Colab", "logo_colab.png", f"https://colab.research.google.com/github/{github[1]}/blob/{branch}/{path}"))
    stem = Path(path).stem
    suffix, what = ("", "this page") if stem == Path(page).name else (f": {stem}", f"the notebook {stem}")
    return [
        {"type": "link", "text": name + suffix, "tooltip": f"Open {what} on {name}", "icon": f"_static/images/{icon}", "url": url} for name, icon, url in links
    ]  # fmt: skip


def use_address(app, config):
    """The environment wins over the configuration; the theme shows its repository buttons only where there is an address."""
    options = config.html_theme_options
    options["repository_url"] = os.environ.get("CSIST_REPOSITORY") or options.get("repository_url", "")
    for button in ("use_repository_button", "use_issues_button"):
        options[button] = bool(options["repository_url"])


def add_ways_out(app, pagename, templatename, context, doctree):
    """Write the notebook of a chapter beside its source, and add the buttons."""
    if app.builder.name != "html" or "kernelspec" not in app.env.metadata.get(pagename, {}):
        return
    options = app.config.html_theme_options
    address, branch = options["repository_url"], options.get("repository_branch") or "main"
    source = Path(app.env.doc2path(pagename))
    if source.suffix == ".md":
        folder = (Path("book") / pagename).parent.as_posix()
        target = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        jupytext.write(as_notebook(source, folder, address), target)
        context["ipynb_source"] = f"{pagename}.ipynb"
        path, myst = f"book/{pagename}.md", source
    else:  # papermill's copy of a notebook
        path, myst = f"reproduce/{source.name}", ROOT / "reproduce" / f"{source.stem}.md"
    if address:
        paths = [path, *interactive_notebooks(myst.read_text(encoding="utf8"))]
        links = [link for path in paths for link in launch_links(address, branch, pagename, path)]
        group = {"type": "group", "tooltip": "Run it online", "icon": "fas fa-rocket", "buttons": links, "label": "launch-buttons"}
        context["header_buttons"].insert(0, group)


def setup(app):
    app.connect("config-inited", use_address)
    app.connect("html-page-context", add_ways_out, priority=500)  # after the theme (loaded earlier) has made its list of buttons, before 501, when it fills it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
