"""Training: one visible loop, on one device or many, that can be stopped at any moment and goes on where it was.

A run is data (:class:`Run`): method, ratio, seed and phases. Each phase shows the network windows or whole frames:

- ``windows``: the 5 x 5 pixels about the cluster, moved inwards at the frame's border. They hold every grey level above zero that the cluster can cause
  and cost a fifth of a frame; the network's border padding then coincides with the frame's border exactly where the cluster is near it.
- ``frames``: the whole 11 x 11 frame, as the paper trains.

Derived in the book's chapter "Training it".
"""
from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from csist.checkpoints import optimiser_tensors, read_checkpoint, restore_optimiser, write_checkpoint
from csist.datasets import Frames, csist100k, frames_hash
from csist.evaluation import DETECTION_THRESHOLD, WINDOW, check_device, detect, predict, provenance, window_origin
from csist.imaging import FocalPlane, SubpixelGrid, check_frames, check_whole, is_real, lies_on_frame
from csist.networks import create_network
from csist.networks.registry import network_of, read_weights, write_weights
from csist.scenes import Targets

CHECKPOINT_SECONDS = 45.0


def _make_plain(settings) -> None:
    """Turn NumPy's numbers among a frozen dataclass's fields into Python's, which JSON can hold."""
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if isinstance(value, np.generic):
            object.__setattr__(settings, entry.name, value.item())


def _check_positive(value, what: str) -> None:
    """Refuse what is no finite number above zero; the error begins with ``what``."""
    if not (is_real(value) and value > 0):
        hint = ". Leave quotes out, and write 1.0e-3 in YAML, which reads 1e-3 as text" if isinstance(value, str) else ""
        raise ValueError(f"{what} must be a positive number; got {value!r}{hint}")


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own view of the data and its own learning-rate cycle."""

    view: str = "windows"  # "windows" or "frames"
    samples: int = 80_000  # training samples shown; 80,000 are one epoch
    rate: float = 1e-3  # peak learning rate of Adam
    schedule: str = "cosine"  # "cosine": 5 % linear warm-up, then half a cosine to zero; "constant"

    def __post_init__(self):
        if self.view not in ("windows", "frames") or self.schedule not in ("cosine", "constant"):
            raise ValueError(f"Phase: view must be windows or frames, schedule cosine or constant; got {self.view!r}, {self.schedule!r}")
        _make_plain(self)
        check_whole(self.samples, "Phase: samples")
        _check_positive(self.rate, "Phase: rate")


@dataclass(frozen=True)
class Run:
    """Everything that determines a training run; one entry of ``reproduce/runs.yaml``."""

    name: str
    network: str
    ratio: int = 3
    seed: int = 0
    phases: tuple[Phase, ...] = (Phase(),)
    options: dict = field(default_factory=dict)  # of the network's class; a plane is the FocalPlane's fields, for example {"plane": {"sigma": 0.6}}
    batch: int = 64
    clip: float | None = None  # largest norm of a step's gradient; see reproduce/runs.yaml for who needs it
    symmetries: bool = False  # turn and mirror each sample at random, differently in every pass: optics and sensor look the same from all eight sides
    fresh: bool = False  # simulate new training frames for every pass through the data, an endless stream of the same law
    average: float | None = None  # decay of a running average of the weights, which is what is validated and kept; for example 0.999
    target_weight: float = 1.0  # weight in the loss of a sub-pixel that holds a target; the others weigh 1
    train_size: int = 80_000
    val_size: int = 2_000  # validation frames scored after each epoch; the best score picks the weights
    test_size: int | None = None  # None: all 10,000, scored once
    epoch: int = 80_000  # samples between two validations

    @classmethod
    def from_dict(cls, entry: dict) -> Run:
        """A run from plain values; unknown keys are errors."""
        phases = tuple(Phase(**phase) for phase in entry.get("phases", [{}]))
        return cls(**{**entry, "phases": phases})

    def __post_init__(self):
        _make_plain(self)
        if not (isinstance(self.name, str) and self.name) or set(self.name) & set("/\\") or self.name in (".", ".."):
            raise ValueError(f"Run: name must be the name of a file, without / or \\, for example 'dista-net-c3-seed1'; got {self.name!r}")
        if not isinstance(self.options, dict):
            raise ValueError(f"{self.name}: options must be a mapping, for example {{'stages': 4}}; got {self.options!r}")
        if not (isinstance(self.phases, (tuple, list)) and self.phases and all(isinstance(phase, Phase) for phase in self.phases)):
            raise ValueError(
                f"{self.name}: phases must be a tuple of one Phase or more, for example (Phase('frames', samples=80_000),); got {self.phases!r}. "
                "Run.from_dict takes them as mappings"
            )
        object.__setattr__(self, "phases", tuple(self.phases))
        for name in ("batch", "train_size", "val_size", "epoch"):
            check_whole(getattr(self, name), f"{self.name}: {name}")
        check_whole(self.seed, f"{self.name}: seed", 0)
        if self.test_size is not None:
            check_whole(self.test_size, f"{self.name}: test_size, where it is not None,")
        if self.clip is not None:
            _check_positive(self.clip, f"{self.name}: clip, where it is not None,")
        if self.average is not None and not (is_real(self.average) and 0 < self.average < 1):
            raise ValueError(f"{self.name}: average must be None or between 0 and 1, for example 0.999; got {self.average!r}")
        _check_positive(self.target_weight, f"{self.name}: target_weight")
        for name in ("symmetries", "fresh"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{self.name}: {name} must be True or False; got {getattr(self, name)!r}")

    @property
    def shows_windows(self) -> bool:
        """Whether any phase does."""
        return any(phase.view == "windows" for phase in self.phases)

    @property
    def steps(self) -> list[int]:
        """Optimiser steps of each phase."""
        return [-(-phase.samples // self.batch) for phase in self.phases]

    def place(self, step: int) -> tuple[int, int]:
        """(phase, step within it) of a global step."""
        for number, length in enumerate(self.steps):
            if step < length:
                return number, step
            step -= length
        return len(self.phases) - 1, self.steps[-1]

    def rate(self, step: int) -> float:
        """Learning rate at a global step: a pure function, so that a resumed run has nothing to restore."""
        number, inside = self.place(step)
        phase, length = self.phases[number], self.steps[number]
        if phase.schedule == "constant":
            return phase.rate
        warm = max(1, length // 20)
        if inside < warm:
            return phase.rate * (inside + 1) / warm
        return phase.rate * 0.5 * (1 + math.cos(math.pi * (inside - warm) / max(1, length - warm)))


def as_plain(run: Run) -> dict:
    """A run as the plain values that JSON and YAML hold."""
    return json.loads(json.dumps(asdict(run)))


def load_runs(path) -> list[Run]:
    """The runs of a YAML file such as ``reproduce/runs.yaml``, in its order; an error for two of the same name."""
    import yaml

    runs = [Run.from_dict(entry) for entry in yaml.safe_load(Path(path).read_text())["runs"]]
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: every run needs its own name; used twice: {', '.join(twice)}")
    return runs


def is_finished(run: Run, results) -> bool:
    """True if the folder ``results`` holds the result of exactly this run."""
    path = Path(results) / f"{run.name}.json"
    return path.exists() and as_plain(Run.from_dict(json.loads(path.read_text())["run"])) == as_plain(run)


class TrainingSet:
    """Frames and targets in memory as uint8 (deeper frames as float32) and index lists, on the device that trains; batches of either view are cut on demand.

    The order is a permutation drawn from (seed, pass through the data): a pure function of the step, so a resumed run sees the same batches.
    With ``fresh``, every pass after the first one has its own frames, simulated with ``plane``, a pure function of the same two numbers.
    """

    def __init__(self, data: Frames, ratio: int, seed: int, *, fresh: bool = False, plane: FocalPlane | None = None, device: str | torch.device = "cpu"):
        self.grid = SubpixelGrid(data.frames.shape[1:], ratio)
        self.seed, self.fresh, self.plane, self.device = seed, fresh, plane, torch.device(device)
        self._order, self._pass = (-1, None), 0
        self._first = data if fresh else None  # to go back to: nothing else remembers the data of the first pass
        self._load(data)

    def _load(self, data: Frames) -> None:
        mask = data.targets.mask
        index = np.zeros((*mask.shape, 2), dtype=np.int64)
        index[mask] = self.grid.to_index(data.targets.xy[mask])
        intensity = np.where(mask, data.targets.intensity, 0.0).astype(np.float32)
        frames = data.frames if data.frames.dtype == np.uint8 else data.frames.astype(np.float32)  # PyTorch cannot turn uint16
        arrays = (frames, index, intensity, window_origin(data.targets.cell, data.frames.shape[1]))
        self.frames, self.index, self.intensity, self.origin = (torch.from_numpy(array).to(self.device) for array in arrays)

    def __len__(self) -> int:
        return len(self.frames)

    def go_to(self, step: int, batch: int) -> None:
        """Have the data of a step's pass in memory."""
        number = step * batch // len(self) if self.fresh else 0
        if number != self._pass:
            # the data set's own seed is small, so these streams are never those of its splits
            seed = int(np.random.SeedSequence(self.seed, spawn_key=(9, number)).generate_state(1, np.uint64)[0])
            self._load(csist100k("train", len(self), seed, plane=self.plane, cache=False) if number else self._first)
            self._pass = number

    def numbers(self, step: int, batch: int) -> torch.Tensor:
        """Which samples make up a step's batch; batches run on across passes through the data."""
        flat = np.arange(step * batch, (step + 1) * batch)
        chosen = [self._permutation(int(p))[flat[flat // len(self) == p] % len(self)] for p in np.unique(flat // len(self))]
        return torch.from_numpy(np.concatenate(chosen)).to(self.device)

    def _permutation(self, number: int) -> np.ndarray:
        if self._order[0] != number:
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(7, number)))
            self._order = (number, rng.permutation(len(self)))
        return self._order[1]

    def turns(self, step: int, batch: int) -> torch.Tensor:
        """Which of the square's eight symmetries each sample of a step's batch goes through, (B, 3) bool: mirror rows, mirror columns, transpose."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(8, step)))
        return torch.from_numpy(rng.integers(0, 2, (batch, 3)).astype(bool)).to(self.device)

    def batch(self, numbers: torch.Tensor, view: str, turns: torch.Tensor | None = None):
        """(frames or windows (B, n, n), sub-pixel truth (B, cn, cn), window origins or None), float32; mirrored and transposed where ``turns`` says."""
        size, ratio = self.frames.shape[-1], self.grid.ratio
        frames, index, origin = self.frames[numbers], self.index[numbers], None
        if view == "windows":
            origin, size = self.origin[numbers], WINDOW
            rows, columns = (origin[:, axis, None] + torch.arange(WINDOW, device=self.device) for axis in (0, 1))
            frames = frames[torch.arange(len(numbers), device=self.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
            index = index - ratio * origin[:, None]
        truth = torch.zeros(len(numbers), size * ratio, size * ratio, device=self.device)
        # padding entries have intensity 0; clamping only keeps their meaningless index legal (Trainer refuses targets outside their window)
        index = index.clamp(0, size * ratio - 1)
        rows = torch.arange(len(numbers), device=self.device)[:, None].expand(index.shape[:2])
        truth.index_put_((rows, index[..., 0], index[..., 1]), self.intensity[numbers], accumulate=True)
        if turns is not None:
            frames, truth = turn(frames, turns), turn(truth, turns)
            if origin is not None:
                origin = torch.where(turns[:, :2], self.frames.shape[-1] - WINDOW - origin, origin)
                origin = torch.where(turns[:, 2:], origin.flip(1), origin)
        return frames.float(), truth, origin


def turn(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Mirror the rows, then the columns, then transpose, each where a sample's three flags (B, 3) say so.

    >>> turn(torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([[True, False, True]])).tolist()
    [[[3, 1], [4, 2]]]
    """
    rows, columns, transpose = turns.T[:, :, None, None]
    images = torch.where(rows, images.flip(1), images)
    images = torch.where(columns, images.flip(2), images)
    return torch.where(transpose, images.transpose(1, 2), images)


class LossModule(nn.Module):
    """Makes a network's loss its forward pass, which is what data-parallel wrappers act on, and runs it in the precision asked for."""

    def __init__(self, network, precision: str):
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, frames, truth, origin):
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network.loss(frames, truth, origin)


class Trainer:
    """Trains one run; see :func:`train` for the short way.

    Parameters
    ----------
    run : Run
        What to train.
    folder : path
        Holds the checkpoint ``<run>.safetensors`` while the run goes on.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; by default a GPU where there is one.
    precision : {"bf16", "no"}
        Mixed precision of the convolutions.
    compiled : bool
        Let ``torch.compile`` fuse the operations between the convolutions: a minute or two of compiling for faster steps. On a CPU it needs a C++
        compiler.
    data : dict of Frames, optional
        Your own frames (n, size, size) [grey levels] and their targets instead of CSIST-100K, regenerated with the network's focal plane: ``"train"``,
        ``"val"`` and, if the result is to be scored, ``"test"``.

    Raises
    ------
    ValueError
        For an unknown device or precision, data that the run cannot use, or a network that could not be stored after training.
    """

    def __init__(
        self, run: Run, folder, *, device: str | None = None, precision: str = "bf16", compiled: bool = False, data: dict[str, Frames] | None = None
    ):
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        if device not in (None, "cpu", "cuda"):
            raise ValueError(f"device must be None, 'cpu' or 'cuda'; got {device!r}")
        if device is not None:
            check_device(device)
        if precision not in ("bf16", "no"):
            raise ValueError(f"precision must be 'bf16' or 'no'; got {precision!r}")
        self.origin = provenance()  # now, not at the end: a commit made while the training goes on is not the code that it runs
        self.run, self.path, self.precision = run, Path(folder) / f"{run.name}.safetensors", precision
        # The precision is LossModule's: Accelerate allows only one in the life of a process, and a notebook may want two.
        # Without a GPU say "cpu" outright: left alone, Accelerate takes Apple's MPS, which lacks the float64 of the loss sum.
        self.engine = Accelerator(mixed_precision="no", cpu=device == "cpu" or not torch.cuda.is_available())
        if run.batch % self.engine.num_processes:
            raise ValueError(f"batch {run.batch} must be divisible by the number of processes, {self.engine.num_processes}")
        set_seed(run.seed)
        self.network = create_network(run.network, ratio=run.ratio, **run.options).to(memory_format=torch.channels_last)
        with torch.random.fork_rng(devices=[]):  # the check makes a network, and must not change what the seed gives this one
            _check_storable(run)
        self.network.target_weight = run.target_weight
        if not self.network.windows and run.shows_windows:
            raise ValueError(f"{run.name}: {run.network} works on whole frames only; give its phases the view 'frames'")
        plane = self.network.plane
        self.own_data = _check_data(run, data, plane) if data is not None else None
        data = self.own_data or {"train": csist100k("train", run.train_size, plane=plane), "val": csist100k("val", run.val_size, plane=plane)}
        self.data_hash, self.val = frames_hash(data["train"]), data["val"]
        self.label_hash = _hash(data["train"].targets, data["val"].frames, data["val"].targets)
        self.set = TrainingSet(data["train"], run.ratio, run.seed, fresh=run.fresh, plane=plane, device=self.engine.device)
        optimiser = torch.optim.Adam(self.network.parameters(), lr=run.rate(0))
        self.module, self.optimiser = self.engine.prepare(LossModule(self.network, precision), optimiser)
        self.network = self.engine.unwrap_model(self.module).network
        self.compiled = compiled
        if compiled:
            self.module.compile(dynamic=False)  # windows and frames are two shapes, each compiled once
        self.averaged = None if run.average is None else copy.deepcopy(self.network).requires_grad_(False)
        self.step, self.seconds, self.cpu_seconds, self.history, self.best = 0, 0.0, 0.0, [], None
        self.loss_sum, self.loss_count = torch.zeros((), dtype=torch.float64, device=self.engine.device), 0  # since the last validation
        self.interrupted = False  # by SIGTERM or Ctrl-C

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and whose weights are kept, the averaged one if there is one."""
        return self.network if self.averaged is None else self.averaged

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(self.run.steps)

    def fit(self, time_budget: float | None = None, progress: bool = True) -> bool:
        """Train until done (True) or until ``time_budget`` seconds are spent (False); a checkpoint is kept either way."""
        from tqdm.auto import tqdm

        if time_budget is not None and (isinstance(time_budget, bool) or not isinstance(time_budget, (int, float)) or math.isnan(time_budget)):
            raise ValueError(f"fit: time_budget must be a number of seconds, or None for no limit; got {time_budget!r}")
        bar = tqdm(total=self.total, initial=self.step, desc=self.run.name, unit="step", disable=None if progress and self.engine.is_main_process else True)
        handlers = self._catch_signals()
        try:
            self._loop(time_budget, bar)
        finally:  # after an error too, or Ctrl-C would do nothing for the rest of a notebook's life
            bar.close()
            for name, handler in handlers.items():
                signal.signal(name, handler)
        return self.step >= self.total

    def _loop(self, time_budget: float | None, bar) -> None:
        """Optimise, validate and save until all steps are done, the time is up or a signal came."""
        started = saved = time.perf_counter()
        while self.step < self.total:
            tick, cpu = time.perf_counter(), time.process_time()
            self.loss_sum += self._optimise()
            self.loss_count += 1
            self.step += 1
            bar.update()
            seen = self.step * self.run.batch
            if seen // self.run.epoch > (seen - self.run.batch) // self.run.epoch or self.step == self.total:
                self._validate(float(self.engine.reduce(self.loss_sum / self.loss_count, "mean")), seen)
                self.loss_sum.zero_()
                self.loss_count = 0
            now = time.perf_counter()
            self.seconds += now - tick
            self.cpu_seconds += time.process_time() - cpu
            out_of_time = time_budget is not None and now - started >= time_budget
            self.interrupted, out_of_time, due = self._agree(self.interrupted, out_of_time, now - saved >= CHECKPOINT_SECONDS)
            stop = self.interrupted or out_of_time
            if stop or due or self.step == self.total:
                self.save()
                saved = time.perf_counter()
            if stop:
                break

    def _optimise(self) -> torch.Tensor:
        """One optimiser step on this process's share of the batch; returns the loss."""
        number, _ = self.run.place(self.step)
        self.set.go_to(self.step, self.run.batch)
        rank, world = self.engine.process_index, self.engine.num_processes
        numbers = self.set.numbers(self.step, self.run.batch)[rank::world]
        turns = self.set.turns(self.step, self.run.batch)[rank::world] if self.run.symmetries else None
        frames, truth, origin = self.set.batch(numbers, self.run.phases[number].view, turns)
        for group in self.optimiser.param_groups:
            group["lr"] = self.run.rate(self.step)
        self.module.train()
        terms = self.module(frames, truth, origin)
        loss = sum(terms.values())
        self.optimiser.zero_grad(set_to_none=True)
        self.engine.backward(loss)
        if self.run.clip is not None:
            self.engine.clip_grad_norm_(self.module.parameters(), self.run.clip)
        self.optimiser.step()
        if self.averaged is not None:
            self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the current ones; faster in the beginning, so that the random start is soon forgotten."""
        decay = min(self.run.average, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.averaged.parameters(), self.network.parameters()):
            mean.lerp_(value, 1 - decay)
        for mean, value in zip(self.averaged.buffers(), self.network.buffers()):
            mean.copy_(value)

    def _validate(self, loss: float, seen: int) -> None:
        """Score the validation frames, each exactly once, and keep the best weights."""
        from csist.metrics import cso_map

        estimate = self.estimate(self.val.frames)
        self.network.train()
        score = cso_map(estimate, self.val.targets)
        number, _ = self.run.place(self.step - 1)
        entry = {
            "samples": seen,
            "view": self.run.phases[number].view,
            "loss": loss,
            "rate": self.run.rate(self.step - 1),
            "val_cso_map": float(score.map),
            "val_ap": [float(a) for a in score.ap],
            "seconds": self.seconds,
        }
        self.history.append(entry)
        if self.best is None or entry["val_cso_map"] > max(e["val_cso_map"] for e in self.history[:-1]):
            self.best = {k: v.detach().cpu().clone() for k, v in self.kept.state_dict().items()}

    def estimate(self, frames: np.ndarray) -> Targets:
        """Detections on frames, shared among the processes and put together in order; every frame once."""
        from accelerate.utils import gather_object

        rank, world = self.engine.process_index, self.engine.num_processes
        numbers = np.arange(len(frames))[rank::world]
        precision = "bfloat16" if self.precision == "bf16" else "float32"
        images = predict(self.kept, frames[numbers], device=self.engine.device, precision=precision)
        local = detect(images, self.set.grid, DETECTION_THRESHOLD)
        if world == 1:
            return local
        pieces = gather_object([(int(i), local.xy[k, :m], local.intensity[k, :m]) for k, (i, m) in enumerate(zip(numbers, local.count))])
        pieces.sort(key=lambda piece: piece[0])
        if [piece[0] for piece in pieces] != list(range(len(frames))):
            raise RuntimeError("the processes together must score every frame exactly once")
        return Targets.from_lists([piece[1] for piece in pieces], [piece[2] for piece in pieces])

    def _agree(self, *wishes: bool) -> list[bool]:
        """What one process wants, all do: they must leave the loop together."""
        if self.engine.num_processes == 1:
            return list(wishes)
        flags = torch.tensor([float(wish) for wish in wishes], device=self.engine.device)
        return [count > 0 for count in self.engine.reduce(flags, reduction="sum").tolist()]

    def _catch_signals(self) -> dict:
        """SIGTERM and Ctrl-C end the run cleanly after the step in progress; returns the handlers to put back afterwards."""

        def stop(*_):
            self.interrupted = True

        if threading.current_thread() is not threading.main_thread():
            return {}  # Python lets only the main thread ask for this
        return {name: signal.signal(name, stop) for name in (signal.SIGTERM, signal.SIGINT)}

    def save(self) -> None:
        """Checkpoint: weights, best weights, optimiser and progress in one safetensors file, written then renamed; never pickle."""
        loss_sum = float(self.engine.reduce(self.loss_sum, "mean"))  # of all processes, so before the others leave
        if not self.engine.is_main_process:
            return
        tensors = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in (self.best or {}).items()}
        tensors |= {f"averaged/{k}": v for k, v in (self.averaged.state_dict() if self.averaged is not None else {}).items()}
        tensors |= optimiser_tensors(self.optimiser)
        header = {
            "run": asdict(self.run),
            "data": self.data_hash,
            "labels": self.label_hash,
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "history": self.history,
            "loss": [loss_sum, self.loss_count],
        }
        write_checkpoint(self.path, tensors, header)

    def _continues(self, stored: dict, step: int) -> bool:
        """True if this run is the stored one, or the stored one with other phases after those that were shown so far."""
        own = as_plain(self.run)
        stored = as_plain(Run.from_dict(stored))
        shown = next((k for k in range(1, len(self.run.phases) + 1) if step <= sum(self.run.steps[:k])), None)
        if shown is None:
            raise ValueError(f"{self.path} has done {step:,} steps, and the run {self.run.name!r} has only {self.total:,} now; lengthen it, or delete the file")
        return {**own, "phases": own["phases"][:shown]} == {**stored, "phases": stored["phases"][:shown]}

    def resume(self) -> bool:
        """Go on from the checkpoint if there is one; False if there is none. A checkpoint of another run or other data is an error.

        A run whose last phases were changed or added may go on as long as the phases shown so far stay the same.
        """
        if not self.path.exists():
            return False
        header, part = read_checkpoint(self.path)
        same = header["data"] == self.data_hash and header.get("labels", self.label_hash) == self.label_hash  # older checkpoints tell the frames only
        if not self._continues(header["run"], header["step"]) or not same:
            raise ValueError(f"{self.path} belongs to another version of the run {self.run.name!r}; delete it to start afresh, or restore the run's entry")
        self.network.load_state_dict(part("network/"))
        if self.averaged is not None:
            self.averaged.load_state_dict(part("averaged/"))
        self.best = part("best/") or None
        self.step, self.seconds, self.history = header["step"], header["seconds"], header["history"]
        self.cpu_seconds = header.get("cpu_seconds", self.seconds)  # checkpoints from before it was counted
        self.loss_sum.fill_(header["loss"][0])
        self.loss_count = header["loss"][1]
        restore_optimiser(self.optimiser, part)
        return True


def train(
    run: Run, folder="reproduce/checkpoints", *, time_budget: float | None = None, resume: bool = True, results=None, weights=None, **options
) -> dict | None:
    """Train a run, write its weights, score the test split once; returns the result, or None if the time budget ended first.

    Parameters
    ----------
    run : Run
        What to train.
    folder : path
        For the checkpoint.
    time_budget : float, optional
        Seconds; the run stops cleanly when they are spent and goes on at the next call.
    resume : bool
        Go on from a checkpoint, if there is one.
    results, weights : path, optional
        Folders for ``<run>.json`` and ``<run>.safetensors``; by default beside ``folder``.
    options
        ``device``, ``precision``, ``compiled`` and ``data`` of :class:`Trainer`, ``progress``.

    Raises
    ------
    ValueError
        For data of your own without a ``"test"`` part, which the result needs, and whatever :class:`Trainer` refuses.
    KeyboardInterrupt
        After SIGTERM or Ctrl-C, once the checkpoint is written.
    """
    from accelerate.utils import broadcast_object_list

    progress = options.pop("progress", True)
    if options.get("data") is not None and "test" not in options["data"]:
        raise ValueError("train: data of your own needs a 'test' part, too, on which the result is scored; without one use Trainer(...).fit()")
    trainer = Trainer(run, folder, **options)
    if resume:
        trainer.resume()
    done = trainer.fit(time_budget, progress)
    if trainer.interrupted:
        raise KeyboardInterrupt(f"{run.name} was interrupted; it goes on from {trainer.path}")
    if not done:
        return None
    results, weights = Path(results or Path(folder).parent / "results"), Path(weights or Path(folder).parent / "weights")
    result = None
    if trainer.engine.is_main_process:
        result = finish(trainer, results, weights)
    return broadcast_object_list([result])[0]  # every process waits here for the first one's result


def finish(trainer: Trainer, results: Path, weights: Path) -> dict:
    """Store the best epoch's weights as float16, score the test split with exactly those, and write the run's one result file."""
    run = trainer.run
    results.mkdir(parents=True, exist_ok=True)
    weights.mkdir(parents=True, exist_ok=True)
    trainer.network.load_state_dict(trainer.best)
    write_weights(weights / f"{run.name}.safetensors", trainer.network, weights_header(run))
    test = (trainer.own_data or {}).get("test") or csist100k("test", run.test_size, plane=trainer.network.plane)
    best = max(range(len(trainer.history)), key=lambda i: trainer.history[i]["val_cso_map"])
    result = {
        "run": asdict(run),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "train_sha256": trainer.data_hash,
        "weights_sha256": hashlib.sha256((weights / f"{run.name}.safetensors").read_bytes()).hexdigest(),
        "precision": trainer.precision,
        "compiled": trainer.compiled,
        "processes": trainer.engine.num_processes,
        "hours": trainer.seconds / 3600,
        "cpu_hours": trainer.cpu_seconds / 3600,
        "history": trainer.history,
        "selected": trainer.history[best],
        "test": score_weights(weights / f"{run.name}.safetensors", data=test, device=str(trainer.engine.device)),
        "provenance": {**trainer.origin, "date": time.strftime("%Y-%m-%d", time.gmtime())},
    }
    write_json(results / f"{run.name}.json", result)
    return result


def weights_header(run: Run) -> dict:
    """What a run's weights file says of the network in it."""
    return {"network": run.network, "ratio": run.ratio, "options": run.options, "run": run.name, "seed": run.seed}


def _check_data(run: Run, data: dict[str, Frames], plane: FocalPlane) -> dict[str, Frames]:
    """Somebody's own data, which a run has to be able to use, with the frames as arrays that PyTorch knows."""
    if not (isinstance(data, Mapping) and {"train", "val"} <= set(data) <= {"train", "val", "test"}):
        given = ", ".join(map(repr, data)) if isinstance(data, Mapping) else f"no mapping but {type(data).__name__}"
        raise ValueError(f"{run.name}: data must have the parts 'train', 'val' and, if the result is scored, 'test'; got {given}")
    if run.fresh:
        raise ValueError(f"{run.name}: fresh=True simulates new frames of CSIST-100K for every pass, so it cannot go with data of your own; leave one out")
    data = {name: _check_part(part, plane, f"{run.name}: the part {name!r} of data") for name, part in data.items()}
    if run.shows_windows:
        _check_windows(data["train"], SubpixelGrid(plane.shape, run.ratio), f"{run.name}: the part 'train' of data")
    return data


def _check_part(part: Frames, plane: FocalPlane, what: str) -> Frames:
    """Frames of this plane with the targets of each; anything else is an error that begins with ``what``."""
    if not (isinstance(part, (tuple, list)) and len(part) == 2 and isinstance(part[1], Targets)):
        raise ValueError(f"{what} must be Frames(frames, targets) with an array and csist.Targets; got {type(part).__name__}")
    try:
        part = Frames(check_frames(part[0], plane.shape, plane.full_scale), part[1])
    except ValueError as error:
        raise ValueError(f"{what}: {error}. The run's network has {plane}; options={{'plane': {{...}}}} of the run give it another") from error
    if not len(part.frames) == len(part.targets) > 0:
        raise ValueError(f"{what} must have one frame or more and the targets of each; got {len(part.frames)} frames and the targets of {len(part.targets)}")
    off = (part.targets.mask & ~lies_on_frame(part.targets.xy, plane.shape)).any(1)
    if off.any():
        raise ValueError(
            f"{what}: frame {int(np.argmax(off))} has a target off the frame ({int(off.sum())} such frames); each coordinate must be within "
            "-0.5 .. size - 0.5 px. Leave such targets out"
        )
    return part


def _check_windows(data: Frames, grid: SubpixelGrid, what: str) -> None:
    """Refuse frames with a target outside the window about their cluster: its label would move to the window's border. The error begins with ``what``."""
    frame, slot = np.nonzero(data.targets.mask)
    inside = grid.to_index(data.targets.xy[frame, slot]) // grid.ratio - window_origin(data.targets.cell, grid.frame_shape[0])[frame]
    outside = np.unique(frame[((inside < 0) | (inside >= WINDOW)).any(1)])
    if len(outside):
        raise ValueError(
            f"{what}: frame {outside[0]} has a target outside the {WINDOW} x {WINDOW} pixels about the middle of its targets ({len(outside)} such frames); "
            "windows hold one cluster. Give the phases view='frames'"
        )


def _check_storable(run: Run) -> None:
    """Refuse before the first step what could not be stored after the last."""
    try:
        network_of(json.loads(json.dumps(weights_header(run))))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{run.name}: this network could not be stored and read again ({error}); options must be plain values, as in JSON, for example {{'stages': 4}} or "
            "{'plane': {'sigma': 0.6}}"
        ) from error


def _hash(*parts: Targets | np.ndarray) -> str:
    """One fingerprint of arrays and targets."""
    arrays = [array for part in parts for array in ((part.xy, part.intensity, part.count) if isinstance(part, Targets) else (part,))]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def score_weights(path, size: int | None = None, *, device: str = "cpu", resamples: int = 200, data: Frames | None = None) -> dict:
    """Scores of a weights file on the test split, regenerated with the network's focal plane, or on data of your own, in float32."""
    from csist.metrics import psnr_ssim, score_report

    network, _ = read_weights(path)
    data, grid = data or csist100k("test", size, plane=network.plane), SubpixelGrid(network.plane.shape, network.ratio)
    images = predict(network, data.frames, device=device)
    report = score_report(detect(images, grid), data.targets, resamples=resamples, seed=0, shape=network.plane.shape)
    psnr, ssim = psnr_ssim(images, grid.image(data.targets))
    return {"frames": len(data.frames), "frames_sha256": frames_hash(data), "psnr": float(psnr), "ssim": float(ssim), **report}


def write_json(path, value) -> None:
    """Write JSON under a temporary name, then rename: a reader never sees half a file."""
    path = Path(path)
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
