"""SRCNN (Dong et al., ECCV 2014), as the paper's Table 1 uses it: interpolate first, then sharpen with three convolutions."""
from __future__ import annotations

from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import SuperResolutionNetwork, check_counts, convolution


class Srcnn(SuperResolutionNetwork):
    """Bicubic interpolation by c, then three 3 x 3 convolutions on the sub-pixel grid; 19,393 parameters at every ratio.

    The network of 2014 has kernels of 9, 1 and 5; the 3 x 3 ones are the paper's. Interpolated values keep their place: for odd c the middle sub-pixel
    of a pixel takes the pixel's own value.

    Parameters
    ----------
    ratio, plane, start
        As in :class:`~csist.networks.sr.blocks.SuperResolutionNetwork`.
    features, mapped : int
        Channels after the first and after the second convolution.

    >>> sum(p.numel() for p in Srcnn().parameters())
    19393
    """

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *, features: int = 64, mapped: int = 32):
        super().__init__(ratio, plane, start)
        check_counts(features=features, mapped=mapped)
        self.layers = nn.Sequential(
            nn.Upsample(scale_factor=self.ratio, mode="bicubic", align_corners=False),
            convolution(1, features),
            nn.ReLU(),
            convolution(features, mapped),
            nn.ReLU(),
            convolution(mapped, 1),
        )

    def upscale(self, image):
        return self.layers(image)
