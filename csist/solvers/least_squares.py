r"""Least squares without a grid: the fit that a careful user would write with scipy (the off-grid chapter's plain rival; not in the paper).

For every plausible number of targets K, positions and intensities :math:`\theta` minimise

.. math:: \tfrac12\sum_q w_q\left(\frac{m_q(\theta) - z_q}{\tau}\right)^2
    + \tfrac12\sum_{k<l}\left(\frac{(d_\text{min} - d_{kl})_+}{0.01\,\text{px}}\right)^2, \qquad \tau^2 = \sigma_\text{read}^2 + \tfrac1{12},

from several random starts, with the cluster's pixel and the range of intensities as bounds. A clipped pixel counts only while the model stays below it. The
number of targets is the one of least cost plus a penalty for each target.

Compared with :func:`csist.solvers.offgrid.unmix_offgrid` it keeps the minimum and forgets everything else that rounding allows.
"""
from __future__ import annotations

import math

import numpy as np

from csist.imaging import FocalPlane, check_frames, check_plane, pixel_profile, pixel_profile_derivative
from csist.limits import jacobian, noise_deviation
from csist.scenes import Targets, random_targets
from csist.solvers.finding import find_cells

DISTANCE_SOFTNESS = 0.01  # px by which the smallest distance may be missed at the cost of one noise deviation
REACH = 4.0  # standard deviations of the PSF beyond the cluster's pixel within which a target has any light
LIGHT_SLACK = 6.0  # grey levels that rounding and the window's edge may take from a frame's light


def window_reach(plane: FocalPlane) -> int:
    """Pixels about the cluster's own that its light can reach.

    >>> window_reach(FocalPlane())
    2
    """
    return max(1, math.ceil(REACH * plane.sigma))


class FrameFit:
    """One frame's least-squares problem for a given number of targets; parameters are x, y, intensity of each target in turn.

    Parameters
    ----------
    frame : array (rows, columns)
        Grey levels.
    cell : (int, int)
        Pixel that holds the cluster.
    plane : FocalPlane
        Optics and sensor.
    number : int
        Targets K.
    intensity : (float, float)
        Range of a target's intensity [grey levels].
    min_distance : float
        Smallest distance between two targets [px]; 0 for none.

    >>> plane = FocalPlane()
    >>> frame = plane.render(Targets([[[5.1, 4.8]]], [[240.0]], [1]))[0]
    >>> fit = FrameFit(frame, (5, 5), plane, 1)
    >>> fit.cost(np.array([[5.1, 4.8, 240.0], [5.3, 4.8, 240.0]])).round(0).tolist()
    [7.0, 4352.0]
    """

    def __init__(self, frame, cell, plane: FocalPlane, number: int, intensity=(220.0, 250.0), min_distance: float = 0.494):
        reach = window_reach(plane)
        self.plane, self.number, self.min_distance = plane, number, float(min_distance)
        self.window = tuple(slice(max(0, c - reach), min(size, c + reach + 1)) for c, size in zip(cell, plane.shape))
        self.level = np.asarray(frame, dtype=np.float64)[self.window]
        self.clipped = self.level >= plane.full_scale
        self.deviation = noise_deviation(plane)
        low, high = ([*(np.asarray(cell) + half), level] for half, level in zip((-0.5, 0.5), intensity))
        self.low, self.high = (np.tile(np.array(bound, dtype=np.float64), number) for bound in (low, high))
        self.pairs = np.triu_indices(number, 1)

    def _profiles(self, theta: np.ndarray, profile):
        """Line profiles of both axes, (m, K, rows) and (m, K, columns), of parameters (m, 3K)."""
        parts = theta.reshape(len(theta), self.number, 3)
        return [profile(parts[..., axis], self.plane.shape[axis], self.plane.sigma)[..., self.window[axis]] for axis in (0, 1)]

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """Residuals (m, pixels + pairs) of parameters (m, 3K), in noise deviations and softnesses of the distance."""
        rows, columns = self._profiles(theta, pixel_profile)
        flux = theta.reshape(len(theta), self.number, 3)[..., 2]
        misfit = np.einsum("mk,mki,mkj->mij", flux, rows, columns) - self.level
        misfit = np.where(self.clipped & (misfit > 0), 0.0, misfit) / self.deviation
        return np.concatenate([misfit.reshape(len(theta), -1), np.maximum(self.min_distance - self._distances(theta)[0], 0) / DISTANCE_SOFTNESS], axis=1)

    def cost(self, theta: np.ndarray) -> np.ndarray:
        """Half the sum of squared residuals, (m,)."""
        return 0.5 * (self.residuals(theta) ** 2).sum(1)

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Derivative of the residuals of one set of parameters (3K,): (pixels + pairs, 3K)."""
        theta = theta[None]
        (rows, columns), (row_slopes, column_slopes) = self._profiles(theta, pixel_profile), self._profiles(theta, pixel_profile_derivative)
        flux = theta.reshape(1, self.number, 3)[..., 2]
        model = np.einsum("mk,mki,mkj->ij", flux, rows, columns)
        parts = [(flux[..., None] * row_slopes, columns), (flux[..., None] * rows, column_slopes), (rows, columns)]
        slopes = np.stack([np.einsum("mki,mkj->kij", *part) for part in parts], axis=1)  # (K, 3, rows, columns)
        slopes = np.where(self.clipped & (model > self.level), 0.0, slopes) / self.deviation
        distance, gap = self._distances(theta)
        near = (distance[0] < self.min_distance) & (distance[0] > 0)
        hinges = np.zeros((len(near), self.number, 3))
        pull = np.where(near[:, None], gap[0] / np.where(near, distance[0], 1.0)[:, None], 0.0) / DISTANCE_SOFTNESS
        for sign, members in zip((-1, 1), self.pairs):
            hinges[np.arange(len(near)), members, :2] = sign * pull
        return np.concatenate([slopes.reshape(3 * self.number, -1).T, hinges.reshape(len(near), 3 * self.number)])

    def _distances(self, theta: np.ndarray):
        xy = theta.reshape(len(theta), self.number, 3)[..., :2]
        gap = xy[:, self.pairs[0]] - xy[:, self.pairs[1]]
        return np.hypot(gap[..., 0], gap[..., 1]), gap


def plausible_counts(frame, plane: FocalPlane, cell, counts=(1, 5), intensity=(220.0, 250.0)) -> range:
    """Numbers of targets that a frame's visible light allows: exact for unclipped frames inside, three at most where light is lost.

    >>> plane = FocalPlane()
    >>> plausible_counts(plane.render(Targets([[[5.1, 4.8]]], [[240.0]], [1]))[0], plane, (5, 5))
    range(1, 2)
    """
    light = float(np.sum(frame, dtype=np.float64))
    slack = LIGHT_SLACK + 25 * plane.read_noise
    fewest = min(max(counts[0], math.ceil((light - slack) / intensity[1])), counts[1])
    border = any(c <= 0 or c >= size - 1 for c, size in zip(cell, plane.shape))
    lost = border or (np.asarray(frame) >= plane.full_scale).any()
    most = min(counts[1], fewest + 2) if lost else min(counts[1], max(fewest, math.floor((light + slack) / intensity[0])))
    return range(fewest, most + 1)


def unmix_least_squares(
    frames,
    plane: FocalPlane | None = None,
    *,
    starts: int = 12,
    penalty: float = 0.0,
    counts=(1, 5),
    intensity=(220.0, 250.0),
    min_distance: float = 0.494,
    seed: int = 0,
) -> Targets:
    """Positions and intensities by ``scipy.optimize.least_squares`` from several random starts (see the top of this module).

    Parameters
    ----------
    frames : array (n, rows, columns) or (rows, columns)
        Grey levels, one cluster inside one pixel each.
    plane : FocalPlane, optional
        Optics and sensor; by default the paper's.
    starts : int
        Random valid configurations that every number of targets is fitted from.
    penalty : float
        Added to the cost for each target, in units of half a squared noise deviation.
    counts : (int, int)
        Smallest and largest number of targets.
    intensity : (float, float)
        Range of a target's intensity [grey levels].
    min_distance : float
        Smallest distance between two targets [px].
    seed : int
        Of the starts.

    Returns
    -------
    Targets
        With ``sigma`` from the fit's curvature [px] and ``score`` minus the variance, so that sure positions rank first.

    Raises
    ------
    ValueError
        For frames of the wrong shape, or no start at all.

    >>> plane = FocalPlane()
    >>> frame = plane.render(Targets([[[5.1, 4.8], [4.7, 5.3]]], [[240.0, 230.0]], [2]))
    >>> unmix_least_squares(frame, plane, starts=4).xy[0].round(1).tolist()
    [[5.1, 4.8], [4.7, 5.3]]
    """
    plane = check_plane(plane)
    if isinstance(starts, bool) or not isinstance(starts, (int, np.integer)) or starts < 1:
        raise ValueError(f"unmix_least_squares: starts must be a whole number >= 1; got {starts!r}")
    frames = check_frames(frames, plane.shape, plane.full_scale)
    cells = find_cells(frames, 2 * window_reach(plane) + 1, 3 * plane.read_noise)
    lists = []
    for index, (frame, cell) in enumerate(zip(frames, cells)):
        if not frame.any():
            lists.append((np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros((0, 2))))
            continue
        rng = np.random.default_rng([seed, index])
        fits = []
        for number in plausible_counts(frame, plane, cell, counts, intensity):
            fit = FrameFit(frame, cell, plane, number, intensity, min_distance)
            theta, cost = best_of_starts(fit, starts, rng)
            fits.append((cost + penalty * number, fit, theta))
        _, fit, theta = min(fits, key=lambda one: one[0])
        lists.append(answer_of(fit, theta))
    return Targets.from_lists(*zip(*lists)) if lists else Targets(np.zeros((0, 1, 2)), np.zeros((0, 1)), np.zeros(0, dtype=int))


def refine(frames, start: Targets, plane: FocalPlane | None = None, *, known: Targets | None = None, width=None, iterations: int = 30) -> Targets:
    r"""Least squares from given answers, thousands of frames at a time (book chapter "How close is too close").

    .. math:: \hat\theta = \arg\min_\theta \sum_q w_q\left(\frac{m_q(\theta) - z_q}{\tau}\right)^2 + \sum_a \left(\frac{\theta_a - \bar\theta_a}{b_a}\right)^2

    by damped Gauss-Newton steps (Levenberg-Marquardt); a clipped pixel counts only while the model stays below its threshold, half a grey level under full
    scale. The number of targets stays, and the minimum is the one next to the start, which need not be the lowest. The fast relative with the data set's rules
    built in is :func:`csist.solvers.offgrid.polish`.

    Parameters
    ----------
    frames : array (n, rows, columns)
        Grey levels.
    start : Targets
        Where to begin; its counts are kept.
    plane : FocalPlane, optional
        Optics and sensor; by default the paper's.
    known : Targets, optional
        What is known of each target beforehand, :math:`\bar\theta`: a mean position and intensity. Without it the last sum is left out.
    width : (float, float, float)
        How well it is known, :math:`b`: standard deviations of x [px], y [px] and intensity [grey levels]. Goes with ``known``.
    iterations : int
        Steps; a step that does not improve a frame only raises its damping.

    Returns
    -------
    Targets
        Positions and intensities in the order of ``start``.

    Raises
    ------
    ValueError
        If the numbers of frames or of targets differ, only one of ``known`` and ``width`` is given, or a width is not above zero.

    >>> plane = FocalPlane()
    >>> frame = plane.render(Targets([[[5.1, 4.8]]], [[240.0]], [1]))
    >>> refine(frame, Targets([[[5.3, 5.0]]], [[230.0]], [1]), plane).xy.round(2).tolist()
    [[[5.1, 4.8]]]
    """
    plane = check_plane(plane)
    frames = check_frames(frames, plane.shape, plane.full_scale)
    if len(start) != len(frames):
        raise ValueError(f"refine: start holds {len(start)} frames, but {len(frames)} frames are given; give one entry per frame")
    if (known is None) != (width is None):
        raise ValueError("refine: known (what is expected) and width (how well it is known) belong together; give both or neither")
    if known is not None and (known.xy.shape != start.xy.shape or (known.count < start.count).any()):
        raise ValueError(f"refine: known must hold a target for each of start's, in arrays of the shape {start.xy.shape}; got {known.xy.shape}")
    if width is not None and (np.shape(width) != (3,) or not (np.isfinite(width).all() and np.min(width) > 0)):
        raise ValueError(f"refine: width must be three standard deviations > 0, of x [px], y [px] and intensity [grey levels]; got {width!r}")
    vectors = lambda scenes: np.nan_to_num(np.concatenate([scenes.xy, scenes.intensity[..., None]], axis=-1)).reshape(len(scenes), -1)  # (n, 3K)
    scenes = lambda p: Targets(p.reshape(*start.xy.shape[:2], 3)[..., :2], p.reshape(*start.xy.shape[:2], 3)[..., 2], start.count)
    level, deviation = frames.reshape(len(frames), -1).astype(np.float64), noise_deviation(plane)
    clipped, threshold = level >= plane.full_scale, plane.full_scale - 0.5
    absent = np.repeat(~start.mask, 3, axis=1)
    stiffness = np.zeros(absent.shape) if known is None else np.where(absent, 0.0, np.tile(1 / np.square(width), start.capacity))  # b^-2
    mean = 0.0 if known is None else vectors(known)

    def residuals(p):
        model = plane.expected(scenes(p)).reshape(len(p), -1)
        return np.where(clipped, np.minimum(model - threshold, 0.0), model - level) / deviation

    def cost(p):
        return (residuals(p) ** 2).sum(1) + (stiffness * (p - mean) ** 2).sum(1)

    p, damping = vectors(start), np.full((len(level), 1), 1e-3)
    least = cost(p)
    for _ in range(iterations):
        r = residuals(p)
        slopes = jacobian(scenes(p), plane) * (~clipped | (r < 0))[..., None] / deviation  # (n, pixels, 3K)
        curvature = np.swapaxes(slopes, 1, 2) @ slopes + stiffness[:, :, None] * np.eye(p.shape[1])
        diagonal = np.einsum("naa->na", curvature)  # a view: damping goes in through it
        diagonal += damping * diagonal + (diagonal == 0)  # padding, and targets that the frame does not see, stay where they are
        trial = p - np.linalg.solve(curvature, (np.einsum("nqa,nq->na", slopes, r) + stiffness * (p - mean))[..., None])[..., 0]
        trial_cost = cost(trial)
        better = trial_cost < least
        p[better], least[better] = trial[better], trial_cost[better]
        damping = np.where(better[:, None], 0.2 * damping, 5 * damping).clip(1e-9, 1e9)
    return scenes(p)


def best_of_starts(fit: FrameFit, starts: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Parameters (3K,) of least cost and that cost, after scipy's bounded least squares from random valid configurations."""
    from scipy.optimize import least_squares

    middle = (fit.low.reshape(-1, 3)[0, :2] + fit.high.reshape(-1, 3)[0, :2]) / 2
    offsets = random_targets(starts, rng, count=(fit.number, fit.number), min_distance=fit.min_distance, shape=(1, 1)).xy
    best, least = None, math.inf
    for xy in offsets:
        first = np.column_stack([xy + middle, np.full(fit.number, (fit.low[2] + fit.high[2]) / 2)]).ravel()
        options = {"jac": fit.jacobian, "bounds": (fit.low, fit.high), "x_scale": np.tile([0.1, 0.1, 10.0], fit.number), "max_nfev": 60, "ftol": 1e-6}
        found = least_squares(lambda theta: fit.residuals(theta[None])[0], np.clip(first, fit.low + 1e-6, fit.high - 1e-6), **options)
        if found.cost < least:
            best, least = found.x, float(found.cost)
    return best, least


def answer_of(fit: FrameFit, theta: np.ndarray):
    """Positions, intensities, scores and deviations of one frame, brightest first; the intensity's range steadies the curvature as a prior."""
    slopes = fit.jacobian(theta)
    spread = (fit.high[2] - fit.low[2]) / math.sqrt(12.0)
    prior = np.tile([12.0, 12.0, 1 / max(spread, 1e-6) ** 2], fit.number)  # uniform over a pixel's side: variance 1 / 12
    covariance = np.linalg.inv(slopes.T @ slopes + np.diag(prior)).diagonal().reshape(-1, 3)
    parts = theta.reshape(-1, 3)
    order = np.argsort(-parts[:, 2], kind="stable")
    return parts[order, :2], parts[order, 2], -covariance[order, :2].sum(1), np.sqrt(covariance[order, :2])
