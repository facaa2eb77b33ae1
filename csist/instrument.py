r"""What a user measures before unmixing: the width of the PSF, the read noise, the background (book chapter "Robustness"; not in the paper).

An unmixer that trusts the imaging model is as good as what it is told. All three numbers are in frames that every user has: the width in frames of single
targets, the noise in pixels without light, the background in the pixels about the clusters. Subtract a background first, then measure.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from csist.imaging import FocalPlane, check_frames, check_plane, pixel_profile, pixel_profile_derivative
from csist.limits import noise_deviation
from csist.solvers.finding import brightest_block, check_good, find_clusters, patched
from csist.solvers.least_squares import window_reach

STEPS, SETTLED = 30, 1e-9  # of Gauss and Newton, and the change of sigma after which none is needed [px]
DARK_MARGIN = 1  # px beyond the reach of the cluster's light from where pixels count as dark
LIT = 5.0  # grey levels above the frame's median from where a pixel may belong to a cluster
LIT_SHARE = 0.02  # the same for frames without grey levels, as a share of the brightest pixel
FAINT = 0.2  # of the brightest cluster's light: what is brighter is a cluster as well,
SIGNIFICANT = 12.0  # if it is brighter than so much of the noise, which no block of 3 x 3 pixels reaches by the noise above the median alone
SURE = 5.0  # standard deviations by which a background must show
HARDLY_ANY = 0.2  # grey levels of read noise, below which whole grey levels show nothing of it
UNDETERMINED = (
    "is the guess sigma = {:g} px within a third of the truth, is there one target on each frame, with pixels that are not saturated, and are levels those of "
    "the plane's bits?"
)


class PsfWidth(NamedTuple):
    """Made by :func:`measure_sigma`."""

    sigma: float  # px
    error: float  # px, standard deviation of sigma for the plane's noise
    share: float  # of the light that a Gaussian of this width accounts for; 1 where intensities are not known
    misfit: float  # root mean square of what the fit leaves over, in units of the plane's noise: 1 or less if the PSF is a round Gaussian


def measure_sigma(frames, plane: FocalPlane | None = None, *, intensity=None, good=None) -> PsfWidth:
    r"""Width of the PSF from frames that hold one target each.

    .. math:: \min_{\sigma,\, x_n, y_n, s_n} \sum_{n,q} \big(s_n\, g_q(x_n, y_n; \sigma) - z_{nq}\big)^2, \qquad
        \operatorname{sd}(\hat\sigma) = \frac{\tau}{\big(\sum_n \lVert \mathbf c_n^\perp \rVert^2\big)^{1/2}}

    by Gauss-Newton steps. Every frame has its own position and intensity; :math:`\mathbf c_n^\perp` is the part of the frame's change with sigma that those
    cannot imitate, and :math:`\tau` the plane's noise. Saturated pixels do not count, nor do those beyond the reach of the light.

    Parameters
    ----------
    frames : array (n, rows, columns) or (rows, columns)
        Grey levels, one target in each frame.
    plane : FocalPlane, optional
        Sensor, and a first guess of sigma within a third of the truth; by default the paper's.
    intensity : array (n,), optional
        Known total fluxes [grey levels]. Then the share of the light that a Gaussian accounts for is fitted instead, which is below 1 for a PSF with wings.
    good : array (rows, columns) of bool, optional
        False for dead and hot pixels, whose levels tell nothing.

    Raises
    ------
    ValueError
        For no frames, a dark frame, a second cluster (or a hot pixel) on a frame, a wrong shape, a fit that leaves the range of a third about the first
        guess by far, or one that nothing determines.

    >>> from csist.scenes import random_targets
    >>> scenes = random_targets(5, np.random.default_rng(0), count=(1, 1))
    >>> round(measure_sigma(FocalPlane(sigma=0.52).render(scenes)).sigma, 2)
    0.52
    """
    plane = check_plane(plane)
    frames = check_frames(frames, plane.shape, plane.full_scale).astype(np.float64)
    if not len(frames) or not frames.any((1, 2)).all():
        raise ValueError("measure_sigma: every frame must hold one target, but " + ("a frame is dark" if len(frames) else "no frame is given"))
    if intensity is not None and np.shape(intensity) != (len(frames),):
        raise ValueError(f"measure_sigma: intensity must hold one number for each of {len(frames)} frames; got shape {np.shape(intensity)}")
    if intensity is not None and not (np.isfinite(intensity).all() and np.min(intensity) > 0):
        raise ValueError("measure_sigma: intensity must hold finite total fluxes > 0 in grey levels")
    good = check_good(good, plane.shape)
    frames = patched(frames, good)
    owner, _ = _clusters(frames, plane)
    if (crowded := np.bincount(owner, minlength=len(frames)) > 1).any():
        raise ValueError(
            f"measure_sigma: every frame must hold one target, but frame {int(np.argmax(crowded))} has light in several places ({int(crowded.sum())} such "
            "frames); cut it about one target, and name hot pixels (good=...)"
        )
    weight = good & (frames < plane.full_scale) & ~_beyond(frames, plane, window_reach(plane))
    x, y = _centre_of_light(np.where(weight, frames, 0.0))
    light, common = frames.sum((1, 2)) if intensity is None else np.asarray(intensity, dtype=np.float64), np.array([plane.sigma, 1.0])
    for _ in range(STEPS):
        unit, own, shared = _derivatives(x, y, common[0], plane.shape)
        residual = (common[1] * light[:, None, None] * unit - frames) * weight
        own = np.stack([common[1] * light[:, None, None] * part * weight for part in own], axis=-1).reshape(len(frames), -1, 2)
        width, brightness = common[1] * light[:, None, None] * shared * weight, light[:, None, None] * unit * weight
        if intensity is None:
            own = np.concatenate([own, (unit * weight).reshape(len(frames), -1, 1)], axis=-1)
        columns = np.stack([width] if intensity is None else [width, brightness], axis=-1).reshape(len(frames), own.shape[1], -1)
        try:
            imitation = np.linalg.solve(np.swapaxes(own, 1, 2) @ own, np.swapaxes(own, 1, 2))  # what a frame's own unknowns can imitate is taken out first
            left, rest = columns - own @ (imitation @ columns), residual.reshape(len(frames), -1, 1)
            information = np.einsum("npa,npb->ab", left, left)
            step = np.linalg.solve(information, np.einsum("npa,npz->a", left, rest))
        except np.linalg.LinAlgError as error:
            raise ValueError(f"measure_sigma: the frames do not tell the width: {UNDETERMINED.format(plane.sigma)}") from error
        own_step = (imitation @ (rest - columns @ step[:, None]))[..., 0]
        x, y = x - own_step[:, 0], y - own_step[:, 1]
        common[: len(step)] -= np.clip(step, -0.1, 0.1)
        if intensity is None:
            light = light - own_step[:, 2]
        if not (plane.sigma / 2 < common[0] < 2 * plane.sigma and np.isfinite(own_step).all()):
            raise ValueError(f"measure_sigma: the fit leaves the guess far behind: {UNDETERMINED.format(plane.sigma)}")
        if abs(step[0]) < SETTLED:
            break
    noise, freedom = noise_deviation(plane), weight.sum() - own.shape[-1] * len(frames) - len(step)
    error, misfit = noise * math.sqrt(np.linalg.inv(information)[0, 0]), math.sqrt((residual**2).sum() / max(freedom, 1)) / noise
    return PsfWidth(float(common[0]), error, float(common[1]), misfit)


def _derivatives(x, y, sigma: float, shape, step: float = 1e-4):
    """Shares of a target's light in each pixel (n, rows, columns), their derivatives by x and y, and by sigma."""
    profiles = lambda width: (pixel_profile(x, shape[0], width)[:, :, None], pixel_profile(y, shape[1], width)[:, None, :])
    rows, columns = profiles(sigma)
    (wider_rows, wider_columns), (slim_rows, slim_columns) = profiles(sigma + step), profiles(sigma - step)
    by_sigma = (wider_rows * wider_columns - slim_rows * slim_columns) / (2 * step)
    by_x = pixel_profile_derivative(x, shape[0], sigma)[:, :, None] * columns
    by_y = rows * pixel_profile_derivative(y, shape[1], sigma)[:, None, :]
    return rows * columns, (by_x, by_y), by_sigma


def _centre_of_light(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.mgrid[: frames.shape[1], : frames.shape[2]]
    total = np.maximum(frames.sum((1, 2)), np.finfo(float).tiny)  # where all the light is saturated, the first pixel
    return (frames * i).sum((1, 2)) / total, (frames * j).sum((1, 2)) / total


def _clusters(frames: np.ndarray, plane: FocalPlane) -> tuple[np.ndarray, np.ndarray]:
    """Frame (m,) and pixel (m, 2) of every cluster, the brightest of each frame included whatever the noise; a frame without light has none."""
    lifted = np.maximum(frames - np.median(frames, axis=(1, 2), keepdims=True), 0.0)
    noise = np.quantile(lifted, ndtr(1.0), axis=(1, 2))  # one standard deviation above the median
    lit = LIT if plane.bits is not None else LIT_SHARE * lifted.max(axis=(1, 2), keepdims=True)
    lifted[lifted <= lit] = 0.0
    brightest = brightest_block(lifted)
    return find_clusters(lifted, 2 * window_reach(plane) + 1, 0.0, np.clip(SIGNIFICANT * noise, FAINT * brightest, 0.99 * brightest))


def _beyond(frames: np.ndarray, plane: FocalPlane, reach: int) -> np.ndarray:
    """True for pixels more than ``reach`` from every cluster of their frame, (n, rows, columns)."""
    i, j = np.mgrid[: plane.shape[0], : plane.shape[1]]
    beyond = np.ones(frames.shape, dtype=bool)
    for frame, (row, column) in zip(*_clusters(frames, plane)):
        beyond[frame] &= (abs(i - row) > reach) | (abs(j - column) > reach)
    return beyond


def _dark(frames: np.ndarray, plane: FocalPlane, good, caller: str) -> np.ndarray:
    """True for good pixels that no light of their frame's clusters reaches."""
    if not len(frames):
        raise ValueError(f"{caller}: no frame is given")
    good = check_good(good, plane.shape)
    dark = good & _beyond(patched(frames, good), plane, window_reach(plane) + DARK_MARGIN)
    if not dark.any((1, 2)).all():
        raise ValueError(f"{caller}: frames of {plane.shape[0]} x {plane.shape[1]} px have no pixel beyond the light's reach; give larger ones")
    return dark


def measure_read_noise(frames, plane: FocalPlane | None = None, *, good=None) -> float:
    r"""Standard deviation of the read noise [grey levels] from the pixels beyond the light of each frame's clusters.

    A digitiser without an offset shows the upper half of the noise only: a dark pixel reads :math:`z = \max(0, \operatorname{round} n)`. The mean of
    :math:`z^2` over dark pixels still tells the width:

    .. math:: \overline{z^2} = \sum_{k \ge 1} k^2 \Big[\Phi\Big(\frac{k + \frac12}{s}\Big) - \Phi\Big(\frac{k - \frac12}{s}\Big)\Big]

    is solved for s. Noise of less than 0.2 grey levels hardly ever reaches the first level; 0 is returned for it.

    Parameters
    ----------
    frames : array (n, rows, columns) or (rows, columns)
        Grey levels without a background: subtract one first (:func:`subtract_background`).
    plane : FocalPlane, optional
        Says how wide the light is, and whether levels are rounded.
    good : array (rows, columns) of bool, optional
        False for dead and hot pixels, whose levels tell nothing.

    Raises
    ------
    ValueError
        For no frames, a wrong shape, frames without dark pixels, or a background: more than half of the dark pixels above zero.

    >>> from csist.scenes import random_targets
    >>> rng = np.random.default_rng(0)
    >>> round(measure_read_noise(FocalPlane(read_noise=2.0).render(random_targets(20, rng), rng)), 1)
    2.0
    """
    plane = check_plane(plane)
    frames = check_frames(frames, plane.shape, plane.full_scale).astype(np.float64)
    dark = frames[_dark(frames, plane, good, "measure_read_noise")]
    if _is_lifted(dark, plane):
        raise ValueError(f"measure_read_noise: dark pixels read {dark.mean():.3g} on average, a background; subtract it first (subtract_background)")
    power = float(np.mean(dark**2))
    if plane.bits is None:
        return math.sqrt(power)
    levels = np.arange(1.0, max(64.0, 8 * math.sqrt(2 * power)))
    shown = lambda s: float(levels**2 @ (ndtr((levels + 0.5) / s) - ndtr((levels - 0.5) / s))) - power
    return 0.0 if power == 0 or shown(HARDLY_ANY) > 0 else brentq(shown, HARDLY_ANY, 2 * math.sqrt(power) + 1)


def _is_lifted(dark: np.ndarray, plane: FocalPlane) -> bool:
    """Whether dark pixels (m,) read more than noise about zero makes them: by sign, or by their mean where levels below zero are kept."""
    if plane.bits is not None:
        return (dark > 0).mean() > 0.5 + SURE * math.sqrt(0.25 / dark.size)
    return dark.mean() > max(SURE / math.sqrt(dark.size), 0.25) * dark.std()


def subtract_background(frames, plane: FocalPlane | None = None, *, good=None) -> np.ndarray:
    """Frames less the tilted plane that fits the pixels beyond the light of each frame's clusters; saturated pixels stay saturated.

    Levels are rounded, and those below zero become zero, if the plane has grey levels (``bits``). So read noise shows half of itself afterwards, as
    :func:`measure_read_noise` expects. Do not subtract where dark means zero already: the plane would be the mean of that half.

    Parameters
    ----------
    frames : array (n, rows, columns) or (rows, columns)
        Grey levels.
    plane : FocalPlane, optional
        Says how wide the light is, and which levels are saturated.
    good : array (rows, columns) of bool, optional
        False for dead and hot pixels, whose levels tell nothing of the background.

    Returns
    -------
    array, like ``frames``

    Raises
    ------
    ValueError
        For no frames, a wrong shape, or frames without dark pixels.

    >>> ramp = np.broadcast_to(np.arange(11)[:, None], (11, 11))
    >>> frame = FocalPlane().response(5.0, 5.0) * 200 + ramp
    >>> int(abs(subtract_background(frame, FocalPlane(bits=None)) - FocalPlane().response(5.0, 5.0) * 200).max())
    0
    """
    plane = check_plane(plane)
    given = np.asarray(frames)
    frames = check_frames(given, plane.shape, plane.full_scale).astype(np.float64)
    i, j = np.mgrid[: plane.shape[0], : plane.shape[1]]
    design = np.stack([np.ones(i.size), i.ravel() - plane.shape[0] / 2, j.ravel() - plane.shape[1] / 2], axis=1)
    cleaned = np.empty(frames.shape)
    for index, (frame, far) in enumerate(zip(frames, _dark(frames, plane, good, "subtract_background"))):
        weights = np.linalg.lstsq(design[far.ravel()], frame[far], rcond=None)[0]
        level = frame - (design @ weights).reshape(plane.shape)
        cleaned[index] = np.where(frame >= plane.full_scale, frame, level if plane.bits is None else np.clip(np.rint(level), 0, plane.full_scale))
    return cleaned.astype(given.dtype if plane.bits is not None or given.dtype.kind == "f" else np.float64).reshape(given.shape)
