"""The focal plane: from point targets to an 11 x 11 frame.

One convention everywhere: **x is the row, y is the column**, pixel centres sit at integers, pixel edges at half integers,
and every array is row-major (pixel (i, j) of an 11 x 11 frame is entry ``11 * i + j`` of its vector).
Derived in the book's chapter "The focal plane"; the paper's section 3.1 states the same model as a double integral.
"""
from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import erf, erfc

RAYLEIGH_PER_SIGMA = 1.9  # Airy radius over the standard deviation of the Gaussian with the Airy disc's share of light inside it (paper, section 3.1)


def pixel_profile(position, n_pixels: int, sigma: float) -> np.ndarray:
    r"""Fraction of a unit-flux line spread that each pixel of one axis collects.

    .. math:: g_k(u) = \tfrac12\left[\operatorname{erf}\frac{k + 1/2 - u}{\sqrt2\,\sigma} - \operatorname{erf}\frac{k - 1/2 - u}{\sqrt2\,\sigma}\right]

    Parameters
    ----------
    position : array (...)
        Coordinate ``u`` along the axis [px].
    n_pixels : int
        Number of pixels ``k = 0 .. n_pixels - 1``.
    sigma : float
        Standard deviation of the Gaussian PSF [px].

    Returns
    -------
    array (..., n_pixels), float64
        Exact to rounding, the far tails included: there the difference is taken of ``erfc`` on the side where it is small.

    >>> pixel_profile(0.0, 3, 0.5).round(4).tolist()
    [0.6827, 0.1573, 0.0013]
    """
    u = np.asarray(position, dtype=np.float64)[..., None]
    edges = (np.arange(n_pixels + 1) - 0.5 - u) / (math.sqrt(2.0) * sigma)
    low, high = edges[..., :-1], edges[..., 1:]
    # Two values of erf near 1 cancel; by symmetry erf(b) - erf(a) = erfc(|near|) - erfc(|far|) when both ends lie on one side.
    near, far = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
    return 0.5 * np.where(low * high > 0, erfc(near) - erfc(far), erf(high) - erf(low))


def pixel_profile_derivative(position, n_pixels: int, sigma: float) -> np.ndarray:
    r"""Derivative of :func:`pixel_profile` by the position: the PSF's height at the pixel's lower edge minus that at its upper one.

    .. math:: g_k'(u) = \varphi_\sigma(k - \tfrac12 - u) - \varphi_\sigma(k + \tfrac12 - u), \qquad
        \varphi_\sigma(e) = \frac{e^{-e^2/2\sigma^2}}{\sqrt{2\pi}\,\sigma}

    Parameters and shapes are those of :func:`pixel_profile`; the result is per pixel [1/px], exact to rounding, the far tails included.

    >>> pixel_profile_derivative(0.0, 3, 0.5).round(4).tolist()
    [0.0, 0.4751, 0.0089]
    """
    centre = (np.arange(n_pixels) - np.asarray(position, dtype=np.float64)[..., None]) / sigma
    half = 0.5 / sigma
    near = np.abs(centre) - half
    # The difference of two Gaussians as one Gaussian times expm1: nothing cancels and nothing overflows.
    return -np.sign(centre) * np.exp(-0.5 * near**2) * np.expm1(-2.0 * half * np.abs(centre)) / (math.sqrt(2.0 * math.pi) * sigma)


@dataclass(frozen=True, init=False)
class SubpixelGrid:
    """The c x c division of every pixel into candidate positions (paper, section 3.2; book chapter "A grid of candidates").

    Sub-pixel ``i`` of an axis is centred at ``(i - (c - 1) / 2) / c`` px.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the frame [px].
    ratio : int
        Odd number ``c`` of sub-pixels along a pixel's side, so that one of them is centred on the pixel.

    >>> SubpixelGrid(ratio=3).shape
    (33, 33)
    """

    frame_shape: tuple[int, int]
    ratio: int

    def __init__(self, shape=(11, 11), ratio: int = 3):
        object.__setattr__(self, "frame_shape", check_shape(shape))
        object.__setattr__(self, "ratio", check_ratio(ratio))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the sub-pixel image, ``(c * rows, c * columns)``."""
        rows, columns = self.frame_shape
        return rows * self.ratio, columns * self.ratio

    @property
    def offset(self) -> int:
        """Index of the sub-pixel that is centred on pixel 0, ``(c - 1) / 2``."""
        return (self.ratio - 1) // 2

    def to_index(self, xy) -> np.ndarray:
        """Sub-pixel (row, column) nearest to positions ``xy`` (..., 2) [px]; half-way cases go to the even index.

        >>> SubpixelGrid(ratio=3).to_index([5.0, 3.4]).tolist()
        [16, 11]
        """
        xy = np.asarray(xy, dtype=np.float64)
        if not lies_on_frame(xy, self.frame_shape).all():
            raise ValueError(
                f"to_index: a position lies off the {self.frame_shape[0]} x {self.frame_shape[1]} frame; "
                "each coordinate must be finite and within -0.5 .. size - 0.5 px. (A cluster_shift moves some targets of the border's pixels off it)"
            )
        # The frame's very last edge, size - 0.5, is half-way to a sub-pixel that does not exist; rint may round it up.
        return np.minimum(np.rint(xy * self.ratio + self.offset).astype(np.int64), np.array(self.shape) - 1)

    def to_position(self, index) -> np.ndarray:
        """Centre [px] of sub-pixels given by (row, column) ``index`` (..., 2).

        >>> SubpixelGrid(ratio=3).to_position([16, 10]).tolist()
        [5.0, 3.0]
        """
        return (np.asarray(index, dtype=np.float64) - self.offset) / self.ratio

    def axis_positions(self, axis: int = 0) -> np.ndarray:
        """Centres [px] of all sub-pixels along one axis, (c * size,)."""
        return (np.arange(self.shape[axis]) - self.offset) / self.ratio

    def image(self, targets) -> np.ndarray:
        """Ground-truth sub-pixel images: each target's intensity at its nearest sub-pixel, zero elsewhere; (n, c*rows, c*columns) float32.

        Two targets on one sub-pixel (impossible at c = 3 with the preset's separation) would add up.
        """
        images = np.zeros((len(targets), *self.shape), dtype=np.float32)
        frame, slot = np.nonzero(targets.mask)
        row, column = self.to_index(targets.xy[frame, slot]).T
        np.add.at(images, (frame, row, column), targets.intensity[frame, slot])
        return images


@dataclass(frozen=True)
class FocalPlane:
    r"""Optics and sensor: how a scene of point targets becomes a frame.

    .. math:: z_{ij} = \mathrm{ADC}\Big(\sum_k s_k\, g_i(x_k)\, g_j(y_k) + n_{ij}\Big)

    with the pixel profile ``g`` of :func:`pixel_profile`, Gaussian read noise ``n`` and an analogue-to-digital step that rounds and clips.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns [px].
    sigma : float
        Standard deviation of the Gaussian PSF [px]; the pixel pitch is 1.
    bits : int or None
        Depth of the digitiser, 1 to 16; None returns the unrounded float64 expectation (plus read noise, if any).
    clip : bool
        Saturate at ``2**bits - 1`` (the paper's data do). Without it, values above wrap nowhere: the frame is returned as uint16.
    read_noise : float
        Standard deviation of Gaussian read noise [grey levels]; needs ``rng`` in :meth:`render`.

    Raises
    ------
    ValueError
        For a size, width, depth or noise outside its range; the message names the range.

    >>> plane = FocalPlane()
    >>> plane.rayleigh
    0.95
    >>> plane.response(5.0, 5.0)[5, 5].round(4).item()
    0.4661
    """

    shape: tuple[int, int] = (11, 11)
    sigma: float = 0.5
    bits: int | None = 8
    clip: bool = True
    read_noise: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape(self.shape))
        if not (is_real(self.sigma) and 0.01 <= self.sigma <= 100):
            raise ValueError(f"FocalPlane: sigma must be a PSF width in pixels between 0.01 and 100; got {self.sigma!r}. The paper uses 0.5")
        if self.bits is not None and not (isinstance(self.bits, (int, np.integer)) and not isinstance(self.bits, bool) and 1 <= self.bits <= 16):
            raise ValueError(f"FocalPlane: bits must be None (no rounding) or an integer from 1 to 16; got {self.bits!r}. The paper uses 8")
        if not isinstance(self.clip, (bool, np.bool_)):
            raise ValueError(f"FocalPlane: clip must be True (saturate at 2**bits - 1) or False; got {self.clip!r}. The paper's data are clipped")
        if not (is_real(self.read_noise) and self.read_noise >= 0):
            raise ValueError(f"FocalPlane: read_noise must be a standard deviation >= 0 in grey levels; got {self.read_noise!r}")
        # NumPy's numbers would not print as JSON in a data recipe or in the header of a weights file
        for name, kind in {"sigma": float, "bits": int, "clip": bool, "read_noise": float}.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, kind(getattr(self, name)))

    @property
    def rayleigh(self) -> float:
        """One Rayleigh unit R = 1.9 sigma [px]."""
        return RAYLEIGH_PER_SIGMA * self.sigma

    @property
    def full_scale(self) -> float:
        """Largest grey level that the sensor reports; infinite without clipping or rounding."""
        return float(2**self.bits - 1) if self.bits is not None and self.clip else math.inf

    def response(self, x, y) -> np.ndarray:
        """Frame(s) of a unit-flux target at row ``x``, column ``y`` [px]: (..., rows, columns) float64, neither rounded nor clipped."""
        rows = pixel_profile(x, self.shape[0], self.sigma)
        columns = pixel_profile(y, self.shape[1], self.sigma)
        return rows[..., :, None] * columns[..., None, :]

    def expected(self, targets) -> np.ndarray:
        """Noise-free analogue frames of ``targets``: (n, rows, columns) float64 grey levels."""
        position = np.where(targets.mask[..., None], targets.xy, 0.0)
        intensity = np.where(targets.mask, targets.intensity, 0.0)
        rows = pixel_profile(position[..., 0], self.shape[0], self.sigma) * intensity[..., None]  # (n, K, rows)
        columns = pixel_profile(position[..., 1], self.shape[1], self.sigma)  # (n, K, columns)
        return np.swapaxes(rows, 1, 2) @ columns

    def render(self, targets, rng: np.random.Generator | None = None) -> np.ndarray:
        """Frames that the sensor reports for ``targets``.

        Returns (n, rows, columns): float64 if ``bits`` is None, uint8 up to 8 bits with clipping, else uint16.

        >>> import csist
        >>> csist.FocalPlane().render(csist.Targets([[[5.0, 5.0]]], [[240.0]], [1]))[0, 5, 4:7].tolist()
        [26, 112, 26]
        """
        frames = self.expected(targets)
        if self.read_noise > 0:
            check_generator(rng, "render: read_noise > 0 needs a random generator")
            frames = frames + rng.normal(0.0, self.read_noise, frames.shape)
        return self.digitise(frames)

    def digitise(self, frames) -> np.ndarray:
        """Round to grey levels and clip, as the analogue-to-digital converter does; the identity if ``bits`` is None."""
        if self.bits is None:
            return frames
        ceiling = min(self.full_scale, 65535.0)
        levels = np.clip(np.rint(frames), 0, ceiling)
        return levels.astype(np.uint8 if ceiling <= 255 else np.uint16)

    def axis_matrix(self, grid: SubpixelGrid, axis: int = 0) -> np.ndarray:
        """One axis of the steering matrix: (pixels, sub-pixels) float64."""
        return pixel_profile(grid.axis_positions(axis), self.shape[axis], self.sigma).T

    def steering_matrix(self, grid: SubpixelGrid) -> np.ndarray:
        r"""Response of every pixel to every sub-pixel, :math:`G = A_x \otimes A_y`, (rows*columns, c^2*rows*columns) float64.

        >>> FocalPlane().steering_matrix(SubpixelGrid(ratio=3)).shape
        (121, 1089)
        """
        if grid.frame_shape != self.shape:
            raise ValueError(f"steering_matrix: the grid divides a frame of {grid.frame_shape}, the focal plane has {self.shape}; make them equal")
        return _kronecker(self, grid).copy()


@lru_cache(maxsize=8)
def _kronecker(plane: FocalPlane, grid: SubpixelGrid) -> np.ndarray:
    return np.kron(plane.axis_matrix(grid, 0), plane.axis_matrix(grid, 1))


def is_real(value) -> bool:
    """Whether a value is one finite real number; True and False are none."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(value, what: str, smallest: int = 1) -> int:
    """A whole number of at least ``smallest`` as an int; anything else is an error that begins with ``what``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
        raise ValueError(f"{what} must be a whole number >= {smallest}; got {value!r}")
    return int(value)


def check_plane(plane) -> FocalPlane:
    """A focal plane, the paper's for None; a clear error for anything else."""
    if plane is not None and not isinstance(plane, FocalPlane):
        raise TypeError(f"plane must be a FocalPlane, for example FocalPlane(sigma=0.6), or None for the paper's; got {plane!r}")
    return FocalPlane() if plane is None else plane


def lies_on_frame(xy, shape, margin: float = 0.0) -> np.ndarray:
    """True for positions ``xy`` (..., 2) within the edges of a frame of ``shape``, or up to ``margin`` beyond them [px]; False for nan.

    >>> lies_on_frame([[10.5, 0.0], [10.6, 0.0]], (11, 11)).tolist()
    [True, False]
    """
    xy = np.asarray(xy, dtype=np.float64)
    return ((xy >= -0.5 - margin) & (xy <= np.array(shape) - 0.5 + margin)).all(axis=-1)


def check_generator(rng, what: str) -> np.random.Generator:
    """A NumPy random generator; anything else, such as a seed, is an error that begins with ``what`` is needed."""
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"{what}; pass rng=numpy.random.default_rng(seed). Got {rng!r}")
    return rng


def check_shape(shape) -> tuple[int, int]:
    """A frame's (rows, columns) as two integers; a clear error for anything else."""
    try:
        rows, columns = (operator.index(size) for size in shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape must be two whole numbers (rows, columns); got {shape!r}") from None
    if min(rows, columns) < 1 or max(rows, columns) > 4096:
        raise ValueError(f"shape must be (rows, columns), each from 1 to 4096 pixels; got {shape!r}")
    return rows, columns


def check_ratio(ratio) -> int:
    """The sub-pixel ratio c as an odd integer; a clear error for anything else."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, np.integer)) or ratio < 1 or ratio % 2 == 0 or ratio > 31:
        raise ValueError(f"ratio c must be an odd integer from 1 to 31, so that one sub-pixel sits on the pixel's centre; got {ratio!r}. Try 3, 5 or 7")
    return int(ratio)


def check_frames(frames, shape=(11, 11), full_scale: float = math.inf) -> np.ndarray:
    """Frames as a finite real array (n, rows, columns) in grey levels up to the sensor's full scale, one frame as n = 1; a clear error names what is wrong.

    Byte orders and widths that PyTorch does not know, as FITS files have them, become the machine's own and float64.
    """
    frames = np.asarray(frames)
    frames = frames[None] if frames.ndim == 2 else frames
    if frames.ndim != 3 or frames.shape[1:] != tuple(shape):
        raise ValueError(f"frames must have shape (n, {shape[0]}, {shape[1]}) like the focal plane; got {frames.shape}")
    if frames.dtype.kind not in "buif":
        raise ValueError(f"frames must hold real numbers (grey levels); got dtype {frames.dtype}")
    bad = ~np.isfinite(frames).all(axis=(1, 2))
    if bad.any():
        raise ValueError(f"frames must be finite; frame {int(np.argmax(bad))} holds nan or infinity ({int(bad.sum())} such frames). Replace or drop them")
    bright = (frames > full_scale).any(axis=(1, 2))
    if bright.any():
        raise ValueError(
            f"frames: frame {int(np.argmax(bright))} exceeds the sensor's full scale {full_scale:g} ({int(bright.sum())} such frames); pass the FocalPlane "
            "(bits, clip) that made the frames"
        )
    return frames.astype(frames.dtype.newbyteorder("=") if frames.dtype.itemsize <= 8 else np.float64, copy=False)
