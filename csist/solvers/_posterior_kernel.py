"""Compiled kernel of :mod:`csist.solvers.posterior`; importing this module needs numba."""
from __future__ import annotations

import numpy as np

from csist.solvers._offgrid_kernels import (
    FREE,
    MAX_TARGETS,
    MOST_MODES,
    SIZE,
    UNLIKELY,
    compiled,
    find_modes,
    laplace_weight,
    new_states,
    new_work,
    sample_counts,
    summarise,
    walled,
)


@compiled
def sample_frame(optics, evidence, region, plan, seed, answer):
    """Samples of one frame's posterior (see ``States``), how many there are, and how many targets the answer has, which is filled; 0 and 0 if none fits.

    Counts whose best minimum of least squares weighs hardly anything beside the best of all are not sampled.
    """
    work = new_work(optics)
    work.stream[0] = seed
    modes, numbers, costs = np.zeros((MOST_MODES, SIZE)), np.zeros(MOST_MODES, np.int64), np.zeros(MOST_MODES)
    found, _ = find_modes(optics, evidence, region, work, plan, np.zeros((0, SIZE)), np.zeros(0, np.int64), modes, numbers, costs)
    best = np.full(MAX_TARGETS + 1, -FREE)
    for mode in range(found):
        weight = laplace_weight(modes[mode], numbers[mode], costs[mode], optics, evidence, region, work, plan.log_prior)
        best[numbers[mode]] = max(best[numbers[mode]], weight)
    considered = best > np.max(best) - UNLIKELY
    states = new_states(plan.effort.particles * np.sum(considered))
    filled = sample_counts(optics, walled(evidence), region, work, plan, considered, states)
    number = summarise(states, filled, plan.thresholds, answer) if filled > 0 else 0
    return states, filled, number
