"""Score the model-based rows of Table 1 on the whole test split and write their result files.

    python reproduce/score_solvers.py                             # both settings of ISTA, 10,000 frames each
    python reproduce/score_solvers.py --size 50 --output trial --only ista-tuned

A file that was made with the same settings on the same frames is kept; ``--again`` makes it anew.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

RATIO = 3


def is_current(result: dict | None, settings, size: int | None) -> bool:
    """True for a result of these settings on these frames."""
    from csist.datasets import csist100k, frames_hash

    if result is None or result["settings"] != asdict(settings):
        return False
    return result["test"]["frames_sha256"] == frames_hash(csist100k("test", size))


def main(arguments=None) -> int:
    from csist import reporting
    from csist.solvers.ista import PAPER, TUNED

    rows = {"ista-paper": PAPER, "ista-tuned": TUNED}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(rows), default=list(rows), help="these settings")
    parser.add_argument("--size", type=int, default=None, help="number of test frames, for a trial; by default all")
    parser.add_argument("--output", type=Path, default=None, help="folder for the files; by default reproduce/results, which takes whole splits only")
    parser.add_argument("--again", action="store_true", help="also make files that are current")
    options = parser.parse_args(arguments)
    if options.size is not None and options.output is None:
        parser.error("a trial with --size needs --output, so that it does not replace a result of the whole split")
    folder = options.output or HERE / "results"
    for row in options.only:
        name, path = f"{row}-c{RATIO}", folder / f"{row}-c{RATIO}.json"
        if not options.again and path.is_file() and is_current(reporting.read_json(path), rows[row], options.size):
            print(f"{name}: is current")
            continue
        result = reporting.write_ista_result(name, rows[row], folder, RATIO, options.size)
        low, high = result["test"]["interval"]
        score = f"{100 * result['test']['cso_map']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        print(f"{name}: CSO-mAP x 100 = {score} on {result['test']['frames']:,} frames, {result['hours']:.2f} h", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
