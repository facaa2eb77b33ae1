"""Read-outs: what each of them promises, on images made by hand and on perfect ones."""
from __future__ import annotations

import numpy as np
import pytest

from csist.evaluation import detect
from csist.imaging import SubpixelGrid
from csist.metrics import count_accuracy, cso_map
from csist.readout import (
    CHOICES,
    MIN_DISTANCE,
    READOUTS,
    SCORES,
    _detections,
    fit_offsets,
    geometry_weights,
    is_local_maximum,
    merge,
    neighbour_reach,
    neighbourhoods,
    offset_features,
    offsets,
    read_out,
    tune_readout,
)
from csist.scenes import Targets, random_targets

GRID = SubpixelGrid(ratio=3)


def image(*points, grid=GRID):
    """One image with (row, column, intensity) points."""
    blank = np.zeros((1, *grid.shape), dtype=np.float32)
    for row, column, value in points:
        blank[0, row, column] = value
    return blank


def split_light(n=300, seed=3):
    """Scenes and images whose targets each lose part of their light to one neighbour, as an undecided network's do."""
    rng = np.random.default_rng(seed)
    scenes = random_targets(n, rng)
    images = GRID.image(scenes)
    frame, row, column = np.nonzero(images)
    share = rng.uniform(0, 0.45, len(frame)) * images[frame, row, column]
    images[frame, row, column] -= share
    np.add.at(images, (frame, np.maximum(row - 1, 0), column), share)
    return scenes, images


# Common to all


def test_the_papers_read_out_comes_first_and_equals_detect():
    scenes, images = split_light(20)
    assert next(iter(READOUTS)) == "threshold" and set(CHOICES) == set(READOUTS)
    ours, papers = read_out(images, GRID), detect(images, GRID)
    assert np.array_equal(ours.xy, papers.xy, equal_nan=True) and np.array_equal(ours.count, papers.count) and cso_map(ours, scenes).map > 0


@pytest.mark.parametrize("name", READOUTS)
def test_a_frame_with_one_target_gives_one_detection_in_its_cell(name):
    found = read_out(image((16, 10, 240)), GRID, name)
    assert found.count.tolist() == [1] and found.intensity[0, 0] == 240
    assert np.allclose(found.xy[0, 0], [5.0, 3.0])


@pytest.mark.parametrize("name", READOUTS)
@pytest.mark.parametrize("ratio", [3, 5])
def test_empty_and_broken_images_hold_no_targets(name, ratio):
    grid = SubpixelGrid(ratio=ratio)
    blank = np.zeros((3, *grid.shape))
    blank[1], blank[2] = np.nan, -300
    assert read_out(blank, grid, name).count.tolist() == [0, 0, 0] and len(read_out(blank[:0], grid, name)) == 0


@pytest.mark.parametrize("name", READOUTS)
def test_frames_are_read_out_one_by_one(name):
    _, images = split_light(12)
    whole = read_out(images, GRID, name)
    for place in range(12):
        alone = read_out(images[place : place + 1], GRID, name)
        count = whole.count[place]
        assert alone.count[0] == count and np.allclose(alone.xy[0, :count], whole.xy[place, :count])


@pytest.mark.parametrize("name", READOUTS)
def test_turning_the_image_turns_the_answer(name):
    rng = np.random.default_rng(1)
    images = np.where(rng.random((20, *GRID.shape)) < 0.02, rng.uniform(60, 250, (20, *GRID.shape)), 0.0)
    upright, turned = read_out(images, GRID, name), read_out(images[:, ::-1].swapaxes(1, 2), GRID, name)
    for one, other, count in zip(upright.xy, turned.xy, upright.count):
        back = np.column_stack([10 - other[:, 1], other[:, 0]])
        assert set(map(tuple, np.round(one[:count], 6))) == set(map(tuple, np.round(back[:count], 6)))
    assert np.array_equal(upright.count, turned.count)


def test_unknown_names_and_wrong_input_are_named():
    with pytest.raises(ValueError, match="Did you mean 'merged'"):
        read_out(image(), GRID, "merge")
    for name in set(READOUTS) - {"threshold"}:
        with pytest.raises(ValueError, match=r"shape \(n, 33, 33\)"):
            read_out(np.zeros((2, 5, 5)), GRID, name)
        with pytest.raises(ValueError, match="score must be one of peak"):
            read_out(image((5, 5, 200)), GRID, name, score="luck")
    with pytest.raises(ValueError, match="threshold must be above 0"):
        read_out(image(), GRID, "local_maxima", threshold=0)
    with pytest.raises(ValueError, match="least <= most"):
        read_out(image(), GRID, "counted", least=300, most=200)
    with pytest.raises(ValueError, match="place must be"):
        read_out(image(), GRID, "merged", place="middle")
    with pytest.raises(ValueError, match="weights must have shape"):
        read_out(image((5, 5, 200)), GRID, "repelled", weights=[[1.0], [2.0], [3.0]])


# Which sub-pixels


def test_local_maxima_keep_one_of_two_neighbours_and_merged_both_if_the_sum_is_too_bright():
    pair = image((10, 10, 240), (11, 11, 230))
    assert read_out(pair, GRID, "local_maxima").count.tolist() == [1]
    assert read_out(pair, GRID, "merged").count.tolist() == [2]


def test_equal_neighbours_have_one_maximum_and_a_plain_none_but_its_first():
    flat = np.full((1, 4, 4), 7.0)
    assert np.argwhere(is_local_maximum(flat)).tolist() == [[0, 0, 0]]


def test_local_maxima_are_those_of_a_maximum_filter():
    from scipy.ndimage import maximum_filter

    images = np.random.default_rng(0).random((5, 9, 9))  # no two are equal
    assert np.array_equal(is_local_maximum(images), images == maximum_filter(images, size=(1, 3, 3)))


def test_merged_shares_add_up_at_their_centroid():
    found = read_out(image((10, 10, 150), (10, 11, 90)), GRID, "merged")
    assert found.count.tolist() == [1] and found.intensity[0, 0] == 240 and found.score[0, 0] == 150
    assert np.allclose(found.xy[0, 0], [3.0, 3.0 + 90 / 240 / 3])


def test_merging_creates_no_light_and_uses_each_sub_pixel_once():
    _, images = split_light(200)
    found = merge(images.astype(float), least=1.0, most=300.0, low=0.0)
    assert np.allclose(np.bincount(found.frame, found.light, minlength=200), images.sum((1, 2)), rtol=1e-5, atol=9)
    assert (found.light <= np.maximum(300, found.peak)).all() and len(np.unique(np.column_stack([found.frame, found.node]), axis=0)) == len(found.frame)


def test_merging_counts_targets_that_the_threshold_counts_twice():
    scenes, images = split_light()
    right = {name: count_accuracy(read_out(images, GRID, name), scenes) for name in ("threshold", "merged", "counted")}
    assert right["merged"] == right["counted"] > 0.8 > 0.6 > right["threshold"]


def test_neighbourhoods_are_the_images_own_values():
    images = np.random.default_rng(0).random((4, 9, 9))
    hood = neighbourhoods(images, np.array([2, 3]), np.array([[4, 5], [0, 8]]), reach=2)
    assert np.array_equal(hood[0], images[2, 2:7, 3:8]) and np.array_equal(hood[1, 2:, :3], images[3, :3, 6:]) and not hood[1, :2].any()


# Where in its cell


def test_the_centroid_moves_towards_light_and_repulsion_away_from_it():
    pair = image((10, 10, 240), (10, 12, 0), (9, 11, 200))
    node = GRID.to_position([10, 10])
    towards = read_out(pair, GRID, "centroid").xy[0, 0] - node
    away = read_out(pair, GRID, "repelled").xy[0, 0] - node
    assert towards[0] < 0 < towards[1] and away[1] < 0 < away[0]


def test_features_change_sign_along_their_axis_only():
    hood = np.random.default_rng(0).random((6, 5, 5))
    odd, even = offset_features(hood)
    mirrored = offset_features(hood[:, ::-1])
    assert odd.shape == (6, 2, 6) and even.shape == (6, 2, 9)
    assert np.allclose(mirrored[0][:, 0], -odd[:, 0]) and np.allclose(mirrored[0][:, 1], odd[:, 1]) and np.allclose(mirrored[1], even)
    swapped = offset_features(hood.swapaxes(1, 2))
    assert np.allclose(swapped[0], odd[:, ::-1]) and np.allclose(swapped[1], even[:, ::-1])


def test_geometry_alone_says_that_neighbours_push():
    weights = geometry_weights(GRID)
    assert weights.shape == (2, 1) and (weights < 0).all()
    assert [neighbour_reach(ratio) for ratio in (3, 5, 7)] == [1, 2, 3]


@pytest.mark.parametrize("products", [False, True])
def test_repulsion_places_targets_better_than_the_grid_can(products):
    scenes = random_targets(1_000, np.random.default_rng(7))
    perfect = GRID.image(scenes)
    on_grid, moved = detect(perfect, GRID), read_out(perfect, GRID, "fitted" if products else "repelled")
    assert cso_map(moved, scenes).map > cso_map(on_grid, scenes).map + 0.04
    cells = [set(map(tuple, GRID.to_index(xy[:m] - 1e-9 * np.sign(xy[:m])))) for xy, m in zip(moved.xy, moved.count)]
    assert sum(map(len, cells)) == scenes.count.sum()  # every target stays in a cell of its own


def test_a_fit_finds_the_law_that_made_the_offsets():
    """Targets of one frame, moved by known weights of the light beside them: the fit must return those weights."""
    rng = np.random.default_rng(2)
    images = np.zeros((400, *GRID.shape))
    images[:, 15:18, 15:18] = rng.uniform(0, 200, (400, 3, 3))
    images[:, 16, 16] = 235
    found = _detections(images, images > 200)
    known = np.array([[0.15], [-0.2]])
    position = (found.node + offsets(images, found, known) - GRID.offset) / GRID.ratio
    truth = Targets(position[:, None], np.full((400, 1), 235.0), np.ones(400, int))
    assert np.allclose(fit_offsets(images, GRID, truth, found, reach=1), known, atol=0.01)


# Settings


@pytest.mark.parametrize("name", READOUTS)
def test_tuning_returns_settings_that_give_the_score_it_reports(name):
    scenes, images = split_light(60)
    choices = {option: values[:2] for option, values in CHOICES[name].items()}
    best = tune_readout(images, GRID, scenes, name, choices)
    again = read_out(images, GRID, name, **best["settings"])
    assert cso_map(again, scenes).map == pytest.approx(best["cso_map"]) and count_accuracy(again, scenes) == best["count_accuracy"]
    assert best["tried"] >= np.prod([len(values) for values in choices.values()])


def test_tuning_prefers_the_right_count_where_one_detection_each_is_promised():
    scenes, images = split_light(100)
    best = tune_readout(images, GRID, scenes, "merged", {**CHOICES["merged"], "most": (150.0, 300.0), "least": (80.0,)})
    assert best["settings"]["most"] == 300.0


def test_the_search_never_goes_below_the_papers_threshold():
    assert all(min(values.get("threshold", (50,))) >= 50 for values in CHOICES.values())
    assert all(set(values.get("score", ())) <= set(SCORES) for values in CHOICES.values())
    assert min(np.hypot(*(xy[0] - xy[1])) for xy in random_targets(50, np.random.default_rng(0), count=(2, 2)).xy) >= MIN_DISTANCE
