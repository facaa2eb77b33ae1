"""What each trained network scores with each read-out of csist.readout; writes results/readouts.json.

    python reproduce/score_readouts.py                                  # every weights file: minutes each on two cores
    python reproduce/score_readouts.py --only dista-net-c3-seed0
    python reproduce/score_readouts.py --val-size 64 --size 64 --output trial.json

Settings are chosen on validation frames and scored on the test split once. Local networks see windows of 5 x 5 pixels in bfloat16, several times faster than
whole frames in float32 (``--whole``) and equal to a few hundredths of a point; so the row "threshold" may differ from the run's own result by that much.
Networks that take statistics over the image see whole frames: shown windows, CFGN loses two points.
The file is written after every run. A run whose weights and frames have not changed is kept; ``--again`` scores it anew.
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
from csist.evaluation import predict, provenance, quick_way  # noqa: E402
from csist.imaging import SubpixelGrid  # noqa: E402
from csist.metrics import score_report  # noqa: E402
from csist.networks.registry import read_weights  # noqa: E402
from csist.readout import READOUTS, read_out, tune_readout  # noqa: E402
from csist.reporting import read_json  # noqa: E402
from csist.training import write_json  # noqa: E402

KEPT = ("cso_map", "ap", "interval", "standard_error", "count_accuracy", "detections", "targets")  # of a score report
WHAT = "read-outs of trained networks: settings chosen on validation frames, scored once on test frames (csist.readout)"


def way(options, network) -> dict:
    """How this network's images are made, as options of predict."""
    return {} if options.whole else quick_way(network)


def plan(options, path: Path) -> dict:
    """What determines a run's scores besides the code: its weights, its frames, how they are shown, and which read-outs there are."""
    network, _ = read_weights(path)
    return {
        "weights_sha256": sha256(path.read_bytes()).hexdigest(),
        "shown": "windows, bfloat16" if way(options, network) else "whole frames, float32",
        "validation_frames": options.val_size,
        "validation_sha256": frames_hash(csist100k("val", options.val_size)),
        "frames": len(csist100k("test", options.size).frames),
        "frames_sha256": frames_hash(csist100k("test", options.size)),
    }


def is_current(stored: dict | None, planned: dict) -> bool:
    """True for an entry of these weights and frames that has every read-out."""
    return stored is not None and all(stored.get(key) == value for key, value in planned.items()) and set(stored["readouts"]) == set(READOUTS)


def score_run(path: Path, options, show=lambda line: None) -> dict:
    """Tune and score all read-outs of one weights file."""
    started = time.perf_counter()
    network, header = read_weights(path)
    how = {"device": options.device} | way(options, network)
    grid = SubpixelGrid(network.plane.shape, network.ratio)
    val, test = csist100k("val", options.val_size), csist100k("test", options.size)
    seen, unseen = predict(network, val.frames, **how), predict(network, test.frames, **how)
    readouts = {}
    for name in READOUTS:
        chosen = tune_readout(seen, grid, val.targets, name)
        report = score_report(read_out(unseen, grid, name, **chosen["settings"]), test.targets, resamples=200, seed=0)
        validation = {key: chosen[key] for key in ("cso_map", "count_accuracy", "tried")}
        readouts[name] = {"settings": chosen["settings"], "validation": validation, "test": {key: report[key] for key in KEPT}}
        low, high = report["interval"]
        score = f"CSO-mAP x 100 = {100 * report['cso_map']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        show(f"{path.stem:32} {name:13} {score}, count right {100 * report['count_accuracy']:.1f} %")
    about = {key: header.get(key) for key in ("network", "ratio", "seed", "options")}
    return {**about, **plan(options, path), "readouts": readouts, "seconds": round(time.perf_counter() - started), "provenance": provenance()}


def main(arguments=None) -> int:
    weights = {path.stem: path for path in sorted((HERE / "weights").glob("*.safetensors"))}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(weights), default=list(weights), metavar="RUN", help="these runs")
    parser.add_argument("--val-size", type=int, default=2_000, help="validation frames that the settings are chosen on")
    parser.add_argument("--size", type=int, default=None, help="number of test frames, for a trial; by default all")
    parser.add_argument("--whole", action="store_true", help="show the networks whole frames, in float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=None, help="the file; by default results/readouts.json, which takes the whole test split only")
    parser.add_argument("--again", action="store_true", help="also score runs that are current")
    options = parser.parse_args(arguments)
    if options.size is not None and options.output is None:
        parser.error("a trial with --size needs --output, so that it does not replace scores of the whole split")
    output = options.output or HERE / "results" / "readouts.json"
    runs = read_json(output)["runs"] if output.is_file() else {}
    for name in options.only:
        if not options.again and is_current(runs.get(name), plan(options, weights[name])):
            print(f"{name}: is current")
            continue
        runs[name] = score_run(weights[name], options, show=lambda line: print(line, flush=True))
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, {"what": WHAT, "runs": dict(sorted(runs.items())), "provenance": provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
