"""The learned confidence: what it sees, what it promises, and what its script and its page say."""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from csist import confidence as module
from csist.confidence import fit_confidence, hit_share, surroundings, turned, unexplained
from csist.evaluation import detect
from csist.imaging import FocalPlane, SubpixelGrid
from csist.metrics import cso_map
from csist.reporting import Ceilings, confidence_rows, confidence_table, describe_confidence
from csist.scenes import Targets, random_targets

ROOT = Path(__file__).parents[1]
PLANE, GRID = FocalPlane(), SubpixelGrid(ratio=3)


def scenes_and_images(size: int, seed: int):
    """Random scenes, their frames, and perfect images: every target in its sub-pixel, with its intensity."""
    truth = random_targets(size, np.random.default_rng(seed))
    return truth, PLANE.render(truth), GRID.image(truth)


# What the trees see


def test_hit_shares_add_up_to_the_true_positives():
    truth, _, images = scenes_and_images(40, 1)
    share = hit_share(detect(images, GRID), truth)
    assert len(share) == truth.count.sum() and set((5 * share).round(6)) <= {0, 1, 2, 3, 4, 5}
    nearest = np.hypot(*(detect(images, GRID).xy[0, 0] - truth.xy[0][: truth.count[0]]).T).min()
    assert share[0] == np.mean(nearest <= np.array([0.05, 0.1, 0.15, 0.2, 0.25]))


def test_an_image_at_the_sub_pixels_centres_explains_its_frame_up_to_rounding():
    truth = Targets([[[5.0, 5.0], [4.0, 4 + 2 / 3]]], [[60.0, 70.0]], [2])
    left = unexplained(GRID.image(truth), PLANE.render(truth), PLANE, GRID)
    assert np.abs(left).max() <= 0.5 + 1e-9


def test_a_clipped_pixel_may_be_overshot_but_not_undershot():
    bright = Targets([[[5.0, 5.0]]], [[1000.0]], [1])  # 466 grey levels in the middle pixel, which reports 255
    frame = PLANE.render(bright)
    assert frame[0, 5, 5] == 255 and np.abs(unexplained(GRID.image(bright), frame, PLANE, GRID)).max() <= 0.5 + 1e-9
    dim = Targets([[[5.0, 5.0]]], [[400.0]], [1])
    assert unexplained(GRID.image(dim), frame, PLANE, GRID)[0, 5, 5] == pytest.approx(255 - 400 * PLANE.response(5.0, 5.0)[5, 5])


def test_the_eight_sides_are_the_symmetries_of_the_square():
    sides = turned(np.arange(9.0).reshape(1, 3, 3))
    assert sides.shape == (8, 1, 9) and len({tuple(side[0]) for side in sides}) == 8 and (sides[:, 0, 4] == 4).all()


@pytest.mark.parametrize("ratio", [3, 5, 7])
def test_surroundings_hold_image_unexplained_light_and_place(ratio):
    grid = SubpixelGrid(ratio=ratio)
    truth = random_targets(6, np.random.default_rng(0))
    images = grid.image(truth)
    found = detect(images, grid)
    sides = surroundings(images, PLANE.render(truth), found, PLANE, grid)
    assert sides.shape == (8, found.count.sum(), (2 * ratio + 1) ** 2 + 25 + ratio**2) and np.isfinite(sides).all()
    assert (sides[..., -(ratio**2) :].sum(-1) == 1).all()
    own = sides[0, :, (2 * ratio + 1) ** 2 // 2]
    assert own == pytest.approx(np.minimum(found.intensity[found.mask] / 235, 1.1), rel=1e-5)


# What it promises


@pytest.fixture(scope="module")
def learned():
    truth, frames, images = scenes_and_images(1500, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROUNDS", 60)
        return fit_confidence(images, frames, truth, GRID)


def test_it_ranks_perfect_images_better_than_brightness_and_keeps_their_detections(learned):
    truth, frames, images = scenes_and_images(400, 6)
    ranked, plain = learned(images, frames), detect(images, GRID)
    assert np.array_equal(ranked.xy, plain.xy, equal_nan=True) and np.array_equal(ranked.intensity, plain.intensity, equal_nan=True)
    assert cso_map(ranked, truth).map > cso_map(plain, truth).map + 0.03
    score = ranked.score[ranked.mask]
    assert score.min() >= 0 and score.max() <= 1 and score.mean() == pytest.approx(hit_share(ranked, truth).mean(), abs=0.03)


def test_turned_and_mirrored_frames_get_the_same_confidence(learned):
    _, frames, images = scenes_and_images(20, 7)
    plain = learned(images, frames)
    for change in (lambda a: a[:, ::-1], lambda a: np.swapaxes(a, 1, 2), lambda a: np.rot90(a, 1, (1, 2))):
        other = learned(np.ascontiguousarray(change(images)), np.ascontiguousarray(change(frames)))
        for k in range(20):
            assert np.sort(other.score[k][other.mask[k]]) == pytest.approx(np.sort(plain.score[k][plain.mask[k]]), abs=1e-6)


def test_an_image_without_light_has_no_detection_to_rank(learned):
    found = learned(np.zeros((2, 33, 33)), np.zeros((2, 11, 11), dtype=np.uint8))
    assert found.count.tolist() == [0, 0] and np.isnan(found.score).all()


def test_bad_input_is_named():
    truth, frames, images = scenes_and_images(4, 8)
    with pytest.raises(ValueError, match="as many images as frames and truths; got 3, 4 and 4"):
        fit_confidence(images[:3], frames, truth, GRID)
    with pytest.raises(ValueError, match="no sub-pixel of these images has 50 grey levels"):
        fit_confidence(0 * images, frames, truth, GRID)
    with pytest.raises(ValueError, match=r"images must have shape \(n, 33, 33\)"):
        fit_confidence(images[:, :30], frames, truth, GRID)


# Script and page


@pytest.mark.slow
def test_the_script_scores_a_network_and_keeps_what_is_current(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("score_confidence", ROOT / "reproduce" / "score_confidence.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(module, "ROUNDS", 5)
    target = tmp_path / "results" / "confidence.json"
    sizes = ["--train-size", "120", "--val-size", "40", "--size", "40"]
    assert script.main(["--only", "ista-net-c3-seed0", *sizes, "--output", str(target)]) == 0
    run = json.loads(target.read_text())["runs"]["ista-net-c3-seed0"]
    assert run["test"]["brightness"] < run["test"]["true_distance"] and run["shown"]["training"]["frames"] == 120 and run["test"]["detections"] > 40
    assert script.main(["--only", "ista-net-c3-seed0", *sizes, "--output", str(target)]) == 0 and "is current" in capsys.readouterr().out
    (row,) = confidence_rows([3], tmp_path)
    assert row["label"] == "ISTA-Net" and row["cso_map"] == run["test"]["cso_map"] and confidence_rows([5, 7], tmp_path) == []
    with pytest.raises(SystemExit):
        script.main(["--only", "ista-net-c3-seed0", "--size", "40"])


def test_the_page_says_what_the_confidence_is_worth():
    test = {"cso_map": 0.5, "interval": [0.49, 0.51], "brightness": 0.45, "true_distance": 0.55, "claimed": 0.44, "real": 0.442}
    row = {"key": "some-c3-seed0", "method": "some", "label": "Some", "ratio": 3, "training_frames": 20_000, "validation": 0.5, **test}
    ceilings = {3: Ceilings(0.456, 0.533), 5: Ceilings(0.724, 0.743)}
    cells = confidence_table([row], ceilings).cells
    assert [line[0] for line in cells] == ["perfect on the grid, c = 3", "Some, c = 3", "perfect on the grid, c = 5"]
    assert cells[1][2:6] == ["45.00", "50.00", "49.00 to 51.00", "55.00"] and cells[0][1] == "45.60" and cells[0][5] == "53.30"
    text = describe_confidence([row], ceilings)
    assert "20,000 training frames lift Some from 45.00 to **50.00**: 5.0 of the 10.0 points" in text and "No network at c = 5" in text
