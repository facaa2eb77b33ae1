"""Score the off-grid unmixer on the test split and write reproduce/results/off-grid-<tier>.json.

    python reproduce/score_offgrid.py                               # the standard tier on all 10,000 frames
    python reproduce/score_offgrid.py --tier fast standard accurate
    python reproduce/score_offgrid.py --tier fast --split val --size 200 --output trial
    python reproduce/score_offgrid.py --tier fast --calibrate       # prints the knots of csist.solvers.offgrid's curves, from validation frames

The accurate tier takes a hundred times as long as the fast one. A run that is stopped goes on at the same call: answers are kept part by part. Rules of
the scene (the prior) are also switched off one by one, on fewer frames. A file of the same settings and frames is kept; ``--again``
makes it anew. Compilation is not part of the speed; where other work shares the processors, frames per processor second say more than frames per second.
"""
from __future__ import annotations

import argparse
import json
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
from csist.imaging import FocalPlane  # noqa: E402
from csist.metrics import match_detections, match_pairs, score_frames, score_report  # noqa: E402
from csist.reporting import read_json  # noqa: E402
from csist.scenes import Targets  # noqa: E402
from csist.solvers.offgrid import (  # noqa: E402
    CALIBRATION,
    DEVIATIONS,
    TIERS,
    Prior,
    fit_calibration,
    fit_deviations,
    is_cut,
    kind_of,
    unmix_offgrid,
    window_side,
)
from csist.training import write_json  # noqa: E402

PART = {"fast": 10_000, "standard": 2_500, "accurate": 200}  # frames between two savings
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
    curve = lambda pair: [list(part) for part in pair]
    prior = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(Prior()).items()}
    curves = {"calibration": [curve(pair) for pair in CALIBRATION[tier]], "deviations": curve(DEVIATIONS[tier])}
    return {"tier": tier, "effort": dict(TIERS[tier]), **curves, "prior": prior, "seed": seed}


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


def pulls(estimate, truth) -> tuple[np.ndarray, np.ndarray]:
    """Predicted standard deviations and errors of all matched coordinates (m,) each [px]."""
    frame, detection, target = match_pairs(estimate, truth)
    return estimate.sigma[frame, detection].ravel(), (estimate.xy[frame, detection] - truth.xy[frame, target]).ravel()


def deviations(estimate, truth) -> dict:
    """Share of the errors within one and two predicted standard deviations: 0.683 and 0.954 if errors were Gaussian; also where the errors are small."""
    sigma, error = pulls(estimate, truth)
    share = lambda times, which: float((np.abs(error) < times * sigma)[which].mean())
    sharp = sigma < np.median(sigma)
    return {
        "within_1_sigma": share(1, slice(None)), "within_2_sigma": share(2, slice(None)),
        "within_1_sigma_of_sharper_half": share(1, sharp), "within_1_sigma_of_other_half": share(1, ~sharp),
    }


def print_knots(tier: str, first: int, size: int | None, threads: int | None) -> None:
    """Measure a tier's calibration curves on validation frames from ``first`` on; those before it are left for checks."""
    data = csist100k("val")
    chosen = slice(first, None if size is None else first + size)
    CALIBRATION[tier] = None
    estimate = unmix_offgrid(data.frames[chosen], tier=tier, threads=threads, progress=True)
    plane = FocalPlane()
    kinds = kind_of(estimate.count, is_cut(estimate.cell, plane.shape, window_side(plane, Prior())))
    print(f"{tier}: CALIBRATION from {len(estimate):,} frames")
    for kind in range(6):
        matches = match_detections(estimate[kinds == kind], data.targets[chosen][kinds == kind])
        print(f"        {fit_calibration(matches.score, matches.is_hit.mean(axis=0), knots=6)},")
    print(f"{tier}: DEVIATIONS {fit_deviations(*pulls(estimate, data.targets[chosen]))}", flush=True)


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


def answer(data, tier: str, seed: int, threads: int | None, path: Path) -> tuple[Targets, float, float]:
    """Answers to all frames, and the seconds and processor seconds that they took; kept at ``path`` part by part, where an earlier run's are taken up."""
    key = json.loads(json.dumps({"settings": settings_of(tier, seed), "frames_sha256": frames_hash(data)}))
    kept = read_json(path) if path.is_file() else None
    if kept is None or kept["key"] != key:
        kept = {"key": key, "rows": [], "seconds": 0.0, "processor_seconds": 0.0}
    unmix_offgrid(data.frames[:8], tier=tier, seed=seed, threads=threads)  # compiles
    while len(kept["rows"]) < len(data.frames):
        first = len(kept["rows"])
        started, processor = time.perf_counter(), time.process_time()
        part = unmix_offgrid(data.frames[first : first + PART[tier]], tier=tier, seed=seed, threads=threads, progress=True)
        kept["seconds"] += time.perf_counter() - started
        kept["processor_seconds"] += time.process_time() - processor
        columns = np.concatenate([part.xy, part.intensity[..., None], part.sigma, part.score[..., None]], axis=-1)
        kept["rows"] += [row[:count].tolist() for row, count in zip(columns, part.count)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    rows = [np.reshape(row, (-1, 6)) for row in kept["rows"]]
    parts = ([row[:, which] for row in rows] for which in (slice(0, 2), 2, 5, slice(3, 5)))
    return Targets.from_lists(*parts), kept["seconds"], kept["processor_seconds"]


def score_tier(tier: str, split: str, size: int, seed: int, threads: int | None, partial: Path) -> dict:
    """Answer the first frames of a split and score them."""
    data = csist100k(split, size)
    estimate, seconds, processor = answer(data, tier, seed, threads, partial)
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
        "deviations": deviations(estimate, data.targets),
        "standard_tier_on_these_frames": standard_on_the_same(data, threads) if split == "test" and len(data.frames) < SPLITS[split] else None,
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", nargs="+", choices=list(TIERS), default=["standard"], help="how much work to do; several for several files")
    parser.add_argument("--split", choices=["test", "val", "train"], default="test", help="another than test, for a trial")
    parser.add_argument("--size", type=int, default=None, help="number of frames, for a trial; by default all")
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
        path, size = folder / f"off-grid-{tier}.json", options.size or SPLITS[options.split]
        if not options.again and path.is_file() and is_current(read_json(path), tier, options.split, size, options.seed):
            print(f"{path.stem}: is current")
            continue
        partial = (options.output or HERE / "checkpoints") / f"off-grid-{tier}-answers.json"
        if options.again:
            partial.unlink(missing_ok=True)
        result = score_tier(tier, options.split, size, options.seed, options.threads, partial)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        partial.unlink()
        test = result["test"]
        low, high = test["interval"]
        score = f"CSO-mAP x 100 = {100 * test['cso_map']:.2f} ({100 * low:.2f} to {100 * high:.2f}), count right {100 * test['count_accuracy']:.2f} %"
        print(f"{path.stem}: {score} on {test['frames']:,} frames", flush=True)
        print(f"{result['frames_per_second']:.0f} frames a second, {result['frames_per_processor_second']:.0f} a processor second", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
