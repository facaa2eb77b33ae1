r"""What all unfolded networks share: the physics of a gradient step, the linear start, and the loss with its symmetry term.

One stage of an unfolded network is one iteration of ISTA whose fixed transform became a learned one (paper, section 3.3;
book chapter "From algorithm to network"):

.. math:: r = s - \rho\, G^\top (G s - z), \qquad s \leftarrow \tilde F\big(\mathrm{soft}(F(r), \theta)\big).

The steering matrix is a Kronecker product of one matrix per axis, ``G = A (x) A``, so on images the gradient is two small products,
``A^T (A S A^T - Z) A``. The same networks run on a whole frame or on a smaller window of it (``origin`` says where the window lies), because
pixel and sub-pixel geometry is the same everywhere; training uses windows, which hold all of a cluster's light and cost a fifth of a frame.
"""
from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import nn

from csist.datasets import csist100k
from csist.imaging import FocalPlane, SubpixelGrid, check_plane, check_ratio
from csist.scenes import random_targets

START_SCENES = 80_000  # as many as the training split has


def soft_threshold(values: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    r"""Shrink towards zero, :math:`\operatorname{sign}(v)\max(|v| - \theta, 0)`; a negative threshold pushes away from zero instead.

    >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0).tolist()
    [-2.0, 0.0, 1.0]
    """
    if isinstance(threshold, torch.Tensor):
        threshold = threshold.to(values.dtype)  # a float32 parameter would lift bfloat16 features to float32
    return values.sign() * torch.relu(values.abs() - threshold)


def convolve(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """3 x 3 convolution that keeps the size, zeros outside; the one kind of convolution of the unfolded networks."""
    return nn.functional.conv2d(image, kernel, padding=1)


def xavier_kernel(outputs: int, inputs: int) -> nn.Parameter:
    """A fresh 3 x 3 kernel without bias, Xavier-normal as in the paper's toolkit."""
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(outputs, inputs, 3, 3)))


@lru_cache(maxsize=8)
def initial_matrix(plane: FocalPlane, ratio: int) -> np.ndarray:
    r"""The linear start :math:`Q = S Z^\top (Z Z^\top)^{-1}` over the training scenes, with :math:`Z = G S` (paper, eq. 9).

    It is the best linear guess of a sub-pixel image from a frame, and it is consistent: ``G Q = 1``, so the first gradient step changes nothing. Frames of
    another size than the training split's get scenes of the same law, drawn on their own pixels.

    Returns (c^2 * pixels, pixels) float64; sub-pixels and pixels both row-major.
    """
    from scipy.sparse import csr_matrix  # here, to keep `import csist` quick

    grid = SubpixelGrid(plane.shape, ratio)
    own = FocalPlane().shape  # of the training split's frames
    targets = csist100k("train").targets if plane.shape == own else random_targets(START_SCENES, np.random.default_rng(0), shape=plane.shape)
    frame, slot = np.nonzero(targets.mask)
    subpixel = np.ravel_multi_index(grid.to_index(targets.xy[frame, slot]).T, grid.shape)
    steering = plane.steering_matrix(grid)
    images = csr_matrix((targets.intensity[frame, slot], (subpixel, frame)), shape=(steering.shape[1], len(targets)))  # S, a column per scene
    cross = images @ (images.T @ steering.T)  # S Z^T with Z = G S
    return np.linalg.solve(steering @ cross, cross.T).T  # Z Z^T is symmetric


class UnmixingNetwork(nn.Module):
    """A network from frames (B, 11, 11) in grey levels to sub-pixel images (B, 11c, 11c) of intensities."""

    windows = True  # whether it can also be shown windows of a frame
    global_statistics = False  # whether it knows how far the image reaches, mostly by means over it, so that a window's answer is not the frame's
    batch_size: int | None = None  # the one number of frames it runs on; None: any
    target_weight = 1.0  # weight in the loss of a sub-pixel that holds a target; the others weigh 1

    def __init__(self, ratio: int, plane: FocalPlane | None = None):
        super().__init__()
        self.ratio = check_ratio(ratio)
        self.plane = check_plane(plane)
        if self.plane.shape[0] != self.plane.shape[1]:
            raise ValueError(f"networks need square frames; got {self.plane.shape}")

    @property
    def size(self) -> int:
        """Rows (and columns) of a frame [px]."""
        return self.plane.shape[0]

    def check_frames(self, frames: torch.Tensor, window: bool = False) -> torch.Tensor:
        """Frames as floating-point (B, 1, n, n), or a clear error."""
        if not isinstance(frames, torch.Tensor) or frames.is_complex():
            raise TypeError(f"frames must be a real torch tensor; got {type(frames).__name__}. csist.evaluation.predict takes arrays")
        if frames.ndim == 3:
            frames = frames[:, None]
        good = frames.ndim == 4 and frames.shape[1] == 1 and frames.shape[2] == frames.shape[3]
        if not good or (frames.shape[-1] > self.size if window else frames.shape[-1] != self.size):
            raise ValueError(f"frames must have shape (B, {self.size}, {self.size}) or (B, 1, {self.size}, {self.size}); got {tuple(frames.shape)}")
        return frames if frames.is_floating_point() else frames.float()

    def loss(self, frames: torch.Tensor, truth: torch.Tensor, origin: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Terms of the training loss; their sum is minimised. Here the mean squared error over all sub-pixels."""
        return {"discrepancy": self.discrepancy(self(frames, origin), truth)}

    def discrepancy(self, estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Mean squared error over all sub-pixels, those with a target weighted by ``target_weight``."""
        squares = (estimate - truth).square()
        return squares.mean() if self.target_weight == 1 else torch.where(truth > 0, self.target_weight * squares, squares).mean()


class UnfoldedNetwork(UnmixingNetwork):
    """Stages of learned ISTA around one imaging model; subclasses say what a stage is.

    Parameters
    ----------
    stage : callable
        Makes one stage, a module called as ``stage(gradient_step, previous, symmetry)`` -> (estimate, symmetry residual or None).
    stages : int
        Number of unfolded iterations.
    ratio : int
        Sub-pixel ratio c.
    plane : FocalPlane
        The imaging model.
    start : bool
        Compute the linear start from the training scenes; False leaves zeros for a checkpoint to fill.
    """

    symmetry_weight = 0.01  # gamma of the paper's loss (section 3.4)

    def __init__(self, stage, stages: int, ratio: int = 3, plane: FocalPlane | None = None, start: bool = True):
        super().__init__(ratio, plane)
        if not 1 <= int(stages) <= 64:
            raise ValueError(f"stages must be from 1 to 64; got {stages!r}. The paper uses 4 to 9")
        self.fcs = nn.ModuleList(stage() for _ in range(stages))
        grid = SubpixelGrid(self.plane.shape, self.ratio)
        self.register_buffer("axis", torch.from_numpy(self.plane.axis_matrix(grid)).float(), persistent=False)  # (11, 11c)
        pixels = self.size**2
        matrix = torch.from_numpy(initial_matrix(self.plane, self.ratio)).float() if start else torch.zeros(pixels * self.ratio**2, pixels)
        self.register_buffer("start_matrix", matrix)

    def linear_start(self, frames: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
        """First estimate Q z, (B, 1, cn, cn); on a window, the window's block of Q."""
        batch, n, c = len(frames), frames.shape[-1], self.ratio
        if n == self.size:
            return (frames.flatten(1) @ self.start_matrix.T).view(batch, 1, c * n, c * n)
        pixel = origin[:, :, None] + torch.arange(n, device=frames.device)  # (B, 2, n)
        subpixel = c * origin[:, :, None] + torch.arange(c * n, device=frames.device)
        columns = (pixel[:, 0, :, None] * self.size + pixel[:, 1, None, :]).flatten(1)  # (B, n^2)
        rows = (subpixel[:, 0, :, None] * c * self.size + subpixel[:, 1, None, :]).flatten(1)  # (B, c^2 n^2)
        block = self.start_matrix[rows[:, :, None], columns[:, None, :]]
        return (block @ frames.flatten(1)[:, :, None]).view(batch, 1, c * n, c * n)

    def unfold(self, frames: torch.Tensor, origin: torch.Tensor | None = None, symmetry: bool = False):
        """Yield the linear start, then each stage's (estimate, symmetry residual), estimates (B, 1, cn, cn) float32."""
        frames = self.check_frames(frames, window=origin is not None)
        n = frames.shape[-1]
        with torch.autocast(frames.device.type, enabled=False):  # the physics stays in float32
            axis = self.axis[:n, : self.ratio * n]
            gram = axis.T @ axis  # one axis of G^T G
            data = axis.T @ frames.float() @ axis  # G^T z
            estimate = self.linear_start(frames.float(), origin)
        yield estimate, None
        for stage in self.fcs:
            with torch.autocast(frames.device.type, enabled=False):
                # r = s - rho (G^T G s - G^T z)
                step = estimate - stage.lambda_step * (gram @ estimate @ gram - data)
            estimate, residual = stage(step, self.on_frame(estimate, origin), symmetry)
            estimate = estimate.float()
            yield estimate, residual

    def on_frame(self, estimate: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
        """A window's estimate in its place on the whole frame, zeros elsewhere (only layers with the size of a frame need it)."""
        return estimate

    def forward(self, frames: torch.Tensor, origin: torch.Tensor | None = None) -> torch.Tensor:
        """Sub-pixel images (B, 11c, 11c); with ``origin`` (B, 2), the top-left pixels of windows (B, n, n), the windows' images (B, cn, cn)."""
        for estimate, _ in self.unfold(frames, origin):  # noqa: B007
            pass
        return estimate[:, 0]

    def trajectory(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """The estimate before the first stage and after each one, a list of (B, 11c, 11c)."""
        return [estimate[:, 0] for estimate, _ in self.unfold(frames)]

    def loss(self, frames, truth, origin=None):
        r"""Mean squared error plus :math:`\gamma\sum_k` of the stages' mean squared symmetry residuals (paper, eq. 21)."""
        symmetry = 0.0
        for estimate, residual in self.unfold(frames, origin, symmetry=True):  # noqa: B007
            if residual is not None:
                symmetry = symmetry + residual.float().square().mean()
        return {"discrepancy": self.discrepancy(estimate[:, 0], truth), "symmetry": self.symmetry_weight * symmetry}
