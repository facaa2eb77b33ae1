"""The focal plane against independent integrators, its symmetries, the sensor's arithmetic, and the sub-pixel grid."""
from __future__ import annotations

import json
import math
import pickle
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad
from scipy.special import log_ndtr

from csist.imaging import FocalPlane, SubpixelGrid, check_ratio, check_shape, pixel_profile
from csist.scenes import Targets, random_targets

PLANE = FocalPlane()
ANALOGUE = FocalPlane(bits=None)
coordinate = st.floats(-0.5, 10.5)


def gaussian(y, x, x0, y0, sigma):
    """Unit-volume PSF in scipy's argument order (inner variable first)."""
    return math.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)


def gauss_legendre_profile(position, n_pixels, sigma, nodes=60):
    """The pixel profile by quadrature of a positive integrand: good in RELATIVE accuracy, tails included, and free of erf."""
    node, weight = np.polynomial.legendre.leggauss(nodes)
    points = np.arange(n_pixels)[:, None] + node / 2 - position
    return (np.exp(-(points**2) / (2 * sigma**2)) * weight / 2).sum(1) / (math.sqrt(2 * math.pi) * sigma)


# Values


@pytest.mark.parametrize("x0, y0, sigma", [(5.0, 5.0, 0.5), (4.63, 5.41, 0.5), (0.02, 10.47, 0.5), (2.2, 7.9, 0.8)])
def test_response_is_the_double_integral_of_the_psf(x0, y0, sigma):
    response = FocalPlane(sigma=sigma).response(x0, y0)
    near = [(i, j) for i in range(11) for j in range(11) if abs(i - x0) < 2.6 and abs(j - y0) < 2.6]
    for i, j in near + [(0, 0), (10, 10), (0, 10), (5, 0)]:
        value, _ = dblquad(gaussian, i - 0.5, i + 0.5, j - 0.5, j + 0.5, args=(x0, y0, sigma), epsabs=1e-14, epsrel=1e-13)
        assert response[i, j] == pytest.approx(value, abs=1e-12)


def test_response_agrees_with_photutils():
    psf = pytest.importorskip("photutils.psf")
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-0.5, 10.5, (2, 1000))
    sigma = rng.uniform(0.3, 1.5, 1000)
    row, column = np.mgrid[:11, :11]
    for x0, y0, s in zip(x, y, sigma):
        oracle = psf.CircularGaussianSigmaPRF(flux=1.0, x_0=y0, y_0=x0, sigma=s)(column, row)  # photutils: x is the column
        np.testing.assert_allclose(FocalPlane(sigma=s).response(x0, y0), oracle, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("position", [-0.5, 0.0, 0.5, 3.3, 4.999999, 10.5])
def test_profile_tails_have_relative_accuracy(position, sigma):
    profile = pixel_profile(position, 11, sigma)
    exact = gauss_legendre_profile(position, 11, sigma)
    representable = exact > 1e-300
    np.testing.assert_allclose(profile[representable], exact[representable], rtol=1e-12)
    assert (profile >= 0).all()


def test_profile_tails_agree_with_log_ndtr():
    edges = (np.arange(12) - 0.5) / 0.5
    tail = np.exp(log_ndtr(-edges[2:-1])) - np.exp(log_ndtr(-edges[3:]))  # pixels 2 .. 10 of a target at 0: down to 1e-80
    np.testing.assert_allclose(pixel_profile(0.0, 11, 0.5)[2:], tail, rtol=1e-12)
    assert tail[-1] < 1e-79


def test_profile_of_a_broad_psf_and_far_away_positions():
    np.testing.assert_allclose(pixel_profile(2.0, 5, 100.0), gauss_legendre_profile(2.0, 5, 100.0), rtol=1e-11)
    assert (pixel_profile([-1e6, 1e6], 5, 0.5) == 0).all()


def test_known_value_of_the_central_pixel():
    assert PLANE.response(5, 5)[5, 5] == pytest.approx(math.erf(1 / math.sqrt(2)) ** 2, abs=1e-15)  # a pixel is +-1 sigma wide: 68.27 % squared


# Symmetries


@given(coordinate, coordinate)
@settings(max_examples=50, deadline=None)
def test_flux_is_conserved_and_what_is_lost_fell_off_the_frame(x, y):
    assert FocalPlane(shape=(51, 51)).response(x + 20, y + 20).sum() == pytest.approx(1.0, abs=1e-13)
    on_frame = math.prod(0.5 * (math.erf((10.5 - u) / math.sqrt(0.5)) - math.erf((-0.5 - u) / math.sqrt(0.5))) for u in (x, y))
    assert PLANE.response(x, y).sum() == pytest.approx(on_frame, abs=1e-13)


@given(st.floats(2, 8), st.floats(2, 8), st.integers(-2, 2), st.integers(-2, 2))
@settings(max_examples=50, deadline=None)
def test_whole_pixel_shift_shifts_the_frame(x, y, down, right):
    wide = FocalPlane(shape=(15, 15)).response(x + 2, y + 2)
    np.testing.assert_allclose(PLANE.response(x + down, y + right), wide[2 - down : 13 - down, 2 - right : 13 - right], rtol=1e-9, atol=1e-14)


@given(coordinate, coordinate)
@settings(max_examples=50, deadline=None)
def test_mirror_and_transposition(x, y):
    frame = PLANE.response(x, y)
    np.testing.assert_allclose(PLANE.response(10 - x, y), frame[::-1], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(PLANE.response(x, 10 - y), frame[:, ::-1], rtol=1e-9, atol=1e-14)
    np.testing.assert_array_equal(PLANE.response(y, x), frame.T)


def test_x_is_the_row_and_y_the_column():
    frame = PLANE.response(2.0, 7.0)
    assert np.unravel_index(frame.argmax(), frame.shape) == (2, 7)
    tall = FocalPlane(shape=(4, 9))
    assert tall.response(3.0, 8.0).shape == (4, 9)
    assert tall.response(3.0, 8.0).argmax() == 9 * 3 + 8
    assert ANALOGUE.render(Targets([[[2.0, 7.0]]], [[240.0]], [1]))[0].argmax() == 11 * 2 + 7


def test_response_broadcasts():
    x, y = np.linspace(1, 9, 6).reshape(2, 3), np.linspace(2, 8, 3)
    frames = PLANE.response(x, y)
    assert frames.shape == (2, 3, 11, 11) and frames.dtype == np.float64
    np.testing.assert_array_equal(frames[1, 2], PLANE.response(x[1, 2], y[2]))


def test_responses_superpose():
    scene = random_targets(20, np.random.default_rng(3))
    total = np.zeros((20, 11, 11))
    for frame, xy, intensity, count in zip(total, scene.xy, scene.intensity, scene.count):
        for (x, y), s in zip(xy[:count], intensity[:count]):
            frame += s * PLANE.response(x, y)
    np.testing.assert_allclose(PLANE.expected(scene), total, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(ANALOGUE.render(scene), PLANE.expected(scene))


def test_order_of_targets_does_not_matter():
    scene = random_targets(10, np.random.default_rng(4), count=(5, 5))
    backwards = Targets(scene.xy[:, ::-1], scene.intensity[:, ::-1], scene.count)
    np.testing.assert_allclose(PLANE.expected(backwards), PLANE.expected(scene), rtol=1e-12)


def test_frames_without_targets_are_dark():
    nothing = Targets(np.zeros((2, 1, 2)), np.zeros((2, 1)), [0, 0])
    assert (PLANE.render(nothing) == 0).all()
    assert PLANE.render(nothing[:0]).shape == (0, 11, 11)


# Sensor


def bright(flux):
    return Targets([[[5.0, 5.0]]], [[flux]], [1])


def test_rounding_is_to_the_nearest_level():
    scene = random_targets(50, np.random.default_rng(5), count=(1, 2))
    frames = PLANE.render(scene)
    assert frames.dtype == np.uint8
    assert np.abs(frames - PLANE.expected(scene)).max() <= 0.5


def test_clipping_saturates_and_nothing_wraps():
    peak = 2000 * PLANE.response(5, 5)[5, 5]
    assert PLANE.render(bright(2000.0)).max() == 255
    unclipped = FocalPlane(clip=False).render(bright(2000.0))
    assert unclipped.dtype == np.uint16 and unclipped.max() == round(peak) == 932
    assert FocalPlane(bits=12).render(bright(2000.0)).max() == 932
    assert FocalPlane(bits=12).render(bright(2e4)).max() == 4095
    assert FocalPlane(clip=False).render(bright(1e7)).max() == 65535
    assert FocalPlane(bits=4).render(bright(240.0)).max() == 15


def test_full_scale_and_rayleigh():
    assert PLANE.full_scale == 255 and FocalPlane(clip=False).full_scale == math.inf and ANALOGUE.full_scale == math.inf
    assert FocalPlane(bits=16).full_scale == 65535
    assert PLANE.rayleigh == pytest.approx(0.95) and FocalPlane(sigma=1).rayleigh == pytest.approx(1.9)


def test_without_bits_the_expectation_is_returned():
    frame = ANALOGUE.render(bright(2000.0))
    assert frame.dtype == np.float64 and frame.max() == pytest.approx(2000 * 0.4660649, rel=1e-6)


def test_read_noise_has_its_standard_deviation_and_is_reproducible():
    plane = FocalPlane(bits=None, read_noise=3.0)
    scene = bright(240.0)[np.zeros(500, dtype=int)]
    noise = plane.render(scene, np.random.default_rng(0)) - plane.expected(scene)
    n = noise.size  # 60,500 values: standard errors 0.012 and 0.0086
    assert abs(noise.mean()) < 5 * 3 / math.sqrt(n) and abs(noise.std() - 3) < 5 * 3 / math.sqrt(2 * n)
    assert abs(np.corrcoef(noise[:, 5, 5], noise[:, 5, 6])[0, 1]) < 5 / math.sqrt(500)
    np.testing.assert_array_equal(noise, plane.render(scene, np.random.default_rng(0)) - plane.expected(scene))
    digital = FocalPlane(read_noise=3.0).render(scene, np.random.default_rng(0))
    assert digital.dtype == np.uint8 and digital.min() == 0  # negative values are clipped at black


def test_read_noise_needs_a_generator():
    with pytest.raises(ValueError, match="rng=numpy.random.default_rng"):
        FocalPlane(read_noise=1.0).render(bright(240.0))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sigma": 0.0}, "between 0.01 and 100"),
        ({"sigma": -1.0}, "between 0.01 and 100"),
        ({"sigma": math.nan}, "between 0.01 and 100"),
        ({"sigma": math.inf}, "between 0.01 and 100"),
        ({"sigma": "wide"}, "between 0.01 and 100"),
        ({"sigma": None}, "between 0.01 and 100"),
        ({"sigma": True}, "between 0.01 and 100"),
        ({"bits": 0}, "from 1 to 16"),
        ({"bits": 17}, "from 1 to 16"),
        ({"bits": 8.0}, "from 1 to 16"),
        ({"bits": True}, "from 1 to 16"),
        ({"clip": "no"}, "clip must be True"),
        ({"clip": 1}, "clip must be True"),
        ({"read_noise": -0.1}, ">= 0"),
        ({"read_noise": math.nan}, ">= 0"),
        ({"read_noise": "loud"}, ">= 0"),
        ({"shape": (0, 11)}, "from 1 to 4096"),
        ({"shape": (11, 5000)}, "from 1 to 4096"),
        ({"shape": 11}, "two whole numbers"),
        ({"shape": (11, 11, 3)}, "two whole numbers"),
        ({"shape": "11"}, "two whole numbers"),
        ({"shape": (11.5, 11)}, "two whole numbers"),
        ({"shape": (math.inf, 11)}, "two whole numbers"),
        ({"shape": None}, "two whole numbers"),
    ],
)
def test_bad_focal_planes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FocalPlane(**arguments)


def test_numpy_scalars_and_lists_are_welcome():
    plane = FocalPlane(shape=[np.int64(11), 11], sigma=np.float32(0.5), bits=np.int16(8))
    assert plane == PLANE and type(plane.bits) is int and plane.shape == (11, 11)
    assert FocalPlane(sigma=np.int64(1)).rayleigh == 1.9
    small = FocalPlane(sigma=np.float32(0.55), bits=np.uint8(12), clip=np.bool_(False), read_noise=np.float32(0.5))
    assert json.loads(json.dumps(asdict(small))) == {"shape": [11, 11], "sigma": float(np.float32(0.55)), "bits": 12, "clip": False, "read_noise": 0.5}


# Sub-pixel grid


@pytest.mark.parametrize("ratio", [0, -3, 2, 4, 33, 3.0, "3", None, True])
def test_only_odd_ratios(ratio):
    with pytest.raises(ValueError, match="odd integer from 1 to 31.*Try 3, 5 or 7"):
        SubpixelGrid(ratio=ratio)


def test_check_functions_return_plain_integers():
    assert type(check_ratio(np.int64(5))) is int
    assert check_shape(np.array([3, 4])) == (3, 4) and all(type(v) is int for v in check_shape(np.array([3, 4])))


@pytest.mark.parametrize("shape", [(11, 11), (4, 7)])
@pytest.mark.parametrize("ratio", [1, 3, 5, 7])
def test_index_and_position_are_inverse(ratio, shape):
    grid = SubpixelGrid(shape, ratio)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    position = grid.to_position(index)
    np.testing.assert_array_equal(grid.to_index(position), index)
    np.testing.assert_array_equal(position[:, 0, 0], grid.axis_positions(0))
    np.testing.assert_array_equal(position[0, :, 1], grid.axis_positions(1))
    assert position.min() == pytest.approx(-0.5 + 0.5 / ratio) and position[..., 1].max() == pytest.approx(shape[1] - 0.5 - 0.5 / ratio)


@pytest.mark.parametrize("ratio", [1, 3, 5, 7])
def test_each_pixel_has_a_subpixel_on_its_centre_and_ratio_squared_within(ratio):
    grid = SubpixelGrid(ratio=ratio)
    np.testing.assert_array_equal(grid.to_index([4.0, 9.0]), [4 * ratio + grid.offset, 9 * ratio + grid.offset])
    assert (np.bincount(np.rint(grid.axis_positions()).astype(int)) == ratio).all()


@given(coordinate, coordinate, st.sampled_from([1, 3, 5, 7]))
@settings(max_examples=100, deadline=None)
def test_nearest_subpixel_is_within_half_a_cell(x, y, ratio):
    grid = SubpixelGrid(ratio=ratio)
    assert np.abs(grid.to_position(grid.to_index([x, y])) - [x, y]).max() <= 0.5 / ratio + 1e-12


@pytest.mark.parametrize("shape", [(11, 11), (12, 12), (4, 7)])
@pytest.mark.parametrize("ratio", [1, 3, 5, 7])
def test_the_frames_very_edge_belongs_to_it(ratio, shape):
    grid = SubpixelGrid(shape, ratio)
    np.testing.assert_array_equal(grid.to_index([-0.5, -0.5]), [0, 0])
    np.testing.assert_array_equal(grid.to_index(np.array(shape) - 0.5), np.array(grid.shape) - 1)


@pytest.mark.parametrize("xy", [[-0.6, 5], [5, 10.6], [math.nan, 5], [5, math.inf], [np.nextafter(10.5, 11), 5]])
def test_positions_off_the_frame_are_refused(xy):
    with pytest.raises(ValueError, match=r"off the 11 x 11 frame.*-0.5 .. size - 0.5"):
        SubpixelGrid().to_index(xy)


@pytest.mark.parametrize("ratio", [3, 5, 7])
def test_steering_matrix_column_by_column(ratio):
    grid = SubpixelGrid(ratio=ratio)
    G = PLANE.steering_matrix(grid)
    assert G.shape == (121, 121 * ratio**2) and G.dtype == np.float64
    np.testing.assert_array_equal(G, np.kron(PLANE.axis_matrix(grid, 0), PLANE.axis_matrix(grid, 1)))
    x, y = np.stack(np.meshgrid(grid.axis_positions(0), grid.axis_positions(1), indexing="ij")).reshape(2, -1)
    np.testing.assert_allclose(G.T, PLANE.response(x, y).reshape(-1, 121), rtol=1e-14)


def test_steering_matrix_of_an_oblong_frame():
    plane, grid = FocalPlane(shape=(4, 7)), SubpixelGrid((4, 7), 3)
    G = plane.steering_matrix(grid)
    row, column = 10, 20
    np.testing.assert_allclose(G[:, row * 21 + column].reshape(4, 7), plane.response(*grid.to_position([row, column])), rtol=1e-14)


def test_steering_matrix_is_a_fresh_copy_and_the_grid_must_fit():
    grid = SubpixelGrid()
    G = PLANE.steering_matrix(grid)
    G[:] = 0
    assert PLANE.steering_matrix(grid).max() > 0.4
    with pytest.raises(ValueError, match="make them equal"):
        PLANE.steering_matrix(SubpixelGrid((12, 11)))


@pytest.mark.parametrize("ratio", [3, 5, 7])
def test_on_grid_targets_satisfy_z_equals_G_s(ratio):
    rng, grid = np.random.default_rng(ratio), SubpixelGrid(ratio=ratio)
    cells = rng.permuted(np.tile(np.arange(grid.shape[0] * grid.shape[1]), (8, 1)), axis=1)[:, :4]
    index = np.stack(np.unravel_index(cells, grid.shape), -1)
    scene = Targets(grid.to_position(index), rng.integers(220, 251, (8, 4)).astype(float), [1, 2, 3, 4] * 2)
    images = grid.image(scene)
    assert images.shape == (8, *grid.shape) and images.dtype == np.float32
    assert (np.count_nonzero(images, axis=(1, 2)) == scene.count).all()
    for image, frame in zip(images, PLANE.expected(scene)):
        np.testing.assert_allclose(PLANE.steering_matrix(grid) @ image.ravel(), frame.ravel(), rtol=1e-12, atol=1e-12)


def test_targets_on_one_subpixel_add_up():
    image = SubpixelGrid(ratio=1).image(Targets([[[5.0, 5.1], [5.2, 4.9]]], [[240.0, 230.0]], [2]))
    assert image[0, 5, 5] == 470 and np.count_nonzero(image) == 1


def test_preset_targets_never_share_a_subpixel_at_ratio_three():
    scene = random_targets(500, np.random.default_rng(9))
    assert (np.count_nonzero(SubpixelGrid(ratio=3).image(scene), axis=(1, 2)) == scene.count).all()


def test_planes_and_grids_are_values():
    assert hash(FocalPlane()) == hash(PLANE) and SubpixelGrid(ratio=5) == SubpixelGrid((11, 11), 5) != SubpixelGrid()
    assert pickle.loads(pickle.dumps(PLANE)) == PLANE and pickle.loads(pickle.dumps(SubpixelGrid(ratio=7))) == SubpixelGrid(ratio=7)
