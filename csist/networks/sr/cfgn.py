"""CFGN, the context feature guided network, a super-resolution row of the paper's Tables 1 and 3.

Each block distils: after every stage half of the channels are put aside, and at its end all that was put aside is mixed and weighed channel by channel.
"""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import ChannelAttention, Residual, SuperResolutionNetwork, check_counts, convolution

SLOPE = 0.05  # of the leaky rectifiers
STAGES = 3  # of a block
REDUCTION = 8  # channels for each inner number of the attention


def contrast(image: torch.Tensor) -> torch.Tensor:
    """Standard deviation plus mean of each channel over all places, (B, C, n, n) -> (B, C, 1, 1).

    >>> float(contrast(torch.tensor([[[[1.0, 3.0], [1.0, 3.0]]]])))
    3.0
    """
    return image.std((2, 3), correction=0, keepdim=True) + image.mean((2, 3), keepdim=True)


class ContrastAttention(ChannelAttention):
    """Weigh each channel by a number in (0, 1) computed from all channels' contrasts (Hui et al., ACM Multimedia 2019)."""

    def __init__(self, features: int):
        super().__init__(features, REDUCTION)
        self.weigh[1] = nn.LeakyReLU(SLOPE)

    def describe(self, image):
        return contrast(image)


class DistillationBlock(nn.Module):
    """Three residual stages, half of the channels kept before each and after the last; their mixture, weighed, is added to the input."""

    def __init__(self, features: int):
        super().__init__()
        half = features // 2
        self.stages = nn.ModuleList(nn.Sequential(Residual(convolution(features, features)), nn.LeakyReLU(SLOPE)) for _ in range(STAGES))
        self.keep = nn.ModuleList(convolution(features, half, kernel) for kernel in (*STAGES * [1], 3))
        self.mix = nn.Sequential(nn.Conv2d((STAGES + 1) * half, features, 1), nn.LeakyReLU(SLOPE), ContrastAttention(features))

    def forward(self, image):
        maps = [image]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return image + self.mix(torch.cat([keep(one) for keep, one in zip(self.keep, maps)], 1))


class Cfgn(SuperResolutionNetwork):
    """CFGN: 530,685 parameters at c = 3, 537,613 at c = 5 and 548,005 at c = 7; only the last layer depends on c.

    Parameters
    ----------
    ratio, plane, start
        See :class:`SuperResolutionNetwork`.
    features : int
        Channels, a multiple of 8.
    blocks : int
        Distillation blocks.

    >>> Cfgn(features=8, blocks=2)(torch.zeros(1, 11, 11)).shape
    torch.Size([1, 33, 33])
    """

    global_statistics = True  # attention weights come from means over the image

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, features: int = 48, blocks: int = 6):
        super().__init__(ratio, plane, start)
        check_counts(features=features, blocks=blocks)
        self.head = convolution(1, features)
        self.blocks = nn.ModuleList(DistillationBlock(features) for _ in range(blocks))
        self.join = nn.Sequential(nn.Conv2d((blocks + 1) * features, features, 1), nn.LeakyReLU(SLOPE), convolution(features, features))
        self.tail = nn.Sequential(convolution(features, ratio**2), nn.PixelShuffle(ratio))

    def upscale(self, image):
        maps = [self.head(image)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.tail(self.join(torch.cat(maps, 1)) + maps[0])
