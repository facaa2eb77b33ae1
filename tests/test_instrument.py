"""What a user measures: PSF width and its error, misfit, read noise, background; and what is refused."""
import numpy as np
import pytest

from csist.imaging import FocalPlane, pixel_profile
from csist.instrument import measure_read_noise, measure_sigma, subtract_background
from csist.scenes import Targets, random_targets

PLANE = FocalPlane()


def stars(n: int, seed: int = 0, inside: bool = True) -> Targets:
    return random_targets(n, np.random.default_rng(seed), count=(1, 1), cells=np.full((n, 2), 5) if inside else None)


@pytest.mark.parametrize("sigma", [0.42, 0.5, 0.58])
def test_sigma_is_found_from_a_wrong_guess(sigma):
    analogue = FocalPlane(sigma=sigma, bits=None, read_noise=1e-6)
    frames = analogue.expected(stars(4))
    found = measure_sigma(frames, FocalPlane(bits=None, read_noise=1e-6))
    assert found.sigma == pytest.approx(sigma, abs=2e-4)  # a window of 4 sigma leaves out a little light


def test_errors_are_as_large_as_predicted_and_fall_with_the_root_of_the_frames():
    rms, claimed = {}, {}
    for n in (1, 9):
        found = [measure_sigma(PLANE.render(stars(n, seed))) for seed in range(40)]
        rms[n] = np.sqrt(np.mean([(width.sigma - 0.5) ** 2 for width in found]))
        claimed[n] = np.mean([width.error for width in found])
        assert rms[n] == pytest.approx(claimed[n], rel=0.25)
    assert claimed[1] / claimed[9] == pytest.approx(3, rel=0.1)


def test_the_error_equals_the_fisher_information_of_a_brute_force_jacobian():
    frame, truth = PLANE.render(stars(1)), stars(1)
    theta = np.array([*truth.xy[0, 0], truth.intensity[0, 0], 0.5])

    def model(theta):
        x, y, light, sigma = theta
        return (light * np.outer(pixel_profile(x, 11, sigma), pixel_profile(y, 11, sigma))).ravel()

    jacobian = np.stack([(model(theta + step) - model(theta - step)) / 2e-5 for step in 1e-5 * np.eye(4)], axis=1)
    exact = np.sqrt(np.linalg.inv(jacobian.T @ jacobian)[3, 3] / 12)
    assert measure_sigma(frame).error == pytest.approx(exact, rel=0.02)


def test_misfit_tells_a_round_gaussian_from_an_oval_one():
    scenes = stars(10)
    x, y = scenes.xy[:, 0].T
    oval = scenes.intensity[:, :1, None] * pixel_profile(x, 11, 0.52)[:, :, None] * pixel_profile(y, 11, 0.48)[:, None, :]
    assert measure_sigma(PLANE.render(scenes)).misfit < 1 < 1.5 < measure_sigma(PLANE.digitise(oval)).misfit


def test_known_intensities_give_the_share_of_a_core():
    scenes = stars(8)
    width = measure_sigma(PLANE.digitise(0.8 * PLANE.expected(scenes)), intensity=scenes.intensity[:, 0])
    assert width.share == pytest.approx(0.8, abs=0.003) and width.sigma == pytest.approx(0.5, abs=0.003)
    assert measure_sigma(PLANE.render(scenes)).share == 1


def test_saturated_pixels_do_not_count():
    bright = Targets(stars(5).xy, 8 * stars(5).intensity, np.ones(5))
    assert (PLANE.render(bright) == 255).any((1, 2)).all()
    assert measure_sigma(PLANE.render(bright)).sigma == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(frames=np.zeros((0, 11, 11))), "no frame is given"),
        (dict(frames=np.zeros((2, 11, 11))), "a frame is dark"),
        (dict(frames=np.ones((2, 9, 9))), "must have shape"),
        (dict(frames=PLANE.render(stars(2)), intensity=[240.0]), "one number for each of 2 frames"),
        (dict(frames=PLANE.render(stars(2)), intensity=[240.0, -1.0]), "total fluxes > 0"),
        (dict(frames=FocalPlane(sigma=1.6).render(stars(3)), plane=FocalPlane(sigma=0.5)), "leaves the guess"),
        (dict(frames=PLANE.render(stars(3)), plane=FocalPlane(sigma=2.0)), "is the guess sigma = 2 px within a third"),
        (dict(frames=PLANE.render(stars(3)) / 255), "are levels those of the plane's bits"),
        (dict(frames=np.maximum(PLANE.render(stars(3)), 255 * (np.arange(121) == 12).reshape(11, 11))), "frame 0 has light in several places"),
    ],
)
def test_bad_input_of_the_width(arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_sigma(**arguments)


@pytest.mark.parametrize("sd", [0.4, 1.0, 3.0, 10.0])
def test_read_noise_from_half_of_it(sd):
    rng = np.random.default_rng(3)
    noisy = FocalPlane(read_noise=sd)
    assert measure_read_noise(noisy.render(random_targets(100, rng), rng), noisy) == pytest.approx(sd, rel=0.05)


def test_read_noise_without_rounding_and_without_noise():
    rng, analogue = np.random.default_rng(3), FocalPlane(bits=None, read_noise=2.0)
    assert measure_read_noise(analogue.render(random_targets(50, rng), rng), analogue) == pytest.approx(2, rel=0.05)
    assert measure_read_noise(PLANE.render(random_targets(20, rng))) == 0


@pytest.fixture(scope="module")
def busy():
    """Frames of 14 bits with three clusters each, and their focal plane."""
    plane, rng = FocalPlane((40, 40), bits=14, read_noise=5.0), np.random.default_rng(0)
    cells = [np.tile(cell, (4, 1)) for cell in ((5, 6), (20, 30), (33, 8))]
    light = sum(plane.expected(random_targets(4, rng, cells=at, intensity=(3000, 6000), shape=(40, 40))) for at in cells)
    return plane, light, rng


def test_read_noise_beside_several_clusters(busy):
    plane, light, rng = busy
    assert measure_read_noise(plane.digitise(light + rng.normal(0, 5, light.shape)), plane) == pytest.approx(5, rel=0.05)


def test_a_background_beneath_several_clusters_is_taken_away_before_the_noise_is_measured(busy):
    plane, light, rng = busy
    frames = plane.digitise(light + 200 + np.arange(40) / 4 + rng.normal(0, 5, light.shape))
    with pytest.raises(ValueError, match="a background; subtract it first"):
        measure_read_noise(frames, plane)
    cleaned = subtract_background(frames, plane)
    assert measure_read_noise(cleaned, plane) == pytest.approx(5, rel=0.05)
    assert abs((cleaned - light)[light > 100].mean()) < 1


def test_bad_pixels_that_are_named_change_nothing(busy):
    plane, light, rng = busy
    noise, good = rng.normal(0, 5, light.shape), np.ones((40, 40), dtype=bool)
    good[2, 30] = good[15, 15] = good[38, 38] = False
    frames = plane.digitise(light + noise)
    spoilt = frames.copy()
    spoilt[:, 2, 30], spoilt[:, 15, 15], spoilt[:, 38, 38] = 900, 1100, 0
    assert measure_read_noise(spoilt, plane) > 10
    assert measure_read_noise(spoilt, plane, good=good) == pytest.approx(5, rel=0.05)
    told = subtract_background(plane.digitise(np.where(good, light + noise + 200, 900)), plane, good=good)
    assert abs((told - light)[(light > 100) & good].mean()) < 1


def test_a_width_beside_a_hot_pixel_and_with_a_dead_one():
    frames, good = PLANE.render(stars(9)), np.ones((11, 11), dtype=bool)
    good[1, 1] = good[4, 5] = False
    frames[:, 1, 1], frames[:, 4, 5] = 255, 0
    with pytest.raises(ValueError, match="name hot pixels"):
        measure_sigma(frames)
    assert measure_sigma(frames, good=good).sigma == pytest.approx(0.5, abs=0.003)


def test_frames_without_grey_levels():
    """Neither rounded nor cut at zero, whatever the unit of the light."""
    plane, rng = FocalPlane((24, 24), bits=None, read_noise=1e-3), np.random.default_rng(0)
    frames = plane.render(random_targets(20, rng, intensity=(1, 1), shape=(24, 24)), rng)
    assert measure_read_noise(frames, plane) == pytest.approx(1e-3, rel=0.05)
    assert np.abs(subtract_background(frames + 0.1, plane) - frames).max() < 1e-3
    with pytest.raises(ValueError, match="a background; subtract it first"):
        measure_read_noise(frames + 0.1, plane)


@pytest.mark.parametrize("measure", [measure_read_noise, subtract_background])
def test_bad_input_of_what_is_dark(measure):
    with pytest.raises(ValueError, match="no frame is given"):
        measure(np.zeros((0, 11, 11)))
    with pytest.raises(ValueError, match="no pixel beyond the light's reach"):
        measure(FocalPlane(shape=(5, 5)).response(2.0, 2.0) * 200, FocalPlane(shape=(5, 5)))
    with pytest.raises(ValueError, match="must have shape"):
        measure(np.ones((1, 5, 5)))


def test_a_ramp_is_taken_away_and_saturated_pixels_stay():
    scenes = random_targets(60, np.random.default_rng(5))
    ramp = 0.5 * np.arange(11)[:, None] + 0.3 * np.arange(11)
    clean, sloping = PLANE.render(scenes).astype(int), PLANE.digitise(PLANE.expected(scenes) + ramp)
    cleaned = subtract_background(sloping)
    assert cleaned.dtype == sloping.dtype and (cleaned[sloping == 255] == 255).all()
    error = np.abs(cleaned.astype(int) - clean)[sloping < 255]
    assert error.max() <= 2 and error.mean() < 0.3
    assert subtract_background(sloping[0]).shape == (11, 11)
