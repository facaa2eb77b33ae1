"""Frames, true sub-pixel images and those of the trained networks side by side: the paper's qualitative figure, made again (book part "Results")."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from csist.datasets import Frames
from csist.evaluation import detect, predict
from csist.imaging import FocalPlane, SubpixelGrid
from csist.metrics import match_pairs
from csist.networks.registry import NETWORKS, read_weights, run_name
from csist.reporting import MISSING, Table, number, paper_values, weights_file

NEAR = 0.25  # px; the metric's largest distance threshold
ONE_TARGET = 200, 270  # grey levels: what a target carries, 220 to 250, give or take what a network errs


class Answer(NamedTuple):
    """A method's sub-pixel images of the shown frames, or why there are none."""

    method: str
    label: str
    images: np.ndarray | None  # (n, 11c, 11c) grey levels
    status: str  # "trained", "not trained yet", "not implemented yet" or "no network"


def first_of_each_count(data: Frames, counts=(1, 2, 3, 4, 5)) -> np.ndarray:
    """Numbers of the first frames with so many targets: nobody chose them.

    Raises
    ------
    ValueError
        If no frame has that many.

    >>> from csist import csist100k
    >>> data = csist100k("test", 64)
    >>> data.targets.count[first_of_each_count(data)].tolist()
    [1, 2, 3, 4, 5]
    """
    for count in counts:
        if not (data.targets.count == count).any():
            raise ValueError(f"none of these {len(data.frames)} frames has {count} targets; take more frames or other counts")
    return np.array([np.argmax(data.targets.count == count) for count in counts])


def take(data: Frames, places) -> Frames:
    """Some frames with their targets."""
    return Frames(data.frames[places], data.targets[places])


def answers(data: Frames, methods, ratio: int = 3, *, seed: int = 0, device: str = "cpu", folder: Path | None = None) -> list[Answer]:
    """What each method makes of the frames; a method without weights gives an answer without images.

    Parameters
    ----------
    data : Frames
        The frames to show.
    methods : sequence of str
        Names of networks.
    ratio, seed : int
        Sub-pixel ratio c and training seed of the weights.
    device : str
        Where the networks run.
    folder : path, optional
        Holds ``weights``; by default the repository's ``reproduce``.
    """
    known = paper_values(3) | paper_values(ratio)
    label = lambda method: known.get(method, {}).get("method", method)
    return [Answer(method, label(method), *_answer(data, method, ratio, seed, device, folder)) for method in methods]


def _answer(data: Frames, method: str, ratio: int, seed: int, device: str, folder: Path | None) -> tuple[np.ndarray | None, str]:
    if method not in NETWORKS:
        return None, "not implemented yet" if method in paper_values(ratio) and method != "ista" else "no network"
    path = weights_file(run_name(method, ratio, seed), folder)
    if path is None:
        return None, "not trained yet"
    return predict(read_weights(path)[0], data.frames, device=device), "trained"


def error_rows(data: Frames, places, found: list[Answer], ratio: int = 3) -> list[dict]:
    """How each method did on each frame, by the paper's read-out.

    Returns
    -------
    list of dict
        ``method``, ``label``, ``status``, ``frame`` (its number in the split), ``targets``, ``detections``, ``hits`` (pairs within 0.25 px), ``missed``,
        ``false`` (detections without a partner) and ``rms_distance`` of the hits [px]; None where a method has no images or no hit.
    """
    grid = SubpixelGrid(ratio=ratio)
    rows = []
    for answer in found:
        estimate = None if answer.images is None else detect(answer.images, grid)
        for number_, place in enumerate(places):
            truth = data.targets[number_]
            row = {"method": answer.method, "label": answer.label, "status": answer.status, "frame": int(place), "targets": int(truth.count[0])}
            rows.append(row | (_errors(estimate[number_], truth) if estimate is not None else dict.fromkeys(_ERRORS)))
    return rows


_ERRORS = ("detections", "hits", "missed", "false", "rms_distance")


def _errors(estimate, truth) -> dict:
    _, mine, theirs = match_pairs(estimate, truth, cap=NEAR)
    distance = np.hypot(*(estimate.xy[0, mine] - truth.xy[0, theirs]).T)
    detections, targets, hits = int(estimate.count[0]), int(truth.count[0]), len(distance)
    rms = float(np.sqrt(np.mean(distance**2))) if hits else None
    return dict(zip(_ERRORS, (detections, hits, targets - hits, detections - hits, rms)))


def error_table(rows) -> Table:
    """One line per method, one column per frame: hits of targets, false detections and the hits' root mean square distance."""
    frames = list(dict.fromkeys((row["frame"], row["targets"]) for row in rows))
    columns = [("", "method"), *[(f"{targets} target{'s' * (targets > 1)}", f"frame {frame}") for frame, targets in frames]]
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(row["label"], []).append(_cell(row))
    caption = f"Targets found within {NEAR} px, detections that are none of them, and the root mean square distance of those found [px]."
    return Table(caption, columns, [[label, *line] for label, line in cells.items()])


def _cell(row: dict) -> str:
    if row["status"] != "trained":
        return row["status"]
    distance = MISSING if row["rms_distance"] is None else number(row["rms_distance"], 3)
    return f"{row['hits']} of {row['targets']}, {row['false']} false, {distance}"


def plot_gallery(data: Frames, places, found: list[Answer], ratio: int = 3, zoom: int = 1):
    """One column per frame; from the top the frame, the true sub-pixel image, and each trained network's, with the true targets as circles.

    Parameters
    ----------
    data : Frames
        The frames to show.
    places : sequence of int
        Their numbers in the split, for the titles.
    found : list of Answer
        Of :func:`answers`; those without images are left out.
    ratio : int
        Sub-pixel ratio c.
    zoom : int
        Pixels to show on each side of the cluster's pixel.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import show_frame, show_subpixels, style

    grid, plane = SubpixelGrid(ratio=ratio), FocalPlane()
    shown = [("truth", grid.image(data.targets)), *[(answer.label, answer.images) for answer in found if answer.images is not None]]
    size = 1.55
    with style():
        figure, axes = plt.subplots(len(shown) + 1, len(places), figsize=(size * len(places) + 0.4, size * (len(shown) + 1) + 0.3), squeeze=False)
        for column, place in enumerate(places):
            truth = data.targets[column]
            title = f"frame {place}: {truth.count[0]} target{'s' * int(truth.count[0] > 1)}"
            show_frame(data.frames[column], axes[0, column], zoom=zoom, targets=truth, full_scale=plane.full_scale, title=title, labels=False)
            for ax, (_, images) in zip(axes[1:, column], shown):
                show_subpixels(images[column], grid, ax, targets=truth, zoom=zoom, labels=False)
        for line, name in zip(axes, ["frame", *[name for name, _ in shown]]):
            line[0].set_ylabel(name)
        for ax in axes.flat:
            ax.tick_params(labelsize=7)
            ax.title.set_fontsize(8)
    return figure


def describe_false(shown: dict) -> str:
    """Where the networks' false detections of the viewer's frames lie, and who gets whole frames right, as two sentences.

    Parameters
    ----------
    shown : dict
        Of :func:`csist.widgets.viewer_data`.
    """
    false = beside = 0
    for method in shown["methods"]:
        if method["method"] in NETWORKS:
            for points in (stages[-1] for stages in method["points"]):
                hits = [point for point in points if point[3] >= 0]
                wrong = [point for point in points if point[3] < 0]
                false += len(wrong)
                beside += sum(any(_shares(point, hit, method["ratio"]) for hit in hits) for point in wrong)
    frames = len(shown["frames"])
    perfect = {method["label"]: sum(_all_right(*pair) for pair in zip(shown["frames"], method["points"])) for method in shown["methods"]}
    right = "; ".join(f"{count} by {label}" for label, count in sorted(perfect.items(), key=lambda item: -item[1]) if label != "perfect")
    return (
        f"The networks on a grid make {false} false detections in these {frames} frames, and {beside} of them touch a hit with which "
        f"they have {ONE_TARGET[0]} to {ONE_TARGET[1]} grey levels together, the light of one target. "
        f"Frames answered without any miss or false detection: {right}."
    )


def _shares(point, hit, ratio: int) -> bool:
    """Whether a false detection and a hit, each x, y, intensity and so on, lie in sub-pixels that touch and have one target's light together."""
    touches = max(abs(point[0] - hit[0]), abs(point[1] - hit[1])) < 1.5 / ratio
    return touches and ONE_TARGET[0] <= point[2] + hit[2] <= ONE_TARGET[1]


def _all_right(frame: dict, stages: list) -> bool:
    return len(stages[-1]) == len(frame["targets"]) and all(point[3] >= 0 for point in stages[-1])


def describe_missing(found: list[Answer]) -> str:
    """Which methods the figure lacks, and why, as one sentence."""
    missing = [f"{answer.label} ({answer.status})" for answer in found if answer.images is None]
    return f"Not in the figure: {', '.join(missing)}." if missing else "All methods asked for are in the figure."
