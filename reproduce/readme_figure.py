"""Draw the README's picture: one frame, what is in it, and what an unmixer says; writes book/_static/readme-unmixing.png.

    python reproduce/readme_figure.py                 # DISTA-Net if its weights are there, else the model-based method with settings tuned on validation
    python reproduce/readme_figure.py --method omp
"""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import numpy as np  # noqa: E402

import csist  # noqa: E402

OUTPUT = HERE.parent / "book" / "_static" / "readme-unmixing.png"
NAMES = {"dista-net": "DISTA-Net", "ista-net": "ISTA-Net", "ista-net+": "ISTA-Net+", "ista": "ISTA", "fista": "FISTA", "omp": "OMP"}


def choose_method() -> str:
    """The network of the paper if it has been trained, else the model-based method that needs no weights."""
    from csist.networks.registry import run_name, weights_path

    return "dista-net" if weights_path(run_name("dista-net", 3)) else "ista"


def scene() -> csist.Targets:
    """Four targets inside pixel (5, 6); a fixed seed, not a frame picked because a method does well on it (it is the one of the book's first page)."""
    return csist.random_targets(1, np.random.default_rng(7), count=(4, 4), cells=[[5, 6]])


def draw(method: str, path: Path) -> None:
    """Three panels: the frame, the truth on it magnified, the estimate beside the truth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from csist import plotting

    plane, targets = csist.FocalPlane(), scene()
    frame = plane.render(targets)
    estimate = csist.unmix(frame, method=method, ratio=3)
    with plotting.style():
        figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.7))
        plotting.show_frame(frame, panels[0], title="what the camera reports")
        plotting.show_frame(frame, panels[1], targets=targets, zoom=1, title=f"what is there: {targets.count[0]} targets")
        found = f"{NAMES.get(method, method)} finds {estimate.count[0]}"
        plotting.show_frame(frame, panels[2], targets=targets, estimate=estimate, method=method, zoom=1, title=found)
        plotting.legend(panels[2], NAMES.get(method, method))
        figure.savefig(path, format="png", dpi=140, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=csist.list_methods(), default=None)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(argv)
    method = options.method or choose_method()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_suffix(".part")
    draw(method, temporary)
    os.replace(temporary, options.output)
    print(f"{options.output.name}: drawn with {method}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
