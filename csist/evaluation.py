"""From an unmixer to scores: images to detections, methods by name, results with their provenance."""
from __future__ import annotations

import math
import platform
import subprocess
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from csist.datasets import csist100k, frames_hash
from csist.imaging import FocalPlane, SubpixelGrid, check_frames, check_plane, check_whole
from csist.networks.registry import NETWORKS, load_network, run_name, unknown_name, weights_path
from csist.scenes import Targets

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
DETECTION_THRESHOLD = 50.0  # grey levels; the toolkit's brightness_threshold, the same for every method


def detect(images, grid: SubpixelGrid, threshold: float = DETECTION_THRESHOLD) -> Targets:
    """Every sub-pixel above the threshold is one detection at its centre, brightest first (the paper's read-out; book chapter "Keeping score").

    Parameters
    ----------
    images : array (n, c*rows, c*columns)
        Sub-pixel intensities [grey levels].
    grid : SubpixelGrid
        Says where the sub-pixels lie.
    threshold : float
        Smallest intensity that counts, inclusive [grey levels].
    """
    if not (np.isscalar(threshold) and np.isreal(threshold) and 0 < threshold < math.inf):
        raise ValueError(f"detect: threshold must be an intensity > 0 in grey levels; got {threshold!r}. The paper uses 50")
    images = np.asarray(images)
    if images.ndim != 3 or images.shape[1:] != grid.shape:
        raise ValueError(f"detect: images must have shape (n, {grid.shape[0]}, {grid.shape[1]}); got {images.shape}")
    flat = np.where(np.isfinite(images), images, -np.inf).reshape(len(images), grid.shape[0] * grid.shape[1])
    count = (flat >= threshold).sum(1)
    capacity = max(1, count.max(initial=0))
    order = np.argsort(-flat, axis=1, kind="stable")[:, :capacity]
    xy = grid.to_position(np.stack(np.unravel_index(order, grid.shape), axis=-1))
    intensity = np.take_along_axis(flat, order, axis=1).astype(np.float64)
    return Targets(xy, intensity, count)


WINDOW = 5  # pixels; beyond +-2 px of its own pixel a target of 250 grey levels never reaches half a grey level


def window_origin(cell, size: int) -> np.ndarray:
    """Top-left pixel of the window about a cluster's pixel (n, 2), moved inwards so that it lies on the frame."""
    return np.clip(np.asarray(cell) - WINDOW // 2, 0, size - WINDOW)


def light_windows(frames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows about the centres of light: (windows (n, 5, 5), origins (n, 2), whole (n,): True where nothing but zeros is left outside).

    >>> frame = np.zeros((1, 11, 11)); frame[0, 4:7, 0:3] = 9
    >>> windows, origin, whole = light_windows(frame)
    >>> origin.tolist(), whole.tolist()
    ([[3, 0]], [True])
    """
    frames = np.asarray(frames)
    size, light = frames.shape[-1], frames.astype(np.float64)
    total = light.sum((1, 2))
    pixels = np.arange(size)
    centre = np.stack([light.sum(2) @ pixels, light.sum(1) @ pixels], axis=-1) / np.where(total == 0, 1.0, total)[:, None]
    origin = window_origin(np.clip(np.rint(centre), 0, size - 1).astype(np.int64), size)
    rows, columns = (origin[:, axis, None] + np.arange(WINDOW) for axis in (0, 1))
    windows = frames[np.arange(len(frames))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return windows, origin, np.count_nonzero(windows, axis=(1, 2)) == np.count_nonzero(frames, axis=(1, 2))


def shows_windows(network) -> bool:
    """Whether a network's answers on windows of light are those on whole frames; of a network or its class."""
    return network.windows and not network.global_statistics


def quick_way(network) -> dict:
    """Options of :func:`predict` for the fastest way that hardly moves a network's scores: windows in bfloat16 where it may be shown them."""
    return {"windows": True, "precision": "bfloat16"} if shows_windows(network) else {}


def check_device(device) -> torch.device:
    """A device of PyTorch that is there; a clear error for anything else."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'cpu' or 'cuda', or one of several GPUs such as 'cuda:1'; got {device!r}") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} was asked for, but PyTorch sees no such GPU; use device='cpu'")
    return found


def predict(
    network, frames, *, batch: int = 256, device: str | torch.device = "cpu", precision: str = "float32", windows: bool = False, progress: bool = False
) -> np.ndarray:
    """Sub-pixel images of a network for (n, 11, 11) frames, as (n, 11c, 11c) float32.

    Parameters
    ----------
    network : UnmixingNetwork
        Fresh or trained.
    frames : array (n, 11, 11) or (11, 11)
        Grey levels; how many a sensor can report is not checked here.
    batch : int
        Frames that run together, 1 or more; a network that runs on one batch size only gets that, the last batch filled up with empty frames.
    device : str
        ``"cpu"`` or ``"cuda"``.
    precision : {"float32", "bfloat16", "bf16"}
        Of the convolutions; the physics stays in float32. The last two are the same.
    windows : bool
        Show the network only the 5 x 5 pixels that hold all the light, as its training does, and leave the rest of the image empty: about five times
        faster. The answer is not that of the whole frame to the last digit. Frames whose light does not fit into a window run whole.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        For frames of the wrong shape or that are not finite, a batch below 1, an unknown precision, or a device that is not there.
    """
    frames = check_frames(frames, network.plane.shape)
    batch, device = check_whole(batch, "predict: batch"), check_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"predict: precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    network = network.to(device).eval().to(memory_format=torch.channels_last)
    ratio, side = network.ratio, network.size * network.ratio
    run = _Batches(network, batch, device, precision, progress)
    if not windows or network.size <= WINDOW:
        return run(frames)
    cut, origin, whole = light_windows(frames)
    images = np.zeros((len(frames), side, side), dtype=np.float32)
    rows, columns = (ratio * origin[whole, axis, None] + np.arange(WINDOW * ratio) for axis in (0, 1))
    images[np.flatnonzero(whole)[:, None, None], rows[:, :, None], columns[:, None, :]] = run(cut[whole], origin[whole])
    images[~whole] = run(frames[~whole])
    return images


class _Batches:
    """A network applied batch by batch."""

    def __init__(self, network, batch: int, device: torch.device, precision: str, progress: bool):
        self.network, self.batch, self.device, self.progress = network, network.batch_size or batch, device, progress
        self.halved = PRECISIONS[precision] is torch.bfloat16

    @torch.no_grad()
    def __call__(self, frames, origin=None) -> np.ndarray:
        side = np.shape(frames)[-1] * self.network.ratio
        images = np.empty((len(frames), side, side), dtype=np.float32)
        starts = range(0, len(frames), self.batch)
        if self.progress:
            from tqdm.auto import tqdm

            starts = tqdm(starts, unit_scale=self.batch, unit="frame", disable=None)
        for start in starts:
            piece = slice(start, start + self.batch)
            shown = torch.from_numpy(np.require(frames[piece], requirements=("C", "W"))).to(self.device).float()
            corner = None if origin is None else torch.from_numpy(origin[piece]).to(self.device)
            count, missing = len(shown), self.batch - len(shown) if self.network.batch_size else 0
            if missing:
                shown = nn.functional.pad(shown, (0, 0, 0, 0, 0, missing))
                corner = None if corner is None else nn.functional.pad(corner, (0, 0, 0, missing))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.halved):
                images[piece] = self.network(shown, corner)[:count].float().cpu().numpy()
        return images


def list_methods() -> list[str]:
    """Names that :func:`unmix` takes, model-based ones first."""
    return [*MODEL_BASED, *CONTINUOUS, *NETWORKS]


def unmix(frames, method: str = "dista-net", ratio: int = 3, *, plane: FocalPlane | None = None, threshold: float | None = None, **options) -> Targets:
    """Say how many targets each frame holds, where they are and how bright (book chapter "A blob in the sky").

    Parameters
    ----------
    frames : array (n, rows, columns) or (rows, columns)
        Grey levels; the networks take 11 x 11 pixels, "off-grid" finds and unmixes any number of clusters on a frame of any size.
    method : str
        One of :func:`list_methods`.
    ratio : int
        Sub-pixel ratio c; "off-grid" has no grid and takes no notice of it.
    plane : FocalPlane, optional
        Optics and sensor that made the frames; by default the paper's. A network answers for the optics that it was trained for only.
    threshold : float, optional
        Detection threshold [grey levels]; by default the method's own (50 in the paper). "off-grid" has none.
    options
        Passed to the method, for example ``tier="fast"`` and ``prior=Prior(...)`` to "off-grid", ``run="dista-net-c3-seed1"`` or an option of
        :func:`predict` to a network.

    Returns
    -------
    Targets
        Estimated positions, intensities and counts, brightest first; from "off-grid" also errors and hit probabilities (``sigma``, ``score``).

    Raises
    ------
    ValueError
        For an unknown method; frames of the wrong shape, with non-finite values or above the sensor's full scale; a plane that a network was not trained for;
        a threshold for a method that has none.
    TypeError
        For a plane that is no FocalPlane.
    FileNotFoundError
        For a network that has not been trained yet.
    ImportError
        For "off-grid" without numba.
    """
    plane = check_plane(plane)
    if method not in list_methods():
        raise unknown_name(method, list_methods())
    frames = check_frames(frames, plane.shape, plane.full_scale)
    return _unmixer(method)(frames, plane, ratio, threshold, **options)


def evaluate(method: str, split: str = "test", size: int | None = None, ratio: int = 3, *, resamples: int = 200, seed: int = 0, **options) -> dict:
    """Score a method on a split of CSIST-100K: the scores of :func:`csist.metrics.score_report` with their provenance, as plain JSON values.

    ``ratio`` is None in the result of a method without a grid; ``weights`` is the file that a network's weights came from, None without such a file.
    Further options go to the method, as in :func:`unmix`.
    """
    from csist.metrics import score_report

    data = csist100k(split, size)
    start = time.perf_counter()
    estimate = unmix(data.frames, method, ratio, **options)
    seconds = time.perf_counter() - start
    return {
        "method": method,
        "ratio": ratio if has_grid(method) else None,
        "weights": str(weights_path(options.get("run") or run_name(method, ratio))) if method in NETWORKS else None,
        "split": split,
        "frames": len(data.frames),
        "frames_sha256": frames_hash(data),
        "scores": score_report(estimate, data.targets, resamples=resamples, seed=seed),
        "frames_per_second": len(data.frames) / seconds,
        "provenance": provenance(),
    }


def provenance() -> dict:
    """Where a number was made: package versions, machine, commit, date."""
    versions = {}
    for package in ("csist", "torch", "numpy", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "commit": current_commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def device_name() -> str:
    """The accelerator's name where there is one, else the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def current_commit() -> str | None:
    """Short hash of the repository's commit, with ``+`` if the package differs from it; None outside a repository."""
    folder = Path(__file__).resolve().parent
    try:
        run = lambda *words: subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()
        return run("rev-parse", "--short=12", "HEAD") + ("+" if run("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


# Methods: an unmixer is called as unmixer(frames, plane, ratio, threshold, **options) and gives Targets -------------------------------------


def has_grid(method: str) -> bool:
    """Whether a method answers with sub-pixel images, whose bright sub-pixels are its detections."""
    return method not in ("off-grid", *CONTINUOUS)


def _unmixer(method: str):
    """The unmixer of this name."""
    own = MODEL_BASED | CONTINUOUS
    return own[method] if method in own else _on_grid(partial(_network, method))


def _on_grid(solve):
    """The unmixer that reads its targets off the sub-pixel images of ``solve(frames, plane, ratio)``, which also says its own threshold."""

    def unmixer(frames, plane, ratio, threshold, **options):
        grid = SubpixelGrid(plane.shape, ratio)
        images, own_threshold = solve(frames, plane, ratio, **options)
        return detect(images, grid, own_threshold if threshold is None else threshold)

    return unmixer


def _network(name, frames, plane, ratio, run=None, **options):
    network = load_network(name, ratio, run)
    if any(getattr(plane, what) != getattr(network.plane, what) for what in ("shape", "sigma", "bits", "clip")):
        raise ValueError(
            f"unmix: {name} is trained for {network.plane}; got {plane}. 'off-grid', 'fista' and 'omp' take any; "
            "csist.evaluation.predict(csist.load_network(...), frames) answers whatever the optics"
        )
    return predict(network, frames, **options), DETECTION_THRESHOLD


def _ista(frames, plane, ratio, settings=None, **changes):
    """ISTA as the paper ran it; Table 1's first row."""
    from csist.solvers.ista import PAPER, unmix_ista

    settings = settings or PAPER
    return unmix_ista(frames, plane, ratio, settings, **changes), settings.threshold


def _fista(frames, plane, ratio, settings=None, **changes):
    """Non-negative FISTA without the saturated pixels, tuned on validation: the best that sparse recovery on the grid does here."""
    from csist.solvers.ista import TUNED

    return _ista(frames, plane, ratio, settings or TUNED, **changes)


def _omp(frames, plane, ratio, **options):
    from csist.solvers.greedy import omp

    return omp(frames, plane, SubpixelGrid(plane.shape, ratio), **options), DETECTION_THRESHOLD


def _off_grid(frames, plane, ratio, threshold, **options):
    """The posterior of the imaging model; needs no grid and no threshold."""
    from csist.solvers.offgrid import unmix_offgrid

    if threshold is not None:
        raise ValueError("method 'off-grid' has no detection threshold: it weighs how many targets there are; leave threshold out")
    return unmix_offgrid(frames, plane, **options)


def _continuous(frames, plane, ratio, threshold, **options):
    """The network that answers with positions; needs no grid and no threshold."""
    from csist.networks.continuous import unmix_continuous

    if threshold is not None:
        raise ValueError("method 'continuous' has no detection threshold: it says how many targets there are; leave threshold out")
    return unmix_continuous(frames, plane, **options)


MODEL_BASED = {"ista": _on_grid(_ista), "fista": _on_grid(_fista), "omp": _on_grid(_omp), "off-grid": _off_grid}
CONTINUOUS = {"continuous": _continuous}  # networks that answer with positions instead of an image
