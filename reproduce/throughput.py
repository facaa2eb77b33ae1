"""Frames per second of every registered network on the machine at hand; writes results/throughput.json.

    python reproduce/throughput.py                           # all networks, about a minute each; let nothing else run meanwhile
    python reproduce/throughput.py --device cuda
    python reproduce/throughput.py --networks ista-net --seconds 0.1 --output trial.json

All are measured in one run, at a batch of 64 frames (throughput) and of one (latency), in float32 and bfloat16, on whole frames and, where a network can be
shown them, on windows of 5 x 5 pixels. The weights are random: speed does not depend on them. A measurement is the median of calls of
:func:`csist.evaluation.predict`, which includes what any user pays: the way to the device and back.
"""
from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import torch  # noqa: E402

from csist.datasets import csist100k  # noqa: E402
from csist.evaluation import predict, provenance  # noqa: E402
from csist.networks import NETWORKS, create_network  # noqa: E402
from csist.networks.cost import multiply_accumulates, parameter_count  # noqa: E402
from csist.training import write_json  # noqa: E402

BATCHES = (64, 1)
MOST_CALLS = 50


def frames_per_second(call, frames: int, seconds: float) -> dict:
    """Median speed of a call that treats so many frames: one warm-up, then calls until the time is over, at least three where three fit.

    >>> frames_per_second(lambda: None, 1, 0.001)["frames_per_second"] > 0
    True
    """
    begun = time.perf_counter()
    call()
    least = 3 if time.perf_counter() - begun < seconds else 1
    taken, begun = [], time.perf_counter()
    while len(taken) < least or (time.perf_counter() - begun < seconds and len(taken) < MOST_CALLS):
        tick = time.perf_counter()
        call()
        taken.append(time.perf_counter() - tick)
    return {"frames_per_second": frames / statistics.median(taken), "fastest": frames / min(taken), "calls": len(taken)}


def measure(name: str, options) -> dict:
    """All measurements of one network; a combination that this machine cannot run holds the reason instead of a speed."""
    network = create_network(name, options.ratio, start=False)
    data = csist100k("test", max(BATCHES), cache=False)
    cost = {"parameters": parameter_count(network), "macs_per_frame": multiply_accumulates(network)["per_frame"]}
    entries = []
    for batch in BATCHES:
        frames = data.frames[:batch]
        for precision in ("float32", "bfloat16"):
            for windows in (False, True) if options.windows and network.windows else (False,):
                how = {"batch": batch, "precision": precision, "windows": windows}
                call = lambda how=how, frames=frames: predict(network, frames, device=options.device, **how)
                try:
                    speed = frames_per_second(call, batch, options.seconds)
                except (RuntimeError, NotImplementedError) as error:
                    speed = {"error": str(error).splitlines()[0]}
                entries.append({**how, **speed})
    return {**cost, "measurements": entries}


def line_of(name: str, measured: dict) -> str:
    """A network's speed in words."""
    best = lambda batch: max((entry.get("frames_per_second", 0) for entry in measured["measurements"] if entry["batch"] == batch), default=0)
    return f"{name:16} {best(64):10,.0f} frames/s at batch 64 {best(1):10,.0f} at batch 1 (the fastest way of each)"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME", help="these; by default all")
    parser.add_argument("--ratio", type=int, default=3, help="sub-pixels along a pixel's side, c")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="limit of each measurement")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--no-windows", dest="windows", action="store_false", help="whole frames only")
    parser.add_argument("--output", type=Path, default=None, help="the file; by default results/throughput.json, which takes all networks only")
    options = parser.parse_args(arguments)
    if options.output is None and set(options.networks) != set(NETWORKS):
        parser.error("a trial with --networks needs --output, so that it does not replace the measurements of all networks")
    if options.threads:
        torch.set_num_threads(options.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # a busy machine makes the numbers worth less
    networks = {}
    for name in options.networks:
        networks[name] = measure(name, options)
        print(line_of(name, networks[name]), flush=True)
    origin = provenance()
    on_gpu = torch.device(options.device).type == "cuda"
    machine = {"device": options.device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_before": load}
    machine["cuda"] = torch.version.cuda if on_gpu else None
    output = options.output or HERE / "results" / "throughput.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"ratio": options.ratio, "seconds": options.seconds, "machine": machine, "networks": networks, "provenance": origin})
    return 0


if __name__ == "__main__":
    sys.exit(main())
