r"""SRFBN, the feedback network (Li et al., CVPR 2019), a super-resolution row of the paper's Table 1.

One block sees the frame's features together with its own previous output, and is run several times with the same weights: a recurrent network on a still
image. Every step gives an image, and training asks every step to be right.

Two variants share their parameters. ``cited`` is the network of the cited article. ``released`` repeats what the paper's toolkit runs: a single step, so
that nothing is ever fed back, and an output shift whose arguments are exchanged, so that 255 is subtracted where 127.5 should be added.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.sr.blocks import Precise, Shift, SuperResolutionNetwork, check_counts, convolution

MIDDLE = 127.5  # half the grey levels' range: what is subtracted before and added after
VARIANTS = ("cited", "released")


def activated(layer: nn.Module) -> nn.Sequential:
    """A layer and a leaky rectifier with one learned slope."""
    return nn.Sequential(layer, nn.PReLU(init=0.2))


def squeezes(features: int, groups: int) -> nn.ModuleList:
    """What brings 1, 2, ... groups of features back to one: nothing for the first, 1 x 1 convolutions for the others."""
    return nn.ModuleList([nn.Identity(), *(activated(nn.Conv2d(k * features, features, 1)) for k in range(2, groups + 1))])


class Feedback(nn.Module):
    """The block that is run again and again: pairs of up- and down-projections, each fed with all earlier maps of its resolution.

    Parameters
    ----------
    features, groups, ratio : int
        Channels of every map, pairs of projections, factor between the two resolutions.
    """

    def __init__(self, features: int, groups: int, ratio: int):
        super().__init__()
        self.enter = activated(nn.Conv2d(2 * features, features, 1))
        self.squeeze_low, self.squeeze_high = squeezes(features, groups), squeezes(features, groups)
        self.up = nn.ModuleList(activated(projection(nn.ConvTranspose2d, features, ratio)) for _ in range(groups))
        self.down = nn.ModuleList(activated(projection(nn.Conv2d, features, ratio)) for _ in range(groups))
        self.leave = activated(nn.Conv2d(groups * features, features, 1))

    def forward(self, features, state):
        low, high = [self.enter(torch.cat([features, state], 1))], []
        for squeeze_low, up, squeeze_high, down in zip(self.squeeze_low, self.up, self.squeeze_high, self.down):
            high.append(up(squeeze_low(torch.cat(low, 1))))
            low.append(down(squeeze_high(torch.cat(high, 1))))
        return self.leave(torch.cat(low[1:], 1))


def projection(kind, features: int, ratio: int) -> nn.Module:
    """A strided convolution (down) or a transposed one (up): windows of c + 4 sub-pixels, c apart, so each overlaps its neighbours by two on every side."""
    return kind(features, features, ratio + 4, stride=ratio, padding=2)


class Srfbn(SuperResolutionNetwork):
    r"""SRFBN: 372,724 parameters at c = 3, whatever the number of steps; 4 of them are the frozen shifts.

    .. math:: h_t = B(f, h_{t-1}), \qquad h_0 = f, \qquad \hat s_t = D(h_t) + \text{bilinear}(z)

    Parameters
    ----------
    ratio, plane, start
        See :class:`SuperResolutionNetwork`.
    features, groups : int
        Channels, and pairs of projections in the feedback block.
    steps : int, optional
        Times that the block is run; 4 by default, and 1 in the released variant.
    variant : {"cited", "released"}
        The cited article's network, or the toolkit's behaviour (see the module's description).

    Raises
    ------
    ValueError
        For an unknown variant, or counts below 1.

    >>> Srfbn(features=4, steps=2)(torch.zeros(1, 11, 11)).shape
    torch.Size([1, 33, 33])
    """

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, features: int = 32, groups: int = 3, steps: int | None = None,
                 variant: str = "cited"):
        super().__init__(ratio, plane, start)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        self.steps = {"cited": 4, "released": 1}[variant] if steps is None else steps
        check_counts(features=features, groups=groups, steps=self.steps)
        self.centre = Shift(-MIDDLE)
        self.lift = activated(convolution(1, 4 * features))
        self.narrow = activated(nn.Conv2d(4 * features, features, 1))
        self.feedback = Feedback(features, groups, ratio)
        self.enlarge = activated(projection(nn.ConvTranspose2d, features, ratio))
        self.image = Precise(convolution(features, 1))  # the released shift makes it several hundred grey levels
        self.skip = nn.Upsample(scale_factor=ratio, mode="bilinear")
        self.restore = Shift(MIDDLE if variant == "cited" else -2 * MIDDLE)

    def states(self, centred: torch.Tensor) -> Iterator[torch.Tensor]:
        """The feedback block's output after each step, (B, 32, n, n)."""
        features = self.narrow(self.lift(centred))
        state = features
        for _ in range(self.steps):
            state = self.feedback(features, state)
            yield state

    def decode(self, state: torch.Tensor, centred: torch.Tensor) -> torch.Tensor:
        """The image (B, 1, cn, cn) that a state stands for."""
        return self.restore(self.image(self.enlarge(state)) + self.skip(centred))

    def upscale(self, image):
        centred = self.centre(image)
        *_, last = self.states(centred)
        return self.decode(last, centred)

    def loss(self, frames, truth, origin=None):
        """Mean squared error, averaged over the images of all steps."""
        centred = self.centre(self.check_frames(frames, window=origin is not None))
        errors = [(self.decode(state, centred)[:, 0].float() - truth).square().mean() for state in self.states(centred)]
        return {"discrepancy": torch.stack(errors).mean()}
