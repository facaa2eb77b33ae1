r"""Read-outs: how a sub-pixel image becomes a list of targets (book chapter "Keeping score").

The paper calls every sub-pixel of at least 50 grey levels a detection at its centre (:func:`csist.evaluation.detect`). That rule wastes what an image knows:

* **One target, two detections.** A network that hesitates between two cells shares a target's light between them, and both shares pass the threshold.
  :func:`merged` puts such shares together again, as long as the sum is plausible for one target.
* **A target is not at its cell's centre.** One would expect the centroid of the neighbouring light to say where it is (:func:`centroid`). It does not: a
  network trained on cells learns to light exactly one cell wherever in it the target lies. But targets keep a distance, so light in a neighbouring cell is
  another target, and it says that this one lies on the *far* side of its own cell (:func:`repelled`, :func:`fitted`, :func:`counted`).

Every read-out is a function ``(images, grid, **options) -> Targets``; options are chosen on validation frames by :func:`tune_readout`.
"""
from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from csist.evaluation import DETECTION_THRESHOLD, detect
from csist.imaging import SubpixelGrid
from csist.metrics import count_accuracy, cso_map
from csist.networks.registry import unknown_name
from csist.scenes import Targets, random_targets

INTENSITY = 235.0  # grey levels; the middle of CSIST-100K's range 220..250, the unit of all features
MIN_DISTANCE = 0.494  # px; no two targets of CSIST-100K are nearer
NEIGHBOURS = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)])
RIDGE = 1.0  # of the least-squares fits, whose features are of order one; it only matters where hardly any detection has a feature


class Detections(NamedTuple):
    """Sub-pixels that a read-out takes for targets, with what surrounds them; positions in sub-pixels (row, column)."""

    frame: np.ndarray  # (m,)
    node: np.ndarray  # (m, 2) the sub-pixel itself
    peak: np.ndarray  # (m,) its intensity [grey levels]
    light: np.ndarray  # (m,) sum of what belongs to it [grey levels]
    centroid: np.ndarray  # (m, 2) of that light


SCORES = {
    "peak": lambda found: found.peak,
    "light": lambda found: found.light,
    "share": lambda found: found.peak / found.light,
    "closeness": lambda found: -np.hypot(*(found.centroid - found.node).T),
}


# ---- which sub-pixels -------------------------------------------------------------------------------------------------


def _positive(images, grid: SubpixelGrid) -> np.ndarray:
    """Images as float64 without negative or non-finite values, neither of which is light."""
    images = np.asarray(images)
    if images.ndim != 3 or images.shape[1:] != grid.shape:
        raise ValueError(f"read-out: images must have shape (n, {grid.shape[0]}, {grid.shape[1]}) on this grid; got {images.shape}")
    return np.where(np.isfinite(images), np.maximum(images, 0), 0).astype(np.float64)


def neighbourhoods(images: np.ndarray, frame: np.ndarray, node: np.ndarray, reach: int = 1) -> np.ndarray:
    """What surrounds some sub-pixels: (m, 2 reach + 1, 2 reach + 1), zero beyond the image.

    >>> neighbourhoods(np.arange(9.0).reshape(1, 3, 3), np.array([0]), np.array([[0, 1]]))[0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)))
    steps = np.arange(2 * reach + 1)
    return padded[frame[:, None, None], node[:, 0, None, None] + steps[:, None], node[:, 1, None, None] + steps]


def _detections(images: np.ndarray, chosen: np.ndarray) -> Detections:
    """The sub-pixels where ``chosen`` (n, rows, columns) is True, each with all the light of its 3 x 3 neighbourhood."""
    frame, *node = np.nonzero(chosen)
    node = np.stack(node, axis=-1)
    hood, steps = neighbourhoods(images, frame, node), np.arange(-1, 2)
    light = hood.sum((1, 2))
    shift = np.stack([hood.sum(2) @ steps, hood.sum(1) @ steps], axis=-1) / light[:, None]
    return Detections(frame, node, hood[:, 1, 1], light, node + shift)


def is_local_maximum(images: np.ndarray) -> np.ndarray:
    """True where a sub-pixel is the brightest of its 3 x 3 neighbourhood; of equal neighbours the first in reading order.

    >>> is_local_maximum(np.array([[[1.0, 5.0, 5.0, 2.0, 3.0]]])).astype(int).tolist()
    [[[0, 1, 0, 0, 1]]]
    """
    rows, columns = images.shape[1:]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    highest = np.ones(images.shape, dtype=bool)
    for i, j in NEIGHBOURS:
        other = padded[:, 1 + i : 1 + i + rows, 1 + j : 1 + j + columns]
        highest &= images > other if (i, j) < (0, 0) else images >= other
    return highest


def merge(images: np.ndarray, least: float, most: float, low: float) -> Detections:
    """Share the light out among targets: the brightest sub-pixel of a frame takes neighbours while the sum stays plausible, then the next brightest.

    Neighbours are visited by falling intensity, and one that would lift the sum above ``most`` is left for another target: at c = 3 two targets may sit in
    diagonal neighbours. What stays below ``least`` is no target. All frames advance together, one target a round.
    """
    n, rows, columns = images.shape
    rest = np.pad(np.where(images >= low, images, 0.0), ((0, 0), (1, 1), (1, 1))).reshape(n, (rows + 2) * (columns + 2))
    width = columns + 2
    steps = np.concatenate([[0], NEIGHBOURS @ [width, 1]])
    rounds = []
    active = np.arange(n)
    while True:
        place = rest[active].argmax(1)
        alive = rest[active, place] > least / len(steps)  # else even nine such sub-pixels were no target
        active, place = active[alive], place[alive]
        if not len(active):
            break
        around = place[:, None] + steps
        around[:, 1:] = np.take_along_axis(around[:, 1:], np.argsort(-rest[active[:, None], around[:, 1:]], axis=1, kind="stable"), axis=1)
        value = rest[active[:, None], around]
        for k in range(1, len(steps)):
            value[:, k] *= value[:, : k + 1].sum(1) <= most  # earlier entries hold only what was taken
        taken = value > 0
        rest[active[:, None], np.where(taken, around, 0)] = 0.0  # entry 0 is padding
        light = value.sum(1)
        position = np.stack(np.divmod(around, width), axis=-1) - 1
        rounds.append(Detections(active, position[:, 0], value[:, 0], light, (value[..., None] * position).sum(1) / light[:, None]))
    empty = Detections(np.zeros(0, int), np.zeros((0, 2), int), np.zeros(0), np.zeros(0), np.zeros((0, 2)))
    found = Detections(*(np.concatenate(parts) for parts in zip(empty, *rounds)))
    return Detections(*(part[found.light >= least] for part in found))


def _targets(found: Detections, position: np.ndarray, grid: SubpixelGrid, n: int, score: str, intensity=None) -> Targets:
    """Detections of n frames as Targets, the highest score first; ``position`` (m, 2) in sub-pixels."""
    if score not in SCORES:
        raise ValueError(f"read-out: score must be one of {', '.join(SCORES)}; got {score!r}")
    rank = SCORES[score](found)
    order = np.lexsort((-rank, found.frame))
    count = np.bincount(found.frame, minlength=n)
    slot = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    capacity = max(1, count.max(initial=0))

    def table(values, *tail):
        full = np.full((n, capacity, *tail), np.nan)
        full[found.frame[order], slot] = values[order]
        return full

    return Targets(table(grid.to_position(position), 2), table(found.peak if intensity is None else intensity), count, score=table(rank))


# ---- where in its cell ------------------------------------------------------------------------------------------------


def offset_features(hood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Differences and sums of mirrored neighbours, for either axis: odd (m, 2, R (R + 1)) and even (m, 2, (R + 1)^2).

    Along its own axis an offset must change sign when the neighbourhood is mirrored, and keep it when mirrored across. Odd features do just that and
    even ones do not change, so any :math:`\text{odd}^\top W\,(1, \text{even})` has the grid's symmetries, and one W serves rows and columns.

    >>> odd, even = offset_features(np.array([[[0.0, 1.0, 0.0], [0.0, 5.0, 2.0], [0.0, 3.0, 0.0]]]))
    >>> odd.tolist(), even.tolist()
    ([[[0.0, 2.0], [0.0, 2.0]]], [[[0.0, 4.0, 2.0, 5.0], [0.0, 2.0, 4.0, 5.0]]])
    """
    reach = hood.shape[-1] // 2
    along = np.stack([hood, np.swapaxes(hood, 1, 2)], axis=1)  # (m, 2, K, K): the offset's own axis comes first
    across = np.concatenate([along[..., :reach] + along[..., : reach : -1], along[..., reach : reach + 1]], axis=-1)
    before, after, middle = across[:, :, :reach], across[:, :, : reach : -1], across[:, :, reach : reach + 1]
    even = np.concatenate([after + before, middle], axis=2)
    return tuple(part.reshape(len(hood), 2, part.shape[2] * part.shape[3]) for part in (after - before, even))


def _bilinear(images: np.ndarray, found: Detections, reach: int, products: bool) -> np.ndarray:
    """Features of the offsets, (m, 2, odd, 1 or 1 + even); intensities in units of a target."""
    odd, even = offset_features(neighbourhoods(np.minimum(images, 1.1 * INTENSITY) / INTENSITY, found.frame, found.node, reach))
    even = np.concatenate([np.ones((*even.shape[:2], 1)), even if products else even[..., :0]], axis=-1)
    return odd[..., :, None] * even[..., None, :]


def fit_offsets(images, grid: SubpixelGrid, truth: Targets, found: Detections, reach: int, products: bool = False) -> np.ndarray:
    r"""Least-squares weights W of :math:`\text{odd}^\top W\,(1, \text{even})` for the offset of a target from its detection.

    Parameters
    ----------
    images : array (n, c*rows, c*columns)
        Sub-pixel intensities [grey levels].
    grid : SubpixelGrid
        Says where the sub-pixels lie.
    truth : Targets
        True targets; detections that are more than one sub-pixel from the nearest one are left out.
    found : Detections
        What to place.
    reach : int
        How many sub-pixels away a neighbour may count, R.
    products : bool
        False: one number for each pair of mirrored neighbours. True: products with the even features as well.

    Returns
    -------
    array (R (R + 1), 1 or 1 + (R + 1)^2)
        In sub-pixels.
    """
    images = _positive(images, grid)
    true = (truth.xy * grid.ratio + grid.offset)[found.frame]  # (m, K, 2) sub-pixels
    distance = np.nan_to_num(np.hypot(*np.moveaxis(true - found.node[:, None], -1, 0)), nan=np.inf)
    nearest = distance.argmin(1)
    known = distance.min(1, initial=np.inf) <= 1
    offset = true[np.arange(len(true)), nearest][known] - found.node[known]
    features = _bilinear(images, Detections(*(part[known] for part in found)), reach, products)
    design = features.reshape(-1, int(np.prod(features.shape[2:])))
    weights = np.linalg.solve(design.T @ design + RIDGE * np.eye(design.shape[1]), design.T @ offset.ravel())
    return weights.reshape(features.shape[2:])


def offsets(images: np.ndarray, found: Detections, weights) -> np.ndarray:
    """Where targets lie in their cells by the weights of :func:`fit_offsets`: (m, 2) sub-pixels from the node, never outside the cell."""
    weights = np.asarray(weights, dtype=np.float64)
    reach = next((r for r in range(1, 16) if weights.ndim == 2 and weights.shape[0] == r * (r + 1) and weights.shape[1] in (1, 1 + (r + 1) ** 2)), None)
    if reach is None:
        raise ValueError(f"read-out: weights must have shape (R (R + 1), 1) or (R (R + 1), 1 + (R + 1)^2), as fit_offsets makes them; got {weights.shape}")
    features = _bilinear(images, found, reach, weights.shape[1] > 1)
    return np.clip((features * weights).sum((2, 3)), -0.5, 0.5)


def neighbour_reach(ratio: int) -> int:
    """Distance of the nearest possible other target in whole sub-pixels: 1, 2 and 3 at c = 3, 5 and 7."""
    return max(1, round(MIN_DISTANCE * ratio))


@lru_cache(maxsize=8)
def geometry_weights(grid: SubpixelGrid, products: bool = False) -> np.ndarray:
    """Weights that follow from the law of the scenes alone: fitted to perfect sub-pixel images of random ones, so no network has a part in them.

    >>> geometry_weights(SubpixelGrid(ratio=3)).round(2).ravel().tolist()  # a diagonal neighbour, a direct one: both push away
    [-0.13, -0.31]
    """
    scenes = random_targets(2_000, np.random.default_rng(0), shape=grid.frame_shape)
    images = grid.image(scenes)
    return fit_offsets(images, grid, scenes, _detections(images, images > 0), neighbour_reach(grid.ratio) + products, products)


# ---- the read-outs ----------------------------------------------------------------------------------------------------


def threshold(images, grid: SubpixelGrid, threshold: float = DETECTION_THRESHOLD) -> Targets:
    """The paper's: every sub-pixel of at least ``threshold`` grey levels, at its centre, ranked by its intensity."""
    return detect(images, grid, threshold)


def local_maxima(images, grid: SubpixelGrid, threshold: float = DETECTION_THRESHOLD, score: str = "peak") -> Targets:
    """Sub-pixels above the threshold that are the brightest of their 3 x 3 neighbourhood; of two targets in neighbouring sub-pixels one is lost."""
    images = _positive(images, grid)
    found = _detections(images, is_local_maximum(images) & (images >= _check_level(threshold)))
    return _targets(found, found.node, grid, len(images), score)


def centroid(images, grid: SubpixelGrid, threshold: float = DETECTION_THRESHOLD, score: str = "peak") -> Targets:
    """Local maxima at the centroid of their 3 x 3 neighbourhood's light: the textbook's way off the grid."""
    images = _positive(images, grid)
    found = _detections(images, is_local_maximum(images) & (images >= _check_level(threshold)))
    return _targets(found, found.centroid, grid, len(images), score)


def merged(images, grid: SubpixelGrid, least: float = 80.0, most: float = 300.0, low: float = 2.0, score: str = "peak", place: str = "centroid") -> Targets:
    """Neighbouring sub-pixels as one target where their sum is plausible for one (:func:`merge`), with that sum as its intensity.

    Parameters
    ----------
    images : array (n, c*rows, c*columns)
        Sub-pixel intensities [grey levels].
    grid : SubpixelGrid
        Says where the sub-pixels lie.
    least, most : float
        Smallest sum that is a target, and largest sum that is still one [grey levels].
    low : float
        Sub-pixels below it are no light at all [grey levels].
    score : {"peak", "light", "share", "closeness"}
        What ranks the detections: the brightest sub-pixel, the sum, their ratio, or how near the centroid is to the brightest sub-pixel.
    place : {"centroid", "node"}
        Where the target is put: at the centroid of the sum, or at its brightest sub-pixel's centre.

    >>> image = np.zeros((1, 33, 33)); image[0, 10, 10], image[0, 10, 11], image[0, 20, 20] = 140, 100, 230
    >>> merged(image, SubpixelGrid(ratio=3)).intensity.tolist()
    [[230.0, 240.0]]
    """
    if place not in ("centroid", "node"):
        raise ValueError(f'merged: place must be "centroid" or "node"; got {place!r}')
    images = _positive(images, grid)
    found = merge(images, *_check_merge(least, most, low))
    return _targets(found, found.centroid if place == "centroid" else found.node, grid, len(images), score, found.light)


def repelled(images, grid: SubpixelGrid, threshold: float = DETECTION_THRESHOLD, weights=None, score: str = "peak") -> Targets:
    r"""The paper's detections, each pushed away from the light beside it: :math:`\text{offset} = \text{odd}^\top w`, at c = 3 only two numbers.

    ``weights`` come from :func:`fit_offsets`; without them, those of perfect images (:func:`geometry_weights`).
    """
    images = _positive(images, grid)
    found = _detections(images, images >= _check_level(threshold))
    shift = offsets(images, found, geometry_weights(grid) if weights is None else weights)
    return _targets(found, found.node + shift, grid, len(images), score)


def fitted(images, grid: SubpixelGrid, threshold: float = DETECTION_THRESHOLD, weights=None, score: str = "peak") -> Targets:
    r"""As :func:`repelled`, with a wider neighbourhood and products of its features: :math:`\text{odd}^\top W\,(1, \text{even})`."""
    return repelled(images, grid, threshold, geometry_weights(grid, True) if weights is None else weights, score)


def counted(images, grid: SubpixelGrid, least: float = 80.0, most: float = 300.0, low: float = 2.0, weights=None, score: str = "peak") -> Targets:
    """One detection for each target: :func:`merged`, then placed in its cell as by :func:`fitted`."""
    images = _positive(images, grid)
    found = merge(images, *_check_merge(least, most, low))
    shift = offsets(images, found, geometry_weights(grid, True) if weights is None else weights)
    return _targets(found, found.node + shift, grid, len(images), score, found.light)


def _check_level(value: float) -> float:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"read-out: threshold must be above 0 grey levels; got {value!r}. The paper's is {DETECTION_THRESHOLD:g}")
    return value


def _check_merge(least: float, most: float, low: float) -> tuple[float, float, float]:
    if not (0 < least <= most < np.inf and 0 <= low <= least):
        raise ValueError(f"merged: needs 0 < least <= most and 0 <= low <= least [grey levels]; got least = {least!r}, most = {most!r}, low = {low!r}")
    return least, most, low


READOUTS = {
    "threshold": threshold,
    "local_maxima": local_maxima,
    "merged": merged,
    "centroid": centroid,
    "repelled": repelled,
    "fitted": fitted,
    "counted": counted,
}


def read_out(images, grid: SubpixelGrid, name: str = "threshold", **options) -> Targets:
    """The targets of sub-pixel images by one of ``READOUTS``.

    Parameters
    ----------
    images : array (n, c*rows, c*columns)
        Sub-pixel intensities [grey levels].
    grid : SubpixelGrid
        Says where the sub-pixels lie.
    name : str
        A key of ``READOUTS``.
    options
        Passed to the read-out, for example the settings that :func:`tune_readout` chose.

    Raises
    ------
    ValueError
        For an unknown name (with the nearest known one), images that are not of this grid, or an option out of range.

    >>> image = np.zeros((1, 33, 33)); image[0, 16, 16] = 240
    >>> read_out(image, SubpixelGrid(ratio=3)).xy.tolist()
    [[[5.0, 5.0]]]
    """
    if name not in READOUTS:
        raise unknown_name(name, READOUTS)
    return READOUTS[name](images, grid, **options)


# ---- choosing the settings --------------------------------------------------------------------------------------------

_LEVELS = (50.0, 70.0, 90.0)  # not below the paper's 50: more low-score detections can only raise an average precision ("hedging")
_MERGING = {"least": (80.0, 110.0), "most": (270.0, 285.0, 300.0, 320.0), "low": (2.0,)}
CHOICES = {
    "threshold": {},  # the paper's rule has nothing to choose
    "local_maxima": {"threshold": _LEVELS, "score": tuple(SCORES)},
    "merged": {**_MERGING, "score": tuple(SCORES), "place": ("centroid", "node")},
    "centroid": {"threshold": _LEVELS, "score": tuple(SCORES)},
    "repelled": {"threshold": _LEVELS, "score": tuple(SCORES)},
    "fitted": {"threshold": _LEVELS, "score": tuple(SCORES)},
    "counted": {**_MERGING, "score": tuple(SCORES)},
}
ONE_EACH = ("merged", "counted")  # read-outs that promise one detection for each target
PRODUCTS = {"repelled": False, "fitted": True, "counted": True}  # read-outs whose weights are fitted, and whether with products


def tune_readout(images, grid: SubpixelGrid, truth: Targets, name: str, choices: dict | None = None) -> dict:
    """Choose a read-out's settings on images whose targets are known; use validation frames.

    The goal is CSO-mAP; for :func:`merged` and :func:`counted` it is first the share of frames with the right number of targets, because CSO-mAP alone would
    always rather keep a doubtful extra detection than merge it.

    Parameters
    ----------
    images : array (n, c*rows, c*columns)
        Sub-pixel intensities of validation frames [grey levels].
    grid : SubpixelGrid
        Says where the sub-pixels lie.
    truth : Targets
        True targets of these frames.
    name : str
        A key of ``READOUTS``.
    choices : dict, optional
        Values to try for each option, the same options as in ``CHOICES``, which is the default.

    Returns
    -------
    dict
        ``settings`` (options of the read-out, plain JSON values), ``cso_map`` and ``count_accuracy`` on these images, ``tried``: how many settings were.
    """
    if name not in READOUTS:
        raise unknown_name(name, READOUTS)
    choices = CHOICES[name] if choices is None else choices
    outcomes = []
    for values in product(*choices.values()):
        for more in _weights(images, grid, truth, name, dict(zip(choices, values))):
            settings = {**dict(zip(choices, values)), **more}
            estimate = read_out(images, grid, name, **settings)
            outcomes.append({"settings": settings, "cso_map": cso_map(estimate, truth).map, "count_accuracy": count_accuracy(estimate, truth)})
    goal = lambda outcome: (outcome["count_accuracy"], outcome["cso_map"]) if name in ONE_EACH else outcome["cso_map"]
    return {**max(outcomes, key=goal), "tried": len(outcomes)}


def _weights(images, grid: SubpixelGrid, truth: Targets, name: str, settings: dict) -> list[dict]:
    """Weights to try with some settings: none for a read-out that takes none, else those of the geometry (None) and those fitted here, as nested lists."""
    if name not in PRODUCTS:
        return [{}]
    light, products = _positive(images, grid), PRODUCTS[name]
    if name in ONE_EACH:
        found = merge(light, *_check_merge(*(settings[option] for option in _MERGING)))
    else:
        found = _detections(light, light >= _check_level(settings["threshold"]))
    weights = fit_offsets(light, grid, truth, found, neighbour_reach(grid.ratio) + products, products)
    return [{"weights": None}, {"weights": np.round(weights, 6).tolist()}]
