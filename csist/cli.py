"""The command line: ``csist simulate | train | unmix | evaluate | info``.

Every command prints a table for people, or with ``--json`` one JSON value for programs, to standard output. What is wrong with an input is said in one
line on standard error, with exit code 2. x is the row, y the column, here too.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np

AXES = "x = row, y = column; pixels, centres at integers"
OK, UNFINISHED, FAILED = 0, 3, 2  # exit codes; 3: the time budget ended before the training did


class CommandError(Exception):
    """Something that the caller can put right; its text is all that is shown."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, without the usage above it."""

    def error(self, message):
        raise CommandError(f"{message} (see: {self.prog} --help)")


def main(argv=None) -> int:
    """Run one command; returns its exit code and never shows a traceback for a bad input.

    >>> main(["unmix", "missing.png", "--method", "ista"])
    2
    """
    try:
        options = build_parser().parse_args(argv)
        value, code = options.command(options)
        print(json.dumps(value, indent=1) if options.json else options.table(value))
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough; Python must not write the rest when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt as interrupt:  # a training says where its checkpoint is
        print(f"csist: {str(interrupt) or 'stopped'}", file=sys.stderr)
        return 130
    except (CommandError, ValueError, OSError, ImportError) as error:
        print(f"csist: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from csist import __version__

    parser = Parser(prog="csist", description="Closely spaced infrared small targets: simulate, train, unmix, evaluate.", epilog=f"Everywhere: {AXES}.")
    parser.add_argument("--version", action="version", version=f"csist {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for add in (_add_simulate, _add_train, _add_unmix, _add_evaluate, _add_info):
        command = add(commands)
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def duration(text: str) -> float:
    """A duration such as 90, 90s, 25m or 1.5h in seconds.

    >>> duration("25m"), duration("1.5h"), duration("90")
    (1500.0, 5400.0, 90.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"a duration looks like 90s, 25m or 1.5h; got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def whole_number(text: str) -> int:
    """A whole number >= 1, which may be grouped: 10000, 10_000 or 10,000."""
    digits = text.replace(",", "").replace("_", "")
    if not (digits.isascii() and digits.isdigit() and int(digits) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1; got {text!r}")
    return int(digits)


def number_or_unknown(text: str) -> float | None:
    """A number, or None for the word unknown."""
    return None if text == "unknown" else float(text)


def count_or_unknown(text: str) -> int | None:
    """A whole number >= 1, or None for the word unknown."""
    return None if text == "unknown" else whole_number(text)


def columns(rows, header) -> str:
    """A plain table: the first column flush left, the others flush right.

    >>> print(columns([["a", 1], ["bc", 20]], ["name", "n"]))
    name   n
    a      1
    bc    20
    """
    rows = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


# simulate


def _add_simulate(commands):
    command = commands.add_parser("simulate", help="write frames of CSIST-100K, regenerated, with their targets")
    command.add_argument("output", type=Path, metavar="OUT", help="a folder in the original layout, or an .npz file")
    command.add_argument("--size", type=whole_number, default=1000, help="number of frames (1000)")
    command.add_argument("--seed", type=int, default=None, help="seed of the whole data set (by default the project's own)")
    command.add_argument("--split", choices=("train", "val", "test"), default="test", help="which random streams to use (test)")
    command.add_argument("--format", choices=("grokcso", "npz"), default=None, help="by default npz if OUT ends so, else grokcso")
    command.add_argument("--overwrite", action="store_true", help="replace frames that are already there")
    command.set_defaults(command=simulate, table=_simulate_table)
    return command


def simulate(options):
    """Generate frames and write them in one of two layouts."""
    from csist.datasets import DEFAULT_SEED, csist100k, frames_hash
    from csist.grokcso import write_grokcso

    seed = DEFAULT_SEED if options.seed is None else options.seed
    kind = options.format or ("npz" if options.output.suffix == ".npz" else "grokcso")
    if kind == "npz":
        _refuse_to_replace(options.output, options.overwrite)
    data = csist100k(options.split, options.size, seed, cache=False)
    if kind == "npz":
        write_npz(options.output, data)
    else:
        write_grokcso(options.output, *data, overwrite=options.overwrite)
    counts = np.bincount(data.targets.count)
    value = {
        "output": str(options.output),
        "format": kind,
        "split": options.split,
        "seed": seed,
        "frames": len(data.frames),
        "targets": int(data.targets.count.sum()),
        "frames_by_target_count": {str(k): int(n) for k, n in enumerate(counts) if n},
        "frames_sha256": frames_hash(data),
    }
    return value, OK


def _simulate_table(value) -> str:
    head = f"{value['frames']:,} frames with {value['targets']:,} targets written to {value['output']} ({value['format']}; {AXES})"
    return head + "\n" + columns(value["frames_by_target_count"].items(), ["targets in a frame", "frames"])


def write_npz(path: Path, data) -> None:
    """Frames and targets as one .npz file of plain arrays (padding is nan), under a temporary name first."""
    arrays = {"frames": data.frames, "xy": data.targets.xy, "intensity": data.targets.intensity, "count": data.targets.count}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_to_replace(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise CommandError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise CommandError(f"{path} exists; choose another name or pass --overwrite")


# train


def _add_train(commands):
    command = commands.add_parser("train", help='train a network and score it; needs: pip install "csist[train]"')
    command.add_argument("method", metavar="METHOD", help="a network, for example dista-net (see: csist info)")
    command.add_argument("--ratio", type=int, default=3, help="odd sub-pixel ratio c (3)")
    command.add_argument("--seed", type=int, default=0, help="seed of weights and batches (0)")
    command.add_argument("--time-budget", type=duration, default=None, metavar="TIME", help="stop cleanly after this long, for example 10m; --resume goes on")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    command.add_argument("--overwrite", action="store_true", help="replace the weights and result of an earlier training")
    command.add_argument("--device", choices=("cpu", "cuda"), default=None, help="by default a GPU where there is one")
    command.add_argument("--threads", type=whole_number, default=None, help="CPU threads")
    command.add_argument("--output", type=Path, default=None, metavar="DIR", help="holds results/, weights/ and checkpoints/ (the repository's reproduce/)")
    command.add_argument("--runs", type=Path, default=None, metavar="FILE", help="YAML file of runs (the repository's reproduce/runs.yaml)")
    command.set_defaults(command=train, table=_train_table)
    return command


def train(options):
    """Train one run, or a part of it, and report where its files are."""
    import torch

    run = find_run(options.method, options.ratio, options.seed, options.runs)
    if options.threads:
        torch.set_num_threads(options.threads)
    output = options.output or _repository_folder() or Path("csist-runs")
    checkpoints, results, weights = (output / name for name in ("checkpoints", "results", "weights"))
    result_path, checkpoint = results / f"{run.name}.json", checkpoints / f"{run.name}.safetensors"
    value = {"run": run.name, "finished": True, "result": str(result_path), "weights": str(weights / f"{run.name}.safetensors"), "checkpoint": str(checkpoint)}
    if result_path.exists() and not options.overwrite:
        if not options.resume:
            raise CommandError(f"{run.name} is trained already, see {result_path}; pass --overwrite to train it again")
        try:
            return {**value, **_summary(json.loads(result_path.read_text()))}, OK
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{result_path} is no result of a training ({error!r}); delete it, or pass --overwrite to train again") from error
    if checkpoint.exists() and not (options.resume or options.overwrite):
        raise CommandError(f"{run.name} has a checkpoint, {checkpoint}; pass --resume to go on from it, or --overwrite to begin again")
    lock = hold(checkpoints / f"{run.name}.lock") if int(os.environ.get("RANK", 0)) == 0 else nullcontext()  # under torchrun the first process holds it
    if lock is None:
        raise CommandError(f"another process is training {run.name} in {output}; wait for it, or choose another --output")
    from csist import training

    places = {"results": results, "weights": weights, "device": options.device, "progress": not options.json}
    with lock:
        result = training.train(run, checkpoints, time_budget=options.time_budget, resume=options.resume, **places)
    if result is None:
        return {**value, "finished": False}, UNFINISHED
    return {**value, **_summary(result)}, OK


def _summary(result: dict) -> dict:
    return {"cso_map": result["test"]["cso_map"], "ap": list(result["test"]["ap"]), "test_frames": result["test"]["frames"], "hours": result["hours"]}


def _train_table(value) -> str:
    if not value["finished"]:
        return f"{value['run']}: the time is up; go on with --resume (checkpoint: {value['checkpoint']})"
    score = f"CSO-mAP x 100 = {100 * value['cso_map']:.2f} on {value['test_frames']:,} test frames"
    text = f"{value['run']}: {score}, trained for {value['hours']:.2f} h\nresult   {value['result']}\nweights  {value['weights']}\n"
    return text + f"to use them: CSIST_WEIGHTS={shlex.quote(str(Path(value['weights']).parent))} csist evaluate ..."


def find_run(method: str, ratio: int, seed: int, path: Path | None = None):
    """The run that trains a method's main row: its entry in the file of runs, or the recipe of DISTA-Net where there is no such entry."""
    from csist.evaluation import CONTINUOUS, MODEL_BASED
    from csist.imaging import check_ratio
    from csist.networks.registry import NETWORKS, run_name, unknown_name

    if method in MODEL_BASED:
        raise CommandError(f"{method!r} is model-based and learns nothing; the networks are {', '.join(NETWORKS)}")
    if method in CONTINUOUS:
        raise CommandError(f"{method!r} has a training of its own: python reproduce/train_continuous.py")
    if method not in NETWORKS:
        raise unknown_name(method, list(NETWORKS))
    _require("accelerate", "yaml", "tqdm")
    from csist.training import Phase, Run

    name = run_name(method, check_ratio(ratio), seed)
    if path is not None and not path.is_file():
        raise CommandError(f"{path}, given as the file of runs, does not exist")
    path = path or (_repository_folder() or Path("reproduce")) / "runs.yaml"
    runs = {run.name: run for run in _read_runs(path)}
    if name in runs:
        return runs[name]
    print(f"csist: no run {name} in {path}; using the default recipe", file=sys.stderr)
    return Run(name, method, ratio, seed, phases=(Phase("windows", 400_000, 1e-3), Phase("frames", 40_000, 1e-4)))


def _read_runs(path: Path) -> list:
    """The runs of a YAML file; none if the file is not there, because a package installed without the repository has no such file."""
    import yaml

    from csist.training import load_runs

    if not path.is_file():
        return []
    try:
        return load_runs(path)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is no file of runs ({error}); reproduce/runs.yaml shows what one looks like") from error


def _require(*modules: str) -> None:
    """An error that names the extra to install if a package for training is missing."""
    import importlib.util

    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f'training needs {", ".join(missing)}; run: pip install "csist[train]"')


def _repository_folder() -> Path | None:
    """The folder ``reproduce`` of the repository that this package belongs to; None if it was installed alone."""
    folder = Path(__file__).resolve().parents[1] / "reproduce"
    return folder if (folder / "runs.yaml").is_file() else None


def hold(path: Path):
    """An exclusive lock that dies with the process; None if somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open(path, "w")  # noqa: SIM115 - the lock lives as long as the handle is open
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows has no such locks; there the user keeps the processes apart
        pass
    except OSError:
        handle.close()
        return None
    return handle


# unmix


def _add_unmix(commands):
    command = commands.add_parser("unmix", help="say how many targets frames hold, where they are and how bright")
    kinds = "a grey PNG of 8 bits (of 16, if --bits is above 8), an .npy array (rows, columns) or (n, rows, columns), or a folder with cso_img/"
    command.add_argument("input", type=Path, metavar="IMAGE_OR_FOLDER", help=kinds)
    command.add_argument("--method", default="dista-net", help="see: csist info (dista-net)")
    command.add_argument("--ratio", type=int, default=3, help="odd sub-pixel ratio c of methods with a grid (3)")
    command.add_argument("--threshold", type=float, default=None, help="detection threshold in grey levels (the method's own); off-grid has none")
    _add_tier(command)
    sensor = command.add_argument_group("what made the frames", "The networks answer for the paper's focal plane only; off-grid takes any.")
    sensor.add_argument("--shape", type=whole_number, nargs=2, default=(11, 11), metavar=("ROWS", "COLUMNS"), help="size of a frame in pixels (11 11)")
    sensor.add_argument("--sigma", type=float, default=0.5, help="standard deviation of the PSF in pixels (0.5)")
    sensor.add_argument("--bits", type=int, default=8, help="depth of the digitiser, 1 to 16 (8)")
    sensor.add_argument("--read-noise", type=float, default=0.0, help="standard deviation of the read noise in grey levels (0)")
    scenes = command.add_argument_group("what is known of the scenes", "For off-grid, which takes them for CSIST-100K's: give what holds, or unknown.")
    span = {"nargs": "+", "default": argparse.SUPPRESS}
    scenes.add_argument("--counts", type=count_or_unknown, metavar="N", help="smallest and largest number of targets in a cluster, or unknown (1 5)", **span)
    scenes.add_argument("--intensity", type=number_or_unknown, metavar="FLUX", help="smallest and largest flux in grey levels, or unknown (220 250)", **span)
    scenes.add_argument("--min-distance", type=number_or_unknown, default=argparse.SUPPRESS, metavar="PX", help="of two targets, or unknown (0.494)")
    command.set_defaults(command=unmix, table=_unmix_table)
    return command


def unmix(options):
    """Unmix the frames of a file or a folder."""
    from csist.evaluation import has_grid
    from csist.evaluation import unmix as estimate
    from csist.imaging import FocalPlane

    plane = FocalPlane(tuple(options.shape), options.sigma, options.bits, read_noise=options.read_noise)
    names, frames = read_frames(options.input, plane.shape, depths=(8,) if plane.bits <= 8 else (8, 16))
    with warnings.catch_warnings(record=True) as heard:
        found = estimate(frames, options.method, options.ratio, plane=plane, threshold=options.threshold, **_tier(options), **_prior(options))
    for warning in heard:
        print(f"csist: warning: {warning.message}", file=sys.stderr)
    value = {
        "method": options.method,
        "ratio": options.ratio if has_grid(options.method) else None,
        "axes": AXES,
        "focal_plane": {"shape": list(plane.shape), "sigma": plane.sigma, "bits": plane.bits, "read_noise": plane.read_noise},
        "frames": [{"name": name, "targets": _target_rows(found, number)} for number, name in enumerate(names)],
    }
    return value, OK


def _add_tier(command):
    command.add_argument("--tier", choices=("fast", "standard", "accurate"), default=None, help="how much work off-grid does (standard)")


def _tier(options) -> dict:
    """The option of the method that has tiers."""
    if options.tier is None:
        return {}
    if options.method != "off-grid":
        raise CommandError(f"--tier belongs to the method 'off-grid'; {options.method!r} has no tiers")
    return {"tier": options.tier}


def _prior(options) -> dict:
    """The option of the method that is told the scenes' law."""
    given = {name: getattr(options, name) for name in ("counts", "intensity", "min_distance") if hasattr(options, name)}
    if not given:
        return {}
    if options.method != "off-grid":
        raise CommandError(f"--{next(iter(given)).replace('_', '-')} belongs to the method 'off-grid'; {options.method!r} is not told of the scenes")
    from csist.solvers import Prior

    return {"prior": Prior(**{name: None if value == [None] else tuple(value) if isinstance(value, list) else value for name, value in given.items()})}


def _target_rows(targets, number: int) -> list[dict]:
    """The targets of one frame as plain values, with whatever else the method says about them."""
    rows = []
    for k in range(targets.count[number]):
        row = {"x": float(targets.xy[number, k, 0]), "y": float(targets.xy[number, k, 1]), "intensity": float(targets.intensity[number, k])}
        if targets.sigma is not None:
            row |= {"sigma_x": float(targets.sigma[number, k, 0]), "sigma_y": float(targets.sigma[number, k, 1])}
        if targets.score is not None:
            row["score"] = float(targets.score[number, k])
        rows.append(row)
    return rows


def _unmix_table(value) -> str:
    shown = {"x": ("x (row) [px]", 3), "y": ("y (column) [px]", 3), "intensity": ("intensity [grey levels]", 1)}
    extra = {"sigma_x": ("+- x [px]", 3), "sigma_y": ("+- y [px]", 3), "score": ("score", 3)}
    predicted = {name for frame in value["frames"] for target in frame["targets"] for name in target}
    shown |= {name: column for name, column in extra.items() if name in predicted}
    rows = []
    for frame in value["frames"]:
        rows += [[frame["name"], k, *(f"{t[name]:.{digits}f}" for name, (_, digits) in shown.items())] for k, t in enumerate(frame["targets"], 1)]
        if not frame["targets"]:
            rows.append([frame["name"], "none", *("" for _ in shown)])
    return columns(rows, ["frame", "target", *(head for head, _ in shown.values())])


def read_frames(path: Path, shape=(11, 11), depths=(8,)) -> tuple[list[str], np.ndarray]:
    """Names and frames (n, rows, columns) of a PNG, an .npy file, or a folder whose cso_img/ holds image_<number>.png; annotations are not needed."""
    from csist import grokcso

    if path.is_dir():
        files = grokcso._numbered_files(path, grokcso.FRAME_FOLDER, grokcso.FRAME_NAME, "image_<number>.png")
        if not files:
            raise CommandError(f"no frames in {path / grokcso.FRAME_FOLDER}; frames must be named image_<number>.png")
        chosen = [files[number] for number in sorted(files)]
        return [file.name for file in chosen], np.stack([grokcso._read_frame(file, shape, depths) for file in chosen])
    if not path.is_file():
        raise CommandError(f"{path} does not exist; give a PNG, an .npy array or a folder with {grokcso.FRAME_FOLDER}/")
    if path.suffix.lower() == ".npy":
        return _read_array(path, shape)
    if path.suffix.lower() == ".png":
        return [path.name], grokcso._read_frame(path, shape, depths)[None]
    raise CommandError(f"{path}: what kind of file is this? Frames are read from .png, .npy and folders with {grokcso.FRAME_FOLDER}/")


def _read_array(path: Path, shape: tuple[int, int]) -> tuple[list[str], np.ndarray]:
    try:
        frames = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise CommandError(f"{path} is no .npy file of plain numbers ({error})") from error
    found, needed = getattr(frames, "shape", "something else"), ", ".join(map(str, shape))
    if not isinstance(frames, np.ndarray) or frames.ndim not in (2, 3) or len(frames) == 0:
        raise CommandError(f"{path} must hold an array ({needed}) or (n, {needed}); it holds {found}")
    if frames.ndim == 3 and frames.shape[-1] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        raise CommandError(f"{path} must hold frames ({needed}); it holds {found}, which looks like a picture with colours last; make it grey, as by .mean(-1)")
    if found[-2:] != shape:
        raise CommandError(f"{path} must hold frames ({needed}); it holds {found}. If they have that size, say --shape {found[-2]} {found[-1]}")
    if frames.ndim == 2:
        return [path.name], np.array(frames)[None]
    return [f"{path.name}[{k}]" for k in range(len(frames))], np.array(frames)


# evaluate


def _add_evaluate(commands):
    command = commands.add_parser("evaluate", help="score a method on a split of CSIST-100K, regenerated")
    command.add_argument("method", metavar="METHOD", help="see: csist info")
    command.add_argument("--split", choices=("train", "val", "test"), default="test", help="(test)")
    command.add_argument("--size", type=whole_number, default=None, help="number of frames (all of the split)")
    command.add_argument("--ratio", type=int, default=3, help="odd sub-pixel ratio c of methods with a grid (3)")
    _add_tier(command)
    command.set_defaults(command=evaluate, table=_evaluate_table)
    return command


def evaluate(options):
    """Score a method; the scores are fractions, their intervals come from resampled frames."""
    from csist.evaluation import evaluate as score

    return score(options.method, options.split, options.size, options.ratio, **_tier(options)), OK


def _evaluate_table(value) -> str:
    scores, percent = value["scores"], lambda fraction: "-" if fraction is None else f"{100 * fraction:.2f}"
    low, high = scores["interval"]
    rows = [["CSO-mAP x 100", percent(scores["cso_map"]), f"{percent(low)} .. {percent(high)}"]]
    rows += [[f"AP-{100 * delta:02.0f} x 100", percent(ap), ""] for delta, ap in zip(scores["thresholds"], scores["ap"])]
    rows += [["right number of targets, %", percent(scores["count_accuracy"]), ""]]
    rows += [[name, f"{scores[name]:,}", ""] for name in ("targets", "detections")] + [["frames a second", f"{value['frames_per_second']:,.0f}", ""]]
    grid = "" if value["ratio"] is None else f", c = {value['ratio']}"
    head = f"{value['method']}{grid}, {value['frames']:,} frames of the {value['split']} split"
    made = f"\nweights: {value['weights']}" if value["weights"] else ""
    return head + made + "\n" + columns(rows, ["", "value", f"{100 * scores['level']:g} % interval"])


# info


def _add_info(commands):
    command = commands.add_parser("info", help="versions, methods, trained weights, cache folder, device")
    command.set_defaults(command=info, table=_info_table)
    return command


def info(options):
    """What is installed and what can be run."""
    from csist import __version__
    from csist.datasets import cache_folder
    from csist.evaluation import CONTINUOUS, MODEL_BASED, provenance
    from csist.networks.registry import NETWORKS, weights_folders

    weights = {path.stem: str(path) for folder in reversed(weights_folders()) for path in sorted(folder.glob("*.safetensors"))}
    machine = provenance()
    value = {
        "versions": {**machine["versions"], "csist": __version__, "python": machine["python"]},
        "commit": machine["commit"],
        "device": machine["device"],
        "threads": machine["threads"],
        "methods": {"model-based": list(MODEL_BASED), "learned": [*CONTINUOUS, *NETWORKS]},
        "weights": dict(sorted(weights.items())),
        "weights_folders": [str(folder) for folder in weights_folders()],
        "cache": str(cache_folder()),
    }
    return value, OK


def _info_table(value) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    rows = [["versions", versions], ["commit", value["commit"] or "not a repository"], ["device", f"{value['device']}, {value['threads']} threads"]]
    rows += [[f"methods, {kind}", ", ".join(names)] for kind, names in value["methods"].items()]
    trained = ", ".join(value["weights"]) or "none yet; train some with: csist train METHOD"
    rows += [["trained weights", trained], ["data cache", value["cache"]], ["axes", AXES]]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


if __name__ == "__main__":
    sys.exit(main())
