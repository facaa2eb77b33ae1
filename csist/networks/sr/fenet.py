r"""FENet, the frequency-based enhancement network, the paper's "FeNet" row in Table 1.

The paper cites another network of the same short name (Wang et al., 2022, for remote sensing) and prints that one's cost, 0.348 M parameters. The class in
its toolkit is the frequency-based one with 0.682 M, and so is this file: a map is split into a coarse part, local means, and the rest, which holds the
edges and decides where the map is let through.
"""
from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import SuperResolutionNetwork, check_counts, convolution

GROUPS = 4  # of the upsampling convolution
COARSE = 4  # pixels along a side of the means


def normalised(inputs: int, outputs: int, kernel: int = 3, *, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    """A convolution whose kernels are learned as a length and a direction."""
    return weight_norm(convolution(inputs, outputs, kernel, bias=bias, groups=groups))


def split_frequencies(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over 4 x 4 pixels, repeated to the image's size, and what is left.

    On 11 x 11 pixels these are, as in the toolkit, four means of the first 8 rows and columns, stretched over all 11.

    >>> low, high = split_frequencies(torch.tensor([[[[0.0, 4.0], [4.0, 8.0]]]]).repeat(1, 1, 2, 2))
    >>> float(low.max()), float(high.min())
    (4.0, -4.0)
    """
    low = nn.functional.interpolate(nn.functional.avg_pool2d(image, COARSE), image.shape[2:])  # nearest
    return low, image - low


class FrequencyGate(nn.Module):
    """Let a map through where its high frequencies say so."""

    def __init__(self, features: int):
        super().__init__()
        self.edges, self.content, self.out = (normalised(features, features) for _ in range(3))

    def forward(self, image):
        _, high = split_frequencies(image)
        return self.out(self.content(image) * (self.edges(high) + image).sigmoid())


class FrequencyBlock(nn.Module):
    """Half of the channels go through a plain convolution, half through the frequency gate; mixed and added to the input."""

    def __init__(self, features: int):
        super().__init__()
        half = features // 2
        self.plain = nn.Sequential(normalised(features, half, 1), nn.ReLU(), normalised(half, half), nn.ReLU())
        self.gated = nn.Sequential(normalised(features, half, 1), nn.ReLU(), FrequencyGate(half), nn.ReLU())
        self.mix = normalised(features, features, 1)

    def forward(self, image):
        return image + self.mix(torch.cat([self.plain(image), self.gated(image)], 1))


class Fenet(SuperResolutionNetwork):
    """Frequency-based FENet: 682,498 parameters at c = 3, twice what the paper prints for its row (see the module's description).

    Parameters
    ----------
    ratio, plane, start
        See :class:`SuperResolutionNetwork`.
    features : int
        Channels, a multiple of 4.
    blocks : int
        Frequency blocks.

    Raises
    ------
    ValueError
        For other numbers of features.

    >>> Fenet(features=8, blocks=2)(torch.zeros(1, 11, 11)).shape
    torch.Size([1, 33, 33])
    """

    global_statistics = True  # attention weights come from means over the image

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, features: int = 64, blocks: int = 12):
        super().__init__(ratio, plane, start)
        check_counts(features=features, blocks=blocks)
        if features % GROUPS:
            raise ValueError(f"features must be a multiple of {GROUPS}; got {features}")
        self.head = normalised(1, features, bias=True)
        self.blocks = nn.ModuleList(FrequencyBlock(features) for _ in range(blocks))
        self.join = nn.Sequential(normalised((blocks + 1) * features, features, 1, bias=True), nn.ReLU())
        self.tail = nn.Sequential(
            normalised(features, ratio**2 * features, bias=True, groups=GROUPS), nn.ReLU(), nn.PixelShuffle(ratio), normalised(features, 1, bias=True)
        )
        self.skip = nn.Upsample(scale_factor=ratio, mode="bicubic")

    def upscale(self, image):
        maps = [self.head(image)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.tail(self.join(torch.cat(maps, 1)) + maps[-1]) + self.skip(image)
