r"""DCTLSA, densely connected transformers with linear self-attention (Zeng et al., 2023), a super-resolution row of the paper's Table 1.

Attention without the matrix of all pairs of places: the softmax goes over the keys alone, so keys and values can be summed up first,

.. math:: \mathrm{out} = \frac{q}{\sqrt d}\,\big(\mathrm{softmax}(k)^\top v\big),

which costs d x d numbers instead of one for each pair.
"""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import Residual, SuperResolutionNetwork, check_counts, convolution

SLOPE = 0.05  # of the leaky rectifiers


def mirrored(image: torch.Tensor, size: int) -> torch.Tensor:
    """An image (B, C, n, n) continued to ``size`` by mirroring at its lower and right borders, as often as it takes.

    >>> mirrored(torch.arange(3.0).expand(1, 1, 3, 3), 6)[0, 0, 0].tolist()
    [0.0, 1.0, 2.0, 1.0, 0.0, 1.0]
    """
    while (missing := size - image.shape[-1]) > 0:
        step = min(missing, max(1, image.shape[-1] - 1))
        image = nn.functional.pad(image, (0, step, 0, step), mode="reflect")
    return image


def cut_windows(image: torch.Tensor, size: int) -> torch.Tensor:
    """(B, C, k size, k size) to its windows (B k^2, C, size, size)."""
    grid = image.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, C, k, size, k, size)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def join_windows(windows: torch.Tensor, across: int) -> torch.Tensor:
    """The image of which :func:`cut_windows` made these windows, ``across`` of them side by side."""
    grid = windows.unflatten(0, (-1, across, across))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class LinearAttention(nn.Module):
    """Self-attention among the places of a window, linear in their number, on features that a local residual has prepared."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.local = Residual(
            nn.BatchNorm2d(features),
            nn.Conv2d(features, features, 1, bias=False),
            convolution(features, features, bias=False, groups=features),
            nn.BatchNorm2d(features),
            nn.Conv2d(features, features, 1, bias=False),
        )
        self.qkv = nn.Conv2d(features, 3 * features, 1)
        self.out = nn.Conv2d(features, features, 1)

    def attend(self, features):
        """Each place's query applied to the window's summary of keys and values, (B, C, n, n) to the same shape."""
        query, key, value = self.qkv(features).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)  # (B, heads, d, places) each
        summary = value @ key.softmax(-1).transpose(-1, -2)  # (B, heads, d, d)
        return (summary @ query * query.shape[2] ** -0.5).reshape(features.shape)

    def forward(self, windows):
        local = self.local(windows)
        return local + self.out(self.attend(local))


class Body(nn.Module):
    """Layer norm over the channels, then two pairs of attention and perceptron; the second pair sees the windows moved by half their size."""

    def __init__(self, features: int, heads: int, window: int):
        super().__init__()
        self.window = window
        self.norm = nn.LayerNorm(features)
        self.pairs = nn.ModuleList(
            nn.Sequential(
                LinearAttention(features, heads),
                Residual(nn.Conv2d(features, 2 * features, 1), nn.GELU(), nn.Conv2d(2 * features, features, 1)),
            )
            for _ in range(2)
        )

    def forward(self, image):
        size, across = image.shape[-1], -(-image.shape[-1] // self.window)
        image = mirrored(self.norm(image.movedim(1, -1)).movedim(-1, 1), across * self.window)
        for pair, shift in zip(self.pairs, (0, self.window // 2)):
            windows = cut_windows(image.roll((-shift, -shift), (2, 3)), self.window)
            image = join_windows(pair(windows), across).roll((shift, shift), (2, 3))
        return image[:, :, :size, :size]


class Dctlsa(SuperResolutionNetwork):
    """DCTLSA: 864,994 parameters at c = 3; the last layer grows with c^2.

    All receive gradients, but 1,320 of them, the keys' biases, have no effect: a softmax over places does not notice what is added to all of them.
    Local convolutions stop at the border of a window, the toolkit's at that of the image; on 11 x 11 pixels, one window, that is the same.

    Parameters
    ----------
    ratio, plane, start
        See :class:`SuperResolutionNetwork`.
    features, heads : int
        Channels, and attention heads among which they are divided.
    modules : int
        Transformer modules of two bodies; each sees the outputs of all before it.
    window : int
        Side of the attention windows [px]; frames are mirrored to a multiple of it.

    Raises
    ------
    ValueError
        If the heads cannot share the features.

    >>> Dctlsa(features=4, heads=2, modules=2).eval()(torch.zeros(1, 11, 11)).shape
    torch.Size([1, 33, 33])
    """

    windows = False  # 5 x 5 pixels do run, but are mirrored to 16 x 16 like a whole frame: nothing would be saved

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, features: int = 55, heads: int = 5, modules: int = 6,
                 window: int = 16):
        super().__init__(ratio, plane, start)
        check_counts(features=features, heads=heads, modules=modules, window=window)
        if features % heads:
            raise ValueError(f"features must be a multiple of heads; got {features} features and {heads} heads")
        self.head = convolution(1, features)
        self.bodies = nn.ModuleList(nn.Sequential(Body(features, heads, window), Body(features, heads, window)) for _ in range(modules))
        self.gather = nn.ModuleList([nn.Identity(), *(fuse(k, features) for k in range(2, modules + 1))])
        self.join = nn.Sequential(fuse(modules, features), convolution(features, features))
        self.tail = nn.Sequential(convolution(features, ratio**2), nn.PixelShuffle(ratio))

    def upscale(self, image):
        maps = [self.head(image)]
        for gather, body in zip(self.gather, self.bodies):
            maps.append(body(gather(torch.cat(maps, 1))))
        return self.tail(self.join(torch.cat(maps[1:], 1)) + maps[0])


def fuse(maps: int, features: int) -> nn.Sequential:
    """Several maps, one after the other in the channels, made one."""
    return nn.Sequential(nn.Conv2d(maps * features, features, 1), nn.LeakyReLU(SLOPE))
