"""Score the off-grid unmixer on the test split and write reproduce/results/off-grid-<tier>.json.

    python reproduce/score_offgrid.py                               # the standard tier on all 10,000 frames
    python reproduce/score_offgrid.py --tier fast standard accurate
    python reproduce/score_offgrid.py --tier fast --split val --size 200 --output trial
    python reproduce/score_offgrid.py --tier fast --calibrate       # prints the knots of csist.solvers.offgrid.CALIBRATION, from validation frames

The accurate tier, which takes a hundred times as long as the fast one, answers the first frames of the split only; its file says how many. Rules of the
scene (the prior) are also switched off one by one, on fewer frames still. A file that was made with the same settings on the same frames is kept;
``--again`` makes it anew. Compilation is not part of the speed.
"""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import numpy as np  # noqa: E402

from csist.datasets import SPLITS, Frames, csist100k, frames_hash  # noqa: E402
from csist.evaluation import provenance  # noqa: E402
from csist.metrics import match_detections, score_frames, score_report  # noqa: E402
from csist.solvers.offgrid import CALIBRATION, TIERS, Prior, fit_calibration, unmix_offgrid  # noqa: E402
from csist.training import write_json  # noqa: E402

FIRST = {"fast": 10_000, "standard": 10_000, "accurate": 400}  # frames that a tier answers, the first ones of the split
WITHOUT_PRIORS = {"fast": 500, "standard": 500, "accurate": 0}  # the same with rules switched off
PRIORS = {
    "any count": Prior(counts=None),
    "any distance": Prior(min_distance=None),
    "any intensity": Prior(intensity=None),
    "any count, distance and intensity": Prior(counts=None, min_distance=None, intensity=None),
}
KEPT_BACK = 2_000  # validation frames that calibration of the fast and the standard tier does not see
EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995, 1.0)  # of the claimed probabilities


def settings_of(tier: str, seed: int) -> dict:
    """What determines the answers besides the code, as JSON values."""
    prior = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(Prior()).items()}
    return {"tier": tier, "effort": dict(TIERS[tier]), "calibration": [list(part) for part in CALIBRATION[tier] or ()], "prior": prior, "seed": seed}


def calibration(estimate, truth) -> list[dict]:
    """Claimed against real hit probabilities, averaged over CSO-mAP's thresholds, by claimed probability."""
    matches = match_detections(estimate, truth)
    real = matches.is_hit.mean(axis=0)
    place = np.clip(np.searchsorted(EDGES, matches.score, side="right") - 1, 0, len(EDGES) - 2)
    rows = []
    for k in np.unique(place):
        inside = place == k
        rows.append({
            "from": EDGES[k],
            "to": EDGES[k + 1],
            "detections": int(inside.sum()),
            "claimed": float(matches.score[inside].mean()),
            "real": float(real[inside].mean()),
        })
    return rows


def print_knots(tier: str, first: int, size: int | None, threads: int | None) -> None:
    """Measure a tier's calibration curve on validation frames from ``first`` on; those before it are left for checks."""
    data = csist100k("val")
    chosen = slice(first, None if size is None else first + size)
    CALIBRATION[tier] = None
    estimate = unmix_offgrid(data.frames[chosen], tier=tier, threads=threads, progress=True)
    matches = match_detections(estimate, data.targets[chosen])
    print(f"{tier}: {fit_calibration(matches.score, matches.is_hit.mean(axis=0))} from {len(estimate):,} frames", flush=True)


def score_without_priors(tier: str, data, threads: int | None) -> dict:
    """Scores when the method is not told a rule of the scenes; beside them those of the same frames with all rules known."""
    scores = {}
    for name, prior in {"all rules known": Prior(), **PRIORS}.items():
        started = time.process_time()
        estimate = unmix_offgrid(data.frames, tier=tier, prior=prior, threads=threads)
        part = score_frames(estimate, data.targets)
        rate = len(data.frames) / (time.process_time() - started)
        scores[name] = {"cso_map": part.cso_map, "count_accuracy": part.count_accuracy, "frames_per_processor_second": rate}
    return {"frames": len(data.frames), "scores": scores}


def standard_on_the_same(data, threads: int | None) -> dict:
    """Scores of the standard tier on the few frames of another: the difference says more than two scores on different frames."""
    part = score_frames(unmix_offgrid(data.frames, threads=threads), data.targets)
    return {"cso_map": part.cso_map, "count_accuracy": part.count_accuracy}


def score_tier(tier: str, split: str, size: int, seed: int, threads: int | None) -> dict:
    """Answer the first frames of a split and score them."""
    data = csist100k(split, size)
    unmix_offgrid(data.frames[:8], tier=tier, seed=seed, threads=threads)  # compiles
    started, processor = time.perf_counter(), time.process_time()
    estimate = unmix_offgrid(data.frames, tier=tier, seed=seed, threads=threads, progress=True)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    few = min(WITHOUT_PRIORS[tier], len(data.frames))
    made = provenance()
    made["versions"]["numba"] = version("numba")
    return {
        "method": "off-grid",
        "tier": tier,
        "split": split,
        "frames_of_split": SPLITS[split],
        "settings": settings_of(tier, seed),
        "test": {"frames": len(data.frames), "frames_sha256": frames_hash(data), **score_report(estimate, data.targets)},
        "calibration": calibration(estimate, data.targets),
        "standard_tier_on_these_frames": standard_on_the_same(data, threads) if len(data.frames) < FIRST["standard"] and split == "test" else None,
        "without_priors": score_without_priors(tier, Frames(data.frames[:few], data.targets[:few]), threads) if few else None,
        "frames_per_second": len(data.frames) / seconds,
        "frames_per_processor_second": len(data.frames) / processor,
        "hours": seconds / 3600,
        "provenance": made,
    }


def is_current(result: dict | None, tier: str, split: str, size: int, seed: int) -> bool:
    """True for a result of these settings on these frames."""
    if result is None or result["settings"] != settings_of(tier, seed):
        return False
    return result["test"]["frames_sha256"] == frames_hash(csist100k(split, size))


def main(arguments=None) -> int:
    from csist.reporting import read_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", nargs="+", choices=list(TIERS), default=["standard"], help="how much work to do; several for several files")
    parser.add_argument("--split", choices=["test", "val", "train"], default="test", help="another than test, for a trial")
    parser.add_argument("--size", type=int, default=None, help="number of frames, for a trial; by default all, or what FIRST says")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler")
    parser.add_argument("--threads", type=int, default=None, help="by default one per processor")
    parser.add_argument("--output", type=Path, default=None, help="folder for the files; by default reproduce/results, which takes no trials")
    parser.add_argument("--again", action="store_true", help="also make files that are current")
    parser.add_argument("--calibrate", action="store_true", help="measure the calibration curve on validation frames, print it and stop")
    options = parser.parse_args(arguments)
    if options.calibrate:
        for tier in options.tier:
            print_knots(tier, KEPT_BACK, options.size, options.threads)
        return 0
    if (options.size is not None or options.split != "test") and options.output is None:
        parser.error("a trial with --size or --split needs --output, so that it does not replace a result of the test split")
    folder = options.output or HERE / "results"
    for tier in options.tier:
        path, size = folder / f"off-grid-{tier}.json", options.size or FIRST[tier]
        if not options.again and path.is_file() and is_current(read_json(path), tier, options.split, size, options.seed):
            print(f"{path.stem}: is current")
            continue
        result = score_tier(tier, options.split, size, options.seed, options.threads)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        test = result["test"]
        low, high = test["interval"]
        score = f"CSO-mAP x 100 = {100 * test['cso_map']:.2f} ({100 * low:.2f} to {100 * high:.2f}), count right {100 * test['count_accuracy']:.2f} %"
        print(f"{path.stem}: {score} on {test['frames']:,} frames", flush=True)
        print(f"{result['frames_per_second']:.0f} frames a second, {result['frames_per_processor_second']:.0f} a processor second", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
