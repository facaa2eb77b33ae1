"""Model-based unmixers: they know the optics, learn nothing, and set the standard that a network must beat (book chapter "Sparse recovery")."""
from csist.solvers.greedy import omp
from csist.solvers.ista import PAPER, TUNED, IstaSettings, SparseResult, SteeringOperator, fista, ista, soft_threshold, unmix_ista

__all__ = ["PAPER", "TUNED", "IstaSettings", "SparseResult", "SteeringOperator", "fista", "ista", "omp", "soft_threshold", "unmix_ista"]
