"""Finding clusters: which pixels of a frame of any size hold closely spaced targets (book chapter "Beyond the grid")."""
from __future__ import annotations

import math

import numpy as np

TOGETHER = 256  # frames that are searched at a time, so that their light stays in the processor's cache
BLOCK_REACH = 1  # a block is 3 x 3 pixels: nearly all the light of a target in its middle pixel
BLOCK = 2 * BLOCK_REACH + 1


def find_clusters(frames, side: int, threshold: float = 0.0, least=0.0) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of each frame as (frame (m,), pixel (m, 2)), frame by frame, brightest first.

    The brightest block of 3 x 3 pixels begins a cluster if it holds more light than ``least``. The cluster's pixel is the rounded centre of the light in
    the window of ``side`` pixels about the block. The window about that pixel takes its light away, and the search goes on with what is left. So clusters
    are found exactly if their pixels are at least ``side`` apart in row or column. At ``side - 1`` they share light, which may shift a pixel; light
    that is nearer to an earlier cluster counts as that one's.

    Parameters
    ----------
    frames : array (n, rows, columns)
        Grey levels.
    side : int
        Odd side of the window that holds all the light of a cluster [px].
    threshold : float
        Pixels up to this level count as dark [grey levels].
    least : float or array (n,)
        Light that a block must exceed [grey levels].

    Raises
    ------
    ValueError
        For frames of another shape or with values that are not finite, or an even side.

    >>> frame = np.zeros((1, 9, 16)); frame[0, 1, 2], frame[0, 7, 12:14] = 90, (40, 70)
    >>> find_clusters(frame, 5)[1].tolist()
    [[7, 13], [1, 2]]
    """
    frames = np.asarray(frames)
    if frames.ndim != 3 or not np.isfinite(frames).all():
        raise ValueError(f"find_clusters: frames must be an array (n, rows, columns) of finite grey levels; got shape {frames.shape}")
    if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < 1 or side % 2 == 0:
        raise ValueError(f"find_clusters: side must be an odd number of pixels >= 1, so that the window has a middle; got {side!r}")
    least = np.broadcast_to(least, (len(frames),))
    found = []
    for first in range(0, len(frames), TOGETHER):
        search = _Search(frames[first : first + TOGETHER], side, threshold)
        active = np.arange(search.n)
        while len(active):
            peak, light = search.brightest(active)
            bright = light > least[first + active]
            active, peak = active[bright], peak[bright]
            cell = search.centre(active, peak)
            new = ~search.is_near(active, cell)
            search.claim(active, cell)
            found.append((first + active[new], cell[new]))
    frame, cell = (np.concatenate(part) for part in zip(*found)) if found else (np.zeros(0, np.int64), np.zeros((0, 2), np.int64))
    order = np.argsort(frame, kind="stable")
    return frame[order], cell[order]


def find_cells(frames, side: int, threshold: float = 0.0) -> np.ndarray:
    """Pixel of each frame's brightest cluster (n, 2); a dark frame's first pixel.

    >>> frame = np.zeros((1, 11, 11)); frame[0, 0, 4] = 90
    >>> find_cells(frame, 5).tolist()
    [[0, 4]]
    """
    search = _Search(frames, side, threshold)
    everywhere = np.arange(search.n)
    return search.centre(everywhere, search.brightest(everywhere)[0])


def brightest_block(frames, threshold: float = 0.0) -> np.ndarray:
    """Light of each frame's brightest 3 x 3 pixels (n,) [grey levels].

    >>> brightest_block(np.ones((1, 5, 5))).tolist()
    [9.0]
    """
    light = np.pad(np.where(frames > threshold, frames, 0.0), ((0, 0), (BLOCK_REACH, BLOCK_REACH), (BLOCK_REACH, BLOCK_REACH)))
    return _block_sums(light).max(axis=(1, 2))


def check_good(good, shape) -> np.ndarray:
    """The mask of good pixels (rows, columns) as an array of bool, for None all of them; a clear error for anything else."""
    good = np.ones(shape, dtype=bool) if good is None else np.asarray(good)
    if good.shape != tuple(shape) or good.dtype != bool:
        raise ValueError(f"good must be an array {tuple(shape)} of bool like the focal plane, False for bad pixels; got {good.dtype} {good.shape}")
    if not good.any():
        raise ValueError("good must leave some pixels; it is False everywhere. True means that a pixel can be trusted")
    return good


def patched(frames: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Frames (n, rows, columns) with the mean of their good neighbours, 0 without any, in place of bad pixels.

    >>> frame = np.full((1, 3, 3), 8.0); frame[0, 1, 1] = 255
    >>> patched(frame, frame[0] < 255)[0, 1].tolist()
    [8.0, 8.0, 8.0]
    """
    if good.all():
        return frames
    around = ((0, 0), (BLOCK_REACH, BLOCK_REACH), (BLOCK_REACH, BLOCK_REACH))
    light, number = (_block_sums(np.pad(part.astype(np.float64), around)) for part in (frames * good, good[None]))
    return np.where(good, frames, light / np.maximum(number, 1))


class _Search:
    """The light that no cluster has claimed yet, its block sums, and pixels near clusters; all padded so that windows at the border need no care."""

    def __init__(self, frames, side: int, threshold: float):
        frames = np.asarray(frames, dtype=np.float64)
        self.n, self.shape, self.side = len(frames), np.array(frames.shape[1:]), side
        self.pad = side + 2 * BLOCK_REACH
        self.light = np.pad(np.where(frames > threshold, frames, 0.0), ((0, 0), (self.pad, self.pad), (self.pad, self.pad)))
        self.blocks = np.pad(_block_sums(self.light), ((0, 0), (BLOCK_REACH, BLOCK_REACH), (BLOCK_REACH, BLOCK_REACH)))
        self.near = np.zeros(self.light.shape, dtype=bool)

    def patch(self, frame, cell, reach: int) -> tuple:
        """Index of the pixels within ``reach`` of a cell (m, 2) of each of some frames (m,), (m, 2 reach + 1, 2 reach + 1)."""
        rows, columns = (cell[:, axis, None] + self.pad + np.arange(-reach, reach + 1) for axis in (0, 1))
        return frame[:, None, None], rows[:, :, None], columns[:, None, :]

    def brightest(self, frame) -> tuple[np.ndarray, np.ndarray]:
        """Middle (m, 2) and light (m,) of the brightest block of some frames."""
        inside = slice(self.pad, -self.pad)
        flat = self.blocks[frame, inside, inside].reshape(len(frame), math.prod(self.shape))
        place = flat.argmax(1)
        return np.stack(np.unravel_index(place, self.shape), axis=-1), flat[np.arange(len(frame)), place]

    def centre(self, frame, peak) -> np.ndarray:
        """Rounded centre of the light in the window about a peak, (m, 2); the peak where there is no light."""
        light, offset = self.light[self.patch(frame, peak, self.side // 2)], np.arange(self.side) - self.side // 2
        total = light.sum((1, 2))
        shift = np.stack([light.sum(2) @ offset, light.sum(1) @ offset], axis=-1) / np.where(total > 0, total, 1.0)[:, None]
        return np.clip(np.rint(peak + shift), 0, self.shape - 1).astype(np.int64)

    def is_near(self, frame, cell) -> np.ndarray:
        """Whether cells are less than ``side - 1`` pixels from an earlier cluster in row and column (m,)."""
        return self.near[frame, cell[:, 0] + self.pad, cell[:, 1] + self.pad]

    def claim(self, frame, cell) -> None:
        """Take away the light of the windows about some cells."""
        self.near[self.patch(frame, cell, max(self.side - 2, 0))] = True
        self.light[self.patch(frame, cell, self.side // 2)] = 0.0
        around = self.side // 2 + BLOCK_REACH
        self.blocks[self.patch(frame, cell, around)] = _block_sums(self.light[self.patch(frame, cell, around + BLOCK_REACH)])


def _block_sums(light: np.ndarray) -> np.ndarray:
    """Sums over all blocks (n, rows - 2, columns - 2) that lie on the images (n, rows, columns)."""
    rows = light[:, :-2] + light[:, 1:-1] + light[:, 2:]
    return rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
