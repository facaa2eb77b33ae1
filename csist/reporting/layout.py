"""A small table that notebooks, the book and README.md can all show, and how its cells are written."""
from __future__ import annotations

import html
from typing import NamedTuple

MISSING = "–"


class Column(NamedTuple):
    """A column of a table: whose numbers, what they are, and how a row says it."""

    group: str  # "paper", "ours" or ""
    name: str
    text: object  # function of a row


class Table:
    """A small table that notebooks, the book and README.md can all show.

    Parameters
    ----------
    caption : str
        What it says, as one sentence.
    columns : list of (group, name)
        Headings; the first column names the row.
    cells : list of list of str
        One list per row.

    >>> print(Table("Scores.", [("", "method"), ("paper", "CSO-mAP")], [["ISTA", "7.46"]]).markdown())
    | method | CSO-mAP, paper |
    | :-- | --: |
    | ISTA | 7.46 |
    """

    def __init__(self, caption: str, columns, cells):
        self.caption, self.columns, self.cells = caption, list(columns), [list(line) for line in cells]
        wrong = [line for line in self.cells if len(line) != len(self.columns)]
        if wrong:
            raise ValueError(f"Table: every row needs {len(self.columns)} cells, one per column; got {len(wrong[0])} in {wrong[0]}")

    def markdown(self) -> str:
        """The table in GitHub's Markdown, without its caption."""
        heads = [f"{name}, {group}" if group else name for group, name in self.columns]
        lines = [heads, [":--"] + ["--:"] * (len(heads) - 1), *self.cells]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)

    def html(self) -> str:
        """The table in HTML: scrolls sideways under its row names where it is too wide, takes its colours from the page, names rows and columns for screen
        readers, and brings its own style sheet."""
        head = "".join(f"<tr>{line}</tr>" for line in (self._group_heads(), self._heads()) if line)
        body = "".join(f"<tr>{self._line(line)}</tr>" for line in self.cells)
        region = f'<div class="csist-table" role="region" tabindex="0" aria-label="{html.escape(self.caption, quote=True)}">'
        caption = f"<caption><span>{html.escape(self.caption)}</span></caption>"
        return f'<style>{STYLE}</style>{region}<table class="csist-table">{caption}<thead>{head}</thead><tbody>{body}</tbody></table></div>'

    @property
    def _starts(self) -> list[bool]:
        """Whether a column is the first of a group."""
        groups = [group for group, _ in self.columns]
        return [number > 0 and groups[number] != groups[number - 1] for number in range(len(groups))]

    def _group_heads(self) -> str:
        if not any(group for group, _ in self.columns):
            return ""
        spans = []
        for group, _ in self.columns:
            if spans and spans[-1][0] == group:
                spans[-1][1] += 1
            else:
                spans.append([group, 1])
        cell = lambda group, span: f'<th scope="colgroup" colspan="{span}" class="start">{html.escape(group)}</th>' if group else f'<td colspan="{span}"></td>'
        return "".join(cell(group, span) for group, span in spans)

    def _heads(self) -> str:
        heads = ((html.escape(name), _class(start, len(name) <= 9 and "short")) for start, (_, name) in zip(self._starts, self.columns))
        return "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in heads)

    def _line(self, line) -> str:
        cells = (f"<td{_class(start, len(text) > LONG and LONG_CELL)}>{html.escape(text)}</td>" for start, text in zip(self._starts[1:], line[1:]))
        return f'<th scope="row"{_class(len(line[0]) > LONG_NAME and LONG_CELL)}>{html.escape(line[0])}</th>' + "".join(cells)

    def __repr__(self) -> str:
        return f"{self.caption}\n\n{self.markdown()}"

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_markdown_(self) -> str:
        return repr(self)


LONG, LONG_NAME, LONG_CELL = 24, 30, "long"  # characters from which on a cell, or a row's name, is a sentence that may wrap
# Below 1220 px the book has no second sidebar, into whose place a cell with the tag "full-width" could reach: its tables then scroll.
STYLE = """
div.csist-table { overflow-x: auto; container-type: inline-size; margin: 1em 0; --csist-card: var(--pst-color-background, var(--jp-layout-color0, Canvas)); }
.bd-article div.csist-table table.csist-table { display: table; width: auto; }
table.csist-table { border-collapse: collapse; font-variant-numeric: tabular-nums; color: inherit; font-size: 0.9em; margin: 0; }
table.csist-table caption { caption-side: top; text-align: left; padding-bottom: 0.5em; color: inherit; }
table.csist-table caption span { display: block; position: sticky; left: 0; max-width: 100cqw; }
table.csist-table :is(th, td) { padding: 0.25em 0.4em; border: 0; border-bottom: 1px solid color-mix(in srgb, currentColor 30%, transparent);
  background: none; color: inherit; text-align: right; white-space: nowrap; }
table.csist-table thead th { white-space: normal; vertical-align: bottom; }
table.csist-table thead th.short { white-space: nowrap; }
table.csist-table thead tr:last-child :is(th, td) { border-bottom: 1px solid currentColor; }
table.csist-table thead th[scope=colgroup] { text-align: left; font-style: italic; font-weight: normal; }
table.csist-table .start { border-left: 1px solid color-mix(in srgb, currentColor 30%, transparent); }
table.csist-table th[scope=row] { font-weight: normal; }
table.csist-table :is(th[scope=row], thead th[scope=col]:first-child) { text-align: left; position: sticky; left: 0; background: var(--csist-card); }
table.csist-table td.long { text-align: left; white-space: normal; min-width: 10em; }
table.csist-table th.long { white-space: normal; min-width: 12em; }
@media (max-width: 1219px) { .bd-article div.cell.tag_full-width { width: 100%; max-width: 100%; } }
@media (max-width: 576px) { table.csist-table th[scope=row] { white-space: normal; max-width: 9em; } }
html[data-theme="dark"] .bd-content div.cell_output div.text_html:has(table.csist-table) { background: transparent; color: inherit; padding: 0; }
"""


def _class(*conditions) -> str:
    """A class attribute of a cell: "start" for a true condition, a name for itself, nothing where none holds.

    >>> _class(True, "long"), _class(False, False)
    (' class="start long"', '')
    """
    names = ["start" if condition is True else condition for condition in conditions if condition]
    return f' class="{" ".join(names)}"' if names else ""


def make_table(rows, columns: list[Column], caption: str) -> Table:
    """A table of rows (dicts) with the given columns, after the one that names the row."""
    return Table(caption, [("", "method"), *[(c.group, c.name) for c in columns]], [[row["label"], *[c.text(row) for c in columns]] for row in rows])


def percent(value, digits: int = 2) -> str:
    """A fraction in per cent, a dash for None.

    >>> percent(0.4674), percent(None)
    ('46.74', '–')
    """
    return number(None if value is None else 100 * value, digits)


def number(value, digits: int = 2, unit: float = 1.0) -> str:
    """A number in units of ``unit``, a dash for None.

    >>> number(2_179_104, 3, 1e6)
    '2.179'
    """
    return MISSING if value is None else f"{value / unit:,.{digits}f}"


def as_printed(value: float | None) -> str:
    """A number with the digits that it has, as of a printed table; a dash for None.

    >>> as_printed(1.345), as_printed(103.0), as_printed(None)
    ('1.345', '103', '–')
    """
    return MISSING if value is None else f"{value:,.10g}"


def row_value(name: str, show=number, **options):
    """How a column says the value of this name: ``show`` applied to it."""
    return lambda row: show(row[name], **options)


def signed(value: float | None) -> str:
    """Points with their sign (a true minus), a dash for None."""
    return MISSING if value is None else f"{value:+.2f}".replace("-", "−")
