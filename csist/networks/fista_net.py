"""FISTA-Net (Xiang, Dong & Yang, IEEE TMI 2021), as the paper's Table 1 uses it; book chapter "From algorithm to network"."""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.unfolding import UnfoldedNetwork, soft_threshold

FEATURES = 32


def initial_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size, Xavier-normal without bias at first."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FistaNetBlock(nn.Module):
    r"""The proximal step that all stages share: :math:`s = \max\big(0,\; r + G(\tilde F(\mathrm{soft}(F(D r), \theta)))\big)`."""

    def __init__(self, features: int = FEATURES):
        super().__init__()
        self.conv_D = initial_convolution(1, features)
        self.conv1_forward = initial_convolution(features, features)
        self.conv2_forward = initial_convolution(features, features)
        self.conv1_backward = initial_convolution(features, features)
        self.conv2_backward = initial_convolution(features, features)
        self.conv_G = initial_convolution(features, 1)

    def inverse(self, features):
        """The learned left inverse of F."""
        return self.conv2_backward(torch.relu(self.conv1_backward(features)))

    def forward(self, step, threshold, symmetry):
        """The estimate, the thresholded features, and the symmetry residual (or None)."""
        lifted = self.conv_D(step)
        features = self.conv2_forward(torch.relu(self.conv1_forward(lifted)))
        sparse = soft_threshold(features, threshold)
        estimate = torch.relu(step + self.conv_G(self.inverse(sparse)))
        return estimate, sparse, self.inverse(features) - lifted if symmetry else None


class FistaNet(UnfoldedNetwork):
    r"""FISTA-Net: seven stages of one shared block, each followed by a momentum step; 37,607 parameters at every ratio.

    .. math::
        r_k &= y_k - \mu_k\, G^\top (G y_k - z), \qquad s_{k+1} = \mathrm{block}(r_k, \theta_k) \\
        y_{k+1} &= s_{k+1} + \rho_k\,(s_{k+1} - s_k)

    with :math:`y_0 = s_0 = Q z`. Steps, thresholds and momenta are six numbers: with :math:`\sigma(x) = \ln(1 + e^x)`, which keeps them positive,

    .. math::
        \mu_k = \sigma(w_\mu k + b_\mu), \qquad \theta_k = \sigma(w_\theta k + b_\theta), \qquad
        \rho_k = \frac{\sigma(w_\rho k + b_\rho) - \sigma(b_\rho)}{\sigma(w_\rho k + b_\rho)}, \qquad k = 0, 1, \ldots

    so that, before training, steps and thresholds fall with k and the momentum rises from zero. The printed count of 74,599 includes 36,992 parameters of four
    convolutions that the reference toolkit creates and never calls (``dead_parameters``); they are left out here. The toolkit's block also runs at c = 3 only.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    plane : FocalPlane
        The imaging model.
    start : bool
        Compute the linear start from the training scenes; False leaves zeros for a checkpoint to fill.
    stages : int
        Number of unfolded iterations.
    features : int
        Channels of the block.

    >>> FistaNet(start=False, stages=2)(torch.zeros(4, 11, 11)).shape
    torch.Size([4, 33, 33])
    """

    dead_parameters = 36_992
    absolute_weight, sparsity_weight = 0.1, 0.001  # of the loss's mean absolute error and mean absolute features

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *, stages: int = 7, features: int = FEATURES):
        block = FistaNetBlock(features)
        super().__init__(lambda: block, stages, ratio, plane, start)
        del self.fcs  # a list of modules would name, store and count the shared block once per stage
        self.block, self.fcs = block, (block,) * stages
        for name, value in (("w_mu", -0.2), ("b_mu", 0.1), ("w_theta", -0.5), ("b_theta", -2.0), ("w_rho", 0.5), ("b_rho", 0.0)):
            setattr(self, name, nn.Parameter(torch.tensor([value])))

    def step_length(self, stage: int) -> torch.Tensor:
        """mu of a stage (0, 1, ...), (1,)."""
        return nn.functional.softplus(self.w_mu * stage + self.b_mu)

    def threshold(self, stage: int) -> torch.Tensor:
        """theta of a stage, (1,)."""
        return nn.functional.softplus(self.w_theta * stage + self.b_theta)

    def momentum(self, stage: int) -> torch.Tensor:
        """rho of a stage, (1,); zero after the first."""
        now, first = nn.functional.softplus(self.w_rho * stage + self.b_rho), nn.functional.softplus(self.b_rho)
        return (now - first) / now

    def iterate(self, frames: torch.Tensor, origin: torch.Tensor | None = None, symmetry: bool = False):
        """Yield the linear start, then each stage's (estimate, thresholded features, symmetry residual), estimates (B, 1, cn, cn) float32."""
        frames = self.check_frames(frames, window=origin is not None)
        n = frames.shape[-1]
        with torch.autocast(frames.device.type, enabled=False):  # the physics stays in float32
            frames = frames.float()
            axis = self.axis[:n, : self.ratio * n]
            estimate = point = self.linear_start(frames, origin)
        yield estimate, None, None
        for number, block in enumerate(self.fcs):
            with torch.autocast(frames.device.type, enabled=False):
                # r = y - mu G^T (G y - z), on images G y = A Y A^T
                step = point - self.step_length(number) * (axis.T @ (axis @ point @ axis.T - frames) @ axis)
            previous = estimate
            estimate, sparse, residual = block(step, self.threshold(number), symmetry)
            estimate = estimate.float()
            yield estimate, sparse, residual
            # y = s + rho (s - s_previous)
            point = estimate + self.momentum(number) * (estimate - previous)

    def unfold(self, frames, origin=None, symmetry=False):
        """Yield the linear start, then each stage's (estimate, symmetry residual), estimates (B, 1, cn, cn) float32."""
        for estimate, _, residual in self.iterate(frames, origin, symmetry):
            yield estimate, residual

    def loss(self, frames, truth, origin=None):
        r"""Mean squared error, 0.1 times the mean absolute error, 0.01 times the sum over stages of mean squared symmetry residuals, and 0.001 times
        the sum of mean absolute thresholded features."""
        symmetry = sparsity = 0.0
        for estimate, sparse, residual in self.iterate(frames, origin, symmetry=True):  # noqa: B007
            if residual is not None:
                symmetry = symmetry + residual.float().square().mean()
                sparsity = sparsity + sparse.float().abs().mean()
        error = estimate[:, 0] - truth
        return {
            "discrepancy": error.square().mean(),
            "absolute": self.absolute_weight * error.abs().mean(),
            "symmetry": self.symmetry_weight * symmetry,
            "sparsity": self.sparsity_weight * sparsity,
        }
