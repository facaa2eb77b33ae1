"""An unmixing network and a detector behind it: frames to images to targets, the detector's training, and the rows of its results page.

The network is trained first and stays as it is. Its images of the training frames are computed once and kept in the data cache; the detector learns
from their windows of light (:func:`csist.evaluation.light_windows`), which hold all that a whole image would show it.
"""
from __future__ import annotations

import hashlib
import os
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from csist.checkpoints import optimiser_tensors, read_checkpoint, restore_optimiser, write_checkpoint
from csist.datasets import Frames, cache_folder, csist100k, frames_hash
from csist.evaluation import WINDOW, light_windows, predict, provenance
from csist.imaging import SubpixelGrid
from csist.metrics import cso_map, score_report
from csist.networks.detector import Detector, decode, detector_loss, read_detector, write_detector
from csist.networks.registry import read_weights, run_name
from csist.networks.unfolding import UnmixingNetwork
from csist.scenes import Targets
from csist.training import Phase, Run, TrainingSet, turn, write_json

BLOCK = 4_000  # frames whose images share a file of the cache: a minute's work, which is the most that an interruption can lose
PRECISION = "bfloat16"  # of the images that a detector learns from; scores are computed in float32, a percent away and twice as slow
BATCH = 256  # images that a detector reads together when it is not trained
STATE = ("step", "seconds", "cpu_seconds", "history")  # of a training, kept in its checkpoint

# ---- frames to targets ------------------------------------------------------------------------------------------------


class Pipeline(NamedTuple):
    """A network that unmixes and a detector that reads its images; call it with frames (n, 11, 11) to get their Targets."""

    network: UnmixingNetwork
    detector: Detector

    def __call__(self, frames, *, device: str = "cpu", ranking: str = "confidence") -> Targets:
        """Unmix and detect.

        Parameters
        ----------
        frames : array (n, 11, 11)
            Grey levels.
        device : str
            ``"cpu"`` or ``"cuda"``.
        ranking : {"confidence", "presence"}
            What the detections' score is.
        """
        return self.read(predict(self.network, frames, windows=True, device=device), frames, device=device, ranking=ranking)

    def read(self, images, frames, *, device: str = "cpu", ranking: str = "confidence") -> Targets:
        """Detect in images (n, 11c, 11c) that the network made of the frames; frames whose light does not fit into a window are read whole."""
        _, origin, whole = light_windows(frames)
        lists = [None] * len(frames)
        for chosen, pieces, corner in (
            (np.flatnonzero(whole), cut_windows(images[whole], origin[whole], self.detector.ratio), origin[whole]),
            (np.flatnonzero(~whole), images[~whole], np.zeros((int((~whole).sum()), 2), dtype=np.int64)),
        ):
            for index, found in zip(chosen, find(self.detector, pieces, corner, device, ranking)):
                lists[index] = found
        return Targets.from_lists(*zip(*lists)) if lists else Targets(np.zeros((0, 1, 2)), np.zeros((0, 1)), np.zeros(0, dtype=int))


def cut_windows(images, origin, ratio: int) -> np.ndarray:
    """The windows (n, 5c, 5c) of sub-pixel images (n, 11c, 11c) that begin at the pixels ``origin`` (n, 2)."""
    rows, columns = (ratio * origin[:, axis, None] + np.arange(WINDOW * ratio) for axis in (0, 1))
    return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


@torch.no_grad()
def find(detector: Detector, windows, origin, device: str = "cpu", ranking: str = "confidence") -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions (m, 2) [px], intensities (m,) [grey levels] and scores (m,) of each of some windows (n, cw, cw) that begin at pixels ``origin`` (n, 2)."""
    detector = detector.to(device).eval().to(memory_format=torch.channels_last)
    grid, lists = SubpixelGrid(ratio=detector.ratio), []
    for start in range(0, len(windows), BATCH):
        found = decode(detector, detector(torch.from_numpy(windows[start : start + BATCH]).float().to(device)), ranking)
        xy = grid.to_position(found.places + detector.ratio * origin[start : start + BATCH, None])
        lists += [(xy[i, kept], found.intensity[i, kept], found.score[i, kept]) for i, kept in enumerate(found.kept)]
    return lists


# ---- images, kept ------------------------------------------------------------------------------------------------------


def unmixed_windows(network: UnmixingNetwork, key: str, frames: np.ndarray, *, device: str = "cpu", deadline: float | None = None) -> np.ndarray | None:
    """A network's images of frames, cut to their windows of light: (n, 5c, 5c) float16, computed block by block and kept in the data cache.

    Parameters
    ----------
    network : UnmixingNetwork
        Trained.
    key : str
        Fingerprint of its weights, part of the cache's file names beside that of each block's frames.
    frames : array (n, 11, 11)
        Grey levels; all light of each must fit into a window, as it does for clusters in one pixel.
    device : str
        ``"cpu"`` or ``"cuda"``.
    deadline : float, optional
        On the clock ``time.monotonic``; None is returned when it passes, and the next call goes on after the last finished block.

    Raises
    ------
    ValueError
        If the light of a frame reaches beyond its window.
    """
    if not light_windows(frames)[2].all():
        raise ValueError(f"unmixed_windows: the light of a frame reaches beyond {WINDOW} x {WINDOW} pixels; a detector is trained on single clusters")
    blocks = []
    for start in range(0, len(frames), BLOCK):
        if deadline is not None and time.monotonic() >= deadline:
            return None
        blocks.append(_block(network, key, np.ascontiguousarray(frames[start : start + BLOCK]), device))
    return np.concatenate(blocks)


def _block(network, key: str, frames: np.ndarray, device: str) -> np.ndarray:
    """One block, from the cache if it is there."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    name = hashlib.sha256(f"{key} {hashlib.sha256(frames.tobytes()).hexdigest()} {PRECISION}".encode()).hexdigest()[:16]
    path = cache_folder() / f"unmixed-{name}.safetensors"
    if path.is_file():
        try:
            return load_file(path)["windows"]
        except (SafetensorError, KeyError) as error:
            warnings.warn(f"cached images {path} are damaged ({error}); computing them again", stacklevel=3)
    images = predict(network, frames, windows=True, precision=PRECISION, device=device)
    windows = cut_windows(images, light_windows(frames)[1], network.ratio).astype(np.float16)  # holds every bfloat16 of this size exactly
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_file({"windows": windows}, temporary)
        os.replace(temporary, path)
    except OSError as error:
        warnings.warn(f"could not cache the images in {path.parent} ({error}); set CSIST_CACHE to a folder that can be written", stacklevel=3)
    return windows


# ---- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectorRecipe:
    """Everything that determines a detector besides the network before it; the defaults take minutes on one core."""

    offsets: bool = True  # False: nailed to the grid
    features: int = 64
    blocks: int = 2
    seed: int = 0
    samples: int = 400_000  # windows shown; 80,000 are one pass
    rate: float = 3e-3  # peak of Adam's learning rate: 5 % warm-up, then half a cosine to zero. Three times less learned far less from 40,000 windows
    batch: int = 64
    symmetries: bool = True  # turn and mirror each window at random
    train_size: int = 80_000
    val_size: int = 2_000  # validation frames scored after each epoch; the best score picks the weights
    test_size: int | None = None  # None: all 10,000, scored once
    epoch: int = 40_000  # windows between two validations

    def as_run(self) -> Run:
        """The same as a training run, whose schedule is a pure function of the step."""
        return Run("detector", "detector", seed=self.seed, phases=(Phase("windows", self.samples, self.rate),), batch=self.batch, symmetries=self.symmetries)


def detector_name(network: str, offsets: bool = True, seed: int = 0, ratio: int = 3) -> str:
    """Name of the run that trains a detector behind a network.

    >>> detector_name("ista-net+"), detector_name("dista-net", offsets=False)
    ('ista-net-plus-detector-c3-seed0', 'dista-net-detector-grid-c3-seed0')
    """
    return run_name(f"{network}-detector{'' if offsets else '-grid'}", ratio, seed)


class WindowSet:
    """A network's windows with their targets in sub-pixels of the window; which ones make up a batch is a pure function of (seed, step)."""

    def __init__(self, data: Frames, windows: np.ndarray, ratio: int, seed: int):
        mask, origin = data.targets.mask, light_windows(data.frames)[1]
        grid = SubpixelGrid(data.frames.shape[1:], ratio)
        xy = np.where(mask[..., None], data.targets.xy, 0.0) - origin[:, None]
        self.places = torch.from_numpy(np.where(mask[..., None], ratio * xy + grid.offset, np.inf)).float()  # the inverse of grid.to_position
        self.intensity = torch.from_numpy(np.where(mask, data.targets.intensity, 0.0)).float()
        self.windows, self.order = torch.from_numpy(windows), TrainingSet(data, ratio, seed)

    def batch(self, step: int, size: int, symmetries: bool):
        """(windows (B, n, n), places (B, K, 2), intensities (B, K)) of a step."""
        numbers = self.order.numbers(step, size)
        windows, places = self.windows[numbers].float(), self.places[numbers]
        if symmetries:
            turns = self.order.turns(step, size)
            windows, places = turn(windows, turns), turn_places(places, turns, windows.shape[-1])
        return windows, places, self.intensity[numbers]


def turn_places(places: torch.Tensor, turns: torch.Tensor, size: int) -> torch.Tensor:
    """Positions (B, K, 2) in an image after :func:`csist.training.turn`: mirror rows, mirror columns, transpose; padding stays infinite.

    >>> turn_places(torch.tensor([[[0.0, 0.5]]]), torch.tensor([[True, False, True]]), 3).tolist()
    [[[0.5, 2.0]]]
    """
    places = torch.where(turns[:, None, :2] & torch.isfinite(places), size - 1 - places, places)
    return torch.where(turns[:, None, 2:], places.flip(-1), places)


class DetectorTrainer:
    """Trains a detector on a network's windows, on one device; a checkpoint after each epoch, and at a deadline, lets it go on where it was.

    Parameters
    ----------
    recipe : DetectorRecipe
        What to train.
    path : path
        The checkpoint.
    train, val : (Frames, array (n, 5c, 5c))
        Frames and their windows.
    ratio : int
        Sub-pixel ratio c.
    key : str
        Fingerprint of the network; a checkpoint of another network, recipe or data is refused.
    device : str
        ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, recipe: DetectorRecipe, path, train, val, *, ratio: int = 3, key: str = "", device: str = "cpu"):
        self.recipe, self.run, self.path, self.device = recipe, recipe.as_run(), Path(path), device
        self.owner = {"recipe": asdict(recipe), "ratio": ratio, "network": key, "train": frames_hash(train[0]), "val": frames_hash(val[0])}
        self.set, (self.val, self.val_windows) = WindowSet(*train, ratio, recipe.seed), val
        torch.manual_seed(recipe.seed)
        detector = Detector(ratio, recipe.features, recipe.blocks, recipe.offsets)
        self.detector = detector.to(device).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.Adam(self.detector.parameters(), lr=recipe.rate)
        self.step, self.seconds, self.cpu_seconds, self.history, self.best = 0, 0.0, 0.0, [], None

    def optimise(self) -> dict[str, torch.Tensor]:
        """One step; returns the loss's terms."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.run.rate(self.step)
        windows, places, intensity = (value.to(self.device) for value in self.set.batch(self.step, self.recipe.batch, self.recipe.symmetries))
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            maps = self.detector.train()(windows)
        terms = detector_loss(self.detector, maps, places, intensity)
        self.optimiser.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        self.optimiser.step()
        self.step += 1
        return {name: term.detach() for name, term in terms.items()}

    def validate(self, terms: dict[str, float]) -> None:
        """Score the validation frames and keep the best weights."""
        estimate = Targets.from_lists(*zip(*find(self.detector, self.val_windows, light_windows(self.val.frames)[1], self.device)))
        score = cso_map(estimate, self.val.targets)
        entry = {"samples": self.step * self.recipe.batch, "view": "windows", "loss": sum(terms.values()), "terms": terms}
        entry |= {"val_cso_map": score.map, "val_ap": score.ap.tolist(), "val_detections": score.n_detections, "seconds": self.seconds}
        if self.best is None or entry["val_cso_map"] > max(before["val_cso_map"] for before in self.history):
            self.best = {name: value.detach().cpu().clone() for name, value in self.detector.state_dict().items()}
        self.history.append(entry)

    def fit(self, deadline: float | None = None, progress: bool = True) -> bool:
        """Train to the end (True) or until the deadline on ``time.monotonic`` (False); a checkpoint is kept either way."""
        from tqdm.auto import tqdm

        total, epoch = self.run.steps[0], max(1, self.recipe.epoch // self.recipe.batch)
        bar = tqdm(total=total, initial=self.step, desc="detector", unit="step", disable=None if progress else True)
        losses, late = [], False
        while self.step < total and not late:
            tick, cpu = time.perf_counter(), time.process_time()
            losses.append(self.optimise())
            bar.update()
            late = deadline is not None and time.monotonic() >= deadline
            self.seconds += time.perf_counter() - tick
            self.cpu_seconds += time.process_time() - cpu
            due = self.step % epoch == 0 or self.step == total
            if due:
                self.validate({name: float(torch.stack([terms[name] for terms in losses]).mean()) for name in losses[0]})
                losses = []
            if due or late:
                self.save()
        bar.close()
        return self.step >= total

    def save(self) -> None:
        """Checkpoint in one safetensors file, written then renamed; never pickle."""
        tensors = {f"detector/{name}": value for name, value in self.detector.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in (self.best or {}).items()}
        tensors |= optimiser_tensors(self.optimiser)
        header = {**self.owner, **{name: getattr(self, name) for name in STATE}}
        write_checkpoint(self.path, tensors, header)

    def resume(self) -> bool:
        """Go on from the checkpoint if there is one; False if there is none. One of another recipe, network or data is an error."""
        if not self.path.exists():
            return False
        header, part = read_checkpoint(self.path)
        if {name: header.get(name) for name in self.owner} != self.owner:
            raise ValueError(f"{self.path} belongs to another recipe, network or data; delete it to start afresh")
        self.detector.load_state_dict(part("detector/"))
        self.best = part("best/") or None
        header.setdefault("cpu_seconds", header["seconds"])  # checkpoints from before it was counted
        for name in STATE:
            setattr(self, name, header[name])
        restore_optimiser(self.optimiser, part)
        return True


def train_detector(
    network: str, folder, recipe: DetectorRecipe | None = None, *, ratio: int = 3, device: str = "cpu", time_budget: float | None = None, progress: bool = True
) -> dict | None:
    """Train a detector behind a network, score the test split once and write its result and weights; None if the time budget ended first.

    Parameters
    ----------
    network : str
        Name of the network; its weights ``weights/<network>-c<ratio>-seed<seed>.safetensors`` must be in ``folder``.
    folder : path
        Holds ``weights``, ``results`` and ``checkpoints``.
    recipe : DetectorRecipe, optional
        What to train; its seed is also that of the network.
    ratio : int
        Sub-pixel ratio c.
    device : str
        ``"cpu"`` or ``"cuda"``.
    time_budget : float, optional
        Seconds; the next call goes on from the last block of images or the last step.
    progress : bool
        Show a progress bar.

    Raises
    ------
    FileNotFoundError
        If the network has not been trained; the message says how to train it.
    """
    recipe, folder = recipe or DetectorRecipe(), Path(folder)
    deadline = None if time_budget is None else time.monotonic() + time_budget
    name, path = detector_name(network, recipe.offsets, recipe.seed, ratio), network_weights(network, folder, recipe.seed, ratio)
    unmixer, key = read_weights(path)[0], file_hash(path)
    data = {split: csist100k(split, size) for split, size in (("train", recipe.train_size), ("val", recipe.val_size))}
    windows = {split: unmixed_windows(unmixer, key, part.frames, device=device, deadline=deadline) for split, part in data.items()}
    if any(part is None for part in windows.values()):
        return None
    train, val = ((data[split], windows[split]) for split in ("train", "val"))
    trainer = DetectorTrainer(recipe, folder / "checkpoints" / f"{name}.safetensors", train, val, ratio=ratio, key=key, device=device)
    trainer.resume()
    return finish_detector(trainer, unmixer, network, path, name, folder) if trainer.fit(deadline, progress) else None


def network_weights(network: str, folder, seed: int = 0, ratio: int = 3) -> Path:
    """The weights file of a network's run in ``folder``, or an error that says how to make it."""
    run = run_name(network, ratio, seed)
    path = Path(folder) / "weights" / f"{run}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no weights of {run!r} in {path.parent}; train it first: python reproduce/queue.py --only {run}")
    return path


def file_hash(path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def finish_detector(trainer: DetectorTrainer, unmixer: UnmixingNetwork, network: str, network_path: Path, name: str, folder: Path) -> dict:
    """Store the best epoch's weights as float16, score the test split with exactly those, and write the result file."""
    recipe, ratio, path = trainer.recipe, trainer.detector.ratio, folder / "weights" / f"{name}.safetensors"
    (folder / "results").mkdir(parents=True, exist_ok=True)
    trainer.detector.load_state_dict(trainer.best)
    write_detector(path, trainer.detector, {"run": name, "network": network, "network_run": network_path.stem, "seed": recipe.seed})
    test = csist100k("test", recipe.test_size)
    estimate = Pipeline(unmixer, read_detector(path)[0])(test.frames, device=trainer.device)
    result = {
        "name": name,
        "network": network,
        "ratio": ratio,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in trainer.detector.parameters()),
        "network_parameters": sum(p.numel() for p in unmixer.parameters()),
        "train_sha256": trainer.owner["train"],
        "weights_sha256": file_hash(path),
        "network_weights_sha256": file_hash(network_path),
        "precision": "bf16",
        "hours": trainer.seconds / 3600,
        "cpu_hours": trainer.cpu_seconds / 3600,
        "history": trainer.history,
        "selected": max(trainer.history, key=lambda entry: entry["val_cso_map"]),
        "test": {"frames": len(test.frames), "frames_sha256": frames_hash(test), **score_report(estimate, test.targets, resamples=200, seed=0)},
        "provenance": provenance(),
    }
    write_json(folder / "results" / f"{name}.json", result)
    trainer.path.unlink(missing_ok=True)
    return result
