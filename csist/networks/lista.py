r"""Unfolded networks of dense matrices: LISTA, LIHT, LAMP and TiLISTA (paper, Table 1; book chapter "From algorithm to network").

Here every layer learns whole matrices between the frame's M = 121 pixels and its N = 121 c^2 sub-pixels, where the convolutional networks learn small
kernels. Nothing tells a dense matrix that all positions of the frame are alike, which costs parameters and data. It also ties the network to
whole frames: a window has no rows and columns of its own in these matrices.

Vectors are row-major and lie in rows of a batch: frames z are (B, M), estimates s are (B, N). All but LAMP begin at the linear start :math:`s_0 = Q z`.
All are computed in float32 even under autocast, because thresholds of 0.05 grey levels vanish between two bfloat16 numbers near 200.
In the reference toolkit some of these parameters share one storage as long as they stay on a CPU; here every layer owns its numbers.
"""
from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from csist.imaging import FocalPlane, SubpixelGrid
from csist.networks.unfolding import UnmixingNetwork, initial_matrix, soft_threshold

LAYERS = 16
SPARSITY = 0.4  # lambda of the initial thresholds, in the toolkit's scale
SUPPORT_STEP, SUPPORT_LIMIT = 1.2, 13.0  # TiLISTA's layer k trusts its min(1.2 (k + 1), 13) percent largest entries
VARIANTS = ("paper", "released")


def hard_threshold(values: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    r"""Keep what exceeds the threshold, unshrunk: v where :math:`|v| > \theta`, else 0.

    The result jumps at the threshold and is flat in it elsewhere, so the gradient with respect to :math:`\theta` is exactly zero.

    >>> hard_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0).tolist()
    [-3.0, 0.0, 2.0]
    """
    return values * torch.relu(values.abs() - threshold).sign()


def support_threshold(values: torch.Tensor, threshold: torch.Tensor, percent: float) -> torch.Tensor:
    r"""Soft threshold that trusts the support: entries above :math:`\theta` that are also among the row's largest ``percent`` pass unshrunk.

    >>> support_threshold(torch.tensor([[4.0, -3.0, 2.0, 0.5]]), torch.tensor(1.0), 30.0).tolist()
    [[4.0, -2.0, 1.0, 0.0]]
    """
    size = values.abs()
    trusted = (size > threshold) & (size > size.quantile(1 - percent / 100, dim=1, keepdim=True))
    return torch.where(trusted, values, soft_threshold(values, threshold))


class DenseNetwork(UnmixingNetwork):
    r"""Base of the dense networks: the steering matrix, the linear start, and layers called one after another.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c; the matrices grow with c^2 (LAMP, TiLISTA) or c^4 (LISTA, LIHT).
    plane : FocalPlane
        The imaging model.
    start : bool
        Compute the linear start from the training scenes; False leaves zeros for a checkpoint to fill.
    layers : int
        Number of unfolded iterations.

    Raises
    ------
    ValueError
        For a number of layers outside 1..64; in use, if a window (``origin``) is given instead of whole frames.
    """

    windows = False  # needs whole frames

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *, layers: int = LAYERS):
        super().__init__(ratio, plane)
        if not 1 <= int(layers) <= 64:
            raise ValueError(f"layers must be from 1 to 64; got {layers!r}. The paper uses {LAYERS}")
        grid = SubpixelGrid(self.plane.shape, self.ratio)
        steering = self.plane.steering_matrix(grid)
        self.squared_norm = float(np.linalg.norm(self.plane.axis_matrix(grid), 2) ** 4)  # |G|^2, as G = A (x) A
        linear_start = initial_matrix(self.plane, self.ratio) if start else np.zeros(steering.T.shape)
        self.register_buffer("steering", torch.from_numpy(steering).float(), persistent=False)  # G (M, N)
        self.register_buffer("start_matrix", torch.from_numpy(linear_start).float().contiguous())  # Q (N, M)
        self.fcs = nn.ModuleList(self.fresh_layers(layers, start))

    def fresh_layers(self, count: int, start: bool) -> list[nn.Module]:
        """New layers; with ``start`` their matrices are those that the class's text names, otherwise zeros."""
        raise NotImplementedError

    def unfold(self, pixels: torch.Tensor):
        """Yield the first estimate and each layer's, (B, N), from frames (B, M)."""
        raise NotImplementedError

    def vector(self, value: float) -> torch.Tensor:
        """One number for every sub-pixel, (N,)."""
        return torch.full((self.steering.shape[1],), value)

    def images(self, frames: torch.Tensor, origin: torch.Tensor | None = None):
        """Yield the estimates as images (B, 11c, 11c) float32."""
        if origin is not None:
            raise ValueError(
                f"{type(self).__name__} needs whole frames: its matrices hold a row for every sub-pixel of one; got windows (origin is given). "
                "Use the frames themselves and leave origin out"
            )
        frames = self.check_frames(frames)
        side = self.size * self.ratio
        with torch.autocast(frames.device.type, enabled=False):
            for estimate in self.unfold(frames.flatten(1).to(self.start_matrix.dtype)):
                yield estimate.view(-1, side, side)

    def forward(self, frames: torch.Tensor, origin: torch.Tensor | None = None) -> torch.Tensor:
        """Sub-pixel images (B, 11c, 11c) of whole frames (B, 11, 11); ``origin`` must be None."""
        for image in self.images(frames, origin):  # noqa: B007
            pass
        return image

    def trajectory(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """The estimate before the first layer and after each one, a list of (B, 11c, 11c)."""
        return list(self.images(frames))


class RecurrentLayer(nn.Module):
    """Matrices W (N, N) and B (N, M) and a threshold for each sub-pixel, (N,); each layer gets its own copies."""

    def __init__(self, recurrent: torch.Tensor, inward: torch.Tensor, threshold: torch.Tensor):
        super().__init__()
        self.W, self.B, self.theta = (nn.Parameter(values.clone()) for values in (recurrent, inward, threshold))

    def forward(self, estimate, pixels):
        """W s + B z."""
        return estimate @ self.W.T + pixels @ self.B.T


class Lista(DenseNetwork):
    r"""LISTA (Gregor & LeCun, ICML 2010), nothing shared between layers: 21,100,464 parameters at c = 3.

    .. math:: s_{k+1} = \operatorname{soft}\big(W_k s_k + B_k z,\; \max(\theta_k, 0)\big)

    It starts as ISTA with Q in the place of :math:`G^\top/\lVert G\rVert^2`: :math:`W = 1 - Q G`, :math:`B = Q`,
    :math:`\theta = 0.4/(1.001\lVert G\rVert^2)`. Parameters as for :class:`DenseNetwork`.

    >>> Lista(ratio=1, start=False, layers=2)(torch.zeros(4, 11, 11)).shape
    torch.Size([4, 11, 11])
    """

    def fresh_layers(self, count, start):
        size = len(self.start_matrix)
        recurrent = torch.eye(size) - self.start_matrix @ self.steering if start else torch.zeros(size, size)
        threshold = self.vector(SPARSITY / (1.001 * self.squared_norm))
        return [RecurrentLayer(recurrent, self.start_matrix, threshold) for _ in range(count)]

    def unfold(self, pixels):
        estimate = pixels @ self.start_matrix.T
        yield estimate
        for layer in self.fcs:
            # s <- soft(W s + B z, theta)
            estimate = soft_threshold(layer(estimate, pixels), layer.theta.clamp(min=0))
            yield estimate


class Liht(DenseNetwork):
    r"""LIHT, learned iterative hard thresholding (Wang, Ling & Huang, AAAI 2016): 21,100,464 parameters at c = 3.

    .. math:: s_{k+1} = \operatorname{hard}(W_k s_k + B_k z,\; \theta_k)

    It starts as in the reference toolkit: W = 1, B = Q, :math:`\theta = \sqrt{0.4}`. With W = 1 instead of the :math:`1 - Q G` of an iteration, every layer
    adds Q z once more, so the network begins far from its target: 17 times the linear start, after 16 layers. The threshold gets an exactly zero
    gradient, which is inherent to hard thresholding (see :func:`hard_threshold`), so it never moves; only the matrices learn.
    Parameters as for :class:`DenseNetwork`.

    >>> Liht(ratio=1, start=False, layers=2)(torch.zeros(4, 11, 11)).shape
    torch.Size([4, 11, 11])
    """

    def fresh_layers(self, count, start):
        size = len(self.start_matrix)
        recurrent = torch.eye(size) if start else torch.zeros(size, size)
        return [RecurrentLayer(recurrent, self.start_matrix, self.vector(math.sqrt(SPARSITY))) for _ in range(count)]

    def unfold(self, pixels):
        estimate = pixels @ self.start_matrix.T
        yield estimate
        for layer in self.fcs:
            # s <- hard(W s + B z, theta)
            estimate = hard_threshold(layer(estimate, pixels), layer.theta)
            yield estimate


class LampLayer(nn.Module):
    """Matrix B (N, M) and the threshold's factor lambda for each sub-pixel, (N,); each layer gets its own copies."""

    def __init__(self, matrix: torch.Tensor, factor: torch.Tensor):
        super().__init__()
        self.B, self.lam = nn.Parameter(matrix.clone()), nn.Parameter(factor.clone())


class Lamp(DenseNetwork):
    r"""LAMP, learned approximate message passing (Borgerding, Schniter & Rangan, IEEE TSP 2017): 2,125,728 parameters at c = 3.

    .. math::
        v_{k+1} &= z - G s_k + \tfrac1M\lVert s_k\rVert_0\, v_k \\
        s_{k+1} &= \operatorname{soft}\big(s_k + B_k v_{k+1},\; \max(\lambda_k, 0)\,\lVert v_{k+1}\rVert_2/\sqrt M\big)

    The term with v_k is Onsager's: it keeps the error of :math:`s_k + B v_{k+1}` close to Gaussian noise, whose level is :math:`\lVert v\rVert/\sqrt M`.
    It starts with :math:`B = G^\top/\lVert G\rVert^2` and :math:`\lambda = 0.4`.

    Parameters
    ----------
    ratio, plane, start, layers
        As for :class:`DenseNetwork`.
    variant : {"paper", "released"}
        Where the iteration begins. ``paper``: at :math:`s_0 = 0`, as published. ``released``: at :math:`s_0 = Q z`, as in the reference toolkit. As
        :math:`G Q = 1`, that makes the first residual zero up to rounding, and then every layer multiplies this rounding by about
        :math:`\lVert s\rVert_0/M`, up to c^2: the layers at first work on amplified noise.

    >>> Lamp(ratio=1, start=False, layers=2)(torch.zeros(4, 11, 11)).shape
    torch.Size([4, 11, 11])
    """

    def __init__(self, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True, *, layers: int = LAYERS, variant: str = "paper"):
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        self.variant = variant
        super().__init__(ratio, plane, start, layers=layers)

    def fresh_layers(self, count, start):
        matrix = self.steering.T.contiguous() / self.squared_norm if start else torch.zeros(self.start_matrix.shape)
        return [LampLayer(matrix, self.vector(SPARSITY)) for _ in range(count)]

    def unfold(self, pixels):
        estimate = pixels @ self.start_matrix.T if self.variant == "released" else pixels.new_zeros(len(pixels), len(self.start_matrix))
        residual = torch.zeros_like(pixels)
        yield estimate
        for layer in self.fcs:
            # v <- z - G s + |s|_0 / M v
            residual = pixels - estimate @ self.steering.T + estimate.count_nonzero(1)[:, None] / pixels.shape[1] * residual
            level = torch.linalg.vector_norm(residual, dim=1, keepdim=True) / math.sqrt(pixels.shape[1])
            # s <- soft(s + B v, lambda |v| / sqrt(M))
            estimate = soft_threshold(estimate + residual @ layer.B.T, layer.lam.clamp(min=0) * level)
            yield estimate


class TilistaLayer(nn.Module):
    """Matrix W (N, M), step alpha (1,) and a threshold for each sub-pixel, (N,); each layer gets its own copies."""

    def __init__(self, matrix: torch.Tensor, threshold: torch.Tensor):
        super().__init__()
        self.W, self.theta, self.alpha = nn.Parameter(matrix.clone()), nn.Parameter(threshold.clone()), nn.Parameter(torch.ones(1))


class Tilista(DenseNetwork):
    r"""TiLISTA (Liu et al., ICLR 2019) with support selection (Chen et al., NeurIPS 2018): 2,125,744 parameters at c = 3.

    .. math:: s_{k+1} = \operatorname{S}_{p_k}\big(s_k + \alpha_k W_k (z - G s_k),\; \theta_k\big), \qquad p_k = \min(1.2\,(k + 1),\, 13)

    where S lets the largest :math:`p_k` percent of a sample's entries pass unshrunk (:func:`support_threshold`). In the published method all layers share
    ("tie") one W, hence the name; here, as in the reference toolkit and its parameter count, each has its own. It starts with W = Q,
    :math:`\alpha = 1` and :math:`\theta = 0.4/(1.001\lVert G\rVert^2)`. As :math:`G Q = 1`, the first residual is zero up to rounding, so the first
    layer's W and alpha have nothing to learn from. Parameters as for :class:`DenseNetwork`.

    >>> Tilista(ratio=1, start=False, layers=2)(torch.zeros(4, 11, 11)).shape
    torch.Size([4, 11, 11])
    """

    def fresh_layers(self, count, start):
        return [TilistaLayer(self.start_matrix, self.vector(SPARSITY / (1.001 * self.squared_norm))) for _ in range(count)]

    def unfold(self, pixels):
        estimate = pixels @ self.start_matrix.T
        yield estimate
        for number, layer in enumerate(self.fcs):
            # s <- S_p(s + alpha W (z - G s), theta)
            step = estimate + layer.alpha * (pixels - estimate @ self.steering.T) @ layer.W.T
            estimate = support_threshold(step, layer.theta, min(SUPPORT_STEP * (number + 1), SUPPORT_LIMIT))
            yield estimate
