"""What a few least-squares steps with the imaging model make of each trained network's answer; writes results/polished.json.

    python reproduce/score_polish.py                              # every network with read-outs in results/readouts.json; minutes on two cores
    python reproduce/score_polish.py --only ista-net-c3-seed0 --size 200 --output trial.json

The network's image is read out by merging split sub-pixels, with the settings that results/readouts.json chose on validation frames, and
csist.solvers.polish improves the answer. Nothing is chosen here, so nothing is tuned on test frames. Networks see whole frames in float32.
The file is written after every network; one whose weights, settings and frames have not changed is kept, ``--again`` scores it anew.
"""
from __future__ import annotations

import argparse
import sys
import time
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from csist.datasets import csist100k, frames_hash  # noqa: E402
from csist.evaluation import predict, provenance  # noqa: E402
from csist.imaging import SubpixelGrid  # noqa: E402
from csist.metrics import score_report  # noqa: E402
from csist.networks.registry import read_weights  # noqa: E402
from csist.readout import read_out  # noqa: E402
from csist.reporting import read_json  # noqa: E402
from csist.solvers import polish  # noqa: E402
from csist.training import write_json  # noqa: E402

KEPT = ("cso_map", "ap", "interval", "count_accuracy", "detections", "targets")  # of a score report
WHAT = "trained networks read out by merging, before and after least-squares steps with the imaging model (csist.solvers.polish)"


def plan(path: Path, size: int, settings: dict) -> dict:
    """What determines a network's scores besides the code."""
    return {
        "weights_sha256": sha256(path.read_bytes()).hexdigest(),
        "settings": settings,
        "frames": size,
        "frames_sha256": frames_hash(csist100k("test", size)),
    }


def score(path: Path, planned: dict) -> dict:
    """Scores of one network before and after, on the first test frames."""
    network, header = read_weights(path)
    data = csist100k("test", planned["frames"])
    merged = read_out(predict(network, data.frames), SubpixelGrid(network.plane.shape, network.ratio), "merged", **planned["settings"])
    started = time.perf_counter()
    polished = polish(merged, data.frames)
    seconds = time.perf_counter() - started
    reports = {name: score_report(answer, data.targets, resamples=200, seed=0) for name, answer in (("merged", merged), ("polished", polished))}
    shown = {name: {key: report[key] for key in KEPT} for name, report in reports.items()}
    return {key: header.get(key) for key in ("network", "ratio", "seed")} | planned | shown | {"polish_seconds": seconds, "provenance": provenance()}


def main(arguments=None) -> int:
    readouts = read_json(HERE / "results" / "readouts.json")["runs"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(readouts), default=list(readouts), metavar="RUN", help="these runs")
    parser.add_argument("--size", type=int, default=2_000, help="number of test frames")
    parser.add_argument("--again", action="store_true", help="also score what is current")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "polished.json")
    options = parser.parse_args(arguments)
    runs = read_json(options.output)["runs"] if options.output.is_file() else {}
    for name in options.only:
        path = HERE / "weights" / f"{name}.safetensors"
        planned = plan(path, options.size, readouts[name]["readouts"]["merged"]["settings"])
        if not options.again and all(runs.get(name, {}).get(key) == value for key, value in planned.items()):
            print(f"{name}: is current")
            continue
        runs[name] = score(path, planned)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, {"what": WHAT, "runs": dict(sorted(runs.items())), "provenance": provenance()})
        before, after = (100 * runs[name][key]["cso_map"] for key in ("merged", "polished"))
        print(f"{name:28} CSO-mAP x 100: merged {before:.2f}, polished {after:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
