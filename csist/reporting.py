"""Tables, plots and sentences of the results pages, made from the result files and from nothing else (book part "Results").

A row joins what the paper prints (columns ``paper_*``, from ``reproduce/paper/*.csv``) with what was measured here (columns ``ours_*``, from
``reproduce/results/*.json``). The two never mix: a method without a result file has no ``ours_*`` score, whatever the paper says about it.
"""
from __future__ import annotations

import csv
import difflib
import functools
import html
import io
import json
import math
import operator
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from csist.datasets import SPLITS, Frames, csist100k, frames_hash
from csist.evaluation import DETECTION_THRESHOLD, detect, list_methods, predict, provenance
from csist.imaging import FocalPlane, SubpixelGrid, check_ratio
from csist.metrics import cso_map, psnr_ssim, score_report
from csist.networks import create_network
from csist.networks.registry import NETWORKS, read_weights, run_name, unknown_name
from csist.scenes import Targets
from csist.solvers.ista import PAPER, TUNED, IstaSettings, unmix_ista
from csist.training import Run, train, write_json

AP_NAMES = ("ap05", "ap10", "ap15", "ap20", "ap25")  # AP at 0.05 .. 0.25 px, as the paper's table names them
SCALES = {"smoke": 64, "laptop": 2_000, "paper": SPLITS["test"]}  # test frames that a scale evaluates while the page is made
FEW_FRAMES = 200  # for settings that need thousands of iterations a frame
PIECE = 250  # frames between two movements of the progress bar
NEARLY_ALL = 0.95  # AP-25 from which on detection counts as solved; what is missing to 1 is then a matter of a few targets in a hundred
SIGMAS = 4.0  # a re-evaluation may differ from the stored score by so many standard errors: false alarms once in 16,000 rows
ROUNDING = 0.0005  # CSO-mAP that another device's or thread count's rounding may move (0.05 in the tables)
MISSING = "–"

# ---- files ------------------------------------------------------------------------------------------------------------


def reproduce_folder() -> Path:
    """The repository's ``reproduce`` folder: beside the package, else in or above the working directory.

    Raises
    ------
    FileNotFoundError
        If csist was installed without its repository; the message says what to do.
    """
    places = [Path(__file__).resolve().parents[1], Path.cwd(), *Path.cwd().parents]
    for place in places:
        if (place / "reproduce" / "runs.yaml").is_file():
            return place / "reproduce"
    raise FileNotFoundError("no reproduce/runs.yaml beside the package or above the working directory; clone the repository and run `pip install -e .` in it")


def load_result(name: str, folder: Path | None = None) -> dict | None:
    """The result file ``results/<name>.json``, or None if there is none.

    Parameters
    ----------
    name : str
        For example ``"dista-net-c3-seed0"``.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.
    """
    path = (folder or reproduce_folder()) / "results" / f"{name}.json"
    return read_json(path) if path.is_file() else None


def read_json(path) -> dict:
    """Content of a JSON file; a damaged one is an error that names the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); restore it, or delete it and make it again") from None


def load_paper_table(name: str) -> list[dict]:
    """A file of ``reproduce/paper`` as one dict per line; numbers as float, empty cells as None.

    >>> load_paper_table("table1_main_c3.csv")[0]["method"]
    'ISTA'
    """
    with open(reproduce_folder() / "paper" / name, newline="", encoding="utf-8") as file:
        return [{key: _number_or_text(value) for key, value in line.items()} for line in csv.DictReader(file)]


def _number_or_text(text: str | None):
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def paper_values(ratio: int = 3) -> dict[str, dict]:
    """What the paper prints at a sub-pixel ratio, by method name in lower case; empty for a ratio that it does not treat.

    Table 1 is at c = 3, Table 3 at 5 and 7 (with fewer columns).

    >>> paper_values(3)["dista-net"]["cso_map"], paper_values(5)["dista-net"]["cso_map"], paper_values(9)
    (46.74, 69.58, {})
    """
    if ratio == 3:
        lines = load_paper_table("table1_main_c3.csv")
    else:
        lines = [line for line in load_paper_table("table3_grid_ratio.csv") if line["c"] == ratio]
    return {line["method"].lower(): line for line in lines}


def write_text(path, text: str) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


# ---- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One row of a table before it is filled: a method in one setting."""

    key: str  # unique name, for example "ista-tuned"
    method: str  # its name in the paper's table and in the package, lower case
    label: str
    result: str  # name of the result file that the row shows
    settings: IstaSettings | None = None  # of a model-based row
    printed: bool = True  # whether the paper's number for the method belongs to this setting


def known_methods(ratio: int = 3) -> list[str]:
    """Methods that a table may show: all of the paper's table at this ratio, and all of this package."""
    return list(dict.fromkeys([*paper_values(ratio), *list_methods()]))


def entries(methods, ratio: int = 3, seed: int = 0, folder: Path | None = None) -> list[Entry]:
    """The rows that some methods have: ISTA one per setting, a network one, and one more if it was also trained by the paper's recipe."""
    labels = {name: line["method"] for name, line in (paper_values(3) | paper_values(ratio)).items()}
    rows = []
    for method in methods:
        if method not in known_methods(ratio):
            raise unknown_name(method, known_methods(ratio))
        label = labels.get(method, method)
        if method == "ista":
            rows.append(Entry("ista-paper", method, f"{label} (the paper's setting)", f"ista-paper-c{ratio}", PAPER))
            rows.append(Entry("ista-tuned", method, f"{label} (tuned on validation)", f"ista-tuned-c{ratio}", TUNED, printed=False))
            continue
        rows.append(Entry(method, method, label, run_name(method, ratio, seed) if method in NETWORKS else f"{method}-c{ratio}"))
        paper_recipe = run_name(method, ratio).replace("-seed0", "-paper-recipe")
        if load_result(paper_recipe, folder):
            rows.append(Entry(f"{method}-paper-recipe", method, f"{label} (the paper's recipe)", paper_recipe))
    return rows


def table1_rows(ratio: int = 3, methods=("ista", "ista-net", "ista-net+", "dista-net"), *, seed: int = 0, folder: Path | None = None) -> list[dict]:
    """Rows of the main comparison as plain JSON values.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    methods : sequence of str
        Names as in :func:`known_methods`.
    seed : int
        Training seed whose scores are shown; all seeds that have results give the mean and the spread.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.

    Returns
    -------
    list of dict
        Keys ``paper_*`` in the paper's units (scores in per cent, parameters in millions, costs in G), keys ``ours_*`` as fractions, dB and plain
        numbers; None where there is nothing to say. ``status`` is "scored", "not trained yet", "not scored yet" or "not implemented yet".

    Raises
    ------
    ValueError
        For an unknown method (with the nearest known one) or an even ratio.
    """
    check_ratio(ratio)
    printed = paper_values(ratio)
    return [_row(entry, ratio, seed, printed.get(entry.method, {}) if entry.printed else {}, folder) for entry in entries(methods, ratio, seed, folder)]


def _row(entry: Entry, ratio: int, seed: int, printed: dict, folder: Path | None) -> dict:
    result = load_result(entry.result, folder)
    return {
        "key": entry.key,
        "method": entry.method,
        "label": entry.label,
        "ratio": ratio,
        "status": _status(entry, result),
        "result": entry.result if result else None,
        **_paper_columns(printed),
        **_score_columns(result["test"] if result else None),
        **_cost_columns(entry.method, ratio),
        **_seed_columns(entry, seed, folder),
        **_training_columns(result, entry),
    }


def _status(entry: Entry, result: dict | None) -> str:
    if result:
        return "scored"
    if entry.method in NETWORKS:
        return "not trained yet"
    return "not scored yet" if entry.method in list_methods() else "not implemented yet"


def _paper_columns(printed: dict) -> dict:
    names = {
        **{name: name for name in ("cso_map", *AP_NAMES)},
        "psnr": "psnr_arxiv",
        "ssim": "ssim_arxiv",
        "psnr_later": "psnr_repo",
        "ssim_later": "ssim_repo",
        "parameters_m": "params_m",
        "macs_g_batch64": "macs_g_batch64",
    }
    return {f"paper_{name}": printed.get(column) for name, column in names.items()}


def _score_columns(test: dict | None) -> dict:
    test = test or {}
    low, high = test.get("interval") or (None, None)
    parts = {**{f"{n}_targets": (test.get("by_count") or {}).get(str(n)) for n in range(1, 6)}, "interior": test.get("interior"), "border": test.get("border")}
    return {
        "ours_cso_map": test.get("cso_map"),
        "ours_low": low,
        "ours_high": high,
        "ours_standard_error": test.get("standard_error"),
        **{f"ours_{name}": ap for name, ap in zip(AP_NAMES, test.get("ap") or [None] * 5)},
        "ours_count_accuracy": test.get("count_accuracy"),
        "ours_psnr": test.get("psnr"),
        "ours_ssim": test.get("ssim"),
        "ours_frames": test.get("frames"),
        "ours_frames_sha256": test.get("frames_sha256"),
        **{f"ours_{part}_{score}": (scores or {}).get(score) for part, scores in parts.items() for score in ("cso_map", "count_accuracy")},
    }


@functools.lru_cache(maxsize=32)
def network_cost(method: str, ratio: int) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates of one frame, and those of 64 frames counted as the paper does."""
    from csist.networks.cost import multiply_accumulates, parameter_count

    network = create_network(method, ratio=ratio, start=False)
    macs = multiply_accumulates(network)
    return parameter_count(network), macs["per_frame"], macs["paper_batch64"]


def _cost_columns(method: str, ratio: int) -> dict:
    cost = network_cost(method, ratio) if method in NETWORKS else (None, None, None)
    return dict(zip(("ours_parameters", "ours_macs_per_frame", "ours_macs_batch64"), cost))


def _seed_columns(entry: Entry, seed: int, folder: Path | None) -> dict:
    """Mean and standard deviation over training seeds; a method without training has none."""
    stem = entry.result.removesuffix(str(seed))
    names = [path.stem for path in sorted(((folder or reproduce_folder()) / "results").glob(f"{stem}*.json"))] if stem.endswith("-seed") else []
    scores = [load_result(name, folder)["test"]["cso_map"] for name in names]
    return {
        "ours_seeds": len(scores) or None,
        "ours_seeds_mean": statistics.mean(scores) if scores else None,
        "ours_seeds_sd": statistics.stdev(scores) if len(scores) > 1 else None,
    }


def _training_columns(result: dict | None, entry: Entry) -> dict:
    """What a row was made with; None throughout without a result file."""
    result = result or {}
    run, origin = result.get("run") or {}, result.get("provenance") or {}
    phases = run.get("phases") or []
    shown = {"samples": sum(phase["samples"] for phase in phases), "views": ", then ".join(f"{phase['samples']:,} {phase['view']}" for phase in phases)}
    return {
        "ours_settings": json.dumps(result["settings"]) if "settings" in result else None,
        "ours_samples": shown["samples"] or None,
        "ours_views": shown["views"] or None,
        "ours_hours": result.get("hours"),
        "ours_device": origin.get("device"),
        "ours_seed": run.get("seed"),
        "ours_commit": origin.get("commit"),
        "ours_date": origin.get("date"),
    }


# ---- tables -----------------------------------------------------------------------------------------------------------


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


def _field(name: str, show=number, **options):
    return lambda row: show(row[name], **options)


def our_score(row: dict) -> str:
    """CSO-mAP of a row with its interval, or why there is none."""
    if row["status"] != "scored":
        return row["status"]
    return f"{percent(row['ours_cso_map'])} ({percent(row['ours_low'])} to {percent(row['ours_high'])})"


def seeds_text(row: dict) -> str:
    """Mean ± standard deviation over training seeds, with their number."""
    if row["ours_seeds"] is None:
        return MISSING
    spread = f" ± {percent(row['ours_seeds_sd'])}" if row["ours_seeds_sd"] is not None else ""
    return f"{percent(row['ours_seeds_mean'])}{spread} ({row['ours_seeds']})"


def difference(row: dict) -> float | None:
    """Our CSO-mAP minus the paper's, in points; None unless both exist."""
    if row["ours_cso_map"] is None or row["paper_cso_map"] is None:
        return None
    return 100 * row["ours_cso_map"] - row["paper_cso_map"]


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.2f}".replace("-", "−")


def headline_table(rows) -> Table:
    """CSO-mAP of the paper and ours side by side."""
    columns = [
        Column("paper", "CSO-mAP", _field("paper_cso_map")),
        Column("ours", "CSO-mAP (95 % interval)", our_score),
        Column("ours", "difference", lambda row: _signed(difference(row))),
        Column("ours", "mean ± sd (seeds)", seeds_text),
        Column("ours", "count right [%]", _field("ours_count_accuracy", percent, digits=1)),
    ]
    return make_table(rows, columns, _caption("CSO-mAP × 100 on the test split", rows))


def precision_table(rows) -> Table:
    """AP at the five distance thresholds."""
    threshold = lambda name: f"AP-{name[2:]}"
    columns = [Column("paper", threshold(name), _field(f"paper_{name}")) for name in AP_NAMES]
    columns += [Column("ours", threshold(name), _field(f"ours_{name}", percent)) for name in AP_NAMES]
    return make_table(rows, columns, _caption("Average precision × 100 at 0.05 to 0.25 px", rows))


def cost_table(rows) -> Table:
    """Parameters, multiply-accumulates, PSNR and SSIM."""
    columns = [
        Column("paper", "parameters [M]", _field("paper_parameters_m", digits=3)),
        Column("paper", "MACs of 64 frames [G]", _field("paper_macs_g_batch64", digits=2)),
        Column("paper", "PSNR [dB]", lambda row: _two(row["paper_psnr"], row["paper_psnr_later"], 2)),
        Column("paper", "SSIM", lambda row: _two(row["paper_ssim"], row["paper_ssim_later"], 4)),
        Column("ours", "parameters [M]", _field("ours_parameters", digits=3, unit=1e6)),
        Column("ours", "MACs of 64 frames, the paper's count [G]", _field("ours_macs_batch64", digits=2, unit=1e9)),
        Column("ours", "MACs of a frame as run [M]", _field("ours_macs_per_frame", digits=0, unit=1e6)),
        Column("ours", "PSNR [dB]", _field("ours_psnr")),
        Column("ours", "SSIM", _field("ours_ssim", digits=4)),
    ]
    return make_table(rows, columns, "Size, cost and image scores; where the paper has two values, the article's comes first and its code page's second.")


def _two(first, second, digits: int) -> str:
    return " / ".join(dict.fromkeys(number(value, digits) for value in (first, second)))


def training_table(rows) -> Table:
    """What each row was made with."""
    columns = [
        Column("ours", "samples shown", lambda row: row["ours_views"] or _settings_text(row)),
        Column("ours", "hours", _field("ours_hours")),
        Column("ours", "device", lambda row: row["ours_device"] or MISSING),
        Column("ours", "seed", _field("ours_seed", digits=0)),
        Column("ours", "commit", lambda row: row["ours_commit"] or MISSING),
        Column("ours", "date", lambda row: row["ours_date"] or MISSING),
    ]
    return make_table(rows, columns, "How the rows were made; hours are training time, or computing time of a row without training.")


def _settings_text(row: dict) -> str:
    return "none: nothing is trained" if row["ours_settings"] else MISSING


def parts_table(rows, score: str = "cso_map") -> Table:
    """A score by number of targets, and inside and at the border of the frame; ``score`` is "cso_map" or "count_accuracy"."""
    names = {**{f"{n}_targets": f"{n} target{'s' * (n > 1)}" for n in range(1, 6)}, "interior": "interior", "border": "border"}
    columns = [Column("", name, _field(f"ours_{part}_{score}", percent)) for part, name in names.items()]
    captions = {
        "cso_map": "Our CSO-mAP × 100 by number of true targets and by place, each part ranked by itself.",
        "count_accuracy": "Our share of frames with the right number of targets, in per cent, by that number and by place.",
    }
    return make_table(rows, columns, captions[score])


def bench_table(bench: dict) -> Table:
    """The measurements of ``reproduce/bench.py``: time per unit, gain over the naive version, and the score where there is one."""
    columns = [("", "what"), ("ours", "time"), ("", "gain"), ("ours", "CSO-mAP × 100")]
    cells = []
    for value in bench["entries"]:
        gain = f"{value['times_faster']:,.1f} ×" if "naive" in value else MISSING
        score = f"{100 * value['cso_map']:.2f}" if "cso_map" in value else MISSING
        cells.append([value["what"], f"{_duration(value['ours']['seconds'])} per {value['unit']}", gain, score])
    return Table("Measured in one run; the gain is over the naive version named behind the slash.", columns, cells)


def _duration(seconds: float) -> str:
    """A time in the unit that keeps its number readable.

    >>> _duration(0.0027), _duration(4.48), _duration(3.6e-9)
    ('2.70 ms', '4.48 s', '3.60 ns')
    """
    unit, scale = next((u for u in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if seconds >= u[1]), ("ns", 1e-9))
    return f"{seconds / scale:.3g} {unit}" if seconds / scale >= 100 else f"{seconds / scale:.2f} {unit}"


def _caption(what: str, rows) -> str:
    frames = sorted({row["ours_frames"] for row in rows if row["ours_frames"]})
    counted = f", {' or '.join(f'{n:,}' for n in frames)} frames" if frames else ""
    return f"{what}{counted}, c = {rows[0]['ratio']}." if rows else f"{what}."


def readme_table(rows) -> Table:
    """The headline table of README.md."""
    columns = [
        Column("", "paper", _field("paper_cso_map")),
        Column("", "ours (95 % interval)", our_score),
        Column("", "mean ± sd (seeds)", seeds_text),
        Column("", "parameters", _field("ours_parameters", digits=0)),
        Column("", "samples shown", _field("ours_samples", digits=0)),
        Column("", "hours, device", lambda row: f"{number(row['ours_hours'])}, {row['ours_device']}" if row["ours_hours"] is not None else MISSING),
    ]
    return make_table(rows, columns, _caption("CSO-mAP × 100 on the test split", rows))


def write_rows(rows, folder, name: str = "table1", **more) -> list[Path]:
    """Write ``<name>.csv`` and ``<name>.json`` (rows and whatever else is passed); returns the two paths.

    CSV cells are Python's text of the values, an empty cell is None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else ["key"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{name}.csv", buffer.getvalue())
    write_json(folder / f"{name}.json", {"rows": rows, **more})
    return [folder / f"{name}.csv", folder / f"{name}.json"]


# ---- sentences --------------------------------------------------------------------------------------------------------


def paper_training(method: str, ratio: int = 3) -> dict:
    """How the paper's toolkit trained a method: ``epochs_at_most``, ``best_epoch`` (None if not published), ``frames_per_epoch``; empty if it is unknown."""
    lines = [line for line in load_paper_table("training.csv") if line["method"].lower() == method and line["c"] == ratio]
    return lines[0] if lines else {}


def discrepancy(row: dict) -> str:
    """What separates our number from the paper's, as Markdown."""
    if row["status"] != "scored":
        printed = f"; the paper prints {number(row['paper_cso_map'])}" if row["paper_cso_map"] is not None else ""
        return f"**{row['label']}**: {row['status']}{printed}."
    parts = [_compare(row), _compare_seeds(row), _compare_detection(row), _compare_training(row)]
    return f"**{row['label']}**: " + " ".join(part for part in parts if part)


def _compare(row: dict) -> str:
    ours, gap = percent(row["ours_cso_map"]), difference(row)
    interval = f"{percent(row['ours_low'])} to {percent(row['ours_high'])}"
    if gap is None:
        return f"ours is {ours} ({interval}); the paper prints no number for it."
    inside = 100 * row["ours_low"] <= row["paper_cso_map"] <= 100 * row["ours_high"]
    place = "inside" if inside else "outside"
    side = "equal to" if abs(gap) < 0.005 else f"{abs(gap):.2f} {'above' if gap > 0 else 'below'}"
    return f"ours is {ours}, {side} the paper's {number(row['paper_cso_map'])}, which lies {place} our 95 % interval ({interval})."


def _compare_seeds(row: dict) -> str:
    if row["ours_seeds_sd"] is None:
        return "" if row["ours_seeds"] is None else "One seed is trained, so the spread over seeds is unknown."
    return f"Over {row['ours_seeds']} seeds it is {percent(row['ours_seeds_mean'])} ± {percent(row['ours_seeds_sd'])}."


def _compare_detection(row: dict) -> str:
    printed = f" (the paper {number(row['paper_ap25'])})" if row["paper_ap25"] is not None else ""
    if row["ours_ap25"] >= NEARLY_ALL:
        meaning = "nearly every target is found within a quarter of a pixel, so what is left to gain is ranking and the grid's own error"
    else:
        meaning = "targets are missed at a quarter of a pixel or drowned by false detections, so detection itself is what is left to gain"
    return f"AP-25 is {percent(row['ours_ap25'])}{printed}: {meaning}."


def _compare_training(row: dict) -> str:
    if not row["ours_samples"]:
        return ""
    ours, theirs = row["ours_samples"], paper_training(row["method"], row["ratio"])
    text = f"We showed it {ours:,} samples in {number(row['ours_hours'])} hours"
    if not theirs:
        return text + "."
    longest = theirs["epochs_at_most"] * theirs["frames_per_epoch"]
    best = f" (its best epoch was number {theirs['best_epoch']:.0f})" if theirs["best_epoch"] else ""
    return f"{text}, the paper's recipe up to {longest:,.0f}{best}, {longest / ours:.0f} times as many."


def bullets(sentences) -> str:
    """Sentences as a Markdown list.

    >>> bullets(["one.", "two."])
    '- one.\\n- two.'
    """
    return "\n".join(f"- {sentence}" for sentence in sentences)


def explain_ista(folder: Path | None = None, printed: float | None = None) -> str:
    """Why ISTA's row in the paper is so low, in numbers of ``results/ista-tuning.json``; says so if that file is missing.

    Parameters
    ----------
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.
    printed : float, optional
        The paper's number; by default Table 1's.
    """
    tuning = load_result("ista-tuning", folder)
    if tuning is None:
        return "ISTA has not been tuned yet: run `python reproduce/tune_ista.py`."
    printed = paper_values(3)["ista"]["cso_map"] if printed is None else printed
    return "\n\n".join([_explain_setting(tuning, printed), _explain_detections(tuning), _explain_tuning(tuning)])


def _reference(tuning: dict, name: str) -> dict:
    """Score of a reference row at the paper's threshold."""
    return next(row for row in tuning["reference"][name] if row["threshold"] == PAPER.threshold)


def _explain_setting(tuning: dict, printed: float) -> str:
    rows = tuning["reference"]["paper"]
    scores = " and ".join(f"{percent(row['cso_map'])} at a threshold of {row['threshold']:.0f}" for row in rows)
    return (
        f"The paper prints {number(printed)} for ISTA. The settings of its toolkit (weight λ = {PAPER.sparsity:g} grey levels, at most "
        f"{PAPER.max_iterations:,} iterations, start at the least-norm solution) give here, on {rows[0]['frames']:,} validation frames, {scores} grey levels."
    )


def _explain_detections(tuning: dict) -> str:
    first, converged = (_reference(tuning, name) for name in ("paper", "paper_converged"))
    targets = csist100k(tuning["data"]["split"], first["frames"], seed=tuning["data"]["seed"]).targets.count.mean()
    why = ""
    if first["detections_per_frame"] > targets:
        why = ": the flux of one target comes out spread over several sub-pixels, and each one above the threshold counts as a detection"
    return (
        f"A frame holds {targets:.2f} targets on average; this setting reports {first['detections_per_frame']:.2f} detections{why}. "
        f"Iterating on to convergence gives {percent(converged['cso_map'])} with {converged['detections_per_frame']:.2f} detections a frame."
    )


def _explain_tuning(tuning: dict) -> str:
    best = tuning["validation"]
    return (
        f"Settings chosen on validation frames give {percent(best['cso_map'])} with {best['detections_per_frame']:.2f} detections a frame: "
        f"{_describe(tuning['choice'])}. The sparse model and the grid are the same; so much of the distance to the networks is a matter of settings."
    )


def _describe(settings: dict) -> str:
    words = [
        f"λ = {settings['sparsity']:g} grey levels",
        f"{settings['max_iterations']:,} iterations{' with momentum' if settings['momentum'] else ''}",
        "intensities kept positive" if settings["non_negative"] else "intensities of either sign",
        "saturated pixels left out" if settings["mask_saturated"] else "all pixels used",
        f"threshold {settings['threshold']:.0f}",
    ]
    return ", ".join(words)


def describe_origin() -> str:
    """Where and when the numbers of a page were computed, as one Markdown sentence."""
    origin = provenance()
    commit = f"commit `{origin['commit']}`" if origin["commit"] else "code outside a repository"
    versions = ", ".join(f"{name} {origin['versions'][name]}" for name in ("torch", "numpy", "scipy"))
    return f"This page was made on {origin['date']} from {commit} with {versions}, on {origin['device']}."


# ---- ceilings ---------------------------------------------------------------------------------------------------------


class Ceilings(NamedTuple):
    """CSO-mAP of perfect on-grid detections, as fractions."""

    random: float  # with scores that mean nothing
    ranked: float  # ranked by their true distance from the target


def grid_ceilings(truth: Targets, ratio: int = 3, seed: int = 0, shape=(11, 11)) -> Ceilings:
    """What a method could score that puts every target, and nothing else, at its nearest sub-pixel.

    Parameters
    ----------
    truth : Targets
        True targets.
    ratio : int
        Sub-pixel ratio c.
    seed : int
        Of the random scores.
    shape : (int, int)
        Frame size [px]; a target beyond the frame's edge goes to the nearest sub-pixel inside.

    >>> centred = Targets([[[5.0, 5.0]], [[5.0, 5.2]]], [[240.0], [240.0]], [1, 1])
    >>> round(grid_ceilings(centred, ratio=3).ranked, 2)
    0.8
    """
    grid = SubpixelGrid(shape, ratio)
    inside = np.clip(truth.xy, -0.5, np.array(shape) - 0.5)
    xy = np.full_like(truth.xy, np.nan)
    xy[truth.mask] = grid.to_position(grid.to_index(inside[truth.mask]))
    snapped = Targets(xy, truth.intensity, truth.count)
    distance = np.hypot(*np.moveaxis(xy - truth.xy, -1, 0))
    scores = (np.random.default_rng(seed).random(distance.shape), -distance)
    return Ceilings(*(cso_map(snapped.with_score(score), truth).map for score in scores))


def describe_ceilings(ceilings: Ceilings, shifted: Ceilings | None = None, shift: float = -0.07) -> str:
    """The ceilings as one Markdown paragraph."""
    text = (
        f"An answer that names every target and nothing else, each at its nearest sub-pixel, scores **{percent(ceilings.random)}** if its detections are "
        f"ranked at random and **{percent(ceilings.ranked)}** if they are ranked by their true distance from the target."
    )
    if shifted is not None:
        text += (
            f" On frames whose clusters sit {abs(shift):.2f} px {'before' if shift < 0 else 'behind'} the pixel grid, as the paper's printed frames suggest, "
            f"the two are {percent(shifted.random)} and {percent(shifted.ranked)}."
        )
    return text


# ---- evaluating while the page is made --------------------------------------------------------------------------------


class Live(NamedTuple):
    """A row evaluated now, on the first frames of the test split."""

    estimate: Targets
    frames: int
    cso_map: float


def solve_in_pieces(solve, frames: np.ndarray, bar=None) -> np.ndarray:
    """``solve(frames)`` in pieces of a few hundred frames, moving a progress bar; sub-pixel images (n, 11c, 11c)."""
    images = []
    for start in range(0, len(frames), PIECE):
        piece = frames[start : start + PIECE]
        images.append(solve(piece))
        if bar is not None:
            bar.update(len(piece))
    return np.concatenate(images)


def progress_bar(total: int, what: str):
    """A bar that also moves inside a notebook; it writes to standard output, since text on standard error fails the book's build."""
    from tqdm import tqdm

    options = {"file": sys.stdout, "disable": False} if "ipykernel" in sys.modules else {"disable": None}  # None: quiet unless on a terminal
    return tqdm(total=total, desc=what, unit="frame", leave=False, mininterval=1, **options)


def clear_progress() -> None:
    """Remove the bar from a notebook's output, so that two runs of a page store the same bytes."""
    if "ipykernel" in sys.modules:
        from IPython.display import clear_output

        clear_output()


def evaluate_live(parameters, folder: Path | None = None, data: Frames | None = None) -> dict[str, Live]:
    """Unmix the first test frames with every row that can be computed now: committed weights, and ISTA.

    Parameters
    ----------
    parameters : namespace
        Of :func:`check_parameters`: ``methods``, ``ratio``, ``n_test``, ``seed``, ``device``.
    folder : path, optional
        Holds ``weights``; by default the repository's ``reproduce``.
    data : Frames, optional
        By default the first ``n_test`` frames of the test split.

    Returns
    -------
    dict
        By the row's key. Rows without weights are left out; the paper's ISTA setting gets at most a tenth of the frames, and at most 200.
    """
    folder = folder or reproduce_folder()
    data = data or csist100k("test", parameters.n_test)
    work = [(entry, _live_frames(entry, len(data.frames))) for entry in entries(parameters.methods, parameters.ratio, parameters.seed, folder)]
    work = [(entry, frames) for entry, frames in work if entry.settings or weights_file(entry.result, folder)]
    bar, grid, answers = progress_bar(sum(frames for _, frames in work), "unmixing"), SubpixelGrid(ratio=parameters.ratio), {}
    for entry, frames in work:
        solve, threshold = _solver(entry, parameters, folder)
        estimate = detect(solve_in_pieces(solve, data.frames[:frames], bar), grid, threshold)
        answers[entry.key] = Live(estimate, frames, cso_map(estimate, data.targets[:frames]).map)
    bar.close()
    clear_progress()
    return answers


def _live_frames(entry: Entry, frames: int) -> int:
    return min(FEW_FRAMES, max(8, frames // 10), frames) if entry.settings is PAPER else frames


def _solver(entry: Entry, parameters, folder: Path):
    """A function from frames to sub-pixel images, and the detection threshold that belongs to it."""
    if entry.settings:
        return functools.partial(unmix_ista, ratio=parameters.ratio, settings=entry.settings), entry.settings.threshold
    network, _ = read_weights(weights_file(entry.result, folder))
    return functools.partial(predict, network, device=parameters.device), DETECTION_THRESHOLD


def weights_file(run: str, folder: Path | None = None) -> Path | None:
    """``weights/<run>.safetensors``, or None if there is none."""
    path = (folder or reproduce_folder()) / "weights" / f"{run}.safetensors"
    return path if path.is_file() else None


def verify_result(name: str, folder: Path | None = None) -> None:
    """Check that a result file speaks of these test frames and these weights.

    Raises
    ------
    ValueError
        If the regenerated test frames have another fingerprint, or the weights file is another one than the result was made with.
    """
    from hashlib import sha256

    result, path = load_result(name, folder), weights_file(name, folder)
    found = _test_frames_hash(result["test"]["frames"])
    if result["test"]["frames_sha256"] != found:
        raise ValueError(f"{name}: its scores belong to other test frames ({result['test']['frames_sha256'][:12]}... against {found[:12]}...); score it again")
    if path is None:
        return
    stored = result.get("weights_sha256")
    if stored is not None and stored != sha256(path.read_bytes()).hexdigest():
        raise ValueError(f"{path} is not the file that results/{name}.json was scored with; restore it, or train the run again")
    run = read_weights(path)[1].get("run")
    if run != result["run"]["name"]:
        raise ValueError(f"{path} holds the weights of the run {run!r}, not of {result['run']['name']!r}; restore it, or train the run again")


@functools.lru_cache(maxsize=8)
def _test_frames_hash(size: int) -> str:
    return frames_hash(csist100k("test", size))


def live_tolerance(row: dict, frames: int) -> float:
    r"""How far a score of the first n of N frames may lie from that of all N: :math:`4\,\sigma_N\sqrt{N/n - 1}`, plus rounding.

    The variance of the part is :math:`\sigma_N^2 N/n`, its covariance with the whole :math:`\sigma_N^2`.
    """
    return SIGMAS * row["ours_standard_error"] * math.sqrt(max(row["ours_frames"] / frames - 1, 0.0)) + ROUNDING


def check_live(rows, live: dict[str, Live], folder: Path | None = None) -> Table:
    """Compare the rows evaluated now with the stored results; a table with the outcome of each row.

    Raises
    ------
    ValueError
        If a result file belongs to other frames or other weights (:func:`verify_result`).
    """
    cells = [[row["label"], *_live_cells(row, live.get(row["key"]), folder)] for row in rows]
    names = ["frames now", "CSO-mAP now", "stored", "difference", "allowed", "outcome"]
    return Table("CSO-mAP × 100 computed while this page was made, beside the stored score.", [("", name) for name in ["method", *names]], cells)


def _live_cells(row: dict, now: Live | None, folder: Path | None) -> list[str]:
    if row["result"]:
        verify_result(row["result"], folder)
    stored = percent(row["ours_cso_map"])
    if now is None:
        outcome = row["status"] if row["status"] != "scored" else "no weights here to evaluate"
        return [MISSING, MISSING, stored, MISSING, MISSING, outcome]
    if row["ours_cso_map"] is None:
        return [f"{now.frames:,}", percent(now.cso_map), stored, MISSING, MISSING, "no stored score to compare with"]
    gap, allowed = now.cso_map - row["ours_cso_map"], live_tolerance(row, now.frames)
    outcome = "agrees" if abs(gap) <= allowed else "DISAGREES"
    return [f"{now.frames:,}", percent(now.cso_map), stored, _signed(100 * gap), percent(allowed), outcome]


def score_ista(settings: IstaSettings, ratio: int = 3, size: int | None = None, resamples: int = 200) -> dict:
    """The ``test`` block of a result file for ISTA: scores on the test split, laid out like those of :func:`csist.training.score_weights`."""
    data, grid = csist100k("test", size), SubpixelGrid(ratio=ratio)
    bar = progress_bar(len(data.frames), "ISTA")
    images = solve_in_pieces(functools.partial(unmix_ista, ratio=ratio, settings=settings), data.frames, bar)
    bar.close()
    report = score_report(detect(images, grid, settings.threshold), data.targets, resamples=resamples, seed=0)
    psnr, ssim = psnr_ssim(images, grid.image(data.targets))
    return {"frames": len(data.frames), "frames_sha256": frames_hash(data), "psnr": psnr, "ssim": ssim, **report}


def write_ista_result(name: str, settings: IstaSettings, folder, ratio: int = 3, size: int | None = None) -> dict:
    """Score ISTA and write ``<folder>/<name>.json``; returns its content."""
    started = time.perf_counter()
    test = score_ista(settings, ratio, size)
    hours = (time.perf_counter() - started) / 3600
    result = {"name": name, "method": "ista", "ratio": ratio, "settings": asdict(settings), "hours": hours, "test": test, "provenance": provenance()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / f"{name}.json", result)
    return result


# ---- training again ---------------------------------------------------------------------------------------------------


def load_runs(methods=None, ratio: int | None = None) -> list[Run]:
    """The runs of ``reproduce/runs.yaml``, all or those of some methods and one ratio."""
    from csist.training import load_runs as read_runs

    runs = read_runs(reproduce_folder() / "runs.yaml")
    return [run for run in runs if (methods is None or run.network in methods) and (ratio is None or run.ratio == ratio)]


def source_folder(parameters, runs: list[Run] | None = None) -> Path:
    """Where a page takes its results from: the repository's, or at scale "paper" ``output_dir``, after training and scoring everything there.

    Finished runs are kept, begun ones go on from their checkpoints.

    Parameters
    ----------
    parameters : namespace
        Of :func:`check_parameters`.
    runs : list of Run, optional
        What to train; by default the runs of runs.yaml for the page's methods and ratio.

    Raises
    ------
    KeyboardInterrupt
        If training was interrupted; the next call goes on from its checkpoint.
    """
    if parameters.scale != "paper":
        return reproduce_folder()
    folder = parameters.output_dir
    for run in load_runs(parameters.methods, parameters.ratio) if runs is None else runs:
        if load_result(run.name, folder) is None:
            print(f"training {run.name}", flush=True)
            train(run, folder / "checkpoints", device=parameters.device)
    for entry in entries(parameters.methods, parameters.ratio, parameters.seed, folder):
        if entry.settings and load_result(entry.result, folder) is None:
            write_ista_result(entry.result, entry.settings, folder / "results", parameters.ratio, parameters.n_test)
    tuning = reproduce_folder() / "results" / "ista-tuning.json"
    if tuning.is_file():  # the record of a choice that was made once, on validation frames; it is no result of this run
        write_text(folder / "results" / tuning.name, tuning.read_text())
    clear_progress()
    return folder


# ---- parameters of a page ---------------------------------------------------------------------------------------------

_PLAIN = (str, int, float, bool, list, dict, tuple, type(None))
_OF_IPYTHON = {"In", "Out"}
_CHECKED = "_csist_parameters_checked"


def check_parameters(namespace: dict, known=("scale", "methods", "ratio", "n_test", "seed", "device", "output_dir")) -> SimpleNamespace:
    """Check the parameters of a notebook, which papermill sets without looking: a misspelt name only makes it warn.

    Parameters
    ----------
    namespace : dict
        The notebook's ``globals()``. Before the first check every plain value (text, number, list ...) in it must be a known parameter; later only names
        that look like a parameter are refused, so that a cell can be run again beside variables of your own.
    known : sequence of str
        Names of the page's parameters.

    Returns
    -------
    namespace
        The parameters ready for use: ``n_test`` and ``device`` resolved, ``output_dir`` a path that exists (relative ones are relative to the repository).

    Raises
    ------
    ValueError
        For an unknown, missing or unusable parameter; the message names it, what is allowed, and what was probably meant.

    >>> check_parameters({"scael": "smoke", "scale": "laptop"}, known=["scale"])
    Traceback (most recent call last):
        ...
    ValueError: unknown parameter 'scael'; known: scale. Did you mean 'scale'?
    """
    known = list(known)
    for name in _unknown_parameters(namespace, known):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown parameter {name!r}; known: {', '.join(known)}.{hint}")
    missing = [name for name in known if name not in namespace]
    if missing:
        raise ValueError(f"parameter {missing[0]!r} is not set; the notebook's parameters are {', '.join(known)}")
    values = SimpleNamespace(**{name: namespace[name] for name in known})
    for name in known:
        setattr(values, name, _CHECKS.get(name, lambda value, values: value)(getattr(values, name), values))
    namespace[_CHECKED] = True
    return values


def _unknown_parameters(namespace: dict, known: list[str]) -> list[str]:
    plain = [name for name, value in namespace.items() if type(value) in _PLAIN and not name.startswith("_") and name not in _OF_IPYTHON]
    unknown = [name for name in plain if name not in known]
    if namespace.get(_CHECKED):
        return [name for name in unknown if difflib.get_close_matches(name, known, n=1, cutoff=0.8)]
    return unknown


def _one_of(name: str, choices):
    def check(value, values):
        if not isinstance(value, str) or value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{hint}")
        return value

    return check


def _check_methods(value, values):
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"methods must be a list of names; got {value!r}. On papermill's command line: -y 'methods: [ista, dista-net]'")
    known = known_methods(_check_ratio(getattr(values, "ratio", 3), values))
    for method in value:
        if method not in known:
            raise unknown_name(method, known)
    return list(dict.fromkeys(value))


def _check_ratio(value, values):
    return check_ratio(value)


def _whole_number(name: str, smallest: int, value) -> int:
    try:
        if isinstance(value, bool) or operator.index(value) < smallest:
            raise TypeError
    except TypeError:
        raise ValueError(f"{name} must be a whole number >= {smallest}; got {value!r}") from None
    return operator.index(value)


def _check_n_test(value, values):
    if value is None:
        return SCALES[_one_of("scale", SCALES)(getattr(values, "scale", "laptop"), values)]
    try:
        return _whole_number("n_test", 1, value)
    except ValueError as error:
        raise ValueError(f"{error}, or None for the scale's own ({', '.join(f'{scale} {n:,}' for scale, n in SCALES.items())})") from None


def _check_device(value, values):
    value = _one_of("device", ("auto", "cpu", "cuda"))(value, values)
    if value == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but PyTorch sees no GPU here; use 'auto' or 'cpu'")
    return ("cuda" if torch.cuda.is_available() else "cpu") if value == "auto" else value


def _check_output_dir(value, values):
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"output_dir must be the name of a folder; got {value!r}")
    path = Path(value).expanduser()
    path = path if path.is_absolute() else reproduce_folder().parent / path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {str(path)!r} cannot be created ({error.strerror or error}); choose a folder that can be written") from None
    return path


_CHECKS = {
    "scale": _one_of("scale", tuple(SCALES)),
    "methods": _check_methods,
    "ratio": _check_ratio,
    "n_test": _check_n_test,
    "seed": lambda value, values: _whole_number("seed", 0, value),
    "device": _check_device,
    "output_dir": _check_output_dir,
}


# ---- pictures ---------------------------------------------------------------------------------------------------------


def plot_comparison(rows, ceilings: Ceilings | None = None):
    """The paper's CSO-mAP (open diamonds) and ours (dots with 95 % intervals), one line per row; right, the crowded end magnified.

    Vertical lines are the grid's ceilings. Returns the figure.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import style

    with style():
        figure, (wide, near) = plt.subplots(1, 2, figsize=(7.6, 0.42 * len(rows) + 1.6), sharey=True, width_ratios=[1.2, 1])
        for ax in (wide, near):
            _draw_comparison(ax, rows, ceilings)
        wide.set(yticks=range(len(rows)), yticklabels=[row["label"] for row in rows], ylim=(len(rows) - 0.5, -0.5), xlim=(0, None))
        near.set(xlim=_crowded_range(rows, ceilings))
        near.tick_params(left=False)
        figure.supxlabel("CSO-mAP × 100", fontsize=10)
        handles, labels = wide.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def _draw_comparison(ax, rows, ceilings: Ceilings | None) -> None:
    from csist.plotting import FAINT, INK, method_colour

    if ceilings is not None:
        ax.axvline(100 * ceilings.random, color=FAINT, ls="--", lw=1.2, label="perfect detection, random ranking")
        ax.axvline(100 * ceilings.ranked, color=FAINT, ls="-", lw=1.2, label="perfect detection, perfect ranking")
    for place, row in enumerate(rows):
        ax.axhline(place, color=FAINT, lw=0.4, alpha=0.5, zorder=0)
        if row["paper_cso_map"] is not None:
            ax.plot(row["paper_cso_map"], place, "D", mfc="none", mec=INK, ms=7, mew=1.4)
        if row["ours_cso_map"] is not None:
            low, middle, high = (100 * row[name] for name in ("ours_low", "ours_cso_map", "ours_high"))
            ax.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", ms=5, capsize=3, color=method_colour(row["method"]))
    ax.plot([], [], "D", mfc="none", mec=INK, ms=7, mew=1.4, ls="", label="paper")
    ax.errorbar([], [], xerr=[], fmt="o", ms=5, capsize=3, color=INK, label="ours, 95 % interval")


def _crowded_range(rows, ceilings: Ceilings | None) -> tuple[float, float]:
    """From just below the upper half of the scores to just above the highest ceiling."""
    values = [row["paper_cso_map"] for row in rows if row["paper_cso_map"] is not None]
    values += [100 * row[name] for row in rows for name in ("ours_low", "ours_high") if row[name] is not None]
    top = max([*values, 100 * ceilings.ranked if ceilings else 0.0], default=100.0)
    best = max(values, default=top)
    return min((value for value in values if value > 0.85 * best), default=0.0) - 1, top + 1


def plot_learning_curves(rows, folder: Path | None = None):
    """Validation CSO-mAP against samples shown, every seed one line; a change of view is marked. Returns the figure, or None without a history."""
    import matplotlib.pyplot as plt

    from csist.plotting import method_colour, style

    curves = [(row, history) for row in rows for history in _histories(row, folder)]
    if not curves:
        return None
    with style():
        figure, ax = plt.subplots(figsize=(6.4, 3.6))
        named = set()
        for row, history in curves:
            samples, score = [entry["samples"] / 1000 for entry in history], [100 * entry["val_cso_map"] for entry in history]
            colour, label = method_colour(row["method"]), None if row["label"] in named else row["label"]
            named.add(row["label"])
            ax.plot(samples, score, "-o", ms=3.5, lw=1.4, color=colour, label=label)
            frames = [(s, v) for s, v, entry in zip(samples, score, history) if entry["view"] == "frames"]
            ax.plot(*zip(*frames), "s", ms=7, mfc="none", mec=colour) if frames else None
        ax.plot([], [], "s", ms=7, mfc="none", mec="#1b1f24", label="after whole frames", ls="")
        ax.set(xlabel="training samples shown [thousands]", ylabel="validation CSO-mAP × 100", xlim=(0, None))
        ax.legend(loc="best")
    return figure


def _histories(row: dict, folder: Path | None) -> list[list[dict]]:
    """Histories of a row's run and its other seeds."""
    if row["result"] is None:
        return []
    head, seed, _ = row["result"].rpartition("-seed")
    pattern = f"{head}-seed*" if seed else row["result"]
    paths = sorted(((folder or reproduce_folder()) / "results").glob(f"{pattern}.json"))
    results = [read_json(path) for path in paths]
    return [result["history"] for result in results if result.get("history")]


def plot_samples(data: Frames, rows, live: dict[str, Live], counts=(2, 3, 5), zoom: int = 1):
    """One column per frame, one row per method: frame, true targets and estimates; returns the figure.

    The frames are the first of the test split that have 2, 3 and 5 targets, so nobody chose them.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import show_frame, style

    shown = [row for row in rows if row["key"] in live]
    fewest = min([live[row["key"]].frames for row in shown], default=len(data.frames))
    places = [int(index) for number in counts for index in np.flatnonzero(data.targets.count[:fewest] == number)[:1]]
    plane = FocalPlane()
    with style():
        lines = max(len(shown), 1)
        figure, axes = plt.subplots(lines, max(len(places), 1), figsize=(2.5 * max(len(places), 1), 2.5 * lines), squeeze=False)
        for line, row in zip(axes, shown or [None]):
            for ax, place in zip(line, places):
                estimate = live[row["key"]].estimate[place] if row else None
                truth = data.targets[place]
                options = {"zoom": zoom, "full_scale": plane.full_scale, "labels": False}
                show_frame(data.frames[place], ax, targets=truth, estimate=estimate, method=row and row["method"], **options)
                ax.set_title(f"test frame {place}: {truth.count[0]} targets" + (f", found {estimate.count[0]}" if row else ""), fontsize=8)
            line[0].set_ylabel(row["label"].replace(" (", "\n(") if row else "frame")
    return figure
