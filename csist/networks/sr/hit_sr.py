r"""HiT-SIR, HiT-SNG and HiT-SRF (Zhang, Zhang & Yu, ECCV 2024), the hierarchical transformers of the paper's Table 1; book part "Results".

A transformer for images lets the pixels of a window look at each other. Usually all windows have one small size, because attention costs the square of the
number of pixels. HiT-SR makes two changes. The windows **expand** from layer to layer, so that a block sees several scales. And **spatial-channel
correlation** takes the place of attention: half of its output mixes positions, but only with the means over a few cells of the window, and half mixes
channels; the cost then grows linearly with the window. The three networks differ in what they were made from:

- HiT-SIR, from SwinIR-light: correlation, then a pointwise perceptron;
- HiT-SNG, from SwinIR-NG: each window also hears from its neighbours (N-grams of windows);
- HiT-SRF, from SRFormer-light: the perceptron also looks at the 5 x 5 pixels about it.

**What is known and what is inferred.** The reference toolkit of the reproduced paper has no file for these rows. The blocks here follow the ECCV paper and its
published settings: 60 features, 4 blocks of 6 layers, 6 heads, windows of 1/2, 1, 2, 4, 6, 8 times a base, direct pixel shuffle. That base is 8 pixels for
photographs, which an 11 x 11 frame cannot hold. With a base of 2 pixels, windows of 1, 2, 4, 8, 12, 16, one input channel and c = 3, the parameters are
769,361, 951,681 and 844,241, the printed 0.769, 0.952 and 0.844 million; with a base of 8 HiT-SNG would have 1,009,881. So the base was 2. The printed
multiply-accumulates (7.357, 13.324 and 7.945 G for 64 frames) agree too, once five operations for every number that a layer norm touches are added, as
fvcore does: to all digits for the first two; for HiT-SRF, 0.4 percent of the printed number remain unexplained.

These networks see all of what they are shown, so a window of a frame gets another answer than its place in the whole frame.
"""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import SuperResolutionNetwork, convolution

WINDOWS = (1, 2, 4, 8, 12, 16)  # sides of the windows of a block's layers [px]
BASE = 2  # larger windows are summarised by BASE x BASE cells


def on_channels(layer: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Apply a layer for (B, C, H, W) to an image with its channels last, (B, H, W, C), as everything in this file is."""
    return layer(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def mirror(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Continue an image (B, H, W, C) by reflection until its sides are multiples of ``multiple``, again and again if the image is small.

    >>> mirror(torch.arange(3.0).view(1, 1, 3, 1), 8)[0, 0, :, 0].tolist()
    [0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0]
    """
    for axis in (1, 2):
        size = image.shape[axis]
        period = max(2 * size - 2, 1)
        index = torch.arange(-(-size // multiple) * multiple, device=image.device) % period
        image = image.index_select(axis, torch.minimum(index, period - index))
    return image


def cut(image: torch.Tensor, window: int) -> torch.Tensor:
    """Image (B, H, W, C) to its windows (B, rows, columns, window, window, C)."""
    batch, height, width, features = image.shape
    return image.reshape(batch, height // window, window, width // window, window, features).transpose(2, 3)


def join(windows: torch.Tensor) -> torch.Tensor:
    """Windows (B, rows, columns, window, window, C) to their image (B, H, W, C)."""
    batch, rows, columns, window, _, features = windows.shape
    return windows.transpose(2, 3).reshape(batch, rows * window, columns * window, features)


class DualFeatures(nn.Module):
    """Two views of the features, multiplied: each pixel by itself, and each pixel with its neighbours through a narrow waist."""

    def __init__(self, features: int):
        super().__init__()
        waist = features // 5
        self.near = nn.Sequential(
            convolution(features, waist, 1), nn.LeakyReLU(0.2), convolution(waist, waist), nn.LeakyReLU(0.2), convolution(waist, features, 1)
        )
        self.point = convolution(features, features, 1)

    def forward(self, image):
        return self.near(image) * self.point(image)


class PositionBias(nn.Module):
    """What the offset from a pixel of a window to a cell of it adds to their correlation, (heads, window^2, cells^2).

    A small perceptron maps offsets (rows, columns) [px] to one number for each head; a cell has the mean over its pixels. A window of one pixel knows the
    offset zero only, and as linear layers start without bias, its perceptron gives zero and learns nothing but its last bias.
    """

    def __init__(self, width: int, heads: int, window: int, cells: int):
        super().__init__()
        self.window, self.heads = window, heads
        self.layers = nn.Sequential(
            nn.Linear(2, width),
            nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width),
            nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width),
            nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, heads),
        )  # fmt: skip
        offset = torch.arange(1 - window, window).float()
        self.register_buffer("offsets", torch.cartesian_prod(offset, offset), persistent=False)  # ((2 window - 1)^2, 2)
        self.cell = window // cells
        index = torch.arange(window)[:, None] - self.cell * torch.arange(cells) + window - self.cell
        self.register_buffer("index", index, persistent=False)  # (window, cells): which row of means belongs to a row of pixels and a row of cells

    def forward(self):
        side, index = 2 * self.window - 1, self.index
        table = self.layers(self.offsets).T.reshape(self.heads, side, side)
        means = nn.functional.avg_pool2d(table, self.cell, stride=1)  # over the offsets to all pixels of a cell
        return means[:, index[:, None, :, None], index[None, :, None, :]].flatten(3, 4).flatten(1, 2)


class SpatialChannelCorrelation(nn.Module):
    r"""Mix the pixels and the channels of each window.

    With queries q and values v (L pixels, half of the features each) from :class:`DualFeatures`, values v' of the window's cells, learned weighted sums of
    their pixels, and d features to a head,

    .. math:: \text{spatial} = \big(q v'^\top / d + \text{bias}\big)\, v' \quad\text{(each head)}, \qquad \text{channel} = v\,\big(q^\top v / L\big)^\top .

    Both together pass a linear layer. There is no softmax, hence no square of L.

    Parameters
    ----------
    features : int
        Channels; a multiple of twice the number of heads.
    window, base : int
        Sides of the windows and of their grid of cells [px]; a window smaller than the base has a cell for each pixel.
    heads : int
        Heads of the spatial half.
    """

    def __init__(self, features: int, window: int, base: int, heads: int):
        super().__init__()
        if features % (2 * heads):
            raise ValueError(f"features must be a multiple of 2 x heads = {2 * heads}; got {features}")
        self.window, self.cells, self.heads = window, min(window, base), heads
        if window % self.cells:
            raise ValueError(f"a window above the base must be a multiple of it; got window {window}, base {base}")
        self.views = DualFeatures(features)
        self.pool = nn.Linear((window // self.cells) ** 2, 1)
        self.bias = PositionBias(features // 16, heads, window, self.cells)
        self.project = nn.Linear(features, features)

    def split(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, H, W, C) of any size to windows (B, rows, columns, window, window, C) of its two views."""
        return cut(on_channels(self.views, mirror(image, self.window)), self.window)

    def summarise(self, values: torch.Tensor) -> torch.Tensor:
        """Values (n, window^2, F) to those of the cells, (n, cells^2, F)."""
        cells, cell = self.cells, self.window // self.cells
        parts = values.view(-1, cells, cell, cells, cell, values.shape[-1]).permute(0, 1, 3, 5, 2, 4)
        return self.pool(parts.flatten(4)).reshape(-1, cells**2, values.shape[-1])

    def spatial(self, query: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Each head's pixels gather from the cells, (n, window^2, F)."""
        cells = self.by_head(self.summarise(values))
        correlation = self.by_head(query) @ cells.mT / cells.shape[-1] + self.bias()
        return (correlation @ cells).transpose(1, 2).flatten(2)

    def by_head(self, values: torch.Tensor) -> torch.Tensor:
        """(n, L, F) to (n, heads, L, F / heads)."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @staticmethod
    def channel(query: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Channels gather from channels, (n, window^2, F)."""
        return values @ (query.mT @ values / query.shape[1]).mT

    def forward(self, image):
        height, width = image.shape[1:3]
        windows = self.split(image)
        query, values = windows.flatten(3, 4).flatten(0, 2).chunk(2, dim=-1)
        mixed = torch.cat([self.spatial(query, values), self.channel(query, values)], dim=-1)
        return self.project(join(mixed.view(windows.shape)))[:, :height, :width]


class NgramContext(nn.Module):
    """What a window hears from its neighbours (Choi, Lee & Yang, CVPR 2023): one vector for each window, (B, rows, columns, C).

    One linear layer, the same for every pair of channels, makes each window one "word". (Published as a convolution that steps by whole windows; written as
    the product of matrices that it is, it learns much faster on a processor, and it starts small, as the other linear layers do.) Words attend to each other
    in groups of 2 x 2 windows, once with the neighbours below and to the right, once with those above and to the left; the groups' means are the context.
    """

    def __init__(self, features: int, window: int, heads: int):
        super().__init__()
        half = features // 2
        self.heads, self.window = heads, window
        self.word = nn.Linear(2 * window**2, 1)
        self.inward = nn.Linear(half, 3 * half)
        self.bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(9, heads), std=0.02))  # for each offset between two of 2 x 2 windows
        self.outward = nn.Linear(half, half)
        self.merge = nn.Linear(features, features)
        row, column = torch.arange(4) // 2, torch.arange(4) % 2
        offset = 3 * (row[:, None] - row + 1) + column[:, None] - column + 1
        self.register_buffer("offset", offset, persistent=False)  # (4, 4)

    def forward(self, image):
        pairs = cut(image, self.window).flatten(3, 4).unflatten(-1, (-1, 2)).transpose(3, 4)  # (B, rows, columns, C / 2, window^2, 2)
        words = self.word(pairs.flatten(4)).squeeze(-1).permute(0, 3, 1, 2)  # (B, C / 2, rows, columns)
        context = [self.attend(nn.functional.pad(words, side, mode="reflect")) for side in ((0, 1, 0, 1), (1, 0, 1, 0))]
        return self.merge(torch.cat(context, dim=-1))

    def attend(self, words: torch.Tensor) -> torch.Tensor:
        """Words (B, F, rows + 1, columns + 1) to the mean answer of each group of 2 x 2, (B, rows, columns, F)."""
        rows, columns = words.shape[2] - 1, words.shape[3] - 1
        groups = words.unfold(2, 2, 1).unfold(3, 2, 1).flatten(4).permute(0, 2, 3, 4, 1).flatten(0, 2)  # (B rows columns, 4, F)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inward(groups).chunk(3, dim=-1))
        weights = (query @ key.mT / key.shape[-1] ** 0.5 + self.bias[self.offset].permute(2, 0, 1)).softmax(-1)
        return self.outward((weights @ value).transpose(1, 2).flatten(2)).mean(1).view(-1, rows, columns, words.shape[1])


class NgramCorrelation(SpatialChannelCorrelation):
    """Spatial-channel correlation of windows that have heard from their neighbours; the image is continued to at least two windows a side."""

    def __init__(self, features: int, window: int, base: int, heads: int):
        super().__init__(features, window, base, heads)
        self.context = NgramContext(features, window, heads)

    def split(self, image):
        views = on_channels(self.views, mirror(image, 2 * self.window))
        return cut(views, self.window) + self.context(views)[:, :, :, None, None]


class Surroundings(nn.Module):
    """Add what a 5 x 5 convolution of each channel by itself sees."""

    def __init__(self, features: int):
        super().__init__()
        self.look = nn.Sequential(convolution(features, features, 5, groups=features), nn.GELU())

    def forward(self, image):
        return image + on_channels(self.look, image)


class HierarchicalLayer(nn.Module):
    """Correlation in windows, then a perceptron at every pixel; the input is carried around each, and each answer is normalised."""

    def __init__(self, features: int, correlation: nn.Module, perceptron: nn.Module):
        super().__init__()
        self.correlation, self.perceptron = correlation, perceptron
        self.norm_correlation, self.norm_perceptron = nn.LayerNorm(features), nn.LayerNorm(features)

    def forward(self, image):
        image = image + self.norm_correlation(self.correlation(image))
        return image + self.norm_perceptron(self.perceptron(image))


class HierarchicalBlock(nn.Module):
    """Layers with expanding windows and a convolution; the input is carried around all of them."""

    def __init__(self, features: int, layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.closing = convolution(features, features)

    def forward(self, image):
        return image + on_channels(self.closing, self.layers(image))


class HitSir(SuperResolutionNetwork):
    """HiT-SIR: 769,361 parameters at c = 3; ``csist.networks.sr.hit_sr`` says how its settings were found.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    plane : FocalPlane
        Only its frame shape matters.
    start : bool
        Accepted so that all networks are made alike.
    features, blocks, heads : int
        Channels (a multiple of twice the heads), blocks of layers, heads of the spatial correlation.
    windows_px : tuple of int
        Side of the windows of each layer of a block [px].
    base : int
        Cells along the side of a window; a window above it must be a multiple.

    >>> HitSir(blocks=1, windows_px=(1, 2))(torch.zeros(4, 11, 11)).shape
    torch.Size([4, 33, 33])
    """

    correlation = SpatialChannelCorrelation
    global_statistics = True  # its largest attention windows hold the whole frame

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *, features: int = 60, blocks: int = 4, heads: int = 6,
                 windows_px: tuple[int, ...] = WINDOWS, base: int = BASE):
        super().__init__(ratio, plane, start)

        def layer(window):
            return HierarchicalLayer(features, self.correlation(features, window, base, heads), self.perceptron(features))

        self.shallow = convolution(1, features)
        self.norm_in, self.norm_out = nn.LayerNorm(features), nn.LayerNorm(features)
        self.blocks = nn.Sequential(*(HierarchicalBlock(features, map(layer, windows_px)) for _ in range(blocks)))
        self.deep = convolution(features, features)
        self.reconstruct = nn.Sequential(convolution(features, self.ratio**2), nn.PixelShuffle(self.ratio))
        self.apply(start_small)

    @staticmethod
    def perceptron(features: int) -> nn.Module:
        """What each layer does to every pixel."""
        return nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features))

    def upscale(self, image):
        shallow = self.shallow(image)
        tokens = self.norm_in(shallow.permute(0, 2, 3, 1))
        deep = on_channels(self.deep, self.norm_out(self.blocks(tokens)))
        return self.reconstruct(shallow + deep.permute(0, 3, 1, 2))


class HitSng(HitSir):
    """HiT-SNG, whose windows hear from their neighbours: 951,681 parameters at c = 3; arguments as for :class:`HitSir`.

    >>> HitSng(blocks=1, windows_px=(1, 2))(torch.zeros(4, 11, 11)).shape
    torch.Size([4, 33, 33])
    """

    correlation = NgramCorrelation


class HitSrf(HitSir):
    """HiT-SRF, whose perceptrons see 5 x 5 pixels: 844,241 parameters at c = 3; arguments as for :class:`HitSir`.

    >>> HitSrf(blocks=1, windows_px=(1, 2))(torch.zeros(4, 11, 11)).shape
    torch.Size([4, 33, 33])
    """

    @staticmethod
    def perceptron(features):
        return nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), Surroundings(2 * features), nn.Linear(2 * features, features))


def start_small(layer: nn.Module) -> None:
    """Linear layers start as in Swin transformers: small weights, no bias."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
