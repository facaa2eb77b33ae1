"""From images to detections, methods by name, and scores with their provenance."""
from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import csist.evaluation as evaluation
import csist.networks.registry as registry
from csist.datasets import csist100k
from csist.evaluation import WINDOW, detect, evaluate, light_windows, list_methods, predict, provenance, unmix
from csist.imaging import FocalPlane, SubpixelGrid, check_frames
from csist.metrics import cso_map
from csist.networks import NETWORKS, create_network
from csist.scenes import Targets

GRID = SubpixelGrid(ratio=3)


def images_with(*entries, frames=1):
    """Empty sub-pixel images with some (frame, row, column, value) set."""
    images = np.zeros((frames, 33, 33), dtype=np.float32)
    for frame, row, column, value in entries:
        images[frame, row, column] = value
    return images


# Detections


def test_the_threshold_belongs_to_the_detections():
    found = detect(images_with((0, 3, 4, 50.0), (0, 5, 5, np.nextafter(np.float32(50), np.float32(0)))), GRID)
    assert found.count.tolist() == [1] and found.intensity[0, 0] == 50.0


def test_detections_come_brightest_first_at_their_sub_pixels_centres():
    found = detect(images_with((1, 16, 10, 70), (1, 0, 32, 240), (1, 31, 2, 100), (2, 4, 4, 60), frames=3), GRID)
    assert found.count.tolist() == [0, 3, 1]
    assert found.intensity[1].tolist() == [240, 100, 70]
    np.testing.assert_allclose(found.xy[1], [[-1 / 3, 31 / 3], [10, 1 / 3], [5, 3]])
    np.testing.assert_allclose(found.xy[2, 0], [1, 1])
    assert np.isnan(found.xy[0]).all() and np.isnan(found.intensity[2, 1:]).all()


def test_equal_brightness_keeps_the_images_order():
    found = detect(images_with((0, 9, 9, 80), (0, 2, 30, 80), (0, 9, 3, 80)), GRID)
    assert GRID.to_index(found.xy[0]).tolist() == [[2, 30], [9, 3], [9, 9]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_no_detections(value):
    found = detect(images_with((0, 3, 3, value), (0, 7, 7, 99)), GRID)
    assert found.count.tolist() == [1] and found.intensity[0, 0] == 99
    assert detect(np.full((2, 33, 33), value), GRID).count.tolist() == [0, 0]


def test_nothing_in_gives_nothing_out():
    assert len(detect(np.zeros((0, 33, 33)), GRID)) == 0
    assert detect(np.zeros((4, 33, 33)), GRID).count.tolist() == [0] * 4
    assert detect(np.full((1, 33, 33), 60.0), GRID).count.tolist() == [1089]


@pytest.mark.parametrize("shape", [(33, 33), (1, 32, 33), (1, 1, 33, 33)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(n, 33, 33\)"):
        detect(np.zeros(shape), GRID)


@pytest.mark.parametrize("ratio", [3, 7])
def test_the_ground_truth_image_reads_back_as_its_targets(ratio):
    truth, grid = csist100k("test", 200).targets, SubpixelGrid(ratio=ratio)
    found = detect(grid.image(truth), grid)
    assert (found.count == truth.count).all()
    for k in range(200):
        order = np.argsort(-truth.intensity[k, : truth.count[k]])
        np.testing.assert_array_equal(grid.to_index(found.xy[k, : found.count[k]]), grid.to_index(truth.xy[k, order]))
    assert cso_map(found, truth).map > 0.4


# Prediction


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_network("dista-net", stages=1)


def test_prediction_does_not_depend_on_the_batch_size(network):
    frames = csist100k("test", 7).frames
    whole = predict(network, frames)
    assert whole.shape == (7, 33, 33) and whole.dtype == np.float32
    assert not network.training
    for batch in (1, 3, 7):
        np.testing.assert_allclose(predict(network, frames, batch=batch), whole, rtol=0, atol=1e-4 * np.abs(whole).max())


def test_prediction_takes_any_real_frames(network):
    frames = csist100k("test", 2).frames
    expected = predict(network, frames)
    np.testing.assert_array_equal(predict(network, frames.astype(np.float64)), expected)
    np.testing.assert_array_equal(predict(network, np.asfortranarray(frames), progress=True), expected)
    np.testing.assert_array_equal(predict(network, np.concatenate([frames, frames])[::2]), predict(network, frames[[0, 0]]))
    assert predict(network, frames[:0]).shape == (0, 33, 33)


def test_prediction_takes_other_byte_orders_and_one_frame(network):
    frames = csist100k("test", 2).frames
    expected = predict(network, frames)
    np.testing.assert_array_equal(predict(network, frames.astype(">u2")), expected)
    np.testing.assert_array_equal(predict(network, frames[0]), predict(network, frames[:1]))


@pytest.mark.parametrize(
    "frames, options, words",
    [
        (np.zeros((2, 11, 11)), {"precision": "fp16"}, "precision must be one of float32, bfloat16, bf16; got 'fp16'"),
        (np.zeros((2, 11, 11)), {"precision": None}, "precision must be one of"),
        (np.zeros((2, 11, 11)), {"batch": 0}, "batch must be a whole number >= 1; got 0"),
        (np.zeros((2, 11, 11)), {"batch": 2.5}, "batch must be a whole number"),
        (np.zeros((2, 11, 11)), {"device": "gpu"}, "device must be 'cpu' or 'cuda'"),
        (np.zeros((2, 11, 11)), {"device": "cuda:99"}, "no such GPU; use device='cpu'"),
        (np.full((2, 11, 11), np.nan), {}, "frame 0 holds nan"),
        (np.zeros((2, 16, 16)), {}, r"\(n, 11, 11\)"),
    ],
)
def test_prediction_says_what_is_wrong(network, frames, options, words):
    with pytest.raises(ValueError, match=words):
        predict(network, frames, **options)


def test_bf16_is_bfloat16(network):
    frames = csist100k("test", 2).frames
    rough = predict(network, frames, precision="bf16")
    assert np.array_equal(rough, predict(network, frames, precision="bfloat16")) and not np.array_equal(rough, predict(network, frames))


# Methods by name


def test_every_method_has_a_name():
    assert set(NETWORKS) <= set(list_methods()) and {"ista", "fista", "omp", "off-grid"} <= set(list_methods())
    assert len(set(list_methods())) == len(list_methods())


FRAMES = np.zeros((2, 11, 11))


@pytest.mark.parametrize(
    "frames, options, words",
    [
        (FRAMES, {"method": "dista"}, "Did you mean 'dista-net'"),
        (FRAMES, {"method": "DISTA-Net"}, "Did you mean 'dista-net'"),
        (FRAMES, {"method": "ISTA-Net+"}, r"Did you mean 'ista-net\+'"),
        (FRAMES, {"method": ""}, "unknown method ''; known: "),
        (FRAMES, {"ratio": 4}, "odd integer"),
        (FRAMES[:, :10], {}, r"\(n, 11, 11\)"),
        (FRAMES[0, 0], {}, r"\(n, 11, 11\)"),
        (FRAMES + np.nan, {}, "frame 0 holds nan or infinity"),
        (np.where(np.arange(2)[:, None, None] == 1, np.inf, FRAMES), {}, "frame 1 holds nan or infinity .1 such frames"),
        (FRAMES.astype(complex), {}, "real numbers"),
        (FRAMES.astype(str), {}, "real numbers"),
        (FRAMES, {"plane": FocalPlane((9, 9))}, r"\(n, 9, 9\)"),
        (FRAMES, {"method": "off-grid", "threshold": 50}, "leave threshold out"),
        (FRAMES + 4000, {"method": "omp"}, "frame 0 exceeds the sensor's full scale 255 .2 such frames"),
        (FRAMES, {"threshold": float("nan")}, "threshold must be an intensity > 0"),
        (FRAMES, {"threshold": -1}, "threshold must be an intensity > 0"),
    ],
)
def test_unmix_says_what_is_wrong(frames, options, words):
    with pytest.raises(ValueError, match=words):
        unmix(frames, **{"method": "ista", **options})


def test_a_plane_is_a_focal_plane():
    for wrong in (0.6, {"sigma": 0.6}, False):
        with pytest.raises(TypeError, match="plane must be a FocalPlane"):
            unmix(FRAMES, "ista", plane=wrong)


@pytest.mark.parametrize("kind", [">f4", ">i2", np.longdouble, np.float16])
def test_frames_of_other_machines_are_taken(kind):
    frames = csist100k("test", 2).frames
    given = frames.astype(kind)
    given.flags.writeable = False
    assert check_frames(given).dtype.isnative and check_frames(given).dtype.itemsize <= 8
    assert np.array_equal(predict(create_network("srcnn"), check_frames(given))[0].shape, (33, 33))
    assert np.array_equal(unmix(given, "omp").count, unmix(frames, "omp").count)


def test_one_frame_is_a_batch_of_one():
    assert check_frames(FRAMES[0]).shape == (1, 11, 11)
    assert len(unmix(csist100k("test", 1).frames[0], "omp")) == 1


def test_unmix_runs_a_committed_network(tmp_path, monkeypatch, network):
    monkeypatch.setattr(registry, "weights_folders", lambda: [tmp_path])
    frames = csist100k("test", 3).frames
    with pytest.raises(FileNotFoundError, match="train it with"):
        unmix(frames, "dista-net")
    registry.write_weights(tmp_path / "dista-net-c3-seed0.safetensors", network, {"network": "dista-net", "ratio": 3, "options": {"stages": 1}})
    found = unmix(frames, "dista-net", threshold=0.5, batch=2)
    images = predict(registry.load_network("dista-net"), frames)
    assert found.count.tolist() == (images >= 0.5).sum((1, 2)).tolist() and found.count.sum() > 0
    assert np.array_equal(unmix(frames, "dista-net", threshold=0.5, run="dista-net-c3-seed0").count, found.count)
    assert evaluate("dista-net", size=2, resamples=2)["weights"] == str(tmp_path / "dista-net-c3-seed0.safetensors")
    with pytest.raises(ValueError, match="dista-net is trained for FocalPlane.*sigma=0.5.*'off-grid', 'fista' and 'omp' take any"):
        unmix(frames, "dista-net", plane=FocalPlane(sigma=0.7))
    assert unmix(frames, "dista-net").count.tolist() == (images >= 50).sum((1, 2)).tolist()


def test_the_off_grid_method_answers_by_its_name():
    pytest.importorskip("numba")
    from csist.solvers.offgrid import Prior, unmix_offgrid

    frames, prior = csist100k("val", 3).frames, Prior(counts=(1, 3))
    found = unmix(frames, "off-grid", tier="fast", prior=prior, threads=1)
    expected = unmix_offgrid(frames, tier="fast", prior=prior)
    np.testing.assert_array_equal(found.xy, expected.xy)
    np.testing.assert_array_equal(found.score, expected.score)
    plane = FocalPlane(shape=(20, 12))
    scene = Targets([[[2.2, 3.1], [15.8, 8.3]]], [[240.0, 230.0]], [2])
    found = unmix(plane.render(scene)[0], "off-grid", plane=plane, tier="fast")
    assert np.abs(found.xy - scene.xy).max() < 0.02 and found.sigma.max() < 0.02
    result = evaluate("off-grid", "val", 3, resamples=2, tier="fast")
    assert result["ratio"] is None and result["scores"]["count_accuracy"] == 1


def test_methods_are_listed_and_imported_without_numba():
    code = "import sys; sys.modules['numba'] = None; import csist, csist.solvers; assert 'off-grid' in csist.list_methods(); print(csist.unmix.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "unmix", run.stderr


# Scores


def test_a_result_is_plain_json_with_its_provenance():
    result = evaluate("omp", size=20, resamples=3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["weights"] is None  # a method without any
    assert {"method", "ratio", "weights", "split", "frames", "frames_sha256", "scores", "frames_per_second", "provenance"} == set(result)
    assert (result["method"], result["ratio"], result["split"], result["frames"]) == ("omp", 3, "test", 20)
    assert 0 < result["scores"]["cso_map"] <= 1 and result["frames_per_second"] > 0
    again = evaluate("omp", size=20, resamples=3)
    assert again["scores"] == result["scores"] and again["frames_sha256"] == result["frames_sha256"]
    assert evaluate("omp", "val", size=20, resamples=3)["frames_sha256"] != result["frames_sha256"]


def test_provenance_names_versions_machine_and_commit(monkeypatch):
    found = provenance()
    assert set(found) == {"versions", "python", "device", "threads", "commit", "date"}
    assert set(found["versions"]) == {"csist", "torch", "numpy", "scipy"} and found["versions"]["numpy"] == np.__version__
    assert found["device"] and found["threads"] >= 1
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 12

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert evaluation.current_commit() is None


# Windows of light


def test_windows_hold_all_the_light_of_every_frame():
    frames = csist100k("test", 1000).frames
    windows, origin, whole = light_windows(frames)
    assert whole.all() and np.array_equal(windows.sum((1, 2), dtype=np.int64), frames.sum((1, 2), dtype=np.int64))
    assert origin.min() >= 0 and origin.max() <= 11 - WINDOW
    assert np.array_equal(windows[7], frames[7][origin[7, 0] :, origin[7, 1] :][:WINDOW, :WINDOW])


def test_windows_answer_as_the_network_answers_the_window():
    frames = csist100k("test", 6).frames
    network = create_network("dista-net", stages=1, start=False).eval()
    images = predict(network, frames, windows=True, batch=4)
    windows, origin, _ = light_windows(frames)
    with torch.no_grad():
        alone = network(torch.from_numpy(windows).float(), torch.from_numpy(origin)).numpy()
    for image, answer, (row, column) in zip(images, alone, 3 * origin):
        np.testing.assert_allclose(image[row : row + 15, column : column + 15], answer, rtol=1e-4, atol=1e-4)
        image[row : row + 15, column : column + 15] = 0
        assert not image.any(), "nothing is claimed outside the window"


def test_frames_whose_light_is_spread_run_whole():
    spread = csist100k("test", 2).frames.copy()
    spread[1, 0, 0] = spread[1, 10, 10] = 9
    network = create_network("ista-net", stages=1, start=False).eval()
    assert light_windows(spread)[2].tolist() == [True, False]
    np.testing.assert_allclose(predict(network, spread, windows=True)[1], predict(network, spread)[1], rtol=1e-5, atol=1e-5)
    assert predict(network, np.zeros((1, 11, 11)), windows=True).shape == (1, 33, 33)


def test_the_continuous_network_answers_without_a_grid():
    data = csist100k("val", 40)
    found = unmix(data.frames, "continuous")
    assert (found.count == data.targets.count).mean() > 0.9 and np.nanmax(found.score) <= 1
    with pytest.raises(ValueError, match="no detection threshold"):
        unmix(data.frames, "continuous", threshold=50)
    assert evaluate("continuous", "val", 10)["ratio"] is None
