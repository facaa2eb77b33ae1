"""Model-based unmixers: they know the optics, learn nothing, and set the standard that a network must beat (book chapter "Sparse recovery")."""
from csist.solvers.finding import find_clusters
from csist.solvers.greedy import omp
from csist.solvers.ista import PAPER, TUNED, IstaSettings, SparseResult, SteeringOperator, fista, ista, soft_threshold, unmix_ista
from csist.solvers.offgrid import Prior, polish, unmix_offgrid
from csist.solvers.posterior import Posterior, sample_posterior

__all__ = [
    "PAPER",
    "TUNED",
    "IstaSettings",
    "Posterior",
    "Prior",
    "SparseResult",
    "SteeringOperator",
    "find_clusters",
    "fista",
    "ista",
    "omp",
    "polish",
    "sample_posterior",
    "soft_threshold",
    "unmix_ista",
    "unmix_offgrid",
]
