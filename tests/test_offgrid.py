"""Off-grid unmixing: the profile table and the objective's gradient, accuracy and calibration on validation frames, symmetries, priors, sensors, errors."""
import importlib.util
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from csist.datasets import csist100k
from csist.imaging import FocalPlane, pixel_profile
from csist.limits import crlb
from csist.metrics import count_accuracy, cso_map, localisation, match_detections, match_pairs
from csist.scenes import Targets, random_targets
from csist.solvers import _lanes as lanes
from csist.solvers import _offgrid_kernels as kernels
from csist.solvers import offgrid
from csist.solvers.offgrid import TIERS, Prior, log_valid_share, polish, profile_table, unmix_offgrid, valid_configurations, window_side
from csist.solvers.posterior import sample_posterior

PLANE = FocalPlane()
REPRODUCE = Path(__file__).resolve().parent.parent / "reproduce"


@pytest.fixture(scope="module")
def data():
    """A hundred validation frames."""
    return csist100k("val", size=100)


@pytest.fixture(scope="module")
def estimate(data):
    return unmix_offgrid(data.frames, tier="fast")


def distances(one: Targets, other: Targets) -> np.ndarray:
    """Of all optimally matched pairs [px]."""
    frame, detection, target = match_pairs(one, other)
    return np.hypot(*(one.xy[frame, detection] - other.xy[frame, target]).T)


# Parts -------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "side"), [(0.5, 5), (0.2, 3), (1.0, 9)])
def test_the_table_interpolates_the_pixel_profile(sigma, side):
    nodes, value, slope = profile_table(sigma, side, -0.75, 0.75)
    u = np.random.default_rng(0).uniform(-0.75, 0.75, 2_000)
    exact = pixel_profile(u + side // 2, side, sigma)
    between = np.stack([np.interp(u, nodes, column) for column in value.T], axis=-1)
    assert np.abs(between - exact).max() < 1e-6
    step = 1e-5
    difference = (pixel_profile(u + step + side // 2, side, sigma) - pixel_profile(u - step + side // 2, side, sigma)) / (2 * step)
    assert np.abs(np.stack([np.interp(u, nodes, column) for column in slope.T], axis=-1) - difference).max() < 1e-4 / sigma


def test_lanes_compute_as_numpy_does():
    from numba import njit

    @njit
    def compute(a, b, out):
        one, two = lanes.eight(a, 1, 0), lanes.eight(b, 0, 0)
        lanes.put(out, 0, 0, lanes.plus(lanes.times(one, two), lanes.spread(2.0, one)))
        lanes.put(out, 1, 0, lanes.minus(lanes.larger(one, two), lanes.smaller(one, two)))
        return lanes.sum_of(one), lanes.largest(one), lanes.any_above(one, two), lanes.any_above(two, lanes.plus(one, lanes.spread(9.0, one)))

    for dtype in (np.float32, np.float64):
        a, b = np.random.default_rng(0).normal(size=(2, 2, 8)).astype(dtype)
        out = np.zeros((2, 8), dtype)
        total, largest, above, nowhere = compute(a, b, out)
        np.testing.assert_allclose(out, [a[1] * b[0] + 2, np.abs(a[1] - b[0])], rtol=1e-5, atol=1e-6)
        assert total == pytest.approx(a[1].sum(), rel=1e-5) and largest == a[1].max() and above == (a[1] > b[0]).any() and not nowhere


def problem_of(data, frame: int):
    """The kernels' view of one frame: optics, evidence, region, scratch."""
    problem = offgrid._Problem(PLANE, Prior(), kernels)
    clusters = offgrid._Clusters(data.frames[[frame]].astype(float), PLANE, Prior(), problem.side)
    evidence = kernels.Evidence(*(part[0] for part in clusters.evidence()), 1 / problem.noise, problem.exact, 1.0)
    region = problem.region._replace(bright=problem.bright(clusters)[0])
    return problem.optics, evidence, region, kernels.new_work(problem.optics), clusters.cell[0]


@pytest.mark.parametrize("number", [1, 3, 5])
def test_the_gradient_is_the_objectives_derivative(data, number):
    frame = int(np.flatnonzero(data.targets.count == number)[0])
    optics, evidence, region, work, _ = problem_of(data, frame)
    theta = np.zeros(kernels.SIZE)
    # The last target lies beyond the region's border and all are crowded, so every part of the objective is at work.
    theta[: 3 * number] = np.column_stack([np.linspace(-0.3, 0.52, number), np.linspace(0.25, -0.2, number), np.linspace(215, 240, number)]).ravel()
    value = lambda at: kernels.objective(at, number, optics, evidence, region, work)
    numeric = np.array([(value(theta + step) - value(theta - step)) / 2e-4 for step in 1e-4 * np.eye(kernels.SIZE)[: 3 * number]])
    kernels.objective(theta, number, optics, evidence, region, work)
    kernels.normal_equations(theta, number, optics, evidence, region, work)
    np.testing.assert_allclose(2 * work.gradient[: 3 * number], numeric, rtol=2e-3, atol=2e-3 * np.abs(numeric).max())
    assert kernels.cholesky(work.matrix, 3 * number, 1e-2, work.factor)
    factor = np.triu(work.factor[: 3 * number, : 3 * number], 1) + np.diag(1 / np.diag(work.factor)[: 3 * number])
    upper = np.triu(work.matrix[: 3 * number, : 3 * number])
    damped = upper + np.triu(upper, 1).T + 1e-2 * np.diag(np.diag(upper))
    np.testing.assert_allclose(factor.T @ factor, damped, rtol=1e-9, atol=1e-9 * damped.max())


def test_the_truth_lies_in_the_box(data):
    for frame in range(len(data.frames)):
        optics, evidence, region, work, cell = problem_of(data, frame)
        number = int(data.targets.count[frame])
        theta = np.zeros(kernels.SIZE)
        theta[: 3 * number] = np.column_stack([data.targets.xy[frame] - cell, data.targets.intensity[frame]])[:number].ravel()
        assert kernels.excess(theta, number, optics, evidence, region, work, 1e9) < 1e-3
        theta[2] += 20  # a brighter target leaves it
        assert kernels.excess(theta, number, optics, evidence, region, work, 1e9) > 1


@pytest.mark.parametrize(("number", "share"), [(1, 1.0), (2, 0.527), (3, 0.130), (4, 0.01145), (5, 1.115e-4)])
def test_the_share_of_valid_configurations_is_that_of_rejection(number, share):
    """The shares were counted by drawing whole configurations until 100,000 were valid."""
    assert abs(log_valid_share(number, 0.494) - math.log(share)) < 0.12
    offsets = valid_configurations(number, 0.494)
    apart = np.linalg.norm(offsets[:, :, None] - offsets[:, None], axis=-1)[:, ~np.eye(number, dtype=bool)]
    assert np.abs(offsets).max() <= 0.5 and (number == 1 or apart.min() >= 0.494)


# Accuracy ----------------------------------------------------------------------------------------------------------------------------------


def test_single_targets_are_found_to_a_hundredth_of_a_pixel():
    plane = FocalPlane(bits=None)
    xy = np.array([[5.0, 5.0], [4.6, 5.3], [0.2, 7.1], [10.3, -0.4], [2.45, 2.45]])[:, None]
    truth = Targets(xy, np.linspace(221, 249, 5)[:, None], np.ones(5, dtype=int))
    for sensor, tolerance in ((plane, 1e-3), (PLANE, 0.02)):
        found = unmix_offgrid(sensor.render(truth), sensor, tier="fast")
        assert found.count.tolist() == [1] * 5
        assert np.abs(found.xy - truth.xy).max() < tolerance
    assert np.abs(unmix_offgrid(plane.render(truth), plane, tier="fast").intensity - truth.intensity).max() < 0.1


def test_validation_frames_score_as_they_should(data, estimate):
    assert cso_map(estimate, data.targets).map > 0.86
    assert count_accuracy(estimate, data.targets) >= 0.98
    assert localisation(estimate, data.targets).rmse < 0.1
    assert estimate.count.sum() <= data.targets.count.sum() + 2  # one detection for each estimated target, no hedges


def test_scores_are_probabilities_of_hits(data, estimate):
    matches = match_detections(estimate, data.targets)
    assert ((matches.score >= 0) & (matches.score <= 1)).all()
    hit = matches.is_hit.mean(axis=0)
    assert abs(matches.score.mean() - hit.mean()) < 0.06
    half = len(hit) // 2
    assert hit[:half].mean() > hit[half:].mean() + 0.05  # matches come by falling score


def test_sigma_covers_the_errors(data, estimate):
    frame, detection, target = match_pairs(estimate, data.targets, cap=0.25)
    error = estimate.xy[frame, detection] - data.targets.xy[frame, target]
    sigma = estimate.sigma[frame, detection]
    assert (sigma > 0).all() and (sigma < 0.5).all()
    pull = np.abs(error / sigma)
    assert 0.55 < (pull < 1).mean() < 0.85 and (pull < 3).mean() > 0.93  # 0.68 and 0.997 for Gaussian errors


def test_curves_of_claims_and_deviations_are_found_again():
    rng = np.random.default_rng(0)
    claimed = rng.uniform(0.3, 1, 20_000)
    curve = offgrid.fit_calibration(claimed, rng.random(len(claimed)) < claimed**2)
    assert np.abs(offgrid.calibrated(claimed, curve) - claimed**2).max() < 0.06
    sure = np.where(rng.random(20_000) < 0.5, 1 - 1e-9, claimed)  # half are sure, and mostly right
    curve = offgrid.fit_calibration(sure, rng.random(len(sure)) < np.where(sure == claimed, claimed**2, 0.999))
    assert np.abs(offgrid.calibrated([0.5, 0.9, 1 - 1e-9], curve) - [0.25, 0.81, 0.999]).max() < 0.06
    assert curve[0][-1] == 0.99999 and curve[1][-1] == pytest.approx(0.999, abs=1e-3)
    sigma = 10 ** rng.uniform(-3, -1, 20_000)
    curve = offgrid.fit_deviations(sigma, rng.normal(0, 2 * sigma))
    np.testing.assert_allclose(offgrid.widened(sigma, curve), 2 * sigma, rtol=0.1)
    assert offgrid.widened([0.0], curve)[0] < 1e-5


def test_claims_depend_on_the_number_of_targets_and_on_the_border():
    plane = FocalPlane()
    rng = np.random.default_rng(4)
    inside, outside = (random_targets(20, rng, count=(5, 5), cells=np.full((20, 2), cell)) for cell in (5, 0))
    for scenes, cut in ((inside, False), (outside, True)):
        clusters = offgrid._Clusters(plane.render(scenes).astype(float), plane, Prior(), 5)
        reaches = offgrid.is_cut(clusters.cell, plane.shape, 5)
        assert (reaches == cut).all() and (reaches == (clusters.weight[..., :5] == 0).any((1, 2))).all()
    for tier, curves in offgrid.CALIBRATION.items():
        assert len(curves) == 6, tier
        for claimed, real in curves:
            assert (np.diff(claimed) > 0).all() and (np.diff(real) > 0).all()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_targets_are_found_as_sharply_as_the_cramer_rao_bound_allows(data, estimate, number):
    """The bound knows of noise as wide as rounding and of the intensities' range, not of the box, which tells a little more."""
    frame, detection, target = match_pairs(estimate, data.targets)
    bound = crlb(data.targets, PLANE, prior=30 / math.sqrt(12))[frame, target, :2]
    error = estimate.xy[frame, detection] - data.targets.xy[frame, target]
    which = data.targets.count[frame] == number
    ratio = np.median(np.linalg.norm(error, axis=1)[which]) / np.median(np.linalg.norm(bound, axis=1)[which])
    assert 0.4 < ratio < 1.4  # the fast tier, some twenty frames


# Symmetries and repeatability --------------------------------------------------------------------------------------------------------------


def test_answers_do_not_depend_on_company_order_or_threads(data, estimate):
    order = np.random.default_rng(0).permutation(len(data.frames))
    shuffled = unmix_offgrid(data.frames[order], tier="fast", threads=2)
    assert shuffled == estimate[order]
    alone = unmix_offgrid(data.frames[7], tier="fast", threads=1)
    np.testing.assert_array_equal(alone.xy[0, : alone.count[0]], estimate.xy[7, : estimate.count[7]])


def test_the_seed_matters_only_a_little(data, estimate):
    other = unmix_offgrid(data.frames, tier="fast", seed=1)
    assert other != estimate and other == unmix_offgrid(data.frames, tier="fast", seed=1)
    assert np.quantile(distances(other, estimate), 0.8) < 0.05


@pytest.mark.parametrize("turn", ["mirror", "transpose"])
def test_turned_frames_give_turned_answers(data, estimate, turn):
    xy = estimate.xy.copy()
    if turn == "mirror":
        frames, xy[..., 0] = data.frames[:, ::-1], 10 - xy[..., 0]
    else:
        frames, xy = data.frames.transpose(0, 2, 1), xy[..., ::-1]
    turned = unmix_offgrid(np.ascontiguousarray(frames), tier="fast")
    assert (turned.count == estimate.count).mean() >= 0.98
    assert np.quantile(distances(turned, Targets(xy, estimate.intensity, estimate.count)), 0.8) < 0.05


# Priors ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prior",
    [Prior(counts=None), Prior(min_distance=None), Prior(intensity=None), Prior(counts=None, min_distance=None, intensity=None)],
    ids=["counts", "min_distance", "intensity", "all"],
)
def test_rules_can_be_switched_off(data, prior):
    pick = np.flatnonzero(data.targets.count <= 2)[:8]
    found = unmix_offgrid(data.frames[pick], tier="fast", prior=prior)
    assert localisation(found, data.targets[pick]).recall > 0.9
    assert (found.count == data.targets.count[pick]).mean() > 0.7


@pytest.mark.slow
def test_targets_may_be_scattered_over_the_frame():
    xy = np.array([[[2.2, 2.7], [7.6, 8.1]], [[4.4, 5.0], [6.0, 5.3]]])
    truth = Targets(xy, [[230.0, 240.0], [225.0, 245.0]], [2, 2])
    found = unmix_offgrid(PLANE.render(truth), tier="fast", prior=Prior(counts=(1, 3), cluster=False))
    assert found.count.tolist() == [2, 2] and distances(found, truth).max() < 0.05


def test_a_known_count_is_kept(data):
    known = unmix_offgrid(data.frames[:10], tier="fast", prior=Prior(counts=(2, 2)))
    assert (known.count == 2).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": (0, 3)}, "counts"),
        ({"counts": (3, 2)}, "counts"),
        ({"counts": (1, 9)}, "counts"),
        ({"counts": 3}, "counts"),
        ({"cluster": None}, "cluster"),
        ({"min_distance": -1}, "min_distance"),
        ({"min_distance": 2.0}, "min_distance"),
        ({"intensity": (250, 220)}, "intensity"),
        ({"intensity": (1, math.inf)}, "intensity"),
    ],
)
def test_wrong_priors_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Prior(**arguments)


def test_contradictory_priors_are_named(data):
    with pytest.raises(ValueError, match="contradict"):
        unmix_offgrid(data.frames[:1], tier="fast", prior=Prior(counts=(5, 5), min_distance=1.2))


# Sensors -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plane", "floor"),
    [
        (FocalPlane(clip=False), 0.84),
        (FocalPlane(bits=None), 0.93),
        (FocalPlane(bits=12), 0.84),
        (FocalPlane(read_noise=1.0), 0.65),
        (FocalPlane(bits=None, read_noise=1.0), 0.65),
    ],
    ids=["unclipped", "unrounded", "12 bits", "noisy", "noisy and unrounded"],
)
def test_other_sensors_work(plane, floor):
    rng = np.random.default_rng(5)
    truth = random_targets(60, rng)
    found = unmix_offgrid(plane.render(truth, rng), plane, tier="fast")
    assert cso_map(found, truth).map > floor and count_accuracy(found, truth) > 0.93


def test_a_slightly_wrong_psf_falls_back_gracefully():
    truth = random_targets(40, np.random.default_rng(6))
    found = unmix_offgrid(PLANE.render(truth), FocalPlane(sigma=0.475), tier="fast")
    matches = match_detections(found, truth)
    assert cso_map(found, truth).map > 0.6 and count_accuracy(found, truth) > 0.9
    assert matches.score.mean() < 0.93  # 0.96 with the true width


def test_frames_of_another_shape():
    plane = FocalPlane(shape=(7, 16))
    truth = Targets([[[6.2, 14.9]], [[3.3, 0.1]]], [[230.0], [240.0]], [1, 1])
    assert np.abs(unmix_offgrid(plane.render(truth), plane, tier="fast").xy - truth.xy).max() < 0.02


# Odd frames and bad input ------------------------------------------------------------------------------------------------------------------


def test_a_dark_frame_has_no_targets():
    found = unmix_offgrid(np.zeros((2, 11, 11), dtype=np.uint8), tier="fast")
    assert found.count.tolist() == [0, 0] and len(unmix_offgrid(np.zeros((0, 11, 11)), tier="fast")) == 0


def test_frames_that_no_cluster_explains_get_low_scores():
    full, noise = np.full((1, 11, 11), 255.0), np.random.default_rng(0).integers(0, 255, (1, 11, 11)).astype(float)
    found = unmix_offgrid(np.concatenate([full, noise]), tier="fast")
    assert np.nanmax(found.score) < 0.5 and np.isfinite(found.score[found.mask]).all()


def test_light_that_the_prior_forbids_and_a_background_are_warned_of():
    plane, scene = FocalPlane((24, 24), bits=12), random_targets(3, np.random.default_rng(0), count=(1, 2), intensity=(2000, 3000), shape=(24, 24))
    frames = plane.render(scene)
    with pytest.warns(UserWarning, match=r"3 of 3 clusters hold more light than the prior allows .*prior=Prior"):
        unmix_offgrid(frames, plane, tier="fast", threads=1)
    with pytest.warns(UserWarning, match="polish: .* more light"):
        polish(scene, frames, plane, threads=1)
    known = Prior(counts=(1, 2), intensity=(2000, 3000))
    with pytest.warns(UserWarning, match=r"3 of 3 frames have a background .* at least 200 .*subtract_background"):
        polish(scene, frames + 200, plane, prior=known, threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = unmix_offgrid(frames, plane, tier="fast", prior=known, threads=1)
        unmix_offgrid(np.zeros((0, 24, 24)), plane, tier="fast")
    assert np.array_equal(found.count, scene.count)


def test_bad_pixels_tell_nothing():
    """A dead pixel in the cluster and a hot one far away change nothing once they are known; the frame is as if the first lay beyond the border."""
    scene = Targets([[[5.2, 4.9], [4.7, 5.3]]], [[240.0, 230.0]], [2])
    frame, good = PLANE.render(scene), np.ones((11, 11), dtype=bool)
    frame[0, 4, 4], frame[0, 1, 9] = 0, 255
    good[4, 4] = good[1, 9] = False
    assert unmix_offgrid(frame, tier="fast").count[0] > 2  # of which some about the hot pixel
    found = unmix_offgrid(frame, tier="fast", good=good)
    assert cso_map(found, scene).map > 0.95 and found.count[0] == 2
    assert np.abs(polish(found, frame, good=good).xy - found.xy).max() < 0.05
    assert sample_posterior(frame[0], good=good, particles=200).answer.count[0] == 2
    assert unmix_offgrid(frame, tier="fast", good=np.ones((11, 11), dtype=bool)) == unmix_offgrid(frame, tier="fast")


@pytest.mark.parametrize("good", [np.ones((11, 11)), np.ones((3, 3), dtype=bool), np.zeros((11, 11), dtype=bool)])
def test_a_wrong_mask_of_good_pixels_is_refused(good):
    with pytest.raises(ValueError, match="good must"):
        unmix_offgrid(np.zeros((11, 11)), tier="fast", good=good)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plane": 0.6}, "plane must be a FocalPlane"),
        ({"prior": {"counts": (1, 3)}}, "prior must be a Prior"),
        ({"starts": Targets([[[5, 5]]], [[240]], [1])}, "put a single one into a list"),
    ],
)
def test_options_of_another_kind_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        unmix_offgrid(PLANE.render(Targets([[[5, 5]]], [[240]], [1])), tier="fast", **options)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.full((1, 11, 11), -1.0), "negative"),
        (np.full((1, 11, 11), np.nan), "finite"),
        (np.zeros((1, 10, 11)), "shape"),
        (np.full((1, 11, 11), 256.0), "full scale 255"),
        (np.full((1, 11, 11), "a"), "real numbers"),
    ],
)
def test_wrong_frames_are_named(frames, message):
    with pytest.raises(ValueError, match=message):
        unmix_offgrid(frames, tier="fast")


@pytest.mark.parametrize(("option", "message"), [({"tier": "best"}, "fast, standard, accurate"), ({"seed": -1}, "seed"), ({"threads": 0}, "threads")])
def test_wrong_options_are_named(data, option, message):
    with pytest.raises(ValueError, match=message):
        unmix_offgrid(data.frames[:1], **option)


def test_a_psf_too_wide_for_the_window_is_named():
    assert window_side(PLANE, Prior()) == 5 and window_side(PLANE, Prior(cluster=False)) == 11
    with pytest.raises(ValueError, match="narrower PSF"):
        window_side(FocalPlane(shape=(40, 40), sigma=5.0), Prior())


def test_without_numba_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "csist.solvers._offgrid_kernels")
    monkeypatch.delattr("csist.solvers._offgrid_kernels")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"pip install numba"):
        unmix_offgrid(np.zeros((11, 11)), tier="fast")


# Given starts ------------------------------------------------------------------------------------------------------------------------------


def test_given_starts_replace_the_search(data, estimate):
    """From the right answer and a wrong one, the posterior is that of the search."""
    wrong = Targets(np.repeat(data.targets.cell[:, None], 1, axis=1).astype(float), np.full((len(data.frames), 1), 235.0), np.ones(len(data.frames), int))
    found = unmix_offgrid(data.frames, tier="fast", starts=[wrong, disturbed(data.targets, 0.02)])
    assert (found.count == data.targets.count).mean() > 0.95
    assert cso_map(found, data.targets).map > cso_map(estimate, data.targets).map - 0.02
    only = unmix_offgrid(data.frames[:20], tier="fast", starts=[wrong[:20]])
    assert (only.count == 1).all()
    with pytest.raises(ValueError, match="unmix_offgrid: targets are of 3 frames"):
        unmix_offgrid(data.frames, tier="fast", starts=[wrong[:3]])


# Polishing ---------------------------------------------------------------------------------------------------------------------------------


def disturbed(targets: Targets, by: float) -> Targets:
    return Targets(targets.xy + np.random.default_rng(1).normal(0, by, targets.xy.shape), targets.intensity, targets.count)


def test_polishing_ends_in_the_next_minimum(data):
    start = disturbed(data.targets, 0.05)
    polished = polish(start, data.frames)
    assert cso_map(polished, data.targets).map > 0.85 > 0.8 > cso_map(start, data.targets).map
    assert np.array_equal(polished.count, start.count)
    settled = polish(polished, data.frames, iterations=100)
    assert np.quantile(np.abs(polish(settled, data.frames).xy - settled.xy)[settled.mask], 0.95) < 2e-3
    matches = match_detections(polished, data.targets)
    assert abs(matches.score.mean() - matches.is_hit.mean()) < 0.05
    single = data.targets.count == 1
    assert np.abs(polished.xy - data.targets.xy)[single, 0].max() < 0.02 and polished.sigma[single, 0].max() < 0.02


def test_polishing_keeps_order_and_says_what_is_unknown(data):
    start = Targets([[[5.2, 4.7], [4.6, 5.2]], [[3.0, 3.0], [0, 0]]], [[225.0, 245.0], [230.0, 0]], [2, 1])
    frames = PLANE.render(Targets([[[5.3, 4.6], [4.7, 5.3]], [[0, 0], [0, 0]]], [[240.0, 230.0], [0, 0]], [2, 0]))
    polished = polish(start, frames)
    assert np.abs(polished.xy[0] - [[5.3, 4.6], [4.7, 5.3]]).max() < 0.03
    assert polished.xy[1, 0].tolist() == [3.0, 3.0] and polished.score[1, 0] == 0  # dark
    unmoved = polish(start, frames, iterations=0)
    np.testing.assert_allclose(unmoved.xy[0], start.xy[0])
    assert np.isfinite(unmoved.sigma[unmoved.mask]).all() and unmoved.score[0].max() < polished.score[0].min()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": Targets(np.zeros((2, 1, 2)), np.zeros((2, 1)), [0, 0])}, "2 frames"),
        ({"targets": Targets(np.full((1, 9, 2), 5.0), np.full((1, 9), 230.0), [9])}, "more than 8"),
        ({"iterations": -1}, "iterations"),
        ({"threads": 0}, "threads"),
        ({"frames": np.full((1, 11, 11), -1.0)}, "polish: frame 0 holds a negative"),
    ],
)
def test_polish_says_what_is_wrong(change, message):
    truth = Targets([[[5.0, 5.0]]], [[240.0]], [1])
    with pytest.raises(ValueError, match=message):
        polish(**{"targets": truth, "frames": PLANE.render(truth), **change})


# Several clusters --------------------------------------------------------------------------------------------------------------------------


def several(cells, seed: int, shape) -> Targets:
    """One scene of random clusters about some pixels."""
    parts = random_targets(len(cells), np.random.default_rng(seed), shape=shape, cells=cells)
    return Targets(parts.xy[parts.mask][None], parts.intensity[parts.mask][None], [parts.count.sum()])


def test_a_cluster_is_unmixed_alike_wherever_it_lies_and_whoever_is_near():
    plane, cells = FocalPlane(shape=(64, 96)), np.array([[0, 0], [10, 40], [15, 40], [33, 90], [63, 50], [40, 5]])
    scene = several(cells, 3, plane.shape)
    found = unmix_offgrid(plane.render(scene), plane, tier="fast")
    assert found.count[0] == scene.count[0] > 8 and localisation(found, scene).recall > 0.9
    assert (np.diff(found.intensity[0]) <= 0).all()
    own = np.abs(found.xy[0] - cells[3]).max(-1) < 0.6
    small = FocalPlane(shape=(9, 9))
    alone = unmix_offgrid(plane.render(scene)[:, 29:38, 86:95], small, tier="fast")
    np.testing.assert_array_equal(alone.xy[0] + [29, 86], found.xy[0, own])
    np.testing.assert_array_equal(alone.score[0], found.score[0, own])


def test_clusters_that_share_pixels_lose_only_those():
    plane, recall = FocalPlane(shape=(20, 20)), {}
    for column in (9, 10, 11):
        scenes = [several(np.array([[8, 6], [8, column]]), seed, plane.shape) for seed in range(8)]
        found = unmix_offgrid(np.concatenate([plane.render(scene) for scene in scenes]), plane, tier="fast")
        recall[column] = np.mean([localisation(found[k], scene).recall for k, scene in enumerate(scenes)])
    assert recall[11] > 0.95 and recall[10] > 0.8 and recall[9] < 0.8


def test_polishing_takes_the_nearest_cluster():
    plane = FocalPlane(shape=(16, 30))
    scene = several(np.array([[4, 4], [9, 22]]), 0, plane.shape)
    polished = polish(disturbed(scene, 0.03), plane.render(scene), plane)
    assert np.abs(polished.xy - scene.xy).max() < 0.2 and polished.score.min() > 0.3


# Tiers and the result file -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_better_tiers_agree_with_fast_ones_where_all_is_certain(data, estimate):
    pick = np.flatnonzero(np.nanmin(estimate.score, axis=1) > 0.97)[:15]
    doubtful = np.argsort(np.nanmin(estimate.score, axis=1))[:2]
    for tier in list(TIERS)[1:]:
        found = unmix_offgrid(data.frames[np.r_[pick, doubtful]], tier=tier)
        assert np.quantile(distances(found[: len(pick)], estimate[pick]), 0.9) < 0.03


def test_the_score_file_has_its_fields(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("reproduce_score_offgrid", REPRODUCE / "score_offgrid.py")
    script, path = importlib.util.module_from_spec(spec), sys.path.copy()
    spec.loader.exec_module(script)
    sys.path[:] = path
    monkeypatch.setitem(script.WITHOUT_PRIORS, "fast", 4)
    assert script.main(["--tier", "fast", "--split", "val", "--size", "40", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "off-grid-fast.json").read_text())
    assert result["method"] == "off-grid" and result["settings"]["effort"] == TIERS["fast"] and result["test"]["frames"] == 40
    assert result["test"]["cso_map"] > 0.8 and result["frames_per_second"] > 0 and result["provenance"]["versions"]["numba"]
    assert result["without_priors"]["frames"] == 4 and set(result["without_priors"]["scores"]) == {"all rules known", *script.PRIORS}
    rows = result["calibration"]
    assert sum(row["detections"] for row in rows) == result["test"]["detections"] and all(0 <= row["real"] <= 1 for row in rows)
    assert script.main(["--tier", "fast", "--split", "val", "--size", "40", "--output", str(tmp_path)]) == 0  # current: kept
