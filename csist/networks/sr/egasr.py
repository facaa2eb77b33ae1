"""EGASR, edge-guided attention (Qiu et al., 2023), a super-resolution row of the paper's Table 1.

Residual blocks with an edge module each: beside plain convolutions, every feature map is looked at through the templates that have always found edges,
two Sobel operators and a Laplacian, whose strengths are learned; an attention over the two branches decides between them.
"""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import Residual, SuperResolutionNetwork, check_counts, convolution, upsampler

SOBEL = [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]
LAPLACE = [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]
SMALL = 1e-3  # spread of the edge filters' first strengths and offsets: the module starts out plain
BRANCH_GAIN = 0.1  # shrinks the first weights of the plain branch


def edge_templates(features: int) -> torch.Tensor:
    """Sobel along rows, Sobel along columns and Laplacian, each for ``features`` channels, (3 features, 1, 3, 3).

    >>> edge_templates(2).shape, float(edge_templates(2).sum())
    (torch.Size([6, 1, 3, 3]), 0.0)
    """
    sobel = torch.tensor(SOBEL)
    return torch.stack([sobel, sobel.T, torch.tensor(LAPLACE)]).repeat_interleave(features, 0)[:, None]


class EdgeFilters(nn.Module):
    """Three mixtures of the channels, each through its edge template with a learned strength and offset, (B, C, n, n) -> (B, 3C, n, n).

    The toolkit's mixtures have a bias, with which it also fills their border. But each template sums to zero, so it does not see a constant: the bias has
    no effect at all, and zeros around a mixture without bias give the same numbers.
    """

    def __init__(self, features: int):
        super().__init__()
        self.mix = nn.Conv2d(features, 3 * features, 1, bias=False)
        self.strength = nn.Parameter(SMALL * torch.randn(3 * features, 1, 1, 1))
        self.offset = nn.Parameter(SMALL * torch.randn(3 * features))
        self.register_buffer("templates", edge_templates(features), persistent=False)

    def forward(self, image):
        return nn.functional.conv2d(self.mix(image), self.strength * self.templates, self.offset, padding=1, groups=len(self.templates))


class SpatialAttention(nn.Module):
    """Weigh each place by a number in (0, 1) computed from the channels' mean and maximum around it (Woo et al., ECCV 2018)."""

    def __init__(self):
        super().__init__()
        self.weigh = nn.Sequential(convolution(2, 1, 7, bias=False), nn.Sigmoid())

    def forward(self, image):
        return image * self.weigh(torch.cat([image.mean(1, keepdim=True), image.amax(1, keepdim=True)], 1))


class BranchAttention(nn.Module):
    """Weighted sum of two branches, the weights of each channel computed from all channels' means (Li et al., CVPR 2019)."""

    def __init__(self, features: int):
        super().__init__()
        self.summarise = nn.Linear(features, features)
        self.prefer = nn.ModuleList(nn.Linear(features, features) for _ in range(2))

    def forward(self, first, second):
        summary = self.summarise((first + second).mean((2, 3)))
        weights = torch.stack([prefer(summary) for prefer in self.prefer]).softmax(0)[..., None, None]  # (2, B, C, 1, 1)
        return weights[0] * first + weights[1] * second


class EdgeModule(nn.Module):
    """A plain residual branch and an edge branch, fused."""

    def __init__(self, features: int):
        super().__init__()
        self.plain = Residual(convolution(features, features), nn.PReLU(features), convolution(features, features))
        self.edges = nn.Sequential(EdgeFilters(features), nn.Conv2d(3 * features, features, 1), SpatialAttention())
        self.fuse = BranchAttention(features)
        for layer in (self.plain[0], self.plain[2]):
            nn.init.kaiming_normal_(layer.weight).data.mul_(BRANCH_GAIN)
            nn.init.zeros_(layer.bias)

    def forward(self, image):
        return self.fuse(self.plain(image), self.edges(image))


def edge_block(features: int) -> Residual:
    """Convolution, rectifier, convolution, edge module, plus the input."""
    return Residual(convolution(features, features), nn.PReLU(), convolution(features, features), EdgeModule(features))


class Egasr(SuperResolutionNetwork):
    """EGASR: 2,406,706 parameters at c = 3, all used.

    The paper prints 2.897 M: the toolkit's class has 2,896,690 numbers. Of these 443,904 belong to a convolution in each edge module that its forward pass
    never calls, 41,472 are the fixed templates, and 4,608 are biases without effect (see :class:`EdgeFilters`). They are left out here.

    Parameters
    ----------
    ratio, plane, start
        See :class:`SuperResolutionNetwork`.
    features : int
        Channels.
    groups, blocks : int
        Groups, and edge blocks in each.

    >>> Egasr(features=4, groups=1, blocks=1)(torch.zeros(1, 11, 11)).shape
    torch.Size([1, 33, 33])
    """

    global_statistics = True  # attention weights come from means over the image

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, features: int = 32, groups: int = 8, blocks: int = 6):
        super().__init__(ratio, plane, start)
        check_counts(features=features, groups=groups, blocks=blocks)
        self.head = convolution(1, features)
        self.shared = convolution(features, features)  # used before the groups and after them, as in the toolkit
        self.groups = nn.ModuleList(Residual(*(edge_block(features) for _ in range(blocks)), convolution(features, features)) for _ in range(groups))
        self.share = nn.Parameter(torch.zeros(1))  # of the first map that is added after each group
        self.tail = nn.Sequential(upsampler(features, ratio), convolution(features, 1))
        self.skip = nn.Upsample(scale_factor=ratio, mode="bilinear")

    def upscale(self, image):
        first = features = self.shared(self.head(image))
        for group in self.groups:
            features = group(features) + self.share * first
        return self.tail(self.shared(features)) + self.skip(image)
