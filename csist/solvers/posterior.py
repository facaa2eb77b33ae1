r"""The exact posterior of a frame, sampled from the prior down (book chapter "Beyond the grid").

A rounded frame allows exactly those scenes whose model stays within half a grey level of every pixel. Between all scenes of the prior and those few stand
boxes of falling size, the largest *violation* of a pixel's interval that they tolerate. Sequential Monte Carlo goes through them one after the other:

1. Particles are drawn from the prior, for every number of targets that least squares does not rule out.
2. The median violation is the next box. Particles outside it are replaced by copies of those inside; then all move by slice steps within the box.
3. When nothing is violated any more, the particles are samples of the posterior, and the product of the shares that survived is the evidence of their number.

Hardly a mode is missed because a search began elsewhere, and no shape is assumed. That costs about a second a frame, hundreds of times as long as the chains
of :func:`csist.solvers.offgrid.unmix_offgrid`, whose tier "accurate" takes this way on doubtful border frames. What one detection
for each estimated target can reach is measured with it (``reproduce/attainable.py``).
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csist.imaging import FocalPlane, check_plane
from csist.scenes import Targets
from csist.solvers.offgrid import MAX_TARGETS, Prior, _Answers, _as_targets, _check_levels, _check_whole, _Clusters, _load_kernels, _Problem


class EmptyPosterior(ValueError):
    """No scene of the prior rounds to the frame."""


class Posterior(NamedTuple):
    """Scenes that a frame allows, and the answer that follows from them."""

    samples: Targets  # S scenes
    weight: np.ndarray  # (S,) their probabilities; together 1
    answer: Targets  # one frame: geometric medians, their standard deviations, hit probabilities

    @property
    def count_probability(self) -> np.ndarray:
        """Probability of 0, 1, 2, ... targets."""
        return np.bincount(self.samples.count, self.weight, minlength=MAX_TARGETS + 1)


def sample_posterior(frame, plane: FocalPlane | None = None, *, prior: Prior | None = None, particles: int = 1200, good=None, seed: int = 0) -> Posterior:
    """Sequential Monte Carlo on one rounded frame with one cluster.

    Parameters
    ----------
    frame : array (rows, columns)
        Grey levels.
    plane : FocalPlane, optional
        Optics and sensor that made the frame, without read noise; by default the paper's.
    prior : Prior, optional
        What is known of the scenes, ``cluster`` included; by default CSIST-100K's rules.
    particles : int
        Samples for each number of targets. More of them miss fewer modes and take longer in proportion.
    good : array (rows, columns) of bool, optional
        False for dead and hot pixels, whose levels tell nothing.
    seed : int
        Of the sampler.

    Returns
    -------
    Posterior
        In pixels of the frame. Hit probabilities are those of the samples, not calibrated.

    Raises
    ------
    ValueError
        For a plane with read noise or without rounding, or a frame without a cluster or with several.
    EmptyPosterior
        For a frame that no scene of the prior explains, as of a single target so near a pixel's border that its light's centre lies beyond.
    ImportError
        Without numba.

    >>> plane = FocalPlane()
    >>> frame = plane.render(Targets([[[5.1, 4.8]]], [[240.0]], [1]))[0]
    >>> sample_posterior(frame, plane, particles=200).answer.xy.round(2).tolist()  # doctest: +SKIP
    [[[5.1, 4.8]]]
    """
    plane, prior = check_plane(plane), prior or Prior()
    _check_whole("sample_posterior", particles=(particles, 50), seed=(seed, 0))
    if plane.bits is None or plane.read_noise > 0:
        raise ValueError(f"sample_posterior: the likelihood must be a box, so bits must be set and read_noise 0; got {plane}. Try unmix_offgrid")
    if not prior.cluster:
        raise ValueError("sample_posterior: prior.cluster must be True: particles are drawn within one pixel")
    if np.ndim(frame) != 2:
        raise ValueError(f"sample_posterior: one frame (rows, columns) at a time; got shape {np.shape(frame)}. Pick one, as frames[0]")
    frames = _check_levels(frame, plane, "sample_posterior")
    kernels = _load_kernels()
    from csist.solvers._posterior_kernel import sample_frame

    problem = _Problem(plane, prior, kernels)
    clusters = _Clusters(frames, plane, prior, problem.side, good)
    if len(clusters.frame) != 1:
        raise ValueError(f"sample_posterior: the frame must hold one cluster; found {len(clusters.frame)}. Cut the frame about a cluster, or use unmix_offgrid")
    optics, region, plan, per_level, exact = problem.solver("accurate").args
    plan = plan._replace(effort=plan.effort._replace(particles=particles, survivors=0.5, moves=1.0))  # medians, whatever the tier does
    region = region._replace(bright=float(problem.bright(clusters)[0]))
    evidence = kernels.Evidence(*(part[0] for part in clusters.evidence()), per_level, exact, 1.0)
    seeds = clusters.hashes() ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    answers = _Answers(1)
    answer = kernels.Answer(answers.theta.reshape(1, -1)[0], answers.deviation[0], answers.score[0])
    states, filled, answers.count[0] = sample_frame(optics, evidence, region, plan, seeds[0], answer)
    if not filled:
        cure = "is sigma right, is there no noise, are the prior's numbers and intensities, is the cluster within the pixel of its light's centre?"
        raise EmptyPosterior(f"sample_posterior: no scene of the prior rounds to this frame; {cure} unmix_offgrid gives the nearest scene")
    theta, count = states.theta[:filled].reshape(filled, MAX_TARGETS, 3), states.number[:filled]
    most = int(count.max())
    absent = np.arange(most) >= count[:, None]
    xy = np.where(absent[..., None], np.nan, theta[:, :most, :2] + clusters.cell[0])
    samples = Targets(xy, np.where(absent, np.nan, theta[:, :most, 2]), count)
    return Posterior(samples, states.weight[:filled], _as_targets(answers, clusters, 1))
