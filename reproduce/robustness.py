"""What every kind of method scores when frames are not as they were trained for or told; writes results/robustness.json.

    python reproduce/robustness.py                                  # everything that is not stored yet: about an hour on one core
    python reproduce/robustness.py --only read-noise-2 airy
    python reproduce/robustness.py --methods off-grid-fast dista-net
    python reproduce/robustness.py --size 8 --only base --output trial.json

"plain" means that a method takes the frames for what it knows, CSIST-100K; "informed" that it is told what a user would know or measure (read noise, the
PSF's width and throughput on 20 frames of single targets, the law of the scenes, a background); "tolerant" that the off-grid unmixer is only told not to
trust a grey level. Networks cannot be told anything.
Every score is stored as soon as it is known. One that was made with the same settings on the same frames is kept; ``--again`` makes it anew.
"""
from __future__ import annotations

import argparse
import functools
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import numpy as np  # noqa: E402

from csist.datasets import Frames, frames_hash  # noqa: E402
from csist.evaluation import detect, predict, provenance  # noqa: E402
from csist.imaging import FocalPlane, SubpixelGrid, pixel_profile  # noqa: E402
from csist.instrument import measure_sigma, subtract_background  # noqa: E402
from csist.metrics import match_detections, score_report  # noqa: E402
from csist.networks.continuous import DEFAULT_RUN, unmix_continuous  # noqa: E402
from csist.networks.detector import read_detector  # noqa: E402
from csist.networks.registry import read_weights  # noqa: E402
from csist.pipeline import Pipeline, file_hash  # noqa: E402
from csist.reporting import read_json  # noqa: E402
from csist.scenes import Targets, random_targets  # noqa: E402
from csist.solvers.ista import TUNED, unmix_ista  # noqa: E402
from csist.solvers.offgrid import TIERS, Prior, unmix_offgrid  # noqa: E402
from csist.training import write_json  # noqa: E402

WHAT = "CSO-mAP when frames differ from CSIST-100K, by method and by what the method is told"
SEED = 31  # of the scenes; conditions with the same law share their scenes
KEPT = ("frames", "cso_map", "ap", "interval", "standard_error", "count_accuracy")  # of a score report
PLANE, GAP = FocalPlane(), 0.52 * 0.95  # px
FWHM, AIRY_FWHM = 2 * np.sqrt(2 * np.log(2)) * PLANE.sigma, 0.8436659602162364  # px; in units of the radius of the first dark ring
TOLERANCE = 1.0  # grey levels that the "tolerant" variant does not trust


# Conditions ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """A way in which frames differ from CSIST-100K, and what a user could tell a method about it."""

    group: str
    value: float | str  # place on the group's axis
    what: str
    scene: dict = field(default_factory=dict)  # of random_targets
    sensor: dict = field(default_factory=dict)  # of FocalPlane, what makes the frames
    psf: tuple = ("gaussian",)  # ("airy", radius of the first dark ring in px) or ("elliptical", share by which one axis is shorter)
    gain: float = 1.0  # grey levels of the sensor for one of CSIST-100K
    background: float = 0.0  # grey levels of a ramp at the frame's last row
    known: dict = field(default_factory=dict)  # fields of the Prior that a user would set

    @property
    def plane(self) -> FocalPlane:
        return FocalPlane(**self.sensor)

    def data(self, size: int) -> Frames:
        """Frames and their targets, with intensities in CSIST-100K's grey levels."""
        truth = random_targets(size, np.random.default_rng(SEED), **self.scene)
        light = self.gain * expected(truth, self.plane, self.psf)
        light = light + self.background * np.arange(light.shape[1])[:, None] / (light.shape[1] - 1)
        noise = np.random.default_rng(SEED + 1).normal(0.0, 1.0, light.shape) * self.plane.read_noise
        return Frames(self.plane.digitise(light + noise), truth)


def expected(targets: Targets, plane: FocalPlane, psf: tuple) -> np.ndarray:
    """Light of targets (n, rows, columns) under a Gaussian, an Airy or an elliptical Gaussian PSF.

    An Airy pattern is given by the radius of its first dark ring; the elliptical PSF has the same area as the round one, its longer axis along x.
    """
    if psf[0] == "gaussian":
        return plane.expected(targets)
    xy, intensity = np.where(targets.mask[..., None], targets.xy, 0.0), np.where(targets.mask, targets.intensity, 0.0)
    if psf[0] == "elliptical":
        stretch = np.sqrt(1 - psf[1])
        rows = pixel_profile(xy[..., 0], plane.shape[0], plane.sigma / stretch) * intensity[..., None]
        return np.swapaxes(rows, 1, 2) @ pixel_profile(xy[..., 1], plane.shape[1], plane.sigma * stretch)
    spline = airy_response(psf[1], max(plane.shape))
    gap = [abs(np.arange(size) - xy[..., axis, None]) for axis, size in enumerate(plane.shape)]
    share = spline.ev(*np.broadcast_arrays(gap[0][..., :, None], gap[1][..., None, :]))
    return np.einsum("nk,nkij->nij", intensity, share)


@functools.lru_cache(maxsize=4)
def airy_response(radius: float, size: int, per_pixel: int = 100):
    """Spline of the share of an Airy pattern's light in a pixel, by the pixel's distance along rows and columns [px].

    The integral over the pixel's square is a midpoint sum over ``per_pixel`` squared points, good to 5e-5.
    """
    from scipy.interpolate import RectBivariateSpline
    from scipy.special import j1

    points = (np.arange((size + 2) * per_pixel) + 0.5) / per_pixel - 1.0  # from -1 to size + 1 px
    scale = 3.8317059702075125 / radius  # the first zero of J1
    r = np.maximum(scale * np.hypot(points[:, None], points), 1e-9)
    density = (j1(r) / r) ** 2 * scale**2 / np.pi
    total = np.pad(density.cumsum(0).cumsum(1), ((1, 0), (1, 0))) / per_pixel**2
    light = total[per_pixel:, per_pixel:] - total[:-per_pixel, per_pixel:] - total[per_pixel:, :-per_pixel] + total[:-per_pixel, :-per_pixel]
    centres = np.arange(len(light)) / per_pixel - 0.5
    return RectBivariateSpline(centres, centres, light)


def conditions() -> dict[str, Condition]:
    """All conditions by name."""
    made = {"base": Condition("base", 0, "as CSIST-100K")}
    for sd in (1.0, 2.0, 5.0, 10.0):
        made[f"read-noise-{sd:g}"] = Condition("read_noise", sd, f"Gaussian read noise of {sd:g} grey level{'s' * (sd != 1)}", sensor={"read_noise": sd})
    for error in (-10, -5, 5, 10):
        what = f"the PSF's width is taken for {abs(error)} % {'more' if error > 0 else 'less'} than it is"
        made[f"sigma{error:+d}"] = Condition("sigma_error", error, what, sensor={"sigma": 0.5 / (1 + error / 100)})
    # The focal plane's chapter maps an Airy pattern to the Gaussian with as much light inside the first dark ring: 1 R. Its core is then much narrower.
    made["airy"] = Condition("psf", "Airy, ring at 1 R", "an Airy pattern with its first dark ring at 1 R", psf=("airy", PLANE.rayleigh))
    fwhm = Condition("psf", "Airy, same FWHM", "an Airy pattern as wide at half its height as the Gaussian", psf=("airy", FWHM / AIRY_FWHM))
    made["airy-fwhm"] = fwhm
    for share in (0.1, 0.2):
        made[f"elliptical-{100 * share:.0f}"] = Condition(
            "psf", f"{100 * share:.0f} % narrower", f"a PSF {100 * share:.0f} % narrower in y than in x", psf=("elliptical", share)
        )
    for rayleigh in (0.3, 0.4):
        gap = round(rayleigh * 0.95, 6)
        what = f"targets as close as {rayleigh:g} R"
        made[f"gap-{rayleigh:g}R"] = Condition("gap", rayleigh, what, scene={"min_distance": gap}, known={"min_distance": gap})
    for number in (6, 7, 8):
        scene, known = {"count": (number, number), "min_distance": 0.3}, {"counts": (1, 8), "min_distance": 0.3}
        made[f"count-{number}"] = Condition("count", number, f"{number} targets at least 0.3 px apart", scene=scene, known=known)
    for faintest in (125.0, 50.0):
        what = f"intensities from {faintest:g} to 250, a ratio of up to 1 : {250 / faintest:g}"
        ratio = Condition("ratio", 250 / faintest, what, scene={"intensity": (faintest, 250.0)}, known={"intensity": (faintest, 250.0)})
        made[f"ratio-{250 / faintest:g}"] = ratio
    made["unclipped"] = Condition("sensor", "no clipping", "a sensor that never saturates", sensor={"clip": False})
    made["12-bit"] = Condition("sensor", "12 bits", "12 bits over the same range of light", sensor={"bits": 12}, gain=16.0)
    for level in (5.0, 20.0):
        made[f"background-{level:g}"] = Condition("background", level, f"a ramp from 0 to {level:g} grey levels beneath the targets", background=level)
    return made


@functools.lru_cache(maxsize=16)
def measured_optics(sigma: float, psf: tuple, size: int = 20) -> tuple[float, float]:
    """PSF width [px] and share of the light that a Gaussian accounts for, as a user would fit them to frames of single targets of known intensity."""
    truth = random_targets(size, np.random.default_rng(SEED + 2), count=(1, 1), cells=np.full((size, 2), 5))
    frames = PLANE.digitise(expected(truth, replace(PLANE, sigma=sigma), psf))
    width = measure_sigma(frames, PLANE, intensity=truth.intensity[:, 0])
    return width.sigma, width.share


# Methods ---------------------------------------------------------------------------------------------------------------------------------


def shown(condition: Condition, frames: np.ndarray, informed: bool) -> np.ndarray:
    """Frames as a method that cannot be told anything gets them: in CSIST-100K's grey levels, less the background where a user took it away."""
    frames = frames / condition.gain if condition.gain != 1 else frames
    return subtract_background(frames, PLANE) if informed and condition.background else frames


class OffGrid:
    """The training-free unmixer in one of its tiers; with ``told_only`` it is told whatever a user could tell."""

    variants = ("plain", "informed", "tolerant")

    def __init__(self, tier: str, frames: int, told_only: bool = False):
        self.tier, self.frames, self.told_only = tier, frames, told_only

    def applies(self, condition: Condition, variant: str) -> bool:
        informed = self.setting(condition, "informed") != self.setting(condition, "plain") or bool(condition.background)
        if variant == "tolerant":
            return not self.told_only and condition.group in ("base", "sigma_error", "psf", "background")
        return informed if variant == "informed" else not (self.told_only and informed)

    def setting(self, condition: Condition, variant: str) -> tuple[FocalPlane, Prior]:
        """The focal plane and the prior that the unmixer is given."""
        if variant != "informed":
            return replace(PLANE, read_noise=TOLERANCE if variant == "tolerant" else 0.0), Prior()
        known = dict(condition.known)
        if condition.gain != 1:
            known["intensity"] = tuple(condition.gain * level for level in Prior().intensity)
        doubt = TOLERANCE if condition.background or condition.psf[0] != "gaussian" else condition.plane.read_noise
        plane = replace(condition.plane, read_noise=doubt)
        if condition.group in ("sigma_error", "psf"):
            width, share = measured_optics(condition.plane.sigma, condition.psf)
            plane = replace(plane, sigma=round(width, 5))
            known["intensity"] = tuple(round(share * level, 2) for level in Prior().intensity)
        return plane, Prior(**known)

    def settings(self, condition: Condition, variant: str) -> dict:
        plane, prior = self.setting(condition, variant)
        return {"tier": self.tier, "effort": dict(TIERS[self.tier]), "plane": plain(asdict(plane)), "prior": plain(asdict(prior))}

    def answer(self, condition: Condition, frames: np.ndarray, variant: str) -> Targets:
        plane, prior = self.setting(condition, variant)
        if variant == "informed" and condition.background:
            frames = subtract_background(frames, plane)
        elif variant != "informed":
            frames = PLANE.digitise(frames / condition.gain)
        found = unmix_offgrid(frames, plane, tier=self.tier, prior=prior, threads=1)
        return replace(found, intensity=found.intensity / condition.gain) if variant == "informed" else found


class Images:
    """A method that makes sub-pixel images, read as the paper does or by the detectors that were trained behind it."""

    variants = ("plain", "informed")

    def __init__(self, name: str, frames: int, detector: str | None = None):
        self.run, self.detector, self.frames = f"{name}-c3-seed0", detector, frames

    def applies(self, condition: Condition, variant: str) -> bool:
        return variant == "plain" or bool(condition.background)

    def settings(self, condition: Condition, variant: str) -> dict:
        return {"weights": {run: file_hash(HERE / "weights" / f"{run}.safetensors") for run in filter(None, (self.run, self.detector))}}

    def answer(self, condition: Condition, frames: np.ndarray, variant: str) -> Targets:
        network = read_weights(HERE / "weights" / f"{self.run}.safetensors")[0]
        frames = shown(condition, frames, variant == "informed").astype(np.float32)
        images = predict(network, frames, windows=True, batch=64)
        if self.detector is None:
            return detect(images, SubpixelGrid(ratio=network.ratio))
        return Pipeline(network, read_detector(HERE / "weights" / f"{self.detector}.safetensors")[0]).read(images, frames)


class Continuous:
    """The network that answers with positions, trained on frames of CSIST-100K's law alone."""

    variants = ("plain", "informed")

    def __init__(self, frames: int):
        self.frames = frames

    def applies(self, condition: Condition, variant: str) -> bool:
        return variant == "plain" or bool(condition.background)

    def settings(self, condition: Condition, variant: str) -> dict:
        return {"weights": {DEFAULT_RUN: file_hash(HERE / "weights" / f"{DEFAULT_RUN}.safetensors")}}

    def answer(self, condition: Condition, frames: np.ndarray, variant: str) -> Targets:
        return unmix_continuous(PLANE.digitise(shown(condition, frames, variant == "informed")), network=DEFAULT_RUN)


class Ista:
    """Non-negative FISTA on the grid, c = 3, without saturated pixels, as tuned on validation frames; it can be told the PSF's width and the sensor."""

    variants = ("plain", "informed")

    def __init__(self, frames: int):
        self.frames = frames

    def applies(self, condition: Condition, variant: str) -> bool:
        own = (condition.plane.sigma, condition.plane.full_scale / condition.gain)
        return variant == "plain" or own != (PLANE.sigma, PLANE.full_scale) or bool(condition.background)

    def settings(self, condition: Condition, variant: str) -> dict:
        return {**asdict(TUNED), "informed": variant == "informed"}

    def answer(self, condition: Condition, frames: np.ndarray, variant: str) -> Targets:
        informed = variant == "informed"
        frames = shown(condition, frames, informed).astype(np.float64)
        plane = replace(PLANE, sigma=condition.plane.sigma, clip=condition.plane.clip) if informed else PLANE
        frames = np.minimum(frames, plane.full_scale)
        return detect(unmix_ista(frames, plane, 3, TUNED), SubpixelGrid(ratio=3), TUNED.threshold)


METHODS = {
    "off-grid-fast": OffGrid("fast", 500),
    "off-grid-standard": OffGrid("standard", 300, told_only=True),
    "continuous": Continuous(500),
    "dista-net": Images("dista-net", 300),
    "ista-net-plus": Images("ista-net-plus", 300),
    "cfgn-detector": Images("cfgn", 200, "cfgn-detector-c3-seed0"),
    "ista-tuned": Ista(100),
}


def plain(value):
    """The same value in JSON's own types."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


# Scoring ---------------------------------------------------------------------------------------------------------------------------------


def score(method, condition: Condition, variant: str, size: int) -> dict:
    """One method's scores under one condition."""
    data = condition.data(size)
    started = time.process_time()
    estimate = method.answer(condition, data.frames, variant)
    seconds = (time.process_time() - started) / size
    report = score_report(estimate, data.targets, resamples=200, seed=0)
    scores = {key: report[key] for key in KEPT} | claims(estimate, data.targets) | plan(method, condition, variant, size)
    return {**scores, "seconds_per_frame": seconds, "date": provenance()["date"]}


def claims(estimate: Targets, truth: Targets) -> dict:
    """Mean claimed hit probability and share of real hits, both over CSO-mAP's thresholds; nothing for scores that are no probabilities."""
    if estimate.score is None or not np.nanmax(estimate.score, initial=0.0) <= 1:
        return {}
    matches = match_detections(estimate, truth)
    return {"claimed": float(matches.score.mean()), "real": float(matches.is_hit.mean())}


def plan(method, condition: Condition, variant: str, size: int) -> dict:
    """What determines a score besides the code."""
    return {"settings": plain(method.settings(condition, variant)), "frames_sha256": frames_hash(condition.data(size))}


def store(path: Path, name: str, key: str, scores: dict) -> None:
    """Add a score to the file, read again just before: another run may have written meanwhile. What describes the conditions is written anew."""
    content = read_json(path) if path.is_file() else {"conditions": {}}
    methods = {name: entry["methods"] for name, entry in content["conditions"].items()}
    methods[name] = dict(sorted({**methods.get(name, {}), key: scores}.items()))
    ordered = {name: {**plain(asdict(condition)), "methods": methods[name]} for name, condition in conditions().items() if name in methods}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"what": WHAT, "seed": SEED, "conditions": ordered, "provenance": provenance()})


def in_words(scores: dict) -> str:
    low, high, count = (100 * value for value in (*scores["interval"], scores["count_accuracy"]))
    score = f"CSO-mAP x 100 = {100 * scores['cso_map']:.2f} ({low:.2f} to {high:.2f}), count right {count:.1f} %"
    return f"{score}, {1000 * scores['seconds_per_frame']:.1f} ms a frame"


def main(arguments=None) -> int:
    every = conditions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(every), default=list(every), metavar="CONDITION", help=f"some of {', '.join(every)}")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="some of the methods")
    parser.add_argument("--size", type=int, default=None, help="number of frames, for a trial; by default each method's own")
    parser.add_argument("--output", type=Path, default=None, help="the file; by default results/robustness.json")
    parser.add_argument("--again", action="store_true", help="also make scores that are current")
    options = parser.parse_args(arguments)
    if options.size is not None and options.output is None:
        parser.error("a trial with --size needs --output, so that it does not replace the stored scores")
    path = options.output or HERE / "results" / "robustness.json"
    for method_name in options.methods:
        method = METHODS[method_name]
        for name in options.only:
            for variant in (v for v in method.variants if method.applies(every[name], v)):
                key, size = f"{method_name}:{variant}", options.size or method.frames
                stored = read_json(path)["conditions"].get(name, {"methods": {}})["methods"].get(key, {}) if path.is_file() else {}
                if not options.again and stored and all(stored.get(k) == v for k, v in plan(method, every[name], variant, size).items()):
                    continue
                scores = score(method, every[name], variant, size)
                store(path, name, key, scores)
                print(f"{name:16} {key:28} {in_words(scores)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
