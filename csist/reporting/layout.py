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
        """The table in HTML: scrolls sideways on narrow screens, takes its colours from the page, names rows and columns for screen readers."""
        head = "".join(f"<tr>{line}</tr>" for line in (self._group_heads(), self._heads()) if line)
        body = "".join(f"<tr>{self._line(line)}</tr>" for line in self.cells)
        region = f'<div role="region" tabindex="0" aria-label="{html.escape(self.caption, quote=True)}" style="overflow-x: auto; margin: 1em 0">'
        caption = f'<caption style="caption-side: top; text-align: left; padding-bottom: 0.5em; color: inherit">{html.escape(self.caption)}</caption>'
        style = "border-collapse: collapse; font-variant-numeric: tabular-nums; color: inherit"
        return f'{region}<table style="{style}">{caption}<thead>{head}</thead><tbody>{body}</tbody></table></div>'

    def _group_heads(self) -> str:
        if not any(group for group, _ in self.columns):
            return ""
        spans = []
        for group, _ in self.columns:
            if spans and spans[-1][0] == group:
                spans[-1][1] += 1
            else:
                spans.append([group, 1])
        return "".join(_head(group, "colgroup", f' colspan="{span}"', "center") if group else f'<td colspan="{span}"></td>' for group, span in spans)

    def _heads(self) -> str:
        return "".join(_head(name, "col", "", "right" if number else "left") for number, (_, name) in enumerate(self.columns))

    @staticmethod
    def _line(line) -> str:
        cells = "".join(f'<td style="{CELL}; text-align: right; white-space: nowrap">{html.escape(cell)}</td>' for cell in line[1:])
        return _head(line[0], "row", "", "left") + cells

    def __repr__(self) -> str:
        return f"{self.caption}\n\n{self.markdown()}"

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_markdown_(self) -> str:
        return repr(self)


CELL = "padding: 0.25em 0.5em; border-bottom: 1px solid currentColor; background: none; color: inherit"


def _head(text: str, scope: str, extra: str, align: str) -> str:
    wrap = "white-space: normal"
    if scope == "row":  # a name stays on one line, a sentence may wrap
        wrap = "white-space: nowrap" if len(text) <= 40 else "white-space: normal; min-width: 15em; font-weight: normal"
    return f'<th scope="{scope}"{extra} style="{CELL}; text-align: {align}; {wrap}">{html.escape(text)}</th>'


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


def row_value(name: str, show=number, **options):
    """How a column says the value of this name: ``show`` applied to it."""
    return lambda row: show(row[name], **options)


def signed(value: float | None) -> str:
    """Points with their sign (a true minus), a dash for None."""
    return MISSING if value is None else f"{value:+.2f}".replace("-", "−")
