"""Model-based solvers: the operator and its adjoint, ISTA and FISTA against scikit-learn's Lasso and the optimality conditions, OMP, errors."""
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csist.datasets import csist100k
from csist.imaging import FocalPlane, SubpixelGrid
from csist.scenes import Targets, random_targets
from csist.solvers import PAPER, TUNED, IstaSettings, SteeringOperator, fista, ista, omp, soft_threshold, unmix_ista

PLANE, GRID = FocalPlane(), SubpixelGrid(ratio=3)
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def frames():
    """Twelve frames with 1 to 5 targets, some of them saturated."""
    data = csist100k("val", size=12, cache=False).frames
    assert (data == 255).any() and not (data == 255).any((1, 2)).all()
    return data


def objective(frame, matrix, image, sparsity):
    """F written down once more, with the dense matrix."""
    return 0.5 * ((frame.ravel() - matrix @ image.ravel()) ** 2).sum() + sparsity * np.abs(image).sum()


# The operator ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plane", "ratio"), [(PLANE, 3), (PLANE, 5), (FocalPlane(shape=(5, 8), sigma=0.8), 3)])
def test_operator_is_the_dense_matrix(plane, ratio):
    grid, rng = SubpixelGrid(plane.shape, ratio), np.random.default_rng(1)
    operator, matrix = SteeringOperator(plane, grid), plane.steering_matrix(grid)
    image, frame = rng.normal(size=(2, *grid.shape)), rng.normal(size=(2, *plane.shape))
    np.testing.assert_allclose(operator.forward(image).reshape(2, -1), image.reshape(2, -1) @ matrix.T, atol=1e-12)
    np.testing.assert_allclose(operator.adjoint(frame).reshape(2, -1), frame.reshape(2, -1) @ matrix, atol=1e-12)
    np.testing.assert_allclose((operator.forward(image) * frame).sum(), (image * operator.adjoint(frame)).sum(), rtol=1e-12)  # <G s, r> = <s, G^T r>
    np.testing.assert_allclose(operator.squared_norm, np.linalg.norm(matrix, 2) ** 2, rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_pinv_is_numpys(sigma):
    plane = FocalPlane(sigma=sigma)  # at sigma = 3 px the matrix is singular in float64: the cut-off on products of singular values decides
    matrix, frame = plane.steering_matrix(GRID), np.random.default_rng(2).uniform(0, 255, (3, 11, 11))
    rcond = 1e-15 if sigma < 1 else 1e-4
    expected = (np.linalg.pinv(matrix, rcond=rcond) @ frame.reshape(3, -1).T).T.reshape(3, 33, 33)
    np.testing.assert_allclose(SteeringOperator(plane, GRID).pinv(frame, rcond), expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_grid_and_plane_need_one_shape():
    with pytest.raises(ValueError, match="make them equal"):
        SteeringOperator(PLANE, SubpixelGrid((5, 5), 3))


# The shrinkage -----------------------------------------------------------------------------------------------------------------------------


@given(st.floats(-300, 300), st.floats(0, 100))
@settings(max_examples=50, deadline=None)
def test_soft_threshold_is_the_proximal_map(value, threshold):
    candidates = np.linspace(-301, 301, 60_201)  # steps of 0.01
    best = candidates[np.argmin(0.5 * (candidates - value) ** 2 + threshold * np.abs(candidates))]
    assert abs(soft_threshold(value, threshold) - best) <= 0.005 + 1e-9


def test_soft_threshold_broadcasts_and_refuses_negative_thresholds():
    np.testing.assert_array_equal(soft_threshold([[3.0, -3.0]], [[1.0], [2.0]]), [[2.0, -2.0], [1.0, -1.0]])
    with pytest.raises(ValueError, match=">= 0"):
        soft_threshold([1.0], -0.1)


# The minimiser -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "sparsity", "n"), [(3, 1.0, 3), (3, 5.0, 3), (3, 50.0, 3), (5, 20.0, 1)])
def test_minimum_is_that_of_scikit_learn(frames, ratio, sparsity, n):
    from sklearn.linear_model import Lasso

    grid = SubpixelGrid(ratio=ratio)
    matrix = PLANE.steering_matrix(grid)
    result = fista(frames[:n], PLANE, grid, sparsity=sparsity, max_iterations=8000, tolerance=1e-6)
    for frame, image, value in zip(frames, result.image, result.objective[-1]):
        model = Lasso(alpha=sparsity / 121, fit_intercept=False, tol=1e-9, max_iter=200_000).fit(matrix, frame.ravel().astype(float))
        np.testing.assert_allclose(value, objective(frame, matrix, model.coef_, sparsity), rtol=1e-6)
        np.testing.assert_allclose(value, objective(frame, matrix, image, sparsity), rtol=1e-12)


def test_non_negative_minimum_is_that_of_scikit_learn(frames):
    from sklearn.linear_model import Lasso

    matrix = PLANE.steering_matrix(GRID)
    result = fista(frames[:3], PLANE, GRID, sparsity=5.0, max_iterations=8000, tolerance=1e-6, non_negative=True)
    assert (result.image >= 0).all()
    for frame, value in zip(frames, result.objective[-1]):
        model = Lasso(alpha=5 / 121, positive=True, fit_intercept=False, tol=1e-9, max_iter=200_000).fit(matrix, frame.ravel().astype(float))
        np.testing.assert_allclose(value, objective(frame, matrix, model.coef_, 5.0), rtol=1e-6)


@pytest.mark.parametrize(("ratio", "accuracy"), [(1, 1e-6), (3, 1e-3)])
def test_optimality_conditions(frames, ratio, accuracy):
    """G^T (z - G s) = lambda sign(s) where s is not zero, and at most lambda in size elsewhere."""
    grid, sparsity = SubpixelGrid(ratio=ratio), 20.0
    operator = SteeringOperator(PLANE, grid)
    image = fista(frames[:4], PLANE, grid, sparsity=sparsity, max_iterations=5000, tolerance=1e-9).image
    slope = operator.adjoint(frames[:4] - operator.forward(image)) / sparsity
    assert np.abs(slope).max() <= 1 + accuracy
    np.testing.assert_allclose(slope[image != 0], np.sign(image[image != 0]), atol=accuracy)


def test_fista_and_ista_share_their_fixed_point(frames):
    """At c = 1 the matrix is square and regular, so both get there; at c = 3 ISTA is still on its way after 3,000 iterations."""
    pixels, options = SubpixelGrid(ratio=1), {"sparsity": 20.0, "tolerance": 1e-9}
    fast, slow = fista(frames, PLANE, pixels, **options), ista(frames, PLANE, pixels, initial="pinv", max_iterations=20_000, **options)
    assert fast.converged.all() and slow.converged.all()
    np.testing.assert_allclose(fast.image, slow.image, atol=1e-6)
    again = ista(frames, PLANE, pixels, sparsity=20.0, initial=fast.image)
    np.testing.assert_array_equal(again.iterations, 1)  # started at the fixed point, it stays
    fast, slow = (solve(frames[:3], PLANE, GRID, sparsity=20.0, max_iterations=3000).objective for solve in (fista, ista))
    assert (fast[-1] < slow[-1]).all()
    np.testing.assert_allclose(fast[-1], slow[-1], rtol=0.02)


@pytest.mark.parametrize("options", [{}, {"initial": "pinv"}, {"non_negative": True}, {"mask_saturated": True, "initial": "pinv"}, {"step": 0.2}])
def test_ista_never_climbs(frames, options):
    history = ista(frames, PLANE, GRID, sparsity=2.0, max_iterations=300, **options).objective
    assert history.shape == (301, len(frames))
    assert (np.diff(history, axis=0) <= 1e-9 * history[:-1]).all()


def test_start_values(frames):
    matrix, start = PLANE.steering_matrix(GRID), np.random.default_rng(3).normal(size=(len(frames), 33, 33))
    for initial, expected in (("zero", np.zeros_like(start)), ("pinv", SteeringOperator(PLANE, GRID).pinv(frames)), (start, start)):
        result = ista(frames, PLANE, GRID, sparsity=1.0, initial=initial, max_iterations=0)
        np.testing.assert_array_equal(result.image, expected)
        np.testing.assert_allclose(result.objective, [[objective(f, matrix, s, 1.0) for f, s in zip(frames, expected)]], rtol=1e-12, atol=1e-9)
        assert not result.converged.any() and (result.iterations == 0).all()


def test_large_lambda_gives_nothing_and_bias_is_lambda_over_norm_squared():
    frame = 240 * PLANE.response(5.0, 5.0)[None]
    column = (PLANE.response(5.0, 5.0) ** 2).sum()
    assert not ista(frame, PLANE, GRID, sparsity=240 * column * 1.001, max_iterations=50).image.any()
    image = fista(frame, PLANE, GRID, sparsity=2.0, max_iterations=20_000, tolerance=1e-9).image[0]
    np.testing.assert_allclose(image[16, 16], 240 - 2 / column, rtol=1e-6)


# Batches -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"momentum": True}, {"momentum": False}, {"momentum": True, "non_negative": True, "mask_saturated": True}])
def test_a_frame_does_not_notice_its_neighbours(frames, options):
    options = {"sparsity": 20.0, "tolerance": 0.5, "max_iterations": 400, **options}
    many = ista(np.concatenate([frames] * 3), PLANE, GRID, **options)  # 36 frames: two blocks
    assert len(np.unique(many.iterations)) > 3 and many.converged.any()
    for i in (0, 5, 11):
        alone = ista(frames[i : i + 1], PLANE, GRID, **options)
        for copy in (i, i + 12, i + 24):
            np.testing.assert_allclose(many.image[copy], alone.image[0], rtol=1e-9, atol=1e-9)
            assert many.iterations[copy] == alone.iterations[0] and many.converged[copy] == alone.converged[0]
            np.testing.assert_allclose(many.objective[: alone.iterations[0] + 1, copy], alone.objective[:, 0], rtol=1e-9)
            np.testing.assert_array_equal(many.objective[alone.iterations[0] :, copy], many.objective[-1, copy])
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(ista(frames[order], PLANE, GRID, **options).image, many.image[order], rtol=1e-9, atol=1e-9)


def test_empty_batch_and_dtypes(frames):
    empty = ista(frames[:0], PLANE, GRID, sparsity=1.0)
    assert empty.image.shape == (0, 33, 33) and empty.objective.shape == (1, 0) and empty.iterations.shape == (0,)
    assert omp(frames[:0], PLANE, GRID).shape == (0, 33, 33)
    images = [unmix_ista(frames.astype(dtype), max_iterations=5) for dtype in (np.uint8, np.int32, np.float32, np.float64)]
    assert all(image.dtype == np.float64 and np.array_equal(image, images[0]) for image in images)
    assert ista(frames, PLANE, GRID, sparsity=1.0, max_iterations=1, record_objective=False).objective is None


def test_frames_are_left_alone(frames):
    before = frames.astype(np.float64)
    for solve in (lambda z: ista(z, PLANE, GRID, sparsity=1.0, max_iterations=3, mask_saturated=True, initial="pinv"), lambda z: omp(z, PLANE, GRID)):
        given_frames = before.copy()
        solve(given_frames)
        np.testing.assert_array_equal(given_frames, before)


def test_a_frame_of_another_shape_and_grid():
    plane = FocalPlane(shape=(5, 8), bits=None)
    grid = SubpixelGrid(plane.shape, 5)
    frame = plane.render(Targets([[[2.0, 6.2]]], [[200.0]], [1]))
    image = fista(frame, plane, grid, sparsity=0.1, max_iterations=3000, non_negative=True).image[0]
    assert image.shape == (25, 40) and np.unravel_index(image.argmax(), image.shape) == tuple(grid.to_index([2.0, 6.2]))


# Saturation --------------------------------------------------------------------------------------------------------------------------------


def test_masked_pixels_do_not_count():
    """A saturated pixel may hold anything at or above full scale; the unclipped frame and the clipped one give the same answer."""
    targets = random_targets(6, np.random.default_rng(4), count=(4, 5))
    clipped, unclipped = PLANE.render(targets), FocalPlane(clip=False).render(targets)
    assert (clipped == 255).any((1, 2)).any()
    options = {"sparsity": 1.0, "max_iterations": 50, "mask_saturated": True}
    np.testing.assert_array_equal(ista(clipped, PLANE, GRID, **options).image, ista(unclipped, PLANE, GRID, **options).image)
    unlimited = FocalPlane(clip=False)
    plain = ista(unclipped, unlimited, GRID, sparsity=1.0, max_iterations=50)
    np.testing.assert_array_equal(ista(unclipped, unlimited, GRID, **options).image, plain.image)  # nothing clips: the mask is empty


def test_masked_objective_is_the_weighted_one(frames):
    matrix, result = PLANE.steering_matrix(GRID), ista(frames, PLANE, GRID, sparsity=1.0, max_iterations=20, mask_saturated=True)
    residual = np.where(frames < 255, frames - (result.image.reshape(len(frames), -1) @ matrix.T).reshape(frames.shape), 0)
    np.testing.assert_allclose(result.objective[-1], 0.5 * (residual**2).sum((1, 2)) + np.abs(result.image).sum((1, 2)), rtol=1e-12)


# Presets -----------------------------------------------------------------------------------------------------------------------------------


def test_paper_preset_is_the_toolkits_iteration(frames):
    """Three lines with the dense matrix say what the script does."""
    assert IstaSettings(1.0, "pinv", 3000, 1e-4, False, False, False, 50.0) == PAPER
    matrix, frame = PLANE.steering_matrix(GRID), frames[0].ravel().astype(float)
    image, step = np.linalg.pinv(matrix) @ frame, 1 / np.linalg.norm(matrix, 2) ** 2
    for _ in range(200):
        image = soft_threshold(image - step * matrix.T @ (matrix @ image - frame), step)
    np.testing.assert_allclose(unmix_ista(frames[:1], settings=replace(PAPER, max_iterations=200)).ravel(), image, atol=1e-9)


def test_tuned_preset_is_the_choice_on_file():
    stored = json.loads((REPOSITORY / "reproduce" / "results" / "ista-tuning.json").read_text())
    assert asdict(TUNED) == stored["choice"]
    rows = [row for row in stored["fine"] if all(row[name] == value for name, value in stored["choice"].items())]
    assert [row["cso_map"] for row in rows] == [stored["validation"]["cso_map"]] == [max(row["cso_map"] for row in stored["fine"])]
    assert stored["data"]["split"] == "val"


def test_unmix_takes_changes(frames):
    np.testing.assert_array_equal(
        unmix_ista(frames[:2], ratio=5, settings=PAPER, max_iterations=4, momentum=True),
        fista(frames[:2], PLANE, SubpixelGrid(ratio=5), sparsity=1.0, initial="pinv", max_iterations=4).image,
    )


# Orthogonal matching pursuit ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [3, 7])
@pytest.mark.parametrize("n_targets", [1, 3, 5])
def test_omp_is_that_of_scikit_learn(frames, ratio, n_targets):
    from sklearn.linear_model import orthogonal_mp

    grid = SubpixelGrid(ratio=ratio)
    matrix = PLANE.steering_matrix(grid)
    norms = np.linalg.norm(matrix, axis=0)
    expected = orthogonal_mp(matrix / norms, frames.reshape(len(frames), -1).T.astype(float), n_nonzero_coefs=n_targets) / norms[:, None]
    np.testing.assert_allclose(omp(frames, PLANE, grid, n_targets).reshape(len(frames), -1), expected.T, rtol=1e-6, atol=1e-6)


def test_omp_with_a_tolerance_is_that_of_scikit_learn(frames):
    from sklearn.linear_model import orthogonal_mp

    matrix = PLANE.steering_matrix(GRID)
    norms = np.linalg.norm(matrix, axis=0)
    for frame in frames[:5]:
        expected = orthogonal_mp(matrix / norms, frame.ravel().astype(float), tol=20.0**2) / norms
        np.testing.assert_allclose(omp(frame[None], PLANE, GRID, tolerance=20.0, max_targets=20).ravel(), expected, rtol=1e-6, atol=1e-6)


def test_omp_counts_per_frame_and_stops(frames):
    counts = np.arange(12) % 6
    assert ((omp(frames, PLANE, GRID, counts) != 0).sum((1, 2)) == counts).all()
    assert ((omp(frames, PLANE, GRID, max_targets=2) != 0).sum((1, 2)) <= 2).all()
    assert not omp(np.zeros((1, 11, 11)), PLANE, GRID, 3).any()
    apart = Targets([[[2.0, 2.0], [8.0, 8.0]]], [[240.0, 230.0]], [2])
    np.testing.assert_allclose(omp(PLANE.render(apart), PLANE, GRID)[0], GRID.image(apart)[0], atol=1.5)  # well-separated targets are easy


# Errors ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": -1.0}, "sparsity must be .* >= 0"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"sparsity": "1"}, "sparsity"),
        ({"tolerance": -1e-4}, "tolerance"),
        ({"max_iterations": 1.5}, "max_iterations must be a whole number"),
        ({"max_iterations": -1}, "max_iterations"),
        ({"step": 0.0}, "step must be above 0"),
        ({"step": 1.0}, "diverge"),
        ({"step": 0.2, "momentum": True}, "diverge"),
        ({"initial": "ones"}, '"zero", "pinv"'),
        ({"initial": np.zeros((11, 11))}, "initial must be"),
        ({"initial": np.full((1, 33, 33), np.nan)}, "initial must be"),
    ],
)
def test_ista_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        ista(np.zeros((1, 11, 11)), PLANE, GRID, **{"sparsity": 1.0, **changes})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((1, 33, 33)), "shape"),
        (np.full((1, 11, 11), np.inf), "frame 0 holds nan or infinity"),
        (np.zeros((1, 11, 11), dtype=complex), "real numbers"),
        (np.full((1, 11, 11), "a"), "real numbers"),
    ],
)
def test_frames_are_checked(bad, message):
    for solve in (lambda z: ista(z, PLANE, GRID, sparsity=1.0), lambda z: omp(z, PLANE, GRID), unmix_ista):
        with pytest.raises(ValueError, match=message):
            solve(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_targets": -1}, "n_targets"),
        ({"n_targets": 122}, "0 to 121"),
        ({"n_targets": [1, 2]}, "one per frame"),
        ({"n_targets": 1.5}, "whole"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"max_targets": -1}, "max_targets"),
    ],
)
def test_omp_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        omp(np.zeros((1, 11, 11)), PLANE, GRID, **options)
