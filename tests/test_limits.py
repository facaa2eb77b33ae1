"""Fisher information against differences, integrals and simulated fits; the bounds' symmetries; what is said where there is no information."""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad, simpson
from scipy.optimize import least_squares
from scipy.stats import chi2, norm

import csist.limits as limits
from csist.imaging import FocalPlane, pixel_profile, pixel_profile_derivative
from csist.limits import (
    INTENSITY_PRIOR,
    covariance_bound,
    crlb,
    error_ellipse,
    fisher_information,
    jacobian,
    noise_deviation,
    position_covariance,
    resolution_limit,
)
from csist.scenes import Targets, random_targets

NOISY = FocalPlane(bits=None, read_noise=1.0)
SCENES = random_targets(60, np.random.default_rng(3))
OPTIONS = [{}, {"saturated": "dropped"}, {"prior": INTENSITY_PRIOR}]


def scene(*targets):
    """One frame of targets given as (x, y, intensity)."""
    x, y, intensity = np.transpose(targets)
    return Targets.from_lists([np.column_stack([x, y])], [intensity])


def from_parameters(vector):
    """One frame from its parameter vector x, y, intensity, x, y, intensity ..."""
    return scene(*np.reshape(vector, (-1, 3)))


def parameters(targets):
    """The parameter vector of a single frame without padding."""
    return np.column_stack([targets.xy[0], targets.intensity[0]]).ravel()


def expected(vector, plane=NOISY):
    return plane.expected(from_parameters(vector)).ravel()


def numerical_hessian(function, at, steps):
    """Second differences of a function with its minimum, zero, at the given point."""
    size = len(at)
    shifts = np.diag(steps)
    hessian = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            corners = [function(at + s * shifts[i] + t * shifts[j]) * s * t for s in (-1, 1) for t in (-1, 1)]
            hessian[i, j] = sum(corners) / (4 * steps[i] * steps[j])
    return hessian


# Derivatives


@pytest.mark.parametrize("sigma", [0.3, 0.5, 3.0])
def test_profile_derivative_is_the_slope_of_the_profile(sigma):
    u, step = np.linspace(-0.5, 10.5, 45), 1e-5
    slope = (pixel_profile(u + step, 11, sigma) - pixel_profile(u - step, 11, sigma)) / (2 * step)
    np.testing.assert_allclose(pixel_profile_derivative(u, 11, sigma), slope, atol=1e-8)


def test_profile_derivative_tails_have_relative_accuracy():
    low, high = np.arange(3, 18) - 0.5, np.arange(3, 18) + 0.5  # pixels 3 .. 17 of a target at 0, sigma 0.5: down to 1e-237
    ratio = np.exp((low**2 - high**2) / 0.5)
    np.testing.assert_allclose(pixel_profile_derivative(0.0, 18, 0.5)[3:], norm.pdf(low, scale=0.5) * (1 - ratio), rtol=1e-11)
    assert pixel_profile_derivative(2.0, 5, 100.0)[3] == pytest.approx(norm.pdf(0.5, scale=100) - norm.pdf(1.5, scale=100), rel=1e-9)


def test_profile_derivative_is_odd_and_vanishes_far_away():
    profile = pixel_profile_derivative(5.0, 11, 0.5)
    np.testing.assert_array_equal(profile, -profile[::-1])
    assert (pixel_profile_derivative([-1e6, 1e6], 5, 0.5) == 0).all()


def test_jacobian_matches_central_differences():
    targets = scene((4.7, 5.2, 240.0), (5.3, 5.4, 225.0), (0.1, -0.4, 250.0))
    at, steps = parameters(targets), np.tile([1e-5, 1e-5, 1e-2], 3)
    differences = np.transpose([(expected(at + shift) - expected(at - shift)) / (2 * shift.sum()) for shift in np.diag(steps)])
    np.testing.assert_allclose(jacobian(targets, NOISY)[0], differences, atol=1e-6)


def test_jacobian_of_padding_is_zero():
    derivatives = jacobian(Targets([[[5.0, 5.0], [0, 0]]], [[240.0, 0.0]], [1]), NOISY)
    assert derivatives.shape == (1, 121, 6)
    assert (derivatives[0, :, 3:] == 0).all() and (derivatives[0, 60, 2] > 0)


# Information


def test_information_is_the_curvature_of_the_expected_log_likelihood():
    targets = scene((4.7, 5.2, 240.0), (5.3, 5.4, 225.0))
    at = parameters(targets)
    plane = FocalPlane(bits=None, read_noise=2.0)
    divergence = lambda vector: ((expected(vector) - expected(at)) ** 2).sum() / (2 * plane.read_noise**2)
    hessian = numerical_hessian(divergence, at, np.tile([1e-4, 1e-4, 1e-2], 2))
    information = fisher_information(targets, plane)[0]
    np.testing.assert_allclose(information, hessian, atol=1e-5 * np.abs(information).max())


def clipped_divergence(centre, other, plane):
    """Kullback-Leibler divergence of two expectations' readings, clipped half a level above zero and below full scale; by Simpson's rule."""
    noise, low, high = noise_deviation(plane), 0.5, plane.full_scale - 0.5
    reading, total = np.linspace(low, high, 2001), 0.0
    for m, k in zip(centre, other):
        density, log_ratio = norm.pdf(reading, m, noise), ((reading - k) ** 2 - (reading - m) ** 2) / (2 * noise**2)
        total += simpson(density * log_ratio, x=reading)
        for log_mass in (lambda mean: norm.logcdf(low, mean, noise), lambda mean: norm.logsf(high, mean, noise)):
            total += math.exp(log_mass(m)) * (log_mass(m) - log_mass(k))
    return total


def test_information_of_clipped_frames_is_the_curvature_of_their_log_likelihood():
    plane = FocalPlane(shape=(4, 4), read_noise=2.0)
    targets = scene((0.6, 0.9, 333.0), (1.0, 1.1, 290.0))
    at = parameters(targets)
    centre = expected(at, plane)
    assert abs(centre.max() - 254.5) < 3 and centre.min() < 5  # both ends of the digitiser matter
    divergence = lambda vector: clipped_divergence(centre, expected(vector, plane), plane)
    hessian = numerical_hessian(divergence, at, np.tile([2e-3, 2e-3, 0.5], 2))
    information = fisher_information(targets, plane)[0]
    scale = np.sqrt(np.outer(np.diag(information), np.diag(information)))
    np.testing.assert_allclose(information / scale, hessian / scale, atol=2e-3)
    without = fisher_information(targets, replace(plane, bits=None, read_noise=noise_deviation(plane)))[0]
    assert np.abs((information - without) / scale).max() > 0.02  # clipping did change it


ONE_PIXEL = FocalPlane(shape=(1, 1), bits=8, read_noise=2.0)


def one_pixel_share(value, plane=ONE_PIXEL):
    """What clipping leaves of a pixel that expects this grey level: the information on intensity over that of an unclipped pixel."""
    response = plane.response(0.0, 0.0).item()
    return fisher_information(scene((0.0, 0.0, value / response)), plane)[0, 2, 2] * (noise_deviation(plane) / response) ** 2


@pytest.mark.parametrize("value", [-3.0, 0.0, 1.0, 3.0, 8.0, 128.0, 240.0, 252.0, 254.5, 256.0, 262.0, 275.0])
def test_share_left_by_clipping_is_the_variance_of_the_score(value):
    noise = noise_deviation(ONE_PIXEL)
    low, high = (0.5 - value) / noise, (254.5 - value) / noise
    seen = quad(lambda t: t**2 * norm.pdf(t), max(low, -12), min(high, 12), epsabs=1e-13)[0]
    clipped = math.exp(2 * norm.logpdf(high) - norm.logsf(high)) + math.exp(2 * norm.logpdf(low) - norm.logcdf(low))
    assert one_pixel_share(value) == pytest.approx(seen + clipped, rel=1e-9, abs=1e-12)


def test_a_one_bit_sensor_has_the_information_of_a_probit():
    plane = FocalPlane(shape=(1, 1), bits=1, read_noise=1.0)
    for value in (-1.0, 0.5, 2.0):
        t = (value - 0.5) / noise_deviation(plane)
        assert one_pixel_share(value, plane) == pytest.approx(norm.pdf(t) ** 2 / (norm.cdf(t) * norm.sf(t)), rel=1e-12)


@pytest.mark.parametrize("read_noise, tolerance", [(1.0, 0.04), (2.0, 0.01), (5.0, 0.003)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.2, 4.0, 100.3, 250.0, 254.0, 255.0])
def test_gaussian_rounding_is_close_to_the_exact_information_of_rounded_readings(value, read_noise, tolerance):
    plane = replace(ONE_PIXEL, read_noise=read_noise)
    edge = np.concatenate([[-np.inf], (np.arange(255) + 0.5 - value) / read_noise, [np.inf]])
    probability = np.where(edge[:-1] > 0, norm.sf(edge[:-1]) - norm.sf(edge[1:]), norm.cdf(edge[1:]) - norm.cdf(edge[:-1]))
    slope = -np.diff(norm.pdf(edge)) / read_noise
    possible = probability > 1e-200
    exact = (slope[possible] ** 2 / probability[possible]).sum() * noise_deviation(plane) ** 2
    assert one_pixel_share(value, plane) == pytest.approx(exact, rel=tolerance)


def test_deep_saturation_leaves_nothing_and_no_warning():
    with np.errstate(all="raise", under="ignore"):
        assert one_pixel_share(1e6) < 1e-200
        assert fisher_information(scene((5.0, 5.0, 1e7)), FocalPlane())[0, 2, 2] < 1e-3


def test_nothing_is_lost_at_zero_without_read_noise():
    targets = scene((5.0, 5.0, 240.0))
    np.testing.assert_allclose(crlb(targets, FocalPlane()), crlb(targets, FocalPlane(bits=None, read_noise=math.sqrt(1 / 12))), rtol=1e-12)
    assert (crlb(targets, FocalPlane(read_noise=2.0)) > crlb(targets, FocalPlane(read_noise=2.0), saturated="dropped")).all()


def test_rounding_and_read_noise_add_as_variances():
    assert noise_deviation(FocalPlane(read_noise=2.0)) == pytest.approx(math.sqrt(4 + 1 / 12))
    assert noise_deviation(FocalPlane(bits=None, read_noise=2.0)) == 2.0
    ratio = crlb(SCENES, replace(NOISY, read_noise=3.0)) / crlb(SCENES, NOISY)
    np.testing.assert_allclose(ratio[SCENES.mask & np.isfinite(ratio).all(-1)], 3.0, rtol=1e-2)


def test_dropped_pixels_are_left_out():
    targets = scene((4.8, 5.0, 240.0), (5.3, 5.0, 245.0), (5.0, 5.45, 230.0))
    plane = FocalPlane()
    seen = plane.render(targets)[0].ravel() < 255
    assert seen.sum() == 120
    kept = jacobian(targets, plane)[0][seen]
    np.testing.assert_allclose(fisher_information(targets, plane, saturated="dropped")[0], 12 * kept.T @ kept, rtol=1e-10, atol=1e-6)


def test_a_prior_adds_information_on_intensities_only():
    change = fisher_information(SCENES, NOISY, prior=9.0) - fisher_information(SCENES, NOISY)
    present = SCENES.count == SCENES.capacity
    np.testing.assert_allclose(change[present], np.broadcast_to(np.diag(np.tile([0, 0, 1 / 81], 5)), change[present].shape), atol=1e-10)
    assert pytest.approx(np.std(np.random.default_rng(0).uniform(220, 250, 100_000)), rel=0.01) == INTENSITY_PRIOR


def test_blocks_do_not_change_the_result(monkeypatch):
    whole = fisher_information(SCENES, NOISY)
    monkeypatch.setattr(limits, "BLOCK", 7 * 15 * 121)  # seven frames at a time
    np.testing.assert_array_equal(fisher_information(SCENES, NOISY), whole)


# Bounds


@pytest.mark.parametrize("targets", [scene((5.13, 4.8, 240.0)), scene((4.4, 4.9, 235.0), (5.4, 5.6, 245.0))], ids=["one", "two"])
def test_maximum_likelihood_attains_the_bound(targets):
    trials, at = 400, parameters(targets)
    frames = NOISY.render(targets[np.zeros(trials, dtype=int)], np.random.default_rng(7)).reshape(trials, -1)
    derivative = lambda vector: jacobian(from_parameters(vector), NOISY)[0]
    fits = [least_squares(lambda v, z=frame: expected(v) - z, at, jac=derivative, x_scale=np.tile([0.01, 0.01, 1.0], len(at) // 3)).x for frame in frames]
    error = np.array(fits) - at
    bound = covariance_bound(fisher_information(targets, NOISY))[0]
    deviation = np.sqrt(np.diag(bound))
    assert (np.abs(error.mean(0)) < 4 * deviation / math.sqrt(trials)).all()
    np.testing.assert_allclose(error.std(0), crlb(targets, NOISY)[0].ravel(), rtol=4 / math.sqrt(2 * trials))
    whole = np.einsum("ni,ij,nj->", error, np.linalg.inv(bound), error)  # the covariances count here as well
    assert 1e-4 < chi2.cdf(whole, trials * len(at)) < 1 - 1e-4


def test_position_bound_falls_as_one_over_intensity():
    flux = np.array([30.0, 60.0, 120.0, 240.0])
    bound = crlb(Targets.from_lists([[[5.2, 4.9]]] * 4, flux[:, None]), NOISY)[:, 0]
    np.testing.assert_allclose(bound[:, :2] * flux[:, None], np.tile(bound[0, :2] * flux[0], (4, 1)), rtol=1e-12)
    np.testing.assert_allclose(bound[:, 2], bound[0, 2], rtol=1e-12)


def test_bound_of_a_single_target_has_a_closed_form():
    row, column = pixel_profile(5.2, 11, 0.5), pixel_profile(4.9, 11, 0.5)
    slope = pixel_profile_derivative(5.2, 11, 0.5)
    # Only the intensity trades with x: what y could add is orthogonal to x once the intensity is taken out.
    alone = 1 / (240 * np.linalg.norm(slope) * np.linalg.norm(column))
    bound = crlb(scene((5.2, 4.9, 240.0)), NOISY)[0, 0, 0]
    coupling = (slope @ row) ** 2 / ((slope @ slope) * (row @ row))
    assert bound == pytest.approx(alone / math.sqrt(1 - coupling), rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("plane", [NOISY, FocalPlane(), FocalPlane(read_noise=2.0)], ids=["analogue", "rounded", "read noise"])
def test_mirror_transposition_and_order_of_targets_do_not_matter(plane, options):
    options = {"prior": INTENSITY_PRIOR, **options}  # so that all bounds are finite and well conditioned
    bound = crlb(SCENES, plane, **options)
    mirrored = crlb(Targets(np.stack([10 - SCENES.xy[..., 0], SCENES.xy[..., 1]], -1), SCENES.intensity, SCENES.count), plane, **options)
    transposed = crlb(Targets(SCENES.xy[..., ::-1], SCENES.intensity, SCENES.count), plane, **options)
    np.testing.assert_allclose(mirrored, bound, rtol=1e-5)
    np.testing.assert_allclose(transposed[..., [1, 0, 2]], bound, rtol=1e-5)
    full = SCENES[SCENES.count == 5]
    order = [3, 0, 4, 1, 2]
    permuted = crlb(Targets(full.xy[:, order], full.intensity[:, order], full.count), plane, **options)
    np.testing.assert_allclose(permuted, crlb(full, plane, **options)[:, order], rtol=1e-5)


@pytest.mark.parametrize("saturated", ["censored", "dropped"])
@pytest.mark.parametrize("read_noise", [0.0, 2.0])
def test_clipping_never_lowers_the_bound(saturated, read_noise):
    many = random_targets(300, np.random.default_rng(5), count=(3, 5))
    clipped, open_ended = FocalPlane(read_noise=read_noise), FocalPlane(bits=None, read_noise=noise_deviation(FocalPlane(read_noise=read_noise)))
    assert (clipped.render(many, np.random.default_rng(0)).max((1, 2)) == 255).mean() > 0.5
    ratio = crlb(many, clipped, saturated=saturated, prior=9.0) / crlb(many, open_ended, prior=9.0)
    assert np.nanmin(ratio) > 1 - 1e-6 and np.nanmax(ratio) > 1.5
    lost = fisher_information(many, open_ended) - fisher_information(many, clipped, saturated=saturated)
    values = np.linalg.eigvalsh(np.nan_to_num(lost))
    assert (values >= -1e-12 * values.max()).all()


def test_a_neighbour_never_helps():
    alone = crlb(scene((5.0, 5.0, 240.0)), NOISY)[0, 0]
    beside = [crlb(scene((5.0, 5.0, 240.0), (5.0, 5.0 + d, 240.0)), NOISY)[0, 0] for d in (0.3, 0.5, 1.0, 2.0, 5.0)]
    assert (np.array(beside) >= alone * (1 - 1e-12)).all()
    assert (np.diff([bound[1] for bound in beside]) <= 1e-9).all()  # along the pair, nearer is worse
    np.testing.assert_allclose(beside[-1], alone, rtol=1e-4)


def test_padding_is_nan_and_only_padding_is():
    bound = crlb(SCENES, FocalPlane(), prior=INTENSITY_PRIOR)
    assert bound.shape == (60, 5, 3) and bound.dtype == np.float64
    np.testing.assert_array_equal(np.isnan(bound), np.repeat(~SCENES.mask[..., None], 3, axis=-1))
    assert (bound[SCENES.mask] > 0).all()
    wide = Targets.from_lists([SCENES.xy[0, : SCENES.count[0]], SCENES.xy[1, : SCENES.count[1]]], [SCENES.intensity[i, : SCENES.count[i]] for i in (0, 1)])
    np.testing.assert_allclose(crlb(wide, NOISY, prior=9.0), crlb(SCENES[:2], NOISY, prior=9.0)[:, : wide.capacity], rtol=1e-6)


def test_empty_frames_and_no_frames():
    assert np.isnan(crlb(Targets.from_lists([[]], [[]]), NOISY)).all()
    assert crlb(SCENES[:0], NOISY).shape == (0, 5, 3)
    assert crlb(Targets(np.empty((2, 0, 2)), np.empty((2, 0)), [0, 0]), NOISY).shape == (2, 0, 3)
    assert position_covariance(SCENES[:0], NOISY).shape == (0, 5, 2, 2)


# No information


def test_coincident_targets_have_infinite_bounds_and_spare_their_neighbours():
    bound = crlb(scene((5.0, 5.0, 240.0), (8.0, 2.0, 240.0), (5.0, 5.0, 230.0)), NOISY)[0]
    assert np.isinf(bound[[0, 2]]).all()
    np.testing.assert_allclose(bound[1], crlb(scene((8.0, 2.0, 240.0)), NOISY)[0, 0], rtol=1e-6)


def test_a_prior_pins_the_intensities_of_coincident_targets_but_not_their_places():
    bound = crlb(scene((5.0, 5.0, 240.0), (5.0, 5.0, 240.0)), NOISY, prior=9.0)[0]
    assert np.isinf(bound[:, :2]).all()
    # The sum is known to about 2 grey levels, the difference only from the prior: 9 sqrt(2).
    np.testing.assert_allclose(bound[:, 2], 9 / math.sqrt(2), rtol=0.05)


@pytest.mark.parametrize("place", [(30.0, 5.0), (-1e6, 5.0), (5.0, 1e6)])
def test_a_target_off_the_frame_is_unknown_and_harmless(place):
    bound = crlb(scene((*place, 240.0), (5.0, 5.0, 240.0)), NOISY)[0]
    assert np.isinf(bound[0]).all()
    np.testing.assert_allclose(bound[1], crlb(scene((5.0, 5.0, 240.0)), NOISY)[0, 0], rtol=1e-9)


def test_a_dark_target_has_no_place():
    bound = crlb(scene((5.0, 5.0, 0.0)), NOISY)[0, 0]
    assert np.isinf(bound[:2]).all() and bound[2] == pytest.approx(1 / np.linalg.norm(NOISY.response(5.0, 5.0)))


def test_the_bound_diverges_towards_coincidence():
    bounds = [crlb(scene((5.0, 5.0 - d / 2, 240.0), (5.0, 5.0 + d / 2, 240.0)), NOISY)[0, 0, 1] for d in (0.4, 0.2, 0.1, 0.05)]
    np.testing.assert_allclose(np.diff(np.log2(bounds)), 2.0, atol=0.25)  # each halving costs a factor of four: the pair's middle trades with its balance


def test_covariance_bound_is_the_inverse_where_there_is_one():
    information = fisher_information(SCENES[SCENES.count == 3], NOISY, prior=9.0)[:, :9, :9]
    np.testing.assert_allclose(covariance_bound(information) @ information, np.broadcast_to(np.eye(9), information.shape), atol=1e-6)


def test_bounds_are_accurate_and_infinite_only_where_they_are_hopeless():
    many = random_targets(400, np.random.default_rng(11), count=(3, 5), cells=np.zeros((400, 2), dtype=int))  # a corner, where least light arrives
    plane = FocalPlane()
    scores = jacobian(many, plane) * (plane.render(many).reshape(400, -1, 1) < 255) * math.sqrt(12)
    infinite = 0
    for frame, count, bound in zip(scores, many.count, crlb(many, plane, saturated="dropped")):
        norms = np.linalg.norm(frame[:, : 3 * count], axis=0)
        _, values, vectors = np.linalg.svd(frame[:, : 3 * count] / norms, full_matrices=False)  # loses half the digits that the information loses
        exact = (np.sqrt(((vectors / values[:, None]) ** 2).sum(0)) / norms).reshape(count, 3)
        finite = np.isfinite(bound[:count])
        np.testing.assert_allclose(bound[:count][finite], exact[finite], rtol=1e-2)
        assert finite.all() or exact[:, :2].max() > 500  # [px]
        infinite += not finite.all()
    assert 0 < infinite < 400


# Ellipses


def test_error_ellipse_has_the_eigenvalues_and_direction_of_the_covariance():
    covariance = position_covariance(SCENES, NOISY, prior=9.0)[SCENES.mask]
    ellipse = error_ellipse(covariance)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose([ellipse.minor, ellipse.major], np.sqrt(values).T, rtol=1e-6)
    cosine = np.cos(ellipse.angle) * vectors[:, 0, 1] + np.sin(ellipse.angle) * vectors[:, 1, 1]
    np.testing.assert_allclose(np.abs(cosine[values[:, 1] > 1.001 * values[:, 0]]), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.diagonal(covariance, axis1=1, axis2=2), crlb(SCENES, NOISY, prior=9.0)[SCENES.mask][:, :2] ** 2, rtol=1e-12)


def test_error_ellipse_covers_what_it_says():
    covariance = np.array([[0.04, 0.018], [0.018, 0.01]])
    points = np.random.default_rng(0).multivariate_normal([0, 0], covariance, 20_000)
    for coverage, share in ((None, 1 - math.exp(-0.5)), (0.95, 0.95)):
        ellipse = error_ellipse(covariance, coverage)
        along = points @ [np.cos(ellipse.angle), np.sin(ellipse.angle)]
        across = points @ [-np.sin(ellipse.angle), np.cos(ellipse.angle)]
        inside = ((along / ellipse.major) ** 2 + (across / ellipse.minor) ** 2 <= 1).mean()
        assert inside == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000))


def test_error_ellipse_draws_as_documented():
    patches = pytest.importorskip("matplotlib.patches")
    ellipse = error_ellipse([[0.04, 0.018], [0.018, 0.01]])
    patch = patches.Ellipse((5.0, 3.0), 2 * ellipse.minor, 2 * ellipse.major, angle=-np.degrees(ellipse.angle))  # a target at x = 3, y = 5
    column, row = patch.get_patch_transform().transform([0.0, 1.0])  # the end of the second axis, the major one
    end = ellipse.major * np.array([np.cos(ellipse.angle), np.sin(ellipse.angle)])
    np.testing.assert_allclose([row - 3.0, column - 5.0], end, atol=1e-12)


def test_error_ellipse_of_infinite_and_missing_covariances():
    inf, nan = math.inf, math.nan
    ellipse = error_ellipse([[[inf, nan], [nan, 4.0]], [[4.0, nan], [nan, inf]], [[inf, nan], [nan, inf]], [[nan, nan], [nan, nan]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(ellipse.major, [inf, inf, inf, nan, 0])
    np.testing.assert_array_equal(ellipse.minor, [2, 2, inf, nan, 0])
    np.testing.assert_array_equal(ellipse.angle, [0, np.pi / 2, nan, nan, 0])


# Resolution


def separation_bound(separation, flux, plane, angle):
    """The bound on a pair's separation from the covariance of its positions."""
    direction = np.array([math.cos(angle), math.sin(angle)])
    ends = [(*(np.array([5.0, 5.0]) + sign * separation / 2 * direction), flux) for sign in (-1, 1)]
    gradient = np.array([*-direction, 0.0, *direction, 0.0])
    return math.sqrt(gradient @ covariance_bound(fisher_information(scene(*ends), plane))[0] @ gradient)


@pytest.mark.parametrize("angle", [0.0, math.pi / 4, 1.2])
@pytest.mark.parametrize("plane", [NOISY, FocalPlane(), FocalPlane(read_noise=5.0)], ids=["analogue", "rounded", "read noise"])
def test_at_the_limit_the_bound_equals_the_separation(plane, angle):
    limit = resolution_limit(235.0, plane, angle=angle)
    assert separation_bound(limit, 235.0, plane, angle) == pytest.approx(limit, rel=1e-4)
    assert separation_bound(1.3 * limit, 235.0, plane, angle) < 1.3 * limit


def test_resolution_depends_on_signal_over_noise_and_falls_as_its_root():
    flux = np.array([20.0, 235.0, 1e4, 1e6])
    limit = resolution_limit(flux, NOISY)
    assert limit.shape == (4,)
    np.testing.assert_allclose(resolution_limit(3 * flux, replace(NOISY, read_noise=3.0)), limit, rtol=1e-9)
    assert math.log(limit[3] / limit[2]) / math.log(100) == pytest.approx(-0.5, abs=1e-3)
    assert (resolution_limit(flux, replace(NOISY, sigma=1.0)) > limit).all()


def test_resolution_is_better_with_a_prior_and_about_a_pixels_centre():
    assert resolution_limit(50.0, NOISY, prior=1.0) < resolution_limit(50.0, NOISY)
    assert resolution_limit(50.0, NOISY) < resolution_limit(50.0, NOISY, centre=(5.5, 5.0))  # centre default: pixel (5, 5)
    assert resolution_limit(50.0, NOISY, angle=0.0) == pytest.approx(resolution_limit(50.0, NOISY, angle=math.pi / 2), rel=1e-9)


def test_pairs_in_the_noise_are_never_resolved():
    np.testing.assert_array_equal(np.isinf(resolution_limit([0.2, 240.0], NOISY)), [True, False])


# Errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: crlb(SCENES, FocalPlane(bits=None)), "no noise, so the information is infinite; set read_noise > 0 or bits"),
        (lambda: resolution_limit(240.0, FocalPlane(bits=None)), "no noise"),
        (lambda: crlb(SCENES, NOISY, saturated="clipped"), 'saturated must be "censored"'),
        (lambda: crlb(SCENES, NOISY, prior=0.0), "prior must be None or a standard deviation > 0"),
        (lambda: crlb(SCENES, NOISY, prior="wide"), "prior must be None"),
        (lambda: covariance_bound(np.zeros((3, 2))), "shape"),
        (lambda: error_ellipse(np.zeros(3)), "shape"),
        (lambda: error_ellipse(np.eye(2), coverage=95), "between 0 and 1"),
        (lambda: resolution_limit([100.0, 0.0], NOISY), "positive and finite"),
        (lambda: resolution_limit(1e12, NOISY), "too near for float64"),
        (lambda: resolution_limit(100.0, NOISY, centre=5.0), "centre must be two"),
    ],
)
def test_bad_input_gets_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("arguments", [(SCENES.xy, NOISY), (SCENES, 0.5)])
def test_wrong_types_are_named(arguments):
    with pytest.raises(TypeError, match="must be"):
        crlb(*arguments)
