"""RDN (Zhang et al., CVPR 2018), as the paper's Table 1 uses it: every layer of a block reads all earlier ones, and the end reads all blocks."""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import Residual, SuperResolutionNetwork, check_counts, convolution, upsampler


class DenseLayer(nn.Sequential):
    """Layers whose output is appended to the input's channels."""

    def forward(self, image):
        return torch.cat([image, super().forward(image)], dim=1)


def dense_block(features: int, growth: int, layers: int) -> Residual:
    """Layers that each add ``growth`` channels to those they read, squeezed to ``features`` channels, plus the input."""
    dense = (DenseLayer(convolution(features + growth * k, growth), nn.ReLU()) for k in range(layers))
    return Residual(*dense, convolution(features + growth * layers, features, 1))


class Rdn(SuperResolutionNetwork):
    """Sixteen dense blocks of eight layers, 64 features, growth 64; 22,305,729 parameters at c = 3.

    Two shallow convolutions come first. The outputs of all blocks are fused, and the first shallow map is added before the upsampler.

    Parameters
    ----------
    ratio, plane, start
        As in :class:`~csist.networks.sr.blocks.SuperResolutionNetwork`.
    features, blocks, layers, growth : int
        Channels between blocks, dense blocks, layers in each, and the channels a layer adds.

    >>> with torch.device("meta"):  # no memory, no random numbers
    ...     sum(p.numel() for p in Rdn().parameters())
    22305729
    """

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *,
                 features: int = 64, blocks: int = 16, layers: int = 8, growth: int = 64):
        super().__init__(ratio, plane, start)
        check_counts(features=features, blocks=blocks, layers=layers, growth=growth)
        self.shallow = convolution(1, features)
        self.entry = convolution(features, features)
        self.blocks = nn.ModuleList(dense_block(features, growth, layers) for _ in range(blocks))
        self.fusion = nn.Sequential(convolution(blocks * features, features, 1), convolution(features, features))
        self.tail = nn.Sequential(upsampler(features, self.ratio), convolution(features, 1))

    def upscale(self, image):
        shallow = self.shallow(image)
        maps = [self.entry(shallow)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.tail(shallow + self.fusion(torch.cat(maps[1:], dim=1)))
