"""Everything on one board: scores against size, work and speed, ours beside the paper's and later work (book part "Results").

Rows join four kinds of files and invent nothing: ``results/<run>.json`` (scores), ``results/throughput.json`` (frames per second, reproduce/throughput.py),
``results/readouts.json`` (other read-outs, reproduce/score_readouts.py) and ``paper/*.csv`` (what others print). Whatever is missing stays empty.
"""
from __future__ import annotations

from pathlib import Path

from csist.evaluation import shows_windows
from csist.imaging import check_ratio
from csist.networks.registry import NETWORKS, run_name
from csist.readout import READOUTS
from csist.reporting import (
    MISSING,
    Ceilings,
    Column,
    Table,
    difference,
    draw_ceilings,
    known_methods,
    load_paper_table,
    load_result,
    make_table,
    method_label,
    number,
    our_score,
    paper_values,
    percent,
    table1_rows,
)
from csist.reporting.layout import row_value

THROUGHPUT, LATENCY = 64, 1  # batch sizes of reproduce/throughput.py
KEPT = (
    *("key", "method", "label", "ratio", "status", "result", "paper_cso_map", "paper_parameters_m", "paper_macs_g_batch64"),
    *("ours_cso_map", "ours_low", "ours_high", "ours_count_accuracy", "ours_samples", "ours_parameters", "ours_macs_batch64"),
)


# ---- rows -------------------------------------------------------------------------------------------------------------


def leaderboard_rows(ratio: int = 3, seed: int = 0, folder: Path | None = None) -> list[dict]:
    """Rows of all methods at one ratio, the best of our scores first, then those without one by what the paper prints.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    seed : int
        Training seed whose scores are shown.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.

    Returns
    -------
    list of dict
        Keys as :func:`csist.reporting.table1_rows` has them, and ``rank``, ``frames_per_second``, ``latency_ms``, ``readout`` (the name of the read-out that
        was best on validation frames), ``readout_cso_map`` and ``readout_count_accuracy`` (its test scores), ``counted_cso_map`` and
        ``counted_count_accuracy`` (those with one detection for each target); None where there is nothing to say.
    """
    speeds = load_result("throughput", folder) or {"ratio": None}
    speeds = speeds["networks"] if speeds["ratio"] == ratio else {}
    runs = (load_result("readouts", folder) or {"runs": {}})["runs"]
    rows = []
    for row in table1_rows(check_ratio(ratio), board_methods(ratio), seed=seed, folder=folder):
        stored = runs.get(row["result"], {"readouts": {}})
        rows.append({key: row[key] for key in KEPT} | _speed_columns(row["method"], speeds.get(row["method"])) | _readout_columns(stored["readouts"]))
    rows.sort(key=lambda row: (-(row["ours_cso_map"] or 0), -(row["paper_cso_map"] or 0)))
    return [{**row, "rank": place if row["status"] == "scored" else None} for place, row in enumerate(rows, start=1)]


def board_methods(ratio: int = 3) -> list[str]:
    """The paper's methods and all networks with a grid; FISTA is ISTA's tuned row, and answers off the grid have a page of their own.

    >>> set(board_methods()) - set(known_methods()), sorted(set(known_methods()) - set(board_methods()))
    (set(), ['continuous', 'fista', 'off-grid', 'omp'])
    """
    return [method for method in known_methods(ratio) if method in paper_values(ratio) or method in NETWORKS]


def _speed_columns(method: str, measured: dict | None) -> dict:
    alike = method in NETWORKS and shows_windows(NETWORKS[method])
    fastest = {batch: max(_speeds(measured, batch, windows=alike), default=None) for batch in (THROUGHPUT, LATENCY)}
    return {"frames_per_second": fastest[THROUGHPUT], "latency_ms": None if fastest[LATENCY] is None else 1000 / fastest[LATENCY]}


def _speeds(measured: dict | None, batch: int, windows: bool) -> list[float]:
    """Speeds of a network at one batch size, in every precision, on frames and, where it may be shown them, on windows; those that failed are left out."""
    measurements = measured["measurements"] if measured else []
    allowed = [entry for entry in measurements if entry["batch"] == batch and (windows or not entry["windows"])]
    return [entry["frames_per_second"] for entry in allowed if "frames_per_second" in entry]


def _readout_columns(readouts: dict) -> dict:
    best = max(readouts, key=lambda name: readouts[name]["validation"]["cso_map"], default=None)
    columns = {"readout": best}
    for prefix, name in (("readout", best), ("counted", "counted")):
        test = readouts[name]["test"] if name in readouts else {}
        columns |= {f"{prefix}_{score}": test.get(score) for score in ("cso_map", "count_accuracy")}
    return columns


def later_work(ratio: int = 3) -> list[dict]:
    """What later papers report at a ratio: ``label``, ``year``, ``setting``, ``cso_map`` [%] and ``note``, the best first.

    ``cso_map_low`` is a lower reading of an ambiguous text, else None; a work that has one prints no score, so both of its numbers are inferred.

    >>> [work["label"] for work in later_work(3)][1:]
    ['FOCUS+', 'DSCSNet', 'FOCUS']
    """
    lines = [line for line in load_paper_table("later_work.csv") if line["setting"].startswith(f"c={ratio} ")]
    return sorted(({"label": line.pop("method"), **line} for line in lines), key=lambda line: -line["cso_map"])


# ---- tables -----------------------------------------------------------------------------------------------------------


def leaderboard_table(rows, later=()) -> Table:
    """The board of scores: ordered by ours, later work last."""
    text = lambda name, show=number, **options: lambda row: show(row.get(name), **options)
    columns = [
        Column("ours", "CSO-mAP ▼ (95 % interval)", lambda row: our_score(row) if "status" in row else "–"),
        Column("ours", "samples shown", text("ours_samples", digits=0)),
        Column("printed", "CSO-mAP", lambda row: row.get("printed_words") or number(row.get("cso_map_printed"))),
        Column("", "difference", lambda row: f"{gap:+.2f}".replace("-", "−") if (gap := row.get("difference")) is not None else "–"),
        Column("ours, best read-out", "CSO-mAP", text("readout_cso_map", percent)),
        Column("ours, one detection each", "CSO-mAP", text("counted_cso_map", percent)),
        Column("ours, one detection each", "count right [%]", text("counted_count_accuracy", percent, digits=1)),
    ]
    lines = [_table_row(row) for row in rows]
    about = lambda work: f"{work['year']:.0f}, later work{', off the grid' if 'offsets' in work['setting'] else ''}"
    lines += [{"label": f"{work['label']} ({about(work)})", "printed_words": _later_score(work)} for work in later]
    columns = [column for column in columns if any(column.text(line) != MISSING for line in lines)]  # what nobody has needs no column
    order = "ordered by our score; rows without one follow by the printed one"
    return make_table(lines, columns, f"CSO-mAP × 100 on the test split, c = {rows[0]['ratio']}, {order}.")


def cost_table(rows) -> Table:
    """What the networks of the board cost, in its order: size, work and speed, all counted or measured here."""
    columns = [
        Column("", "parameters [M]", row_value("ours_parameters", digits=3, unit=1e6)),
        Column("", "MACs of 64 frames [G]", row_value("ours_macs_batch64", digits=2, unit=1e9)),
        Column("", f"frames/s, batches of {THROUGHPUT}", row_value("frames_per_second", digits=0)),
        Column("", "one frame alone [ms]", row_value("latency_ms", digits=1)),
    ]
    counted = [_table_row(row) for row in rows if row["ours_parameters"]]
    return make_table(counted, columns, "Size, work and speed of the networks, counted and measured here, in the order of the board.")


def _later_score(work: dict) -> str:
    """What later work prints; of an ambiguous text both readings."""
    return number(work["cso_map"]) if work["cso_map_low"] is None else f"{work['cso_map_low']:.1f} or {work['cso_map']:.1f}, inferred"


def _table_row(row: dict) -> dict:
    label = f"{row['rank']}. {row['label']}" if row["rank"] else row["label"]
    return {**row, "label": label, "cso_map_printed": row["paper_cso_map"], "difference": difference(row)}


def describe_shift(stored: dict | None, folder: Path | None = None) -> str:
    """How far the read-out "threshold" of ``results/readouts.json`` lies from the runs' own results, as one Markdown sentence."""
    pairs = [(run["readouts"]["threshold"]["test"], load_result(name, folder)) for name, run in (stored or {"runs": {}})["runs"].items()]
    shifts = {key: [abs(test[key] - own["test"][key]) for test, own in pairs if own] for key in ("cso_map", "count_accuracy")}
    if not shifts["cso_map"]:
        return "No network has both scores so far."
    points, counts = (100 * max(values) for values in shifts.values())
    return f"By up to {points:.2f} points in CSO-mAP, and up to {counts:.1f} percentage points in the counts."


def readout_table(stored: dict | None, score: str = "cso_map") -> Table:
    """One line per run of ``results/readouts.json``, one column per read-out; ``score`` is "cso_map" or "count_accuracy"."""
    captions = {"cso_map": "CSO-mAP × 100 on test frames", "count_accuracy": "Share of test frames with the right number of targets, in per cent"}
    runs = (stored or {"runs": {}})["runs"]
    names = [name for name in READOUTS if any(name in run["readouts"] for run in runs.values())]
    cell = lambda run, name: percent(run["readouts"].get(name, {}).get("test", {}).get(score), 2 if score == "cso_map" else 1)
    cells = [[_run_label(key, run), *[cell(run, name) for name in names]] for key, run in runs.items()]
    columns = [("", "network"), *[("", name.replace("_", " ")) for name in names]]
    return Table(f"{captions[score]}, by read-out; settings chosen on validation frames.", columns, cells)


def _run_label(name: str, run: dict) -> str:
    """The network's name and ratio; the run's own name where it is no network in its main setting with the first seed."""
    network, ratio = run.get("network"), run.get("ratio")
    return f"{method_label(network, ratio)}, c = {ratio}" if network and name == run_name(network, ratio) else name


# ---- sentences --------------------------------------------------------------------------------------------------------


def describe_sources(folder: Path | None = None) -> str:
    """Which files the board could use, as Markdown."""
    throughput, readouts = load_result("throughput", folder), load_result("readouts", folder)
    lines = ["no speeds: `results/throughput.json` is missing, run `python reproduce/throughput.py`"]
    if throughput:
        machine, origin = throughput["machine"], throughput["provenance"]
        where = origin["device"] if machine["device"] != "cpu" else f"the processor, {machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        lines = [f"speeds of {len(throughput['networks'])} networks, measured in one run on {origin['date']} on {where}"]
    if readouts:
        lines.append(f"read-outs of {len(readouts['runs'])} trained networks")
    else:
        lines.append("no other read-outs: `results/readouts.json` is missing, run `python reproduce/score_readouts.py`")
    return "\n".join(f"- {line}." for line in lines)


def describe_gridless(folder: Path | None = None) -> str:
    """What answers without a grid score on the same frames, as one Markdown sentence."""
    names = {"off-grid-standard": "the off-grid posterior, tier \"standard\"", "continuous-seed0": "the continuous network"}
    found = {words: load_result(name, folder) for name, words in names.items()}
    scores = [f"{words}, {percent(result['test']['cso_map'])} on {result['test']['frames']:,} frames" for words, result in found.items() if result]
    return f"Without a grid there are: {'; '.join(scores)}." if scores else "No method without a grid has been scored yet."


def describe_missing(rows, quantity: str) -> str:
    """Which rows a figure cannot show, and why, as one Markdown sentence each."""
    name = QUANTITIES[quantity][0]
    unscored = [row["label"] for row in rows if row["ours_cso_map"] is None and row["paper_cso_map"] is None]
    unplaced = [row["label"] for row in rows if row["label"] not in unscored and not any(coordinates(row, quantity).values())]
    sentences = [f"Without {name}, so not in the figure: {', '.join(unplaced)}."] if unplaced else []
    sentences += [f"Without a score: {', '.join(unscored)}."] if unscored else []
    return " ".join(sentences) or "No row is missing."


def describe_status(rows) -> str:
    """How many rows are scored here, and what the others wait for."""
    scored = [row for row in rows if row["status"] == "scored"]
    waiting: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != "scored":
            waiting.setdefault(row["status"], []).append(row["label"])
    others = "".join(f" {status.capitalize()}: {', '.join(labels)}." for status, labels in waiting.items())
    return f"{len(scored)} of {len(rows)} rows are scored here.{others}"


def describe_training(rows) -> str:
    """Which rows were shown more samples than most, and what that makes of their places, as one Markdown sentence; empty where all had the same number."""
    counts = [row["ours_samples"] for row in rows if row["ours_samples"]]
    usual = max(sorted(set(counts)), key=counts.count, default=0)
    longer = [row for row in rows if (row["ours_samples"] or 0) > usual]
    if not longer:
        return ""
    times = sorted(row["ours_samples"] / usual for row in longer)
    many = f"{times[0]:.1f}" if len(times) == 1 else f"{times[0]:.1f} to {times[-1]:.1f}"
    names = ", ".join(row["label"] for row in longer)
    return f"Shown {many} times as many samples as most others: {names}. So places rank trainings as much as architectures; Table 1's page tells them apart."


def cite_later_work(later) -> str:
    """Later work with what its figures rest on, as a Markdown list."""
    note = lambda work: f"; {work['note']}" if work["note"] else ""
    return "\n".join(f"- **{work['label']}** ({work['year']:.0f}; {work['setting']}): {_later_score(work)}{note(work)}." for work in later)


# ---- pictures ---------------------------------------------------------------------------------------------------------

QUANTITIES = {  # what a score is drawn against: a name, the axis, our value of a row, the paper's
    "parameters": (
        "a number of parameters",
        "parameters",
        lambda row: row["ours_parameters"],
        lambda row: row["paper_parameters_m"] and 1e6 * row["paper_parameters_m"],
    ),
    "macs": (
        "a count of multiply-accumulates",
        "multiply-accumulates of a batch of 64 frames, the paper's count",
        lambda row: row["ours_macs_batch64"],
        lambda row: row["paper_macs_g_batch64"] and 1e9 * row["paper_macs_g_batch64"],
    ),
    "speed": (
        "a measured speed",
        "frames per second here, batch 64, each network's fastest way",
        lambda row: row["frames_per_second"],
        lambda row: row["frames_per_second"],
    ),
}
LABEL_SIZE = 7.5  # points


def coordinates(row: dict, quantity: str) -> dict[str, float | None]:
    """What a row has of a quantity, by who says so: ``{"ours": ..., "paper": ...}``; a speed is always measured here."""
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}; got {quantity!r}")
    _, _, ours, paper = QUANTITIES[quantity]
    return {"ours": ours(row), "paper": paper(row)}


def plot_against(rows, quantity: str, ceilings: Ceilings | None = None, later=()):
    """CSO-mAP against a quantity: above the whole scale, below the crowded part of it magnified; returns the figure, None where no row has the quantity.

    Open diamonds are the paper's, dots ours (with 95 % intervals), triangles ours with the best read-out, open squares later work, which
    stands at the right edge because its files hold scores only (a bar joins two readings of one text). A thin line joins a method's two points. Names stand at
    the right, joined to their points.

    Parameters
    ----------
    rows : list of dict
        Of :func:`leaderboard_rows`.
    quantity : {"parameters", "macs", "speed"}
        The horizontal axis, logarithmic.
    ceilings : Ceilings, optional
        What perfect detection on the grid would score, drawn as two lines.
    later : list of dict
        Of :func:`later_work`.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import style

    shown = [(row, coordinates(row, quantity)) for row in rows if _points(row, quantity)]
    if not shown:
        return None
    low, high = crowded_range([score for row, _ in shown for _, score, who in _points(row, quantity) if who != "readout"])
    with style():
        figure, (whole, crowded) = plt.subplots(2, 1, figsize=(5.6, 7.8), sharex=True, height_ratios=[1, 2.2])
        for ax in (whole, crowded):
            ax.set_xscale("log")
            _draw_points(ax, [row for row, _ in shown], quantity, ceilings)
            _draw_later(ax, later)
        whole.axhspan(low, high, color="#8a929c", alpha=0.18, lw=0)
        whole.set(ylim=(0, 100))
        crowded.set(ylim=(low, high), xlabel=QUANTITIES[quantity][1])
        _widen(crowded, [value for _, place in shown for value in place.values() if value])
        inside = lambda score: low <= score <= high
        figure.draw_without_rendering()  # the layout decides how much room the names have
        names = _names([row for row, _ in shown], quantity, later)
        _label(whole, [name for name in names if not inside(name[2])])
        _label(crowded, [name for name in names if inside(name[2])])
        figure.supylabel("CSO-mAP × 100", fontsize=10)
        figure.legend(*whole.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def _points(row: dict, quantity: str) -> list[tuple[float, float, str]]:
    """(place on the axis, score × 100, whose) of a row's points."""
    place = coordinates(row, quantity)
    scores = {"paper": row["paper_cso_map"], "ours": _hundred(row["ours_cso_map"]), "readout": _hundred(row["readout_cso_map"])}
    x = {"paper": place["paper"] or place["ours"], "ours": place["ours"] or place["paper"], "readout": place["ours"] or place["paper"]}
    return [(x[who], score, who) for who, score in scores.items() if score is not None and x[who]]


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def crowded_range(scores) -> tuple[float, float]:
    """The part of the scale just below the best score, where most networks lie, with a margin.

    >>> crowded_range([7.5, 44.5, 45.2, 46.7])
    (44.0, 47.2)
    """
    top = max(scores, default=50.0)
    return min((score for score in scores if score > top - 4), default=top) - 0.5, top + 0.5


def _draw_points(ax, rows, quantity: str, ceilings: Ceilings | None) -> None:
    from csist.plotting import INK, method_colour

    draw_ceilings(ceilings, ax.axhline)
    marks = {"paper": {"marker": "D", "mfc": "none", "ms": 6}, "ours": {"marker": "o", "ms": 6}, "readout": {"marker": "^", "ms": 6.5}}
    names = {"paper": "paper", "ours": "ours, 95 % interval", "readout": "ours, best read-out"}
    for row in rows:
        colour, points = method_colour(row["method"]), _points(row, quantity)
        ax.plot([x for x, _, _ in points], [score for _, score, _ in points], color=colour, lw=0.7, alpha=0.7, zorder=1)
        for x, score, who in points:
            ax.plot(x, score, ls="", color=colour, mew=1.3, **marks[who])
            if who == "ours" and row["ours_low"] is not None:
                ax.plot([x, x], [100 * row["ours_low"], 100 * row["ours_high"]], color=colour, lw=1.3)
    for who in dict.fromkeys(who for row in rows for _, _, who in _points(row, quantity)):
        ax.plot([], [], ls="", color=INK, mew=1.3, label=names[who], **marks[who])


def _draw_later(ax, later) -> None:
    from csist.plotting import INK

    place = dict(transform=ax.get_yaxis_transform(), clip_on=True, zorder=3)
    for work in later:
        if work["cso_map_low"] is None:
            ax.plot(0.985, work["cso_map"], "s", mfc="white", mec=INK, ms=5.5, mew=1.2, **place)
        else:
            ax.plot([0.985, 0.985], [work["cso_map_low"], work["cso_map"]], "_-", color=INK, ms=8, mew=1.2, lw=1.2, **place)
    if later:
        ax.plot([], [], "s", mfc="white", mec=INK, ms=5.5, mew=1.2, label="later work (not placed along this axis)")


def _widen(ax, places) -> None:
    """Room for the marks of later work at the right edge, and ticks that say 1 M instead of a power of ten."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    if places:
        span = max(places) / min(places)
        ax.set_xlim(min(places) / span**0.06 / 1.1, max(places) * span**0.1 * 1.15)
        ax.xaxis.set_major_formatter(EngFormatter())
        ax.xaxis.set_minor_formatter(EngFormatter() if span < 10 else NullFormatter())


def _names(rows, quantity: str, later) -> list[tuple[str, float | None, float, str]]:
    """(name, place on the axis or None for the right edge, score, colour): one for each method, at its own score where there is one."""
    from csist.plotting import INK, method_colour

    names = []
    for row in rows:
        points = {who: (x, score) for x, score, who in _points(row, quantity)}
        names.append((row["label"], *points.get("ours", points.get("paper", points.get("readout"))), method_colour(row["method"])))
    return names + [(f"{work['label']} ({work['year']:.0f})", None, work["cso_map"], INK) for work in later]


def _label(ax, names) -> None:
    """Names in a column right of the axes, in the order of their scores, each joined to its point by a thin line."""
    from csist.plotting import INK

    low, high = ax.get_ylim()
    height = ax.get_position().height * ax.figure.get_size_inches()[1] * 72  # points
    names = sorted(names, key=lambda name: name[2])
    heights = spread([(score - low) / (high - low) for _, _, score, _ in names], 1.25 * LABEL_SIZE / height)
    for (text, x, score, colour), place in zip(names, heights):
        start = (0.985, (score - low) / (high - low)) if x is None else (x, score)
        link = dict(arrowstyle="-", color=colour, lw=0.5, alpha=0.6, shrinkA=0, shrinkB=3)
        options = dict(xycoords=ax.transAxes if x is None else "data", textcoords=ax.transAxes, fontsize=LABEL_SIZE, va="center", color=INK)
        ax.annotate(text, start, (1.03, place), arrowprops={**link, "relpos": (0, 0.5)}, annotation_clip=False, **options)


def spread(places, gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Rising places moved so that neighbours keep a distance, with the least sum of squared moves; more than fit share the room evenly.

    Less its number of gaps, each place must be no smaller than the one before: an isotonic regression, solved by pooling neighbours that are out of order.

    >>> [round(place, 3) for place in spread([0.5, 0.5, 0.9], 0.25)]
    [0.375, 0.625, 0.9]
    """
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    pools: list[list[float]] = []  # sum and number of the places that move together
    for number_before, place in enumerate(places):
        pools.append([place - number_before * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + count]
    level = [total / count for total, count in pools for _ in range(int(count))]
    return [min(max(place, low), high - (len(places) - 1) * gap) + number_before * gap for number_before, place in enumerate(level)]
