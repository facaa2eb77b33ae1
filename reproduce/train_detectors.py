"""Train the heat-map detector behind an unmixing network, score the test split once, and write its result and weights.

    python reproduce/train_detectors.py --network dista-net                           # positions leave the grid
    python reproduce/train_detectors.py --network dista-net --no-offsets              # the same detector nailed to the grid
    python reproduce/train_detectors.py --network dista-net --samples 20000 --train-size 4000 --test-size 500 --output trial

The network's weights must be there (``reproduce/queue.py`` trains them). Its images of the training frames are computed once, in blocks that are kept in
the data cache. A call whose time is spent goes on at the next one; one that is killed loses at most a block or an epoch. A finished detector is kept;
``--again`` makes it anew.
"""
from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]


def arguments_parser() -> argparse.ArgumentParser:
    """The command line."""
    from csist.cli import duration, whole_number

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["dista-net"], help="one or more, by their names in the package")
    parser.add_argument("--offsets", action=argparse.BooleanOptionalAction, default=True, help="let positions leave the grid")
    parser.add_argument("--samples", type=whole_number, default=None, help="windows shown; by default the recipe's")
    parser.add_argument("--train-size", type=whole_number, default=None, help="training frames, for a trial; by default all")
    parser.add_argument("--val-size", type=whole_number, default=None, help="validation frames; by default the recipe's")
    parser.add_argument("--test-size", type=whole_number, default=None, help="test frames, for a trial; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the network's run and of the detector")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=whole_number, default=None, help="CPU threads")
    parser.add_argument("--time-budget", type=duration, default=None, help="stop cleanly after this long, for example 10m")
    parser.add_argument("--output", type=Path, default=None, help="holds weights/, results/, checkpoints/; by default reproduce, for whole trainings only")
    parser.add_argument("--again", action="store_true", help="also train what is finished")
    return parser


def recipe_of(options):
    """The recipe that the command line asks for."""
    from csist.pipeline import DetectorRecipe

    changes = {name: getattr(options, name) for name in ("samples", "train_size", "val_size", "test_size")}
    recipe = DetectorRecipe(offsets=options.offsets, seed=options.seed, **{name: value for name, value in changes.items() if value is not None})
    return recipe, any(value is not None for value in changes.values())


def borrow_weights(network: str, seed: int, folder: Path) -> None:
    """Copy a network's weights into another folder, which then holds everything that its results speak of."""
    from csist.pipeline import network_weights

    source, target = network_weights(network, HERE, seed), folder / "weights"
    target.mkdir(parents=True, exist_ok=True)
    if not (target / source.name).exists():
        shutil.copy2(source, target / source.name)


def is_finished(name: str, recipe, folder: Path) -> bool:
    """True if the folder holds the result of exactly this recipe behind exactly these weights."""
    from dataclasses import asdict

    from csist import reporting
    from csist.reporting.pipelines import verify_pipeline

    result = reporting.load_result(name, folder)
    if result is None or result["recipe"] != asdict(recipe):
        return False
    try:
        verify_pipeline(name, folder)
    except ValueError:  # the network was trained again since
        return False
    return True


def main(arguments=None) -> int:
    import time

    import torch

    from csist.cli import hold
    from csist.pipeline import detector_name, train_detector

    parser = arguments_parser()
    options = parser.parse_args(arguments)
    recipe, trial = recipe_of(options)
    if trial and options.output is None:
        parser.error("a trial with other sizes needs --output, so that it does not replace a result of the whole recipe")
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.output or HERE
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    deadline = None if options.time_budget is None else time.monotonic() + options.time_budget
    for network in options.network:
        name = detector_name(network, recipe.offsets, recipe.seed)
        if folder != HERE:
            borrow_weights(network, recipe.seed, folder)
        lock = hold(folder / "checkpoints" / f"{name}.lock")
        if lock is None:
            print(f"{name}: held by another process")
            continue
        with lock:
            if not options.again and is_finished(name, recipe, folder):
                print(f"{name}: is finished")
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            result = train_detector(network, folder, recipe, device=options.device, time_budget=left)
        if result is None:
            print(f"{name}: the time is spent; the same call goes on")
            continue
        print(f"{name}: CSO-mAP x 100 = {100 * result['test']['cso_map']:.2f} on {result['test']['frames']:,} test frames, {result['hours']:.2f} h", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
