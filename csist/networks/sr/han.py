"""HAN (Niu et al., ECCV 2020), as the paper's Table 1 uses it: RCAN, whose group outputs are weighed against each other at the end."""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import SuperResolutionNetwork, check_counts, convolution, single_precision, upsampler
from csist.networks.sr.rcan import attention_group


class LayerAttention(nn.Module):
    r"""Add to each of L maps a mixture of all of them.

    With the maps as rows of a matrix :math:`X`,

    .. math:: X + \gamma\,\operatorname{softmax}(-X X^\top)\,X,

    the softmax along rows and :math:`\gamma` a learned number that starts at zero. The minus sign is the published code's (it subtracts each row from its
    maximum), so a layer listens most to those least like it; the article's equation has none. Grey levels make the products large and the softmax nearly
    hard, so this is computed in float32.

    Parameters
    ----------
    maps : tensor (B, L, C, H, W)
        Outputs of L layers, of any size.

    Returns
    -------
    tensor (B, L C, H, W)

    >>> LayerAttention()(torch.ones(2, 3, 4, 5, 5)).shape
    torch.Size([2, 12, 5, 5])
    """

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, maps):
        with single_precision(maps):
            rows = maps.float().flatten(2)
            weights = torch.softmax(-rows @ rows.transpose(1, 2), dim=-1)  # (B, L, L)
            mixed = (weights @ rows).reshape(maps.shape)
        return (maps + self.gain * mixed).flatten(1, 2)


class ChannelSpatialAttention(nn.Module):
    r"""Weigh each number of a map by its neighbours in channel, row and column: :math:`x + \gamma\,x\,\sigma(k * x)`, k a 3 x 3 x 3 kernel.

    :math:`\gamma` is a learned number that starts at zero.

    >>> ChannelSpatialAttention()(torch.ones(2, 4, 5, 5)).shape
    torch.Size([2, 4, 5, 5])
    """

    def __init__(self):
        super().__init__()
        fresh = nn.Conv3d(1, 1, 3)
        # not kept as a layer: its weight has five dimensions, and a network with such weights cannot be made channels-last
        self.kernel, self.bias = nn.Parameter(fresh.weight.detach()[0, 0]), nn.Parameter(fresh.bias.detach())
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        gate = nn.functional.conv3d(image[:, None], self.kernel[None, None], self.bias, padding=1)[:, 0].sigmoid()
        return image + self.gain * image * gate


class Han(SuperResolutionNetwork):
    """Ten groups of twenty attention blocks of 128 features, fused by two attentions; 64,341,727 parameters at c = 3.

    The groups' outputs and that of the convolution after them go through :class:`LayerAttention`, the last alone through
    :class:`ChannelSpatialAttention`. The two results are fused and added to the entry's map before the upsampler.

    Parameters
    ----------
    ratio, plane, start
        As in :class:`~csist.networks.sr.blocks.SuperResolutionNetwork`.
    features, groups, blocks, reduction : int
        As in :class:`~csist.networks.sr.rcan.Rcan`.

    >>> with torch.device("meta"):  # no memory, no random numbers
    ...     sum(p.numel() for p in Han().parameters())
    64341727
    """

    global_statistics = True  # attention weights come from means over the image

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *,
                 features: int = 128, groups: int = 10, blocks: int = 20, reduction: int = 16):
        super().__init__(ratio, plane, start)
        check_counts(features=features, groups=groups, blocks=blocks)
        self.head = convolution(1, features)
        self.body = nn.ModuleList(attention_group(features, blocks, reduction) for _ in range(groups))
        self.body.append(convolution(features, features))
        self.layer_attention = LayerAttention()
        self.layer_fusion = convolution((groups + 1) * features, features)
        self.channel_attention = ChannelSpatialAttention()
        self.fusion = convolution(2 * features, features)
        self.tail = nn.Sequential(upsampler(features, self.ratio), convolution(features, 1))

    def upscale(self, image):
        head = self.head(image)
        maps = [head]
        for layer in self.body:
            maps.append(layer(maps[-1]))
        layers = self.layer_fusion(self.layer_attention(torch.stack(maps[:0:-1], dim=1)))  # newest first
        fused = self.fusion(torch.cat([self.channel_attention(maps[-1]), layers], dim=1))
        return self.tail(head + fused)
