"""Greedy unmixing: orthogonal matching pursuit on the sub-pixel grid (book chapter "Sparse recovery")."""
from __future__ import annotations

import math

import numpy as np

from csist.imaging import FocalPlane, SubpixelGrid, check_frames
from csist.solvers.ista import SteeringOperator, check_number

BLOCK = 256  # frames treated together


def omp(frames, plane: FocalPlane, grid: SubpixelGrid, n_targets=None, tolerance: float | None = None, max_targets: int = 5) -> np.ndarray:
    r"""Orthogonal matching pursuit: take the best-matching sub-pixel, refit all intensities taken so far, repeat on what is left.

    .. math:: j_k = \arg\max_j \frac{|g_j^T e|}{\lVert g_j\rVert}, \qquad
              s_{J_k} = \arg\min_s \lVert z - G_{J_k} s\rVert_2, \qquad e = z - G_{J_k} s_{J_k}

    Columns are normalised for the choice, or those of sub-pixels at a pixel's centre would always win; intensities come in grey levels of total flux, and
    nothing keeps them positive. It fails on close targets for a reason worth seeing: the first sub-pixel taken is the one under the blend's centroid,
    and it is never given back.

    Parameters
    ----------
    frames : array (n, rows, columns), any real dtype
        Measured frames z [grey levels].
    plane, grid : FocalPlane, SubpixelGrid
        The model G.
    n_targets : int or array (n,), optional
        Number of targets to take, for all frames or for each.
    tolerance : float, optional
        Stop a frame when its residual's norm :math:`\lVert e\rVert_2` is at most this [grey levels]. With ``n_targets`` the earlier of both rules holds and the
        default is 0; without, it is :math:`\sqrt{\text{pixels}/12}`, the norm that rounding to whole grey levels leaves of a perfect fit (3.2 for 121 pixels).
    max_targets : int
        Largest number of targets of a frame where ``n_targets`` is not given.

    Returns
    -------
    array (n, c*rows, c*columns), float64
        Intensities at the sub-pixels taken [grey levels], zero elsewhere.

    Raises
    ------
    ValueError
        For frames of another shape or not finite, a count below 0 or above the number of pixels, a negative tolerance.

    >>> plane, grid = FocalPlane(), SubpixelGrid(ratio=3)
    >>> image = omp(240 * plane.response(5.0, 3.0)[None], plane, grid)[0]
    >>> [int(i) for i in np.argwhere(image > 1)[0]], round(float(image.max()), 6)
    ([16, 10], 240.0)
    """
    operator = SteeringOperator(plane, grid)
    frames = check_frames(frames, plane.shape).astype(np.float64)
    most = min(math.prod(plane.shape), math.prod(grid.shape))
    if tolerance is None:
        tolerance = 0.0 if n_targets is not None else math.sqrt(math.prod(plane.shape) / 12)
    check_number("tolerance", tolerance, 0, "the residual norm in grey levels at which a frame stops")
    counts = _check_counts("max_targets" if n_targets is None else "n_targets", max_targets if n_targets is None else n_targets, len(frames), most)
    images = np.zeros((len(frames), *grid.shape))
    for first in range(0, len(frames), BLOCK):
        block = slice(first, first + BLOCK)
        images[block] = _pursue(operator, frames[block], counts[block], tolerance)
    return images


def _check_counts(name: str, value, n: int, most: int) -> np.ndarray:
    """Targets to take per frame, (n,) int64."""
    counts = np.asarray(value)
    if counts.dtype.kind not in "iu" or counts.shape not in ((), (n,)) or (counts < 0).any() or (counts > most).any():
        raise ValueError(f"{name} must be a whole number from 0 to {most}{', or one per frame' if name == 'n_targets' else ''}; got {value!r}")
    return np.broadcast_to(counts, (n,)).astype(np.int64)


def _pursue(operator: SteeringOperator, frames: np.ndarray, counts: np.ndarray, tolerance: float) -> np.ndarray:
    """Orthogonal matching pursuit of one block; all frames take their k-th sub-pixel together."""
    n, width = len(frames), operator.grid.shape[1]
    norms = np.linalg.norm(operator.rows, axis=0)[:, None] * np.linalg.norm(operator.columns, axis=0)  # |g_j| = |a_x| |a_y|
    images, residual = np.zeros((n, *operator.grid.shape)), frames.copy()
    chosen = np.zeros((n, counts.max(initial=0)), dtype=np.int64)
    active = np.arange(n)
    for k in range(counts.max(initial=0)):
        active = active[(counts[active] > k) & (np.linalg.norm(residual[active], axis=(1, 2)) > tolerance)]
        if not len(active):
            break
        match = (np.abs(operator.adjoint(residual[active])) / norms).reshape(len(active), -1)  # |g_j^T e| / |g_j|
        np.put_along_axis(match, chosen[active, :k], -1.0, axis=1)  # a sub-pixel is taken once, whatever rounding says
        chosen[active, k] = match.argmax(1)
        row, column = np.divmod(chosen[active, : k + 1], width)  # (m, k + 1)
        atoms = (operator.rows.T[row][..., :, None] * operator.columns.T[column][..., None, :]).reshape(*row.shape, -1)  # (m, k + 1, pixels)
        # s_J = argmin |z - G_J s|  by QR:  G_J = Q R,  R s = Q^T z
        q, r = np.linalg.qr(np.swapaxes(atoms, 1, 2))
        intensity = np.linalg.solve(r, np.swapaxes(q, 1, 2) @ frames[active].reshape(len(active), -1, 1))[..., 0]  # (m, k + 1)
        residual[active] = frames[active] - np.einsum("mk,mkp->mp", intensity, atoms).reshape(len(active), *operator.plane.shape)
        images[active[:, None], row, column] = intensity
    return images
