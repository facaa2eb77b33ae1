"""Choose the settings of ISTA on validation frames; the choice is ``csist.solvers.TUNED`` (book chapter "Sparse recovery").

    python reproduce/tune_ista.py                  # about 10 minutes on an idle core; rewrites results/ista-tuning.json
    python reproduce/tune_ista.py --size 20 --coarse-size 20 --output smoke.json

Two steps, both by CSO-mAP at c = 3 and only on the validation split:

1. a coarse grid, on the first ``--coarse-size`` frames: data term (all pixels, or without the saturated ones), sign (free, or s >= 0), lambda by decades,
   number of FISTA iterations;
2. a fine grid of lambda and iterations about the best of step 1, with its data term and sign, on ``--size`` frames.

The read-out threshold is part of both grids, but not below the paper's 50: each lower threshold adds low-score detections, which can only raise an
average precision ("hedging"). The number of iterations is a setting in its own right: stopped early, the image is smoother than the minimiser.
The file also holds the paper's own setting on the same frames, at 50 and at the 70 of its script, and that setting run to convergence.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from csist.datasets import DEFAULT_SEED, csist100k, frames_hash  # noqa: E402
from csist.evaluation import detect, provenance  # noqa: E402
from csist.imaging import FocalPlane, SubpixelGrid  # noqa: E402
from csist.metrics import bootstrap_interval, cso_map  # noqa: E402
from csist.solvers.ista import PAPER, IstaSettings, unmix_ista  # noqa: E402

RESULT = HERE / "results" / "ista-tuning.json"
RATIO = 3
THRESHOLDS = (50.0, 70.0, 90.0)  # grey levels; 50 is the paper's
COARSE_LAMBDAS = (0.001, 0.01, 0.1, 1.0, 10.0)  # grey levels
COARSE_ITERATIONS = (300, 1000, 3000)
FINE_FACTORS = (0.2, 0.5, 1.0, 2.0, 5.0)  # times the best coarse lambda
FINE_ITERATION_FACTORS = (0.7, 1.0, 1.5)  # times the best coarse number
CONVERGED = 10_000  # FISTA iterations of the row that stands for the minimiser; by then its score no longer moves by more than a tenth of a point


def score(settings: IstaSettings, data, thresholds=THRESHOLDS) -> list[dict]:
    """One row of the result file per threshold: the settings, CSO-mAP and the five APs (fractions), detections per frame, frames per second."""
    start = time.perf_counter()
    images = unmix_ista(data.frames, FocalPlane(), RATIO, settings)
    speed = len(data.frames) / (time.perf_counter() - start)
    rows = []
    for threshold in thresholds:
        estimate = detect(images, SubpixelGrid(ratio=RATIO), threshold)
        result = cso_map(estimate, data.targets)
        row = asdict(replace(settings, threshold=threshold)) | {"frames": len(data.frames), "cso_map": result.map, "ap": np.round(result.ap, 6).tolist()}
        rows.append(row | {"detections_per_frame": float(estimate.count.mean()), "frames_per_second": round(speed, 1)})
    return rows


def settings_of(row: dict) -> IstaSettings:
    """The settings of a row."""
    return IstaSettings(**{name: row[name] for name in asdict(PAPER)})


def sweep(candidates, data, label: str) -> list[dict]:
    """Rows of all candidates, with one line of progress each."""
    rows = []
    for settings in candidates:
        rows += score(settings, data)
        best = max(rows[-len(THRESHOLDS) :], key=lambda row: row["cso_map"])
        print(f"{label}: {100 * best['cso_map']:6.2f} at threshold {best['threshold']:.0f}  {settings}", file=sys.stderr, flush=True)
    return rows


def coarse_grid() -> list[IstaSettings]:
    """Step 1: all combinations."""
    choices = product((False, True), (False, True), COARSE_LAMBDAS, COARSE_ITERATIONS)
    return [
        replace(PAPER, momentum=True, mask_saturated=masked, non_negative=positive, sparsity=sparsity, max_iterations=iterations)
        for masked, positive, sparsity, iterations in choices
    ]


def fine_grid(best: IstaSettings) -> list[IstaSettings]:
    """Step 2: lambda and iterations about the best of step 1."""
    choices = product(FINE_FACTORS, FINE_ITERATION_FACTORS)
    return [replace(best, sparsity=float(f"{best.sparsity * a:.3g}"), max_iterations=int(round(best.max_iterations * b, -2))) for a, b in choices]


def reference_rows(data) -> dict[str, list[dict]]:
    """The paper's setting, and the minimiser of its objective."""
    return {"paper": score(PAPER, data), "paper_converged": score(replace(PAPER, momentum=True, max_iterations=CONVERGED), data)}


def write_json(path: Path, content: dict) -> None:
    """Write under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def main(arguments=None) -> dict:
    """Tune, write the file, return its content."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2000, help="validation frames of the fine grid and of the printed scores")
    parser.add_argument("--coarse-size", type=int, default=500, help="validation frames of the coarse grid")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    data, few = csist100k("val", options.size), csist100k("val", options.coarse_size)
    coarse = sweep(coarse_grid(), few, "coarse")
    fine = sweep(fine_grid(settings_of(max(coarse, key=lambda row: row["cso_map"]))), data, "fine")
    choice = max(fine, key=lambda row: row["cso_map"])
    settings = settings_of(choice)
    estimate = detect(unmix_ista(data.frames, FocalPlane(), RATIO, settings), SubpixelGrid(ratio=RATIO), settings.threshold)
    interval = bootstrap_interval(estimate, data.targets, resamples=200, seed=0)
    content = {
        "what": "settings of csist.solvers.ista chosen by CSO-mAP on validation frames of CSIST-100K regenerated, c = 3; nothing here saw the test split",
        "choice": asdict(settings),
        "validation": {name: choice[name] for name in ("frames", "cso_map", "ap", "detections_per_frame", "frames_per_second")},
        "interval_95": [float(interval.low), float(interval.high)],
        "reference": reference_rows(data),
        "fine": fine,
        "coarse": coarse,
        "data": {"split": "val", "seed": DEFAULT_SEED, "frames_sha256": frames_hash(data), "coarse_frames_sha256": frames_hash(few)},
        "seconds": round(time.perf_counter() - start),
        "provenance": provenance(),
    }
    write_json(options.output, content)
    print(f"{100 * choice['cso_map']:.2f} (95 %: {100 * interval.low:.2f} to {100 * interval.high:.2f}) with {settings}; wrote {options.output}")
    return content


if __name__ == "__main__":
    main()
