"""The attainable limit: real weights, strata, the control variate, resuming; and the posterior sampler that it rests on."""
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from csist.datasets import Frames, csist100k
from csist.imaging import FocalPlane
from csist.metrics import cso_map, match_detections
from csist.scenes import Targets, random_targets
from csist.solvers.offgrid import Prior
from csist.solvers.posterior import EmptyPosterior, Posterior, sample_posterior

REPRODUCE = Path(__file__).resolve().parent.parent / "reproduce"
PLANE = FocalPlane()


@pytest.fixture(scope="module")
def attainable():
    spec = importlib.util.spec_from_file_location("reproduce_attainable", REPRODUCE / "attainable.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def data():
    return csist100k("test", 400)


def guess(truth: Targets, spread: float, seed: int = 0) -> Targets:
    """The truth with an error whose size goes with the number of targets, known to the answer."""
    rng = np.random.default_rng(seed)
    width = np.where(truth.count > 2, spread, 0.005)[:, None, None] * np.ones(truth.xy.shape)
    score = np.mean(1 - np.exp(-np.square([0.05, 0.1, 0.15, 0.2, 0.25]) / (2 * width[..., :1] ** 2 + 1e-9)), axis=-1)
    return Targets(truth.xy + width * rng.normal(size=truth.xy.shape), truth.intensity, truth.count, width, score)


class Made:
    """Stands for stored exact answers."""

    def __init__(self, targets: Targets):
        self.targets = targets

    def of(self, frames):
        grow = lambda value: np.pad(value[frames], [(0, 0), (0, 8 - value.shape[1]), *[(0, 0)] * (value.ndim - 2)], constant_values=np.nan)
        values = {name: grow(getattr(self.targets, name)) for name in ("xy", "intensity", "sigma", "score")}
        return {"count": self.targets.count[frames].astype(float), "probability": np.ones(len(frames)), "seconds": np.ones(len(frames)), **values}


# Weights and strata


def test_real_weights_are_copies(data):
    matches = match_detections(guess(data.targets, 0.1), data.targets)
    copies = np.random.default_rng(1).integers(0, 4, len(data.frames))
    whole = matches.average_precisions(copies)
    assert matches.average_precisions(copies.astype(float)) == pytest.approx(whole, abs=1e-12)
    assert matches.average_precisions(copies * 0.37) == pytest.approx(whole, abs=1e-9)
    assert matches.average_precisions(np.ones(len(data.frames)) * 0.1) == pytest.approx(matches.average_precisions(), abs=1e-9)


def test_any_beginning_of_the_order_is_a_stratified_sample(attainable, data):
    strata = attainable.stratify(guess(data.targets, 0.1), data.targets, seed=0)
    assert sorted(strata.order) == np.flatnonzero(~strata.settled).tolist() and strata.settled[data.targets.count <= 2].all()
    kinds = np.unique(strata.stratum[strata.order])
    counts = np.array([np.sum(strata.stratum == kind) for kind in kinds])
    for size in (40, 80, 160):
        seen = np.array([np.sum(strata.stratum[strata.order[:size]] == kind) for kind in kinds])
        assert (seen >= np.minimum(counts, attainable.LEAST)).all() and seen.sum() == size
        weight = attainable.weights_of(strata, strata.order[:size])
        assert weight.sum() == pytest.approx(len(data.frames)) and (weight[strata.settled] == 1).all()
        for kind, count in zip(kinds, counts):
            assert weight[strata.stratum == kind].sum() == pytest.approx(count)


# The estimate


def test_the_whole_sample_gives_the_exact_score(attainable, data):
    standard, exact = guess(data.targets, 0.1), guess(data.targets, 0.05, seed=1)
    strata = attainable.stratify(standard, data.targets, seed=0)
    study = attainable.Study(data, standard, strata, strata.order, Made(exact))
    assert study.estimate().limit == pytest.approx(cso_map(study.exact, data.targets).ap, abs=1e-9)
    assert study.estimate().standard == pytest.approx(cso_map(standard, data.targets).ap, abs=1e-12)
    same = attainable.Study(data, standard, strata, strata.order[:60], Made(standard))
    assert abs(same.estimate().gain).max() < 1e-3  # settled frames are ranked by their Gaussians


def test_a_part_of_the_frames_is_enough_and_the_standard_tier_helps(attainable, data):
    standard, exact = guess(data.targets, 0.1), guess(data.targets, 0.08, seed=0)  # the same errors, a fifth smaller
    strata = attainable.stratify(standard, data.targets, seed=0)
    study = attainable.Study(data, standard, strata, strata.order[:100], Made(exact), resamples=40)
    whole = cso_map(attainable.Study(data, standard, strata, strata.order, Made(exact)).exact, data.targets).map
    found, (with_control, without) = study.estimate(), study.bootstrap()
    assert found.gain.mean() > 0 and found.limit.mean() == pytest.approx(whole, abs=4 * with_control.std())
    assert with_control.std() < 0.7 * without.std()
    summary = attainable.summary(study)
    assert summary["by_count"]["1"]["gain"] == pytest.approx(0, abs=1e-3) and summary["by_count"]["5"]["gain"] > 0
    assert summary["population"]["standard_error"] > summary["standard_error"] and summary["count_accuracy"] == 1
    json.dumps(summary)


def test_answers_are_kept_and_not_made_twice(attainable, data, tmp_path, monkeypatch):
    made = []

    def fake(frame, particles, seed):
        made.append(seed)
        if np.array_equal(frame, data.frames[7]):
            raise EmptyPosterior("none")
        two = Targets([[[5.0, 5.0], [5.5, 5.0]]], [[240.0, 230.0]], [2], np.full((1, 2, 2), 0.01), [[0.9, 0.8]])
        return Posterior(two, np.ones(1), two)

    monkeypatch.setattr(attainable, "sample_posterior", fake)
    answers = attainable.Answers(tmp_path, data, 100, 3)
    assert answers.make([4, 7, 9]) and made == [3, 3, 3]
    again = attainable.Answers(tmp_path, data, 100, 3)
    assert again.make([9, 4]) and len(made) == 3
    assert not again.make([11], deadline=0.0) and len(made) == 3
    strata = attainable.stratify(guess(data.targets, 0.1), data.targets, seed=0)
    study = attainable.Study(data, guess(data.targets, 0.1), strata, np.array([4, 7, 9]), again)
    assert study.empty == 1 and np.array_equal(study.exact.xy[7, :3], guess(data.targets, 0.1).xy[7, :3], equal_nan=True)
    assert study.exact.count[[4, 7, 9]].tolist() == [2, data.targets.count[7], 2]
    stored = again.of([9, 4])
    assert stored["xy"].shape == (2, 8, 2) and stored["count"].tolist() == [2, 2] and np.isnan(stored["xy"][:, 2:]).all()
    other = Frames(data.frames[:100], data.targets[:100])
    assert not len(attainable.Answers(tmp_path, other, 100, 3).frame)  # other frames, other answers


def test_trials_do_not_replace_the_stored_limit(attainable, tmp_path, capsys):
    with pytest.raises(SystemExit):
        attainable.main(["--test-size", "50"])
    assert "needs --output" in capsys.readouterr().err
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "attainable.json").write_text('{"sampled": 700}')
    assert attainable.main(["--size", "600", "--output", str(tmp_path)]) == 0 and "from 700 frames" in capsys.readouterr().out


def test_the_stored_limit_is_consistent():
    stored = json.loads((REPRODUCE / "results" / "attainable.json").read_text())
    standard = json.loads((REPRODUCE / "results" / "off-grid-standard.json").read_text())["test"]
    assert stored["frames_sha256"] == standard["frames_sha256"]
    assert stored["standard_tier"] == pytest.approx(standard["cso_map"], abs=0.01)
    assert stored["cso_map"] == pytest.approx(stored["standard_tier"] + stored["gain"], abs=1e-9) and stored["gain"] > 0
    low, high = stored["interval"]
    assert low < stored["cso_map"] < high and stored["border"]["cso_map"] < stored["cso_map"] < stored["interior"]["cso_map"]
    assert sum(row["sampled"] for row in stored["strata"]) == stored["sampled"]
    assert stored["settled"]["frames"] + sum(row["frames"] for row in stored["strata"]) == stored["frames"]


# The sampler


@pytest.fixture(scope="module")
def three():
    scene = random_targets(1, np.random.default_rng(2), count=(3, 3), cells=[[5, 5]])
    return scene, PLANE.render(scene)[0]


def test_every_sample_rounds_to_the_frame_and_keeps_the_prior(three):
    scene, frame = three
    found = sample_posterior(frame, particles=200)
    assert found.weight.sum() == pytest.approx(1) and found.count_probability[3] > 0.99
    light = PLANE.expected(found.samples)
    off = np.where(frame == 255, 254.5 - light, abs(light - frame) - 0.5)
    assert off.max() < 1e-3  # the kernels work in float32
    gaps = np.hypot(*np.moveaxis(found.samples.xy[:, :, None] - found.samples.xy[:, None], -1, 0))
    assert gaps[:, [0, 0, 1], [1, 2, 2]].min() > 0.494 - 1e-4
    assert found.samples.intensity.min() >= 220 and found.samples.intensity.max() <= 250
    order = np.argsort(np.hypot(*(found.answer.xy[0, :, None] - scene.xy[0]).transpose(2, 0, 1)), axis=1)[:, 0]
    error = found.answer.xy[0] - scene.xy[0, order]
    assert (abs(error) < 5 * found.answer.sigma[0] + 1e-3).all()


def test_one_target_fills_its_box(three):
    """For one target the box can be searched by brute force: the samples' spread is that of the allowed positions."""
    z = PLANE.render(Targets([[[5.12, 4.81]]], [[238.0]], [1]))[0]
    samples = sample_posterior(z, particles=1500).samples
    rng = np.random.default_rng(0)
    tried = Targets(np.array([5.12, 4.81]) + rng.uniform(-0.02, 0.02, (100_000, 1, 2)), rng.uniform(230, 246, (100_000, 1)), np.ones(100_000))
    share = PLANE.response(tried.xy[:, 0, 0], tried.xy[:, 0, 1]) * tried.intensity[:, :, None]
    allowed = tried.xy[(abs(share - z) <= 0.5).all((1, 2)), 0]
    assert len(allowed) > 50
    assert samples.xy[:, 0].mean(0) == pytest.approx(allowed.mean(0), abs=4e-4)
    assert samples.xy[:, 0].std(0) == pytest.approx(allowed.std(0), rel=0.3)


def test_the_same_seed_gives_the_same_samples(three):
    one, two, other = (sample_posterior(three[1], particles=60, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.samples.xy, two.samples.xy) and not np.array_equal(one.samples.xy, other.samples.xy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(plane=FocalPlane(read_noise=1.0)), "read_noise 0"),
        (dict(plane=FocalPlane(bits=None)), "bits must be set"),
        (dict(prior=Prior(cluster=False)), "prior.cluster must be True"),
        (dict(particles=10), "particles must be a whole number >= 50"),
        (dict(frame=np.zeros((11, 11))), "one cluster; found 0"),
        (dict(plane=FocalPlane(sigma=0.4)), "no scene of the prior"),
    ],
)
def test_bad_input(three, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_posterior(**({"frame": three[1], "particles": 60} | arguments))
