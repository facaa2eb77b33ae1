"""Score the off-grid unmixer on the test split and write reproduce/results/off-grid-<tier>.json.

    python reproduce/score_offgrid.py                               # the standard tier on all 10,000 frames
    python reproduce/score_offgrid.py --tier fast standard accurate
    python reproduce/score_offgrid.py --tier fast --split val --size 200 --output trial

A file that was made with the same settings on the same frames is kept; ``--again`` makes it anew. Compilation is not part of the speed.
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

from csist.datasets import csist100k, frames_hash  # noqa: E402
from csist.evaluation import provenance  # noqa: E402
from csist.metrics import match_detections, score_report  # noqa: E402
from csist.solvers.offgrid import TIERS, Prior, unmix_offgrid  # noqa: E402
from csist.training import write_json  # noqa: E402

EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995, 1.0)  # of the claimed probabilities


def settings_of(tier: str, seed: int) -> dict:
    """What determines the answers besides the code, as JSON values."""
    prior = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(Prior()).items()}
    return {"tier": tier, "effort": dict(TIERS[tier]), "prior": prior, "seed": seed}


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


def score_tier(tier: str, split: str, size: int | None, seed: int, threads: int | None) -> dict:
    """Answer all frames and score them."""
    data = csist100k(split, size)
    unmix_offgrid(data.frames[:8], tier=tier, seed=seed, threads=threads)  # compiles
    started, processor = time.perf_counter(), time.process_time()
    estimate = unmix_offgrid(data.frames, tier=tier, seed=seed, threads=threads, progress=True)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    made = provenance()
    made["versions"]["numba"] = version("numba")
    return {
        "method": "off-grid",
        "tier": tier,
        "split": split,
        "settings": settings_of(tier, seed),
        "test": {"frames": len(data.frames), "frames_sha256": frames_hash(data), **score_report(estimate, data.targets)},
        "calibration": calibration(estimate, data.targets),
        "frames_per_second": len(data.frames) / seconds,
        "frames_per_processor_second": len(data.frames) / processor,
        "hours": seconds / 3600,
        "provenance": made,
    }


def is_current(result: dict | None, tier: str, split: str, size: int | None, seed: int) -> bool:
    """True for a result of these settings on these frames."""
    if result is None or result["settings"] != settings_of(tier, seed):
        return False
    return result["test"]["frames_sha256"] == frames_hash(csist100k(split, size))


def main(arguments=None) -> int:
    from csist.reporting import read_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tier", nargs="+", choices=list(TIERS), default=["standard"], help="how much work to do; several for several files")
    parser.add_argument("--split", choices=["test", "val", "train"], default="test", help="another than test, for a trial")
    parser.add_argument("--size", type=int, default=None, help="number of frames, for a trial; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler")
    parser.add_argument("--threads", type=int, default=None, help="by default one per processor")
    parser.add_argument("--output", type=Path, default=None, help="folder for the files; by default reproduce/results, which takes the whole test split only")
    parser.add_argument("--again", action="store_true", help="also make files that are current")
    options = parser.parse_args(arguments)
    if (options.size is not None or options.split != "test") and options.output is None:
        parser.error("a trial with --size or --split needs --output, so that it does not replace a result of the whole test split")
    folder = options.output or HERE / "results"
    for tier in options.tier:
        path = folder / f"off-grid-{tier}.json"
        if not options.again and path.is_file() and is_current(read_json(path), tier, options.split, options.size, options.seed):
            print(f"{path.stem}: is current")
            continue
        result = score_tier(tier, options.split, options.size, options.seed, options.threads)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        test = result["test"]
        low, high = test["interval"]
        score = f"CSO-mAP x 100 = {100 * test['cso_map']:.2f} ({100 * low:.2f} to {100 * high:.2f}), count right {100 * test['count_accuracy']:.2f} %"
        print(f"{path.stem}: {score} on {test['frames']:,} frames, {result['frames_per_second']:.0f} frames a second", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
