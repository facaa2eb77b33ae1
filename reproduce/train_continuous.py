"""Train the continuous network, score the test split once, and write its result and weights.

    python reproduce/train_continuous.py                                              # the committed network
    python reproduce/train_continuous.py --name trial --samples 20000 --cooldown 10000 --bend-at 0 --pool 2000 --test-size 500 --output trial
    python reproduce/train_continuous.py --time-budget 10m                            # stops cleanly; the same call goes on
    python reproduce/train_continuous.py --ablate                                     # small networks that lack one idea each, on validation frames

Training windows are simulated as they are needed. A call whose time is spent goes on at the next one; one that is killed loses at most an epoch. A
run may be ended sooner or later by another fall of the learning rate (--samples, --cooldown, --bend-at) as long as the new one agrees with what was.
A finished network is kept; ``--again`` makes it anew.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]


def arguments_parser() -> argparse.ArgumentParser:
    """The command line: every field of the recipe, and where and how long."""
    from csist.cli import duration, whole_number
    from csist.networks.continuous import ContinuousRecipe

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in fields(ContinuousRecipe):
        option = "--" + field.name.replace("_", "-")
        if field.name in ("physics", "symmetric"):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            number = whole_number
            if field.name in ("rate", "bend_to", "half_range", "read_noise"):
                number = float
            elif field.name in ("seed", "stages", "stage_depth", "depth", "warmup", "bend_at"):
                number = int
            parser.add_argument(option, type=number, default=field.default)
    parser.add_argument("--name", default=None, help="of the run; by default continuous-seed<seed>")
    parser.add_argument("--threads", type=whole_number, default=1, help="CPU threads")
    parser.add_argument("--time-budget", type=duration, default=None, help="stop cleanly after this long, for example 10m")
    parser.add_argument("--output", type=Path, default=HERE, help="holds weights/, results/, checkpoints/; by default this folder")
    parser.add_argument("--ablate", action="store_true", help="train the ablation's variants instead; --samples and the like are its own")
    parser.add_argument("--rescore", nargs="?", const="all", choices=("all", "polished"), help="only score stored weights again, all ways or polished")
    parser.add_argument("--again", action="store_true", help="also train what is finished")
    return parser


NOISE = 2.0  # grey levels

# One thing changed at a time; all see the same scenes. "plain-deep" spends about the whole network's time on layers instead of refinements. The last two
# learn from other scenes than they are asked about: with read noise, and with intensities from a range three times as wide.
ABLATIONS = {
    "whole": {},
    "refinements-without-physics": {"physics": False},
    "one-refinement": {"stages": 1},
    "no-refinement": {"stages": 0},
    "plain-deep": {"stages": 0, "depth": 10},
    "no-symmetry": {"symmetric": False},
    "training-noise": {"read_noise": NOISE},
    "wider-intensities": {"half_range": 45.0},
}
ABLATED = {"samples": 65_536, "cooldown": 32_768, "bend_at": 0, "val_size": 4_000, "epoch": 65_536}


def ablate(recipe, folder: Path, deadline: float | None = None, progress: bool = True) -> dict | None:
    """Train every variant for as many windows and score validation frames, without and with read noise; one that is finished is kept. None if the time
    budget ended first."""
    import numpy as np

    from csist import FocalPlane
    from csist.datasets import csist100k
    from csist.evaluation import provenance
    from csist.metrics import cso_map
    from csist.networks.continuous import ContinuousRecipe, ContinuousTrainer, unmix_continuous
    from csist.training import write_json

    path = folder / "results" / "ablation-continuous.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(path.read_text()) if path.exists() else {"name": "ablation-continuous", "recipe": asdict(recipe), "split": "val", "variants": {}}
    if ContinuousRecipe(**result["recipe"]) != recipe:
        raise ValueError(f"{path} holds another ablation; delete it, or choose another --output")
    val = csist100k("val", recipe.val_size)
    noisy = FocalPlane(read_noise=NOISE).render(val.targets, np.random.default_rng(recipe.seed))
    for name, changes in ABLATIONS.items():
        if name in result["variants"]:
            continue
        checkpoint = folder / "checkpoints" / f"continuous-ablation-{name}.safetensors"
        trainer = ContinuousTrainer(replace(recipe, **changes), checkpoint, val, progress)
        trainer.resume()
        if not trainer.fit(deadline):
            return None
        parameters = sum(p.numel() for p in trainer.network.parameters())
        result["variants"][name] = {"changes": changes, "parameters": parameters, **trainer.history[-1]}
        result["variants"][name]["noisy_cso_map"] = cso_map(unmix_continuous(noisy, network=trainer.network), val.targets).map
        result["provenance"] = provenance()
        write_json(path, result)
        trainer.path.unlink(missing_ok=True)
        print(f"{name}: CSO-mAP x 100 = {100 * trainer.history[-1]['val_cso_map']:.2f} on {recipe.val_size:,} validation frames", flush=True)
    return result


def finish(trainer, name: str, folder: Path) -> dict:
    """Store the weights as float16, score the test split with exactly those, and write the result files."""
    from csist.networks.continuous import write_continuous
    from csist.pipeline import file_hash

    recipe, path = trainer.recipe, folder / "weights" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_continuous(path, trainer.network, {"run": name, "recipe": asdict(recipe)})
    about = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "weights": path.name,
        "weights_sha256": file_hash(path),
        "precision": "float32 in training and use, float16 on disk",
        "samples": trainer.step * recipe.batch,
        "hours": trainer.seconds / 3600,
        "cpu_hours": trainer.cpu_seconds / 3600,
        "learned": f"{trainer.step * recipe.batch:,} simulated windows with labels",
    }
    return publish(name, folder, about, trainer.history)


def publish(name: str, folder: Path, about: dict, history: list, which: str = "all") -> dict:
    """Score stored weights on the test split and write ``<name>.json``, and its like for polished answers where numba is; returns the first of them."""
    from csist.datasets import csist100k
    from csist.networks.continuous import read_continuous
    from csist.training import write_json

    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    network, test = read_continuous(folder / "weights" / about["weights"])[0], csist100k("test", about["recipe"]["test_size"])
    written = []
    if which == "all":
        written.append({"name": name, "label": "continuous network", **about, **score(network, test, polish=False), "history": history})
    polished = f"{name}-polished" if "-seed" not in name else name.replace("-seed", "-polished-seed", 1)
    try:
        written.append({"name": polished, "label": "continuous network, polished", **about, **score(network, test, polish=True)})
    except ImportError:
        if which == "polished":
            raise
        print(f"{polished}: left out, numba is not installed")
    for result in written:
        write_json(results / f"{result['name']}.json", result)
    return written[0]


def rescore(name: str, folder: Path, which: str = "all") -> dict:
    """The same result files from stored weights, after the package has changed."""
    from csist import reporting
    from csist.pipeline import file_hash

    result = reporting.load_result(name, folder)
    if result is None or not (folder / "weights" / f"{name}.safetensors").is_file():
        raise FileNotFoundError(f"{name}: no result and weights in {folder}; train it first")
    about = {key: result[key] for key in ("recipe", "parameters", "weights", "weights_sha256", "precision", "samples", "hours", "cpu_hours", "learned")}
    if file_hash(folder / "weights" / about["weights"]) != about["weights_sha256"]:
        raise ValueError(f"{name}: the weights are not those of the result")
    return publish(name, folder, about, result["history"], which)


def score(network, test, polish: bool) -> dict:
    """Scores on the test split, calibration, speed and provenance of one way to answer."""
    from csist.datasets import frames_hash
    from csist.evaluation import provenance
    from csist.metrics import score_report
    from csist.networks.continuous import unmix_continuous

    estimate = unmix_continuous(test.frames, network=network, polish=polish)
    rates = speed(network, test.frames[:2048], polish)
    return {
        "settings": {"polish": polish},
        "test": {"frames": len(test.frames), "frames_sha256": frames_hash(test), **score_report(estimate, test.targets, resamples=200, seed=0)},
        "calibration": calibration(estimate, test.targets),
        "frames_per_second": rates["threads_1"]["frames_per_cpu_second"],
        "speed": rates,
        "provenance": provenance(),
    }


def calibration(estimate, truth, groups: int = 10) -> dict:
    """Claimed and real hit probabilities, in groups of equal size from the least certain on, and predicted deviations against real errors.

    ``rms_pull`` is the root mean square of (estimate - truth) / sigma over matched coordinates: 1 for honest deviations, if errors were Gaussian.
    """
    import numpy as np

    from csist.metrics import match_detections, match_pairs

    matches = match_detections(estimate, truth)
    real, claimed = matches.is_hit.mean(0), matches.score
    parts = np.array_split(np.argsort(claimed, kind="stable"), groups)
    frame, slot, partner = match_pairs(estimate, truth)
    pull = (estimate.xy[frame, slot] - truth.xy[frame, partner]) / estimate.sigma[frame, slot]
    return {
        "claimed": [float(claimed[part].mean()) for part in parts],
        "real": [float(real[part].mean()) for part in parts],
        "mean_claimed": float(claimed.mean()),
        "mean_real": float(real.mean()),
        "rms_pull": float(np.sqrt(np.mean(pull**2))),
        "share_within_1_sigma": float((np.abs(pull) < 1).mean()),
    }


def speed(network, frames, polish: bool = False, seconds: float = 1.0) -> dict:
    """Frames per second by the wall clock and by the processors' time, on one and two threads; the load average says how busy the machine was."""
    import os

    import torch

    from csist.networks.continuous import unmix_continuous

    before, rates = torch.get_num_threads(), {"load_average": os.getloadavg()[0]}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            unmix_continuous(frames, network=network, polish=polish)
            done, wall, cpu = 0, time.perf_counter(), time.process_time()
            while time.process_time() - cpu < seconds:
                unmix_continuous(frames, network=network, polish=polish)
                done += len(frames)
            rates[f"threads_{threads}"] = {
                "frames_per_second": done / (time.perf_counter() - wall),
                "frames_per_cpu_second": done / (time.process_time() - cpu),
            }
    finally:
        torch.set_num_threads(before)
    return rates


def main(arguments=None) -> int:
    import torch

    from csist import reporting
    from csist.cli import hold
    from csist.datasets import csist100k
    from csist.networks.continuous import ContinuousRecipe, ContinuousTrainer

    options = arguments_parser().parse_args(arguments)
    deadline = None if options.time_budget is None else time.monotonic() + options.time_budget
    recipe = ContinuousRecipe(**{field.name: getattr(options, field.name) for field in fields(ContinuousRecipe)})
    folder = options.output
    name = options.name or ("continuous-ablation" if options.ablate else f"continuous-seed{recipe.seed}")
    torch.set_num_threads(options.threads)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    lock = hold(folder / "checkpoints" / f"{name}.lock")
    if lock is None:
        print(f"{name}: held by another process")
        return 0
    if options.ablate:
        own = {key: value for key, value in ABLATED.items() if getattr(options, key) == getattr(ContinuousRecipe, key)}
        with lock:
            if ablate(replace(recipe, **own), folder, deadline) is None:
                print(f"{name}: the time is spent; the same call goes on")
        return 0
    with lock:
        result = reporting.load_result(name, folder)
        if options.rescore:
            return report(rescore(name, folder, options.rescore))
        if result is not None and ContinuousRecipe(**result["recipe"]) == recipe and not options.again:
            print(f"{name}: is finished")
            return 0
        trainer = ContinuousTrainer(recipe, folder / "checkpoints" / f"{name}.safetensors", csist100k("val", recipe.val_size))
        trainer.resume()
        if not trainer.fit(deadline):
            print(f"{name}: the time is spent; the same call goes on")
            return 0
        result = finish(trainer, name, folder)
        trainer.path.unlink(missing_ok=True)
    return report(result)


def report(result: dict) -> int:
    test = result["test"]
    print(f"{result['name']}: CSO-mAP x 100 = {100 * test['cso_map']:.2f} on {test['frames']:,} test frames, {result['hours']:.2f} h", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
