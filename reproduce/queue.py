"""Work through the training runs of runs.yaml that are not finished yet, most valuable first, inside a time budget.

    python reproduce/queue.py --list
    python reproduce/queue.py --time-budget 25m
    python reproduce/queue.py --only dista-net-c3-seed0 --device cpu --threads 1
    torchrun --nproc_per_node=4 reproduce/queue.py --time-budget 2h

A finished run has a result in ``reproduce/results`` and weights in ``reproduce/weights``; it is skipped. A run that is cut short, by the budget or by
force, goes on from its checkpoint. Several workers can share the queue: a run that another one holds is skipped.
"""
from __future__ import annotations

import argparse
import difflib
import os
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where this file would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]


def claim(run, deadline: float | None, output: Path):
    """(lock, seconds left or None) of a run to train now; None to pass it over: finished, held by another worker, or no time left."""
    from csist.cli import hold
    from csist.training import is_finished

    left = None if deadline is None else deadline - time.monotonic()
    lock = None if left is not None and left <= 0 else hold(output / "checkpoints" / f"{run.name}.lock")
    if lock is None:
        return None
    if is_finished(run, output / "results"):  # asked under the lock, because another worker may just have finished it
        lock.close()
        return None
    return lock, left


def of_first_process(value, device=None):
    """The first process's value, on all: under torchrun one that trained a run which the others pass over would wait for them for ever."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return value
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=device == "cpu")
    return broadcast_object_list([value])[0]


def pack(folders, target: Path, part_bytes: int = 15 * 2**20) -> list[Path]:
    """Tar some folders and cut the archive into parts; join them again with ``cat results.tar.gz.* | tar xz``."""
    for old in target.glob("results.tar.gz.*"):
        old.unlink()  # a part of an earlier, longer archive would spoil the joined file
    whole = target / "results.tar.gz"
    with tarfile.open(whole, "w:gz", compresslevel=1) as archive:
        for folder in folders:
            if folder.is_dir():
                archive.add(folder, folder.name)
    parts = []
    with open(whole, "rb") as source:
        while chunk := source.read(part_bytes):
            parts.append(target / f"results.tar.gz.{len(parts):02d}")
            parts[-1].write_bytes(chunk)
    whole.unlink()
    return parts


def main(arguments=None) -> int:
    from csist.cli import duration

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-budget", type=duration, default=None, help="stop cleanly after this long, for example 25m")
    parser.add_argument("--only", nargs="+", default=None, metavar="RUN", help="these runs, in the given order")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    parser.add_argument("--compile", action="store_true", help="fuse operations with torch.compile: faster steps after a minute of compiling")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of this worker")
    parser.add_argument("--output", type=Path, default=HERE, help="folder with results/, weights/ and checkpoints/")
    parser.add_argument("--runs", type=Path, default=HERE / "runs.yaml")
    parser.add_argument("--pack", type=Path, default=None, help="afterwards put results, weights and checkpoints there as parts of one archive")
    parser.add_argument("--list", action="store_true", help="show the runs and what is left of them")
    options = parser.parse_args(arguments)

    import torch

    from csist.training import is_finished, load_runs, train

    if options.threads:
        torch.set_num_threads(options.threads)
    runs = {run.name: run for run in load_runs(options.runs)}
    unknown = [name for name in options.only or [] if name not in runs]
    if unknown:
        near = [close for name in unknown for close in difflib.get_close_matches(name, runs)]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        parser.error(f"no such run: {', '.join(unknown)}{hint} (--list names all)")
    results, weights, checkpoints = (options.output / name for name in ("results", "weights", "checkpoints"))
    deadline = None if options.time_budget is None else time.monotonic() + options.time_budget
    first, status = int(os.environ.get("RANK", 0)) == 0, 0
    for name in options.only or runs:
        if options.list:
            begun = (checkpoints / f"{name}.safetensors").exists()
            print(f"{name:32} {'finished' if is_finished(runs[name], results) else 'begun' if begun else 'not trained yet'}")
            continue
        claimed = claim(runs[name], deadline, options.output) if first else None
        turn = of_first_process(claimed and claimed[1:], options.device)
        if turn is None:
            if options.only and first and is_finished(runs[name], results):
                print(f"{name}: finished before, see {results / name}.json; --output FOLDER trains it anew", flush=True)
            continue
        how = {"device": options.device, "precision": options.precision, "compiled": options.compile}
        try:
            result = train(runs[name], checkpoints, time_budget=turn[0], results=results, weights=weights, **how)
        except KeyboardInterrupt as interrupt:
            print(interrupt, file=sys.stderr)
            status = 130
            break
        finally:
            if claimed:
                claimed[0].close()
        if result is not None and first:
            print(f"{name}: CSO-mAP x 100 = {100 * result['test']['cso_map']:.2f} on test, {result['hours']:.2f} h", flush=True)
    if options.pack and first:
        options.pack.mkdir(parents=True, exist_ok=True)
        for part in pack([results, weights, checkpoints], options.pack):
            print(part.name)
    return status


if __name__ == "__main__":
    sys.exit(main())
