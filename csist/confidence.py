r"""A learned confidence in place of brightness: which detections on the grid are near their targets (results pages "Table 1" and "Table 3").

CSO-mAP ranks detections, and the paper ranks them by their brightness, which says little about how near the centre of its sub-pixel a target lies. What
says more is the image around a detection (other targets keep a distance, so they push it to the far side of its sub-pixel) and the light that the image
leaves unexplained. From both, boosted trees learn which share of CSO-mAP's distance thresholds a detection meets. Positions stay on the grid: only the
order of the detections changes, so the grid's ceiling with perfect ranks (``csist.reporting.grid_ceilings``) is the limit.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csist.evaluation import DETECTION_THRESHOLD, detect
from csist.imaging import FocalPlane, SubpixelGrid
from csist.metrics import match_detections
from csist.readout import INTENSITY, neighbourhoods
from csist.scenes import Targets

REACH = 2  # pixels about a detection's own whose unexplained light counts; a target's light ends there
ROUNDS, LEAVES, RATE = 300, 63, 0.1  # of the trees; set once. That they see the unexplained light was decided on validation frames


def hit_share(estimate: Targets, truth: Targets) -> np.ndarray:
    """Share of CSO-mAP's distance thresholds at which each detection is a true positive, (m,) in the order of ``estimate.mask``.

    >>> truth = Targets([[[5.0, 5.0]]], [[240.0]], [1])
    >>> hit_share(Targets([[[5.0, 5.12], [5.0, 5.0]]], [[230.0, 100.0]], [2]), truth).tolist()  # the second comes too late where the first hits
    [0.6, 0.4]
    """
    matches = match_detections(estimate, truth)
    share = np.zeros(estimate.mask.shape)
    share[matches.frame, matches.slot] = matches.is_hit.mean(axis=0)
    return share[estimate.mask]


def unexplained(images, frames, plane: FocalPlane, grid: SubpixelGrid) -> np.ndarray:
    r"""Light that an image leaves over, :math:`\mathbf z - \mathbf G\mathbf s`, (n, rows, columns) [grey levels]; nothing where a clipped pixel is overshot."""
    frames, rows, columns = np.asarray(frames, dtype=np.float64), plane.axis_matrix(grid, 0), plane.axis_matrix(grid, 1)
    if frames.shape != (len(images), *plane.shape):
        raise ValueError(f"confidence: {len(images)} images need frames of shape {(len(images), *plane.shape)}, those that were answered; got {frames.shape}")
    left = frames - rows @ np.asarray(images, dtype=np.float64) @ columns.T
    return np.where((frames >= plane.full_scale) & (left < 0), 0.0, left)


def turned(squares: np.ndarray) -> np.ndarray:
    """The eight turns and mirror images of some squares: (m, K, K) to (8, m, K * K)."""
    turns = [np.rot90(squares, k, (1, 2)) for k in range(4)]
    size = squares.shape[1] * squares.shape[2]
    return np.stack([each.reshape(len(squares), size) for turn in turns for each in (turn, turn[:, :, ::-1])])


def surroundings(images, frames, estimate: Targets, plane: FocalPlane, grid: SubpixelGrid) -> np.ndarray:
    """What the trees see of each detection, from all eight sides, (8, m, features) float32.

    The sub-pixels up to one pixel away, in units of a target; the unexplained light of the pixels up to two away [grey levels]; and a map of the pixel
    with a one at the detection's sub-pixel.
    """
    frame, c = np.nonzero(estimate.mask)[0], grid.ratio
    node = grid.to_index(estimate.xy[estimate.mask])
    images = np.clip(np.nan_to_num(images), 0, 1.1 * INTENSITY)
    place = np.zeros((len(frame), c, c))
    place[(np.arange(len(frame)), *(node % c).T)] = 1
    hood = neighbourhoods(images / INTENSITY, frame, node, reach=c)
    left = neighbourhoods(unexplained(images, frames, plane, grid), frame, node // c, REACH)
    return np.concatenate([turned(part) for part in (hood, left, place)], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class Confidence:
    """Detections of one network, ranked by the learned share of thresholds that they meet; made by :func:`fit_confidence`."""

    model: object  # a fitted HistGradientBoostingRegressor
    plane: FocalPlane
    grid: SubpixelGrid
    threshold: float

    def __call__(self, images, frames) -> Targets:
        """The paper's detections in images (n, c*rows, c*columns) of frames (n, rows, columns), with the learned share as score."""
        found = detect(images, self.grid, self.threshold)
        sides = surroundings(images, frames, found, self.plane, self.grid)
        score = np.full(found.mask.shape, np.nan)
        if sides.shape[1]:
            score[found.mask] = np.clip(np.mean([self.model.predict(side) for side in sides], axis=0), 0, 1)
        return found.with_score(score)


def fit_confidence(
    images, frames, truth: Targets, grid: SubpixelGrid, plane: FocalPlane | None = None, threshold: float = DETECTION_THRESHOLD, seed: int = 0
) -> Confidence:
    """Learn a network's confidence from its images of frames with known targets; use training frames.

    Parameters
    ----------
    images : array (n, c*rows, c*columns)
        The network's answers [grey levels].
    frames : array (n, rows, columns)
        What it answered [grey levels].
    truth : Targets
        True targets of these frames.
    grid : SubpixelGrid
        Says where the sub-pixels lie.
    plane : FocalPlane, optional
        Predicts the frame of an image; by default the paper's.
    threshold : float
        Smallest intensity that is a detection, inclusive [grey levels].
    seed : int
        Of the sample that places the trees' bins, where there are more than 200,000 rows.

    Raises
    ------
    ImportError
        Without scikit-learn.
    ValueError
        If images and frames are not equally many, or no image has a detection.

    >>> from csist import cso_map, random_targets
    >>> grid, truth = SubpixelGrid(ratio=3), random_targets(60, np.random.default_rng(0))
    >>> images, frames = grid.image(truth), FocalPlane().render(truth)
    >>> ranked = fit_confidence(images, frames, truth, grid)(images, frames)
    >>> bool(cso_map(ranked, truth).map > cso_map(detect(images, grid), truth).map)
    True
    """
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError:
        raise ImportError("fit_confidence needs scikit-learn; install it with: pip install scikit-learn") from None
    if not len(images) == len(frames) == len(truth):
        raise ValueError(f"fit_confidence: needs as many images as frames and truths; got {len(images)}, {len(frames)} and {len(truth)}")
    plane = plane or FocalPlane(grid.frame_shape)
    found = detect(images, grid, threshold)
    if not found.mask.any():
        raise ValueError(f"fit_confidence: no sub-pixel of these images has {threshold:g} grey levels, so there is no detection to learn from; lower threshold")
    sides = surroundings(images, frames, found, plane, grid)
    model = HistGradientBoostingRegressor(max_iter=ROUNDS, learning_rate=RATE, max_leaf_nodes=LEAVES, early_stopping=False, random_state=seed)
    model.fit(sides.reshape(-1, sides.shape[-1]), np.tile(hit_share(found, truth), len(sides)))
    return Confidence(model, plane, grid, threshold)
