"""ISTA-Net and ISTA-Net+ (Zhang & Ghanem, CVPR 2018), as the paper's Table 1 uses them; book chapter "From algorithm to network"."""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.unfolding import UnfoldedNetwork, convolve, soft_threshold, xavier_kernel

FEATURES = 32


class IstaNetStage(nn.Module):
    r"""One stage of ISTA-Net: :math:`s = \tilde F(\mathrm{soft}(F(r), \theta))`, both transforms conv-ReLU-conv, one learned threshold."""

    def __init__(self, features: int = FEATURES):
        super().__init__()
        self.lambda_step = nn.Parameter(torch.tensor([0.5]))
        self.soft_thr = nn.Parameter(torch.tensor([0.01]))
        self.conv1_forward = xavier_kernel(features, 1)
        self.conv2_forward = xavier_kernel(features, features)
        self.conv1_backward = xavier_kernel(features, features)
        self.conv2_backward = xavier_kernel(1, features)

    def transform(self, image):
        """F: sub-pixel image (B, 1, ...) to features (B, 32, ...)."""
        return convolve(torch.relu(convolve(image, self.conv1_forward)), self.conv2_forward)

    def inverse(self, features):
        """The learned left inverse of F."""
        return convolve(torch.relu(convolve(features, self.conv1_backward)), self.conv2_backward)

    def forward(self, step, previous, symmetry):
        features = self.transform(step)
        estimate = self.inverse(soft_threshold(features, self.soft_thr))
        return estimate, self.inverse(features) - step if symmetry else None


class IstaNetPlusStage(nn.Module):
    r"""One stage of ISTA-Net+: :math:`s = r + G(\tilde F(\mathrm{soft}(F(D r), \theta)))`, a residual of the gradient step."""

    def __init__(self, features: int = FEATURES):
        super().__init__()
        self.lambda_step = nn.Parameter(torch.tensor([0.5]))
        self.soft_thr = nn.Parameter(torch.tensor([0.01]))
        self.conv_D = xavier_kernel(features, 1)
        self.conv1_forward = xavier_kernel(features, features)
        self.conv2_forward = xavier_kernel(features, features)
        self.conv1_backward = xavier_kernel(features, features)
        self.conv2_backward = xavier_kernel(features, features)
        self.conv_G = xavier_kernel(1, features)

    def inverse(self, features):
        """The learned left inverse of the transform."""
        return convolve(torch.relu(convolve(features, self.conv1_backward)), self.conv2_backward)

    def forward(self, step, previous, symmetry):
        lifted = convolve(step, self.conv_D)
        features = convolve(torch.relu(convolve(lifted, self.conv1_forward)), self.conv2_forward)
        estimate = step + convolve(self.inverse(soft_threshold(features, self.soft_thr)), self.conv_G)
        return estimate, self.inverse(features) - lifted if symmetry else None


class IstaNet(UnfoldedNetwork):
    """ISTA-Net: nine stages, 171,090 parameters at every ratio."""

    def __init__(self, ratio: int = 3, stages: int = 9, plane: FocalPlane | None = None, start: bool = True):
        super().__init__(IstaNetStage, stages, ratio, plane, start)


class IstaNetPlus(UnfoldedNetwork):
    """ISTA-Net+: nine stages at c = 3 (336,978 parameters), six at finer grids (224,652), as in the paper."""

    def __init__(self, ratio: int = 3, stages: int | None = None, plane: FocalPlane | None = None, start: bool = True):
        super().__init__(IstaNetPlusStage, (9 if ratio == 3 else 6) if stages is None else stages, ratio, plane, start)
