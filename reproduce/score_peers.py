"""What well-known libraries score on the same test frames; writes results/peers.json.

    python reproduce/score_peers.py                        # all of them: about an hour on one core
    python reproduce/score_peers.py --only nnls-c3 omp-c3
    python reproduce/score_peers.py --val-size 8 --size 8 --output trial.json

Everyone may choose settings on validation frames; the test frames, the first so many of the split, are scored once. Each entry says what its method was told.
Speeds are in processor seconds of one core. photutils and scikit-learn belong to the extra "test": pip install csist[test]. The file is written after every
entry; one that is current is kept, ``--again`` makes it anew.
"""
from __future__ import annotations

import argparse
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import numpy as np  # noqa: E402

from csist.datasets import Frames, csist100k, frames_hash  # noqa: E402
from csist.evaluation import provenance  # noqa: E402
from csist.imaging import FocalPlane, SubpixelGrid  # noqa: E402
from csist.metrics import cso_map, score_report  # noqa: E402
from csist.readout import read_out, tune_readout  # noqa: E402
from csist.reporting import read_json  # noqa: E402
from csist.scenes import Targets, random_targets  # noqa: E402
from csist.solvers.finding import find_cells  # noqa: E402
from csist.solvers.least_squares import FrameFit, answer_of, plausible_counts, unmix_least_squares  # noqa: E402
from csist.training import write_json  # noqa: E402

WHAT = "well-known libraries on the first frames of the test split; settings chosen on validation frames"
PLANE, WINDOW = FocalPlane(), 5
KEPT = ("frames", "cso_map", "ap", "interval", "standard_error", "count_accuracy", "detections", "targets", "localisation")  # of a score report
FWHM = 2 * np.sqrt(2 * np.log(2)) * PLANE.sigma  # px


# Sparse recovery on the grid -------------------------------------------------------------------------------------------------------------


class SparsePeer:
    """A library's sparse solver, frame by frame, without saturated pixels; its image is read like a network's."""

    package = "scikit-learn"
    frames, val_frames = 1_000, 200
    readouts = ("threshold", "merged", "counted")

    def __init__(self, label: str, ratio: int, solve, choices, package="scikit-learn", told_count=False):
        self.label, self.grid, self.solve, self.choices, self.package = label, SubpixelGrid(PLANE.shape, ratio), solve, choices, package
        self.matrix = PLANE.steering_matrix(self.grid).reshape(*PLANE.shape, *self.grid.shape)
        self.told = {"psf": True, "saturation": True, "cell": "chosen on validation frames", "distance": False, "intensity": False, "count": told_count}
        self.needs_count = told_count

    def images(self, data: Frames, settings: dict) -> np.ndarray:
        """Sub-pixel images (n, c*rows, c*columns)."""
        images = np.zeros((len(data.frames), *self.grid.shape))
        own = {name: value for name, value in settings.items() if name not in ("reach", "readout", "options")}
        for image, frame, cell, count in zip(images, data.frames.astype(np.float64), find_cells(data.frames, WINDOW), data.targets.count):
            pixels = tuple(slice(max(0, c - WINDOW // 2), c + WINDOW // 2 + 1) for c in cell)
            nodes = tuple(slice(max(0, c - settings["reach"]) * self.grid.ratio, (c + settings["reach"] + 1) * self.grid.ratio) for c in cell)
            measured = frame[pixels] < PLANE.full_scale
            part = self.matrix[pixels + nodes]
            design = part[measured].reshape(int(measured.sum()), -1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # solvers that stop at their last iteration say so for every frame
                image[nodes] = self.solve(design, frame[pixels][measured], count=int(count), **own).reshape(part.shape[2:])
        return images

    def tune(self, data: Frames) -> list[dict]:
        """Every setting with its validation score."""
        tried = []
        for settings in self.choices:
            images = self.images(data, settings)
            for name in self.readouts:
                chosen = tune_readout(images, self.grid, data.targets, name)
                tried.append({"settings": {**settings, "readout": name, "options": chosen["settings"]}, "cso_map": chosen["cso_map"]})
        return tried

    def answer(self, data: Frames, settings: dict) -> Targets:
        return read_out(self.images(data, settings), self.grid, settings["readout"], **settings["options"])


def solve_nnls(design, values, count):
    from scipy.optimize import nnls

    return nnls(design, values)[0]


def solve_lasso(design, values, count, alpha):
    from sklearn.linear_model import Lasso

    return Lasso(alpha=alpha, positive=True, fit_intercept=False, max_iter=2_000, tol=1e-4).fit(design, values).coef_


def solve_omp(design, values, count):
    from sklearn.linear_model import OrthogonalMatchingPursuit

    norms = np.linalg.norm(design, axis=0)
    pursuit = OrthogonalMatchingPursuit(n_nonzero_coefs=min(count, *design.shape), fit_intercept=False)
    return pursuit.fit(design / np.where(norms > 0, norms, 1.0), values).coef_ / np.where(norms > 0, norms, np.inf)


REACHES = [{"reach": 0}, {"reach": 1}]  # candidates inside the cluster's pixel, or in its 3 x 3 neighbourhood


# photutils -------------------------------------------------------------------------------------------------------------------------------


class JointPhotometry:
    """photutils' PSFPhotometry: all targets of a frame as one group, told how many there are; the best of several random starts."""

    label, package = "photutils, joint fit, true count", "photutils"
    frames, val_frames = 200, 30
    choices = [{"starts": 1}, {"starts": 5}]
    told = {"psf": True, "saturation": True, "cell": True, "distance": "of the starts", "intensity": "of the starts", "count": True}

    def tune(self, data: Frames) -> list[dict]:
        return [{"settings": settings, "cso_map": cso_map(self.answer(data, settings), data.targets).map} for settings in self.choices]

    def answer(self, data: Frames, settings: dict) -> Targets:
        lists = []
        for index, (frame, cell, count) in enumerate(zip(data.frames.astype(np.float64), find_cells(data.frames, WINDOW), data.targets.count)):
            starts = random_targets(settings["starts"], np.random.default_rng([0, index]), count=(int(count), int(count)), shape=(1, 1)).xy + cell
            lists.append(min((self._fit(frame, xy) for xy in starts), key=lambda found: found[0])[1])
        return Targets.from_lists(*zip(*lists))

    def _fit(self, frame, xy):
        """(cost, (positions, intensities, scores)) of one start."""
        from astropy.table import Table
        from photutils.psf import CircularGaussianPRF, PSFPhotometry

        start = Table({"x": xy[:, 1], "y": xy[:, 0], "flux": np.full(len(xy), 235.0), "group_id": np.ones(len(xy), dtype=int)})
        mask = frame >= PLANE.full_scale
        photometry = PSFPhotometry(CircularGaussianPRF(fwhm=FWHM), fit_shape=(WINDOW, WINDOW), xy_bounds=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = photometry(frame, mask=mask, error=np.full(frame.shape, 12**-0.5), init_params=start)
        found = from_table(table)
        residual = np.where(mask, 0.0, frame - PLANE.expected(Targets.from_lists(found[0][None], found[1][None]))[0])
        return float((residual**2).sum()) if len(found[0]) else np.inf, found


class IterativePhotometry:
    """photutils as its guide has it: DAOStarFinder finds, PSFPhotometry fits and subtracts, and again on what is left."""

    label, package = "photutils, finding by itself", "photutils"
    frames, val_frames = 200, 30
    choices = [{"mode": mode, "threshold": threshold} for mode in ("new", "all") for threshold in (2.0, 10.0, 30.0)]
    told = {"psf": True, "saturation": True, "cell": False, "distance": False, "intensity": False, "count": False}
    tune = JointPhotometry.tune

    def answer(self, data: Frames, settings: dict) -> Targets:
        return Targets.from_lists(*zip(*[self._fit(frame, **settings) for frame in data.frames.astype(np.float64)]))

    def _fit(self, frame, mode, threshold):
        from photutils.detection import DAOStarFinder
        from photutils.psf import CircularGaussianPRF, IterativePSFPhotometry, SourceGrouper

        padded = np.pad(frame, WINDOW)  # the finder wants room about a star
        options = {"finder": DAOStarFinder(threshold, FWHM), "grouper": SourceGrouper(3), "aperture_radius": 2.0, "mode": mode, "maxiters": 5}
        photometry = IterativePSFPhotometry(CircularGaussianPRF(fwhm=FWHM), (WINDOW, WINDOW), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                table = photometry(padded, mask=padded >= PLANE.full_scale, error=np.full(padded.shape, 12**-0.5))
            except (ValueError, np.linalg.LinAlgError):  # a fit that left the frame ends photutils' next round
                table = None
        xy, flux, score = from_table(table)
        xy, kept = xy - WINDOW, flux >= 50.0  # as dim as the paper's threshold is no target
        kept &= ((xy > -1) & (xy < frame.shape[0])).all(1)
        return xy[kept], flux[kept], score[kept]


def from_table(table):
    """Positions, intensities and scores of a photutils table; the score is minus the fit's variance where it is known."""
    if table is None or not len(table):
        return np.zeros((0, 2)), np.zeros(0), np.zeros(0)
    column = lambda name: np.ma.filled(np.ma.asarray(table[name], dtype=np.float64), np.nan)
    xy, flux = np.column_stack([column("y_fit"), column("x_fit")]), column("flux_fit")
    variance = column("x_err") ** 2 + column("y_err") ** 2
    order = np.argsort(-flux)
    order = order[np.isfinite(xy[order]).all(1) & np.isfinite(flux[order])]
    return xy[order], flux[order], -np.where(np.isfinite(variance[order]), variance[order], 1e6)


# Continuous optimisation ------------------------------------------------------------------------------------------------------------------

PRIOR = {"psf": True, "saturation": True, "cell": True, "distance": True, "intensity": True, "count": False}


class MultiStart:
    """csist.solvers.least_squares: scipy's bounded least squares from random starts, the count by penalised cost."""

    label, package, told = "scipy least squares, 12 starts", "scipy", PRIOR
    frames, val_frames = 200, 30
    choices = [{"starts": 12, "penalty": penalty} for penalty in (0.0, 5.0)]
    tune = JointPhotometry.tune

    def answer(self, data: Frames, settings: dict) -> Targets:
        return unmix_least_squares(data.frames, PLANE, **settings)


class DifferentialEvolution:
    """scipy's differential evolution on the same cost, then its own polish; the count by cost."""

    label, package, told = "scipy differential evolution", "scipy", PRIOR
    frames, val_frames = 60, 8
    choices = [{"maxiter": maxiter} for maxiter in (60, 200)]
    tune = JointPhotometry.tune

    def answer(self, data: Frames, settings: dict) -> Targets:
        from scipy.optimize import differential_evolution

        lists = []
        for index, (frame, cell) in enumerate(zip(data.frames, find_cells(data.frames, WINDOW))):
            fits = []
            for number in plausible_counts(frame, PLANE, cell):
                fit = FrameFit(frame, cell, PLANE, number)
                options = {"popsize": 10, "vectorized": True, "updating": "deferred", "tol": 1e-6, "rng": np.random.default_rng([index, number])}
                cost = lambda theta, fit=fit: fit.cost(theta.T) if theta.ndim == 2 else fit.cost(theta[None])[0]
                found = differential_evolution(cost, list(zip(fit.low, fit.high)), **options, **settings)
                fits.append((found.fun, fit, found.x))
            _, fit, theta = min(fits, key=lambda one: one[0])
            lists.append(answer_of(fit, theta))
        return Targets.from_lists(*zip(*lists))


def peers() -> dict:
    """All entries by name; made when asked for, since the grids' matrices take a moment."""
    made = {"photutils-joint": JointPhotometry(), "photutils-iterative": IterativePhotometry()}
    for ratio in (3, 5, 7):
        made[f"nnls-c{ratio}"] = SparsePeer(f"scipy NNLS, c = {ratio}", ratio, solve_nnls, REACHES, package="scipy")
        alphas = [{**reach, "alpha": alpha} for reach in REACHES for alpha in (0.002, 0.02, 0.2)]
        made[f"lasso-c{ratio}"] = SparsePeer(f"scikit-learn Lasso, positive, c = {ratio}", ratio, solve_lasso, alphas)
        made[f"omp-c{ratio}"] = SparsePeer(f"scikit-learn OMP, true count, c = {ratio}", ratio, solve_omp, REACHES, told_count=True)
    return made | {"least-squares": MultiStart(), "differential-evolution": DifferentialEvolution()}


# Scoring ---------------------------------------------------------------------------------------------------------------------------------


def plan(peer, options) -> dict:
    """What determines an entry besides the code."""
    val, test = csist100k("val", options.val_size or peer.val_frames), csist100k("test", options.size or peer.frames)
    return {
        "label": peer.label,
        "package": peer.package,
        "told": peer.told,
        "choices": peer.choices,
        "validation_frames": len(val.frames),
        "validation_sha256": frames_hash(val),
        "frames": len(test.frames),
        "frames_sha256": frames_hash(test),
        "versions": {name: installed(name) for name in ("photutils", "scikit-learn", "scipy")},
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def score_peer(peer, options) -> dict:
    """Choose the settings on validation frames, then score the test frames once."""
    planned = plan(peer, options)
    val, test = csist100k("val", planned["validation_frames"]), csist100k("test", planned["frames"])
    tried = peer.tune(val)
    chosen = max(tried, key=lambda one: one["cso_map"])
    started = time.process_time()
    estimate = peer.answer(test, chosen["settings"])
    seconds = (time.process_time() - started) / len(test.frames)
    report = score_report(estimate, test.targets, resamples=200, seed=0)
    part = lambda scores: {name: scores[name] for name in ("frames", "cso_map", "count_accuracy")}
    parts = {"by_count": {name: part(scores) for name, scores in report["by_count"].items()}, **{name: part(report[name]) for name in ("interior", "border")}}
    return {
        **planned,
        "settings": chosen["settings"],
        "validation": {"tried": len(tried), "cso_map": chosen["cso_map"]},
        "test": {**{name: report[name] for name in KEPT}, **parts},
        "seconds_per_frame": seconds,
        "provenance": provenance(),
    }


def missing_package(peer) -> str | None:
    """The package that an entry needs and that is not installed."""
    return peer.package if installed(peer.package) is None else None


def main(arguments=None) -> int:
    made = peers()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(made), default=list(made), metavar="PEER", help=f"some of {', '.join(made)}")
    parser.add_argument("--val-size", type=int, default=None, help="validation frames that settings are chosen on, for a trial")
    parser.add_argument("--size", type=int, default=None, help="number of test frames, for a trial")
    parser.add_argument("--output", type=Path, default=None, help="the file; by default results/peers.json")
    parser.add_argument("--again", action="store_true", help="also score entries that are current")
    options = parser.parse_args(arguments)
    if (options.size is not None or options.val_size is not None) and options.output is None:
        parser.error("a trial with --size or --val-size needs --output, so that it does not replace the stored scores")
    output, failed = options.output or HERE / "results" / "peers.json", 0
    for name in options.only:
        peer, entries = made[name], read_json(output)["entries"] if output.is_file() else {}
        stored = entries.get(name, {})
        if not options.again and all(stored.get(key) == value for key, value in plan(peer, options).items()):
            print(f"{name}: is current")
            continue
        if missing_package(peer):
            print(f"{name}: needs {missing_package(peer)}, which is not installed: pip install csist[test]")
            failed = 1
            continue
        scored = score_peer(peer, options)
        entries = read_json(output)["entries"] if output.is_file() else {}  # read again: another run may have written meanwhile
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, {"what": WHAT, "entries": {key: value for key, value in sorted((entries | {name: scored}).items())}, "provenance": provenance()})
        test = scored["test"]
        low, high = test["interval"]
        score = f"CSO-mAP x 100 = {100 * test['cso_map']:.2f} ({100 * low:.2f} to {100 * high:.2f}), count right {100 * test['count_accuracy']:.1f} %"
        print(f"{name:24} {score}, {1000 * scored['seconds_per_frame']:.1f} ms a frame", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
