"""RCAN (Zhang et al., ECCV 2018), as the paper's Table 1 uses it: residual blocks that weigh their channels, nested in residual groups."""
from __future__ import annotations

from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import ChannelAttention, Residual, SuperResolutionNetwork, check_counts, convolution, upsampler


def attention_block(features: int, reduction: int) -> Residual:
    """Convolution, ReLU, convolution, channel attention, plus the input."""
    return Residual(convolution(features, features), nn.ReLU(), convolution(features, features), ChannelAttention(features, reduction))


def attention_group(features: int, blocks: int, reduction: int) -> Residual:
    """Attention blocks, a convolution, plus the input."""
    return Residual(*(attention_block(features, reduction) for _ in range(blocks)), convolution(features, features))


class Rcan(SuperResolutionNetwork):
    """Five groups of ten attention blocks of 32 features inside a long skip, then the upsampler; 1,078,729 parameters at c = 3.

    Parameters
    ----------
    ratio, plane, start
        As in :class:`~csist.networks.sr.blocks.SuperResolutionNetwork`.
    features, groups, blocks, reduction : int
        Channels, residual groups, blocks in each, and how many times fewer numbers lie inside the channel attention.

    >>> sum(p.numel() for p in Rcan().parameters())
    1078729
    """

    global_statistics = True  # attention weights come from means over the image

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *,
                 features: int = 32, groups: int = 5, blocks: int = 10, reduction: int = 8):
        super().__init__(ratio, plane, start)
        check_counts(features=features, groups=groups, blocks=blocks)
        self.layers = nn.Sequential(
            convolution(1, features),
            Residual(*(attention_group(features, blocks, reduction) for _ in range(groups)), convolution(features, features)),
            upsampler(features, self.ratio),
            convolution(features, 1),
        )

    def upscale(self, image):
        return self.layers(image)
