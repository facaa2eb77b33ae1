"""Measure what no unmixer can beat on CSIST-100K, and write reproduce/results/attainable.json.

    python reproduce/attainable.py                              # 600 frames answered by the exact posterior: about a quarter of an hour on one core
    python reproduce/attainable.py --time-budget 10m            # stops cleanly; the same call goes on, and so does one with a larger --size
    python reproduce/attainable.py --size 40 --repeated 4 --finer 2 --test-size 1000 --output trial

The best answer to a frame follows from its exact posterior (csist/solvers/posterior.py), which costs a second a frame. Most frames need none: where the
standard tier finds a single narrow mode, that is the posterior. Of the others a stratified sample is taken, by number of targets and by whether the cluster
lies in a border pixel, with more frames where the standard tier expects more misses; each stands for its stratum's others. The sample only measures by how
much exact answers beat the standard tier's, frame by frame (a control variate); that difference is added to the standard tier's score on all test frames.

The sampler is tried as well: a part of the sample is answered again with another seed, and with four times the particles; and so are some of the frames
whose narrow mode was believed.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
# Python puts a script's folder first on its path, where queue.py would hide the standard library's own module "queue".
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from concurrent.futures import ThreadPoolExecutor  # noqa: E402

import numpy as np  # noqa: E402

from csist.cli import duration, hold, whole_number  # noqa: E402
from csist.datasets import Frames, csist100k, frames_hash  # noqa: E402
from csist.evaluation import provenance  # noqa: E402
from csist.metrics import DISTANCE_THRESHOLDS, Matches, is_border, match_detections, match_pairs  # noqa: E402
from csist.pipeline import file_hash  # noqa: E402
from csist.reporting import read_json  # noqa: E402
from csist.reporting.beyond import reliability  # noqa: E402
from csist.scenes import Targets  # noqa: E402
from csist.solvers import _offgrid_kernels, offgrid  # noqa: E402
from csist.solvers.offgrid import unmix_offgrid  # noqa: E402
from csist.solvers.posterior import EmptyPosterior, sample_posterior  # noqa: E402
from csist.training import write_json  # noqa: E402

WHAT = "What no unmixer can beat on CSIST-100K: the score of answers drawn from the exact posterior, one detection for each estimated target"
HOW = (
    "sequential Monte Carlo from the prior down to the box that rounding and clipping leave, for a stratified sample of the frames that the standard tier does "
    "not settle; geometric medians as positions, posterior hit probabilities as scores; the gain over the standard tier is added to its score on all frames"
)
NARROW = 0.015  # px, both coordinates together: three times as much is still within CSO-mAP's smallest distance
PARTICLES, FINER = 1_200, 4_800
LEAST = 5  # frames of each stratum that are answered first
BELIEVED = 40  # narrow frames at the border that are answered all the same
SAVE = 16  # frames between two looks at the clock
RESAMPLES = 200


# Which frames ----------------------------------------------------------------------------------------------------------------------------


class Strata(NamedTuple):
    """Which of all frames are settled, and the order in which the others are sampled."""

    settled: np.ndarray  # (n,) bool
    stratum: np.ndarray  # (n,) 0 .. 9: number of targets, interior before border; -1 for settled frames
    order: np.ndarray  # unsettled frames; any beginning of it is a stratified sample
    believed: np.ndarray  # settled frames at the border, in random order


def stratify(standard: Targets, truth: Targets, seed: int) -> Strata:
    """Split frames by the standard tier's own errors and expected misses, and by what they truly hold."""
    rng, n = np.random.default_rng(seed), len(truth)
    width = np.sqrt(np.nan_to_num(standard.sigma**2).sum(-1).max(-1, initial=0.0))
    settled, border = width < NARROW, is_border(truth)
    stratum = np.where(settled, -1, 2 * (truth.count - 1) + border)
    misses = np.where(standard.mask, 1 - standard.score, 0.0).sum(-1)
    order, place = rng.permutation(n), np.full(n, np.inf)
    for s in np.unique(stratum[~settled]):
        members = order[stratum[order] == s]
        rank = np.arange(len(members))
        # The spread of a rare count goes with the root of its mean: so does the best share of the sample (Neyman's rule).
        place[members] = np.where(rank < LEAST, rank - LEAST, (rank + 0.5) / (len(members) * np.sqrt(misses[members].mean() + 1e-6)))
    chosen = order[np.argsort(place[order], kind="stable")]
    return Strata(settled, stratum, chosen[np.isfinite(place[chosen])], order[(settled & border)[order]])


def weights_of(strata: Strata, sampled: np.ndarray, draws=None) -> np.ndarray:
    """How many frames each frame stands for (n,): settled ones for themselves, a sampled one for its stratum's others too.

    ``draws`` (n,) are the frames' multiplicities in a resample. A stratum without a sampled frame is left out.
    """
    draws = np.ones(len(strata.settled)) if draws is None else draws
    known = np.zeros(len(strata.settled), dtype=bool)
    known[sampled] = True
    kinds = int(strata.stratum.max(initial=0)) + 1
    total, seen = (np.bincount(strata.stratum[some], draws[some], kinds) for some in (~strata.settled, known & ~strata.settled))
    each = np.divide(total, seen, out=np.zeros(kinds), where=seen > 0)
    return draws * np.where(strata.settled, 1.0, np.where(known, each[strata.stratum], 0.0))


# Exact answers ---------------------------------------------------------------------------------------------------------------------------


class Answers:
    """Exact answers by frame, kept in a file while they are made."""

    fields = {"count": (), "xy": (8, 2), "intensity": (8,), "sigma": (8, 2), "score": (8,), "probability": (), "seconds": ()}

    def __init__(self, folder: Path, data: Frames, particles: int, seed: int):
        self.path, self.data, self.particles, self.seed = folder / f"attainable-{particles}-{seed}.npz", data, particles, seed
        self.key = frames_hash(data)
        self.frame, self.values = np.zeros(0, dtype=np.int64), {name: np.zeros((0, *shape)) for name, shape in self.fields.items()}
        if self.path.is_file():
            with np.load(self.path, allow_pickle=False) as stored:
                if str(stored["key"]) == self.key:
                    self.frame, self.values = stored["frame"], {name: stored[name] for name in self.fields}

    def make(self, frames, threads: int = 1, deadline: float | None = None) -> bool:
        """Answer some frames, those known already left out; False if the time is spent first."""
        known = set(self.frame.tolist())
        missing = [frame for frame in frames if frame not in known]
        with ThreadPoolExecutor(threads) as pool:  # the kernels run without the interpreter's lock
            for first in range(0, len(missing), SAVE):
                if deadline is not None and time.monotonic() > deadline:
                    return False
                part = missing[first : first + SAVE]
                self._add(list(zip(part, pool.map(self._answer, part))))
        return True

    def _answer(self, frame: int) -> dict:
        """Values of the fields; a count of 0 where no scene of the prior explains the frame."""
        started = time.thread_time()
        kept = {name: np.full(self.fields[name], np.nan) for name in ("xy", "intensity", "sigma", "score")}
        try:
            posterior = sample_posterior(self.data.frames[frame], particles=self.particles, seed=self.seed)
        except EmptyPosterior:
            return {"count": 0, **kept, "probability": 1.0, "seconds": time.thread_time() - started}
        found = posterior.answer
        for name, value in kept.items():
            value[: found.count[0]] = getattr(found, name)[0, : found.count[0]]
        probability = posterior.count_probability[found.count[0]]
        return {"count": found.count[0], **kept, "probability": probability, "seconds": time.thread_time() - started}

    def _add(self, answers: list) -> None:
        self.frame = np.concatenate([self.frame, [frame for frame, _ in answers]])
        self.values = {name: np.concatenate([self.values[name], [answer[name] for _, answer in answers]]) for name in self.fields}
        save(self.path, key=self.key, frame=self.frame, **self.values)

    def of(self, frames) -> dict[str, np.ndarray]:
        """The stored values of some frames, in their order."""
        place = {frame: row for row, frame in enumerate(self.frame.tolist())}
        rows = [place[frame] for frame in frames]
        return {name: value[rows] for name, value in self.values.items()}


def standard_answers(folder: Path, data: Frames, threads: int) -> Targets:
    """The standard tier's answers to all frames, kept in a file for as long as the solver is the same."""
    path, key = folder / "attainable-standard.npz", "-".join([frames_hash(data), *(file_hash(Path(module.__file__)) for module in (offgrid, _offgrid_kernels))])
    names = ("xy", "intensity", "count", "sigma", "score")
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return Targets(*(stored[name] for name in names))
    answers = unmix_offgrid(data.frames, threads=threads, progress=True)
    save(path, key=key, **{name: getattr(answers, name) for name in names})
    return answers


def save(path: Path, **arrays) -> None:
    """Write arrays under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(temporary, **arrays)
    os.replace(temporary, path)


def composed(standard: Targets, strata: Strata, frames, answers: Answers) -> Targets:
    """The standard tier's answers, sampled frames answered exactly; a settled frame's scores are those of its Gaussian mode."""
    capacity = max(standard.capacity, 8)
    grown = {name: np.full((len(standard), capacity, *tail), np.nan) for name, tail in (("xy", (2,)), ("intensity", ()), ("sigma", (2,)), ("score", ()))}
    for name, value in grown.items():
        value[:, : standard.capacity] = getattr(standard, name)
    variance = (grown["sigma"][strata.settled] ** 2).sum(-1, keepdims=True)
    grown["score"][strata.settled] = np.mean(1 - np.exp(-np.square(DISTANCE_THRESHOLDS) / (variance + 1e-12)), axis=-1)
    count, frames = standard.count.copy(), np.asarray(frames)
    frames = frames[answers.of(frames)["count"] > 0]  # a frame without an exact answer keeps the other one
    exact = answers.of(frames)
    count[frames] = exact["count"]
    for name, value in grown.items():
        value[frames] = np.pad(exact[name], [(0, 0), (0, capacity - 8), *[(0, 0)] * (exact[name].ndim - 2)], constant_values=np.nan)
    return Targets(grown["xy"], grown["intensity"], count, grown["sigma"], grown["score"])


# The limit -------------------------------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A score of exact answers, and of the standard tier, on all frames and on the sample."""

    limit: np.ndarray  # (5,) average precisions: standard + gain
    standard: np.ndarray  # (5,) on all frames
    gain: np.ndarray  # (5,) exact less standard answers, on the sample
    without: np.ndarray  # (5,) of exact answers on the sample, without the control variate


class Study:
    """Everything that is compared: exact and standard answers on the same frames."""

    def __init__(self, data: Frames, standard: Targets, strata: Strata, frames: np.ndarray, answers: Answers, resamples: int = RESAMPLES):
        self.data, self.standard, self.strata, self.frames, self.resamples = data, standard, strata, frames, resamples
        self.exact = composed(standard, strata, frames, answers)
        self.matches: tuple[Matches, Matches] = tuple(match_detections(targets, data.targets) for targets in (self.exact, standard))
        self.probability = np.ones(len(data.frames))
        self.probability[frames], self.empty = answers.of(frames)["probability"], int((answers.of(frames)["count"] == 0).sum())

    def estimate(self, part=True, draws=None) -> Estimate:
        """Of a part of the frames (n,) bool, or of a resample."""
        every = np.ones(len(self.strata.settled)) if draws is None else draws
        weight = weights_of(self.strata, self.frames, every) * part
        exact, standard = (matches.average_precisions(weight) for matches in self.matches)
        whole = self.matches[1].average_precisions((every * part).astype(np.int64))
        return Estimate(whole + exact - standard, whole, exact - standard, exact)

    def counts(self, part=True) -> dict[str, float]:
        """Share of right counts: the standard tier's on all frames plus the gain on the sample, and what the posterior itself expects."""
        weight = weights_of(self.strata, self.frames) * part
        mean = lambda value: float(weight @ value / weight.sum())
        truth = self.data.targets.count
        right, known = self.exact.count == truth, self.standard.count == truth
        whole = float(known[np.broadcast_to(part, known.shape)].mean())
        return {"count_accuracy": whole + mean(right) - mean(known), "count_accuracy_expected": mean(self.probability)}

    def within(self, rng) -> np.ndarray:
        """Multiplicities (n,) of a resample of each stratum's sampled frames; all others stay."""
        draws = np.ones(len(self.strata.settled))
        for stratum in np.unique(self.strata.stratum[self.frames]):
            members = self.frames[self.strata.stratum[self.frames] == stratum]
            draws[members] = np.bincount(rng.integers(0, len(members), len(members)), minlength=len(members))
        return draws

    def bootstrap(self, part=True, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Limits (resamples,) of other samples from the same test frames, with and without the control variate."""
        rng, weight = np.random.default_rng(seed), weights_of(self.strata, self.frames) * part
        draws = (weight * self.within(rng) for _ in range(self.resamples))
        exact, standard = np.transpose([[matches.average_precisions(draw).mean() for matches in self.matches] for draw in draws])
        return self.estimate(part).standard.mean() + exact - standard, exact

    def population(self, seed: int = 0) -> np.ndarray:
        """Limits (resamples,) of other test frames, sampled likewise."""
        rng, n = np.random.default_rng(seed), len(self.data.frames)
        draws = (np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(self.resamples))
        return np.array([self.estimate(draws=draw).limit.mean() for draw in draws])


def scores(study: Study, part=True) -> dict:
    """One part's limit with what is known of it; ``uncertainty`` is half of the 95 % interval."""
    found, (drawn, _) = study.estimate(part), study.bootstrap(part)
    spread = float(drawn.std(ddof=1))
    return {
        "cso_map": float(found.limit.mean()),
        "uncertainty": 1.96 * spread,
        "standard_error": spread,
        "ap": found.limit.tolist(),
        **study.counts(part),
        "standard_tier": float(found.standard.mean()),
        "gain": float(found.gain.mean()),
    }


def change(study: Study, other: Study) -> dict:
    """By how much the limit changes if the same frames are answered by another sampler, with its standard error over frames."""
    one, two = (part.bootstrap()[0] for part in (study, other))
    difference = float(other.estimate().limit.mean() - study.estimate().limit.mean())
    return {"frames": len(study.frames), "change": difference, "standard_error": float((two - one).std(ddof=1))}


def check_believed(standard: Targets, frames: np.ndarray, answers: Answers) -> dict:
    """How far exact answers of believed frames lie from the standard tier's."""
    answered = frames[answers.of(frames)["count"] > 0]
    empty, frames = len(frames) - len(answered), answered
    exact = answers.of(frames)
    found = Targets(exact["xy"], exact["intensity"], exact["count"].astype(np.int64))
    before = standard[frames]
    frame, one, other = match_pairs(found, before)
    distance = np.hypot(*(found.xy[frame, one] - before.xy[frame, other]).T)
    changed, farthest = int((found.count != before.count).sum()), float(distance.max(initial=0.0))
    return {"frames": len(frames), "empty": empty, "other_count": changed, "largest_distance": farthest}


def measure(data: Frames, options) -> dict | None:
    """The whole result, or None if the time is spent first; what has been answered by then is kept."""
    deadline = None if options.time_budget is None else time.monotonic() + options.time_budget
    folder = (options.output or HERE) / "checkpoints"
    standard = standard_answers(folder, data, options.threads)
    strata = stratify(standard, data.targets, options.seed)
    frames = strata.order[: options.size]
    main, again, finer = (
        Answers(folder, data, particles, seed) for particles, seed in ((PARTICLES, options.seed), (PARTICLES, options.seed + 1), (FINER, options.seed))
    )
    believed = strata.believed[: min(BELIEVED, options.size)]
    repeated, refined = frames[: options.repeated], frames[: options.finer]
    for answers, wanted in ((main, frames), (main, believed), (again, repeated), (finer, refined)):
        if not answers.make(wanted.tolist(), options.threads, deadline):
            return None
    with_answers = lambda some, by: Study(data, standard, strata, some, by)
    study = with_answers(frames, main)
    sampler = {
        "particles": PARTICLES,
        "seed": options.seed,
        "another_seed": change(with_answers(repeated, main), with_answers(repeated, again)),
        "finer": {"particles": FINER, **change(with_answers(refined, main), with_answers(refined, finer))},
        "seconds_per_frame": float(main.of(frames)["seconds"].mean()),
    }
    settled = {"frames": int(strata.settled.sum()), "narrower_than": NARROW, "checked": check_believed(standard, believed, main)}
    return {**about(data), **summary(study), "settled": settled, "strata": strata_table(study), "sampler": sampler, "provenance": provenance()}


def about(data: Frames) -> dict:
    """What was measured, and how."""
    return {"what": WHAT, "how": HOW, "split": "test", "frames": len(data.frames), "frames_sha256": frames_hash(data)}


def summary(study: Study) -> dict:
    """The limit on all frames and on parts, its intervals, and whether the posterior's claims hold."""
    truth, (with_control, without) = study.data.targets, study.bootstrap()
    population, exact, real = study.population(), study.exact[study.frames], truth[study.frames]
    parts = {"interior": ~is_border(truth), "border": is_border(truth)}
    interval = lambda values: np.quantile(values, [0.025, 0.975]).tolist()
    return {
        "sampled": len(study.frames),
        "empty": study.empty,
        **scores(study),
        "interval": interval(with_control),
        "population": {"standard_error": float(population.std(ddof=1)), "interval": interval(population)},
        "without_control_variate": {"cso_map": float(study.estimate().without.mean()), "standard_error": float(without.std(ddof=1))},
        **{name: scores(study, part) for name, part in parts.items()},
        "by_count": {str(count): scores(study, truth.count == count) for count in range(1, 6)},
        "calibration": reliability(exact, real),
        "claims": reliability(exact, real, (0.0, 1.0)),
    }


def strata_table(study: Study) -> list[dict]:
    """How many unsettled frames each stratum has, and how many of them were sampled."""
    strata, rows = study.strata, []
    for kind in np.unique(strata.stratum[~strata.settled]):
        about = {"count": int(kind // 2 + 1), "where": "border" if kind % 2 else "interior"}
        rows.append({**about, "frames": int((strata.stratum == kind).sum()), "sampled": int((strata.stratum[study.frames] == kind).sum())})
    return rows


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=whole_number, default=600, help="frames that are answered exactly")
    parser.add_argument("--repeated", type=whole_number, default=80, help="of them, answered again with another seed")
    parser.add_argument("--finer", type=whole_number, default=40, help=f"of them, answered again with {FINER:,} particles")
    parser.add_argument("--test-size", type=whole_number, default=None, help="test frames, for a trial; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the sampler")
    parser.add_argument("--threads", type=whole_number, default=1, help="frames answered at the same time")
    parser.add_argument("--time-budget", type=duration, default=None, help="stop cleanly after this long, for example 10m")
    parser.add_argument("--output", type=Path, default=None, help="holds results/ and checkpoints/; by default this folder")
    options = parser.parse_args(arguments)
    if options.test_size is not None and options.output is None:
        parser.error("a trial with --test-size needs --output, so that it does not replace the stored result")
    folder = options.output or HERE
    path = folder / "results" / "attainable.json"
    stored = read_json(path).get("sampled", 0) if path.is_file() else 0
    if stored > options.size:
        print(f"attainable: the stored result is from {stored:,} frames, more than {options.size:,}")
        return 0
    lock = hold(folder / "checkpoints" / "attainable.lock")
    if lock is None:
        print("attainable: held by another process")
        return 0
    with lock:
        result = measure(csist100k("test", options.test_size), options)
    if result is None:
        print("attainable: the time is spent; the same call goes on")
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(f"attainable: CSO-mAP x 100 = {100 * result['cso_map']:.2f} +- {100 * result['uncertainty']:.2f} from {result['sampled']:,} frames", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
