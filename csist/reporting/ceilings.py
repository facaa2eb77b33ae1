"""How high a score on a grid can be: perfect detections at the nearest sub-pixels."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csist.imaging import SubpixelGrid
from csist.metrics import cso_map
from csist.reporting.layout import percent
from csist.scenes import Targets


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
