r"""A continuous network: a learned posterior of point targets, off the grid (book chapter "Beyond the grid"; not in the paper).

It reads the 5 x 5 pixels about a cluster and answers in the way of single-molecule localisation: which of the pixel's 3 x 3 cells hold a target, where
in its cell each one is, how bright, how uncertain, and how likely it is a hit. Three steps, trained together:

1. **Patterns.** Two targets are at least 0.494 px apart and a cell's diagonal is 0.471 px, so a cell holds one target or none. A frame is one of the 381
   patterns of one to five cells out of nine. A softmax over patterns is a joint posterior: its margins are the count and the presence of every cell.
2. **Start.** Every cell says where its target would be. The likeliest pattern of the likeliest count picks the cells that are believed.
3. **Refinement.** Each stage renders the current estimate, and sees what a Gauss-Newton method would see: the residual frame, the step
   :math:`(J^\mathsf T W J + P)^{-1} J^\mathsf T W (z - m)` and its standard deviations. It may take that step, a share of it, or one of its own: an unfolded
   solver whose physics is given and whose decisions are learned.

**Proper scores.** Patterns pay their logarithm, :math:`-\log p(\text{pattern})`. Positions pay that of a cone-shaped density,
:math:`d/s + 2\log s` for the distance :math:`d`, whose best answer is the posterior's geometric median; intensities and standard deviations pay Gaussian
logarithms. The hit probability :math:`q` pays the cross-entropy with the share of CSO-mAP's five thresholds that the answer met, so its best value is the
ranking that CSO-mAP rewards. Targets are a set: every stage is compared with the truth in the order that fits best.

**Symmetry.** Optics and sensor look the same from all eight sides of a square. Windows are mirrored and transposed until their light leans to higher rows
and columns, and rows most; answers are turned back. So a mirrored frame has the mirrored answer exactly, and there is an eighth of all windows to learn.
"""
from __future__ import annotations

import itertools
import math
import os
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, relu

from csist.checkpoints import optimiser_tensors, read_checkpoint, restore_optimiser, write_checkpoint
from csist.imaging import FocalPlane, check_frames, check_plane
from csist.metrics import DISTANCE_THRESHOLDS
from csist.networks.registry import read_tensors, weights_folders, weights_path, write_weights
from csist.scenes import Targets, random_targets
from csist.solvers.finding import find_cells

WINDOW = 5  # px; light beyond it is less than half a grey level
CAPACITY = 5  # targets of a frame
CELLS = 3  # per side of a pixel; the diagonal of one, 0.471 px, is less than the targets' smallest distance
SIGMA = 0.5  # px; width of the PSF that the network is made for
FULL_SCALE = 255.0  # grey levels
INTENSITY, HALF_RANGE = 235.0, 15.0  # grey levels; a target's flux is uniform in 220..250
SPREAD = HALF_RANGE / math.sqrt(3.0)  # its standard deviation
LENGTH = 0.1  # px; the unit of positions inside the network
ROUNDING = 0.3  # grey levels; standard deviation by which least squares stands for rounding
CANDIDATES = 3  # patterns from whose answers the posterior is sampled
IMPROBABLE = 1e-3  # probability below which a pattern is none of them
POLISH_TIER = "standard"  # of the off-grid unmixer that samples them
BLEND = 0.3  # the network's share in the means of positions
BLEND_REACH = 0.25  # px
TIGHTEST = 0.015  # px; smaller errors are not worth learning: the finest threshold is 0.05 px
NOWHERE = CELLS**2  # the cell of an empty slot

_centres = (np.arange(CELLS) - CELLS // 2) / CELLS
CENTRES = torch.tensor([[x, y] for x in _centres for y in _centres] + [[0.0, 0.0]], dtype=torch.float32)  # (10, 2) px from the pixel's centre
_PATTERNS = [cells for number in range(1, CAPACITY + 1) for cells in itertools.combinations(range(CELLS**2), number)]
SLOTS = torch.tensor([[*cells, *[NOWHERE] * (CAPACITY - len(cells))] for cells in _PATTERNS])  # (381, 5) cells of each pattern, rising
COUNTS = torch.tensor([len(cells) for cells in _PATTERNS])  # (381,)
_CODES = torch.zeros(2 ** CELLS**2, dtype=torch.long)
_CODES[[sum(2**cell for cell in cells) for cells in _PATTERNS]] = torch.arange(len(_PATTERNS))
ORDERS = torch.tensor(list(itertools.permutations(range(CAPACITY))))  # (120, 5)
_PICKS = torch.zeros(CAPACITY**2, len(ORDERS))  # picks an order's five entries of a (5 x 5) table of costs
_PICKS[(torch.arange(CAPACITY) * CAPACITY + ORDERS).T, torch.arange(len(ORDERS))] = 1.0


# ---- what goes in -----------------------------------------------------------------------------------------------------


class Windows(NamedTuple):
    """The 5 x 5 pixels about each cluster; pixels beyond the frame are zero and not valid."""

    level: torch.Tensor  # (B, 5, 5) grey levels, float32
    valid: torch.Tensor  # (B, 5, 5) bool


def cut_windows(frames) -> tuple[Windows, np.ndarray]:
    """Windows of frames (n, rows, columns), and the clusters' pixels (n, 2).

    >>> windows, cell = cut_windows(FocalPlane().response(0.1, 4.3)[None] * 240)
    >>> cell.tolist(), int(windows.valid.sum())
    ([[0, 4]], 15)
    """
    cell = find_cells(frames, WINDOW)
    reach = WINDOW // 2
    padded = np.pad(frames, ((0, 0), (reach, reach), (reach, reach)))
    inside = np.pad(np.ones(frames.shape[1:], dtype=bool), reach)
    rows, columns = (cell[:, axis, None] + np.arange(WINDOW) for axis in (0, 1))
    level = padded[np.arange(len(frames))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return Windows(torch.from_numpy(level.astype(np.float32)), torch.from_numpy(inside[rows[:, :, None], columns[:, None, :]])), cell


def leaning(level: torch.Tensor) -> torch.Tensor:
    """Which turns (B, 3) make the light lean to higher rows and columns, and rows most: mirror rows, mirror columns, transpose.

    >>> leaning(torch.tensor([[[0.0, 9.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])).tolist()
    [[True, True, False]]
    """
    arm = torch.arange(level.shape[-1], dtype=level.dtype, device=level.device) - level.shape[-1] // 2
    row, column = level.sum(2) @ arm, level.sum(1) @ arm
    return torch.stack([row < 0, column < 0, row.abs() < column.abs()], 1)


def turn_windows(windows: Windows, turns: torch.Tensor) -> Windows:
    """Mirror rows, then columns, then transpose, where a window's three flags say so."""
    from csist.training import turn

    return Windows(turn(windows.level, turns), turn(windows.valid, turns))


def turn_points(xy: torch.Tensor, turns: torch.Tensor, back: bool = False) -> torch.Tensor:
    """Positions (B, K, 2) about the window's centre after ``turn_windows``, or before it.

    >>> turns = torch.tensor([[True, False, True]])
    >>> turn_points(turn_points(torch.tensor([[[0.1, 0.2]]]), turns), turns, back=True).round(decimals=3).tolist()
    [[[0.10000000149011612, 0.20000000298023224]]]
    """
    sign = 1.0 - 2.0 * turns[:, None, :2].to(xy.dtype)
    swap = turns[:, None, 2:]
    if back:
        return torch.where(swap, xy.flip(-1), xy) * sign
    xy = xy * sign
    return torch.where(swap, xy.flip(-1), xy)


# ---- physics ----------------------------------------------------------------------------------------------------------


def profile(position: torch.Tensor, sigma: float = SIGMA) -> tuple[torch.Tensor, torch.Tensor]:
    """``csist.imaging.pixel_profile`` of the window's pixels and its derivative, differentiable: (B, K) px from the centre -> (B, K, 5) twice."""
    edges = torch.arange(WINDOW + 1, dtype=position.dtype, device=position.device) - WINDOW / 2
    t = (edges - position[..., None]) / (math.sqrt(2.0) * sigma)
    cumulative, height = 0.5 * torch.erf(t), torch.exp(-t.square()) / (math.sqrt(2 * math.pi) * sigma)
    return cumulative.diff(dim=-1), -height.diff(dim=-1)


class Physics(NamedTuple):
    """What the imaging model says about an estimate."""

    model: torch.Tensor  # (B, 25) expected grey levels
    residual: torch.Tensor  # (B, 25) z - model; 0 off the frame and where a clipped pixel is bright enough
    step: torch.Tensor  # (B, K, 3) Gauss-Newton step, in units of LENGTH and SPREAD
    deviation: torch.Tensor  # (B, K, 3) its standard deviations, in the same units


def gauss_newton(theta: torch.Tensor, mask: torch.Tensor, windows: Windows) -> Physics:
    r"""One damped Gauss-Newton step for targets ``theta`` (B, K, 3): px from the centre, px, grey levels.

    .. math:: \delta = (J^\mathsf T W J + P)^{-1} (J^\mathsf T W (z - m) - P (\theta - \theta_0))

    W weighs by rounding (0.3 grey levels) and drops invalid and satisfied clipped pixels; P is the intensities' prior and a weak damping of positions.
    """
    batch, number = mask.shape
    light = torch.where(mask, theta[..., 2], 0.0)
    rows, row_slopes = profile(theta[..., 0])
    columns, column_slopes = profile(theta[..., 1])
    unit = (rows[..., :, None] * columns[..., None, :]).flatten(2)  # (B, K, 25)
    across = (row_slopes[..., :, None] * columns[..., None, :]).flatten(2) * (LENGTH * light[..., None])
    along = (rows[..., :, None] * column_slopes[..., None, :]).flatten(2) * (LENGTH * light[..., None])
    model = (light[:, None] @ unit)[:, 0]
    level, valid = windows.level.flatten(1), windows.valid.flatten(1)
    clipped = level >= FULL_SCALE
    residual = torch.where(clipped, (FULL_SCALE - 0.5 - model).clamp(min=0.0), level - model) * valid
    weight = (valid & (~clipped | (residual > 0))).to(level.dtype)
    jacobian = torch.stack([across, along, unit * (SPREAD * mask[..., None])], 2).reshape(batch, 3 * number, -1) * (weight[:, None] / ROUNDING)
    precision = torch.tensor([40.0 * LENGTH**2, 40.0 * LENGTH**2, 1.0], dtype=level.dtype, device=level.device).repeat(number)
    information = jacobian @ jacobian.mT + torch.diag(precision)
    pull = (jacobian @ (residual / ROUNDING)[..., None])[..., 0]
    pull[:, 2::3] -= torch.where(mask, (theta[..., 2] - INTENSITY) / SPREAD, 0.0)
    factor, _ = torch.linalg.cholesky_ex(information)
    covariance = torch.cholesky_inverse(factor)
    step = (covariance @ pull[..., None]).reshape(batch, number, 3)
    deviation = covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt().reshape(batch, number, 3)
    return Physics(model, residual, step.nan_to_num(0.0), deviation.nan_to_num(1.0))


# ---- the network ------------------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What one stage says about the targets of a pattern; empty slots hold anything."""

    theta: torch.Tensor  # (B, K, 3) px from the window's centre, px, grey levels
    log_scale: torch.Tensor  # (B, K) logarithm of the cone density's scale s [px]
    log_sigma: torch.Tensor  # (B, K, 2) logarithms of standard deviations [px]
    hit: torch.Tensor  # (B, K) logit of the hit probability


class Block(nn.Module):
    """A perceptron about which the signal can also pass unchanged."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x):
        return x + self.second(relu(self.first(self.norm(x))))


class Stage(nn.Module):
    """One refinement: what the window means, the estimate and its physics in; a better estimate out."""

    seen_of_cell, said_of_cell = 13, 10

    def __init__(self, width: int, depth: int, physics: bool):
        super().__init__()
        self.physics = physics
        self.context = nn.Linear(width, width)
        self.seen = nn.Linear(CELLS**2 * self.seen_of_cell + 3 * WINDOW**2, width, bias=False)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.said = nn.LayerNorm(width), nn.Linear(width, CELLS**2 * self.said_of_cell)
        nn.init.zeros_(self.said.weight)
        nn.init.zeros_(self.said.bias)

    def forward(self, code, windows: Windows, slots: torch.Tensor, theta: torch.Tensor) -> Reading:
        mask = slots < NOWHERE
        with torch.no_grad():
            theta = theta.detach()
            own = torch.cat([theta[..., :2] / 0.25, (theta[..., 2:] - INTENSITY) / SPREAD, mask[..., None]], -1)
            if self.physics:
                physics = gauss_newton(theta, mask, windows)
                step = physics.step.clamp(-3.0, 3.0)
                own = torch.cat([own, step, torch.tanh(10.0 * step), physics.deviation.log()], -1)
                residual = physics.residual
                image = torch.cat([torch.tanh(residual), residual / (8.0 + residual.abs()), physics.model.clamp(max=400.0) / FULL_SCALE], 1)
            else:
                step = torch.zeros_like(theta)
                own = torch.cat([own, own.new_zeros(*own.shape[:2], 9)], -1)
                image = own.new_zeros(len(own), 3 * WINDOW**2)
            by_cell = own.new_zeros(len(own), CELLS**2 + 1, own.shape[-1])
            by_cell.scatter_(1, slots[..., None].expand_as(own), own)
            seen = torch.cat([by_cell[:, :-1].flatten(1), image], 1)
        x = self.context(code) + self.seen(seen)
        for block in self.blocks:
            x = block(x)
        said = nn.functional.pad(self.said(self.norm(x)).unflatten(1, (CELLS**2, -1)), (0, 0, 0, 1))
        said = said.gather(1, slots[..., None].expand(-1, -1, said.shape[-1]))
        change = said[..., :3] + torch.sigmoid(said[..., 3:6]) * step
        units = theta.new_tensor([LENGTH, LENGTH, SPREAD])
        return Reading(theta + units * change, *spread_of(said[..., 6:]))


def spread_of(said: torch.Tensor):
    """A head's last four numbers as log scale, log sigma and hit logit; sizes start at about 0.05 px."""
    return bounded(said[..., 0]), bounded(said[..., 1:3]), said[..., 3]


def bounded(value: torch.Tensor) -> torch.Tensor:
    """The logarithm of a length from TIGHTEST up [px]."""
    return torch.log(TIGHTEST + 0.05 * nn.functional.softplus(value))


class ContinuousNetwork(nn.Module):
    """From windows to patterns, and from a pattern to targets.

    Parameters
    ----------
    width : int
        Of all hidden layers.
    depth : int
        Residual blocks of the encoder.
    stages : int
        Refinements; 0 leaves the start as it is.
    stage_depth : int
        Residual blocks of each refinement.
    physics : bool
        Whether refinements see the imaging model. Without it they are more layers that see the estimate only.
    symmetric : bool
        Whether windows are turned into one eighth of all windows first.

    Raises
    ------
    ValueError
        For a size out of range.

    >>> net = ContinuousNetwork(width=16, depth=1, stages=1)
    >>> windows, _ = cut_windows(np.zeros((2, 11, 11)))
    >>> tuple(net.patterns(net.encode(windows)).shape)
    (2, 381)
    """

    def __init__(self, width: int = 384, depth: int = 4, stages: int = 3, stage_depth: int = 1, physics: bool = True, symmetric: bool = True):
        super().__init__()
        for name, value, low, high in (("width", width, 8, 4096), ("depth", depth, 0, 64), ("stages", stages, 0, 16), ("stage_depth", stage_depth, 0, 16)):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"ContinuousNetwork: {name} must be a whole number from {low} to {high}; got {value!r}")
        self.options = {"width": width, "depth": depth, "stages": stages, "stage_depth": stage_depth, "physics": bool(physics), "symmetric": bool(symmetric)}
        self.symmetric = bool(symmetric)
        self.first = nn.Linear(3 * WINDOW**2 + 2 * WINDOW, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pattern, self.cells = nn.Linear(width, len(SLOTS)), nn.Linear(width, CELLS**2 * 7)
        self.stages = nn.ModuleList(Stage(width, stage_depth, bool(physics)) for _ in range(stages))

    def encode(self, windows: Windows) -> torch.Tensor:
        """What the levels mean, (B, width): levels on a linear and a logarithmic scale, clipped pixels, and the rows and columns that exist."""
        level = windows.level.flatten(1)
        exists = torch.cat([windows.valid.any(2), windows.valid.any(1)], 1).to(level.dtype)
        x = torch.cat([level / 64.0 - 1.0, torch.log1p(level.clamp(min=0.0)) - 2.0, (level >= FULL_SCALE).to(level.dtype), 2.0 * exists - 1.0], 1)
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def patterns(self, code: torch.Tensor) -> torch.Tensor:
        """Logits of the 381 patterns."""
        return self.pattern(code)

    def start(self, code: torch.Tensor, slots: torch.Tensor) -> Reading:
        """Targets in the cells ``slots`` (B, 5) before any refinement."""
        said = nn.functional.pad(self.cells(code).unflatten(1, (CELLS**2, -1)), (0, 0, 0, 1))
        said = said.gather(1, slots[..., None].expand(-1, -1, said.shape[-1]))
        xy = CENTRES.to(code.device)[slots] + LENGTH * said[..., :2]
        return Reading(torch.cat([xy, INTENSITY + SPREAD * said[..., 2:3]], -1), *spread_of(said[..., 3:]))

    def readings(self, windows: Windows, code: torch.Tensor, slots: torch.Tensor) -> list[Reading]:
        """The start and every refinement of the targets in the cells ``slots`` (B, 5); the last one is the answer."""
        said = [self.start(code, slots)]
        for stage in self.stages:
            said.append(stage(code, windows, slots, said[-1].theta))
        return said


# ---- the score that training pays -------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """Targets of windows; empty slots hold zeros."""

    xy: torch.Tensor  # (B, 5, 2) px from the window's centre
    intensity: torch.Tensor  # (B, 5) grey levels
    count: torch.Tensor  # (B,)

    @property
    def mask(self) -> torch.Tensor:
        """True for targets, (B, 5)."""
        return torch.arange(CAPACITY, device=self.count.device) < self.count[:, None]


def pattern_of(truth: Truth) -> torch.Tensor:
    """Number (B,) of the pattern that a set of targets forms; a target outside the pixel belongs to the nearest cell.

    >>> xy = torch.zeros(1, 5, 2)
    >>> SLOTS[pattern_of(Truth(xy, torch.zeros(1, 5), torch.tensor([1])))].tolist()
    [[4, 9, 9, 9, 9]]
    """
    index = torch.floor((truth.xy + 0.5) * CELLS).long().clamp(0, CELLS - 1)
    cell = index[..., 0] * CELLS + index[..., 1]
    occupied = torch.zeros(len(cell), CELLS**2 + 1, dtype=torch.long, device=cell.device)
    occupied.scatter_(1, torch.where(truth.mask, cell, NOWHERE), 1)
    return _CODES.to(cell.device)[(occupied[:, :-1] << torch.arange(CELLS**2, device=cell.device)).sum(1)]


def align(xy: torch.Tensor, truth: Truth) -> torch.Tensor:
    """Order (B, 5) of the true targets that fits positions ``xy`` (B, 5, 2) best: the smallest sum of distances, each counted up to 1 px."""
    mask = truth.mask
    distance = (xy[:, :, None] - truth.xy[:, None]).square().sum(-1).sqrt().clamp(max=1.0)  # (B, 5, 5)
    cost = torch.where(mask[:, :, None] & mask[:, None], distance, (mask[:, :, None] != mask[:, None]) * 10.0)
    return ORDERS.to(xy.device)[(cost.flatten(1) @ _PICKS.to(xy.device)).argmin(1)]


def hit_share(distance: torch.Tensor) -> torch.Tensor:
    """Share of CSO-mAP's thresholds that a distance [px] meets.

    >>> hit_share(torch.tensor([0.0, 0.12, 0.3])).tolist()
    [1.0, 0.6000000238418579, 0.0]
    """
    return (distance[..., None] <= distance.new_tensor(DISTANCE_THRESHOLDS)).to(distance.dtype).mean(-1)


def reading_loss(reading: Reading, truth: Truth) -> dict[str, torch.Tensor]:
    """What a reading pays, per target; the order of the true targets does not matter."""
    with torch.no_grad():
        order = align(reading.theta[..., :2], truth)
        mask = truth.mask
        share = 1.0 / mask.sum().clamp(min=1)
    xy, intensity = truth.xy.gather(1, order[..., None].expand(-1, -1, 2)), truth.intensity.gather(1, order)
    error = reading.theta[..., :2] - xy
    distance = (error.square().sum(-1) + 1e-6).sqrt()
    mean = lambda value: torch.where(mask, value, 0.0).sum() * share
    return {
        "position": mean(distance / reading.log_scale.exp() + 2.0 * reading.log_scale),
        "intensity": mean(((reading.theta[..., 2] - intensity) / SPREAD).square()) * 0.1,
        "sigma": mean((0.5 * error.detach().square() * torch.exp(-2.0 * reading.log_sigma) + reading.log_sigma).sum(-1)) * 0.1,
        "hit": mean(binary_cross_entropy_with_logits(reading.hit, hit_share(error.detach().norm(dim=-1)), reduction="none")),
    }


def continuous_loss(network: ContinuousNetwork, windows: Windows, truth: Truth) -> dict[str, torch.Tensor]:
    """Terms of the training loss, whose sum is minimised: the patterns' and those of every stage, the last one's by name.

    The start learns in the true cells. Refinements begin from the likeliest pattern of the true count, as they will in use.
    """
    if network.symmetric:
        turns = leaning(windows.level)
        windows, truth = turn_windows(windows, turns), truth._replace(xy=turn_points(truth.xy, turns))
    code = network.encode(windows)
    logits, pattern = network.patterns(code), pattern_of(truth)
    terms = {"pattern": cross_entropy(logits, pattern)}
    if not network.stages:
        return terms | reading_loss(network.start(code, SLOTS.to(code.device)[pattern]), truth)
    terms["start"] = sum(reading_loss(network.start(code, SLOTS.to(code.device)[pattern]), truth).values())
    with torch.no_grad():
        likeliest = torch.where(truth.count[:, None] == COUNTS.to(code.device), logits, -torch.inf).argmax(1)
    readings = network.readings(windows, code, SLOTS.to(code.device)[likeliest])[1:]
    for number, reading in enumerate(readings[:-1], 1):
        terms[f"stage {number}"] = sum(reading_loss(reading, truth).values())
    return terms | reading_loss(readings[-1], truth)


# ---- an endless stream of windows --------------------------------------------------------------------------------------

STREAM_BLOCK = 32_768  # windows that share one random stream
SHARES = (0.10, 0.10, 0.18, 0.29, 0.33)  # of one to five targets in training: more of what is hard. The answers are set right for equal shares
POOL = 500_000  # clusters of five that are drawn once: 160 microseconds each, ten times as long as everything else about a window
POOL_BLOCK, POOL_SEED = 20_000, 11


class Stream:
    """Windows with their targets, as many as are asked for: block b is a pure function of (seed, b).

    Clusters of five come from a pool of ``pool`` arrangements, turned at random, at any pixel and with fresh intensities; all others are new. Intensities
    are uniform within ``half_range`` [grey levels] of the scenes' mean; ``read_noise`` [grey levels] is the sensor's.

    >>> windows, truth = Stream(seed=0, pool=100, size=64).batch(0, 32)
    >>> tuple(windows.level.shape), tuple(truth.xy.shape)
    ((32, 5, 5), (32, 5, 2))
    """

    def __init__(
        self, seed: int = 0, pool: int = POOL, size: int = STREAM_BLOCK, shares=SHARES, half_range=HALF_RANGE, read_noise=0.0, progress: bool = False
    ):
        self.seed, self.size, self.shares = int(seed), int(size), np.asarray(shares) / np.sum(shares)
        self.half_range, self.plane = float(half_range), FocalPlane(read_noise=read_noise)
        self.pool = five_pool(pool, progress)
        self._block = (-1, None)

    def batch(self, step: int, size: int) -> tuple[Windows, Truth]:
        """The windows of a training step; ``size`` must divide the block's size."""
        if self.size % size:
            raise ValueError(f"Stream: the batch must divide {self.size}; got {size}")
        first = step * size
        if self._block[0] != first // self.size:
            self._block = (first // self.size, self._simulate(first // self.size))
        pick = lambda value: value[first % self.size : first % self.size + size]
        windows, truth = self._block[1]
        return Windows(pick(windows.level).float(), pick(windows.valid)), Truth(pick(truth.xy), pick(truth.intensity), pick(truth.count))

    def _simulate(self, number: int):
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(31, number)))
        counts = rng.choice(np.arange(1, CAPACITY + 1), self.size, p=self.shares)
        five = counts == CAPACITY
        scene = random_targets(self.size, rng, count=np.where(five, 1, counts))
        xy, cells = np.full((self.size, CAPACITY, 2), np.nan), scene.cell
        xy[:, : scene.capacity] = scene.xy
        clusters = self.pool[rng.integers(0, len(self.pool), five.sum())].astype(np.float64)
        clusters *= rng.choice([-1.0, 1.0], (len(clusters), 1, 2))
        clusters = np.where(rng.random(len(clusters))[:, None, None] < 0.5, clusters, clusters[..., ::-1])
        xy[five] = cells[five, None] + clusters
        targets = Targets(xy, rng.uniform(INTENSITY - self.half_range, INTENSITY + self.half_range, (self.size, CAPACITY)), counts)
        windows, cell = cut_windows(self.plane.render(targets, rng))
        mask = targets.mask
        places = np.where(mask[..., None], targets.xy - cell[:, None], 0.0)
        truth = Truth(*(torch.from_numpy(value) for value in (places.astype(np.float32), np.where(mask, targets.intensity, 0.0).astype(np.float32), counts)))
        return Windows(windows.level.to(torch.uint8), windows.valid), truth


def five_pool(size: int, progress: bool = False) -> np.ndarray:
    """Arrangements of five targets about a pixel's centre, (size, 5, 2) float32 px, the same for all streams; a large pool is kept in the data cache."""
    from tqdm.auto import tqdm

    from csist.datasets import cache_folder

    path = cache_folder() / f"five-{size}.npy"
    pool = _read_pool(path, size)
    if pool is not None:
        return pool
    blocks = []
    for block in tqdm(range(-(-size // POOL_BLOCK)), desc="clusters of five", disable=None if progress else True):
        number = min(POOL_BLOCK, size - block * POOL_BLOCK)
        rng = np.random.default_rng(np.random.SeedSequence(POOL_SEED, spawn_key=(5, block)))
        blocks.append(random_targets(number, rng, count=(CAPACITY, CAPACITY), cells=np.zeros((number, 2), dtype=int)).xy.astype(np.float32))
    pool = np.concatenate(blocks)
    if size >= POOL_BLOCK:
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(temporary, pool)
            os.replace(temporary, path)
        except OSError as error:
            warnings.warn(f"five_pool: cannot keep the clusters of five in {path.parent} ({error}); they will be drawn again", stacklevel=2)
    return pool


def _read_pool(path: Path, size: int) -> np.ndarray | None:
    """The stored arrangements if the file is whole; None (with a warning if it is damaged) otherwise."""
    if not os.path.exists(path):
        return None
    try:
        pool = np.load(path, allow_pickle=False)
        if pool.shape == (size, CAPACITY, 2) and pool.dtype == np.float32 and (np.abs(pool) <= 0.5).all():
            return pool
        problem = f"it holds {pool.dtype} numbers of shape {pool.shape}"
    except (OSError, ValueError, EOFError) as error:
        problem = error
    warnings.warn(f"five_pool: {path} is damaged ({problem}); the clusters of five are drawn again", stacklevel=3)
    return None


# ---- answers ----------------------------------------------------------------------------------------------------------


class Belief(NamedTuple):
    """What a network makes of windows before it places any target."""

    turns: torch.Tensor  # (B, 3)
    windows: Windows  # turned
    code: torch.Tensor  # (B, width)
    logits: torch.Tensor  # (B, 381) of the patterns
    counts: torch.Tensor  # (B, 5) probability of each count
    pattern: torch.Tensor  # (B,) the likeliest pattern of the likeliest count


def believe(network: ContinuousNetwork, windows: Windows, shares=SHARES) -> Belief:
    """Patterns and counts of windows; ``shares`` are the counts' in training, the beliefs are for equal ones."""
    turns = leaning(windows.level) if network.symmetric else torch.zeros(len(windows.level), 3, dtype=torch.bool)
    windows = turn_windows(windows, turns)
    code = network.encode(windows)
    logits = network.patterns(code) - torch.tensor(shares, dtype=torch.float32).log()[COUNTS - 1]
    counts = logits.softmax(1) @ nn.functional.one_hot(COUNTS - 1, CAPACITY).float()
    pattern = torch.where(counts.argmax(1)[:, None] + 1 == COUNTS, logits, -torch.inf).argmax(1)
    return Belief(turns, windows, code, logits, counts, pattern)


@torch.inference_mode()
def answer(network: ContinuousNetwork, windows: Windows, shares=SHARES) -> tuple[torch.Tensor, ...]:
    """What a network says about windows: positions (B, 5, 2) px from the window's centre, intensities (B, 5), standard deviations (B, 5, 2) px,
    hit probabilities (B, 5), the probability of each count (B, 5), and the presence of each cell (B, 3, 3). ``shares`` are the counts' in training;
    the answers are for equal ones."""
    belief = believe(network, windows, shares)
    turns, counts = belief.turns, belief.counts
    reading = network.readings(belief.windows, belief.code, SLOTS[belief.pattern])[-1]
    xy = turn_points(reading.theta[..., :2], turns, back=True)
    sigma = reading.log_sigma.exp()
    sigma = torch.where(turns[:, None, 2:], sigma.flip(-1), sigma)
    presence = belief.logits.softmax(1) @ nn.functional.one_hot(SLOTS, NOWHERE + 1).sum(1)[:, :NOWHERE].float()
    presence = torch.where(turns[:, 2, None, None], presence.unflatten(1, (CELLS, CELLS)).mT, presence.unflatten(1, (CELLS, CELLS)))
    for axis in (0, 1):
        presence = torch.where(turns[:, axis, None, None], presence.flip(axis + 1), presence)
    hit = torch.sigmoid(reading.hit) * counts.amax(1, keepdim=True)
    return xy, in_range(reading.theta[..., 2]), sigma, hit, counts, presence


@torch.inference_mode()
def candidates(network: ContinuousNetwork, windows: Windows, number: int, shares=SHARES) -> tuple[torch.Tensor, ...]:
    """Answers for so many patterns of each window: positions (B, number, 5, 2), intensities (B, number, 5), counts (B, number).

    The first pattern is that of ``answer``, the others are the likeliest besides, of any count. One that is hardly believed (IMPROBABLE) has count 0.
    """
    belief = believe(network, windows, shares)
    probability, pattern = belief.logits.softmax(1).scatter(1, belief.pattern[:, None], 2.0).topk(number, 1)
    thetas = []
    for rank in range(number):
        theta = network.readings(belief.windows, belief.code, SLOTS[pattern[:, rank]])[-1].theta
        thetas.append(torch.cat([turn_points(theta[..., :2], belief.turns, back=True), in_range(theta[..., 2:])], -1))
    theta = torch.stack(thetas, 1)
    return theta[..., :2], theta[..., 2], torch.where(probability > IMPROBABLE, COUNTS[pattern], 0)


def in_range(intensity: torch.Tensor) -> torch.Tensor:
    """Intensities moved into the scenes' range."""
    return intensity.clamp(INTENSITY - HALF_RANGE, INTENSITY + HALF_RANGE)


def unmix_continuous(
    frames, plane: FocalPlane | None = None, *, network: ContinuousNetwork | str | None = None, polish: bool = False, batch: int = 1024
) -> Targets:
    """Positions, intensities, errors and hit probabilities by a trained continuous network (book part "Results"; not in the paper).

    Parameters
    ----------
    frames : array (n, rows, columns) or (rows, columns)
        Grey levels, each frame with one cluster within one pixel.
    plane : FocalPlane, optional
        Optics and sensor that made the frames; the network is trained for the paper's, so only the shape may differ.
    network : ContinuousNetwork or str, optional
        The network, or the name of its run; by default the committed one.
    polish : bool
        Sample what the exact model leaves possible about the network's likeliest answers (``unmix_offgrid`` with these as ``starts``), which needs
        numba. Count and errors are then the samples'; positions and hit probabilities are means of both, for their mistakes differ. Least squares
        from the network's answer (``csist.solvers.polish``) would make residuals smaller, not errors: the network answers with the middle of what is
        possible, which is nearer to the truth than the best fit.
    batch : int
        Frames at a time.

    Returns
    -------
    Targets
        Brightest first, with ``sigma``, predicted standard deviations of x and y [px], and ``score``, the probability of a hit averaged over CSO-mAP's
        five thresholds. One detection for each estimated target. A frame without light has none.

    Raises
    ------
    ValueError
        For frames of the wrong shape or outside the sensor's range, or a plane that the network is not trained for.
    FileNotFoundError
        If the network has not been trained yet.
    """
    plane = check_plane(plane)
    if (plane.sigma, plane.bits, plane.clip, plane.read_noise) != (SIGMA, 8, True, 0.0):
        raise ValueError(f"unmix_continuous: the network is trained for sigma = 0.5 px, 8 bits, clipping and no read noise; got {plane}. Try 'off-grid'")
    if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 1:
        raise ValueError(f"unmix_continuous: batch must be a whole number >= 1; got {batch!r}")
    frames = check_frames(frames, plane.shape)
    wrong = ((frames < 0) | (frames > FULL_SCALE)).any((1, 2))
    if wrong.any():
        raise ValueError(f"unmix_continuous: grey levels must be from 0 to 255; frame {int(np.argmax(wrong))} has others ({int(wrong.sum())} such frames)")
    network = (network if isinstance(network, ContinuousNetwork) else load_continuous(network)).eval()
    if not len(frames):
        return Targets(np.zeros((0, 1, 2)), np.zeros((0, 1)), np.zeros(0, dtype=np.int64))
    windows, cell = cut_windows(frames)
    parts = [answer(network, Windows(windows.level[i : i + batch], windows.valid[i : i + batch])) for i in range(0, len(frames), batch)]
    xy, intensity, sigma, hit, counts, _ = (torch.cat(part).double().numpy() for part in zip(*parts))
    count = np.where(frames.any((1, 2)), counts.argmax(1) + 1, 0)
    targets = Targets(xy + cell[:, None], intensity, count, sigma, hit)
    if polish:
        targets = blended(targets, resampled(targets, frames, plane, network, windows, cell, batch))
    return brightest_first(targets)


def resampled(targets: Targets, frames, plane: FocalPlane, network, windows: Windows, cell: np.ndarray, batch: int) -> Targets:
    """The off-grid unmixer's answer about the minima next to the network's likeliest answers."""
    from csist.solvers.offgrid import unmix_offgrid

    parts = [candidates(network, Windows(windows.level[i : i + batch], windows.valid[i : i + batch]), CANDIDATES) for i in range(0, len(frames), batch)]
    xy, intensity, count = (torch.cat(part).double().numpy() for part in zip(*parts))
    count = np.where(targets.count[:, None] > 0, count, 0).astype(np.int64)
    starts = [Targets(xy[:, rank] + cell[:, None], intensity[:, rank], count[:, rank]) for rank in range(CANDIDATES)]
    return unmix_offgrid(frames, plane, tier=POLISH_TIER, starts=starts, threads=torch.get_num_threads())


def blended(learned: Targets, sampled: Targets) -> Targets:
    """The samples' answer, drawn towards the network's where both have the same count and a target within BLEND_REACH of each other.

    Positions are weighted means, hit probabilities means of logits. The weight was chosen on validation frames.

    >>> one, other = (Targets([[[5.0, x]]], [[235.0]], [1], score=[[score]]) for x, score in ((5.0, 0.9), (5.1, 0.5)))
    >>> both = blended(one, other)
    >>> both.xy.round(2).tolist(), both.score.round(2).tolist()
    ([[[5.0, 5.07]]], [[0.75]])
    """
    offset = learned.xy[:, None] - sampled.xy[:, :, None]  # (n, sampled, learned, 2)
    distance = np.where(learned.mask[:, None] & sampled.mask[:, :, None], np.linalg.norm(offset, axis=-1), np.inf)
    nearest = distance.argmin(2)[..., None]
    near = (np.take_along_axis(distance, nearest, 2)[..., 0] < BLEND_REACH) & (learned.count == sampled.count)[:, None]
    shift = np.take_along_axis(offset, nearest[..., None], 2)[:, :, 0]
    score = np.take_along_axis(np.broadcast_to(learned.score[:, None], distance.shape), nearest, 2)[..., 0]
    logit = lambda p: np.log(np.clip(p, 1e-6, 1 - 1e-6) / np.clip(1 - p, 1e-6, 1 - 1e-6))
    mean = 1 / (1 + np.exp(-0.5 * (logit(score) + logit(sampled.score))))
    xy = sampled.xy + np.where(near[..., None], BLEND * shift, 0.0)
    return replace(sampled, xy=xy, score=np.where(near, mean, sampled.score))


def brightest_first(targets: Targets) -> Targets:
    """The same targets, each frame's by falling intensity."""
    order = np.argsort(np.where(targets.mask, -targets.intensity, np.inf), axis=1, kind="stable")
    take = lambda value: np.take_along_axis(value, order.reshape(*order.shape, *[1] * (value.ndim - 2)), axis=1)
    return Targets(take(targets.xy), take(targets.intensity), targets.count, take(targets.sigma), take(targets.score))


_loaded: dict[str, tuple[float, ContinuousNetwork]] = {}


def load_continuous(run: str | None = None) -> ContinuousNetwork:
    """A trained network in evaluation mode, from the committed weights; kept in memory until the file changes.

    Raises
    ------
    FileNotFoundError
        If it has not been trained; the message says how to train it.
    """
    run = run or DEFAULT_RUN
    path = weights_path(run)
    if path is None:
        raise FileNotFoundError(f"no weights of {run!r} in {', '.join(map(str, weights_folders()))}; train it with: python reproduce/train_continuous.py")
    stamp = path.stat().st_mtime
    if _loaded.get(str(path), (None,))[0] != stamp:
        _loaded[str(path)] = stamp, read_continuous(path)[0]
    return _loaded[str(path)][1]


def write_continuous(path, network: ContinuousNetwork, header: dict) -> None:
    """Store a network as float16 with a header that says how to build it again."""
    write_weights(path, network, {"kind": "continuous", "options": network.options, **header})


def read_continuous(path) -> tuple[ContinuousNetwork, dict]:
    """A stored network in evaluation mode, and its header."""
    tensors, header = read_tensors(path)
    if header.get("kind") != "continuous":
        raise ValueError(f"{path} holds no continuous network")
    network = ContinuousNetwork(**header["options"])
    network.load_state_dict(tensors)
    return network.eval(), header


# ---- training ---------------------------------------------------------------------------------------------------------

DEFAULT_RUN = "continuous-seed0"


@dataclass(frozen=True)
class ContinuousRecipe:
    """Everything that determines a continuous network."""

    width: int = 256
    depth: int = 3
    stages: int = 3
    stage_depth: int = 1
    physics: bool = True  # refinements see the imaging model
    symmetric: bool = True  # windows are turned into one eighth of all windows
    seed: int = 0
    samples: int = 1_500_160  # windows shown, all different
    cooldown: int = 1_106_944  # of them, the last: Adam's rate falls to zero
    bend_at: int = 655_360  # windows after which the fall changes its slope; 0: it is straight
    bend_to: float = 0.48283  # share of the rate there
    rate: float = 2e-3
    warmup: int = 25_600  # windows until the rate is reached
    batch: int = 256
    pool: int = POOL  # arrangements of five targets
    half_range: float = HALF_RANGE  # grey levels; training intensities are uniform within it of the scenes' mean
    read_noise: float = 0.0  # grey levels, of the training frames' sensor
    val_size: int = 2_000  # validation frames scored after each epoch; the last epoch is kept, for the rate is zero there
    test_size: int | None = None  # None: all 10,000, scored once
    epoch: int = 65_536  # windows between two validations

    def network(self) -> ContinuousNetwork:
        """A fresh network."""
        torch.manual_seed(self.seed)
        return ContinuousNetwork(self.width, self.depth, self.stages, self.stage_depth, self.physics, self.symmetric)

    def learning_rate(self, step) -> np.ndarray:
        """Of one or several steps: straight lines through a rise, a level stretch and a fall to zero.

        >>> ContinuousRecipe(samples=1000, cooldown=500, warmup=100, batch=10, bend_at=0, rate=1.0).learning_rate([0, 50, 74]).round(2).tolist()
        [0.05, 0.99, 0.51]
        """
        knots = [(0, 0.0), (self.warmup, 1.0), (self.samples - self.cooldown, 1.0), (self.samples, 0.0)]
        if self.bend_at:
            knots.insert(3, (self.bend_at, self.bend_to))
        return self.rate * np.interp((np.asarray(step) + 0.5) * self.batch, *zip(*knots))


class ContinuousTrainer:
    """Trains a network on the endless stream; checkpoints after each epoch and at a deadline, and goes on from them bit for bit.

    Parameters
    ----------
    recipe : ContinuousRecipe
        What to train.
    path : path
        The checkpoint.
    val : Frames
        Validation frames.
    progress : bool
        Show a progress bar on a terminal.
    """

    changeable = ("samples", "cooldown", "bend_at", "bend_to", "test_size")  # of a checkpoint's recipe, if its rates have been the same until now

    def __init__(self, recipe: ContinuousRecipe, path, val, progress: bool = True):
        self.recipe, self.path, self.val, self.progress = recipe, Path(path), val, progress
        self.stream = Stream(recipe.seed, recipe.pool, half_range=recipe.half_range, read_noise=recipe.read_noise, progress=progress)
        self.network = recipe.network()
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=recipe.rate, betas=(0.9, 0.98), fused=True)
        self.step, self.seconds, self.cpu_seconds, self.history = 0, 0.0, 0.0, []

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.recipe.samples // self.recipe.batch

    def optimise(self) -> dict[str, torch.Tensor]:
        """One step; returns the loss's terms."""
        for group in self.optimiser.param_groups:
            group["lr"] = float(self.recipe.learning_rate(self.step))
        terms = continuous_loss(self.network.train(), *self.stream.batch(self.step, self.recipe.batch))
        self.optimiser.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.step += 1
        return {name: term.detach() for name, term in terms.items()}

    def validate(self, terms: dict[str, float]) -> None:
        """Score the validation frames."""
        from csist.metrics import count_accuracy, cso_map

        estimate = unmix_continuous(self.val.frames, network=self.network)
        score = cso_map(estimate, self.val.targets)
        entry = {"samples": self.step * self.recipe.batch, "loss": sum(terms.values()), "terms": terms, "val_cso_map": score.map, "val_ap": score.ap.tolist()}
        entry |= {"val_count_accuracy": count_accuracy(estimate, self.val.targets), "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        self.history.append(entry)

    def fit(self, deadline: float | None = None) -> bool:
        """Train to the end (True) or until the deadline on ``time.monotonic`` (False); a checkpoint is kept either way."""
        from tqdm.auto import tqdm

        epoch = max(1, self.recipe.epoch // self.recipe.batch)
        bar = tqdm(total=self.steps, initial=self.step, desc="continuous", unit="step", disable=None if self.progress else True)
        losses, late = [], False
        while self.step < self.steps and not late:
            tick, cpu = time.perf_counter(), time.process_time()
            losses.append(self.optimise())
            bar.update()
            late = deadline is not None and time.monotonic() >= deadline
            self.seconds += time.perf_counter() - tick
            self.cpu_seconds += time.process_time() - cpu
            if self.step % epoch == 0 or self.step == self.steps:
                self.validate({name: float(torch.stack([terms[name] for terms in losses]).mean()) for name in losses[0]})
                losses = []
                self.save()
        if late:
            self.save()
        bar.close()
        return self.step >= self.steps

    def save(self) -> None:
        """Checkpoint in one safetensors file, written then renamed; never pickle."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= optimiser_tensors(self.optimiser)
        header = {"recipe": asdict(self.recipe), "step": self.step, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "history": self.history}
        write_checkpoint(self.path, tensors, header)

    def resume(self) -> bool:
        """Go on from the checkpoint if there is one; False if there is none. One of another recipe is an error."""
        if not self.path.exists():
            return False
        header, part = read_checkpoint(self.path)
        fixed = lambda recipe: {name: value for name, value in recipe.items() if name not in self.changeable}
        steps = np.arange(header["step"])
        stored = ContinuousRecipe(**header["recipe"])
        if fixed(asdict(stored)) != fixed(asdict(self.recipe)) or not np.allclose(stored.learning_rate(steps), self.recipe.learning_rate(steps), rtol=1e-4):
            raise ValueError(f"{self.path} belongs to another recipe, or its rates have been others; delete it to start afresh")
        self.network.load_state_dict(part("network/"))
        self.step, self.seconds, self.cpu_seconds, self.history = (header[name] for name in ("step", "seconds", "cpu_seconds", "history"))
        restore_optimiser(self.optimiser, part)
        return True
