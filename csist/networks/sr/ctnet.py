"""CTNet, the contextual transformation network (Wang et al., 2021), a super-resolution row of the paper's Table 1.

A light network: 1 x 1 convolutions mix channels, cheap depthwise ones look at neighbours, and a gate computed from a coarse view of the whole map
weighs the places between the blocks.
"""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import Residual, SuperResolutionNetwork, check_counts, convolution

SLICE = 4  # channels that each block hands on to the end, and groups of the convolution that makes them
TAIL = 24  # channels at the fine resolution
SMALLEST = 7  # pixels: below, nothing is left of the context module's coarse map


class Transformation(nn.Module):
    """One layer: half of the output is gated by 2 x 2 means, the other half is a depthwise view of the first; plus a 1 x 1 convolution of the input."""

    def __init__(self, inputs: int, outputs: int, activation: nn.Module):
        super().__init__()
        half = outputs // 2
        self.mix = nn.Conv2d(inputs, half, 1, bias=False)
        self.mix_means = nn.Conv2d(inputs, half, 1, bias=False)
        self.neighbours = convolution(half, half, bias=False, groups=half)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.activation = activation

    def forward(self, image):
        mixed = self.mix(image)
        means = self.mix_means(nn.functional.avg_pool2d(image, 2))
        gate = (mixed + nn.functional.interpolate(means, image.shape[2:])).sigmoid()  # nearest
        first = self.activation(mixed * gate)
        second = self.activation(self.neighbours(first))
        return torch.cat([first, second], 1) + self.activation(self.shortcut(image))


class Context(nn.Module):
    """Weigh the places of a map by a coarse view of it (the enhanced spatial attention of Liu et al., CVPR 2020)."""

    def __init__(self, features: int):
        super().__init__()
        inner = features // 4
        self.narrow = nn.Conv2d(features, inner, 1)
        self.coarse = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride=2),
            nn.MaxPool2d(3, stride=1),
            convolution(inner, inner),
            nn.ReLU(),
            convolution(inner, inner),
            nn.ReLU(),
            convolution(inner, inner),
        )
        self.fine = nn.Conv2d(inner, inner, 1)
        self.widen = nn.Conv2d(inner, features, 1)

    def forward(self, image):
        narrow = self.narrow(image)
        coarse = nn.functional.interpolate(self.coarse(narrow), image.shape[2:], mode="bilinear")
        return image * self.widen(coarse + self.fine(narrow)).sigmoid()


class PixelAttention(nn.Module):
    """Weigh every channel at every place by a number in (0, 1), computed from the channels at that place."""

    def __init__(self, features: int):
        super().__init__()
        self.weigh = nn.Sequential(nn.Conv2d(features, features, 1), nn.Sigmoid())

    def forward(self, image):
        return image * self.weigh(image)


class Ctnet(SuperResolutionNetwork):
    """CTNet: 347,073 parameters at every ratio, all used.

    The paper prints 0.400 M because the toolkit's class holds 53,248 more that its forward pass never touches: 3,328 numbers of 1 x 1 convolutions in each
    block. They are left out here.

    Parameters
    ----------
    ratio, plane, start
        See :class:`SuperResolutionNetwork`.
    features : int
        Channels, a multiple of 4.
    blocks : int
        Transformation blocks of two layers.

    Raises
    ------
    ValueError
        For other numbers of features, and for frames of less than 7 x 7 pixels.

    >>> Ctnet(features=8, blocks=2)(torch.zeros(1, 11, 11)).shape
    torch.Size([1, 33, 33])
    """

    windows = False  # the context module shrinks a map to (n - 5) / 2 places: a window of 5 x 5 pixels would leave none

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, features: int = 64, blocks: int = 16):
        super().__init__(ratio, plane, start)
        check_counts(features=features, blocks=blocks)
        if features % SLICE:
            raise ValueError(f"features must be a multiple of {SLICE}; got {features}")
        self.head = convolution(1, features)
        self.blocks = nn.ModuleList(
            Residual(Transformation(features, features // 2, nn.ReLU()), Transformation(features // 2, features, nn.Identity())) for _ in range(blocks)
        )
        self.contexts = nn.ModuleList([nn.Identity(), *(Context(features) for _ in range(blocks - 1))])
        self.slices = nn.ModuleList(convolution(features, SLICE, bias=False, groups=SLICE) for _ in range(blocks))
        self.join = nn.Conv2d(SLICE * blocks, features, 1)
        self.tail = nn.Sequential(
            nn.Upsample(scale_factor=ratio),
            convolution(features, TAIL),
            PixelAttention(TAIL),
            nn.LeakyReLU(0.2),
            convolution(TAIL, TAIL),
            nn.LeakyReLU(0.2),
            convolution(TAIL, 1),
        )
        self.skip = nn.Upsample(scale_factor=ratio, mode="bilinear")

    def upscale(self, image):
        if image.shape[-1] < SMALLEST:
            raise ValueError(f"CTNet needs at least {SMALLEST} x {SMALLEST} pixels; got {image.shape[-1]} x {image.shape[-1]}. Train it on whole frames")
        first = features = self.head(image)
        slices = []
        for context, block, cut in zip(self.contexts, self.blocks, self.slices):
            features = block(context(features))
            slices.append(cut(features))
        return self.tail(self.join(torch.cat(slices, 1)) + first) + self.skip(image)
