"""What perfect detection on a grid would score, and what no unmixer can beat; lines of the results plots."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from csist.datasets import csist100k
from csist.imaging import SubpixelGrid
from csist.metrics import cso_map
from csist.reporting.layout import percent
from csist.reporting.sources import load_result
from csist.scenes import Targets


class Ceilings(NamedTuple):
    """CSO-mAP of perfect on-grid detections in three orders, and the limit without a grid, as fractions; None where it is not known."""

    random: float  # with scores that mean nothing
    ranked: float  # ranked by their true distance from the target
    typical: float | None = None  # ranked by the brightness that a trained network gives their sub-pixels
    attainable: float | None = None  # by the exact posterior, which needs no grid


def on_grid(truth: Targets, ratio: int = 3, shape=(11, 11)) -> Targets:
    """Every target at the centre of its nearest sub-pixel; one beyond the frame's edge goes to the nearest sub-pixel inside.

    >>> on_grid(Targets([[[5.1, 4.6]]], [[240.0]], [1]), ratio=3).xy.round(3).tolist()
    [[[5.0, 4.667]]]
    """
    xy = np.full_like(truth.xy, np.nan)
    grid = SubpixelGrid(shape, ratio)
    xy[truth.mask] = grid.to_position(_cells(truth, grid))
    return Targets(xy, truth.intensity, truth.count)


def _cells(truth: Targets, grid: SubpixelGrid) -> np.ndarray:
    """Row and column of each target's sub-pixel, (targets, 2)."""
    return grid.to_index(np.clip(truth.xy, -0.5, np.array(grid.frame_shape) - 0.5)[truth.mask])


def grid_ceilings(truth: Targets, ratio: int = 3, seed: int = 0, shape=(11, 11), images=None) -> Ceilings:
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
    images : array (n, 11c, 11c), optional
        A trained network's answers [grey levels]. Their brightness at the targets' sub-pixels then ranks the perfect detections: the typical order.

    >>> centred = Targets([[[5.0, 5.0]], [[5.0, 5.2]]], [[240.0], [240.0]], [1, 1])
    >>> round(grid_ceilings(centred, ratio=3).ranked, 2)
    0.8
    """
    snapped = on_grid(truth, ratio, shape)
    distance = np.hypot(*np.moveaxis(snapped.xy - truth.xy, -1, 0))
    orders = [np.random.default_rng(seed).random(distance.shape), -distance]
    if images is not None:
        orders.append(_brightness(images, truth, SubpixelGrid(shape, ratio)))
    return Ceilings(*(cso_map(snapped.with_score(order), truth).map for order in orders))


def _brightness(images, truth: Targets, grid: SubpixelGrid) -> np.ndarray:
    """What the images hold at the targets' own sub-pixels, (n, targets); NaN where there is no target."""
    expected = (len(truth.count), *grid.shape)
    if np.shape(images) != expected:
        raise ValueError(f"images must be {expected}, one image of {expected[1]} x {expected[2]} sub-pixels per frame; got {np.shape(images)}")
    values, (frame, _), (row, column) = np.full(truth.mask.shape, np.nan), np.nonzero(truth.mask), _cells(truth, grid).T
    values[truth.mask] = np.asarray(images)[frame, row, column]
    return values


def stored_ceilings(ratio: int = 3, folder: Path | None = None) -> Ceilings:
    """Ceilings of the whole test split, with the typical order of ``results/ceilings.json`` and the limit of ``results/attainable.json``.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.
    """
    stored, limit = load_result("ceilings", folder), load_result("attainable", folder)
    at = stored["ratios"].get(str(ratio)) if stored else None
    known = Ceilings(at["random"], at["ranked"], at["typical"]) if at else grid_ceilings(csist100k("test").targets, ratio)
    return known._replace(attainable=limit and limit["cso_map"])


# field of Ceilings: name in a legend, style of its line
LINES = {
    "random": ("perfect on the grid, random order", {"ls": "--", "lw": 1.2}),
    "typical": ("perfect on the grid, typical order", {"ls": "-.", "lw": 1.2}),
    "ranked": ("perfect on the grid, best order", {"ls": "-", "lw": 1.2}),
    "attainable": ("attainable without a grid", {"ls": ":", "lw": 2.0}),
}


def draw_ceilings(ceilings: Ceilings | None, line) -> None:
    """Draw the known ceilings; ``line`` is ``ax.axvline`` or ``ax.axhline``."""
    from csist.plotting import FAINT

    for field, (label, how) in LINES.items():
        value = getattr(ceilings, field, None)
        if value is not None:
            line(100 * value, color=FAINT, label=label, zorder=0.5, **how)


def describe_ceilings(ceilings: Ceilings, shifted: Ceilings | None = None, shift: float = -0.07) -> str:
    """The ceilings as one Markdown paragraph."""
    text = (
        f"An answer that names every target and nothing else, each at its nearest sub-pixel, scores **{percent(ceilings.random)}** if its detections are "
        f"ranked at random and **{percent(ceilings.ranked)}** if they are ranked by their true distance from the target."
    )
    if ceilings.typical is not None:
        text += (
            f" Ranked by the brightness that a trained network gives these sub-pixels, it scores **{percent(ceilings.typical)}**: where a target lies between "
            "two sub-pixels, the network tends to share its light out between them."
        )
    if ceilings.attainable is not None:
        text += f" Without a grid, {percent(ceilings.attainable)} is attainable."
    if shifted is not None:
        text += (
            f" On frames whose clusters sit {abs(shift):.2f} px {'before' if shift < 0 else 'behind'} the pixel grid, as the paper's printed frames suggest, "
            f"the first two are {percent(shifted.random)} and {percent(shifted.ranked)}."
        )
    return text
