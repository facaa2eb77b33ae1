"""Learned unmixers: one readable file each."""
from csist.networks.registry import NETWORKS, create_network, load_network

__all__ = ["NETWORKS", "create_network", "load_network"]
