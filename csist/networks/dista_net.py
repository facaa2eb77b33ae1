"""DISTA-Net (paper, section 3.3): ISTA-Net whose transform and threshold depend on the input; book chapter "DISTA-Net".

Two variants share parameter names and counts. ``paper`` follows the equations: one kernel per sample, gradients through the kernel generator, a
threshold that is subtracted. ``released`` repeats what the published code computes, for the errata chapter: the generator gets no gradient, the
"threshold" is multiplied by the features once more, which makes it a gate, and the kernels of a batch of 64 are used across its samples.
The first two differences can also be had one at a time (``train_kernels=False``, ``gate=True``), to see what each of them is worth.
"""
from __future__ import annotations

import torch
from torch import nn

from csist.imaging import FocalPlane
from csist.networks.unfolding import UnfoldedNetwork, convolve, soft_threshold, xavier_kernel

FEATURES = 64
STATIC_WEIGHT = 0.7  # alpha: share of the static branch (paper, Fig. 7: the dynamic branch weighs 0.3)
KERNEL_INPUT_SCALE = 0.01  # the paper variant feeds its kernel generator estimates in hundreds of grey levels, so that it starts out unsaturated
VARIANTS = ("paper", "released")


class KernelAttention(nn.Module):
    """Threshold map from features, by a large-selective-kernel block (Li et al., ICCV 2023; paper, eqs. 15-19).

    Two views of the features (1 x 1; depthwise 3 x 3 then 1 x 1) are weighed against each other at every sub-pixel by masks computed from
    their mean and maximum over channels.
    """

    def __init__(self, features: int):
        super().__init__()
        self.convl = nn.Conv2d(features, features, 3, padding=1, groups=features)
        self.conv0_s = nn.Conv2d(features, features // 2, 1)
        self.conv1_s = nn.Conv2d(features, features // 2, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 3, padding=1)
        self.conv_m = nn.Conv2d(features // 2, features, 1)

    def forward(self, features):
        near, wide = self.conv0_s(features), self.conv1_s(self.convl(features))
        both = torch.cat([near, wide], dim=1)
        summary = torch.cat([both.mean(1, keepdim=True), both.amax(1, keepdim=True)], dim=1)
        mask = self.conv_squeeze(summary).sigmoid()
        return self.conv_m(near * mask[:, :1] + wide * mask[:, 1:])


class DistaNetStage(nn.Module):
    r"""One dynamic stage.

    .. math:: F_d = \alpha\, F(r) + (1 - \alpha)\,\sigma(W(s) * r), \qquad s \leftarrow \tilde F\big(\mathrm{soft}(F_d, \theta(F_d))\big)

    Parameters
    ----------
    ratio, size : int
        Sub-pixel ratio c and frame size [px]; the kernel generator reads the whole previous estimate, c^2 size^2 numbers.
    dynamic_transform, dynamic_threshold : bool
        Switch either off for the ablations of the paper's Table 2.
    train_kernels, gate : bool
        Whether gradients reach the kernel generator, and whether the threshold is the released gate; the released variant always has False and True.
    """

    def __init__(self, ratio: int, size: int = 11, variant: str = "paper", features: int = FEATURES, static_weight: float = STATIC_WEIGHT,
                 dynamic_transform: bool = True, dynamic_threshold: bool = True, train_kernels: bool = True, gate: bool = False):
        super().__init__()
        self.variant, self.static_weight = variant, static_weight
        self.train_kernels, self.gate = (False, True) if variant == "released" else (train_kernels, gate)
        self.lambda_step = nn.Parameter(torch.tensor([0.5]))
        self.conv1_forward = xavier_kernel(features, 1)
        self.conv2_forward = xavier_kernel(features, features)
        self.conv1_backward = xavier_kernel(features, features)
        self.conv2_backward = xavier_kernel(1, features)
        if dynamic_transform:
            self.w1 = nn.Linear((ratio * size) ** 2, 256)
            self.w2 = nn.Linear(256, 9)
        if dynamic_threshold:
            self.att = KernelAttention(features)
        else:
            self.soft_thr = nn.Parameter(torch.tensor([0.01]))
        self.dynamic_transform, self.dynamic_threshold = dynamic_transform, dynamic_threshold

    def kernels(self, previous):
        """W(s): one 3 x 3 kernel per sample, (B, 1, 3, 3), from the previous estimate on the whole frame."""
        scale = 1.0 if self.variant == "released" else KERNEL_INPUT_SCALE
        kernels = self.w2(self.w1(scale * previous.flatten(1))).view(-1, 1, 3, 3)
        return kernels if self.train_kernels else kernels.detach()

    def dynamic_branch(self, step, previous):
        """Each sample convolved with its own kernel, through a sigmoid, (B, 1, ...); in the released variant channel j carries kernel j."""
        kernels = self.kernels(previous).to(step.dtype)
        if self.variant == "released":
            if len(step) not in (1, FEATURES):
                raise ValueError(f"the released variant mixes the samples of a batch and runs on batches of {FEATURES} or 1 only; got {len(step)}")
            return convolve(step, kernels).sigmoid()
        patches = nn.functional.unfold(step, 3, padding=1)  # (B, 9, pixels)
        return (kernels.view(len(step), 1, 9) @ patches).view_as(step).sigmoid()

    def transform(self, step, previous):
        """F_d: features (B, 64, ...) of the gradient step."""
        static = convolve(torch.relu(convolve(step, self.conv1_forward)), self.conv2_forward)
        if not self.dynamic_transform:
            return static
        return self.static_weight * static + (1 - self.static_weight) * self.dynamic_branch(step, previous)

    def threshold(self, features):
        """theta: one number for every feature and sub-pixel (nothing in the equations keeps it positive)."""
        if not self.dynamic_threshold:
            return self.soft_thr
        attention = self.att(features)
        return features * attention if self.gate else attention

    def inverse(self, features):
        """The learned left inverse of the transform."""
        return convolve(torch.relu(convolve(features, self.conv1_backward)), self.conv2_backward)

    def forward(self, step, previous, symmetry):
        features = self.transform(step, previous)
        estimate = self.inverse(soft_threshold(features, self.threshold(features)))
        return estimate, self.inverse(features) - step if symmetry else None


class DistaNet(UnfoldedNetwork):
    """DISTA-Net: six stages at c = 3 and 5, four at c = 7 (2,179,104, 5,152,800 and 6,408,896 parameters).

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    stages : int, optional
        Unfolded iterations; the paper's number by default.
    variant : {"paper", "released"}
        The equations, or the published code's behaviour (see the module's description).
    dynamic_transform, dynamic_threshold : bool
        Ablations of Table 2.
    static_weight : float
        alpha, the share of the static branch, 0 to 1.
    train_kernels : bool
        False leaves the kernel generator at its random start, as the released code does.
    gate : bool
        True multiplies the threshold by the features, as the released code does: a gate instead of a soft threshold.
    """

    def __init__(self, ratio: int = 3, stages: int | None = None, variant: str = "paper", plane: FocalPlane | None = None, start: bool = True,
                 static_weight: float = STATIC_WEIGHT, dynamic_transform: bool = True, dynamic_threshold: bool = True, train_kernels: bool = True,
                 gate: bool = False):
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        if not 0 <= static_weight <= 1:
            raise ValueError(f"static_weight (alpha) must be from 0 to 1; got {static_weight!r}. The paper uses 0.7")

        def stage():  # called when the base class has checked the plane
            return DistaNetStage(ratio, self.size, variant, FEATURES, static_weight, dynamic_transform, dynamic_threshold, train_kernels, gate)

        super().__init__(stage, (4 if ratio == 7 else 6) if stages is None else stages, ratio, plane, start)
        self.batch_size = FEATURES if variant == "released" else None

    def on_frame(self, estimate, origin):
        """A window's estimate in its place on a frame of zeros, because the kernel generator reads whole frames."""
        n = estimate.shape[-1]
        full = self.size * self.ratio
        if origin is None or n == full:
            return estimate
        index = self.ratio * origin[:, :, None] + torch.arange(n, device=estimate.device)  # (B, 2, n)
        rows = torch.arange(len(estimate), device=estimate.device)[:, None, None]
        frame = estimate.new_zeros(len(estimate), full, full)
        return frame.index_put((rows, index[:, 0, :, None], index[:, 1, None, :]), estimate[:, 0])[:, None]
