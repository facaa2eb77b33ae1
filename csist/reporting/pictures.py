"""The figures of the results pages; matplotlib is imported when one is drawn."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from csist.datasets import Frames
from csist.imaging import FocalPlane
from csist.reporting.ceilings import Ceilings, draw_ceilings
from csist.reporting.live import Live
from csist.reporting.selection import AXIS_LABELS, method_label
from csist.reporting.sources import load_result, seed_results
from csist.reporting.tables import read_off

MARKS = "oD^vP*X<>"  # of curves; squares mark a change of view
FEW_CURVES = 7  # that many names leave room for a legend beside the curves


def plot_comparison(rows, ceilings: Ceilings | None = None):
    """The paper's CSO-mAP (open diamonds) and ours (dots with 95 % intervals), one line per row; right, the crowded end magnified.

    Vertical lines are the ceilings; the left panel reaches to the attainable limit if it is known. Returns the figure.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import style

    with style():
        figure, (wide, near) = plt.subplots(1, 2, figsize=(5.6, 0.32 * len(rows) + 1.6), sharey=True, width_ratios=[1.2, 1])
        for ax in (wide, near):
            _draw_comparison(ax, rows, ceilings)
        wide.set(yticks=range(len(rows)), yticklabels=[row["label"] for row in rows], ylim=(len(rows) - 0.5, -0.5))
        wide.set(xlim=(0, 100 if ceilings and ceilings.attainable else None))
        near.set(xlim=_crowded_range(rows, ceilings))
        near.tick_params(left=False)
        figure.supxlabel("CSO-mAP × 100", fontsize=10)
        handles, labels = wide.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8)
    return figure


def plot_ratios(rows, ceilings: dict[int, Ceilings]):
    """The paper's CSO-mAP and ours as in :func:`plot_comparison`, one panel per sub-pixel ratio with that ratio's ceilings; returns the figure.

    The attainable limit lies far to the right of the panels, so their titles name it.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import style

    with style():
        at = {ratio: [row for row in rows if row["ratio"] == ratio] for ratio in ceilings}
        figure, axes = plt.subplots(len(at), 1, figsize=(5.6, sum(0.38 * len(some) + 0.5 for some in at.values()) + 0.9), squeeze=False)
        for ax, (ratio, some) in zip(axes.flat, at.items()):
            _draw_comparison(ax, some, ceilings[ratio]._replace(attainable=None))
            names = [row["label"].removesuffix(f", c = {ratio}") for row in some]
            ax.set(yticks=range(len(some)), yticklabels=names, ylim=(len(some) - 0.5, -0.5), title=_panel_title(ratio, ceilings[ratio]))
            ax.set_xlim(*_whole_range(some, ceilings[ratio]))
        figure.supxlabel("CSO-mAP × 100", fontsize=10)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def _beyond_the_axes(ceilings: Ceilings | None) -> list:
    """A legend entry for the attainable limit, far above a figure's axes."""
    from matplotlib.lines import Line2D

    known = ceilings is not None and ceilings.attainable is not None
    return [Line2D([], [], ls="", label=f"attainable without a grid: {100 * ceilings.attainable:.1f} ↑")] if known else []


def _panel_title(ratio: int, ceilings: Ceilings) -> str:
    return f"c = {ratio}" + (f"      attainable without a grid: {100 * ceilings.attainable:.1f} →" if ceilings.attainable else "")


def plot_hyperparameters(rows, ceilings: Ceilings | None = None):
    """CSO-mAP along the axes of the paper's Figure 7; returns the figure.

    The paper's points are diamonds, filled where it prints the number and open where it only draws it; ours are dots with 95 % intervals. A point far
    below the others is written at the lower edge. Of the ceilings those are drawn that the figure reaches, random and typical order.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import style

    with style():
        at = {axis: [row for row in rows if row["axis"] == axis] for axis in dict.fromkeys(row["axis"] for row in rows)}
        figure, axes = plt.subplots(len(at), 1, figsize=(5.6, 0.9 + 2.6 * len(at)), squeeze=False)  # one below the other: legible on a telephone
        shown = [score for row in rows for score in (row["paper_cso_map"], _ours(row, "low"), _ours(row, "high")) if score is not None]
        shown = [score for score in shown if score > 0.85 * max(shown)]
        low, high = min(shown) - 0.5, max(shown) + 0.3
        for ax, (axis, points) in zip(axes.flat, at.items()):
            _draw_axis(ax, points, low)
            draw_ceilings(ceilings and Ceilings(ceilings.random, None, ceilings.typical), ax.axhline)
            values = [row["value"] for row in points]
            margin = 0.08 * (max(values) - min(values))
            ax.set(xlabel=AXIS_LABELS[axis], ylabel="CSO-mAP × 100", xticks=values, xlim=(min(values) - margin, max(values) + margin), ylim=(low, high))
            ax.xaxis.set_major_formatter("{x:g}")
        lines = axes.flat[0].get_legend_handles_labels()[0] + _beyond_the_axes(ceilings)
        figure.legend(handles=[*_hyperparameter_legend(), *lines], loc="outside upper center", ncols=2, fontsize=8)
    return figure


def _ours(row: dict, name: str) -> float | None:
    return None if row[f"ours_{name}"] is None else 100 * row[f"ours_{name}"]


def _draw_axis(ax, points, low: float) -> None:
    from csist.plotting import FAINT, INK, method_colour

    visible = [row for row in points if row["paper_cso_map"] >= low]
    ax.plot([row["value"] for row in visible], [row["paper_cso_map"] for row in visible], color=FAINT, lw=0.8, zorder=1)
    for row in visible:
        ax.plot(row["value"], row["paper_cso_map"], "D", mfc="white" if read_off(row) else INK, mec=INK, ms=6, mew=1.2)
    for row in points:
        middle, low_end, high_end = (_ours(row, name) for name in ("cso_map", "low", "high"))
        if middle is not None and middle >= low:
            error = [[middle - low_end], [high_end - middle]]
            ax.errorbar(row["value"], middle, yerr=error, fmt="o", ms=5, capsize=3, color=method_colour(row["method"]), zorder=3)
        below = [f"{whose} {score:.2f}" for whose, score in (("paper", row["paper_cso_map"]), ("ours", middle)) if score is not None and score < low]
        if below:
            arrow = {"arrowstyle": "->", "color": INK}
            ax.annotate("\n".join(below), (row["value"], low), (0, 22), textcoords="offset points", ha="center", fontsize=9, arrowprops=arrow)


def _hyperparameter_legend():
    from matplotlib.lines import Line2D

    from csist.plotting import INK, method_colour

    diamond = {"marker": "D", "ls": "", "mec": INK, "ms": 6, "mew": 1.2}
    ours = Line2D([], [], marker="o", ls="", color=method_colour("dista-net"), label="ours, 95 % interval")
    return [Line2D([], [], mfc=INK, label="paper, printed", **diamond), Line2D([], [], mfc="white", label="paper, read off its curve", **diamond), ours]


def _draw_comparison(ax, rows, ceilings: Ceilings | None) -> None:
    from csist.plotting import FAINT, INK, method_colour

    draw_ceilings(ceilings, ax.axvline)
    for place, row in enumerate(rows):
        ax.axhline(place, color=FAINT, lw=0.4, alpha=0.5, zorder=0)
        if row["paper_cso_map"] is not None:
            ax.plot(row["paper_cso_map"], place, "D", mfc="none", mec=INK, ms=7, mew=1.4)
        if row["ours_cso_map"] is not None:
            low, middle, high = (100 * row[name] for name in ("ours_low", "ours_cso_map", "ours_high"))
            ax.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", ms=5, capsize=3, color=method_colour(row["method"]))
    ax.plot([], [], "D", mfc="none", mec=INK, ms=7, mew=1.4, ls="", label="paper")
    ax.errorbar([], [], xerr=[], fmt="o", ms=5, capsize=3, color=INK, label="ours, 95 % interval")


def _drawn(rows, ceilings: Ceilings | None) -> tuple[list[float], float]:
    """All scores of a comparison, ends of intervals included, and the highest of scores and the grid's ceilings."""
    values = [row["paper_cso_map"] for row in rows if row["paper_cso_map"] is not None]
    values += [100 * row[name] for row in rows for name in ("ours_low", "ours_high") if row[name] is not None]
    return values, max([*values, 100 * ceilings.ranked if ceilings else 0.0], default=100.0)


def _whole_range(rows, ceilings: Ceilings | None) -> tuple[float, float]:
    """From just below the lowest score to just above the highest ceiling."""
    values, top = _drawn(rows, ceilings)
    return min(values, default=0.0) - 1, top + 1


def _crowded_range(rows, ceilings: Ceilings | None) -> tuple[float, float]:
    """From just below the upper half of the scores to just above the highest ceiling."""
    values, top = _drawn(rows, ceilings)
    best = max(values, default=top)
    return min((value for value in values if value > 0.85 * best), default=0.0) - 1, top + 1


def plot_learning_curves(rows, folder: Path | None = None):
    """Validation CSO-mAP against samples shown, every seed one line; a change of view is marked. Returns the figure, or None without a history."""
    import matplotlib.pyplot as plt

    from csist.plotting import style

    curves = [(row, history) for row in rows for history in _histories(row, folder)]
    if not curves:
        return None
    with style():
        names = list(dict.fromkeys(row["label"] for row, _ in curves))
        crowded = len(names) > FEW_CURVES
        figure, ax = plt.subplots(figsize=(6.4, 3.6 + crowded * 0.25 * math.ceil((len(names) + 1) / 3)))
        named, marks = set(), dict(zip(names, MARKS * len(names)))
        for row, history in curves:
            samples, score = [entry["samples"] / 1000 for entry in history], [100 * entry["val_cso_map"] for entry in history]
            line, label = _line_style(row, rows), None if row["label"] in named else row["label"]
            named.add(row["label"])
            ax.plot(samples, score, marker=marks[row["label"]] if crowded else "o", ms=3.5, lw=1.4, label=label, **line)
            frames = [(s, v) for s, v, entry in zip(samples, score, history) if entry["view"] == "frames"]
            ax.plot(*zip(*frames), "s", ms=7, mfc="none", mec=line["color"]) if frames else None
        if any(entry["view"] == "frames" for _, history in curves for entry in history):
            ax.plot([], [], "s", ms=7, mfc="none", mec="#1b1f24", label="after whole frames", ls="")
        ax.set(xlabel="training samples shown [thousands]", ylabel="validation CSO-mAP × 100", xlim=(0, None))
        figure.legend(loc="outside upper center", ncols=3 if crowded else 2, fontsize=9)
    return figure


def _line_style(row: dict, rows) -> dict:
    """Colour and dashes of a row's line: a method's main row in its own colour, solid; others dashed, and in further colours if there are many of them."""
    import matplotlib.pyplot as plt

    from csist.plotting import method_colour

    if row["key"] == row["method"]:
        return {"color": method_colour(row["method"]), "ls": "-"}
    if row["label"] == method_label(row["method"], row["ratio"]):  # the same network, trained in another way
        return {"color": method_colour(row["method"]), "ls": "--"}
    variants = [one["key"] for one in rows if one["method"] == row["method"] and one["key"] != one["method"]]
    if len(variants) <= 2:
        return {"color": method_colour(row["method"]), "ls": ("--", ":")[variants.index(row["key"])]}
    taken = {method_colour(one["method"]) for one in rows}
    colours = [colour for colour in plt.rcParams["axes.prop_cycle"].by_key()["color"] if min(_colour_distance(colour, other) for other in taken) > 0.35]
    turn, place = divmod([one["key"] for one in rows if one["key"] != one["method"]].index(row["key"]), len(colours))
    return {"color": colours[place], "ls": ("--", ":", "-.")[turn % 3]}


def _colour_distance(one: str, other: str) -> float:
    from matplotlib.colors import to_rgb

    return math.dist(to_rgb(one), to_rgb(other))


def _histories(row: dict, folder: Path | None) -> list[list[dict]]:
    """Histories of a row's run and its other seeds."""
    if row["result"] is None:
        return []
    names = seed_results(row["result"], folder) or [row["result"]]
    results = [load_result(name, folder) for name in names]
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
        figure, axes = plt.subplots(lines, max(len(places), 1), figsize=(2 * max(len(places), 1), 2 * lines + 0.3), squeeze=False)
        for number, (line, row) in enumerate(zip(axes, shown or [None])):
            for ax, place in zip(line, places):
                estimate = live[row["key"]].estimate[place] if row else None
                truth = data.targets[place]
                options = {"zoom": zoom, "full_scale": plane.full_scale, "labels": False}
                show_frame(data.frames[place], ax, targets=truth, estimate=estimate, method=row and row["method"], **options)
                name = [f"frame {place}: {truth.count[0]} targets"] * (number == 0) + ([f"found {estimate.count[0]}"] if row else [])
                ax.set_title("\n".join(name), fontsize=8)
            line[0].set_ylabel(row["label"].replace(" (", "\n(") if row else "frame")
    return figure
