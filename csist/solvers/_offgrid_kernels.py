"""Compiled kernels of :mod:`csist.solvers.offgrid`; importing this module needs numba.

A candidate answer is ``theta = [x_1, y_1, g_1, x_2, ...]``: positions relative to the window's centre pixel [px] and total fluxes [grey levels].
Its expected frame is separable target by target, with pixel integrals ``p`` read from a table (:func:`read_profile`):

    m_ij = sum_k g_k p_i(x_k) p_j(y_k)

The kernels, in the order of the work: the model; the least-squares objective, its normal equations and the Levenberg-Marquardt iteration; modes and their
evidence; the slice sampler on the exact likelihood; sequential Monte Carlo; the read-out. One call of :func:`solve_frames` treats frames one after the
other without the interpreter's lock, so threads share the frames. Every frame has its own random stream.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from csist.solvers._lanes import any_above, eight, four, larger, largest, minus, plus, put, smaller, spread, sum_of, times

compiled = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
inlined = njit(inline="always", fastmath=True, error_model="numpy")  # for small parts of the innermost loops, where handing over arrays costs as much as work

MAX_TARGETS = 8
SIZE = 3 * MAX_TARGETS  # parameters of the largest answer; a multiple of eight, so that rows of matrices fill vector registers
FREE = 1e9  # stands for infinity, which "fastmath" does not know

# Levenberg-Marquardt
ITERATIONS = 40
RELATIVE_TOLERANCE = 1e-5  # of the objective
LONGEST_STEP = 0.3  # px
HINGE = 0.01  # px, the softness of the region's border and of the smallest distance
RIDGE = 40.0  # px^-2, added to a position's information: a unit square itself tells about 12, neighbours at a distance about as much again
TOGETHER = 4  # pixels that are added to the normal equations at a time
HOPELESS = 20.0  # a start is given up if at its present pace it would need so many more iterations to matter

# Modes
MOST_MODES = 64
MERGE = 0.03  # px (city block): closer answers are one mode
CAUGHT = 0.06  # px (city block): a start so near a known mode ends there
RELEVANT = 16.0  # of the objective, twice the log-likelihood: e^-8 of the best
MISFIT = 3.2  # objective per pixel above which the model does not explain the frame; rounding alone gives 1/12 / 0.3^2 = 0.93
BELIEVED = 3.0  # misfit up to which a posterior with enlarged noise is taken at its word; beyond, hit probabilities fall in proportion
PROMISING = 60.0  # of the objective
CERTAIN = 0.015  # px: a single Gaussian mode this narrow needs no sampling
ALONE = 6.0  # nats by which the second mode must lie below it
UNLIKELY = 12.0  # nats below the best at which a count is not considered any more

# Slice sampler
BRACKET = 1.6  # of the direction's length
STEP_OUT = 5
SHRINK = 20
HISTORY = 64  # stored states whose differences serve as directions
SLOPE = 50.0  # grey levels per px by which a broken position limit counts
WALL = 1e4  # of chi squared, per grey level by which the prior is broken
SETTLED = 2e-4  # px, last step of the search for a median
REFRESH = 10  # updates between two looks at the local shape

GOLDEN, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S11, S27, S30, S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


class Optics(NamedTuple):
    """Tables of the pixel profile over position; the two tuples only carry the window's side and its padded width in their types."""

    value: np.ndarray  # (nodes, lanes) float64: share of the light in each pixel
    slope: np.ndarray  # (nodes, lanes) its derivative [1 / px]
    coarse: np.ndarray  # (nodes, lanes) float32 copy of value, for the sampler
    start: float  # position of the first node [px]
    per_px: float  # nodes per px
    side: tuple
    lanes: tuple


class Region(NamedTuple):
    """The prior: a rectangle, a range of intensities, a smallest distance."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    dim: float  # grey levels
    bright: float
    distance: float  # px


class Evidence(NamedTuple):
    """What the sensor says about the pixels of one window."""

    level: np.ndarray  # (side, lanes) grey levels
    weight: np.ndarray  # (side, lanes) 1 where the pixel was measured, 0 beyond the frame
    ceiling: np.ndarray  # (side, lanes) largest residual that counts: 0 where the level is the sensor's largest or nothing was measured, FREE elsewhere
    low: np.ndarray  # (side, lanes) float32: smallest expectation that rounds to the level
    high: np.ndarray  # (side, lanes) float32: largest
    per_level: float  # 1 / standard deviation for least squares [1 / grey level]
    exact: bool  # True: the likelihood is the box low <= m <= high; False: Gaussian
    wall: float  # by how much a broken prior counts, per grey level: a soft wall leads answers back in, an infinite one leaves none outside


class Work(NamedTuple):
    """Scratch arrays of one thread."""

    row: np.ndarray  # (MAX_TARGETS, lanes)
    light: np.ndarray  # (MAX_TARGETS, lanes) rows times the intensity
    row_slope: np.ndarray
    column: np.ndarray
    column_slope: np.ndarray
    residual: np.ndarray  # (side, lanes) of the latest objective [grey levels]
    jacobian: np.ndarray  # (pixels, SIZE) of the pixels that count
    misfit: np.ndarray  # (pixels,) their residuals in deviations
    matrix: np.ndarray  # (SIZE, SIZE) information
    gradient: np.ndarray  # (SIZE,)
    factor: np.ndarray  # (SIZE, SIZE) Cholesky, upper
    step: np.ndarray  # (SIZE,)
    trial: np.ndarray  # (SIZE,)
    variance: np.ndarray  # (SIZE,)
    bright_row: np.ndarray  # (MAX_TARGETS, lanes) float32, times the intensity
    coarse_column: np.ndarray  # (MAX_TARGETS, lanes) float32
    line: np.ndarray  # (1, lanes) float32, expected grey levels of one row of pixels
    direction: np.ndarray  # (SIZE,)
    history: np.ndarray  # (HISTORY, SIZE)
    stream: np.ndarray  # (1,) uint64


class Effort(NamedTuple):
    """How much work a tier does."""

    starts: int  # of Levenberg-Marquardt at most, for three targets and more
    pilot: int  # starts that decide whether a count is worth the others
    agreed: int  # starts of a count that must end in modes known already, for each such mode, before no more are tried
    updates: int  # slice updates of five targets, all modes together
    cut: float  # the same for frames whose border cuts light off, as a multiple
    sharp: float  # px; a single mode narrower than this, both coordinates together, gets fewer updates in proportion
    burn_in: int  # of each mode
    kept: int  # states kept
    modes: int  # modes that are sampled
    particles: int  # of sequential Monte Carlo; 0 switches it off
    survivors: float  # share of the particles that a level keeps
    moves: float  # slice updates of each particle at each level, as a multiple of 2 + 1.5 for each target
    doubt: float  # mean claimed hit probability of a border frame below which sequential Monte Carlo runs


class Plan(NamedTuple):
    """What is the same for all frames besides optics and region."""

    effort: Effort
    starts: np.ndarray  # (MAX_TARGETS + 1, starts, SIZE) by number of targets
    pools: np.ndarray  # (MAX_TARGETS + 1, pool, MAX_TARGETS, 2) valid positions [px], to begin sequential Monte Carlo with
    scattered: bool  # True: targets may lie anywhere on the frame, starts follow the light
    fewest: int
    most: int
    noise: float  # standard deviation of a pixel [grey levels]
    log_prior: np.ndarray  # (MAX_TARGETS + 1,) log density of the positions of so many targets in any order [px^-2 each]
    thresholds: np.ndarray  # px, of CSO-mAP


class States(NamedTuple):
    """Weighted samples of a frame's posterior; parameters beyond those of ``number`` targets mean nothing."""

    theta: np.ndarray  # (S, SIZE)
    number: np.ndarray  # (S,)
    weight: np.ndarray  # (S,)


class Answer(NamedTuple):
    """One frame's result."""

    theta: np.ndarray  # (SIZE,)
    deviation: np.ndarray  # (MAX_TARGETS, 2) px
    score: np.ndarray  # (MAX_TARGETS,)


@compiled
def new_work(optics):
    """Scratch arrays for a window, each an array of its own: parts of one larger array would be compiled as strided."""
    lanes, pixels = len(optics.lanes), len(optics.side) ** 2 + TOGETHER
    profiles = (MAX_TARGETS, lanes)
    return Work(
        row=np.zeros(profiles),
        light=np.zeros(profiles),
        row_slope=np.zeros(profiles),
        column=np.zeros(profiles),
        column_slope=np.zeros(profiles),
        residual=np.zeros((len(optics.side), lanes)),
        jacobian=np.zeros((pixels, SIZE)),
        misfit=np.zeros(pixels),
        matrix=np.zeros((SIZE, SIZE)),
        gradient=np.zeros(SIZE),
        factor=np.zeros((SIZE, SIZE)),
        step=np.zeros(SIZE),
        trial=np.zeros(SIZE),
        variance=np.zeros(SIZE),
        bright_row=np.zeros(profiles, np.float32),
        coarse_column=np.zeros(profiles, np.float32),
        line=np.zeros((1, lanes), np.float32),
        direction=np.zeros(SIZE),
        history=np.zeros((HISTORY, SIZE)),
        stream=np.zeros(1, np.uint64),
    )


@compiled
def uniform(stream):
    """Next number of the stream, uniform on 0 .. 1 (SplitMix64)."""
    stream[0] += GOLDEN
    z = stream[0]
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    return float((z ^ (z >> S31)) >> S11) * (1.0 / 9007199254740992.0)


@compiled
def whole(stream, n):
    """Next whole number below n."""
    return min(int(uniform(stream) * n), n - 1)


# The model ---------------------------------------------------------------------------------------------------------------------------------


@inlined
def read_profile(table, optics, position, profile, k):
    """p_i(u) of all pixels by linear interpolation between the table's nodes, into a row of ``profile``. The float32 table is good to 1e-4 grey levels."""
    t = min(max((position - optics.start) * optics.per_px, 0.0), table.shape[0] - 1.001)
    node = int(t)
    for first in range(0, len(optics.lanes), 8):
        left = eight(table, node, first)
        put(profile, k, first, plus(left, times(spread(t - node, left), minus(eight(table, node + 1, first), left))))


@inlined
def read_light(table, optics, theta, number, row, light, column):
    """Profiles of all targets, and the rows' times the intensity; ``row`` and ``light`` may be the same."""
    for k in range(number):
        read_profile(table, optics, theta[3 * k], row, k)
        read_profile(table, optics, theta[3 * k + 1], column, k)
        for first in range(0, len(optics.lanes), 8):
            profile = eight(row, k, first)
            put(light, k, first, times(spread(theta[3 * k + 2], profile), profile))


@inlined
def expected(light, column, number, i, first):
    """Expected grey levels of eight pixels of the i-th row."""
    levels = spread(0.0, eight(column, 0, first))
    for k in range(number):
        levels = plus(levels, times(spread(light[k, i], levels), eight(column, k, first)))
    return levels


@inlined
def squared_distance(theta, k, others, j):
    """Squared distance [px^2] of target k of one answer and target j of another."""
    dx, dy = theta[3 * k] - others[3 * j], theta[3 * k + 1] - others[3 * j + 1]
    return dx * dx + dy * dy


@inlined
def beyond(value, low, high):
    """How far a value lies outside an interval: negative below, 0 inside, positive above."""
    return min(value - low, 0.0) + max(value - high, 0.0)


@inlined
def intensity_law(region):
    """Mean and inverse width of the Gaussian that stands for the uniform law of intensities in least squares (its deviation is 0.29 of the range)."""
    return 0.5 * (region.dim + region.bright), 1.0 / (0.3 * (region.bright - region.dim))


# Least squares -----------------------------------------------------------------------------------------------------------------------------


@compiled
def objective(theta, number, optics, evidence, region, work):
    r"""Sum of squares that Levenberg-Marquardt minimises; leaves the profiles and residuals in ``work``.

    sum_ij ((m - z) / s)^2, where a clipped pixel counts only if m < z;  + sum_k ((g_k - mean) / width)^2;  + squared hinges (excess / HINGE)^2 of
    the region's border and of pairs nearer than the smallest distance.
    """
    read_light(optics.value, optics, theta, number, work.row, work.light, work.column)
    squares = spread(0.0, eight(work.column, 0, 0))
    for i in range(len(optics.side)):
        for first in range(0, len(optics.lanes), 8):
            r = minus(expected(work.light, work.column, number, i, first), eight(evidence.level, i, first))
            r = smaller(times(r, eight(evidence.weight, i, first)), eight(evidence.ceiling, i, first))
            put(work.residual, i, first, r)
            squares = plus(squares, times(r, r))
    total = sum_of(squares) * evidence.per_level**2
    mean, per_width = intensity_law(region)
    for k in range(number):
        d = (theta[3 * k + 2] - mean) * per_width
        ex = beyond(theta[3 * k], region.x_low, region.x_high) / HINGE
        ey = beyond(theta[3 * k + 1], region.y_low, region.y_high) / HINGE
        total += d * d + ex * ex + ey * ey
        for other in range(k):
            d = squared_distance(theta, k, theta, other)
            if d < region.distance**2:
                e = (region.distance - math.sqrt(d)) / HINGE
                total += e * e
    return total


@compiled
def normal_equations(theta, number, optics, evidence, region, work):
    """Upper half of the information matrix J^T J, and gradient J^T r, of :func:`objective`, which was taken last at the same ``theta``."""
    n, side, pixels = 3 * number, len(optics.side), 0
    padded = (n + 3) // 4 * 4
    matrix, gradient, jacobian, misfit = work.matrix, work.gradient, work.jacobian, work.misfit
    for k in range(number):
        read_profile(optics.slope, optics, theta[3 * k], work.row_slope, k)
        read_profile(optics.slope, optics, theta[3 * k + 1], work.column_slope, k)
    for i in range(side):
        for j in range(side):
            if work.residual[i, j] >= evidence.ceiling[i, j]:
                continue
            misfit[pixels] = work.residual[i, j] * evidence.per_level
            for k in range(number):
                column = work.column[k, j] * evidence.per_level
                jacobian[pixels, 3 * k] = theta[3 * k + 2] * work.row_slope[k, i] * column
                jacobian[pixels, 3 * k + 1] = work.light[k, i] * work.column_slope[k, j] * evidence.per_level
                jacobian[pixels, 3 * k + 2] = work.row[k, i] * column
            for a in range(n, padded):
                jacobian[pixels, a] = 0.0
            pixels += 1
    for p in range(pixels, pixels + TOGETHER):
        jacobian[p], misfit[p] = 0.0, 0.0
    for a in range(n):
        gradient[a] = 0.0
        for first in range(a // 4 * 4, padded, 4):
            put(matrix, a, first, spread(0.0, four(matrix, a, first)))
    for p in range(0, pixels, TOGETHER):
        for a in range(n):
            s0, s1, s2, s3 = jacobian[p, a], jacobian[p + 1, a], jacobian[p + 2, a], jacobian[p + 3, a]
            gradient[a] += (s0 * misfit[p] + s1 * misfit[p + 1]) + (s2 * misfit[p + 2] + s3 * misfit[p + 3])
            for first in range(a // 4 * 4, padded, 4):
                entries = four(matrix, a, first)
                entries = plus(entries, times(spread(s0, entries), four(jacobian, p, first)))
                entries = plus(entries, times(spread(s1, entries), four(jacobian, p + 1, first)))
                entries = plus(entries, times(spread(s2, entries), four(jacobian, p + 2, first)))
                entries = plus(entries, times(spread(s3, entries), four(jacobian, p + 3, first)))
                put(matrix, a, first, entries)
    add_prior(theta, number, region, matrix, gradient)


@compiled
def add_prior(theta, number, region, matrix, gradient):
    """The prior's share of the normal equations: intensity, border, smallest distance."""
    mean, per_width = intensity_law(region)
    for k in range(number):
        p = 3 * k
        matrix[p + 2, p + 2] += per_width**2
        gradient[p + 2] += (theta[p + 2] - mean) * per_width**2
        for axis in range(2):
            e = beyond(theta[p], region.x_low, region.x_high) if axis == 0 else beyond(theta[p + 1], region.y_low, region.y_high)
            if e != 0:
                matrix[p + axis, p + axis] += 1.0 / HINGE**2
                gradient[p + axis] += e / HINGE**2
        for other in range(k):
            q = 3 * other
            d = math.sqrt(squared_distance(theta, k, theta, other))
            if d >= region.distance:
                continue
            e, d = (region.distance - d) / HINGE, max(d, 1e-6)
            for axis in range(2):
                u = (theta[q + axis] - theta[p + axis]) / d / HINGE  # derivative of e
                gradient[p + axis] += u * e
                gradient[q + axis] -= u * e
                for axis2 in range(2):
                    v = (theta[q + axis2] - theta[p + axis2]) / d / HINGE
                    matrix[p + axis, p + axis2] += u * v
                    matrix[q + axis, q + axis2] += u * v
                    matrix[q + axis, p + axis2] -= u * v


@compiled
def cholesky(matrix, n, damping, factor):
    """Upper factor U of matrix + damping * its diagonal = U^T U, whose upper half is read; False if that is not positive definite.

    The diagonal of ``factor`` holds reciprocals.
    """
    padded = (n + 3) // 4 * 4
    for i in range(n):
        for first in range(i // 4 * 4, padded, 4):
            put(factor, i, first, four(matrix, i, first))
        factor[i, i] = matrix[i, i] * (1.0 + damping) + 1e-9
    for i in range(n):
        if not factor[i, i] > 0:
            return False
        scale = 1.0 / math.sqrt(factor[i, i])
        for first in range(i // 4 * 4, padded, 4):
            entries = four(factor, i, first)
            put(factor, i, first, times(spread(scale, entries), entries))
        factor[i, i] = scale
        for j in range(i + 1, n):
            for first in range(j // 4 * 4, padded, 4):
                entries = four(factor, j, first)
                put(factor, j, first, minus(entries, times(spread(factor[i, j], entries), four(factor, i, first))))
    return True


@compiled
def solve_lower(factor, n, x):
    """x <- U^-T x."""
    for i in range(n):
        x[i] *= factor[i, i]
        for k in range(i + 1, n):
            x[k] -= factor[i, k] * x[i]


@compiled
def solve_upper(factor, n, x):
    """x <- U^-1 x."""
    for i in range(n - 1, -1, -1):
        s = x[i]
        for k in range(i + 1, n):
            s -= factor[i, k] * x[k]
        x[i] = s * factor[i, i]


@compiled
def same_mode(theta, other, number, reach):
    """True if every target of one answer lies within reach (city block) of a target of the other."""
    for k in range(number):
        nearest = FREE
        for j in range(number):
            nearest = min(nearest, abs(theta[3 * k] - other[3 * j]) + abs(theta[3 * k + 1] - other[3 * j + 1]))
        if nearest > reach:
            return False
    return True


@compiled
def fit(theta, number, optics, evidence, region, work, goal, iterations, known):
    """Levenberg-Marquardt in place; returns the objective. Gives up a start whose pace cannot bring it to ``goal``; FREE if it comes to a known mode."""
    n, damping, stale = 3 * number, 1e-2, True
    cost = objective(theta, number, optics, evidence, region, work)
    for _ in range(iterations):
        if stale:
            normal_equations(theta, number, optics, evidence, region, work)
        stale = False
        if not cholesky(work.matrix, n, damping, work.factor):
            damping = max(4 * damping, 1e-6)
            continue
        for a in range(n):
            work.step[a] = work.gradient[a]
        solve_lower(work.factor, n, work.step)
        solve_upper(work.factor, n, work.step)
        for a in range(n):
            longest = LONGEST_STEP if a % 3 < 2 else FREE
            work.trial[a] = theta[a] - min(max(work.step[a], -longest), longest)
        new = objective(work.trial, number, optics, evidence, region, work)
        if new >= cost:
            damping *= 4
            if damping > 1e5:
                break
            continue
        gain, cost, stale, damping = cost - new, new, True, max(0.3 * damping, 1e-9)
        for a in range(n):
            theta[a] = work.trial[a]
        if gain < RELATIVE_TOLERANCE * (1 + cost) or cost - goal > HOPELESS * gain:
            break
        for mode in known:
            if same_mode(theta, mode, number, CAUGHT):
                return FREE
    return cost


@compiled
def local_shape(theta, number, optics, evidence, region, work):
    """Cholesky factor of the posterior's information at an answer, J^T J + priors + RIDGE on positions; left in ``work.factor``."""
    objective(theta, number, optics, evidence, region, work)
    normal_equations(theta, number, optics, evidence, region, work)
    for k in range(number):
        work.matrix[3 * k, 3 * k] += RIDGE
        work.matrix[3 * k + 1, 3 * k + 1] += RIDGE
    return cholesky(work.matrix, 3 * number, 0.0, work.factor)


@compiled
def log_determinant(factor, n):
    """Of U^T U."""
    total = 0.0
    for a in range(n):
        total -= 2 * math.log(factor[a, a])
    return total


@compiled
def variances(factor, n, work):
    """Diagonal of (U^T U)^-1, left in ``work.variance``: the squared lengths of the columns of U^-T."""
    for a in range(n):
        for b in range(n):
            work.step[b] = 0.0
        work.step[a] = 1.0
        solve_lower(factor, n, work.step)
        work.variance[a] = 0.0
        for b in range(a, n):
            work.variance[a] += work.step[b] ** 2


# Modes -------------------------------------------------------------------------------------------------------------------------------------


@compiled
def count_range(evidence, region, side, plan):
    """Smallest and largest number of targets that the visible light allows; light that was clipped or fell beside the frame bounds from below only."""
    light, complete = 0.0, True
    for i in range(side):
        for j in range(side):
            light += evidence.level[i, j] * evidence.weight[i, j]
            if evidence.ceiling[i, j] == 0:
                complete = False
    slack = 5 * side * plan.noise + 0.001 * light
    fewest = min(max(plan.fewest, int(math.ceil((light - slack) / region.bright))), plan.most)
    most = plan.most
    if complete and region.dim > 0:
        most = min(max(fewest, int((light + slack) / region.dim)), plan.most)
    return fewest, most


@compiled
def draw_start(theta, number, evidence, region, optics, stream):
    """Positions drawn with the light's own distribution, intensities at the middle of their range; where no pixel is known to hold the cluster."""
    side, light = len(optics.side), 0.0
    for i in range(side):
        for j in range(side):
            light += evidence.level[i, j] * evidence.weight[i, j]
    for k in range(number):
        rest, pixel = uniform(stream) * light, 0
        while pixel < side * side - 1:
            rest -= evidence.level[pixel // side, pixel % side] * evidence.weight[pixel // side, pixel % side]
            if rest <= 0:
                break
            pixel += 1
        theta[3 * k] = pixel // side - side // 2 + uniform(stream) - 0.5
        theta[3 * k + 1] = pixel % side - side // 2 + uniform(stream) - 0.5
        theta[3 * k + 2] = light / number


@compiled
def add_mode(theta, number, cost, modes, numbers, costs, found):
    """Enter a minimum into the table of distinct modes; returns how many there are."""
    for known in range(found):
        if numbers[known] == number and same_mode(theta, modes[known], number, MERGE):
            if cost < costs[known]:
                modes[known], costs[known] = theta, cost
            return found
    if found == len(costs):
        return found
    modes[found], numbers[found], costs[found] = theta, number, cost
    return found + 1


@compiled
def find_modes(optics, evidence, region, work, plan, given, given_number, modes, numbers, costs):
    """Levenberg-Marquardt from every start and count, or from given answers; fills the table of distinct modes, returns their number and the best objective."""
    found, best, explained, theta, side = 0, FREE, 0, np.zeros(SIZE), len(optics.side)
    for start in range(len(given)):
        if given_number[start] > 0:
            theta[:] = given[start]
            confine(theta, given_number[start], region)
            cost = fit(theta, given_number[start], optics, evidence, region, work, best + RELEVANT, ITERATIONS, modes[:0])
            best = min(best, cost)
            if cost <= best + RELEVANT:
                found = add_mode(theta, given_number[start], cost, modes, numbers, costs, found)
    if found > 0:
        return found, best
    fewest, most = count_range(evidence, region, side, plan)
    best_of_count, fits = np.full(MAX_TARGETS + 1, FREE), MISFIT * side * side
    for attempt in range(2):  # the second one, with the other starts, only if none of the pilots explains the frame
        for number in range(fewest, most + 1):
            if explained > 0 and number > explained + 2:
                break
            first, again = found, 0
            tries = 1 if number == 1 and not plan.scattered else min(plan.effort.starts, 12) if number == 2 else plan.effort.starts
            for start in range(attempt * plan.effort.pilot, tries):
                if start >= plan.effort.pilot and best_of_count[number] > (best if attempt else max(best, fits)) + PROMISING:
                    break
                if again >= plan.effort.agreed * (found - first) > 0:
                    break
                if plan.scattered:
                    draw_start(theta, number, evidence, region, optics, work.stream)
                else:
                    theta[:] = plan.starts[number, start]
                cost = fit(theta, number, optics, evidence, region, work, best + RELEVANT, ITERATIONS, modes[first:found])
                best_of_count[number], before = min(best_of_count[number], cost), found
                if cost <= best + RELEVANT:
                    best = min(best, cost)
                    found = add_mode(theta, number, cost, modes, numbers, costs, found)
                    again += found == before
                again += cost == FREE
            if explained == 0 and best < fits:
                explained = number
        if explained > 0:
            break
    return found, best


@compiled
def laplace_weight(theta, number, cost, optics, evidence, region, work, log_prior):
    """Log evidence of a mode for a Gaussian posterior, -cost/2 - log det(A)/2 + log prior + constants of the dimension; also fills the variances."""
    local_shape(theta, number, optics, evidence, region, work)
    variances(work.factor, 3 * number, work)
    width = math.log(intensity_law(region)[1]) - 0.5 * math.log(2 * math.pi)  # the Gaussian that stands for the uniform law of intensities
    return -0.5 * cost - 0.5 * log_determinant(work.factor, 3 * number) + log_prior[number] + number * (1.5 * math.log(2 * math.pi) + width)


# The posterior -----------------------------------------------------------------------------------------------------------------------------


@inlined
def prior_excess(theta, number, region):
    """By how much an answer breaks the prior, in grey levels (SLOPE of them per px); 0 if it does not."""
    worst = 0.0
    for k in range(number):
        worst = max(worst, abs(beyond(theta[3 * k + 2], region.dim, region.bright)))
        worst = max(worst, SLOPE * abs(beyond(theta[3 * k], region.x_low, region.x_high)))
        worst = max(worst, SLOPE * abs(beyond(theta[3 * k + 1], region.y_low, region.y_high)))
        for other in range(k):
            d = squared_distance(theta, k, theta, other)
            if d < region.distance**2:
                worst = max(worst, SLOPE * (region.distance - math.sqrt(d)))
    return worst


@inlined
def box_excess(theta, number, optics, evidence, work, cap):
    """Largest violation of low <= m <= high [grey levels]; not finished once it is above ``cap``."""
    row, column = work.bright_row, work.coarse_column
    read_light(optics.coarse, optics, theta, number, row, row, column)
    worst = spread(0.0, eight(column, 0, 0))
    for i in range(len(optics.side)):
        for first in range(0, len(optics.lanes), 8):
            m = expected(row, column, number, i, first)
            worst = larger(worst, larger(minus(m, eight(evidence.high, i, first)), minus(eight(evidence.low, i, first), m)))
        if any_above(worst, spread(cap, worst)):
            break
    return float(largest(worst))


@inlined
def chi_squared(theta, number, optics, evidence, work):
    """Sum of squared residuals in deviations; a clipped pixel counts only if the model is below it."""
    row, column, line, total = work.bright_row, work.coarse_column, work.line, 0.0
    read_light(optics.coarse, optics, theta, number, row, row, column)
    for i in range(len(optics.side)):
        for first in range(0, len(optics.lanes), 8):
            put(line, 0, first, expected(row, column, number, i, first))
        for j in range(len(optics.side)):
            r = min((line[0, j] - evidence.level[i, j]) * evidence.weight[i, j], evidence.ceiling[i, j])
            total += r * r
    return total * evidence.per_level**2


@compiled
def excess(theta, number, optics, evidence, region, work, cap):
    """What a slice of the posterior bounds. Exact likelihood: the largest violation of prior and box, 0 inside [grey levels].
    Gaussian: chi squared, with the wall about the prior added. Need not be finished once it is above ``cap``."""
    worst = evidence.wall * prior_excess(theta, number, region)
    if not evidence.exact:
        return chi_squared(theta, number, optics, evidence, work) + worst
    if worst > cap:
        return worst
    return max(worst, box_excess(theta, number, optics, evidence, work, cap))


@compiled
def slice_step(theta, number, optics, evidence, region, work, cap):
    """Move to a uniform point of the slice {excess <= cap} on the line through ``theta`` along ``work.direction``; returns the new excess, or -1.

    Neal's slice sampler: a bracket thrown at random about the point, stepped out, then shrunk towards it.
    """
    n, direction, trial = 3 * number, work.direction, work.trial
    low = -BRACKET * uniform(work.stream)
    high = low + BRACKET
    for end in range(2):
        for _ in range(STEP_OUT):
            u = low if end == 0 else high
            for a in range(n):
                trial[a] = theta[a] + u * direction[a]
            if excess(trial, number, optics, evidence, region, work, cap) > cap:
                break
            if end == 0:
                low -= BRACKET
            else:
                high += BRACKET
    for _ in range(SHRINK):
        u = low + (high - low) * uniform(work.stream)
        for a in range(n):
            trial[a] = theta[a] + u * direction[a]
        value = excess(trial, number, optics, evidence, region, work, cap)
        if value <= cap:
            for a in range(n):
                theta[a] = trial[a]
            return value
        if u < 0:
            low = u
        else:
            high = u
    return -1.0


@compiled
def run_chain(theta, number, optics, evidence, region, work, updates, burn_in, states):
    """Sample around a mode by hit-and-run: lines along the local shape, L^-T xi, or along differences of earlier states.

    Starts outside the box tighten their own cap until they are in. Fills ``states`` and returns the cap that was reached, 0 inside the box.
    """
    n, keep, stored, got = 3 * number, len(states), 0, 0
    every = max(1, updates // keep)
    value = excess(theta, number, optics, evidence, region, work, FREE)
    cap = value
    for turn in range(burn_in + every * keep):
        if turn % REFRESH == 0:
            local_shape(theta, number, optics, evidence, region, work)
        if not evidence.exact:
            cap = value - 2 * math.log(max(uniform(work.stream), 1e-12))
        if stored < 20 or uniform(work.stream) < 0.5:
            for a in range(n):
                work.direction[a] = 3.4 * (uniform(work.stream) - 0.5)
            solve_upper(work.factor, n, work.direction)
        else:
            one, two = whole(work.stream, min(stored, HISTORY)), whole(work.stream, min(stored, HISTORY))
            for a in range(n):
                work.direction[a] = work.history[one, a] - work.history[two, a]
            if one == two:
                continue
        moved = slice_step(theta, number, optics, evidence, region, work, cap)
        if moved >= 0:
            value = moved
        if evidence.exact:
            cap = min(cap, value)
        if turn % 3 == 0:
            slot = stored if stored < HISTORY else whole(work.stream, HISTORY)
            for a in range(n):
                work.history[slot, a] = theta[a]
            stored += 1
        if turn >= burn_in and (turn - burn_in + 1) % every == 0 and got < keep:
            states[got] = theta
            got += 1
    while got < keep:
        states[got] = theta
        got += 1
    return cap if evidence.exact else 0.0


@compiled
def log_volume(states, number, work, log_prior):
    """Log prior mass of the region that states fill evenly: their covariance's, half-way between an ellipsoid's and a box's."""
    n, count = 3 * number, len(states)
    mean, half = np.zeros(SIZE), 0.5 * n
    for state in states:
        mean += state / count
    for a in range(n):
        for b in range(a + 1):
            s = 1e-10 if a == b else 0.0
            for state in states:
                s += (state[a] - mean[a]) * (state[b] - mean[b]) / (count - 1)
            work.matrix[b, a] = s
    if not cholesky(work.matrix, n, 0.0, work.factor):
        return -FREE
    ellipsoid = half * math.log(math.pi) - math.lgamma(half + 1) + half * math.log(n + 2.0)
    return 0.5 * log_determinant(work.factor, n) + 0.5 * (ellipsoid + half * math.log(12.0)) + log_prior[number]


@compiled
def confine(theta, number, region):
    """Move an answer into the region and its intensities into their range; where the model is wrong, least squares may have left them far behind."""
    for k in range(number):
        theta[3 * k] -= beyond(theta[3 * k], region.x_low, region.x_high)
        theta[3 * k + 1] -= beyond(theta[3 * k + 1], region.y_low, region.y_high)
        theta[3 * k + 2] -= beyond(theta[3 * k + 2], region.dim, region.bright)


@compiled
def sample_modes(optics, evidence, region, work, plan, modes, numbers, order, laplace, states, load):
    """Chains from the best modes fill the states; returns how many there are, 0 if no mode is in the box.

    A chain's length goes with the root of its mode's Laplace weight and with ``load``. The mode's own weight is the geometric mean of the Laplace weight
    and of the volume that the chain filled: the first knows nothing of the box, the second is noisy.
    """
    effort, total, filled, top = plan.effort, 0.0, 0, -FREE
    used = min(len(order), effort.modes)
    for rank in range(used):
        total += math.exp(0.5 * (laplace[order[rank]] - laplace[order[0]]))
    first, log_weight = np.zeros(used + 1, np.int64), np.full(used, -FREE)
    for rank in range(used):
        mode = order[rank]
        number, share = numbers[mode], math.exp(0.5 * (laplace[mode] - laplace[order[0]])) / total
        keep = max(20, int(effort.kept * share))
        first[rank] = first[rank + 1] = filled
        if share < 0.01 or filled + keep > len(states.weight):
            continue
        if not evidence.exact:
            confine(modes[mode], number, region)
        updates, theta, drawn = max(2 * keep, int(load * effort.updates * share * number / 5)), modes[mode].copy(), states.theta[filled : filled + keep]
        if run_chain(theta, number, optics, evidence, region, work, updates, int(effort.burn_in * number / 5), drawn) > 0.02:
            continue
        log_weight[rank] = laplace[mode]
        if evidence.exact:
            log_weight[rank] = 0.5 * (laplace[mode] + log_volume(drawn, number, work, plan.log_prior) - number * math.log(region.bright - region.dim))
        top = max(top, log_weight[rank])
        states.number[filled : filled + keep] = number
        filled += keep
        first[rank + 1] = filled
    for rank in range(used):
        for s in range(first[rank], first[rank + 1]):
            states.weight[s] = math.exp(log_weight[rank] - top) / (first[rank + 1] - first[rank])
    normalise(states.weight, filled)
    return filled


@compiled
def normalise(weights, count):
    """Divide the first weights by their sum."""
    total = 0.0
    for s in range(count):
        total += weights[s]
    for s in range(count):
        weights[s] /= total


@compiled
def align(theta, number, reference):
    """Order targets like the reference's, exchanging pairs while that lowers the sum of squared distances; returns whether anything changed."""
    moved = False
    for _ in range(MAX_TARGETS * MAX_TARGETS):
        changed = False
        for k in range(number):
            for j in range(k):
                now = squared_distance(theta, k, reference, k) + squared_distance(theta, j, reference, j)
                if squared_distance(theta, k, reference, j) + squared_distance(theta, j, reference, k) < now - 1e-12:
                    moved = changed = True
                    for a in range(3):
                        theta[3 * k + a], theta[3 * j + a] = theta[3 * j + a], theta[3 * k + a]
        if not changed:
            break
    return moved


# Sequential Monte Carlo --------------------------------------------------------------------------------------------------------------------


@compiled
def near_direction(cloud, n, work):
    """Difference of two particles, mostly of close ones, which know the local shape; left in ``work.direction``."""
    count = len(cloud)
    one, two, candidates, nearest = whole(work.stream, count), 0, 6 if uniform(work.stream) < 0.6 else 1, FREE
    for _ in range(candidates):
        candidate, d = whole(work.stream, count), 0.0
        for a in range(n):
            d += (cloud[one, a] - cloud[candidate, a]) ** 2 * (1.0 if a % 3 < 2 else 1e-3)
        if 1e-16 < d < nearest:
            nearest, two = d, candidate
    length = 0.0
    for a in range(n):
        work.direction[a] = cloud[one, a] - cloud[two, a]
        length += abs(work.direction[a])
    return length > 1e-12


@compiled
def nested_boxes(number, optics, evidence, region, work, pool, particles, effort):
    """Sequential Monte Carlo from the prior to the posterior through shrinking boxes of violation; returns the log share of the prior that is left.

    Every level is a quantile of the particles' violations: those above it are replaced by copies of those below, then all move by slice steps. The
    particles' targets are put into one order, so that differences of particles point along the posterior.
    """
    n, count = 3 * number, len(particles)
    violation = np.zeros(count)
    for p in range(count):
        start = whole(work.stream, len(pool))
        for k in range(number):
            particles[p, 3 * k], particles[p, 3 * k + 1] = pool[start, k, 0], pool[start, k, 1]
            particles[p, 3 * k + 2] = region.dim + (region.bright - region.dim) * uniform(work.stream)
        violation[p] = excess(particles[p], number, optics, evidence, region, work, FREE)
    log_share = 0.0
    for _ in range(150):
        level = np.sort(violation)[int(count * effort.survivors)]
        alive = np.flatnonzero(violation <= level)
        if level <= 0:
            level = 0.0
            alive = np.flatnonzero(violation <= 0)
        log_share += math.log(len(alive) / count)
        for p in range(count):
            if violation[p] > level:
                source = alive[whole(work.stream, len(alive))]
                particles[p], violation[p] = particles[source], violation[source]
            align(particles[p], number, particles[alive[0]])
        cloud = particles.copy()
        moves = int(effort.moves * (10 + 5 * number if level == 0 else 2 + 1.5 * number))
        for p in range(count):
            for _ in range(moves):
                if near_direction(cloud, n, work):
                    value = slice_step(particles[p], number, optics, evidence, region, work, level)
                    if value >= 0:
                        violation[p] = value
        if level == 0:
            return log_share
    return -FREE


@compiled
def sample_counts(optics, evidence, region, work, plan, considered, states):
    """Sequential Monte Carlo for each considered count; counts share the weight by their evidence. Returns the number of states, 0 if no count fits."""
    filled, top, log_share = 0, -FREE, np.full(MAX_TARGETS + 1, -FREE)
    for number in range(1, MAX_TARGETS + 1):
        if considered[number]:
            cloud = states.theta[filled : filled + plan.effort.particles]
            log_share[number] = nested_boxes(number, optics, evidence, region, work, plan.pools[number], cloud, plan.effort)
            if log_share[number] > -FREE:
                top = max(top, log_share[number])
                states.number[filled : filled + len(cloud)] = number
                filled += len(cloud)
    for s in range(filled):
        states.weight[s] = math.exp(log_share[states.number[s]] - top)
    normalise(states.weight, filled)
    return filled


# The read-out ------------------------------------------------------------------------------------------------------------------------------


@compiled
def hit_share(squared, thresholds):
    """Share of the distance thresholds that reach a squared distance."""
    hits = 0.0
    for t in thresholds:
        hits += squared <= t * t
    return hits / len(thresholds)


@compiled
def gaussian_hit(variance, thresholds):
    """The same, expected for a Gaussian error: mean over t of 1 - exp(-t^2 / variance), with the variance of both coordinates together."""
    total = 0.0
    for t in thresholds:
        total += 1 - math.exp(-t * t / (variance + 1e-12))
    return total / len(thresholds)


@compiled
def gaussian_errors(number, work, thresholds, answer):
    """Fill deviations and hit probabilities from the variances in ``work``; returns the largest variance of a position, both coordinates together."""
    spread = 0.0
    for k in range(number):
        vx, vy = work.variance[3 * k], work.variance[3 * k + 1]
        answer.deviation[k, 0], answer.deviation[k, 1] = math.sqrt(vx), math.sqrt(vy)
        answer.score[k] = gaussian_hit(vx + vy, thresholds)
        spread = max(spread, vx + vy)
    return spread


@compiled
def likeliest_count(states, filled):
    """The number of targets with the largest weight."""
    share = np.zeros(MAX_TARGETS + 1)
    for s in range(filled):
        share[states.number[s]] += states.weight[s]
    return int(np.argmax(share))


@compiled
def align_to_mean(states, number, filled, mean):
    """Order the targets of all states of a count consistently, beginning with the heaviest state; returns the weight of that count."""
    total, heaviest, following = 0.0, 0, np.zeros(SIZE)
    for s in range(filled):
        if states.number[s] == number:
            total += states.weight[s]
            if states.number[heaviest] != number or states.weight[s] > states.weight[heaviest]:
                heaviest = s
    mean[:] = states.theta[heaviest]
    for turn in range(4):
        following[:], moved = 0.0, False
        for s in range(filled):
            if states.number[s] == number:
                moved = align(states.theta[s], number, mean) or moved
                for a in range(3 * number):
                    following[a] += states.weight[s] / total * states.theta[s, a]
        mean[:] = following
        if turn > 0 and not moved:
            break
    return total


@compiled
def settle(states, k, number, filled, reach, theta):
    """Move target k of theta to the geometric median of its states, then to that of the states within reach: nearly the maximum of the expected score.

    Distances below 0.02 px count as such. Weiszfeld's iteration, c <- sum (w / |x - c|) x / sum (w / |x - c|).
    """
    for within in (FREE, reach):
        for _ in range(10):
            x, y, norm = 0.0, 0.0, 0.0
            for s in range(filled):
                if states.number[s] == number:
                    d = squared_distance(states.theta[s], k, theta, k)
                    if d < within * within:
                        w = states.weight[s] / math.sqrt(max(d, 4e-4))
                        x, y, norm = x + w * states.theta[s, 3 * k], y + w * states.theta[s, 3 * k + 1], norm + w
            if norm == 0:
                break
            move = abs(x / norm - theta[3 * k]) + abs(y / norm - theta[3 * k + 1])
            theta[3 * k], theta[3 * k + 1] = x / norm, y / norm
            if move < SETTLED:
                break


@compiled
def summarise(states, filled, thresholds, answer):
    """Positions, deviations and hit probabilities of the likeliest count, which is returned."""
    number = likeliest_count(states, filled)
    total = align_to_mean(states, number, filled, answer.theta)
    effective = 0.0
    for s in range(filled):
        effective += states.weight[s] ** 2
    for k in range(number):
        settle(states, k, number, filled, 1.1 * thresholds[-1], answer.theta)
        hits, vx, vy = 0.0, 0.0, 0.0
        for s in range(filled):
            nearest = FREE
            for j in range(states.number[s]):
                nearest = min(nearest, squared_distance(states.theta[s], j, answer.theta, k))
            hits += states.weight[s] * hit_share(nearest, thresholds)
            if states.number[s] == number:
                w = states.weight[s] / total
                vx += w * (states.theta[s, 3 * k] - answer.theta[3 * k]) ** 2
                vy += w * (states.theta[s, 3 * k + 1] - answer.theta[3 * k + 1]) ** 2
        answer.deviation[k, 0], answer.deviation[k, 1] = math.sqrt(vx), math.sqrt(vy)
        # Finitely many states cannot tell 0.999 from 1: a Gaussian of their spread counts as one more state and ranks the surest answers.
        answer.score[k] = (hits + effective * gaussian_hit(vx + vy, thresholds)) / (1 + effective)
    return number


@compiled
def softened(evidence, trust):
    """The same pixels with a Gaussian likelihood, its width divided by ``trust``."""
    return Evidence(evidence.level, evidence.weight, evidence.ceiling, evidence.low, evidence.high, evidence.per_level * trust, False, WALL)


@compiled
def walled(evidence):
    """The same pixels with an infinite wall about the prior."""
    return Evidence(evidence.level, evidence.weight, evidence.ceiling, evidence.low, evidence.high, evidence.per_level, evidence.exact, FREE)


@compiled
def solve_frame(optics, evidence, region, work, plan, given, given_number, answer):
    """Fill one frame's answer; returns its number of targets."""
    modes, numbers, costs = np.zeros((MOST_MODES, SIZE)), np.zeros(MOST_MODES, np.int64), np.zeros(MOST_MODES)
    found, best = find_modes(optics, evidence, region, work, plan, given, given_number, modes, numbers, costs)
    # A model that does not explain the frame must not be trusted to the last grey level: what is left over counts as noise.
    pixels = len(optics.side) ** 2
    misfit = max(best / (MISFIT * pixels), 1e-9)
    if misfit > 1:
        evidence = softened(evidence, math.sqrt(pixels / best))
        costs *= pixels / best
    top, second, number = -FREE, -FREE, 0
    spread, laplace, best_of_count = 0.0, np.full(found, -FREE), np.full(MAX_TARGETS + 1, -FREE)
    for mode in range(found):
        laplace[mode] = laplace_weight(modes[mode], numbers[mode], costs[mode], optics, evidence, region, work, plan.log_prior)
        best_of_count[numbers[mode]] = max(best_of_count[numbers[mode]], laplace[mode])
        if laplace[mode] <= top:
            second = max(second, laplace[mode])
            continue
        top, second, number = laplace[mode], top, numbers[mode]
        answer.theta[:] = modes[mode]
        spread = gaussian_errors(number, work, plan.thresholds, answer)
    if misfit <= 1 and spread < CERTAIN**2 and second < top - ALONE:
        return number
    states = new_states(plan.effort.kept + 20 * plan.effort.modes)
    order = np.argsort(-laplace)
    load = min(1.0, math.sqrt(spread) / plan.effort.sharp) if second < top - ALONE else 1.0
    if is_cut(evidence, optics):
        load *= plan.effort.cut
    filled = sample_modes(optics, evidence, region, work, plan, modes, numbers, order, laplace, states, load)
    if filled == 0 and evidence.exact:
        evidence = softened(evidence, 1.0 / math.sqrt(max(1.0, best / pixels)))
        filled = sample_modes(optics, evidence, region, work, plan, modes, numbers, order, laplace, states, load)
    if filled > 0:
        number = summarise(states, filled, plan.thresholds, answer)
        # On whole windows chains reach what sequential Monte Carlo does. Where the frame's border cuts light off, they are too short and too sure.
        if evidence.exact and plan.effort.particles > 0 and is_cut(evidence, optics) and np.mean(answer.score[:number]) < plan.effort.doubt:
            considered = best_of_count > top - UNLIKELY
            many = new_states(plan.effort.particles * np.sum(considered))
            filled = sample_counts(optics, walled(evidence), region, work, plan, considered, many)
            if filled > 0:
                number = summarise(many, filled, plan.thresholds, answer)
    answer.score[:] *= min(1.0, BELIEVED / misfit)
    return number


@compiled
def is_cut(evidence, optics):
    """True if part of the window lies beyond the frame."""
    last = len(optics.side) - 1
    return min(min(evidence.weight[0, 0], evidence.weight[0, last]), min(evidence.weight[last, 0], evidence.weight[last, last])) == 0


@compiled
def new_states(count):
    """Room for so many states."""
    return States(np.zeros((count, SIZE)), np.zeros(count, np.int64), np.zeros(count))


@compiled
def solve_frames(optics, region, plan, per_level, exact, level, weight, ceiling, low, high, bright, seeds, given, given_number, count, theta, deviation, score):
    """Answer many frames one after the other: windows (n, side, lanes) in, counts (n,), theta (n, SIZE), deviation (n, MAX, 2) and score (n, MAX) out."""
    work = new_work(optics)
    for f in range(len(seeds)):
        work.stream[0] = seeds[f]
        evidence = Evidence(level[f], weight[f], ceiling[f], low[f], high[f], per_level, exact, 1.0 if exact else WALL)
        own = Region(region.x_low, region.x_high, region.y_low, region.y_high, region.dim, bright[f], region.distance)
        count[f] = solve_frame(optics, evidence, own, work, plan, given[f], given_number[f], Answer(theta[f], deviation[f], score[f]))


@compiled
def polish_frames(optics, region, iterations, thresholds, per_level, level, weight, ceiling, low, high, bright, count, theta, deviation, score):
    """Levenberg-Marquardt from given answers, in place; errors and hit probabilities are those of the Gaussian that fits the minimum."""
    work, pixels = new_work(optics), len(optics.side) ** 2
    for f in range(len(count)):
        number, answer = count[f], Answer(theta[f], deviation[f], score[f])
        evidence = Evidence(level[f], weight[f], ceiling[f], low[f], high[f], per_level, False, WALL)
        own = Region(region.x_low, region.x_high, region.y_low, region.y_high, region.dim, bright[f], region.distance)
        confine(answer.theta, number, own)
        best = fit(answer.theta, number, optics, evidence, own, work, FREE, iterations, np.zeros((0, SIZE)))
        misfit = best / (MISFIT * pixels)
        if misfit > 1:
            evidence = softened(evidence, math.sqrt(pixels / best))
        local_shape(answer.theta, number, optics, evidence, own, work)
        variances(work.factor, 3 * number, work)
        gaussian_errors(number, work, thresholds, answer)
        answer.score[:] *= min(1.0, BELIEVED / max(misfit, 1e-9))
