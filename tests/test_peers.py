"""The scripts that score other people's methods and other people's frames, and least squares without a grid."""
from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.optimize import least_squares
from scipy.special import j1

from csist.datasets import csist100k
from csist.imaging import FocalPlane
from csist.metrics import count_accuracy, cso_map
from csist.scenes import Targets, random_targets
from csist.solvers.least_squares import FrameFit, plausible_counts, refine, unmix_least_squares

pytest.importorskip("accelerate")
REPRODUCE = Path(__file__).resolve().parent.parent / "reproduce"
PLANE = FocalPlane()


def script(name: str):
    """A script of reproduce as a module, under a name of its own: "queue" is taken."""
    spec = importlib.util.spec_from_file_location(f"reproduce_{name}", REPRODUCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    path = sys.path.copy()
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def peers():
    return script("score_peers")


@pytest.fixture(scope="module")
def robustness():
    return script("robustness")


# Least squares


def random_theta(fit: FrameFit, rng) -> np.ndarray:
    return rng.uniform(fit.low, fit.high)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_jacobian_is_the_derivative_of_the_residuals(count):
    rng = np.random.default_rng(count)
    scene = random_targets(1, rng, count=(count, count), cells=[[5, 0]])
    fit = FrameFit(PLANE.render(scene)[0], (5, 0), PLANE, count)
    for _ in range(5):
        theta, step = random_theta(fit, rng), 1e-6
        numeric = [(fit.residuals((theta + step * e)[None]) - fit.residuals((theta - step * e)[None]))[0] / (2 * step) for e in np.eye(len(theta))]
        assert np.allclose(fit.jacobian(theta), np.transpose(numeric), rtol=1e-4, atol=1e-3)


def test_the_residuals_are_those_of_the_focal_planes_expectation():
    scene = random_targets(1, np.random.default_rng(3), count=(3, 3), cells=[[4, 6]])
    frame = PLANE.render(scene)[0].astype(float)
    frame[4, 6] = 200.0  # unclipped, so that every pixel counts
    fit = FrameFit(frame, (4, 6), PLANE, 3)
    theta = np.column_stack([scene.xy[0], scene.intensity[0]]).ravel()
    wanted = (PLANE.expected(scene)[0] - frame)[2:7, 4:9].ravel() * np.sqrt(12)
    assert np.allclose(fit.residuals(theta[None])[0][:25], wanted) and (fit.residuals(theta[None])[0][25:] == 0).all()
    assert fit.cost(theta[None])[0] == pytest.approx(0.5 * (wanted**2).sum())


def test_a_clipped_pixel_counts_only_below_full_scale():
    frame = np.zeros((11, 11))
    frame[5, 5] = 255
    fit = FrameFit(frame, (5, 5), PLANE, 2, min_distance=0.0)
    bright, dim = ([5.0, 5.0, level] * 2 for level in (250.0, 220.0))
    centre = lambda theta: fit.residuals(np.array([theta]))[0][12]
    assert 2 * 250 * PLANE.response(5, 5)[5, 5] < 255 and centre(bright) < 0  # two centred targets give 233, still below
    frame[5, 5] = 255
    crowd = FrameFit(frame, (5, 5), PLANE, 3, min_distance=0.0)
    theta = np.array([[5.0, 5.0, 250.0] * 3])
    assert crowd.residuals(theta)[0][12] == 0 and crowd.jacobian(theta[0])[12].tolist() == [0.0] * 9 and centre(dim) < centre(bright)


def test_targets_that_are_too_close_cost():
    fit = FrameFit(np.zeros((11, 11)), (5, 5), PLANE, 2)
    apart, close = np.array([[5.0, 4.7, 235.0, 5.0, 5.3, 235.0]]), np.array([[5.0, 4.9, 235.0, 5.0, 5.3, 235.0]])
    assert fit.residuals(apart)[0][-1] == 0 and fit.residuals(close)[0][-1] == pytest.approx((0.494 - 0.4) / 0.01)


def test_plausible_counts_hold_the_truth():
    data = csist100k("val", 300)
    found = [plausible_counts(frame, PLANE, cell) for frame, cell in zip(data.frames, data.targets.cell)]
    assert all(count in some for count, some in zip(data.targets.count, found))
    assert np.mean([len(some) for some in found]) < 2.5


def test_least_squares_solves_clean_frames_and_says_how_sure_it_is():
    scene = random_targets(12, np.random.default_rng(5), count=(1, 2), cells=np.full((12, 2), 5))
    found = unmix_least_squares(PLANE.render(scene), starts=4)
    assert count_accuracy(found, scene) == 1 and cso_map(found, scene).map > 0.97
    assert (found.sigma[found.mask] > 0).all() and (found.sigma[found.mask] < 0.3).all() and (found.score[found.mask] < 0).all()
    assert unmix_least_squares(np.zeros((2, 11, 11))).count.tolist() == [0, 0]


@pytest.mark.parametrize("width", [None, (0.3, 0.3, 8.7)])
def test_refine_finds_the_minimum_that_scipy_finds(width):
    """Frames of one to four targets together: padding, saturated pixels and what is known beforehand, each frame against scipy on its own."""
    scene = random_targets(12, np.random.default_rng(7), count=np.tile([1, 2, 3, 4], 3), cells=np.full((12, 2), 5))
    frames = PLANE.render(scene)
    assert (frames == 255).any() and len(set(scene.count)) == 4
    expected = Targets(np.full(scene.xy.shape, 5.0), np.full(scene.intensity.shape, 235.0), scene.count)
    found = refine(frames, scene, PLANE, known=None if width is None else expected, width=width, iterations=60)

    def residuals_of(frame, number):
        def residuals(p):
            z, model = frame.astype(float), PLANE.expected(Targets(p.reshape(1, -1, 3)[..., :2], p.reshape(1, -1, 3)[..., 2], [number]))[0]
            misfit = np.where(z == 255, np.minimum(model - 254.5, 0), model - z) * np.sqrt(12)
            known = 0 * p if width is None else (p - np.tile([5, 5, 235], number)) / np.tile(width, number)
            return np.concatenate([misfit.ravel(), known])

        return residuals

    for n, frame in enumerate(frames):
        number = scene.count[n]
        start = np.column_stack([scene.xy[n, :number], scene.intensity[n, :number]]).ravel()
        residuals = residuals_of(frame, number)
        here = np.column_stack([found.xy[n, :number], found.intensity[n, :number]]).ravel()
        scipys = least_squares(residuals, start, x_scale=np.tile([0.1, 0.1, 10], number), xtol=1e-12, ftol=1e-12, gtol=1e-12).x
        assert (residuals(here) ** 2).sum() <= (residuals(scipys) ** 2).sum() + 1e-4
        if width is not None or number < 3:  # without anything known, the valley of a crowd is too flat for one minimum
            assert np.allclose(here, scipys, atol=[0.002, 0.002, 0.5] * number)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="starts must be a whole number >= 1; got 0"):
        unmix_least_squares(np.zeros((1, 11, 11)), starts=0)
    start = Targets([[[5.0, 5.0]]], [[235.0]], [1])
    with pytest.raises(ValueError, match="start holds 1 frames, but 2 frames are given"):
        refine(np.zeros((2, 11, 11)), start)
    with pytest.raises(ValueError, match="known .* and width .* belong together"):
        refine(np.zeros((1, 11, 11)), start, width=(1, 1, 1))
    with pytest.raises(ValueError, match="known must hold a target for each"):
        refine(np.zeros((1, 11, 11)), start, known=start[[]], width=(1, 1, 1))
    for width in ((1, 2), (0, 0, 0), (1, 1, np.nan)):
        with pytest.raises(ValueError, match="width must be three standard deviations > 0"):
            refine(np.zeros((1, 11, 11)), start, known=start, width=width)


# Peers


def test_photutils_columns_are_our_rows(peers):
    """photutils says x for columns; a target off centre in one direction tells."""
    pytest.importorskip("photutils")
    scene = Targets([[[5.3, 4.9]]], [[240.0]], [1])
    cost, (xy, flux, _) = peers.JointPhotometry()._fit(PLANE.render(scene)[0].astype(float), scene.xy[0] + 0.1)
    assert np.allclose(xy, scene.xy[0], atol=0.02) and flux == pytest.approx(240, abs=3) and cost < 25
    xy, flux, _ = peers.IterativePhotometry()._fit(PLANE.render(scene)[0].astype(float), "new", 2.0)
    assert np.allclose(xy, scene.xy[0], atol=0.02) and len(flux) == 1


@pytest.mark.parametrize("name", ["nnls-c3", "lasso-c3", "omp-c3"])
def test_sparse_peers_find_targets_on_nodes(peers, name):
    pytest.importorskip("sklearn")
    peer = peers.peers()[name]
    truth = Targets([[[5.0, 4 + 2 / 3], [5 + 1 / 3, 5 + 1 / 3]]], [[240.0, 225.0]], [2])
    data = peers.Frames(PLANE.render(truth), truth)
    settings = {**peer.choices[0], "readout": "merged", "options": {}}
    if name == "omp-c3":  # greedy: the first atom lies under the blend's centroid and is never given back
        truth = truth[:1].with_score(None)
        truth = Targets(truth.xy[:, :1], truth.intensity[:, :1], [1])
        data = peers.Frames(PLANE.render(truth), truth)
    estimate = peer.answer(data, settings)
    assert cso_map(estimate, truth).map > 0.6 and estimate.count[0] == truth.count[0]


def test_scoring_peers_is_repeatable_and_chooses_on_validation_frames(peers, tmp_path, capsys):
    pytest.importorskip("sklearn")
    output = tmp_path / "peers.json"
    trial = ["--only", "nnls-c3", "--val-size", "12", "--size", "12", "--output", str(output)]
    assert peers.main(trial) == 0 and peers.main(trial) == 0
    assert "is current" in capsys.readouterr().out
    entry = json.loads(output.read_text())["entries"]["nnls-c3"]
    assert entry["test"]["frames"] == entry["validation_frames"] == 12 and 0 < entry["test"]["cso_map"] < 1 and entry["validation"]["tried"] == 6
    assert entry["seconds_per_frame"] > 0 and set(entry["told"]) == {"psf", "saturation", "cell", "distance", "intensity", "count"}
    with pytest.raises(SystemExit):
        peers.main(["--size", "12"])  # a trial must not replace the stored scores


def test_a_missing_package_says_what_to_install(peers, tmp_path, capsys, monkeypatch):
    installed = peers.installed
    monkeypatch.setattr(peers, "installed", lambda package: None if package == "photutils" else installed(package))
    assert peers.main(["--only", "photutils-joint", "--size", "4", "--val-size", "4", "--output", str(tmp_path / "p.json")]) == 1
    assert "needs photutils, which is not installed: pip install csist[test]" in capsys.readouterr().out


# Changed frames


def test_the_base_condition_is_the_benchmarks_law(robustness):
    every = robustness.conditions()
    frames, truth = every["base"].data(50)
    assert frames.dtype == np.uint8 and np.array_equal(frames, PLANE.render(truth)) and set(truth.count) == {1, 2, 3, 4, 5}
    noisy = every["read-noise-2"].data(50)
    assert np.array_equal(noisy.targets.xy, truth.xy, equal_nan=True)  # the same scenes
    light = PLANE.expected(truth)
    difference = (noisy.frames - light)[(light > 20) & (light < 240)]
    assert 1.6 < difference.std() < 2.5 and abs(difference.mean()) < 0.5


def test_airy_pixels_equal_numerical_integration(robustness):
    radius = PLANE.rayleigh
    scale = 3.8317059702075125 / radius
    density = lambda y, x: (j1(max(scale * np.hypot(x, y), 1e-9)) / max(scale * np.hypot(x, y), 1e-9)) ** 2 * scale**2 / np.pi
    spline = robustness.airy_response(radius, 11)
    for dx, dy in ((0.0, 0.0), (0.3, 0.2), (1.2, 0.4)):
        exact = dblquad(density, dx - 0.5, dx + 0.5, dy - 0.5, dy + 0.5, epsabs=1e-8)[0]
        assert float(spline.ev(dx, dy)) == pytest.approx(exact, abs=5e-5)


def test_airy_light_is_the_targets_and_as_wide_as_said(robustness):
    scene = Targets([[[5.0, 5.2]]], [[240.0]], [1])
    for radius in (PLANE.rayleigh, robustness.FWHM / robustness.AIRY_FWHM):
        light = robustness.expected(scene, PLANE, ("airy", radius))[0]
        assert 0.93 * 240 < light.sum() < 240 and light.argmax() == 60
    v = np.linspace(0.5, 3, 100_001)
    half = v[np.argmin(abs((2 * j1(v) / v) ** 2 - 0.5))]
    assert 2 * half / 3.8317059702075125 == pytest.approx(robustness.AIRY_FWHM, abs=1e-4)


def test_an_elliptical_psf_of_no_ellipticity_is_round(robustness):
    scene = random_targets(20, np.random.default_rng(0))
    assert np.allclose(robustness.expected(scene, PLANE, ("elliptical", 0.0)), PLANE.expected(scene))
    light = robustness.expected(Targets([[[5.0, 5.0]]], [[240.0]], [1]), PLANE, ("elliptical", 0.2))[0]
    assert light[4, 5] > light[5, 4] and light.sum() == pytest.approx(240, abs=1e-3)  # longer along rows


def test_measured_optics_are_the_true_ones(robustness):
    width, share = robustness.measured_optics(0.55, ("gaussian",))
    assert width == pytest.approx(0.55, rel=0.005) and share == pytest.approx(1, abs=0.01)


def test_the_background_is_taken_away(robustness):
    condition = robustness.conditions()["background-20"]
    frames, truth = condition.data(40)
    cleaned, clean = robustness.subtract_background(frames, PLANE), PLANE.render(truth)
    open_pixels = (frames < 255) & (clean < 255)
    assert abs(cleaned.astype(float) - clean)[open_pixels].max() <= 3 and abs(cleaned.astype(float) - clean)[open_pixels].mean() < 0.5
    assert (cleaned[frames == 255] == 255).all()


def test_every_method_says_what_it_was_told(robustness):
    every, offgrid = robustness.conditions(), robustness.METHODS["off-grid-fast"]
    assert not offgrid.applies(every["base"], "informed") and offgrid.applies(every["read-noise-2"], "informed")
    told = robustness.METHODS["off-grid-standard"]
    assert told.applies(every["base"], "plain") and not told.applies(every["read-noise-2"], "plain") and told.applies(every["read-noise-2"], "informed")
    plane, prior = offgrid.setting(every["read-noise-2"], "informed")
    assert plane.read_noise == 2 and prior == robustness.Prior()
    assert offgrid.setting(every["count-7"], "informed")[1].counts == (1, 8) and offgrid.setting(every["count-7"], "plain")[1].counts == (1, 5)
    assert offgrid.setting(every["12-bit"], "informed")[1].intensity == (3520.0, 4000.0)
    assert offgrid.setting(every["airy"], "tolerant")[0].read_noise == 1.0 and not offgrid.applies(every["read-noise-2"], "tolerant")


def test_robustness_is_resumable(robustness, tmp_path, capsys):
    output = tmp_path / "robustness.json"
    trial = ["--only", "base", "background-20", "--methods", "ista-net-plus", "--size", "6", "--output", str(output)]
    if not (REPRODUCE / "weights" / "ista-net-plus-c3-seed0.safetensors").is_file():
        pytest.skip("no weights yet")
    assert robustness.main(trial) == 0
    assert capsys.readouterr().out.count("CSO-mAP") == 3  # base plain, background plain and informed
    assert robustness.main(trial) == 0 and "CSO-mAP" not in capsys.readouterr().out
    stored = json.loads(output.read_text())["conditions"]["background-20"]
    assert set(stored["methods"]) == {"ista-net-plus:plain", "ista-net-plus:informed"} and stored["group"] == "background"
    with pytest.raises(SystemExit):
        robustness.main(["--size", "6"])
