"""Keeping score: CSO-mAP, count, localisation, pixel locking, PSNR and SSIM, with intervals.

All scores are fractions (0 .. 1), all lengths pixels, all intensities grey levels of total flux; x is the row, y the column.
Derived in the book's chapter "Keeping score"; CSO-mAP and PSNR/SSIM are those of the paper's section 4.2.

Every rule that the paper leaves open is fixed here once:

* **Ranking.** Detections are ranked by falling score. Equal scores: the earlier frame first, and within a frame the earlier detection.
* **Threshold.** A distance equal to the threshold counts (the released code's ``<=``). "Equal" forgives 1e-9 px, so that 5.2 is 0.2 px from 5.0
  in spite of binary fractions, and a common shift of everything cannot change a score.
* **Nearest.** Of two targets that are equally near (to 1e-9 px), the one with the lower index is the nearest.
* **Nothing there.** Frames without targets or without detections are ordinary frames. Detections but no target in the whole set: AP is 0.
  Neither: AP is nan, for there is nothing to score. Targets but no detections: AP is 0.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from csist.imaging import check_shape, lies_on_frame
from csist.scenes import Targets

DISTANCE_THRESHOLDS = (0.05, 0.10, 0.15, 0.20, 0.25)  # px (paper, section 4.2)
DISTANCE_TOLERANCE = 1e-9  # px; far above rounding (1e-15), far below any physics (a Cramér–Rao bound is about 1e-3)
PERFECT_PSNR = 100.0  # dB that the reference toolkit books for a frame without any error
SSIM_WINDOW = 7  # px; with constants 0.01 and 0.03 and unbiased covariances these are scikit-image's defaults
SHIFT_MARGIN = 0.5  # px beyond the frame's edge at which a cluster_shift may leave a target; one farther out is of a larger frame
IMAGE_BLOCK = 256  # images that SSIM treats at once, which keeps its ten intermediates in tens of megabytes


# ---------------------------------------------------------------------------------------------------------------------------------------------
# CSO-mAP
# ---------------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class CsoMap:
    """CSO-mAP and the average precisions it is the mean of, as fractions.

    >>> CsoMap(np.array([0.0, 0.5]), np.array([0.05, 0.1]), 2, 2)
    CSO-mAP 25.00 (AP-05 0.00, AP-10 50.00; 2 detections, 2 targets)
    """

    ap: np.ndarray  # one per threshold
    thresholds: np.ndarray  # px
    n_detections: int
    n_targets: int

    @property
    def map(self) -> float:
        """Mean of the average precisions."""
        return float(np.mean(self.ap))

    def __repr__(self) -> str:
        each = ", ".join(f"AP-{_in_hundredths(delta)} {100 * ap:.2f}" for delta, ap in zip(self.thresholds, self.ap))
        return f"CSO-mAP {100 * self.map:.2f} ({each}; {self.n_detections:,} detections, {self.n_targets:,} targets)"


def _in_hundredths(delta: float) -> str:
    """The paper's names of thresholds: 0.05 px is "05"."""
    return f"{100 * delta:02.0f}" if abs(100 * delta - round(100 * delta)) < 1e-6 else f"{100 * delta:g}"


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections of a set of frames by falling score, and which of them are hits. Made by :func:`match_detections`."""

    frame: np.ndarray  # (D,) frame of each detection
    slot: np.ndarray  # (D,) its place within the frame
    score: np.ndarray  # (D,)
    nearest: np.ndarray  # (D,) place of the nearest true target, -1 in a frame without any
    distance: np.ndarray  # (D,) px to that target, infinite in a frame without any
    is_hit: np.ndarray  # (T, D) true positive at each threshold
    thresholds: np.ndarray  # (T,) px
    targets_per_frame: np.ndarray  # (n,)

    def average_precisions(self, multiplicity=None) -> np.ndarray:
        """Average precision at every threshold, (T,), each frame counted ``multiplicity`` (n,) times (default once).

        Exactly what copying the frames would give, because matching never looks beyond its own frame. A boolean array selects frames; numbers that are not
        whole weigh them, as where a sampled frame stands for several others.
        """
        if multiplicity is None:
            weight, n_truths = None, int(self.targets_per_frame.sum())
        else:
            multiplicity = np.asarray(multiplicity)
            multiplicity = multiplicity.astype(np.float64 if multiplicity.dtype.kind == "f" else np.int64)
            if multiplicity.shape != self.targets_per_frame.shape:
                raise ValueError(
                    f"average_precisions: multiplicity must hold one number for each of {len(self.targets_per_frame)} frames; got shape {multiplicity.shape}"
                )
            weight, n_truths = multiplicity[self.frame], (multiplicity @ self.targets_per_frame).item()
        return np.array([average_precision(hits, n_truths, weight) for hits in self.is_hit])


def cso_map(estimate: Targets, truth: Targets, thresholds=DISTANCE_THRESHOLDS) -> CsoMap:
    r"""CSO-mAP, the paper's score: mean average precision over five distance thresholds (paper, section 4.2; book chapter "Keeping score").

    .. math:: \text{CSO-mAP} = \frac1{|\Delta|} \sum_{\delta\in\Delta} \mathrm{AP}(\delta), \qquad \Delta = \{0.05, 0.10, 0.15, 0.20, 0.25\}\ \text{px}

    A frame's detections are visited by falling score. A detection is a true positive when its *nearest* true target is within ``delta`` and not yet
    claimed, else a false positive: it does not fall back to its second nearest. All frames are pooled and sorted by score; AP is the area under the
    monotone envelope of precision against recall (:func:`average_precision`). Ties and empty cases: see the top of this module.

    Parameters
    ----------
    estimate : Targets
        Detections, ranked by ``score`` if there is one, else by ``intensity``. Nothing is thresholded here: what is in it, counts.
    truth : Targets
        True targets of the same frames.
    thresholds : sequence of float
        Distance thresholds [px].

    Returns
    -------
    CsoMap
        ``.map`` and ``.ap`` as fractions.

    Raises
    ------
    ValueError
        If the numbers of frames differ, a score is nan, or a threshold is negative or not finite.

    >>> truth = Targets([[[5.0, 5.0]], [[2.0, 2.0]]], [[240.0], [230.0]], [1, 1])
    >>> estimate = Targets([[[5.0, 5.1]], [[2.0, 2.2]]], [[240.0], [230.0]], [1, 1])
    >>> cso_map(estimate, truth).ap.tolist()
    [0.0, 0.5, 0.5, 1.0, 1.0]
    """
    matches = match_detections(estimate, truth, thresholds)
    return CsoMap(matches.average_precisions(), matches.thresholds, len(matches.frame), int(truth.count.sum()))


def cso_map_from_lists(detections, truths, thresholds=DISTANCE_THRESHOLDS) -> CsoMap:
    """CSO-mAP of plain arrays: the same rules as :func:`cso_map` without the Targets type.

    Parameters
    ----------
    detections : list of arrays (m, 3)
        One array per frame, rows ``[x, y, score]`` [px, px, any unit]; empty frames may be ``[]``, (0,) or (0, 3). A bare (m, 3) array is one frame.
    truths : list of arrays (k, 2 or more)
        One array per frame, rows ``[x, y, ...]`` [px]; further columns are ignored. A bare (k, 2) array is one frame.
    thresholds : sequence of float
        Distance thresholds [px].

    Raises
    ------
    ValueError
        As :func:`cso_map`, and for an array of another shape.

    >>> cso_map_from_lists([[[5, 5, 9], [1, 1, 8]], []], [[[5, 5.1]], [[2, 2]]]).ap.tolist()
    [0.0, 0.5, 0.5, 0.5, 0.5]
    """
    detections = _frame_rows(detections, "detections", "(m, 3): x, y, score", lambda width: width == 3)
    truths = _frame_rows(truths, "truths", "(k, 2 or more): x, y, ...", lambda width: width >= 2)
    # Intensities play no part once there are scores; ones satisfy the type.
    estimate = Targets.from_lists([rows[:, :2] for rows in detections], [np.ones(len(rows)) for rows in detections], [rows[:, 2] for rows in detections])
    truth = Targets.from_lists([rows[:, :2] for rows in truths], [np.ones(len(rows)) for rows in truths])
    return cso_map(estimate, truth, thresholds)


def _frame_rows(frames, name: str, wanted: str, accepts) -> list[np.ndarray]:
    """A list of two-dimensional float arrays, whatever the empty ones looked like."""
    if isinstance(frames, np.ndarray) and (frames.ndim == 2 or frames.shape == (0,)):
        frames = [frames]
    result = []
    for index, rows in enumerate(frames):
        rows = np.asarray(rows, dtype=np.float64)
        if rows.size == 0:
            rows = np.zeros((0, 3))
        elif rows.ndim != 2 or not accepts(rows.shape[1]):
            raise ValueError(f"cso_map_from_lists: {name}[{index}] must have shape {wanted}; got {rows.shape}")
        result.append(rows)
    return result


def match_detections(estimate: Targets, truth: Targets, thresholds=DISTANCE_THRESHOLDS) -> Matches:
    r"""Decide which detections are true positives, at every threshold.

    .. math::
        \text{hit}_d(\delta) = \big[\,r_d \le \delta\,\big] \wedge
        \big[\,\text{no } d' \text{ of higher rank with the same nearest target has } r_{d'} \le \delta\,\big]

    with ``r_d`` the distance from detection ``d`` to its nearest target. Only detections within ``delta`` ever claim, and each claims nothing but
    its nearest; so the loop over detections reduces to "first of its target in rank order", which needs no loop at all.

    Parameters and errors are those of :func:`cso_map`.

    >>> truth = Targets([[[5.0, 5.0], [5.5, 5.0]]], [[240.0, 240.0]], [2])
    >>> estimate = Targets([[[5.0, 5.0], [5.2, 5.0]]], [[200.0, 250.0]], [2])
    >>> matches = match_detections(estimate, truth, thresholds=[0.1, 0.2])
    >>> matches.slot.tolist(), matches.is_hit.tolist()
    ([1, 0], [[False, True], [True, False]])
    """
    _check_pair(estimate, truth, "cso_map")
    thresholds = _check_thresholds(thresholds)
    frame, slot, score = _rank_detections(estimate)
    nearest, distance = _nearest_target(estimate.xy[frame, slot], truth.xy[frame])
    target = frame * truth.capacity + nearest  # one number for each (frame, target)
    is_hit = np.zeros((len(thresholds), len(frame)), dtype=bool)
    for row, delta in zip(is_hit, thresholds):
        near = np.flatnonzero(distance <= delta + DISTANCE_TOLERANCE)
        first = np.unique(target[near], return_index=True)[1]  # in rank order: the first to come claims the target
        row[near[first]] = True
    return Matches(frame, slot, score, nearest, distance, is_hit, thresholds, truth.count.copy())


def _rank_detections(estimate: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame, slot and score of all detections by falling score; the stable sort keeps equal scores in the order (frame, slot)."""
    frame, slot = np.nonzero(estimate.mask)
    score = (estimate.intensity if estimate.score is None else estimate.score)[frame, slot]
    wrong = np.flatnonzero(np.isnan(score))
    if len(wrong):
        raise ValueError(
            f"cso_map: {len(wrong)} of {len(score)} scores are nan, the first in frame {frame[wrong[0]]}, detection {slot[wrong[0]]}; "
            "nan cannot be ranked. Give every detection a number, or leave score=None to rank by intensity"
        )
    order = np.argsort(-score, kind="stable")
    return frame[order], slot[order], score[order]


def _nearest_target(xy: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of and distance to the nearest of each row's candidates; xy (D, 2), candidates (D, K, 2) padded with nan; (-1, inf) without any."""
    if not candidates.shape[1]:
        return np.full(len(xy), -1), np.full(len(xy), np.inf)
    distance = np.hypot(candidates[..., 0] - xy[:, :1], candidates[..., 1] - xy[:, 1:])  # (D, K)
    distance[np.isnan(distance)] = np.inf
    smallest = distance.min(axis=1)
    nearest = np.argmax(distance <= smallest[:, None] + DISTANCE_TOLERANCE, axis=1)  # the first of equally near ones
    nearest[np.isinf(smallest)] = -1
    return nearest, smallest


def average_precision(is_hit, n_truths: int, weight=None) -> float:
    r"""Area under the monotone envelope of precision against recall (the VOC/COCO "area" AP).

    .. math:: \mathrm{AP} = \frac1N \sum_{i\,\text{hit}} \max_{j \ge i} P_j, \qquad P_j = \frac{\text{hits among the first } j}{j}

    Recall grows by 1/N at each hit and nowhere else, so the area is that sum. Precision rises at hits only, so the maximum is over hits as well.

    Parameters
    ----------
    is_hit : array (D,) of bool
        Whether each detection is a true positive, by falling score.
    n_truths : int
        Number N of true targets (counted with their frames' multiplicity if there are weights).
    weight : array (D,), optional
        Multiplicity of each detection, 0, 1, 2 ...; as if it stood in the list so many times in a row. It need not be whole.

    Returns
    -------
    float
        0 without detections, or with detections where no target is; nan with neither.

    Raises
    ------
    ValueError
        If there are more hits than targets: then some target was claimed twice.

    >>> average_precision([True, False, True], 4)  # (1 + 2/3) / 4
    0.41666666666666663
    """
    is_hit = np.asarray(is_hit, dtype=bool)
    if is_hit.ndim != 1:
        raise ValueError(f"average_precision: is_hit must be one-dimensional, ordered by falling score; got shape {is_hit.shape}")
    hits = np.flatnonzero(is_hit)
    if weight is None:
        gain, rank = np.ones(len(hits), dtype=np.int64), hits + 1
        n_detections = len(is_hit)
    else:
        weight = np.asarray(weight)
        if weight.shape != is_hit.shape:
            raise ValueError(f"average_precision: weight must have shape {is_hit.shape} like is_hit; got {weight.shape}")
        total = np.cumsum(weight)
        gain, rank = weight[hits], total[hits]
        n_detections = total[-1] if len(total) else 0
    found = np.cumsum(gain)
    if len(found) and found[-1] > n_truths * (1 + 1e-12):  # sums of weights round
        raise ValueError(f"average_precision: {found[-1]} hits but only {n_truths} targets; a target can be hit once")
    if n_truths == 0:
        return 0.0 if n_detections else math.nan
    # Several copies of one hit raise precision from copy to copy, so the envelope over all of them is its value at the last copy.
    precision = found / np.where(rank > 0, rank, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope @ gain / n_truths)


def precision_recall(is_hit, n_truths: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall, precision and precision's monotone envelope after each detection, (D,) each: the curve under which AP is the area.

    >>> [curve.round(2).tolist() for curve in precision_recall([True, False, True], 4)]
    [[0.25, 0.25, 0.5], [1.0, 0.5, 0.67], [1.0, 0.67, 0.67]]
    """
    if n_truths < 1:
        raise ValueError(f"precision_recall: recall needs at least one target; got n_truths = {n_truths}")
    found = np.cumsum(np.asarray(is_hit, dtype=bool))
    precision = found / np.arange(1, len(found) + 1)
    return found / n_truths, precision, np.maximum.accumulate(precision[::-1])[::-1]


def cso_map_reference(estimate: Targets, truth: Targets, thresholds=DISTANCE_THRESHOLDS) -> CsoMap:
    """CSO-mAP as one would say it aloud: plain loops, no tricks, thousands of times the work. Tests hold :func:`cso_map` against it.

    >>> truth = Targets([[[5.0, 5.0]]], [[240.0]], [1])
    >>> cso_map_reference(truth, truth).map
    1.0
    """
    detections, truths = estimate.lists(), truth.lists()
    n_truths = sum(len(rows) for rows in truths)
    average_precisions = []
    for delta in thresholds:
        outcomes = []  # (score, is it a true positive?) of all frames
        for detected, targets in zip(detections, truths):
            claimed = set()
            for x, y, score in sorted(detected.tolist(), key=lambda row: -row[2]):  # Python's sort is stable
                distances = [math.dist((x, y), target[:2]) for target in targets]
                nearest = next((k for k, r in enumerate(distances) if r <= min(distances) + DISTANCE_TOLERANCE), None)
                hit = nearest is not None and distances[nearest] <= delta + DISTANCE_TOLERANCE and nearest not in claimed
                if hit:
                    claimed.add(nearest)
                outcomes.append((score, hit))
        outcomes.sort(key=lambda outcome: -outcome[0])
        average_precisions.append(_area_under_envelope([hit for _, hit in outcomes], n_truths))
    return CsoMap(np.array(average_precisions), np.array(thresholds, dtype=np.float64), sum(len(rows) for rows in detections), n_truths)


def _area_under_envelope(hits: list, n_truths: int) -> float:
    """Walk the precision-recall curve backwards, adding a rectangle wherever recall steps."""
    if n_truths == 0:
        return 0.0 if hits else math.nan
    found, area, highest = sum(hits), 0.0, 0.0
    for rank in range(len(hits), 0, -1):
        highest = max(highest, found / rank)
        if hits[rank - 1]:
            area += highest / n_truths
            found -= 1
    return area


# ---------------------------------------------------------------------------------------------------------------------------------------------
# How sure is the score?
# ---------------------------------------------------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A bootstrap confidence interval, as fractions."""

    low: float
    high: float
    standard_error: float
    level: float


def bootstrap_samples(estimate: Targets, truth: Targets, resamples: int = 200, seed=0, thresholds=DISTANCE_THRESHOLDS) -> np.ndarray:
    """CSO-mAP of sets of frames drawn with replacement, (resamples,).

    Frames are drawn, not detections, since those of one frame stand or fall together. Matching is done once: drawing a frame twice only doubles the
    weight of its detections. One seed draws the same frames for every method, so the difference of two methods' samples is a paired comparison.

    Parameters
    ----------
    estimate, truth, thresholds
        As in :func:`cso_map`.
    resamples : int
        Number of sets.
    seed : int or numpy.random.Generator
        Source of the draws.

    >>> truth = Targets([[[5.0, 5.0]]] * 3, [[240.0]] * 3, [1] * 3)
    >>> bootstrap_samples(truth, truth, resamples=2).tolist()
    [1.0, 1.0]
    """
    if isinstance(resamples, bool) or not isinstance(resamples, (int, np.integer)) or resamples < 1:
        raise ValueError(f"bootstrap_samples: resamples must be a whole number >= 1; got {resamples!r}")
    matches, rng, n = match_detections(estimate, truth, thresholds), np.random.default_rng(seed), len(truth)
    if n == 0:
        return np.full(resamples, np.nan)
    draws = (np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(resamples))
    return np.array([matches.average_precisions(multiplicity).mean() for multiplicity in draws])


def bootstrap_interval(estimate: Targets, truth: Targets, resamples: int = 200, level: float = 0.95, seed=0, thresholds=DISTANCE_THRESHOLDS) -> Interval:
    """Percentile bootstrap interval of CSO-mAP over frames (see :func:`bootstrap_samples`).

    It answers "how far could the score be off because the test set has only so many frames?"; it knows nothing of the spread over training seeds.

    Parameters
    ----------
    level : float
        Coverage, between 0 and 1; 0.95 takes the 2.5 % and 97.5 % percentiles.
    estimate, truth, resamples, seed, thresholds
        As in :func:`bootstrap_samples`.

    >>> truth = Targets([[[5.0, 5.0]]] * 3, [[240.0]] * 3, [1] * 3)
    >>> bootstrap_interval(truth, truth, resamples=2)
    Interval(low=1.0, high=1.0, standard_error=0.0, level=0.95)
    """
    if not 0 < level < 1:
        raise ValueError(f"bootstrap_interval: level must be a coverage between 0 and 1, such as 0.95; got {level!r}")
    samples = bootstrap_samples(estimate, truth, resamples, seed, thresholds)
    samples = samples[~np.isnan(samples)]  # a draw of empty frames only has no score
    if not len(samples):
        return Interval(math.nan, math.nan, math.nan, level)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    spread = samples.std(ddof=1) if len(samples) > 1 else math.nan
    return Interval(float(low), float(high), float(spread), level)


# ---------------------------------------------------------------------------------------------------------------------------------------------
# Counting and measuring
# ---------------------------------------------------------------------------------------------------------------------------------------------


def count_accuracy(estimate: Targets, truth: Targets) -> float:
    """Fraction of frames with the right number of targets; nan without frames.

    >>> two = Targets([[[5.0, 5.0]], [[2.0, 2.0]]], [[240.0], [230.0]], [1, 1])
    >>> one = Targets([[[5.0, 5.0]], [[2.0, 2.0]]], [[240.0], [230.0]], [1, 0])
    >>> count_accuracy(one, two)
    0.5
    """
    _check_pair(estimate, truth, "count_accuracy")
    return float(np.mean(estimate.count == truth.count)) if len(truth) else math.nan


class Localisation(NamedTuple):
    """Errors over matched pairs, estimate minus truth; nan without any pair."""

    rmse: float  # px, of the distance: sqrt(mean(dx^2 + dy^2))
    bias_x: float  # px
    bias_y: float  # px
    median: float  # px, of the distance
    intensity_bias: float  # grey levels
    intensity_rmse: float  # grey levels
    recall: float  # matched pairs per true target; nan without targets
    precision: float  # matched pairs per detection; nan without detections
    pairs: int


def localisation(estimate: Targets, truth: Targets, cap: float = 0.5) -> Localisation:
    r"""Position and intensity errors over optimally matched pairs (book chapter "Keeping score"; not in the paper).

    .. math:: \mathrm{RMSE} = \sqrt{\tfrac1P \textstyle\sum_p \lVert \hat{\mathbf x}_p - \mathbf x_p \rVert^2}

    Unlike CSO-mAP's, this matching sees no scores: see :func:`match_pairs`.

    Parameters
    ----------
    estimate, truth : Targets
        Detections and true targets of the same frames.
    cap : float
        Largest distance of a pair [px]. The default is about the smallest separation of two targets; a smaller cap flatters RMSE and lowers recall.

    >>> truth = Targets([[[5.0, 5.0], [5.5, 5.0]]], [[240.0, 230.0]], [2])
    >>> estimate = Targets([[[5.5, 5.1], [9.0, 9.0]]], [[233.0, 240.0]], [2])
    >>> errors = localisation(estimate, truth)
    >>> round(errors.rmse, 9), errors.intensity_bias, errors.recall, errors.precision
    (0.1, 3.0, 0.5, 0.5)
    """
    frame, detection, target = match_pairs(estimate, truth, cap)
    recall, precision = _ratio(len(frame), truth.count.sum()), _ratio(len(frame), estimate.count.sum())
    if not len(frame):
        return Localisation(*[math.nan] * 6, recall, precision, 0)
    error = estimate.xy[frame, detection] - truth.xy[frame, target]  # (P, 2) px
    distance = np.hypot(*error.T)
    excess = estimate.intensity[frame, detection] - truth.intensity[frame, target]
    values = (np.sqrt(np.mean(distance**2)), *error.mean(axis=0), np.median(distance), excess.mean(), np.sqrt(np.mean(excess**2)))
    return Localisation(*map(float, values), recall, precision, len(frame))


def match_pairs(estimate: Targets, truth: Targets, cap: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair detections with targets, one to one and no farther apart than ``cap`` [px]: frame, detection and target index of each pair, (P,) each.

    The Hungarian method: as many pairs as possible, and among those choices the smallest sum of squared distances.

    >>> truth = Targets([[[5.0, 5.0], [5.4, 5.0]]], [[240.0, 230.0]], [2])
    >>> estimate = Targets([[[5.25, 5.0], [5.7, 5.0]]], [[240.0, 230.0]], [2])
    >>> [index.tolist() for index in match_pairs(estimate, truth)]
    [[0, 0], [0, 1], [0, 1]]
    """
    from scipy.optimize import linear_sum_assignment  # here, to keep `import csist` quick

    _check_pair(estimate, truth, "localisation")
    if not (math.isfinite(cap) and cap > 0):
        raise ValueError(f"localisation: cap must be a distance > 0 in pixels; got {cap!r}")
    largest = (cap + DISTANCE_TOLERANCE) ** 2
    pairs = []
    for frame in np.flatnonzero((estimate.count > 0) & (truth.count > 0)):
        m, k = estimate.count[frame], truth.count[frame]
        squared = ((estimate.xy[frame, :m, None] - truth.xy[frame, None, :k]) ** 2).sum(axis=-1)  # (m, k)
        allowed = squared <= largest
        # A forbidden pair costs more than all allowed ones together, so the number of pairs comes first.
        detection, target = linear_sum_assignment(np.where(allowed, squared, (min(m, k) + 1) * largest))
        pairs += [(frame, d, t) for d, t in zip(detection, target) if allowed[d, t]]
    return tuple(np.array(pairs, dtype=np.int64).reshape(-1, 3).T)


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else math.nan


class FractionalPositions(NamedTuple):
    """Where within the pixel the positions lie. Made by :func:`fractional_positions`."""

    edges: np.ndarray  # (bins + 1,) px from the pixel's centre
    histogram: np.ndarray  # (2, bins) fraction of all positions, for x and y
    uniform_distance: np.ndarray  # (2,) Kolmogorov-Smirnov distance to the uniform law
    truth_distance: np.ndarray | None  # (2,) the same to the true targets' positions, if they were given


def fractional_positions(estimate: Targets, bins: int = 31, truth: Targets | None = None) -> FractionalPositions:
    r"""Histogram of positions within the pixel: peaks are pixel locking (book chapter "Keeping score"; not in the paper).

    .. math:: u = x - \lfloor x + \tfrac12 \rfloor \in [-\tfrac12, \tfrac12), \qquad D = \sup_u |F(u) - F_0(u)|

    Positions that sit equally often on each of c grid points a pixel have D = 1 / 2c against the uniform law. The true targets of crowded frames are
    not uniform themselves (the minimum distance drives them outwards), hence the second distance.

    Parameters
    ----------
    estimate : Targets
        Positions to test.
    bins : int
        Histogram cells across a pixel. The default, a prime, keeps the grid points of c = 3, 5, 7 off the cells' edges, where rounding would split them.
    truth : Targets, optional
        True targets to compare with, of the same frames or of others.

    >>> snapped = Targets([[[4 + 2 / 3, 5.0], [5.0, 5 + 1 / 3], [5 + 1 / 3, 4 + 2 / 3]]], [[240.0] * 3], [3])
    >>> fractional_positions(snapped, bins=3).uniform_distance.round(4).tolist()
    [0.1667, 0.1667]
    """
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"fractional_positions: bins must be a whole number >= 1; got {bins!r}")
    edges, parts = np.linspace(-0.5, 0.5, bins + 1), _fractional_part(estimate)
    histogram = np.array([np.histogram(part, edges)[0] / max(len(part), 1) for part in parts])
    uniform = np.array([_distance_to_uniform(part + 0.5) for part in parts])
    others = None if truth is None else np.array([_distance_of_samples(*pair) for pair in zip(parts, _fractional_part(truth))])
    return FractionalPositions(edges, histogram, uniform, others)


def _fractional_part(targets: Targets) -> np.ndarray:
    """Offsets from the pixel's centre, (2, number of targets)."""
    xy = targets.xy[targets.mask]
    return (xy - np.floor(xy + 0.5)).T


def _distance_to_uniform(sample: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of a sample to the uniform law on 0 .. 1."""
    n, ordered = len(sample), np.sort(sample)
    if n == 0:
        return math.nan
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


def _distance_of_samples(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    if not (len(first) and len(second)):
        return math.nan
    everywhere = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(sample), everywhere, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


# ---------------------------------------------------------------------------------------------------------------------------------------------
# PSNR and SSIM, as the paper has them
# ---------------------------------------------------------------------------------------------------------------------------------------------


class PsnrSsim(NamedTuple):
    """Means over frames of the two image scores."""

    psnr: float  # dB
    ssim: float


def psnr_ssim(images, truth_images) -> PsnrSsim:
    r"""PSNR and SSIM of sub-pixel images as the paper computes them (section 4.2): 8 bits, data range 255, averaged over frames.

    .. math::
        \mathrm{PSNR} = 10 \log_{10} \frac{255^2}{\mathrm{MSE}}, \qquad
        \mathrm{SSIM} = \frac{(2\mu_a\mu_b + C_1)(2 v_{ab} + C_2)}{(\mu_a^2 + \mu_b^2 + C_1)(v_a + v_b + C_2)}

    Both images are clipped to 0 .. 255 and *truncated* to 8 bits. A frame without any error counts as 100 dB. SSIM takes 7 x 7 windows of equal weight,
    unbiased (co)variances, ``C = (0.01 * 255)^2, (0.03 * 255)^2``, and averages over the windows that lie inside the image.

    They say little here: an image of zeros scores 26.9 dB and 0.938 on CSIST-100K at c = 3, because nearly all of the truth is zero as well.

    Parameters
    ----------
    images, truth_images : array (n, rows, columns)
        Predicted and true sub-pixel images [grey levels]; two-dimensional ones are taken as one frame.

    Raises
    ------
    ValueError
        If shapes differ, a side is shorter than the window's 7 px, or a value is nan.

    >>> truth = np.zeros((1, 33, 33))
    >>> truth[0, 16, 16] = 240
    >>> psnr_ssim(truth, truth)
    PsnrSsim(psnr=100.0, ssim=1.0)
    """
    images, truth_images = np.asarray(images), np.asarray(truth_images)
    if images.shape != truth_images.shape or images.ndim not in (2, 3) or min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"psnr_ssim: both stacks must have the same shape (n, rows, columns), each side at least {SSIM_WINDOW} px; "
            f"got {images.shape} and {truth_images.shape}"
        )
    images, truth_images = (stack.reshape(-1, *stack.shape[-2:]) for stack in (images, truth_images))
    if not len(images):
        return PsnrSsim(math.nan, math.nan)
    blocks = [slice(start, start + IMAGE_BLOCK) for start in range(0, len(images), IMAGE_BLOCK)]
    pairs = [(_eight_bits(images[block]), _eight_bits(truth_images[block])) for block in blocks]
    psnr, ssim = (np.concatenate([score(*pair) for pair in pairs]) for score in (psnr_of_frames, ssim_of_frames))
    return PsnrSsim(float(psnr.mean()), float(ssim.mean()))


def _eight_bits(images: np.ndarray) -> np.ndarray:
    if np.isnan(images).any():
        raise ValueError("psnr_ssim: an image holds nan, which has no 8-bit value; check the method that made it")
    return np.clip(images, 0, 255).astype(np.uint8)


def psnr_of_frames(images: np.ndarray, truth_images: np.ndarray) -> np.ndarray:
    """PSNR [dB] of each frame of two uint8 stacks (n, rows, columns), 100 where they are equal."""
    mse = np.mean((images.astype(np.float64) - truth_images) ** 2, axis=(1, 2))
    return np.where(mse > 0, 10 * np.log10(255.0**2 / np.where(mse > 0, mse, 1.0)), PERFECT_PSNR)


def ssim_of_frames(images: np.ndarray, truth_images: np.ndarray) -> np.ndarray:
    """SSIM of each frame of two uint8 stacks (n, rows, columns); the formula is in :func:`psnr_ssim`."""
    from scipy.ndimage import uniform_filter  # here, to keep `import csist` quick

    def window_mean(stack):
        return uniform_filter(stack, size=(1, SSIM_WINDOW, SSIM_WINDOW))[:, inside, inside]

    margin = SSIM_WINDOW // 2
    inside = slice(margin, -margin)  # windows that reach beyond the image are left out, so the filter's boundary rule plays no part
    a, b = images.astype(np.float64), truth_images.astype(np.float64)
    mean_a, mean_b = window_mean(a), window_mean(b)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    spread = unbiased * (window_mean(a * a) + window_mean(b * b) - mean_a**2 - mean_b**2)  # v_a + v_b
    shared = unbiased * (window_mean(a * b) - mean_a * mean_b)  # v_ab
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * shared + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    return ssim.mean(axis=(1, 2))


# ---------------------------------------------------------------------------------------------------------------------------------------------
# Scores of parts, and the report
# ---------------------------------------------------------------------------------------------------------------------------------------------


class PartScore(NamedTuple):
    """Scores of some of the frames."""

    frames: int
    targets: int
    detections: int
    cso_map: float
    ap: tuple[float, ...]
    count_accuracy: float
    localisation: Localisation


def score_frames(estimate: Targets, truth: Targets, selection=None, *, thresholds=DISTANCE_THRESHOLDS, cap: float = 0.5) -> PartScore:
    """CSO-mAP, count accuracy and localisation over selected frames.

    Parameters
    ----------
    estimate, truth : Targets
        Detections and true targets of the same frames.
    selection : boolean array (n,), optional
        Frames to use; all by default.
    thresholds, cap
        As in :func:`cso_map` and :func:`localisation`.

    >>> truth = Targets([[[5.0, 5.0]], [[0.0, 2.0]]], [[240.0], [230.0]], [1, 1])
    >>> score_frames(truth, truth, is_border(truth)).frames
    1
    """
    _check_pair(estimate, truth, "score_frames")
    if selection is not None:
        selection = np.asarray(selection)
        if selection.dtype != bool or selection.shape != (len(truth),):
            raise ValueError(f"score_frames: selection must be a boolean array of shape ({len(truth)},); got {selection.dtype} {selection.shape}")
        estimate, truth = estimate[selection], truth[selection]
    result = cso_map(estimate, truth, thresholds)
    return PartScore(
        frames=len(truth),
        targets=result.n_targets,
        detections=result.n_detections,
        cso_map=result.map,
        ap=tuple(result.ap.tolist()),
        count_accuracy=count_accuracy(estimate, truth),
        localisation=localisation(estimate, truth, cap),
    )


def by_count(estimate: Targets, truth: Targets, *, thresholds=DISTANCE_THRESHOLDS, cap: float = 0.5) -> dict[int, PartScore]:
    """Scores of the frames with one, two, ... true targets, by that number; arguments as in :func:`score_frames`.

    Each part is ranked by itself, so the parts' scores need not average to the score of the whole.

    >>> truth = Targets([[[5.0, 5.0], [5.5, 5.5]], [[2.0, 2.0], [0.0, 0.0]]], [[240.0, 230.0]] * 2, [2, 1])
    >>> {number: part.cso_map for number, part in by_count(truth, truth).items()}
    {1: 1.0, 2: 1.0}
    """
    _check_pair(estimate, truth, "by_count")
    return {int(number): score_frames(estimate, truth, truth.count == number, thresholds=thresholds, cap=cap) for number in np.unique(truth.count)}


def is_border(truth: Targets, shape=(11, 11)) -> np.ndarray:
    """True for frames whose cluster's pixel touches the frame's edge, where part of the light is lost, (n,); False without targets.

    Of frames with several clusters it says nothing of use, for the cluster's pixel is then that of the mean of all targets.

    Parameters
    ----------
    truth : Targets
        True targets, one cluster a frame.
    shape : (int, int)
        Rows and columns of the frames [px].

    Raises
    ------
    ValueError
        For a target off a frame of this shape.

    >>> is_border(Targets([[[5.0, 5.0]], [[0.2, 2.0]]], [[240.0], [230.0]], [1, 1])).tolist()
    [False, True]
    """
    rows, columns = check_shape(shape)
    frame, slot = np.nonzero(truth.mask)
    off = ~lies_on_frame(truth.xy[frame, slot], (rows, columns), SHIFT_MARGIN)
    if off.any():
        raise ValueError(
            f"is_border: frame {frame[off][0]} holds a target off {rows} x {columns} px, at {truth.xy[frame, slot][off][0].tolist()}; "
            "pass the frames' own size as shape=(rows, columns)"
        )
    cell = truth.cell
    return (truth.count > 0) & ((cell <= 0) | (cell >= (rows - 1, columns - 1))).any(axis=1)


def score_report(
    estimate: Targets,
    truth: Targets,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    thresholds=DISTANCE_THRESHOLDS,
    cap: float = 0.5,
    shape=(11, 11),
) -> dict:
    """Everything that a result file stores about one set of answers, as plain JSON values (fractions, px, grey levels; None where undefined).

    Parameters
    ----------
    estimate, truth : Targets
        Detections and true targets of the same frames.
    resamples, level, seed
        Of :func:`bootstrap_interval`.
    thresholds, cap
        Of :func:`cso_map` and :func:`localisation` [px].
    shape : (int, int)
        Frame size [px], which tells border cells from interior ones. With several clusters a frame, ``interior`` and ``border`` mean nothing.

    Returns
    -------
    dict
        The fields of :class:`PartScore` for all frames, then ``thresholds``, ``cap``, ``interval`` [low, high], ``standard_error``, ``level``,
        ``resamples``, ``seed``, ``pixel_locking`` (uniform_distance and truth_distance of x and y), ``by_count`` {"1": PartScore, ...}, ``interior`` and
        ``border`` (PartScore).

    Raises
    ------
    ValueError
        As :func:`cso_map`, and for a true target off a frame of this shape.

    >>> truth = Targets([[[5.0, 5.0]]] * 3, [[240.0]] * 3, [1] * 3)
    >>> report = score_report(truth, truth, resamples=5)
    >>> report["cso_map"], report["interval"], report["border"]["cso_map"]
    (1.0, [1.0, 1.0], None)
    """
    options = {"thresholds": thresholds, "cap": cap}
    whole = score_frames(estimate, truth, **options)
    interval = bootstrap_interval(estimate, truth, resamples, level, seed, thresholds)
    locking = fractional_positions(estimate, truth=truth)
    border = is_border(truth, shape)
    return _plain(
        {
            **whole._asdict(),
            "thresholds": thresholds,
            "cap": cap,
            "interval": [interval.low, interval.high],
            "standard_error": interval.standard_error,
            "level": level,
            "resamples": resamples,
            "seed": seed,
            "pixel_locking": {"uniform_distance": locking.uniform_distance, "truth_distance": locking.truth_distance},
            "by_count": by_count(estimate, truth, **options),
            "interior": score_frames(estimate, truth, ~border & (truth.count > 0), **options),
            "border": score_frames(estimate, truth, border, **options),
        }
    )


def _plain(value):
    """The same value in JSON's own types; nan and infinity, which JSON lacks, become None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------------------------------


def _check_pair(estimate: Targets, truth: Targets, caller: str) -> None:
    for name, value in (("estimate", estimate), ("truth", truth)):
        if not isinstance(value, Targets):
            raise TypeError(f"{caller}: {name} must be csist.Targets; got {type(value).__name__}. For plain arrays use csist.metrics.cso_map_from_lists")
    if len(estimate) != len(truth):
        raise ValueError(f"{caller}: estimate has {len(estimate)} frames, truth has {len(truth)}; give both the same frames (an empty frame has count 0)")


def _check_thresholds(thresholds) -> np.ndarray:
    values = np.atleast_1d(np.array(thresholds, dtype=np.float64))
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"cso_map: thresholds must be distances >= 0 in pixels, at least one; got {thresholds!r}. The paper's are {DISTANCE_THRESHOLDS}")
    return values
