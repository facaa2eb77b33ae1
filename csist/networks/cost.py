r"""What a network costs: its parameters and its multiply-accumulates, counted our way and the paper's.

The paper's "FLOPs" are multiply-accumulates of one batch of 64 frames. Its networks form :math:`\Phi^\top\Phi` as a dense matrix in every forward pass and
multiply each estimate with it; ours use that the imaging model is separable, which makes the physics almost free. So the two counts of one network differ.
"""
from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from csist.networks.unfolding import UnfoldedNetwork, UnmixingNetwork

PAPER_BATCH = 64


def parameter_count(network: nn.Module) -> int:
    """Learned numbers of a network (the linear start is a fixed buffer and does not count).

    >>> from csist.networks import create_network
    >>> parameter_count(create_network("ista-net+", ratio=5, start=False))
    224652
    """
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_accumulates(network: UnmixingNetwork) -> dict[str, int]:
    """Multiply-accumulates of a forward pass, as executed here and as the paper counts them.

    ``"per_frame"`` is measured on one frame: convolutions (grouped ones with their true cost), linear layers and matrix products, the separable physics
    and the linear start included. Not counted, as everywhere: biases, activations, thresholds, sigmoids, means, the copying of patches; nor the symmetry
    path, which only the training loss runs. One small product, the one-axis G^T G of 11 x 11c x 11c, is done once per batch and is in the frame's count.

    ``"paper_batch64"`` is the paper's convention for 64 frames; see :func:`paper_multiply_accumulates`.

    Parameters
    ----------
    network : UnmixingNetwork
        Any network; it is left in the mode it was in.

    >>> from csist.networks import create_network
    >>> multiply_accumulates(create_network("ista-net", ratio=3, start=False))
    {'per_frame': 187103994, 'paper_batch64': 12766487481}
    """
    return {"per_frame": executed_multiply_accumulates(network), "paper_batch64": paper_multiply_accumulates(network)}


@torch.no_grad()
def executed_multiply_accumulates(network: UnmixingNetwork) -> int:
    """Multiply-accumulates that one frame's forward pass runs, by PyTorch's own counter (which counts two operations for each)."""
    frame = torch.zeros(1, network.size, network.size, device=next(network.parameters()).device)
    training = network.training
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            network.eval()(frame)
    finally:
        network.train(training)
    return counter.get_total_flops() // 2


def paper_multiply_accumulates(network: UnmixingNetwork) -> int:
    r"""What fvcore counts for the toolkit's network on a batch of 64, the paper's "FLOPs".

    For the unfolded networks, with M pixels and N sub-pixels: M N^2 once for :math:`\Phi^\top\Phi`; then for each frame M N for :math:`\Phi^\top z`, M N for
    the linear start, and in every stage N^2 for :math:`\Phi^\top\Phi s`, each convolution kernel at N places, and the linear layers. A dynamic stage
    adds the released convolution across the batch: 64 kernels of 3 x 3 at N places of every frame, where the equations ask for one.

    Any other network has no physics, so its count is 64 times what runs here; batch norm and interpolation, which fvcore adds, are left out.
    """
    if not isinstance(network, UnfoldedNetwork):
        return PAPER_BATCH * executed_multiply_accumulates(network)
    pixels = network.size**2
    subpixels = pixels * network.ratio**2
    stages = sum(subpixels**2 + layer_products(stage, subpixels) for stage in network.fcs)
    return pixels * subpixels**2 + PAPER_BATCH * (2 * pixels * subpixels + stages)


def layer_products(stage: nn.Module, subpixels: int) -> int:
    """Multiply-accumulates of a stage's own layers for one frame of a batch of 64: a kernel acts at every sub-pixel, a linear layer once."""
    kernels = sum(weight.numel() for weight in stage.parameters() if weight.ndim == 4)
    linear = sum(weight.numel() for weight in stage.parameters() if weight.ndim == 2)
    dynamic = PAPER_BATCH * 9 if getattr(stage, "dynamic_transform", False) else 0
    return subpixels * (kernels + dynamic) + linear
