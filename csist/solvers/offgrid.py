r"""Unmixing without a grid: the posterior of everything a frame can hold (book chapter "Beyond the grid").

The sensor rounds, so a frame says of every pixel only that the model lies in an interval,

.. math:: \Big|\sum_k g_k\, p_i(x_k)\, p_j(y_k) - z_{ij}\Big| \le \tfrac12, \qquad \text{or } m_{ij} \ge z_{ij} - \tfrac12 \text{ where the sensor clipped.}

All answers inside this box that keep the prior (how many targets, one pixel, a smallest distance, a range of intensities) are as likely as the prior
says; nothing needs training. The work, frame by frame:

1. Clusters are found by their light (``finding.py``); a cluster's pixel is the rounded centre of its light. Only a window about it matters: 5 x 5 pixels
   at sigma = 0.5 px. Every cluster is then solved alone.
2. The visible light bounds the number of targets. For every number, Levenberg-Marquardt runs from random valid configurations; numbers that a few
   pilots cannot make fit, and numbers whose starts all end in known minima, get no more of them.
3. Its minima are modes. A single narrow one is the answer; its covariance tells the errors (two frames in five).
4. Otherwise slice sampling explores the box around every mode; volumes weigh modes and numbers against each other. Frames cut by the border get more
   samples, frames whose only mode is narrow fewer.
5. The tier "accurate" repeats doubtful frames at the border by sequential Monte Carlo from the prior down to the box, which hardly a mode escapes.
6. A target's position is the (truncated) geometric median of its samples, its deviation their spread, its score the share of samples that have a target
   within a threshold of it, averaged over CSO-mAP's five: a calibrated probability of a hit.

With read noise, or where the box is empty because the model is not quite true, a Gaussian likelihood takes the box's place.
The kernels are in ``_offgrid_kernels.py`` and need numba; ``csist/widgets/offgrid_solver.js`` repeats them for the book's page, so a change here is a
change there, and ``tests/test_unmixing_explorer.py`` compares the two.
"""
from __future__ import annotations

import math
import os
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from csist.imaging import FocalPlane, check_frames, check_plane, check_whole, is_real, pixel_profile, pixel_profile_derivative
from csist.metrics import DISTANCE_THRESHOLDS
from csist.scenes import Targets, random_targets
from csist.solvers.finding import BLOCK, brightest_block, check_good, find_clusters, patched

MAX_TARGETS = 8  # of one cluster
LARGEST_WINDOW = 25  # px
MARGIN = 0.25  # px by which tables reach beyond the region, for steps of the optimiser
NODES_PER_SIGMA = 500  # of the profile table; linear interpolation is then good to 3e-7
ROUNDING_WIDTH = 0.3  # grey levels; standard deviation by which least squares stands for rounding (1 / sqrt(12) = 0.289)
UNROUNDED_WIDTH = 0.05  # grey levels; the same for frames without rounding or noise, whose likelihood is a point
FAINT = 0.2  # of the dimmest target's light: less than that is no target, for a corner pixel keeps a quarter
STRAY = 0.01  # of the brightest cluster's light: less than that may be what its window has left over
SIGNIFICANT = 8.0  # of the read noise: no noise alone lights a block of 3 x 3 pixels so
UNKNOWN = 0.16  # px, standard deviation of a position that the light says nothing of; the kernels' RIDGE ** -0.5
DARKEST = 0.1  # of a frame's pixels; the brightest of them is background, or next to nothing
LEAST = 1e-6  # smallest probability of a hit or a miss that is told apart from none
ONE_SIGMA = math.erf(math.sqrt(0.5))  # 68 % of Gaussian errors are within one standard deviation
TOGETHER = 32  # frames that a thread takes at a time
POOL = 256  # valid configurations from which starts and prior volumes are taken

# How much work a tier does; the fields are explained at csist.solvers._offgrid_kernels.Effort.
TIERS = {
    "fast": {
        "starts": 8, "pilot": 3, "agreed": 5, "updates": 250, "cut": 1.5, "sharp": 0.05, "burn_in": 30, "kept": 100, "modes": 6,
        "particles": 0, "survivors": 0.5, "moves": 1.0, "doubt": 0.0,
    },
    "standard": {
        "starts": 12, "pilot": 4, "agreed": 5, "updates": 1600, "cut": 1.5, "sharp": 0.05, "burn_in": 120, "kept": 250, "modes": 10,
        "particles": 0, "survivors": 0.5, "moves": 1.0, "doubt": 0.0,
    },
    "accurate": {
        "starts": 20, "pilot": 6, "agreed": 8, "updates": 1600, "cut": 1.5, "sharp": 0.05, "burn_in": 120, "kept": 250, "modes": 12,
        "particles": 1200, "survivors": 0.5, "moves": 1.0, "doubt": 0.98,
    },
}

# Claimed and real hit probabilities of each tier before they are set right, as `score_offgrid.py --calibrate` measures them: on 8,000 validation frames,
# of the accurate tier on 2,000. One curve for each kind of clusters (kind_of).
CALIBRATION = {
    "fast": (
        ((0.99866,), (0.99999,)),
        ((0.96079, 0.99232, 0.99922, 0.99999), (0.8988, 0.95449, 0.98105, 0.99345)),
        ((0.93247, 0.98691, 0.99999), (0.83038, 0.93429, 0.98103)),
        ((0.78659, 0.92989, 0.98332, 0.99999), (0.59231, 0.8118, 0.91945, 0.99929)),
        ((0.64295, 0.80135, 0.8812, 0.92932, 0.97614, 0.99736, 0.99999), (0.42353, 0.57955, 0.65993, 0.74906, 0.86059, 0.91835, 0.9875)),
        ((0.63448, 0.82144, 0.90821, 0.95343, 0.98569, 0.99893, 0.99999), (0.43119, 0.55283, 0.65889, 0.73017, 0.81548, 0.87608, 0.97529)),
    ),
    "standard": (
        ((0.9984,), (0.99999,)),
        ((0.93157, 0.98071, 0.99503, 0.99904, 0.99999), (0.9, 0.94839, 0.97955, 0.99055, 0.99828)),
        ((0.91723, 0.97201, 0.98836, 0.99699, 0.99946, 0.99999), (0.82821, 0.90536, 0.94252, 0.97482, 0.99149, 0.99431)),
        ((0.67319, 0.87983, 0.94995, 0.99181, 0.99999), (0.57822, 0.80159, 0.90974, 0.97719, 0.99966)),
        ((0.60597, 0.7616, 0.83962, 0.89017, 0.94861, 0.99064, 0.99999), (0.42479, 0.61026, 0.69214, 0.76744, 0.84844, 0.96233, 0.99806)),
        ((0.58383, 0.75153, 0.8523, 0.90876, 0.95683, 0.99168, 0.99999), (0.42014, 0.5693, 0.65565, 0.7122, 0.82466, 0.94701, 0.99243)),
    ),
    "accurate": (
        ((0.99838,), (0.99999,)),
        ((0.90267, 0.97375, 0.99436, 0.99999), (0.87692, 0.93636, 0.98992, 0.99859)),
        ((0.91832, 0.96804, 0.98702, 0.99697, 0.99999), (0.84737, 0.88533, 0.95085, 0.97765, 0.99407)),
        ((0.6391, 0.81837, 0.9027, 0.98336, 0.99999), (0.608, 0.81633, 0.89762, 0.96407, 0.99983)),
        ((0.47143, 0.60951, 0.71252, 0.87626, 0.97792, 0.99999), (0.44848, 0.60909, 0.79333, 0.88504, 0.97994, 0.99999)),
        ((0.49908, 0.60983, 0.71392, 0.80219, 0.88838, 0.97702, 0.99999), (0.45, 0.51034, 0.67368, 0.74206, 0.82247, 0.96193, 0.99684)),
    ),
}


# Claimed and real widths of the errors [px] in the same way, from the same frames: predicted standard deviations, and half the interval about the answer
# that holds 68 % of the errors.
DEVIATIONS = {
    "fast": (
        (0.00281, 0.00539, 0.00729, 0.00913, 0.01131, 0.01467, 0.0206, 0.04306),
        (0.00323, 0.00701, 0.01019, 0.01286, 0.01697, 0.02411, 0.03687, 0.07599),
    ),
    "standard": (
        (0.00295, 0.00592, 0.00818, 0.0104, 0.01322, 0.01757, 0.02526, 0.05584),
        (0.00311, 0.00662, 0.00921, 0.01217, 0.01644, 0.02328, 0.03591, 0.08025),
    ),
    "accurate": (
        (0.0029, 0.00564, 0.00788, 0.01017, 0.01316, 0.01806, 0.02878, 0.07691),
        (0.0031, 0.00631, 0.00869, 0.01111, 0.01579, 0.02121, 0.0339, 0.07673),
    ),
}


@dataclass(frozen=True)
class Prior:
    """What is known before a frame is seen; the defaults are CSIST-100K's (paper, section 4.1).

    Parameters
    ----------
    counts : (int, int) or None
        Smallest and largest number of targets of a cluster, within 1 .. 8; None allows all of them that fit.
    cluster : bool
        All targets of a cluster lie in one pixel. Without it the whole frame, of at most 25 px a side, is one cluster whose targets may lie anywhere on it;
        that takes several times as long.
    min_distance : float or None
        Smallest distance of two targets [px]; None for no such rule.
    intensity : (float, float) or None
        Range of a target's total flux [grey levels]; None for anything up to twice the cluster's light.

    Raises
    ------
    ValueError
        For values out of range; for rules that contradict each other when the prior is used.

    >>> Prior(counts=(2, 2)).min_distance
    0.494
    """

    counts: tuple[int, int] | None = (1, 5)
    cluster: bool = True
    min_distance: float | None = 0.494
    intensity: tuple[float, float] | None = (220.0, 250.0)

    def __post_init__(self):
        if not isinstance(self.cluster, (bool, np.bool_)):
            raise ValueError(f"Prior: cluster must be True (all targets in one pixel) or False; got {self.cluster!r}")
        if self.counts is not None:
            wanted = f"two whole numbers (smallest, largest) with 1 <= smallest <= largest <= {MAX_TARGETS}"
            low, high = self._pair("counts", wanted)
            if low != int(low) or high != int(high) or not 1 <= low <= high <= MAX_TARGETS:
                raise ValueError(f"Prior: counts must be {wanted}, or None; got {self.counts!r}")
            object.__setattr__(self, "counts", (int(low), int(high)))
        if self.min_distance is not None and not (is_real(self.min_distance) and 0 <= self.min_distance < math.sqrt(2)):
            raise ValueError(f"Prior: min_distance must be from 0 to sqrt(2) px (a pixel's diagonal), or None; got {self.min_distance!r}")
        if self.intensity is not None:
            low, high = self._pair("intensity", "two numbers (smallest, largest)")
            if not 0 <= low < high < math.inf:
                raise ValueError(f"Prior: intensity must be (smallest, largest) with 0 <= smallest < largest [grey levels], or None; got {self.intensity!r}")
            object.__setattr__(self, "intensity", (float(low), float(high)))

    def _pair(self, name: str, wanted: str):
        """A field's two numbers."""
        value = getattr(self, name)
        if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(is_real(v) for v in value)):
            raise ValueError(f"Prior: {name} must be {wanted}, or None; got {value!r}")
        return value


def unmix_offgrid(
    frames,
    plane: FocalPlane | None = None,
    *,
    tier: str = "standard",
    prior: Prior | None = None,
    starts: Sequence[Targets] | None = None,
    good=None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> Targets:
    """Positions, intensities, errors and hit probabilities from frames and the imaging model alone (book chapter "Beyond the grid"; not in the paper).

    A frame may have any size and hold any number of clusters. Every block of 3 x 3 pixels with more than a fifth of the dimmest target's light (of the
    brightest block's, if intensities are unknown) begins one, the brightest first, and takes the light of the window about it; blocks with less than 8
    times the read noise, or less than a hundredth of the brightest block's light, do not count. Clusters whose windows do not overlap, at sigma = 0.5 px
    those with pixels at least 5 px apart in row or column, are unmixed as if alone. At 4 px, the pixels that their windows share tell neither anything;
    nearer clusters are taken for one, which no single cluster explains. A frame that no scene of the prior explains (a target darker or brighter than the
    prior's range, a second cluster too near) gets the nearest explanation, and scores and errors that claim too much; give the prior that holds. A warning
    tells of clusters with more light than the prior allows, and of a background, which is to be subtracted first
    (:func:`csist.instrument.subtract_background`).

    An answer depends on the cluster's window and the seed, not on other frames, their order or the number of threads. The first call on a machine,
    and the first with a window of another size (a wider PSF), compiles for about a minute; the result is kept beside the module.

    Parameters
    ----------
    frames : array (n, rows, columns) or (rows, columns)
        Grey levels.
    plane : FocalPlane, optional
        Optics and sensor that made the frames; by default the paper's.
    tier : {"fast", "standard", "accurate"}
        How much work to do.
    prior : Prior, optional
        What is known of the scenes; by default CSIST-100K's rules.
    starts : sequence of Targets, optional
        Answers to begin with instead of random configurations, for example the likeliest ones of a network, each with an entry for every frame. The
        number of targets is then one of theirs. It saves most of the search for modes, and finds none beyond.
    good : array (rows, columns) of bool, optional
        False for dead and hot pixels, whose levels tell nothing. Clusters are found with the mean of their neighbours in their place, which may be a pixel
        off if it is a cluster's brightest.
    seed : int
        Of the sampler.
    threads : int, optional
        Frames treated at the same time; by default the number of processors.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Targets
        Brightest first, with ``sigma``, posterior standard deviations of x and y [px], and ``score``, the probability of a hit averaged over
        CSO-mAP's five thresholds; its claims are set right by a curve measured on validation frames. One detection for each estimated target; a frame
        without light has none.

    Raises
    ------
    ValueError
        For frames that the plane cannot have made (wrong shape, nan, negative or above full scale), an unknown tier, or rules that contradict each other.
    TypeError
        For a plane, a prior or starts of another kind.
    ImportError
        Without numba.

    >>> plane = FocalPlane()
    >>> frame = plane.render(Targets([[[5.1, 4.8]]], [[240.0]], [1]))
    >>> unmix_offgrid(frame, plane, tier="fast", threads=1).xy.round(2).tolist()  # doctest: +SKIP
    [[[5.1, 4.8]]]
    """
    plane, prior = check_plane(plane), prior or Prior()
    if tier not in TIERS:
        raise ValueError(f"unmix_offgrid: tier must be one of {', '.join(TIERS)}; got {tier!r}")
    _check_whole("unmix_offgrid", seed=(seed, 0), threads=(1 if threads is None else threads, 1))
    frames = _check_levels(frames, plane, "unmix_offgrid")
    problem = _Problem(plane, prior, _load_kernels())
    clusters = _Clusters(frames, plane, prior, problem.side, good)
    _warn_of_light(frames, clusters, problem, "unmix_offgrid")
    seeds = clusters.hashes() ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    answers = _Answers(len(clusters.frame))
    given = _given(starts or (), clusters, len(frames))
    _in_threads(problem.solver(tier), [*clusters.evidence(), problem.bright(clusters), seeds, *given, *answers.arrays], threads, progress)
    if CALIBRATION[tier]:
        kinds = kind_of(answers.count, is_cut(clusters.cell, plane.shape, problem.side) | clusters.broken)
        for kind, curve in enumerate(CALIBRATION[tier]):
            answers.score[kinds == kind] = calibrated(answers.score[kinds == kind], curve)
        answers.deviation[:] = widened(answers.deviation, DEVIATIONS[tier])
    return _as_targets(answers, clusters, len(frames))


def polish(
    targets: Targets,
    frames,
    plane: FocalPlane | None = None,
    *,
    prior: Prior | None = None,
    iterations: int = 12,
    good=None,
    threads: int | None = None,
) -> Targets:
    r"""Improve given answers by least squares with the imaging model, their number kept (book chapter "Beyond the grid"; not in the paper).

    .. math:: \hat\theta = \arg\min_\theta \sum_{ij} \frac{(m_{ij}(\theta) - z_{ij})^2}{s^2} + \text{prior}, \qquad
        \Sigma = (J^\top J)^{-1}, \qquad \text{score} = \frac15 \sum_t \big(1 - e^{-t^2 / (\Sigma_{xx} + \Sigma_{yy})}\big)

    by a few Levenberg-Marquardt steps from every answer, thousands of frames a second. It finds the minimum next to where it starts, which need not be
    the best one; errors and scores are those of the Gaussian at that minimum, so they know nothing of other minima. A frame that the answer does not
    explain gets larger errors and lower scores.

    Parameters
    ----------
    targets : Targets
        Answers to start from, at most 8 targets a cluster; moved into the prior's region first.
    frames : array (n, rows, columns) or (rows, columns)
        Grey levels.
    plane : FocalPlane, optional
        Optics and sensor that made the frames; by default the paper's.
    prior : Prior, optional
        What is known of the scenes, besides ``counts``, which the answers decide; by default CSIST-100K's rules.
    iterations : int
        Levenberg-Marquardt steps at most; 0 only adds errors and scores.
    good : array (rows, columns) of bool, optional
        False for dead and hot pixels, whose levels tell nothing.
    threads : int, optional
        Frames treated at the same time; by default the number of processors.

    Returns
    -------
    Targets
        In the order given, with ``sigma`` [px] and ``score``. A target on a dark frame stays where it is, with score 0.

    Raises
    ------
    ValueError
        For frames that the plane cannot have made, or targets of another number of frames.
    ImportError
        Without numba.

    >>> plane = FocalPlane()
    >>> frame = plane.render(Targets([[[5.1, 4.8]]], [[240.0]], [1]))
    >>> polish(Targets([[[5.3, 5.0]]], [[230.0]], [1]), frame, plane).xy.round(2).tolist()  # doctest: +SKIP
    [[[5.1, 4.8]]]
    """
    plane, prior = check_plane(plane), prior or Prior()
    _check_whole("polish", iterations=(iterations, 0), threads=(1 if threads is None else threads, 1))
    frames = _check_levels(frames, plane, "polish")
    problem = _Problem(plane, prior, _load_kernels())
    clusters = _Clusters(frames, plane, prior, problem.side, good)
    _warn_of_light(frames, clusters, problem, "polish")
    frame, slot, cluster, place = _places(targets, clusters, len(frames), "polish")
    answers = _Answers(len(clusters.frame))
    answers.count[:], answers.theta[:] = _thetas(targets, clusters, (frame, slot, cluster, place))
    _in_threads(problem.polisher(iterations), [*clusters.evidence(), problem.bright(clusters), *answers.arrays], threads, progress=False)
    result = replace(targets, sigma=np.full(targets.xy.shape, UNKNOWN), score=np.zeros(targets.intensity.shape))
    result.xy[frame, slot] = answers.theta[cluster, place, :2] + clusters.cell[cluster]
    result.intensity[frame, slot] = answers.theta[cluster, place, 2]
    result.sigma[frame, slot], result.score[frame, slot] = answers.deviation[cluster, place], answers.score[cluster, place]
    return result


def calibrated(score, curve) -> np.ndarray:
    """Map claimed hit probabilities to real ones along a rising curve of knots, linearly between logits; keeps their order.

    Chains too short for their posterior claim too much, by an amount that depends on the tier and on the cluster (``kind_of``). The curves are measured
    on validation frames.

    >>> calibrated([0.9, 0.99], ((0.5, 0.9), (0.4, 0.8))).round(2).tolist()
    [0.8, 0.98]
    """
    claimed, real = (_logit(np.array([LEAST, *part, 1 - LEAST])) for part in curve)
    return 1 / (1 + np.exp(-np.interp(_logit(score), claimed, real)))


def is_cut(cell, shape, side: int) -> np.ndarray:
    """Whether the window of ``side`` pixels about each cluster's pixel (m, 2) reaches beyond the frame, (m,).

    >>> is_cut(np.array([[5, 5], [5, 9]]), (11, 11), 5).tolist()
    [False, True]
    """
    reach = side // 2
    return ((cell < reach) | (cell + reach >= shape)).any(axis=1)


def kind_of(count, cut) -> np.ndarray:
    """Which curve of CALIBRATION sets the claims about clusters right: by number of targets, and whether the frame cuts light off.

    Five targets have more valleys to miss than three, and a border hides what would tell them apart.

    >>> kind_of([1, 3, 4, 5, 5], [False, False, False, False, True]).tolist()
    [0, 0, 1, 2, 5]
    """
    return np.clip(count, 3, 5) - 3 + 3 * np.asarray(cut, dtype=np.int64)


def fit_calibration(score, hit, knots: int = 8) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of :func:`calibrated`'s curve from claimed probabilities (m,) and whether they were hits (m,), 0 .. 1: means of groups in order of claim.

    >>> fit_calibration([0.5] * 10 + [0.9] * 10, [0.3] * 10 + [0.8] * 10, knots=2)  # 6 of the doubtful, then all others
    ((0.5, 0.78571), (0.3, 0.65714))
    """
    surest = 1 - 10 * LEAST
    order = np.argsort(score, kind="stable")
    score, hit = (np.asarray(values, dtype=np.float64)[order] for values in (score, hit))
    # Groups of equal claimed misses rather than of equal size: the surest answers are many and tell little. Claims at the upper end are one group more.
    misses = np.cumsum(1.02 - score)
    groups = np.where(score >= surest, knots, np.minimum((misses / misses[-1] * knots).astype(np.int64), knots - 1))
    _, groups, weight = np.unique(groups, return_inverse=True, return_counts=True)
    means = (np.bincount(groups, values) / weight for values in (score, hit))
    claimed, real = (np.maximum.accumulate(np.clip(mean, 10 * LEAST, surest)) for mean in means)
    rising = np.flatnonzero(np.diff(claimed, prepend=0) * np.diff(real, prepend=0) > 0)
    return tuple(claimed[rising].round(5).tolist()), tuple(real[rising].round(5).tolist())


def widened(sigma, curve) -> np.ndarray:
    """Map claimed standard deviations to real ones along a curve of knots, linearly between logarithms and in proportion beyond the ends.

    >>> widened([0.001, 0.1, 0.4], ((0.01, 0.1), (0.01, 0.2))).round(4).tolist()
    [0.001, 0.2, 0.8]
    """
    claimed, real = np.log(curve)
    logarithm = np.log(np.maximum(sigma, LEAST))
    return np.exp(logarithm + np.interp(logarithm, claimed, real - claimed))


def fit_deviations(sigma, error, knots: int = 8) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of :func:`widened`'s curve from claimed standard deviations (m,) and errors (m,) [px]: in groups of equal size, what holds 68 % of the errors.

    >>> fit_deviations([0.01] * 100, np.linspace(-0.02, 0.02, 100), knots=1)
    ((0.01,), (0.01377,))
    """
    order = np.argsort(sigma, kind="stable")
    claimed, ratio = np.asarray(sigma)[order], np.abs(np.asarray(error) / sigma)[order]
    groups = np.array_split(np.arange(len(order)), knots)
    middle = np.array([np.exp(np.log(claimed[group]).mean()) for group in groups])
    real = middle * [np.quantile(ratio[group], ONE_SIGMA) for group in groups]
    return tuple(middle.round(5).tolist()), tuple(real.round(5).tolist())


def _logit(probability):
    probability = np.clip(probability, LEAST, 1 - LEAST)
    return np.log(probability / (1 - probability))


def _load_kernels():
    """The compiled module, or how to install what it needs."""
    try:
        from csist.solvers import _offgrid_kernels
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        raise ImportError("method 'off-grid' needs numba, which is not installed: pip install numba") from error
    return _offgrid_kernels


def _check_levels(frames, plane: FocalPlane, caller: str) -> np.ndarray:
    """Frames as float64 that this plane can have made."""
    frames = check_frames(frames, plane.shape, plane.full_scale).astype(np.float64)
    may_be_negative = plane.bits is None and plane.read_noise > 0
    negative = (frames < 0).any(axis=(1, 2))
    if negative.any() and not may_be_negative:
        raise ValueError(
            f"{caller}: frame {int(np.argmax(negative))} holds a negative grey level, which this focal plane never reports ({int(negative.sum())} such "
            "frames); clip at 0, or pass the FocalPlane that made the frames"
        )
    return frames


def _warn_of_light(frames: np.ndarray, clusters: _Clusters, problem: _Problem, caller: str) -> None:
    """Warn of a background bright enough to begin clusters, and of clusters that hold more light than the prior allows."""
    dark_somewhere = problem.prior.cluster and math.prod(clusters.plane.shape) >= 4 * problem.side**2  # on smaller frames the light may reach everywhere
    floor = np.quantile(frames, DARKEST, axis=(1, 2), method="lower") if dark_somewhere and len(frames) else np.zeros(len(frames))
    lit, surplus = BLOCK**2 * floor > clusters.least, problem.surplus(clusters)
    if lit.any():
        worst = int(np.argmax(floor))
        message = (
            f"{int(lit.sum())} of {len(frames)} frames have a background (frame {worst}: at least {floor[worst]:.0f} grey levels nearly everywhere) that is "
            "taken for targets; subtract it first, see csist.instrument.subtract_background"
        )
    elif (surplus > 0).any():
        worst = int(np.argmax(surplus))
        message = (
            f"{int((surplus > 0).sum())} of {len(surplus)} clusters hold more light than the prior allows (frame {clusters.frame[worst]}: "
            f"{clusters.light[worst]:.0f} grey levels), so their answers mean little; pass the prior that holds, as "
            "prior=Prior(counts=..., intensity=...), with None for what is not known"
        )
    else:
        return
    warnings.warn(f"{caller}: {message}", stacklevel=3)


def _check_whole(caller: str, **options) -> None:
    """Options that must be whole numbers, each given as (value, least)."""
    for name, (value, least) in options.items():
        check_whole(value, f"{caller}: {name}", least)


def _in_threads(work, arrays: list, threads: int | None, progress: bool) -> None:
    """Call ``work`` on blocks of the arrays' rows, several at a time."""
    blocks, bar = [slice(first, first + TOGETHER) for first in range(0, len(arrays[0]), TOGETHER)], None
    if progress:
        from tqdm.auto import tqdm

        bar = tqdm(total=len(blocks), unit_scale=TOGETHER, unit="frame", disable=None)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for _ in pool.map(lambda block: work(*(part[block] for part in arrays)), blocks):
            if bar is not None:
                bar.update()


def _rank_within(group: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the first, second, third member of each group (m,).

    >>> _rank_within(np.array([3, 0, 3, 3])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(group, kind="stable")
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return rank


class _Answers:
    """What the kernels fill, cluster by cluster; positions are relative to the cluster's pixel."""

    def __init__(self, n: int):
        self.count, self.theta = np.zeros(n, dtype=np.int64), np.zeros((n, MAX_TARGETS, 3))
        self.deviation, self.score = np.zeros((n, MAX_TARGETS, 2)), np.zeros((n, MAX_TARGETS))

    @property
    def arrays(self) -> list[np.ndarray]:
        return [self.count, self.theta.reshape(len(self.count), 3 * MAX_TARGETS), self.deviation, self.score]


def _places(targets: Targets, clusters: _Clusters, frames: int, caller: str) -> tuple[np.ndarray, ...]:
    """Frame, slot, nearest cluster and place among that cluster's own, of all targets on frames with light."""
    if len(targets) != frames:
        raise ValueError(f"{caller}: targets are of {len(targets)} frames, but {frames} frames are given; give one entry per frame (count 0 if empty)")
    frame, slot = np.nonzero(targets.mask)
    cluster = clusters.nearest(frame, targets.xy[frame, slot])
    frame, slot, cluster = (part[cluster >= 0] for part in (frame, slot, cluster))
    place = _rank_within(cluster)
    if place.max(initial=0) >= MAX_TARGETS:
        worst = int(frame[np.argmax(place)])
        raise ValueError(f"{caller}: frame {worst} has more than {MAX_TARGETS} targets at one cluster; drop the faintest, for example by a higher threshold")
    return frame, slot, cluster, place


def _thetas(targets: Targets, clusters: _Clusters, places: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Targets as the kernels take them: numbers (m,) and parameters (m, MAX_TARGETS, 3) of each cluster."""
    frame, slot, cluster, place = places
    theta = np.zeros((len(clusters.frame), MAX_TARGETS, 3))
    theta[cluster, place, :2] = targets.xy[frame, slot] - clusters.cell[cluster]
    theta[cluster, place, 2] = targets.intensity[frame, slot]
    return np.bincount(cluster, minlength=len(theta)), theta


def _given(starts: Sequence[Targets], clusters: _Clusters, frames: int) -> list[np.ndarray]:
    """Answers to begin with as the kernels take them: parameters (m, answers, 3 MAX_TARGETS) and numbers (m, answers)."""
    if isinstance(starts, Targets) or not all(isinstance(targets, Targets) for targets in starts):
        raise TypeError("unmix_offgrid: starts must be a list of Targets, each with an entry for every frame; put a single one into a list")
    theta, number = np.zeros((len(clusters.frame), len(starts), 3 * MAX_TARGETS)), np.zeros((len(clusters.frame), len(starts)), dtype=np.int64)
    for place, targets in enumerate(starts):
        number[:, place], own = _thetas(targets, clusters, _places(targets, clusters, frames, "unmix_offgrid"))
        theta[:, place] = own.reshape(len(own), -1)
    return [theta, number]


def _as_targets(answers: _Answers, clusters: _Clusters, n: int) -> Targets:
    """All clusters' targets gathered by frame, brightest first."""
    cluster, place = np.nonzero(np.arange(MAX_TARGETS) < answers.count[:, None])
    order = np.lexsort((-answers.theta[cluster, place, 2], clusters.frame[cluster]))
    cluster, place = cluster[order], place[order]
    frame, slot = clusters.frame[cluster], _rank_within(clusters.frame[cluster])
    count = np.bincount(frame, minlength=n)
    xy, intensity, sigma, score = (np.full((n, max(1, count.max(initial=0)), *tail), np.nan) for tail in ((2,), (), (2,), ()))
    xy[frame, slot] = answers.theta[cluster, place, :2] + clusters.cell[cluster]
    intensity[frame, slot] = answers.theta[cluster, place, 2]
    sigma[frame, slot], score[frame, slot] = answers.deviation[cluster, place], answers.score[cluster, place]
    return Targets(xy, intensity, count, sigma, score)


# What the kernels need ---------------------------------------------------------------------------------------------------------------------


def window_side(plane: FocalPlane, prior: Prior) -> int:
    """Side of the window that holds all the light [px]: 3.8 sigma beyond the cluster's pixel, where 250 grey levels leave 0.02; or the whole frame.

    The margin below 4 sigma is for a measured width: 0.501 px needs no larger window than 0.5 px.
    """
    side = 2 * max(1, min(math.ceil(3.8 * plane.sigma), max(plane.shape) - 1)) + 1 if prior.cluster else max(plane.shape) // 2 * 2 + 1
    if side > LARGEST_WINDOW:
        cause = f"sigma = {plane.sigma:g} px" if prior.cluster else f"cluster=False on a frame of {plane.shape[0]} x {plane.shape[1]} px"
        raise ValueError(f"unmix_offgrid: {cause} needs a window of {side} px, and the largest is {LARGEST_WINDOW} px; use a narrower PSF or cut the frame")
    return side


def profile_table(sigma: float, side: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes u (m,) [px], and at each node the share of light in each of ``side`` pixels about 0 and its derivative [1/px], (m, side).

    >>> position, value, slope = profile_table(0.5, 5, -0.5, 0.5)
    >>> value[np.argmin(abs(position))].round(4).tolist()
    [0.0013, 0.1573, 0.6827, 0.1573, 0.0013]
    """
    nodes = math.ceil((high - low) / sigma * NODES_PER_SIGMA) + 1
    position = np.linspace(low, high, nodes)
    return position, pixel_profile(position + side // 2, side, sigma), pixel_profile_derivative(position + side // 2, side, sigma)


@lru_cache(maxsize=16)
def valid_configurations(number: int, min_distance: float, size: int = POOL) -> np.ndarray:
    """Random positions (size, number, 2) about a pixel's centre that keep their distance [px]."""
    return random_targets(size, np.random.default_rng(number), count=(number, number), min_distance=min_distance, shape=(1, 1)).xy


@lru_cache(maxsize=16)
def log_valid_share(number: int, min_distance: float) -> float:
    """Log of the share of all sets of positions in a unit square that keep their distance; minus infinity if hardly any can be found.

    Targets are placed one after the other, each uniformly where there is room; the share is the mean of the products of the areas left free
    (Rosenbluth's estimate), here on a lattice of 48 x 48 points.

    >>> round(math.exp(log_valid_share(2, 0.494)), 2)
    0.53
    """
    rng, axis = np.random.default_rng(number), (np.arange(48) + 0.5) / 48
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    share, free = np.ones(1_000), np.ones((1_000, len(points)), dtype=bool)
    for _ in range(number):
        share *= free.mean(axis=1)
        placed = points[np.argmax(free * rng.random(free.shape, dtype=np.float32), axis=1)]
        free &= ((points - placed[:, None]) ** 2).sum(-1) >= min_distance**2
    return math.log(share.mean()) if (share > 0).mean() >= 0.01 else -math.inf


class _Problem:
    """Tables and settings common to all clusters, in the form that the kernels take."""

    def __init__(self, plane: FocalPlane, prior: Prior, kernels):
        if not isinstance(prior, Prior):
            raise TypeError(f"prior must be a Prior, such as Prior(counts=(1, 3)), or None for CSIST-100K's rules; got {prior!r}")
        self.kernels, self.prior, self.side = kernels, prior, window_side(plane, prior)
        half = np.array([[-0.5, 0.5]] * 2) if prior.cluster else np.array([[-0.5, size - 0.5] for size in plane.shape]) - self.side // 2
        self.area = float(np.prod(half[:, 1] - half[:, 0]))
        self.region = kernels.Region(*half.ravel().tolist(), prior.intensity[0] if prior.intensity else 0.0, 0.0, prior.min_distance or 0.0)
        self.optics = _optics(kernels, plane.sigma, self.side, float(half.min()), float(half.max()))
        self.exact = plane.bits is not None and plane.read_noise == 0
        self.noise = math.hypot(plane.read_noise, ROUNDING_WIDTH if plane.bits is not None else UNROUNDED_WIDTH)

    def bright(self, clusters: _Clusters) -> np.ndarray:
        """Upper end of the range of intensities, for each cluster (m,)."""
        return np.full(len(clusters.light), self.prior.intensity[1]) if self.prior.intensity else 2 * np.maximum(clusters.light, 1.0)

    def surplus(self, clusters: _Clusters) -> np.ndarray:
        """Light of each cluster beyond what the prior's largest number of brightest targets gives (m,) [grey levels]; noise and rounding may add a little."""
        most = (self.prior.counts or (1, MAX_TARGETS))[1] * self.bright(clusters)
        return 0.999 * clusters.light - 5 * self.side * self.noise - most

    def solver(self, tier: str):
        """The kernel that fills answers, ready for the clusters' arrays."""
        effort = self.kernels.Effort(**TIERS[tier])
        fewest, most = self.prior.counts or (1, MAX_TARGETS)
        starts, pools, log_prior, most = _configurations(self.prior, effort, fewest, most, self.area)
        thresholds = np.array(DISTANCE_THRESHOLDS)
        plan = self.kernels.Plan(effort, starts, pools, not self.prior.cluster, fewest, most, self.noise, log_prior, thresholds)
        return partial(self.kernels.solve_frames, self.optics, self.region, plan, 1 / self.noise, self.exact)

    def polisher(self, iterations: int):
        """The kernel that polishes answers, ready for the clusters' arrays."""
        return partial(self.kernels.polish_frames, self.optics, self.region, iterations, np.array(DISTANCE_THRESHOLDS), 1 / self.noise)


@lru_cache(maxsize=8)
def _optics(kernels, sigma: float, side: int, low: float, high: float):
    """The kernels' profile tables, columns padded with zeros to fill vector registers."""
    lanes = -(-side // 8) * 8
    position, value, slope = profile_table(sigma, side, low - MARGIN, high + MARGIN)
    value, slope = (np.ascontiguousarray(np.pad(table, ((0, 0), (0, lanes - side)))) for table in (value, slope))
    per_px = (len(position) - 1) / (position[-1] - position[0])
    return kernels.Optics(value, slope, value.astype(np.float32), float(position[0]), float(per_px), (0,) * side, (0,) * lanes)


def _configurations(prior: Prior, effort, fewest: int, most: int, area: float):
    """Starts, pools and log prior densities of every number of targets, and the largest number that the rules allow."""
    log_prior = np.array([math.lgamma(number + 1) - number * math.log(area) for number in range(MAX_TARGETS + 1)])
    size = 2048 if effort.particles else POOL
    starts, pools = np.zeros((MAX_TARGETS + 1, effort.starts, 3 * MAX_TARGETS)), np.zeros((MAX_TARGETS + 1, size, MAX_TARGETS, 2))
    if not prior.cluster:
        return starts, pools[:, :1], log_prior, most
    middle = sum(prior.intensity) / 2 if prior.intensity else 0.0
    distance = prior.min_distance or 0.0
    for number in range(1, most + 1):
        log_share = log_valid_share(number, distance)
        if log_share == -math.inf and prior.counts is None:
            return starts, pools, log_prior, number - 1
        if log_share == -math.inf:
            raise ValueError(
                f"Prior: counts and min_distance contradict each other: there is hardly room for {number} targets {distance:g} px apart in one pixel; "
                "lower one of them, or set cluster=False"
            )
        offsets = valid_configurations(number, distance, size)
        pools[number, :, :number] = offsets
        starts[number].reshape(-1, MAX_TARGETS, 3)[:, :number, :2] = offsets[: effort.starts]
        starts[number].reshape(-1, MAX_TARGETS, 3)[:, :number, 2] = middle
        log_prior[number] -= log_share
    return starts, pools, log_prior, most


class _Clusters:
    """The pixels about every cluster, frame by frame, padded to the kernels' width; zero weight beyond the frame and where two clusters' windows overlap."""

    def __init__(self, frames: np.ndarray, plane: FocalPlane, prior: Prior, side: int, good=None):
        reach, lanes = side // 2, -(-side // 8) * 8
        self.plane, good = plane, check_good(good, plane.shape)
        frames = patched(frames, good)
        if prior.cluster:
            self.least = _least_light(frames, plane, prior)
            self.frame, self.cell = find_clusters(frames, side, _darkness(plane), self.least)
        else:
            self.least = FAINT * prior.intensity[0] if prior.intensity else 0.0
            self.frame = np.flatnonzero(frames.sum((1, 2)) > self.least)
            self.cell = np.full((len(self.frame), 2), reach)
        rows, columns = (self.cell[:, axis, None] + side - reach + np.arange(side) for axis in (0, 1))
        window = self.frame[:, None, None], rows[:, :, None], columns[:, None, :]
        padding = ((0, 0), (side, side), (side, side))
        claims = np.zeros((len(frames), plane.shape[0] + 2 * side, plane.shape[1] + 2 * side), dtype=np.uint8)
        np.add.at(claims, window, 1)
        measured, bad = (np.pad(part[None].astype(float), padding)[0] for part in (good, ~good))
        self.broken = bad[window[1:]].any(axis=(1, 2))
        self.level, self.weight = np.zeros((2, len(self.frame), side, lanes))
        self.weight[..., :side] = measured[window[1:]] * (claims[window] == 1)
        self.level[..., :side] = np.pad(frames, padding)[window]
        self.level *= self.weight
        self.light = self.level.sum((1, 2))

    def hashes(self) -> np.ndarray:
        """A number for each cluster (m,) that its random stream is made of: the same for the same window."""
        keys = (level.tobytes() + weight.tobytes() for level, weight in zip(self.level, self.weight))
        return np.array([zlib.crc32(key) for key in keys], dtype=np.uint64)

    def nearest(self, frame: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Index of the frame's cluster next to each position, (m,); -1 on a frame without clusters."""
        slot = _rank_within(self.frame)
        table = np.full((frame.max(initial=0) + 1, slot.max(initial=0) + 1, 2), np.inf)
        index = np.full(table.shape[:2], -1)
        asked = self.frame < len(table)
        table[self.frame[asked], slot[asked]], index[self.frame[asked], slot[asked]] = self.cell[asked], np.flatnonzero(asked)
        return index[frame, ((table[frame] - xy[:, None]) ** 2).sum(-1).argmin(1)]

    def evidence(self) -> tuple[np.ndarray, ...]:
        """Levels, weights, largest residuals that count, and the intervals of expectation that round to the levels."""
        free, measured = 1e9, self.weight > 0
        clipped = measured & (self.level >= self.plane.full_scale)
        low = np.where(measured & (self.level > 0), self.level - 0.5, -free).astype(np.float32)
        high = np.where(measured & ~clipped, self.level + 0.5, free).astype(np.float32)
        return self.level, self.weight, np.where(measured & ~clipped, free, 0.0), low, high


def _darkness(plane: FocalPlane) -> float:
    """Level up to which a pixel counts as dark."""
    return 3 * plane.read_noise


def _least_light(frames: np.ndarray, plane: FocalPlane, prior: Prior) -> np.ndarray:
    """Light that a block of 3 x 3 pixels must exceed to begin a cluster (n,)."""
    brightest = brightest_block(frames, _darkness(plane))
    dimmest = prior.intensity[0] if prior.intensity else brightest
    return np.maximum(FAINT * dimmest, np.maximum(STRAY * brightest, SIGNIFICANT * plane.read_noise))
