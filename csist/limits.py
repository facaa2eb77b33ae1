r"""How well a scene can be measured at all: Fisher information and Cramér–Rao bounds (book chapter "How close is too close").

Pixel q of a frame reads :math:`z_q = m_q(\theta) + n_q`. The expectation m is :meth:`csist.imaging.FocalPlane.expected`, the noise n is Gaussian with
variance :math:`\tau^2 = \sigma_\text{read}^2 + \tfrac1{12}`, the second term being that of rounding to whole grey levels, and the parameters
:math:`\theta` are x [px], y [px] and intensity [grey levels] of each target, in this order, target after target. Then

.. math:: F_{ab} = \frac1{\tau^2}\sum_q w_q\,\frac{\partial m_q}{\partial\theta_a}\frac{\partial m_q}{\partial\theta_b}, \qquad
    \operatorname{cov}\hat\theta \succeq F^{-1}

for every unbiased estimator that is told how many targets there are. The weight :math:`w_q \le 1` is what clipping leaves of a pixel's information.

**A clipped pixel** says only that its value passed the threshold, half a grey level below full scale. With the margin
:math:`a = (\text{threshold} - m) / \tau`, the standard normal density :math:`\varphi` and its integral :math:`\Phi`, the score has variance

.. math:: w(a) = \underbrace{\int_{-\infty}^{a} t^2\varphi(t)\,dt}_{\text{seen}} + \underbrace{\varphi(a)^2 / \Phi(-a)}_{\text{clipped}}
    = \Phi(a) + \varphi(a)\left[\frac{\varphi(a)}{\Phi(-a)} - a\right],

which falls from 1 to 0 within a few :math:`\tau` about the threshold. A digitiser also clips at zero, where read noise takes dark pixels: with b the margin
above half a grey level, the two ends together leave :math:`w(a) + w(b) - 1`. Without read noise no value passes zero, and nothing is lost there. This is
``saturated="censored"``. The other choice, ``saturated="dropped"``, counts a pixel in full while its expectation lies below the upper threshold and not at
all beyond it, as a fit does that masks saturated pixels and takes zeros at face value. Neither of the two is always the larger.

**Rounding is no Gaussian noise.** With read noise of a grey level or more the formula is within a few per cent of the exact information of the rounded, clipped
readings. Without any, each reading confines m to a box of one grey level, and an estimator that uses the box, the range of intensities and the smallest
distance of the targets can beat the bound where the bound is large.

**No information.** If the frame does not determine a parameter (two targets in one place, a target far off the frame), the bound is infinite, for that
parameter only; the targets beside it keep theirs. Numerically, directions count as undetermined below a share of 1e-13 of
the information; bounds of thousands of pixels may therefore read infinite.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import erfcx, ndtr

from csist.imaging import FocalPlane, pixel_profile, pixel_profile_derivative
from csist.scenes import Targets

INTENSITY_PRIOR = (250.0 - 220.0) / math.sqrt(12.0)  # standard deviation of CSIST-100K's uniform intensities [grey levels]

BLOCK = 2**22  # entries of the Jacobian that are held at a time
UNRESOLVED = 1e-13  # share of information below which float64 cannot tell it from none
NO_INFORMATION = np.finfo(np.float64).tiny / np.finfo(np.float64).eps  # smaller sums of squares have lost digits to underflow
FAR_MARGIN = 37.0  # noise deviations from the threshold at which the weight is 0 or 1 in float64


def noise_deviation(plane: FocalPlane) -> float:
    r"""Standard deviation of a pixel's noise, :math:`\tau = (\sigma_\text{read}^2 + 1/12)^{1/2}` [grey levels], without the 1/12 if nothing is rounded.

    Raises
    ------
    ValueError
        If the plane has neither read noise nor rounding, because its frames then hold infinite information.

    >>> round(noise_deviation(FocalPlane()), 4)
    0.2887
    """
    if plane.bits is None and plane.read_noise == 0:
        raise ValueError("limits: a focal plane with bits=None and read_noise=0 has no noise, so the information is infinite; set read_noise > 0 or bits")
    return math.hypot(plane.read_noise, 0.0 if plane.bits is None else math.sqrt(1 / 12))


def jacobian(targets: Targets, plane: FocalPlane) -> np.ndarray:
    r"""Derivatives of the noise-free, unclipped frames by the targets' parameters.

    .. math:: \frac{\partial m_{ij}}{\partial x} = s\,g_i'(x)\,g_j(y), \qquad \frac{\partial m_{ij}}{\partial y} = s\,g_i(x)\,g_j'(y), \qquad
        \frac{\partial m_{ij}}{\partial s} = g_i(x)\,g_j(y)

    Parameters
    ----------
    targets : Targets
        n frames of up to K targets.
    plane : FocalPlane
        Optics and sensor.

    Returns
    -------
    array (n, rows*columns, 3K), float64
        Column ``3k`` by x and ``3k + 1`` by y [grey levels/px], ``3k + 2`` by intensity [1] of target k; zero where target k is padding.

    >>> jacobian(Targets([[[5.0, 5.0]]], [[240.0]], [1]), FocalPlane())[0, 11 * 6 + 5].round(2).tolist()  # the pixel below
    [77.84, 0.0, 0.11]
    """
    present = targets.mask
    x, y = np.moveaxis(np.where(present[..., None], targets.xy, 0.0), -1, 0)
    intensity = np.where(present, targets.intensity, 0.0)[..., None]
    rows, columns = plane.shape
    across_rows, across_columns = pixel_profile(x, rows, plane.sigma), pixel_profile(y, columns, plane.sigma)  # (n, K, rows), (n, K, columns)
    along_axes = np.stack([intensity * pixel_profile_derivative(x, rows, plane.sigma), intensity * across_rows, present[..., None] * across_rows], axis=2)
    other_axes = np.stack([across_columns, pixel_profile_derivative(y, columns, plane.sigma), across_columns], axis=2)
    derivatives = along_axes[..., :, None] * other_axes[..., None, :]  # (n, K, 3, rows, columns)
    return np.swapaxes(derivatives.reshape(len(targets), 3 * targets.capacity, rows * columns), 1, 2)


def fisher_information(targets: Targets, plane: FocalPlane, *, saturated: str = "censored", prior: float | None = None) -> np.ndarray:
    r"""Fisher information that one frame holds on its targets, :math:`F = \tau^{-2} J^T \operatorname{diag}(w)\, J`.

    Information of independent frames of one scene adds up.

    Parameters
    ----------
    targets : Targets
        n frames of up to K targets.
    plane : FocalPlane
        Optics and sensor; needs noise, see :func:`noise_deviation`.
    saturated : {"censored", "dropped"}
        What a saturated pixel tells: that its value passed the threshold, or nothing.
    prior : float, optional
        Standard deviation of what is known of each intensity beforehand [grey levels]; adds ``prior**-2`` to the information on it.
        ``INTENSITY_PRIOR`` is that of CSIST-100K.

    Returns
    -------
    array (n, 3K, 3K), float64
        Parameters ordered as in :func:`jacobian`; nan in the rows and columns of padding.

    Raises
    ------
    ValueError
        For a plane without noise, an unknown ``saturated``, or a prior that is no positive number.

    >>> F = fisher_information(Targets([[[5.0, 5.0]]], [[240.0]], [1]), FocalPlane(bits=None, read_noise=1.0))
    >>> np.diagonal(F[0]).round(2).tolist()
    [13409.45, 13409.45, 0.27]
    """
    _check_options(targets, plane, saturated, prior)
    size = 3 * targets.capacity
    information = np.empty((len(targets), size, size))
    step = max(1, BLOCK // max(1, size * math.prod(plane.shape)))
    for start in range(0, len(targets), step):
        part = _scores(targets[start : start + step], plane, saturated)
        information[start : start + step] = np.swapaxes(part, 1, 2) @ part
    if prior is not None:
        information += _prior_information(targets.capacity, prior)
    absent = np.repeat(~targets.mask, 3, axis=1)
    information[absent[:, :, None] | absent[:, None, :]] = np.nan
    return information


def covariance_bound(information) -> np.ndarray:
    """Inverse of Fisher information: the smallest covariance of unbiased estimates, infinite where nothing is known.

    Parameters
    ----------
    information : array (..., m, m)
        Symmetric and positive semi-definite; nan in the rows and columns of padding, see :func:`fisher_information`.

    Returns
    -------
    array (..., m, m), float64
        A parameter that the information does not determine has an infinite variance and nan covariances. Padding stays nan.

    >>> covariance_bound([[4.0, 0.0], [0.0, 0.0]]).tolist()
    [[0.25, nan], [nan, inf]]
    """
    information = np.asarray(information, dtype=np.float64)
    if information.ndim < 2 or information.shape[-1] != information.shape[-2]:
        raise ValueError(f"covariance_bound: information must have shape (..., m, m); got {information.shape}")
    known = np.diagonal(information, axis1=-2, axis2=-1)
    padding = np.isnan(known)
    informed = known > NO_INFORMATION
    # Unit diagonal first: pixels and grey levels then weigh alike. What is uninformed or padding becomes a block of its own.
    scale = np.where(informed, 1.0, 0.0) / np.sqrt(np.where(informed, known, 1.0))
    scaling = scale[..., :, None] * scale[..., None, :]
    values, vectors = np.linalg.eigh(np.where(scaling > 0, information * scaling, np.eye(known.shape[-1]) * ~informed[..., None]))
    null = values <= UNRESOLVED * values[..., -1:]
    inverse = (vectors / np.where(null, np.inf, values)[..., None, :]) @ np.swapaxes(vectors, -1, -2) * scaling
    lost = ~informed | ((vectors**2 * null[..., None, :]).sum(-1) > UNRESOLVED)
    inverse[lost[..., :, None] | lost[..., None, :]] = np.nan
    np.einsum("...ii->...i", inverse)[lost & ~padding] = np.inf
    return inverse


def crlb(targets: Targets, plane: FocalPlane, *, saturated: str = "censored", prior: float | None = None) -> np.ndarray:
    r"""Cramér–Rao lower bounds: no unbiased estimator has a smaller standard deviation than :math:`[(F^{-1})_{aa}]^{1/2}`.

    All targets of a frame are unknown together, their number is known. See the module's text for what the bound leaves out.

    Parameters
    ----------
    targets, plane, saturated, prior
        As for :func:`fisher_information`, which also says what is raised.

    Returns
    -------
    array (n, K, 3), float64
        Smallest standard deviations of x [px], y [px] and intensity [grey levels]; infinite where the frame tells nothing, nan in padding.

    >>> pair = Targets([[[5.0, 4.7], [5.0, 5.3]]], [[240.0, 240.0]], [2])
    >>> crlb(pair, FocalPlane())[0].round(4).tolist()
    [[0.0047, 0.0594, 46.2075], [0.0047, 0.0594, 46.2075]]
    """
    covariance = covariance_bound(fisher_information(targets, plane, saturated=saturated, prior=prior))
    return np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).reshape(len(targets), targets.capacity, 3)


def position_covariance(targets: Targets, plane: FocalPlane, *, saturated: str = "censored", prior: float | None = None) -> np.ndarray:
    """Smallest covariance of each target's position, (n, K, 2, 2) [px^2], all other parameters unknown; for :func:`error_ellipse`.

    Arguments and errors are those of :func:`fisher_information`; infinite variances and nan as in :func:`covariance_bound`.
    """
    covariance = covariance_bound(fisher_information(targets, plane, saturated=saturated, prior=prior))
    blocks = covariance.reshape(len(targets), targets.capacity, 3, targets.capacity, 3)
    return np.einsum("nkakb->nkab", blocks)[..., :2, :2].copy()


class ErrorEllipse(NamedTuple):
    """Semi-axes and direction of error ellipses, arrays of one shape."""

    major: np.ndarray  # longer semi-axis [px]
    minor: np.ndarray  # shorter semi-axis [px]
    angle: np.ndarray  # of the longer one, from the x axis (down the rows) towards the y axis [rad], above -pi/2 and up to pi/2


def error_ellipse(covariance, coverage: float | None = None) -> ErrorEllipse:
    r"""Ellipse that holds a Gaussian position error of this covariance.

    .. math:: \lambda_\pm = \frac{C_{xx} + C_{yy}}2 \pm \sqrt{\Big(\frac{C_{xx} - C_{yy}}2\Big)^2 + C_{xy}^2}, \qquad
        \alpha = \tfrac12 \operatorname{atan2}(2 C_{xy},\, C_{xx} - C_{yy})

    Parameters
    ----------
    covariance : array (..., 2, 2)
        Of x and y [px^2], such as :func:`position_covariance` returns.
    coverage : float, optional
        Share of errors inside, between 0 and 1; the semi-axes are :math:`\sqrt{-2\ln(1 - p)}` standard deviations long.
        Without it they are one standard deviation, which holds 39 %.

    Returns
    -------
    ErrorEllipse
        Infinite axes where a variance is infinite (an angle only if the other is not); nan for padding. A plot with y to the right and x downwards
        draws it by ``matplotlib.patches.Ellipse((y, x), 2 * minor, 2 * major, angle=-np.degrees(angle))``.

    Raises
    ------
    ValueError
        For another shape, or a coverage outside its range.

    >>> [float(part) for part in error_ellipse([[4.0, 0.0], [0.0, 1.0]])]
    [2.0, 1.0, 0.0]
    """
    covariance = np.asarray(covariance, dtype=np.float64)
    if covariance.shape[-2:] != (2, 2):
        raise ValueError(f"error_ellipse: covariance must have shape (..., 2, 2); got {covariance.shape}")
    if coverage is not None and not 0 < coverage < 1:
        raise ValueError(f"error_ellipse: coverage must lie between 0 and 1, such as 0.95; got {coverage!r}")
    length = 1.0 if coverage is None else math.sqrt(-2.0 * math.log1p(-coverage))
    xx, yy, xy = covariance[..., 0, 0], covariance[..., 1, 1], covariance[..., 0, 1]
    infinite = np.isinf(xx) | np.isinf(yy)
    a, b, c = (np.where(infinite, 0.0, entry) for entry in (xx, xy, yy))
    largest = (a + c) / 2 + np.hypot((a - c) / 2, b)
    smallest = np.maximum(a * c - b**2, 0.0) / np.where(largest > 0, largest, 1.0)  # as a quotient: the difference would cancel for thin ellipses
    angle = np.where(infinite, np.where(np.isinf(xx), 0.0, np.pi / 2), np.arctan2(2 * b, a - c) / 2)
    angle = np.where(np.isinf(xx) & np.isinf(yy), np.nan, angle)
    largest, smallest = np.where(infinite, np.inf, largest), np.where(infinite, np.minimum(xx, yy), smallest)
    return ErrorEllipse(length * np.sqrt(largest), length * np.sqrt(smallest), angle)


def resolution_limit(intensity, plane: FocalPlane, *, centre=None, angle: float = 0.0, saturated: str = "censored", prior: float | None = None):
    r"""Smallest separation of two equal targets that exceeds its own Cramér–Rao bound, :math:`\delta = \sigma_\text{CRB}(\delta)` (Smith's criterion).

    Rayleigh's criterion knows the optics only. This one knows the noise: for close pairs the bound on their separation grows like :math:`1/\delta`, so
    the limit falls like :math:`(\tau / s)^{1/2}`, and no optics is the end of resolution. Positions and intensities of both are unknown. Below
    the limit, the error of the separation is larger than the separation. S. T. Smith, "Statistical resolution limits and the complexified Cramér–Rao
    bound", IEEE Transactions on Signal Processing 53 (2005).

    Parameters
    ----------
    intensity : float or array
        Total flux of each of the two targets [grey levels].
    plane : FocalPlane
        Optics and sensor; its noise is that of :func:`noise_deviation`.
    centre : (float, float), optional
        Middle of the pair [px]; the centre of the frame's middle pixel by default.
    angle : float
        Direction of the pair, from the x axis towards the y axis [rad].
    saturated, prior
        As for :func:`fisher_information`.

    Returns
    -------
    float or array, like ``intensity``
        Separation [px], found between 0.001 and 10 PSF widths; infinite if none of these is resolved. Divide by ``plane.rayleigh`` for Rayleigh units.

    Raises
    ------
    ValueError
        For an intensity that is not positive and finite, or so high that the limit is below 0.001 PSF widths; else as :func:`fisher_information`.

    >>> round(float(resolution_limit(235.0, FocalPlane(bits=None, read_noise=1.0))), 3)
    0.08
    """
    fluxes = np.asarray(intensity, dtype=np.float64)
    if not (np.isfinite(fluxes) & (fluxes > 0)).all():
        raise ValueError(f"resolution_limit: intensity must be positive and finite, in grey levels; got {intensity!r}")
    centre = np.array([(size - 1) // 2 for size in plane.shape] if centre is None else centre, dtype=np.float64)
    if centre.shape != (2,) or not np.isfinite(centre).all():
        raise ValueError(f"resolution_limit: centre must be two finite numbers (x, y) in pixels; got {centre.tolist()!r}")
    _check_options(Targets.from_lists([], []), plane, saturated, prior)
    limits = [_smallest_resolved(_SeparationBound(flux, plane, centre, float(angle), saturated, prior), plane.sigma) for flux in fluxes.ravel()]
    return np.reshape(limits, fluxes.shape)[()]


class _SeparationBound(NamedTuple):
    """Bound on the separation of a pair, as a function of that separation."""

    flux: float
    plane: FocalPlane
    centre: np.ndarray
    angle: float
    saturated: str
    prior: float | None

    def __call__(self, separation) -> np.ndarray:
        separation = np.atleast_1d(separation)
        along = np.array([math.cos(self.angle), math.sin(self.angle)])
        half = 0.5 * separation[:, None] * along
        pairs = Targets(np.stack([self.centre + half, self.centre - half], axis=1), np.full((len(half), 2), self.flux), np.full(len(half), 2))
        # Parameters of the pair: means, then differences, with axes along and across. The separation is the difference along, entry 3. In these
        # parameters near coincidence spoils the means only; as a difference of two nearly infinite variances the bound would cancel away.
        turn = np.array([[along[0], -along[1], 0.0], [along[1], along[0], 0.0], [0.0, 0.0, 1.0]])
        pair_parameters = np.kron([[1.0, 0.5], [1.0, -0.5]], turn)
        scores = _scores(pairs, self.plane, self.saturated) @ pair_parameters
        information = np.swapaxes(scores, 1, 2) @ scores
        if self.prior is not None:
            information += pair_parameters.T @ _prior_information(2, self.prior) @ pair_parameters
        return np.sqrt(covariance_bound(information)[:, 3, 3])


def _smallest_resolved(bound, sigma: float) -> float:
    """First root of bound(separation) = separation, bracketed on a geometric grid."""
    grid = np.geomspace(1e-3 * sigma, 10.0 * sigma, 200)
    resolved = bound(grid) < grid
    if resolved[0]:
        raise ValueError(
            f"resolution_limit: at intensity {bound.flux:g} the limit lies below {grid[0]:g} px, too near for float64; lower the intensity or raise the noise"
        )
    if not resolved.any():
        return math.inf
    first = int(np.argmax(resolved))
    # As separation over bound, which stays finite where the bound is infinite.
    return float(brentq(lambda separation: separation / bound(separation)[0] - 1.0, grid[first - 1], grid[first], xtol=1e-12 * sigma))


def _scores(targets: Targets, plane: FocalPlane, saturated: str) -> np.ndarray:
    """Jacobian in units of the noise, each pixel weighted by what clipping leaves of it: (n, pixels, 3K)."""
    share = _share_of_information(plane.expected(targets), plane, saturated).reshape(len(targets), -1, 1)
    return jacobian(targets, plane) * np.sqrt(share) / noise_deviation(plane)


def _share_of_information(expected: np.ndarray, plane: FocalPlane, saturated: str) -> np.ndarray:
    """What clipping leaves of each pixel's information, from 0 (lost to saturation) to 1."""
    top = plane.full_scale - 0.5
    if saturated == "dropped":
        return (expected < top).astype(np.float64)
    share = _one_sided_share((top - expected) / noise_deviation(plane))
    if plane.bits is not None and plane.read_noise > 0:
        share += _one_sided_share((expected - 0.5) / noise_deviation(plane)) - 1.0
    return np.maximum(share, 0.0)


def _one_sided_share(margin: np.ndarray) -> np.ndarray:
    """The weight w(a) of the module's text."""
    margin = np.clip(margin, -FAR_MARGIN, FAR_MARGIN)
    density = np.exp(-0.5 * margin**2) / math.sqrt(2.0 * math.pi)
    hazard = math.sqrt(2.0 / math.pi) / erfcx(margin / math.sqrt(2.0))  # density over Phi(-margin), without underflow
    return ndtr(margin) + density * (hazard - margin)


def _prior_information(capacity: int, prior: float) -> np.ndarray:
    """Information of independent Gaussian knowledge of each intensity, (3K, 3K)."""
    return np.diag(np.tile([0.0, 0.0, 1.0 / float(prior) ** 2], capacity))


def _check_options(targets, plane, saturated, prior) -> None:
    if not isinstance(targets, Targets):
        raise TypeError(f"limits: targets must be csist.Targets; got {type(targets).__name__}. Targets.from_lists builds one from plain lists")
    if not isinstance(plane, FocalPlane):
        raise TypeError(f"limits: plane must be a csist.FocalPlane; got {type(plane).__name__}")
    noise_deviation(plane)
    if saturated not in ("censored", "dropped"):
        raise ValueError(f'limits: saturated must be "censored" (a clipped pixel is an inequality) or "dropped" (it is ignored); got {saturated!r}')
    if prior is not None and not (isinstance(prior, (int, float, np.number)) and 0 < prior < math.inf):
        raise ValueError(f"limits: prior must be None or a standard deviation > 0 in grey levels, such as INTENSITY_PRIOR; got {prior!r}")
