"""What perfect detection on the grid scores on the test split, in three orders, at c = 3, 5 and 7; writes results/ceilings.json.

    python reproduce/ceilings.py                                # about three minutes on one core
    python reproduce/ceilings.py --size 64 --output trial.json

The orders: random; typical, by the brightness that a trained network gives the targets' own sub-pixels; ranked, by true distance. The network is the one
with the best validation score among those whose weights are here; a ratio whose network and frames have not changed is kept, ``--again`` makes it anew.
"""
from __future__ import annotations

import argparse
import sys
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from csist.datasets import csist100k, frames_hash  # noqa: E402
from csist.evaluation import predict, provenance, quick_way  # noqa: E402
from csist.networks.registry import NETWORKS, read_weights, run_name  # noqa: E402
from csist.reporting import grid_ceilings, load_result, read_json  # noqa: E402
from csist.training import write_json  # noqa: E402

RATIOS = (3, 5, 7)
WHAT = "CSO-mAP of perfect detections on the grid: in random order, in the order of a trained network's brightness (typical), by true distance (ranked)"


def best_run(ratio: int) -> str:
    """The run of the tables' main rows with the best validation score among those whose weights are here."""
    names = [run_name(network, ratio) for network in NETWORKS]
    known = {name: load_result(name) for name in names if weights_of(name).is_file()}
    if not known:
        raise SystemExit(f"no weights of a network with c = {ratio} in {HERE / 'weights'}; train one with reproduce/queue.py")
    return max(known, key=lambda name: known[name]["selected"]["val_cso_map"])


def plan(ratio: int, data) -> dict:
    """What determines the ceilings at one ratio besides the code: the network and the frames."""
    run = best_run(ratio)
    return {"run": run, "weights_sha256": sha256(weights_of(run).read_bytes()).hexdigest(), "frames_sha256": frames_hash(data)}


def weights_of(run: str) -> Path:
    return HERE / "weights" / f"{run}.safetensors"


def at_ratio(ratio: int, planned: dict, data, device: str) -> dict:
    """The three ceilings, and which network's brightness is the typical order."""
    network, _ = read_weights(weights_of(planned["run"]))
    images = predict(network, data.frames, device=device, **quick_way(network))
    ceilings = grid_ceilings(data.targets, ratio, images=images)
    return {"random": ceilings.random, "typical": ceilings.typical, "ranked": ceilings.ranked, "frames": len(data.frames), **planned}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=None, help="number of test frames, for a trial; by default all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=None, help="the file; by default results/ceilings.json, which takes the whole test split only")
    parser.add_argument("--again", action="store_true", help="also make what is current")
    options = parser.parse_args(arguments)
    if options.size is not None and options.output is None:
        parser.error("a trial with --size needs --output, so that it does not replace ceilings of the whole split")
    output = options.output or HERE / "results" / "ceilings.json"
    data, ratios = csist100k("test", options.size), read_json(output)["ratios"] if output.is_file() else {}
    for ratio in RATIOS:
        planned, stored = plan(ratio, data), ratios.get(str(ratio), {})
        if not options.again and all(stored.get(key) == value for key, value in planned.items()):
            print(f"c = {ratio}: is current")
            continue
        now = ratios[str(ratio)] = at_ratio(ratio, planned, data, options.device)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, {"what": WHAT, "split": "test", "ratios": ratios, "provenance": provenance()})
        print(f"c = {ratio}: random {100 * now['random']:.2f}, typical {100 * now['typical']:.2f} ({now['run']}), ranked {100 * now['ranked']:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
