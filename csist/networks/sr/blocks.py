"""Parts that several super-resolution networks share.

All of them map a frame (B, 1, n, n) in grey levels to a sub-pixel image (B, 1, cn, cn) of intensities, without normalising either; the loss is the mean
squared error. Layers that need no explanation are torch's own.
"""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.unfolding import UnmixingNetwork


class SuperResolutionNetwork(UnmixingNetwork):
    """Base of the super-resolution family; subclasses define ``upscale``.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    plane : FocalPlane
        Only its frame shape matters: these networks learn the optics from the data.
    start : bool
        Accepted so that all networks are made alike; there is no linear start here.
    """

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True):
        super().__init__(ratio, plane)

    def upscale(self, image: torch.Tensor) -> torch.Tensor:
        """Frame or window (B, 1, n, n) to sub-pixel image (B, 1, cn, cn)."""
        raise NotImplementedError

    def forward(self, frames: torch.Tensor, origin: torch.Tensor | None = None) -> torch.Tensor:
        """Sub-pixel images (B, 11c, 11c); with ``origin`` (B, 2), the top-left pixels of windows (B, n, n), the windows' images (B, cn, cn)."""
        return self.upscale(self.check_frames(frames, window=origin is not None))[:, 0].float()


def check_counts(**options: int) -> None:
    """Raise a ValueError unless every option is a whole number of at least 1.

    >>> check_counts(features=64, blocks=16)
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")


def single_precision(tensor: torch.Tensor) -> AbstractContextManager:
    """Within this context autocast leaves float32 alone, on the tensor's device; for steps where half precision would round intensities away."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def convolution(inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias, groups=groups)


def upsampler(features: int, ratio: int) -> nn.Sequential:
    """Upscale by pixel shuffle: a 3 x 3 convolution to c^2 times the channels, which then become c x c blocks of sub-pixels."""
    return nn.Sequential(convolution(features, ratio**2 * features), nn.PixelShuffle(ratio))


class Residual(nn.Sequential):
    """Layers around which the input is carried and added."""

    def forward(self, image):
        return image + super().forward(image)


def residual_block(features: int, kernel: int = 3) -> Residual:
    """Convolution, ReLU, convolution, plus the input."""
    return Residual(convolution(features, features, kernel), nn.ReLU(), convolution(features, features, kernel))


class ChannelAttention(nn.Module):
    """Weigh each channel by a number in (0, 1) computed from all channels' means (Zhang et al., ECCV 2018).

    Parameters
    ----------
    features : int
        Channels of the image.
    reduction : int
        How many times fewer numbers lie between the means and the weights.

    >>> ChannelAttention(8, reduction=4)(torch.ones(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(self, features: int, reduction: int):
        super().__init__()
        check_counts(features=features, reduction=reduction)
        if reduction > features:
            raise ValueError(f"reduction must be from 1 to the {features} features; got {reduction}")
        inner = features // reduction
        self.weigh = nn.Sequential(nn.Conv2d(features, inner, 1), nn.ReLU(), nn.Conv2d(inner, features, 1), nn.Sigmoid())

    def describe(self, image: torch.Tensor) -> torch.Tensor:
        """One number for each channel, (B, C, 1, 1); subclasses may know better ones than the mean."""
        return image.mean((2, 3), keepdim=True)

    def forward(self, image):
        return image * self.weigh(self.describe(image))


class Precise(nn.Sequential):
    """Layers that stay in float32 under autocast; for a last layer whose intensities lie on an offset that half precision would round."""

    def forward(self, image):
        with single_precision(image):
            return super().forward(image.float())


class Shift(nn.Conv2d):
    """Add a constant to a one-channel image, in float32; a frozen 1 x 1 convolution, as the originals have it and count it.

    >>> Shift(-127.5)(torch.full((1, 1, 1, 1), 200.0)).item()
    72.5
    """

    def __init__(self, amount: float):
        super().__init__(1, 1, 1)
        self.weight.data.fill_(1.0)
        self.bias.data.fill_(amount)
        self.requires_grad_(False)

    def forward(self, image):
        with single_precision(image):
            return super().forward(image.float())
