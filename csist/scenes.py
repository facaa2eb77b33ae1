"""Scenes: the one result type of the project, and random clusters of closely spaced targets."""
from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from csist.imaging import check_generator, check_shape


@dataclass
class Targets:
    """Point targets of n frames: what a scene holds, what an unmixer answers, what the metric compares.

    Parameters
    ----------
    xy : array (n, K, 2)
        Positions [px]; x is the row, y the column, pixel centres at integers.
    intensity : array (n, K)
        Total flux of each target [grey levels] (not its peak value).
    count : array (n,)
        Number of targets of each frame, 0 .. K; entries beyond it are padding (nan).
    sigma : array (n, K, 2), optional
        Predicted standard deviations of x and y [px].
    score : array (n, K), optional
        Confidence by which detections are ranked; without it they are ranked by intensity.

    Raises
    ------
    ValueError
        If shapes disagree, a count is out of range, or a target within its count is not finite.

    >>> scene = Targets([[[5.0, 5.1], [5.4, 5.5]]], [[240.0, 230.0]], [2])
    >>> len(scene), scene.capacity
    (1, 2)
    """

    xy: np.ndarray
    intensity: np.ndarray
    count: np.ndarray
    sigma: np.ndarray | None = None
    score: np.ndarray | None = None

    def __post_init__(self):
        self.xy = np.array(self.xy, dtype=np.float64)
        self.intensity = np.array(self.intensity, dtype=np.float64)
        count = np.asarray(self.count)
        if self.xy.ndim != 3 or self.xy.shape[-1] != 2:
            raise ValueError(f"Targets: xy must have shape (n, K, 2); got {self.xy.shape}")
        n, capacity = self.xy.shape[:2]
        if self.intensity.shape != (n, capacity):
            raise ValueError(f"Targets: intensity must have shape {(n, capacity)} like xy; got {self.intensity.shape}")
        if count.shape != (n,) or (count.size and (not np.all(count == np.floor(count)) or count.min() < 0 or count.max() > capacity)):
            raise ValueError(f"Targets: count must hold {n} whole numbers from 0 to {capacity}; got shape {count.shape}")
        self.count = count.astype(np.int64)
        for name, shape in (("sigma", (n, capacity, 2)), ("score", (n, capacity))):
            value = getattr(self, name)
            if value is not None:
                value = np.array(value, dtype=np.float64)
                if value.shape != shape:
                    raise ValueError(f"Targets: {name} must have shape {shape}; got {value.shape}")
                value[~self.mask] = np.nan
                setattr(self, name, value)
        if not (np.isfinite(self.xy[self.mask]).all() and np.isfinite(self.intensity[self.mask]).all()):
            raise ValueError("Targets: positions and intensities within the count must be finite numbers")
        self.xy[~self.mask] = np.nan
        self.intensity[~self.mask] = np.nan

    @property
    def capacity(self) -> int:
        """Largest number of targets that a frame of this object can hold, K."""
        return self.xy.shape[1]

    @property
    def mask(self) -> np.ndarray:
        """True where an entry is a target, False where it is padding; (n, K)."""
        return np.arange(self.xy.shape[1]) < self.count[:, None]

    @property
    def cell(self) -> np.ndarray:
        """Pixel that holds the cluster, the rounded mean position, (n, 2); frames without targets give -1."""
        total = np.nansum(self.xy, axis=1)
        return np.where(self.count[:, None] > 0, np.rint(total / np.maximum(self.count, 1)[:, None]), -1).astype(np.int64)

    def __eq__(self, other) -> bool:
        """Whether two objects hold the same numbers, padding and what is not given included."""
        if not isinstance(other, Targets):
            return NotImplemented
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return all(a is b if a is None or b is None else np.array_equal(a, b, equal_nan=True) for a, b in pairs)

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index) -> Targets:
        """The targets of some frames (a slice, a mask or an integer array; one integer keeps the frame axis)."""
        if isinstance(index, (int, np.integer)):
            index = [index]
        pick = lambda value: None if value is None else value[index]
        return Targets(self.xy[index], self.intensity[index], self.count[index], pick(self.sigma), pick(self.score))

    def with_score(self, score) -> Targets:
        """The same targets ranked by another confidence."""
        return replace(self, score=score)

    def lists(self) -> list[np.ndarray]:
        """One (m, 3) array [x, y, ranking score] per frame; the score is the intensity where none is given."""
        rank = self.intensity if self.score is None else self.score
        return [np.column_stack([xy[:m], r[:m]]) for xy, r, m in zip(self.xy, rank, self.count)]

    @classmethod
    def from_lists(cls, positions, intensities, scores=None, sigmas=None) -> Targets:
        """Build from one array of positions (m, 2) and one of intensities (m,) per frame, padding the rest.

        >>> Targets.from_lists([[[5, 5]], []], [[240.0], []]).count.tolist()
        [1, 0]
        """
        count = np.array([len(p) for p in positions], dtype=np.int64)
        n, capacity = len(count), max(1, count.max(initial=0))

        def pad(rows, *tail):
            if rows is None:
                return None
            if len(rows) != n:
                raise ValueError(f"Targets.from_lists: positions are of {n} frames, but another argument is of {len(rows)}; give one entry per frame")
            full = np.full((n, capacity, *tail), np.nan)
            for i, row in enumerate(rows):
                # Checked, because a single number or a flat (x, y) would otherwise spread over all targets of the frame.
                if np.size(row) != count[i] * math.prod(tail) or (count[i] and np.shape(row) != (count[i], *tail)):
                    needed = (int(count[i]), *tail)
                    raise ValueError(f"Targets.from_lists: frame {i} has {count[i]} positions, so it needs an array {needed}; got {np.shape(row)}")
                if count[i]:
                    full[i, : count[i]] = row
            return full

        return cls(pad(positions, 2), pad(intensities), count, pad(sigmas, 2), pad(scores))


MAX_REDRAWS = 64  # redraws of one target before its whole cluster is thrown away and begun again


def random_targets(
    n: int,
    rng: np.random.Generator,
    *,
    count=(1, 5),
    intensity=(220.0, 250.0),
    min_distance: float = 0.52 * 0.95,
    cluster_shift=0.0,
    shape=(11, 11),
    cells=None,
) -> Targets:
    """Random clusters of closely spaced targets; the defaults are those of CSIST-100K (paper, section 4.1; book chapter "CSIST-100K rebuilt").

    Every cluster lies in one unit square about a pixel's centre. Its targets are placed one after the other, each uniformly in the square and redrawn
    while it is nearer than ``min_distance`` to an earlier one; a cluster that gets stuck is begun again. This is how a data generator is usually
    written. It is not the uniform law over all valid sets (early targets sit a little too near the middle, late ones in the corners); the chapter
    measures the difference.

    Parameters
    ----------
    n : int
        Number of frames.
    rng : numpy.random.Generator
        The only source of randomness.
    count : (int, int) or array (n,)
        A tuple: smallest and largest number of targets, all equally likely. An array or list: the number for each frame.
    intensity : (float, float)
        Range of total flux [grey levels], uniform.
    min_distance : float
        Smallest distance between two targets [px]; 0.52 R = 0.494 px at sigma = 0.5 px.
    cluster_shift : float or (float, float)
        Displacement of the unit square from the pixel's centre [px]. The paper's text says 0; targets read off its figures suggest about -0.07.
        Clusters in the border's pixels then reach beyond the frame, where no sub-pixel lies.
    shape : (int, int)
        Rows and columns of the frame; every pixel, the border ones too, is equally likely to hold the cluster.
    cells : array (n, 2), optional
        Fixes the pixel of each cluster.

    Raises
    ------
    ValueError
        For ranges that are empty or that no cluster can satisfy.

    >>> scene = random_targets(3, np.random.default_rng(0))
    >>> bool((scene.count >= 1).all() and (scene.count <= 5).all())
    True
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise ValueError(f"random_targets: n must be a whole number >= 0; got {n!r}")
    shape = check_shape(shape)
    check_generator(rng, "random_targets needs a random generator")
    if np.shape(intensity) != (2,):
        raise ValueError(f"random_targets: intensity must be a range (low, high) in grey levels, for example (220, 250); got {intensity!r}")
    low, high = (float(v) for v in intensity)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"random_targets: intensity must be (low, high) with 0 < low <= high; got {intensity!r}")
    if not 0 <= min_distance < math.sqrt(2):
        raise ValueError(f"random_targets: min_distance must be from 0 to sqrt(2) px (the unit square's diagonal); got {min_distance!r}")
    counts = _draw_counts(n, rng, count)
    if cells is None:
        cells = np.column_stack([rng.integers(0, size, n) for size in shape])
    cells = np.asarray(cells)
    if cells.shape != (n, 2):
        raise ValueError(f"random_targets: cells must have shape ({n}, 2); got {cells.shape}")
    if not ((cells >= 0) & (cells < shape)).all():
        raise ValueError(f"random_targets: each of cells must be a pixel (row, column) of the {shape[0]} x {shape[1]} frame, counted from 0; got {cells!r}")
    capacity = int(counts.max(initial=1))
    offsets = np.full((n, capacity, 2), np.nan)
    for number in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == number)
        offsets[rows, :number] = _place_clusters(len(rows), int(number), float(min_distance), rng)
    xy = cells[:, None, :] + np.asarray(cluster_shift, dtype=np.float64) + offsets
    return Targets(xy, rng.uniform(low, high, (n, capacity)), counts)


def _draw_counts(n: int, rng: np.random.Generator, count) -> np.ndarray:
    """Number of targets of each frame: a tuple is a range, an array is one number per frame."""
    whole = np.issubdtype(np.asarray(count).dtype, np.integer) and np.min(count, initial=0) >= 0
    if whole and isinstance(count, tuple) and len(count) == 2 and count[0] <= count[1]:
        return rng.integers(int(count[0]), int(count[1]) + 1, n)
    if whole and not isinstance(count, tuple) and np.shape(count) == (n,):
        return np.asarray(count, dtype=np.int64)
    raise ValueError(
        "random_targets: count must be a tuple (smallest, largest) of whole numbers with 0 <= smallest <= largest, "
        f"or an array with one number for each of the {n} frames; got {count!r}"
    )


def _place_clusters(n: int, number: int, min_distance: float, rng: np.random.Generator) -> np.ndarray:
    """Valid offsets from the square's centre, (n, number, 2); all clusters advance together, one redraw a round."""
    impossible = ValueError(
        f"random_targets: no {number} points of one unit square found that are {min_distance:.3f} px apart; lower min_distance or the count"
    )
    # Discs of diameter min_distance about the points do not overlap, and no packing of a square is denser than the hexagonal one of the plane.
    if number > 1 and number * min_distance**2 * math.sqrt(3) / 2 > (1 + min_distance) ** 2:
        raise impossible
    patience = max(20 * number, int(60_000 / (1 + n * number / 1000)))  # rounds without one finished cluster: a second or two
    offsets = np.zeros((n, number, 2))
    placed = np.zeros(n, dtype=np.int64)  # targets placed so far
    redraws = np.zeros(n, dtype=np.int64)
    active = np.arange(n)
    for done in range(200_000):
        if not len(active):
            return offsets
        if done == patience and len(active) == n:
            break
        proposal = rng.uniform(-0.5, 0.5, (len(active), 2))
        distance2 = ((offsets[active] - proposal[:, None]) ** 2).sum(-1)
        earlier = np.arange(number) < placed[active, None]
        valid = (~earlier | (distance2 >= min_distance**2)).all(1)
        kept = active[valid]
        offsets[kept, placed[kept]] = proposal[valid]
        placed[kept] += 1
        redraws[kept] = 0
        redraws[active[~valid]] += 1
        stuck = redraws > MAX_REDRAWS
        placed[stuck] = redraws[stuck] = 0
        active = active[placed[active] < number]
    raise impossible
