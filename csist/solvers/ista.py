r"""Sparse unmixing by proximal gradient steps: ISTA, and FISTA with momentum (paper, section 3.2; book chapter "Sparse recovery").

The problem is the Lasso on the sub-pixel grid,

.. math:: \min_s\; F(s) = \tfrac12\lVert z - G s\rVert_2^2 + \lambda\lVert s\rVert_1 .

**What lambda means.** Column :math:`g` of G is the frame of a unit-flux target, without unit, so :math:`\lambda` is in grey levels, like the residual.
A target that survives alone on its sub-pixel is estimated as :math:`s - \lambda/\lVert g\rVert^2`, too dim by 3.8 to 4.5 lambda inside the frame and 8.6 in its
corners (c = 3, sigma = 0.5 px); one with :math:`|g^T z| \le \lambda` is removed. scikit-learn's ``Lasso`` divides the data term by the number of pixels:
its ``alpha`` is lambda / 121. The paper writes the objective without the factor 1/2, but iterates with gradient :math:`G^T(Gs - z)` and threshold
:math:`\lambda\rho`, which minimises the F above; as a minimiser of the printed objective the same point belongs to the weight :math:`2\lambda`. We keep the
paper's threshold, hence its numbers for lambda.

**Why it is fast.** G is the Kronecker product of two small matrices, so on images, :math:`G s = A_x S A_y^T`, :math:`G^T r = A_x^T R A_y` and
:math:`\lVert G\rVert_2 = \lVert A_x\rVert_2\lVert A_y\rVert_2`: 0.03 million multiplications a step instead of 0.26 million at c = 3.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from csist.imaging import FocalPlane, SubpixelGrid, check_frames, check_plane

BLOCK = 32  # frames that iterate together: their arrays stay in the processor's cache


class SteeringOperator:
    r"""The steering matrix as an operator on images, :math:`G s = A_x S A_y^T`; it never forms the matrix.

    Parameters
    ----------
    plane : FocalPlane
        Optics and sensor.
    grid : SubpixelGrid
        Candidate positions; it must divide a frame of the plane's shape.

    Raises
    ------
    ValueError
        If grid and plane disagree about the frame's shape.

    >>> operator = SteeringOperator(FocalPlane(), SubpixelGrid(ratio=3))
    >>> operator.forward(np.ones((2, 33, 33))).shape, round(operator.squared_norm, 4)
    ((2, 11, 11), 8.5866)
    """

    def __init__(self, plane: FocalPlane, grid: SubpixelGrid):
        if grid.frame_shape != plane.shape:
            raise ValueError(f"SteeringOperator: the grid divides a frame of {grid.frame_shape}, the focal plane has {plane.shape}; make them equal")
        self.plane, self.grid = plane, grid
        self.rows, self.columns = (plane.axis_matrix(grid, axis) for axis in (0, 1))  # A_x (rows, c rows), A_y (columns, c columns)
        self.rows_transposed, self.columns_transposed = (np.ascontiguousarray(matrix.T) for matrix in (self.rows, self.columns))
        self.squared_norm = float(np.linalg.norm(self.rows, 2) ** 2 * np.linalg.norm(self.columns, 2) ** 2)  # |G|^2 = |A_x|^2 |A_y|^2

    def forward(self, images) -> np.ndarray:
        """Frames ``G s`` (n, rows, columns) of sub-pixel images (n, c*rows, c*columns)."""
        return self.rows @ (images @ self.columns_transposed)

    def adjoint(self, frames) -> np.ndarray:
        """Correlations ``G^T r`` (n, c*rows, c*columns) of frames (n, rows, columns) with every sub-pixel's response."""
        return self.rows_transposed @ (frames @ self.columns)

    def pinv(self, frames, rcond: float = 1e-15) -> np.ndarray:
        r"""Least-norm solution :math:`G^+ z`, as ``numpy.linalg.pinv(G, rcond) @ z`` gives it but by one small SVD per axis.

        .. math:: G^+ z = V_x\left[(U_x^T Z U_y)_{ij} / (\sigma_i \tau_j)\right] V_y^T

        The singular values of G are the products of the axes' values. Entries with :math:`\sigma_i\tau_j` up to ``rcond`` times the largest are dropped,
        numpy's rule on the full matrix; ``pinv(A_x)`` and ``pinv(A_y)`` taken apart would apply it per axis and keep products down to rcond squared.
        At sigma = 0.5 px the condition number of G is 12.6 at every c, and all three agree to 1e-14; they part only for a PSF so wide that G is
        singular in float64.
        """
        u, sigma, v = np.linalg.svd(self.rows, full_matrices=False)
        w, tau, x = np.linalg.svd(self.columns, full_matrices=False)
        product = sigma[:, None] * tau[None, :]
        inverse = np.where(product > rcond * product[0, 0], 1 / np.where(product > 0, product, 1.0), 0.0)
        return v.T @ ((u.T @ frames @ w) * inverse) @ x


def soft_threshold(values, threshold) -> np.ndarray:
    r"""Shrink towards zero: the proximal map of :math:`\theta\lVert\cdot\rVert_1`.

    .. math:: \operatorname{soft}(v, \theta) = \operatorname{sign}(v)\max(|v| - \theta, 0) = v - \min(\max(v, -\theta), \theta)

    Parameters
    ----------
    values : array (...)
        Values v.
    threshold : float or array that broadcasts against ``values``
        Threshold :math:`\theta \ge 0`, in the unit of the values.

    >>> soft_threshold([-3.0, 0.5, 2.0], 1.0).tolist()
    [-2.0, 0.0, 1.0]
    """
    values, threshold = np.asarray(values, dtype=np.float64), np.asarray(threshold, dtype=np.float64)
    if not (threshold >= 0).all():
        raise ValueError(f"soft_threshold: threshold must be >= 0 (a negative one would push values apart); got {threshold.min()!r}")
    return values - np.clip(values, -threshold, threshold)


@dataclass
class SparseResult:
    """What :func:`ista` and :func:`fista` return.

    Parameters
    ----------
    image : array (n, c*rows, c*columns), float64
        Sub-pixel intensities [grey levels of total flux].
    objective : array (iterations + 1, n), float64, or None
        The objective F after 0, 1, 2 ... iterations [grey levels squared]; a frame that has stopped repeats its last value.
    iterations : array (n,), int64
        Iterations that each frame took.
    converged : array (n,), bool
        True where the stopping rule was met, False where the iterations ran out.
    """

    image: np.ndarray
    objective: np.ndarray | None
    iterations: np.ndarray
    converged: np.ndarray


def ista(
    frames,
    plane: FocalPlane,
    grid: SubpixelGrid,
    *,
    sparsity: float,
    step: float | None = None,
    initial="zero",
    max_iterations: int = 3000,
    tolerance: float = 1e-4,
    momentum: bool = False,
    non_negative: bool = False,
    mask_saturated: bool = False,
    record_objective: bool = True,
) -> SparseResult:
    r"""Minimise :math:`\frac12\lVert W(z - G s)\rVert^2 + \lambda\lVert s\rVert_1` by iterated shrinkage (paper, section 3.2).

    .. math:: s^{k+1} = \operatorname{soft}\big(y^k - \rho\, G^T W (G y^k - z),\; \lambda\rho\big)

    with :math:`y^k = s^k` (ISTA), or if ``momentum`` (FISTA) with the extrapolated point

    .. math:: y^{k+1} = s^{k+1} + \frac{t_k - 1}{t_{k+1}}(s^{k+1} - s^k), \qquad t_{k+1} = \tfrac12\big(1 + \sqrt{1 + 4t_k^2}\big), \qquad t_0 = 1.

    W is the identity unless saturated pixels are masked. ISTA's objective never rises; FISTA's may ripple on its way to the same minimum.
    A frame's answer does not depend on the frames beside it: each one stops by itself when

    .. math:: \lVert s^{k+1} - s^k\rVert_2 \le \text{tolerance}\quad\text{[grey levels]},

    an absolute change, as in the reference toolkit (1e-4, far below any intensity of interest).

    Parameters
    ----------
    frames : array (n, rows, columns), any real dtype
        Measured frames z [grey levels].
    plane, grid : FocalPlane, SubpixelGrid
        The model G; see :meth:`csist.imaging.FocalPlane.steering_matrix`.
    sparsity : float
        Weight lambda >= 0 of the l1 norm [grey levels]; the module's docstring says what it means and how the paper's is related.
    step : float, optional
        Step rho; by default :math:`1/\lVert G\rVert_2^2`. Above twice that (once with momentum) the iteration may diverge, which is an error.
    initial : "zero", "pinv" or array (n, c*rows, c*columns)
        First estimate: nothing, the least-norm solution :math:`G^+ z` (the toolkit's choice) or given images [grey levels].
    max_iterations : int
        Largest number of iterations, >= 0.
    tolerance : float
        Change at which a frame stops [grey levels]; 0 runs until nothing changes at all.
    momentum : bool
        FISTA instead of ISTA.
    non_negative : bool
        Also demand s >= 0 (light adds): the shrinkage becomes max(v - lambda rho, 0), and a negative part of ``initial`` is removed.
    mask_saturated : bool
        Leave pixels at the sensor's full scale out of the data term (W = 0 there): a clipped pixel says only "at least 255", the linear model takes it
        as "255". No effect on a sensor that does not clip. The step stays valid because W <= 1.
    record_objective : bool
        Keep F of every iteration and frame.

    Raises
    ------
    ValueError
        For frames of another shape or not finite, and for settings out of range; the message names the range.

    >>> plane, grid = FocalPlane(), SubpixelGrid(ratio=3)
    >>> frame = 240 * plane.response(5.0, 3.0)[None]
    >>> result = ista(frame, plane, grid, sparsity=0.01, non_negative=True, momentum=True, max_iterations=5000)
    >>> np.unravel_index(result.image[0].argmax(), grid.shape) == tuple(grid.to_index([5.0, 3.0])), bool(result.image.max() > 239.8)
    (True, True)
    """
    operator = SteeringOperator(plane, grid)
    frames = check_frames(frames, plane.shape).astype(np.float64)
    step = _check_settings(operator, sparsity, step, max_iterations, tolerance, momentum)
    start = _initial_images(initial, frames, operator)
    weights = (frames < plane.full_scale).astype(np.float64) if mask_saturated else None
    options = (sparsity, step, max_iterations, tolerance, momentum, non_negative, record_objective)
    blocks = [slice(first, first + BLOCK) for first in range(0, len(frames), BLOCK)] or [slice(0, 0)]
    results = [_iterate(operator, frames[block], start[block], None if weights is None else weights[block], *options) for block in blocks]
    return _concatenate(results)


def fista(frames, plane: FocalPlane, grid: SubpixelGrid, *, sparsity: float, **options) -> SparseResult:
    """ISTA with momentum: the same minimum in about the square root of the iterations; arguments as for :func:`ista`.

    >>> plane, grid = FocalPlane(), SubpixelGrid(ratio=3)
    >>> frame = 240 * plane.response(5.0, 3.0)[None]
    >>> slow, fast = (solve(frame, plane, grid, sparsity=1.0, max_iterations=100) for solve in (ista, fista))
    >>> bool(fast.objective[-1, 0] < slow.objective[-1, 0])
    True
    """
    return ista(frames, plane, grid, sparsity=sparsity, **{**options, "momentum": True})


@dataclass(frozen=True)
class IstaSettings:
    """One complete setting of :func:`ista`, and the threshold that reads targets from its image.

    >>> PAPER.sparsity, PAPER.max_iterations, PAPER.threshold
    (1.0, 3000, 50.0)
    """

    sparsity: float  # lambda [grey levels]
    initial: str = "pinv"  # first estimate
    max_iterations: int = 3000
    tolerance: float = 1e-4  # change at which a frame stops [grey levels]
    momentum: bool = False  # FISTA
    non_negative: bool = False
    mask_saturated: bool = False
    threshold: float = 50.0  # sub-pixels brighter than this are detections [grey levels]; for the reader of the image, not used by the solver


PAPER = IstaSettings(sparsity=1.0)  # the reference toolkit's script and the paper's detection threshold; the paper prints 7.46 for ISTA
# Chosen on validation frames by reproduce/tune_ista.py: what helps is s >= 0 and leaving saturated pixels out; lambda is next to nothing.
TUNED = IstaSettings(sparsity=0.002, max_iterations=1500, momentum=True, non_negative=True, mask_saturated=True)


def unmix_ista(frames, plane: FocalPlane | None = None, ratio: int = 3, settings: IstaSettings = TUNED, **changes) -> np.ndarray:
    """Sub-pixel images (n, c*rows, c*columns) float64 of frames (n, rows, columns), by one of the presets ``PAPER`` and ``TUNED`` or a setting of yours.

    Parameters
    ----------
    frames : array (n, rows, columns), any real dtype
        Measured frames [grey levels].
    plane : FocalPlane, optional
        Optics and sensor; by default those of CSIST-100K.
    ratio : int
        Sub-pixels along a pixel's side, c.
    settings : IstaSettings
        All choices of the solver. Its ``threshold`` is not applied: the image is returned as solved.
    changes
        Fields of ``settings`` to replace, for example ``momentum=False``.

    >>> unmix_ista(np.zeros((2, 11, 11), dtype=np.uint8)).shape
    (2, 33, 33)
    """
    plane = check_plane(plane)
    chosen = vars(replace(settings, **changes)) | {"record_objective": False}
    del chosen["threshold"]
    return ista(frames, plane, SubpixelGrid(plane.shape, ratio), **chosen).image


def check_number(name: str, value, low: float, meaning: str) -> float:
    """A finite number >= ``low``; a clear error for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not np.isfinite(value) or value < low:
        raise ValueError(f"{name} must be {meaning}, a finite number >= {low}; got {value!r}")
    return float(value)


def _check_settings(operator: SteeringOperator, sparsity, step, max_iterations, tolerance, momentum) -> float:
    """Raise for a setting out of range; return the step."""
    check_number("sparsity", sparsity, 0, "the weight lambda of the l1 norm in grey levels")
    check_number("tolerance", tolerance, 0, "the change in grey levels at which a frame stops")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, (int, np.integer)) or max_iterations < 0:
        raise ValueError(f"max_iterations must be a whole number >= 0; got {max_iterations!r}")
    if step is None:
        return 1 / operator.squared_norm
    step, most = check_number("step", step, 0, "the gradient's step length"), 1 if momentum else 2
    bound = most / operator.squared_norm
    if not 0 < step <= bound * (1 + 1e-12):
        raise ValueError(f"step must be above 0 and at most {most} / |G|^2 = {bound:.6g} or the iteration may diverge; got {step!r}. None takes 1 / |G|^2")
    return step


def _initial_images(initial, frames: np.ndarray, operator: SteeringOperator) -> np.ndarray:
    """The first estimate, (n, c*rows, c*columns) float64."""
    shape = (len(frames), *operator.grid.shape)
    if isinstance(initial, str) and initial == "zero":
        return np.zeros(shape)
    if isinstance(initial, str) and initial == "pinv":
        return operator.pinv(frames)
    if isinstance(initial, str):
        raise ValueError(f'initial must be "zero", "pinv" or images of shape {shape}; got {initial!r}')
    images = np.array(initial, dtype=np.float64)
    if images.shape != shape or not np.isfinite(images).all():
        raise ValueError(f'initial must be "zero", "pinv" or finite images of shape {shape}; got shape {images.shape}')
    return images


def _iterate(operator, frames, image, weights, sparsity, step, max_iterations, tolerance, momentum, non_negative, record_objective) -> SparseResult:
    """All iterations of one block of frames; finished frames leave the arrays."""
    n = len(frames)
    image = np.maximum(image, 0.0) if non_negative else image
    shrink = (lambda v: np.maximum(v - sparsity * step, 0.0)) if non_negative else (lambda v: v - np.clip(v, -sparsity * step, sparsity * step))
    result = SparseResult(image.copy(), None, np.full(n, max_iterations, dtype=np.int64), np.zeros(n, dtype=bool))
    active = np.arange(n)  # frames that still move
    predicted = operator.forward(image)  # G s
    history = [_objective(image, predicted, frames, weights, sparsity)] if record_objective else None
    point, point_predicted, t = image, predicted, 1.0  # y, G y
    for k in range(1, max_iterations + 1):
        if not len(active):
            break
        residual = point_predicted - frames if weights is None else weights * (point_predicted - frames)
        # s^{k+1} = soft(y^k - rho G^T W (G y^k - z), lambda rho)
        new_image = shrink(point - step * operator.adjoint(residual))
        new_predicted = operator.forward(new_image)
        move = new_image - image
        done = np.einsum("nij,nij->n", move, move) <= tolerance**2
        if momentum:
            new_t = (1 + np.sqrt(1 + 4 * t * t)) / 2
            # y^{k+1} = s^{k+1} + (t_k - 1) / t_{k+1} (s^{k+1} - s^k), and G y follows by linearity
            point, point_predicted, t = new_image + (t - 1) / new_t * move, new_predicted + (t - 1) / new_t * (new_predicted - predicted), new_t
        else:
            point, point_predicted = new_image, new_predicted
        image, predicted = new_image, new_predicted
        if record_objective:
            history.append(history[-1].copy())
            history[-1][active] = _objective(image, predicted, frames, weights, sparsity)
        if done.any():
            result.image[active[done]], result.iterations[active[done]], result.converged[active[done]] = image[done], k, True
            keep = ~done
            active, frames, image, predicted, point, point_predicted = (a[keep] for a in (active, frames, image, predicted, point, point_predicted))
            weights = None if weights is None else weights[keep]
    result.image[active] = image
    result.objective = np.array(history) if record_objective else None
    return result


def _objective(image, predicted, frames, weights, sparsity) -> np.ndarray:
    """F = 1/2 |W (z - G s)|^2 + lambda |s|_1 of each frame, (n,)."""
    residual = frames - predicted if weights is None else weights * (frames - predicted)
    return 0.5 * (residual**2).sum((1, 2)) + sparsity * np.abs(image).sum((1, 2))


def _concatenate(results: list[SparseResult]) -> SparseResult:
    """Join blocks; a shorter history is continued with its last values."""
    image, iterations, converged = (np.concatenate([getattr(r, name) for r in results]) for name in ("image", "iterations", "converged"))
    if results[0].objective is None:
        return SparseResult(image, None, iterations, converged)
    length = max(len(r.objective) for r in results)
    history = [np.pad(r.objective, ((0, length - len(r.objective)), (0, 0)), mode="edge") for r in results]
    return SparseResult(image, np.concatenate(history, axis=1), iterations, converged)
