"""The book's sources: exercises that can be checked, figures that can be heard, references for every network, code that fits its column."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from csist.networks.registry import NETWORKS
from csist.reporting import paper_values

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "book" / "chapters").glob("*.md"))
PAGES = [*CHAPTERS, *sorted((ROOT / "reproduce").glob("*.md"))]
TAUGHT = [path for path in CHAPTERS if "{exercise}" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)
def test_exercises_have_stars_a_check_cell_and_a_solution_that_runs(path):
    text = path.read_text(encoding="utf-8")
    exercises = re.findall(r"\{exercise\} (★*)[^\n]*\n:label: (\S+)", text)
    assert 3 <= len(exercises) <= 5 and all(1 <= len(stars) <= 3 for stars, _ in exercises)
    for _, label in exercises:
        asked, begin = text.index(f":label: {label}"), text.index(f"{{solution-start}} {label}")
        end = text.index("{solution-end}", begin)
        assert "{code-cell}" in text[asked:begin], f"{label} has no cell that checks the reader's answer"
        assert "{code-cell}" in text[begin:end], f"the solution of {label} does not run"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_figure_has_a_label_and_a_text_for_those_who_do_not_see_it(path):
    text = path.read_text(encoding="utf-8")
    for cell in re.findall(r"```\{code-cell\}[^\n]*\n---\n(.*?)\n---\n", text, flags=re.S):
        if "figure:" in cell:
            assert re.search(r"name: fig-\S+", cell) and "caption:" in cell and re.search(r"alt: \S", cell), cell


def test_every_network_has_its_reference():
    page = (ROOT / "book" / "chapters" / "bibliography.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row[1])}
    assert set(NETWORKS) | set(paper_values(3)) | set(paper_values(5)) <= named
    keys = set(re.findall(r"\{cite:[tp]\}`(\w+)`", page))
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), flags=re.M))
    assert all("cite:" in row[2] for row in rows) and keys <= known
