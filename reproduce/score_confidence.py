"""What trained networks score when a learned confidence ranks their detections (csist.confidence); writes results/confidence.json.

    python reproduce/score_confidence.py                                  # every weights file: about five minutes each on one core
    python reproduce/score_confidence.py --only dista-net-c3-seed0
    python reproduce/score_confidence.py --train-size 200 --val-size 64 --size 64 --only dista-net-c3-seed0 --output trial.json

The confidence learns from training frames, and is scored on validation frames and once on the test split. Detections and positions are the paper's; only
their order is new. The file is written after every run. A run whose weights and frames have not changed is kept; ``--again`` scores it anew.
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

from csist.confidence import fit_confidence, hit_share  # noqa: E402
from csist.datasets import csist100k, frames_hash  # noqa: E402
from csist.evaluation import predict, provenance, quick_way  # noqa: E402
from csist.imaging import SubpixelGrid  # noqa: E402
from csist.metrics import cso_map, score_report  # noqa: E402
from csist.networks.registry import read_weights  # noqa: E402
from csist.reporting import read_json  # noqa: E402
from csist.reporting.learning import rank_by_distance  # noqa: E402
from csist.training import write_json  # noqa: E402

KEPT = ("cso_map", "ap", "interval", "standard_error", "count_accuracy", "detections", "targets")  # of a score report
WHAT = "the paper's detections of trained networks, ranked by a confidence that was learned from training frames (csist.confidence)"


def plan(options, path: Path) -> dict:
    """What determines a run's scores besides the code: its weights and its frames."""
    parts = {"training": csist100k("train", options.train_size), "validation": csist100k("val", options.val_size), "test": csist100k("test", options.size)}
    frames = {name: {"frames": len(part.frames), "frames_sha256": frames_hash(part)} for name, part in parts.items()}
    return {"weights_sha256": sha256(path.read_bytes()).hexdigest(), "shown": frames}


def scores(confidence, images, part) -> dict:
    """CSO-mAP of the same detections by brightness, by confidence and by true distance, and how far the claimed confidence is met."""
    ranked = confidence(images, part.frames)
    report = score_report(ranked, part.targets, resamples=200, seed=0)
    orders = {"brightness": ranked.with_score(ranked.intensity), "true_distance": rank_by_distance(ranked, part.targets)}
    claims = {"claimed": float(ranked.score[ranked.mask].mean()), "real": float(hit_share(ranked, part.targets).mean())}
    return {**{key: report[key] for key in KEPT}, **{name: float(cso_map(order, part.targets).map) for name, order in orders.items()}, **claims}


def score_run(path: Path, options) -> dict:
    """Learn the confidence of one weights file and score it."""
    started = time.process_time()
    network, header = read_weights(path)
    how = {"device": options.device} | quick_way(network)
    grid = SubpixelGrid(network.plane.shape, network.ratio)
    known, val, test = csist100k("train", options.train_size), csist100k("val", options.val_size), csist100k("test", options.size)
    confidence = fit_confidence(predict(network, known.frames, **how), known.frames, known.targets, grid, network.plane)
    about = {key: header.get(key) for key in ("network", "ratio", "seed", "options")}
    scored = {name: scores(confidence, predict(network, part.frames, **how), part) for name, part in {"validation": val, "test": test}.items()}
    return {**about, **plan(options, path), **scored, "processor_hours": (time.process_time() - started) / 3600, "provenance": provenance()}


def in_words(result: dict) -> str:
    low, high, brightness, best = (100 * value for value in (*result["interval"], result["brightness"], result["true_distance"]))
    return f"CSO-mAP x 100 = {100 * result['cso_map']:.2f} ({low:.2f} to {high:.2f}), by brightness {brightness:.2f}, by true distance {best:.2f}"


def main(arguments=None) -> int:
    weights = {path.stem: path for path in sorted((HERE / "weights").glob("*.safetensors"))}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(weights), default=list(weights), metavar="RUN", help="these runs")
    parser.add_argument("--train-size", type=int, default=20_000, help="training frames that the confidence learns from")
    parser.add_argument("--val-size", type=int, default=2_000, help="validation frames")
    parser.add_argument("--size", type=int, default=None, help="number of test frames, for a trial; by default all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=None, help="the file; by default results/confidence.json, which takes the whole test split only")
    parser.add_argument("--again", action="store_true", help="also score runs that are current")
    options = parser.parse_args(arguments)
    if options.size is not None and options.output is None:
        parser.error("a trial with --size needs --output, so that it does not replace scores of the whole split")
    output = options.output or HERE / "results" / "confidence.json"
    runs = read_json(output)["runs"] if output.is_file() else {}
    for name in options.only:
        planned = plan(options, weights[name])
        if not options.again and name in runs and all(runs[name].get(key) == value for key, value in planned.items()):
            print(f"{name}: is current")
            continue
        runs[name] = score_run(weights[name], options)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, {"what": WHAT, "runs": dict(sorted(runs.items())), "provenance": provenance()})
        print(f"{name:24} {in_words(runs[name]['test'])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
