"""The book's own tools: the notebook and the buttons that a page offers, what it says about its build, the PDF."""
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("jupytext")
pytest.importorskip("sphinx")
pytest.importorskip("myst_nb")
import built
import jupytext
import launch
import offline
import print_pdf
from test_widgets import need

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted([ROOT / "book" / "intro.md", *(ROOT / "book" / "chapters").glob("*.md")])
EXECUTED = [path for path in CHAPTERS if "kernelspec:" in path.read_text(encoding="utf8").split("\n---", 1)[0]]
# Notebooks -------------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_chapters_are_notebooks(path):
    """A chapter's code cells survive the conversion, the notebook is the same each time, and it starts by installing what it needs."""
    folder = path.parent.relative_to(ROOT).as_posix()
    notebook = launch.as_notebook(path, folder)
    fences = re.findall(r"^```\{code-cell\}", path.read_text(encoding="utf8"), re.M)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == len(fences) + 1 and code[0].source == launch.install_cell(folder)
    assert jupytext.writes(notebook, "ipynb") == jupytext.writes(launch.as_notebook(path, folder), "ipynb")
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells) and notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("folder", ["notebooks", "reproduce"])
def test_stand_alone_notebooks_install_what_they_need(folder):
    paths = sorted((ROOT / folder).glob("*.ipynb"))
    assert paths
    for path in paths:
        first = next(cell for cell in jupytext.read(path).cells if cell.cell_type == "code")
        assert first.source == launch.install_cell(folder), f"{path.name}: its first code cell is not launch.install_cell({folder!r})"


@pytest.mark.parametrize("folder", ["notebooks", "book/chapters", "book"])
@pytest.mark.parametrize("there", [True, False])
def test_install_cell(monkeypatch, folder, there):
    """Nothing happens where the package is; elsewhere the repository is cloned, entered, and installed with an extra that exists."""
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell.instance()
    done = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there or None)
    monkeypatch.setattr(shell, "system", lambda command: done.append(shell.var_expand(command, depth=1)))
    monkeypatch.setattr(shell, "run_line_magic", lambda name, line, _stack_depth=1: done.append(f"{name} {line}"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    shell.run_cell(launch.install_cell(folder, "https://github.com/owner/name"), silent=True).raise_error()
    if there:
        assert done == []
    else:
        up = {"notebooks": "..", "book": "..", "book/chapters": "../.."}[folder]
        clone = "git clone --quiet --depth 1 https://github.com/owner/name csist-repository"
        assert done == [clone, f"cd csist-repository/{folder}", f'pip install --quiet "{up}[notebooks]"']
        assert "notebooks" in built.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["optional-dependencies"]


# Buttons ---------------------------------------------------------------------------------------------------------------------------------------------


def test_launch_links_name_files_of_the_repository():
    links = launch.launch_links("https://github.com/owner/name.git", "main", "results/table1", "reproduce/table1.ipynb")
    assert [link["text"] for link in links] == ["Colab", "Binder"]
    assert links[0]["url"] == "https://colab.research.google.com/github/owner/name/blob/main/reproduce/table1.ipynb"
    assert links[1]["url"] == "https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/reproduce/table1.ipynb"


def test_colab_is_offered_only_what_it_can_open():
    """Colab reads notebooks of GitHub; neither a chapter's text nor another host."""
    assert [link["text"] for link in launch.launch_links("https://github.com/owner/name", "main", "chapters/ista", "book/chapters/ista.md")] == ["Binder"]
    (link,) = launch.launch_links("https://codeberg.org/owner/name", "main", "results/table1", "reproduce/table1.ipynb")
    assert link["url"].startswith("https://mybinder.org/v2/git/https%3A%2F%2Fcodeberg.org%2Fowner%2Fname/main")


def test_launch_links_say_which_notebook():
    links = launch.launch_links("https://github.com/owner/name", "main", "chapters/ista", "notebooks/ista_explorer.ipynb")
    assert [link["text"] for link in links] == ["Colab: ista_explorer", "Binder: ista_explorer"]


def test_explorers_lead_to_their_notebooks():
    """Each stand-alone notebook belongs to a page that shows its explorer."""
    pages = [*CHAPTERS, *(ROOT / "reproduce").glob("*.md")]
    found = {path for page in pages for path in launch.interactive_notebooks(page.read_text(encoding="utf8"))}
    assert found == {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb")}


# How this book was built -----------------------------------------------------------------------------------------------------------------------------


def test_build_tables():
    rows = {name: [line.strip("| ").split(" | ") for line in make(None).splitlines()] for name, make in built.TABLES.items() if name != "results"}
    assert all(len({len(row) for row in table}) == 1 and len(table) > 2 for table in rows.values())
    assert {"torch", "numpy", "jupyter-book", "myst-nb"} <= {row[0] for row in rows["libraries"]}
    assert all("not" not in row[2] for row in rows["libraries"][2:]), "a library of the book is missing from requirements.lock"
    assert len(rows["data"]) == 4, "all result files quote one training split and one test split"
    assert len(rows["weights"]) == 2 + len(list((ROOT / "reproduce" / "weights").glob("*.safetensors")))
    assert {row[3] for row in rows["weights"][2:]} == {"the same"}


# Faults end the build --------------------------------------------------------------------------------------------------------------------------------

FAULTY = """# A page

No label {ref}`nowhere`, no page [there](none.md), no section [here](#absent), no work {cite}`nobody`, no function {py:func}`csist.none`,
no figure {numref}`fig-none`, no equation {eq}`eq-none`, no value {glue:text}`unset`.

<img src="https://example.org/picture.png" alt="from another host">
"""
FAULTS = ["nowhere", "none.md", "absent", "nobody", "csist.none", "fig-none", "eq-none", "unset", "https://example.org/picture.png"]


def test_faults_end_the_build(tmp_path):
    """With the book's own settings and command, each broken link, missing label and foreign file is reported, and the build fails."""
    pytest.importorskip("jupyter_book")
    for name in ("_config.yml", "_ext", "_static", "favicon.svg", "references.bib"):
        (tmp_path / name).symlink_to(ROOT / "book" / name)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: page\n", encoding="utf8")
    (tmp_path / "page.md").write_text(FAULTY, encoding="utf8")
    (line,) = [line for line in (ROOT / "Makefile").read_text(encoding="utf8").splitlines() if "jupyter-book build book -W" in line]
    options = line.split("jupyter-book build book")[1].split()[:4]
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(tmp_path), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    warnings = [line for line in run.stderr.splitlines() if "WARNING" in line]
    assert run.returncode != 0 and options == ["-W", "-n", "--keep-going", "--all"]
    assert [fault for fault in FAULTS if not any(fault in line for line in warnings)] == [], run.stderr[-4000:]


# Execution -------------------------------------------------------------------------------------------------------------------------------------------

CHAPTER = """---
jupytext:
  text_representation: {{format_name: myst}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
---
```{{code-cell}} ipython3
import pathlib, time
pathlib.Path("{own}").touch()
end = time.monotonic() + 60
while not pathlib.Path("{other}").exists():
    assert time.monotonic() < end
    time.sleep(0.05)
```
"""


def test_two_chapters_are_executed_at_a_time(tmp_path):
    """Each of two chapters waits for the other to begin; a page without code is left alone."""
    for own, other in ("ab", "ba"):
        (tmp_path / f"{own}.md").write_text(CHAPTER.format(own=own, other=other), encoding="utf8")
    (tmp_path / "text.md").write_text("# No code", encoding="utf8")
    config = SimpleNamespace(nb_execution_mode="off", nb_execution_cache_path=str(tmp_path / "cache"), nb_execution_timeout=90)
    app, env = SimpleNamespace(config=config), SimpleNamespace(doc2path=lambda name: str(tmp_path / f"{name}.md"))
    offline.execute_two_at_a_time(app, env, ["a", "b", "text"])
    assert not (tmp_path / "a").exists()
    config.nb_execution_mode = "cache"
    offline.execute_two_at_a_time(app, env, ["a", "b", "text"])
    cached = offline.get_cache(config.nb_execution_cache_path).list_cache_records()
    assert {Path(record.uri).name for record in cached} == {"a.md", "b.md"}


# PDF -------------------------------------------------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf8"><title>t</title></head><body>
<div id="jb-print-toc"><a href="#document-one">One</a> <a href="#document-two">Two</a></div>
<article><section id="book"><h1>Book<a href="#book">#</a></h1>
<span id="document-one"></span><section id="one"><h2>One<a class="headerlink" href="#one">#</a></h2>
<details><summary>answer</summary><p>forty-two</p></details>
<section id="summary"><h3>Summary<a class="headerlink" href="#summary">#</a></h3></section></section>
<span id="document-two" style="display: block; break-before: page"></span>
<section id="two"><h2>Two<a class="headerlink" href="#two">#</a></h2>
<section id="summary" style="margin-top: 400px"><h3>Summary<a class="headerlink" href="#summary">#</a></h3></section></section>
</section></article>{}</body></html>"""


def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        need(print_pdf.find_chromium(running), "needs Chromium")


def test_print_pdf(tmp_path):
    chromium()
    pypdf = pytest.importorskip("pypdf")
    page, pdf = tmp_path / "page.html", tmp_path / "new" / "book.pdf"
    page.write_text(PAGE.format("<style>.csist-title { break-after: page }</style>"), encoding="utf8")
    print_pdf.print_pdf(page, pdf)
    assert [file.name for file in pdf.parent.iterdir()] == ["book.pdf"]
    book = pypdf.PdfReader(pdf)
    first, one, two = (sheet.extract_text() for sheet in book.pages)
    assert "Unmixing closely spaced infrared targets" in first and book.metadata.author == "The csist authors"
    assert re.search(r"One\s*2\s.*Two\s*3", one) and "forty-two" in one and "Summary" in two  # the contents say the pages
    whole, (chapter_one, (summary_one,), chapter_two, (summary_two,)) = book.outline[0], book.outline[1:]
    assert [item.title for item in (whole, chapter_one, summary_one, chapter_two, summary_two)] == ["Book#", "One", "Summary", "Two", "Summary"]
    places = [book.get_destination_page_number(item) + 1 for item in (chapter_one, summary_one, chapter_two, summary_two)]
    assert places == [2, 2, 3, 3]  # equal ids are told apart
    assert 225 < chapter_two.top - summary_two.top < 280  # 400 pixels at 96 to the inch and a scale of 0.75, and the heading


def test_print_pdf_says_what_is_wrong(tmp_path, capsys):
    assert print_pdf.main([str(tmp_path / "none.html"), str(tmp_path / "book.pdf")]) == 1
    assert "Build the single page first" in capsys.readouterr().err
    chromium()
    page = tmp_path / "page.html"
    page.write_text(PAGE.format("<script>nowhere()</script>"), encoding="utf8")
    assert print_pdf.main([str(page), str(tmp_path / "book.pdf")]) == 1
    assert "nowhere is not defined" in capsys.readouterr().err and not (tmp_path / "book.pdf").exists()


def test_print_pdf_knows_missing_fonts(tmp_path, monkeypatch, capsys):
    """A page with Chinese in it is not printed as boxes; one without needs no such font."""
    chromium()
    monkeypatch.setattr(print_pdf, "DRAWS_CHINESE", "() => false")
    page = tmp_path / "page.html"
    page.write_text(PAGE.format("亚像元"), encoding="utf8")
    assert print_pdf.main([str(page), str(tmp_path / "book.pdf")]) == 1
    assert "apt-get install fonts-noto-cjk" in capsys.readouterr().err and not (tmp_path / "book.pdf").exists()


def test_print_pdf_without_chromium(monkeypatch, capsys):
    pytest.importorskip("playwright")
    monkeypatch.setattr(print_pdf, "find_chromium", lambda playwright: None)
    assert print_pdf.main(["--check"]) == 1
    assert "apt-get install chromium" in capsys.readouterr().err


# JupyterLab ------------------------------------------------------------------------------------------------------------------------------------------


def test_lab_opens_chapters_as_notebooks(tmp_path):
    """The setting that `make lab` writes is one that JupyterLab reads from the environment."""
    (line,) = [line.split() for line in (ROOT / "Makefile").read_text(encoding="utf8").splitlines() if "jupytext-config" in line]
    file = line[line.index("--settings-file") + 1]
    assert file == "$(VENV)/etc/jupyter/labconfig/default_setting_overrides.json"
    target = tmp_path / "labconfig" / Path(file).name
    subprocess.run([sys.executable, "-m", "jupytext_config", "--settings-file", str(target), *line[line.index("set-default-viewer") :]], check=True)
    viewers = json.loads(target.read_text(encoding="utf8"))["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"]
    assert viewers == {"markdown": "Jupytext Notebook", "myst": "Jupytext Notebook"}
