"""Time what the package does beside the plain way of doing it, on the machine at hand; ``make bench`` writes results/bench.json.

    python reproduce/bench.py                 # minutes; let nothing else run meanwhile
    python reproduce/bench.py --quick         # seconds; proves that it runs, its numbers mean little

Every comparison first checks that both ways compute the same thing, then takes them by turns (so that a machine that slows down slows both) and keeps
the median of each. Both use the same number of threads. The plain ("naive") ways are:

rendering, steering matrix
    scipy's ``dblquad`` over each pixel's square, as the reference toolkit integrates.
metric
    :func:`csist.metrics.cso_map_reference`, the metric in plain loops.
training, inference
    The same network with the same parameters written as the reference toolkit runs it: the dense matrix G^T G, 1089 columns wide at c = 3, contiguous
    tensors, float32, whole 11 x 11 frames, and the symmetry path computed at inference too. Only the dynamic kernels differ from the
    toolkit: one for each sample, as in the paper's equations, because its own mixing of samples would not compute the same thing.
"""
from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.integrate import dblquad  # noqa: E402
from torch import nn  # noqa: E402

from csist import FocalPlane, SubpixelGrid, Targets, create_network, csist100k, cso_map, imaging, random_targets  # noqa: E402
from csist.evaluation import detect, predict, provenance  # noqa: E402
from csist.metrics import cso_map_reference  # noqa: E402
from csist.networks.dista_net import KERNEL_INPUT_SCALE, DistaNetStage  # noqa: E402
from csist.networks.ista_net import IstaNetStage  # noqa: E402
from csist.networks.registry import load_network, run_name, weights_path  # noqa: E402
from csist.training import LossModule, TrainingSet, write_json  # noqa: E402

RATIO = 3  # sub-pixels along a pixel's side, c
NETWORKS = ("dista-net", "ista-net+", "ista-net")


# ---- timing --------------------------------------------------------------------------------------------------------------


def measure(calls: dict, limit: float, most: int = 25) -> dict:
    """Median seconds of each call: one warm-up each, then by turns until the time limit, at least three times (once if a single call exceeds the limit).

    >>> measure({"nothing": lambda: None}, limit=0.01)["nothing"]["seconds"] >= 0
    True
    """
    seconds = {name: [] for name in calls}
    started = time.perf_counter()
    for call in calls.values():
        call()
    enough = 3 if time.perf_counter() - started < limit else 1
    while True:
        for name, call in calls.items():
            tick = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - tick)
        done = len(next(iter(seconds.values())))
        if done >= most or (done >= enough and time.perf_counter() - started > limit):
            return {name: {"seconds": statistics.median(taken), "fastest": min(taken), "repeats": done} for name, taken in seconds.items()}


def entry(what: str, unit: str, ours: dict, units: float, naive: dict | None = None, naive_units: float = 1, **more) -> dict:
    """One line of the result: seconds per unit of both ways, and how the times compare."""
    value = {"what": what, "unit": unit, "ours": _per_unit(ours, units), **more}
    if naive is not None:
        value["naive"] = _per_unit(naive, naive_units)
        value["ratio"] = value["ours"]["seconds"] / value["naive"]["seconds"]  # ours / naive, below 1 if ours is faster
        value["times_faster"] = 1 / value["ratio"]
    return value


def _per_unit(measured: dict, units: float) -> dict:
    return {"seconds": measured["seconds"] / units, "fastest": measured["fastest"] / units, "repeats": measured["repeats"], "units_per_repeat": units}


# ---- rendering, steering matrix, metric ----------------------------------------------------------------------------------


def pixel_by_quadrature(i: int, j: int, x: float, y: float, sigma: float) -> float:
    """What pixel (i, j) collects of a unit-flux target at (x, y), by numerical integration."""
    # math.exp, because numpy's is several times slower on single numbers and would flatter the closed form
    density = lambda v, u: math.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    return dblquad(density, i - 0.5, i + 0.5, j - 0.5, j + 0.5)[0]


def render_by_quadrature(targets: Targets, plane: FocalPlane) -> np.ndarray:
    """Noise-free analogue frames, one integral for every pixel and target."""
    frames = np.zeros((len(targets), *plane.shape))
    for frame, xy, intensity, count in zip(frames, targets.xy, targets.intensity, targets.count):
        for i, j in np.ndindex(plane.shape):
            frame[i, j] = sum(s * pixel_by_quadrature(i, j, x, y, plane.sigma) for (x, y), s in zip(xy[:count], intensity[:count]))
    return frames


def bench_rendering(size: dict, limit: float) -> dict:
    plane, rng = FocalPlane(), np.random.default_rng(0)
    many, few = random_targets(size["frames"], rng), random_targets(size["quadrature_frames"], rng, count=(3, 3))  # 3 targets: the data's mean
    agree = bool(np.allclose(plane.expected(few), render_by_quadrature(few, plane), atol=1e-5))
    times = measure({"ours": lambda: plane.expected(many), "naive": lambda: render_by_quadrature(few, plane)}, limit)
    return entry("rendering: closed form / dblquad for each pixel and target", "frame", times["ours"], len(many), times["naive"], len(few), agree=agree)


def bench_generation(size: dict, limit: float) -> dict:
    n = size["generated"]
    times = measure({"ours": lambda: csist100k("train", n, cache=False)}, limit, most=3)
    return entry(f"generation of {n:,} frames: random clusters, rendering, rounding, clipping", f"{n:,} frames", times["ours"], 1)


def bench_steering(size: dict, limit: float) -> dict:
    plane, grid = FocalPlane(), SubpixelGrid(ratio=RATIO)
    rng = np.random.default_rng(1)
    shape = (plane.shape[0] * plane.shape[1], grid.shape[0] * grid.shape[1])
    chosen = np.column_stack([rng.integers(0, n, size["matrix_entries"]) for n in shape])

    def ours():
        imaging._kronecker.cache_clear()  # the package remembers the matrix; the bench must not
        return plane.steering_matrix(grid)

    def naive():
        centres = grid.to_position(np.stack(np.divmod(chosen[:, 1], grid.shape[1]), axis=-1))
        return [pixel_by_quadrature(*divmod(int(pixel), plane.shape[1]), x, y, plane.sigma) for pixel, (x, y) in zip(chosen[:, 0], centres)]

    agree = bool(np.allclose(ours()[chosen[:, 0], chosen[:, 1]], naive(), atol=1e-7))
    times = measure({"ours": ours, "naive": naive}, limit)
    what = f"steering matrix {shape[0]} x {shape[1]}: Kronecker product of the axes / dblquad for each entry (random entries)"
    return entry(what, "matrix entry", times["ours"], shape[0] * shape[1], times["naive"], len(chosen), agree=agree)


def bench_metric(size: dict, limit: float) -> dict:
    rng, grid = np.random.default_rng(2), SubpixelGrid(ratio=RATIO)
    truth = csist100k("test", size["metric_frames"], cache=False).targets
    offset = rng.normal(0, 0.1, truth.xy.shape)
    estimate = Targets(grid.to_position(grid.to_index(np.nan_to_num(np.clip(truth.xy + offset, -0.5, 10.5)))), truth.intensity + offset[..., 0], truth.count)
    few = slice(0, size["metric_subset"])
    agree = bool(np.allclose(cso_map(estimate[few], truth[few]).ap, cso_map_reference(estimate[few], truth[few]).ap))
    times = measure({"ours": lambda: cso_map(estimate, truth), "naive": lambda: cso_map_reference(estimate[few], truth[few])}, limit)
    what = f"CSO-mAP of {len(truth):,} frames, five thresholds: vectorised / plain loops ({len(truth[few]):,} frames)"
    return entry(what, "frame", times["ours"], len(truth), times["naive"], len(truth[few]), agree=agree)


# ---- networks as the reference toolkit runs them --------------------------------------------------------------------------


class NaiveForward(nn.Module):
    """An unfolded network with another's parameters, run without any of the package's short cuts; its forward pass always computes the symmetry path."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        steering = network.plane.steering_matrix(SubpixelGrid(network.plane.shape, network.ratio))
        self.register_buffer("steering", torch.from_numpy(steering).float())  # (121, 1089)
        self.register_buffer("gram", torch.from_numpy(steering.T @ steering).float())  # (1089, 1089)

    def forward(self, frames):
        """Sub-pixel images (B, 11c, 11c) and the symmetry residual of every stage."""
        side = self.network.size * self.network.ratio
        flat = frames.flatten(1)  # (B, 121)
        data = flat @ self.steering  # G^T z, (B, 1089)
        estimate, residuals = flat @ self.network.start_matrix.T, []
        for stage in self.network.fcs:
            step = (estimate - stage.lambda_step * (estimate @ self.gram) + stage.lambda_step * data).view(-1, 1, side, side)
            image, residual = self.stage(stage, step, estimate)
            estimate = image.flatten(1)
            residuals.append(residual)
        return estimate.view(-1, side, side), residuals

    def stage(self, stage, step, previous):
        """One stage, from the gradient step to the next estimate and the symmetry residual."""
        lifted = step if isinstance(stage, (DistaNetStage, IstaNetStage)) else _convolve(step, stage.conv_D)
        features = _convolve(torch.relu(_convolve(lifted, stage.conv1_forward)), stage.conv2_forward)
        threshold = None
        if isinstance(stage, DistaNetStage):
            features = stage.static_weight * features + (1 - stage.static_weight) * self.dynamic_branch(stage, step, previous)
            threshold = stage.att(features)
        shrunk = torch.mul(torch.sign(features), torch.relu(torch.abs(features) - (stage.soft_thr if threshold is None else threshold)))
        estimate = self.inverse(stage, shrunk)
        if lifted is not step:
            estimate = step + _convolve(estimate, stage.conv_G)
        return estimate, self.inverse(stage, features) - lifted

    @staticmethod
    def dynamic_branch(stage, step, previous):
        """Each sample filtered with its own kernel: the batch as the channels of one grouped convolution."""
        kernels = stage.w2(stage.w1(KERNEL_INPUT_SCALE * previous)).view(-1, 1, 3, 3)
        return torch.sigmoid(nn.functional.conv2d(step.transpose(0, 1), kernels, padding=1, groups=len(step))).transpose(0, 1)

    @staticmethod
    def inverse(stage, features):
        return _convolve(torch.relu(_convolve(features, stage.conv1_backward)), stage.conv2_backward)

    def loss(self, frames, truth):
        """The training loss of :meth:`csist.networks.unfolding.UnfoldedNetwork.loss`."""
        estimate, residuals = self(frames)
        symmetry = sum(residual.square().mean() for residual in residuals)
        return (estimate - truth).square().mean() + self.network.symmetry_weight * symmetry


def _convolve(image, kernel):
    return nn.functional.conv2d(image, kernel, padding=1)


def fresh_network(name: str, **options):
    """A network with reproducible random weights. The linear start is left out (zeros) unless asked for: it costs the same whatever it holds."""
    torch.manual_seed(0)
    return create_network(name, ratio=RATIO, **{"start": False, **options})


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def compare_networks(name: str, data, samples: int = 8, **options) -> dict:
    """Relative differences in float32 between the package's network and the naive one: images, loss, and the gradients of all parameters."""
    network = fresh_network(name, **options)
    with torch.no_grad():  # a start that is not zero, so that the first stage is compared too
        network.start_matrix.normal_(0, 0.05)
    naive, batches = NaiveForward(network), TrainingSet(data, RATIO, seed=0)
    frames, truth, _ = batches.batch(torch.arange(samples), "frames")
    with torch.no_grad():
        images = largest_difference(network(frames), naive(frames)[0])
    losses, gradients = [], []
    for loss in (sum(network.loss(frames, truth).values()), naive.loss(frames, truth)):
        network.zero_grad(set_to_none=True)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    return {"images": images, "loss": largest_difference(*losses), "gradients": largest_difference(*gradients)}


def compute_the_same(differences: dict, tolerance: float = 1e-3) -> bool:
    """Equal but for float32 rounding, which the stages amplify."""
    return all(value < tolerance for value in differences.values())


class Step:
    """One optimiser step, repeated: cut a batch, forward, backward, Adam; the package's way or the naive one."""

    def __init__(self, name: str, data, batch: int, view: str = "frames", precision: str = "no", naive: bool = False):
        network = fresh_network(name)
        if not naive:
            network = network.to(memory_format=torch.channels_last)
        self.module = NaiveForward(network) if naive else LossModule(network, precision)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
        self.set, self.batch, self.number = TrainingSet(data, RATIO, seed=0), batch, 0
        self.view, self.naive = view, naive

    def __call__(self) -> float:
        frames, truth, origin = self.set.batch(self.set.numbers(self.number, self.batch), self.view)
        self.number += 1
        loss = self.module.loss(frames, truth) if self.naive else sum(self.module(frames, truth, origin).values())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def bench_training(name: str, data, size: dict, limit: float) -> list[dict]:
    """Ours three ways against the naive step."""
    batch = size["batch"]
    ways = {
        "windows of 5 x 5 pixels, bfloat16": Step(name, data, batch, "windows", "bf16"),
        "whole frames, bfloat16": Step(name, data, batch, "frames", "bf16"),
        "whole frames, float32": Step(name, data, batch, "frames", "no"),
    }
    differences = compare_networks(name, data, min(batch, 8))
    times = measure({**ways, "naive": Step(name, data, batch, naive=True)}, limit)
    more = {"network": name, "agree": compute_the_same(differences), "differences": differences}
    return [entry(f"training {name}, batch {batch}: {way} / naive", "frame", times[way], batch, times["naive"], batch, **more) for way in ways]


def trained_network(name: str):
    """The committed network, or a fresh one where there is none; a fresh one amplifies rounding, so its comparison says less."""
    return load_network(name, RATIO) if weights_path(run_name(name, RATIO)) else fresh_network(name).eval()


def bench_inference(name: str, data, size: dict, limit: float) -> list[dict]:
    """Ours, batch 256, in two precisions and on windows, against the naive forward pass, batch 64; with the score that each way reaches."""
    batch, frames = size["batch"], size["inference"]
    network, naive = trained_network(name), NaiveForward(trained_network(name)).eval()

    @torch.no_grad()
    def plainly():
        pieces = [naive(torch.from_numpy(data.frames[k : k + batch]).float())[0] for k in range(0, frames, batch)]
        return torch.cat(pieces).numpy()

    chosen, grid = data.frames[:frames], SubpixelGrid(ratio=RATIO)
    options = {
        "whole frames, float32": {},
        "whole frames, bfloat16": {"precision": "bfloat16"},
        "windows of 5 x 5 pixels, bfloat16": {"precision": "bfloat16", "windows": True},
    }
    ways = {way: (lambda settings=settings: predict(network, chosen, batch=256, **settings)) for way, settings in options.items()}
    images = {way: run() for way, run in ways.items()}
    # Learned thresholds may be negative; there shrinkage jumps at zero, and rounding moves single sub-pixels visibly. So the norm is compared, not the maximum.
    exact = plainly()
    differences = {"images": float(np.linalg.norm(images["whole frames, float32"] - exact) / np.linalg.norm(exact))}
    more = {"network": name, "agree": compute_the_same(differences), "differences": differences}
    times = measure({**ways, "naive": plainly}, limit)
    return [
        entry(f"inference {name}: {way}, batch 256 / naive, batch {batch}", "frame", times[way], frames, times["naive"], frames, **more)
        | {"cso_map": float(cso_map(detect(images[way], grid), data.targets[:frames]).map)}
        for way in ways
    ]


# ---- all of it -----------------------------------------------------------------------------------------------------------

FULL = {
    "frames": 10_000,  # rendered in closed form
    "quadrature_frames": 2,
    "generated": 100_000,
    "matrix_entries": 200,  # integrated numerically
    "metric_frames": 10_000,
    "metric_subset": 500,  # scored by plain loops
    "batch": 64,
    "inference": 1024,  # frames
}
QUICK = {
    "frames": 100,
    "quadrature_frames": 1,
    "generated": 500,
    "matrix_entries": 4,
    "metric_frames": 100,
    "metric_subset": 20,
    "batch": 2,
    "inference": 4,
}


def run(quick: bool = False, limit: float = 20.0, networks=NETWORKS, show=lambda line: None) -> dict:
    """All measurements, as plain JSON values.

    Parameters
    ----------
    quick : bool
        Tiny sizes: whether it runs, not how fast.
    limit : float
        Seconds for each comparison.
    networks : sequence of str
        Which networks to time.
    show : callable
        Gets a line of text after each measurement.
    """
    size = QUICK if quick else FULL
    data, unseen = (csist100k(split, size["inference"], cache=False) for split in ("train", "test"))
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_before": _load()}
    entries = []
    for part in (bench_rendering, bench_generation, bench_steering, bench_metric):
        entries += [part(size, limit)]
        show(line_of(entries[-1]))
    for name in networks:
        for lines in (bench_training(name, data, size, limit), bench_inference(name, unseen, size, limit)):
            entries += lines
            for line in lines:
                show(line_of(line))
    return {"quick": quick, "machine": {**machine, "load_after": _load()}, "provenance": provenance(), "entries": entries}


def _load() -> float | None:
    """Processes that wanted a core in the last minute: a busy machine makes the numbers worth less."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def line_of(value: dict) -> str:
    """One measurement in words."""
    against = f"{value['times_faster']:10.1f} x faster" if "naive" in value else " " * 19
    doubt = "" if value.get("agree", True) else "   THE TWO DIFFER"
    return f"{value['ours']['seconds']:10.3g} s per {value['unit']:14} {against}   {value['what']}{doubt}"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: proves that it runs")
    parser.add_argument("--limit", type=float, default=None, help="seconds for each comparison (20; 0.2 if quick)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--output", type=Path, default=None, help="where the JSON goes (results/bench.json; a quick run writes none unless asked)")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    limit = options.limit if options.limit is not None else 0.2 if options.quick else 20.0
    result = run(options.quick, limit, options.networks, show=lambda line: print(line, flush=True))
    output = options.output or (None if options.quick else HERE / "results" / "bench.json")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, result)
    wrong = [value["what"] for value in result["entries"] if not value.get("agree", True)]
    if wrong:
        print("These comparisons do not compute the same thing: " + "; ".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
