r"""A heat-map detector that reads unmixed sub-pixel images (book part "Results", page "A detector behind the unmixer").

The paper lets a box detector (YOLO) read the images that its networks unmix. This one is smaller and of another family: no boxes, one heat map
(Zhou et al., *Objects as Points*, 2019). Every sub-pixel says

- whether a target lies within ``REACH`` sub-pixels of its centre (``presence``),
- where that target is, relative to its centre (``offset``), and how bright it is (``intensity``),
- and how far its own answer can be trusted (``confidence``): the expected share of CSO-mAP's distance thresholds that it meets,

.. math:: q = \frac1{|\Delta|} \sum_{\delta\in\Delta} P\big(\lVert \hat{\mathbf x} - \mathbf x \rVert \le \delta\big),

which is the order that CSO-mAP rewards; brightness says little of it.

**It leaves the grid.** The offset is a real number, so a detection is not bound to a sub-pixel's centre and the grid's ceiling does not apply to it.
Boxes regress their centres too, so the paper's pipeline may leave the grid for the same reason. ``offsets=False`` nails the same detector to the grid:
a detection is the centre of its sub-pixel, its confidence is learned for that place, and only the choice of sub-pixels and their ranking can gain.

**Responsibilities overlap.** A target near the border of two sub-pixels would give each of them a presence of about one half, and a threshold would lose
it or count it twice. So all sub-pixels about a target answer, and among answers that are nearer to each other than ``SEPARATION`` only the most
confident stays. The answers' positions decide, not the cells: in CSIST-100K two neighbouring sub-pixels, diagonal or not, may both hold a target.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.functional import smooth_l1_loss

from csist.imaging import check_ratio
from csist.metrics import DISTANCE_THRESHOLDS
from csist.networks.registry import read_tensors, write_weights

SCALE = 240.0  # grey levels that become 1: about a target's intensity
REACH = 1.0  # sub-pixels; all centres this near to a target answer for it. The containing one is at most 0.71 away, so it answers even if misjudged
LONGEST = 1.25  # sub-pixels; bound of an offset, beyond REACH so that the bound is never the answer
SEPARATION = 0.4  # px; of two answers nearer than this one goes: more than one sub-pixel at c = 3 (0.333), less than the targets' 0.494
SOFTNESS = 0.1  # sub-pixels; below this error the offset's loss is quadratic
RANKINGS = ("confidence", "presence")


class Maps(NamedTuple):
    """What a detector says about each sub-pixel of n x n."""

    presence: torch.Tensor  # (B, n, n) logits
    confidence: torch.Tensor  # (B, n, n) logits
    offset: torch.Tensor  # (B, 2, n, n) sub-pixels from the centre, row then column
    intensity: torch.Tensor  # (B, n, n) in units of SCALE


class Answers(NamedTuple):
    """What a detector should say: :func:`encode`."""

    presence: torch.Tensor  # (B, n, n) 1 within REACH of a target, else 0
    offset: torch.Tensor  # (B, 2, n, n) sub-pixels to the nearest target; 0 in images without any
    intensity: torch.Tensor  # (B, n, n) of the nearest target, in units of SCALE


class Detector(nn.Module):
    """A residual network of 3 x 3 convolutions that turns sub-pixel images (B, n, n) into :class:`Maps`.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c of the images.
    features : int
        Width of the hidden layers.
    blocks : int
        Residual blocks of two convolutions each; ``4 * blocks + 3`` sub-pixels see each other.
    offsets : bool
        True: positions are real numbers. False: they are the centres of sub-pixels, and offsets only say which sub-pixels mean the same target.

    Raises
    ------
    ValueError
        For an even ratio, or a size that is not positive.

    >>> maps = Detector(features=8, blocks=1)(torch.zeros(2, 15, 15))
    >>> tuple(maps.presence.shape), tuple(maps.offset.shape)
    ((2, 15, 15), (2, 2, 15, 15))
    """

    def __init__(self, ratio: int = 3, features: int = 64, blocks: int = 2, offsets: bool = True):
        super().__init__()
        for name, value in (("features", features), ("blocks", blocks)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
                raise ValueError(f"Detector: {name} must be a whole number from 1 to 1024; got {value!r}. The default is {dict(features=64, blocks=2)[name]}")
        self.ratio, self.offsets = check_ratio(ratio), bool(offsets)
        self.options = {"features": features, "blocks": blocks, "offsets": self.offsets}
        self.first = nn.Conv2d(1, features, 3, padding=1)
        self.blocks = nn.ModuleList(Block(features) for _ in range(blocks))
        self.head = nn.Conv2d(features, 5, 1)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([-3.0, -3.0, 0.0, 0.0, 1.0]))  # few cells answer, in their middle, at a usual brightness

    def forward(self, images: torch.Tensor) -> Maps:
        if images.ndim != 3 or images.shape[1] != images.shape[2]:
            raise ValueError(f"Detector: images must have shape (B, n, n); got {tuple(images.shape)}")
        features = torch.relu(self.first(images[:, None] / SCALE))
        for block in self.blocks:
            features = block(features)
        with torch.autocast(images.device.type, enabled=False):  # an offset needs more digits than bfloat16 has
            presence, confidence, row, column, intensity = self.head(features.float()).unbind(1)
        return Maps(presence, confidence, LONGEST * torch.tanh(torch.stack([row, column], 1)), intensity)

    def positions(self, offset: torch.Tensor) -> torch.Tensor:
        """Where each cell puts its target, (B, 2, n, n) in sub-pixel indices of the image: its centre if the detector is nailed to the grid."""
        return (cells(offset.shape[-1], offset.device) + (offset if self.offsets else 0.0)).expand_as(offset)


class Block(nn.Module):
    """Two convolutions about which the signal can also pass unchanged."""

    def __init__(self, features: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(features, features, 3, padding=1) for _ in range(2))

    def forward(self, features):
        return torch.relu(features + self.second(torch.relu(self.first(features))))


def cells(size: int, device=None) -> torch.Tensor:
    """Row and column index of every cell, (2, n, n) float32."""
    index = torch.arange(size, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(index, index, indexing="ij"))


def encode(places: torch.Tensor, intensity: torch.Tensor, size: int) -> Answers:
    """What the maps of an image should say.

    Parameters
    ----------
    places : tensor (B, K, 2)
        Targets in sub-pixel indices of the image, fractional; padding is infinite.
    intensity : tensor (B, K)
        Total flux [grey levels].
    size : int
        Rows and columns n of the image.

    >>> answers = encode(torch.tensor([[[4.2, 7.0]]]), torch.tensor([[240.0]]), 9)
    >>> [round(value, 2) for value in answers.offset[0, :, 4, 7].tolist()], int(answers.presence.sum())
    ([0.2, 0.0], 2)
    """
    distance, nearest = nearest_target(cells(size, places.device).expand(len(places), 2, size, size), places)
    found = torch.isfinite(distance)
    index = nearest.flatten(1)
    where = places.gather(1, index[..., None].expand(-1, -1, 2)).transpose(1, 2).reshape(len(places), 2, size, size)
    offset = torch.where(found[:, None], where - cells(size, places.device), 0.0)
    brightness = intensity.gather(1, index).reshape(distance.shape) / SCALE
    return Answers((distance <= REACH).float(), offset, torch.where(found, brightness, 0.0))


def nearest_target(positions: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance to and number of the target nearest to each position: (B, 2, n, n), (B, K, 2) -> (B, n, n) twice; infinite without targets."""
    squares = (positions[:, None] - places[..., None, None]).square().sum(2)  # (B, K, n, n)
    smallest, nearest = squares.min(1)
    return smallest.sqrt(), nearest


def hit_rate(distance: torch.Tensor, ratio: int) -> torch.Tensor:
    """Share of CSO-mAP's thresholds that a distance [sub-pixels] meets.

    >>> [round(value, 2) for value in hit_rate(torch.tensor([0.0, 0.36, 0.9]), 3).tolist()]
    [1.0, 0.6, 0.0]
    """
    thresholds = ratio * torch.tensor(DISTANCE_THRESHOLDS, device=distance.device)
    return (distance[..., None] <= thresholds).float().mean(-1)


def detector_loss(detector: Detector, maps: Maps, places: torch.Tensor, intensity: torch.Tensor) -> dict[str, torch.Tensor]:
    """Terms of the training loss, each a sum over cells per answering cell; their sum is minimised.

    Cross-entropy of ``presence`` and of ``confidence`` (whose answer is the hit rate of the position said just now; no gradient passes through it), and
    the smooth absolute error of ``offset`` and ``intensity`` in the cells that should answer. Arguments as in :func:`encode`.
    """
    truth = encode(places, intensity, maps.presence.shape[-1])
    answering = truth.presence.sum().clamp(min=1)
    with torch.no_grad():
        distance, _ = nearest_target(detector.positions(maps.offset), places)
        reached = hit_rate(distance, detector.ratio)
    weight = truth.presence[:, None]
    return {
        "presence": cross_entropy(maps.presence, truth.presence, reduction="sum") / answering,
        "confidence": cross_entropy(maps.confidence, reached, reduction="sum") / answering,
        "offset": smooth_l1_loss(weight * maps.offset, weight * truth.offset, reduction="sum", beta=SOFTNESS) / answering,
        "intensity": smooth_l1_loss(truth.presence * maps.intensity, truth.presence * truth.intensity, reduction="sum", beta=SOFTNESS) / answering,
    }


class Found(NamedTuple):
    """Detections of a batch of images, most confident first; padded, ``kept`` says which are real."""

    places: np.ndarray  # (B, M, 2) sub-pixel indices of the image, fractional
    intensity: np.ndarray  # (B, M) grey levels
    score: np.ndarray  # (B, M) 0 .. 1
    kept: np.ndarray  # (B, M) bool


@torch.no_grad()
def decode(detector: Detector, maps: Maps, ranking: str = "confidence") -> Found:
    """Read the targets off the maps: cells with a presence of at least one half, thinned out so that one answer stays per target.

    Parameters
    ----------
    detector : Detector
        Says whether positions stay on the grid.
    maps : Maps
        Its output.
    ranking : {"confidence", "presence"}
        What the score is.

    Raises
    ------
    ValueError
        For another ranking.
    """
    if ranking not in RANKINGS:
        raise ValueError(f"decode: ranking must be one of {', '.join(RANKINGS)}; got {ranking!r}")
    said = maps.presence.flatten(1) >= 0
    score = torch.where(said, torch.sigmoid(getattr(maps, ranking).flatten(1).double()), -1.0)
    capacity = max(1, int(said.sum(1).max())) if len(said) else 1
    score, order = torch.sort(score, dim=1, descending=True, stable=True)
    score, order = score[:, :capacity], order[:, :capacity]
    pick = lambda places: places.flatten(2).transpose(1, 2).gather(1, order[..., None].expand(-1, -1, 2)).double()
    free, places = pick(cells(maps.offset.shape[-1], maps.offset.device) + maps.offset), pick(detector.positions(maps.offset))
    kept = thin_out(free, score >= 0, detector.ratio * SEPARATION)
    intensity = SCALE * maps.intensity.flatten(1).gather(1, order).double()
    return Found(*(value.cpu().numpy() for value in (places, intensity, score, kept)))


def thin_out(free: torch.Tensor, kept: torch.Tensor, separation: float) -> torch.Tensor:
    """Which answers stay, best first: each one that stays removes those after it that mean the same target.

    Parameters
    ----------
    free : tensor (B, M, 2)
        Positions with their offsets, most confident first [sub-pixels].
    kept : bool tensor (B, M)
        Which of them are answers at all.
    separation : float
        Answers nearer than this mean the same target [sub-pixels].

    >>> line = torch.tensor([[[0.0, 0.0], [0.0, 0.5], [0.0, 1.5]]])
    >>> thin_out(line, torch.ones(1, 3, dtype=torch.bool), 1.0).tolist()
    [[True, False, True]]
    """
    kept, rank = kept.clone(), torch.arange(kept.shape[1], device=kept.device)
    for k in range(kept.shape[1]):
        same = (free - free[:, k : k + 1]).norm(dim=-1) < separation
        kept &= ~(same & kept[:, k : k + 1] & (rank > k))
    return kept


def write_detector(path, detector: Detector, header: dict) -> None:
    """Store a detector as float16 safetensors, with its options and whatever else ``header`` says; written under a temporary name, then renamed."""
    write_weights(path, detector, {**header, "kind": "detector", "ratio": detector.ratio, "options": detector.options})


def read_detector(path) -> tuple[Detector, dict]:
    """The detector in a safetensors file, in evaluation mode, and the file's header.

    Raises
    ------
    ValueError
        For a file that is damaged or holds something else.
    """
    tensors, header = read_tensors(path)
    if header.get("kind") != "detector":
        raise ValueError(f"{path} holds no detector; make one with: python reproduce/train_detectors.py --network dista-net")
    detector = Detector(header["ratio"], **header["options"])
    detector.load_state_dict(tensors)
    return detector.eval(), header
