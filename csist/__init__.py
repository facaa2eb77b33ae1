"""csist: simulate, unmix, train and score closely spaced infrared small targets.

A frame is ``z = G s + noise``; unmixing is finding the few point sources ``s``. One convention everywhere: x is the row, y the column, pixel centres
sit at integers.
"""
from csist import limits, metrics
from csist.datasets import Frames, csist100k
from csist.evaluation import detect, evaluate, list_methods, unmix
from csist.grokcso import read_grokcso, write_grokcso
from csist.imaging import FocalPlane, SubpixelGrid
from csist.metrics import cso_map
from csist.networks import create_network, load_network
from csist.scenes import Targets, random_targets

__version__ = "0.1.0"
__all__ = [
    "FocalPlane",
    "Frames",
    "SubpixelGrid",
    "Targets",
    "create_network",
    "cso_map",
    "csist100k",
    "detect",
    "evaluate",
    "limits",
    "list_methods",
    "load_network",
    "metrics",
    "random_targets",
    "read_grokcso",
    "unmix",
    "write_grokcso",
]
