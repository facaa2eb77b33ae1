r"""SAN (Dai et al., CVPR 2019), as the paper's Table 1 uses it: channels weighed by their covariance, pixels compared within quarters of the image.

Two variants compute the same but for one pooling. The default has the layers that act. ``released=True`` repeats the published code for the errata chapter:
it makes 38,034 parameters that no output depends on, and pools keys and values of the non-local block although its options switch that off.
"""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import (
    ChannelAttention,
    Residual,
    SuperResolutionNetwork,
    check_counts,
    convolution,
    residual_block,
    single_precision,
    upsampler,
)

ROOT_STEPS = 5  # Newton-Schulz steps to the matrix square root
UNUSED_REDUCTION = 8  # of the released code's attention that is never called


def covariance(image: torch.Tensor) -> torch.Tensor:
    """Covariance of the channels over the pixels, (B, C, H, W) -> (B, C, C), divided by the number of pixels.

    >>> covariance(torch.tensor([[[[1.0, 3.0]], [[5.0, 1.0]]]])).tolist()
    [[[1.0, -2.0], [-2.0, 4.0]]]
    """
    centred = image.flatten(2) - image.mean((2, 3))[:, :, None]
    return centred @ centred.transpose(1, 2) / centred.shape[2]


def square_root(matrix: torch.Tensor, steps: int = ROOT_STEPS) -> torch.Tensor:
    r"""Square root of symmetric positive semi-definite matrices by coupled Newton-Schulz iterations (Li et al., CVPR 2018), with products only.

    .. math:: T_k = (3 - Z_k Y_k) / 2, \qquad Y_{k+1} = Y_k T_k, \qquad Z_{k+1} = T_k Z_k, \qquad Y_0 = A / \operatorname{tr} A, \quad Z_0 = 1

    Y tends to the root of :math:`A / \operatorname{tr} A`. Few steps give the large eigenvalues well and the small ones too small. The root of a zero matrix
    is zero, with finite gradients.

    Parameters
    ----------
    matrix : tensor (B, n, n)
        :math:`A`.
    steps : int
        At least 2.

    >>> square_root(torch.diag(torch.tensor([4.0, 9.0]))[None], steps=8).round(decimals=4).tolist()
    [[[2.0, 0.0], [0.0, 3.0]]]
    """
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=torch.finfo(matrix.dtype).eps)
    three = 3 * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    scaled = matrix / trace
    factor = (three - scaled) / 2
    root, inverse = scaled @ factor, factor
    for _ in range(steps - 2):
        factor = (three - inverse @ root) / 2
        root, inverse = root @ factor, factor @ inverse
    return root @ (three - inverse @ root) / 2 * trace.sqrt()  # the last step needs no further inverse


class SecondOrderAttention(ChannelAttention):
    """Channel attention that reads the mean row of the covariance's square root instead of the channels' means.

    >>> SecondOrderAttention(8, reduction=4)(torch.rand(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def describe(self, image):
        with single_precision(image):
            return square_root(covariance(image.float())).mean(1)[:, :, None, None]


def quarters(image: torch.Tensor) -> list[torch.Tensor]:
    """Top left, top right, bottom left, bottom right quarter; an odd size is split into its floor and its ceiling, 11 into 5 and 6.

    >>> [tuple(quarter.shape[2:]) for quarter in quarters(torch.zeros(1, 1, 11, 11))]
    [(5, 5), (5, 6), (6, 5), (6, 6)]
    """
    bands = image.tensor_split((image.shape[2] // 2,), dim=2)
    return [quarter for band in bands for quarter in band.tensor_split((image.shape[3] // 2,), dim=3)]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    r"""Each pixel's mixture of the values, :math:`v\,\operatorname{softmax}(q^\top k)^\top`, in float32; key and value may have fewer pixels than the query.

    >>> attend(torch.zeros(1, 2, 3, 3), torch.rand(1, 2, 2, 2), torch.ones(1, 2, 2, 2)).unique().tolist()
    [1.0]
    """
    with single_precision(query):
        query, key, value = query.float(), key.float(), value.float()
        weights = torch.softmax(query.flatten(2).transpose(1, 2) @ key.flatten(2), dim=-1)  # (B, query pixels, key pixels)
        return (value.flatten(2) @ weights.transpose(1, 2)).reshape(query.shape)


class RegionNonLocal(nn.Module):
    """Add to each pixel what the similar pixels of its quarter hold (embedded Gaussian); the output layer starts at zero.

    Parameters
    ----------
    features, inner : int
        Channels of the image, and those in which pixels are compared.
    pool : bool
        Halve the keys' and values' resolution by 2 x 2 maxima; then the image needs at least 4 rows and columns.

    >>> image = torch.rand(1, 8, 5, 5)
    >>> torch.equal(RegionNonLocal(8, inner=2)(image), image)
    True
    """

    def __init__(self, features: int, inner: int, pool: bool = False):
        super().__init__()
        self.query, self.key, self.value = (convolution(features, inner, 1) for _ in range(3))
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.output = convolution(inner, features, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, image):
        parts = zip(*(quarters(embed(image)) for embed in (self.query, self.key, self.value)))
        mixed = [attend(query, self.pool(key), self.pool(value)) for query, key, value in parts]
        halves = [torch.cat(mixed[:2], dim=3), torch.cat(mixed[2:], dim=3)]
        return image + self.output(torch.cat(halves, dim=2))


def second_order_group(features: int, blocks: int, reduction: int) -> Residual:
    """Residual blocks, second-order attention, a convolution, plus the input."""
    return Residual(*(residual_block(features) for _ in range(blocks)), SecondOrderAttention(features, reduction), convolution(features, features))


class San(SuperResolutionNetwork):
    """Ten second-order groups of five blocks of 64 features, between two uses of one non-local block; 4,403,586 parameters at c = 3.

    After every group the first non-local output is added once more, times one learned number that starts at zero. The paper's Table 1 prints 4.442 million
    parameters, because the published code has 38,034 more (4,441,620 in all): a closing convolution (36,928), an attention (1,096) and one number for each
    group (10), none of which its forward pass reads. ``released=True`` has them too, so that the count can be checked; they get no gradient.

    Parameters
    ----------
    ratio, plane, start
        As in :class:`~csist.networks.sr.blocks.SuperResolutionNetwork`.
    features, groups, blocks, reduction : int
        Channels, groups, residual blocks in each, and how many times fewer numbers lie inside the channel attention.
    inner : int
        Channels of the non-local block.
    released : bool
        Repeat the published code (see the module's description); frames need at least 4 rows then.

    >>> [sum(p.numel() for p in San(released=released).parameters()) for released in (False, True)]
    [4403586, 4441620]
    """

    global_statistics = True  # attention weights come from means over the image

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *,
                 features: int = 64, groups: int = 10, blocks: int = 5, reduction: int = 16, inner: int = 8, released: bool = False):
        super().__init__(ratio, plane, start)
        check_counts(features=features, groups=groups, blocks=blocks, inner=inner)
        self.head = convolution(1, features)
        self.non_local = RegionNonLocal(features, inner, pool=released)
        self.groups = nn.ModuleList(second_order_group(features, blocks, reduction) for _ in range(groups))
        self.gain = nn.Parameter(torch.zeros(1))
        self.tail = nn.Sequential(upsampler(features, self.ratio), convolution(features, 1))
        if released:
            self.unused = nn.ModuleList([convolution(features, features), SecondOrderAttention(features, UNUSED_REDUCTION)])
            self.unused_gains = nn.Parameter(torch.zeros(groups))

    def upscale(self, image):
        head = self.head(image)
        source = self.non_local(head)
        features = source
        for group in self.groups:
            features = group(features) + self.gain * source
        return self.tail(head + self.non_local(features))
