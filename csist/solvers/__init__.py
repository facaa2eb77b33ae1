"""Model-based unmixers: they know the optics, learn nothing, and set the standard that a network must beat (book chapter "Sparse recovery")."""
from csist.solvers.finding import find_clusters
from csist.solvers.greedy import omp
from csist.solvers.ista import PAPER, TUNED, IstaSettings, SparseResult, SteeringOperator, fista, ista, soft_threshold, unmix_ista
from csist.solvers.offgrid import Prior, polish, unmix_offgrid

__all__ = [
    "PAPER",
    "TUNED",
    "IstaSettings",
    "Prior",
    "SparseResult",
    "SteeringOperator",
    "find_clusters",
    "fista",
    "ista",
    "omp",
    "polish",
    "soft_threshold",
    "unmix_ista",
    "unmix_offgrid",
]
