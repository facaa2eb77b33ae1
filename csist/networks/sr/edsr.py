"""EDSR (Lim et al., CVPR Workshops 2017) in its small version, as the paper's Table 1 uses it: residual blocks without batch norm, pixel shuffle."""
from __future__ import annotations

from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import Precise, Residual, Shift, SuperResolutionNetwork, check_counts, convolution, residual_block, upsampler

MIDDLE_GREY = 127.5  # taken off before and put back after, as the toolkit does


class Edsr(SuperResolutionNetwork):
    """Sixteen residual blocks of 64 features inside a long skip, then the upsampler; 1,552,197 parameters at c = 3.

    Grey levels are shifted by -127.5 at the entry and intensities by +127.5 at the end. The shifts are frozen and hold four of the parameters. An empty
    sub-pixel is thus -127.5 before the last shift, so the last convolution stays in float32 under autocast.

    Parameters
    ----------
    ratio, plane, start
        As in :class:`~csist.networks.sr.blocks.SuperResolutionNetwork`.
    features, blocks : int
        Channels, and residual blocks.

    >>> sum(p.numel() for p in Edsr().parameters())
    1552197
    """

    global_statistics = True  # of a kind: dark is -127.5 inside, so the zeros beyond a window's border are grey and tell where it was cut

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *, features: int = 64, blocks: int = 16):
        super().__init__(ratio, plane, start)
        check_counts(features=features, blocks=blocks)
        self.layers = nn.Sequential(
            Shift(-MIDDLE_GREY),
            convolution(1, features),
            Residual(*(residual_block(features) for _ in range(blocks)), convolution(features, features)),
            upsampler(features, self.ratio),
            Precise(convolution(features, 1), Shift(MIDDLE_GREY)),
        )

    def upscale(self, image):
        return self.layers(image)
