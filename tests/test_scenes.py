"""Targets, the one result type, and the random clusters of CSIST-100K."""
from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import chisquare, kstest

from csist.scenes import Targets, random_targets


def draw(n=2000, seed=0, **arguments):
    return random_targets(n, np.random.default_rng(seed), **arguments)


# Random clusters


@pytest.fixture(scope="module")
def preset():
    return draw(20_000, seed=1)


def test_a_seed_determines_the_scene():
    assert draw(seed=7) == draw(seed=7)
    assert draw(seed=7) != draw(seed=8)


def test_counts_one_to_five_are_equally_likely(preset):
    frequency = np.bincount(preset.count, minlength=6)
    assert frequency[0] == 0 and len(frequency) == 6
    assert chisquare(frequency[1:]).pvalue > 1e-3


def test_every_pixel_holds_clusters_equally_often(preset):
    frequency = np.bincount(preset.cell[:, 0] * 11 + preset.cell[:, 1], minlength=121)
    assert len(frequency) == 121 and frequency.min() > 0
    assert chisquare(frequency).pvalue > 1e-3


def test_all_targets_of_a_frame_lie_in_one_pixel(preset):
    offset = preset.xy - preset.cell[:, None]
    assert np.nanmax(np.abs(offset)) <= 0.5
    assert np.nanmin(preset.xy) >= -0.5 and np.nanmax(preset.xy) <= 10.5


def test_targets_keep_their_distance(preset):
    smallest = min(pdist(xy[:m]).min() for xy, m in zip(preset.xy, preset.count) if m > 1)
    assert 0.494 <= smallest < 0.495  # kept, and tight


def test_single_targets_are_uniform_in_their_pixel(preset):
    single = preset.count == 1
    offset = preset.xy[single, 0] - preset.cell[single]
    assert all(kstest(offset[:, axis] + 0.5, "uniform").pvalue > 1e-3 for axis in (0, 1))


def test_intensities_are_uniform_in_their_range(preset):
    intensity = preset.intensity[preset.mask]
    assert intensity.min() >= 220 and intensity.max() <= 250
    assert kstest((intensity - 220) / 30, "uniform").pvalue > 1e-3
    assert (draw(50, intensity=(100, 100)).intensity[draw(50, intensity=(100, 100)).mask] == 100).all()


def test_padding_is_nan_and_only_padding_is(preset):
    assert preset.capacity == 5
    assert np.array_equal(np.isnan(preset.intensity), ~preset.mask)
    assert np.array_equal(np.isnan(preset.xy), np.repeat(~preset.mask[..., None], 2, axis=-1))


def test_cluster_shift_moves_the_square():
    plain, moved = draw(seed=2), draw(seed=2, cluster_shift=-0.07)
    np.testing.assert_allclose(moved.xy, plain.xy - 0.07, atol=1e-12)
    both = draw(seed=2, cluster_shift=(0.1, -0.2))
    np.testing.assert_allclose(both.xy, plain.xy + [0.1, -0.2], atol=1e-12)
    assert np.array_equal(plain.count, moved.count)


def test_counts_cells_and_shape_can_be_fixed():
    counts = np.array([0, 3, 1, 5])
    cells = np.array([[0, 0], [1, 2], [10, 10], [5, 5]])
    scene = draw(4, count=counts, cells=cells)
    assert np.array_equal(scene.count, counts)
    assert np.array_equal(scene.cell[1:], cells[1:])
    assert (draw(50, count=(2, 2)).count == 2).all()
    wide = draw(3000, shape=(3, 20)).cell.max(axis=0)
    assert wide.tolist() == [2, 19]


def test_targets_are_equal_if_all_their_numbers_are():
    scene = draw(5)
    assert scene == scene[:] and scene == scene[np.arange(5)] and scene != scene[:4]
    scored = scene.with_score(scene.intensity)
    assert scored != scene and scored == scene.with_score(scene.intensity) and scored != scene.with_score(2 * scene.intensity)
    assert scene != "scene"


def test_no_frames_and_frames_without_targets():
    nothing = draw(0)
    assert len(nothing) == 0 and nothing.xy.shape[::2] == (0, 2) and nothing.lists() == []
    dark = draw(5, count=(0, 0))
    assert (dark.count == 0).all() and (dark.cell == -1).all() and np.isnan(dark.xy).all()
    assert [rows.shape for rows in dark.lists()] == [(0, 3)] * 5


@pytest.mark.parametrize("number, distance, n", [(5, 0.8, 1), (5, 0.8, 1000), (2, 1.41421, 1), (1000, 0.494, 100)])
def test_impossible_clusters_end_in_an_error_and_soon(number, distance, n):
    begin = time.process_time()
    with pytest.raises(ValueError, match=f"no {number} points .* apart; lower min_distance or the count"):
        draw(n, count=(number, number), min_distance=distance)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("number, distance", [(5, 0.55), (4, 0.7), (2, 1.2), (8, 0.3)])
def test_tight_but_possible_clusters_are_found(number, distance):
    scene = draw(5, count=(number, number), min_distance=distance)
    assert min(pdist(xy).min() for xy in scene.xy) >= distance - 1e-12


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n": -1}, "n must be a whole number >= 0"),
        ({"n": 2.0}, "n must be a whole number >= 0"),
        ({"n": True}, "n must be a whole number >= 0"),
        ({"intensity": (250, 220)}, "0 < low <= high"),
        ({"intensity": (0, 220)}, "0 < low <= high"),
        ({"intensity": (220, math.inf)}, "0 < low <= high"),
        ({"intensity": (math.nan, 220)}, "0 < low <= high"),
        ({"min_distance": -0.1}, "from 0 to sqrt"),
        ({"min_distance": 1.5}, "from 0 to sqrt"),
        ({"min_distance": math.nan}, "from 0 to sqrt"),
        ({"count": (5, 1)}, "smallest <= largest"),
        ({"count": (-1, 1)}, "smallest <= largest"),
        ({"count": (1, 2, 3)}, "smallest <= largest"),
        ({"count": 3}, "smallest <= largest"),
        ({"count": [-1] * 10}, "one number for each of the 10 frames"),
        ({"cells": np.zeros((3, 2))}, r"cells must have shape \(10, 2\)"),
        ({"shape": (0, 11)}, "from 1 to 4096"),
        ({"cluster_shift": math.nan}, "finite"),
    ],
)
def test_bad_scene_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_targets(**{"n": 10, "rng": np.random.default_rng(0), **arguments})


# Targets


def example():
    return Targets(
        xy=[[[5.0, 5.1], [5.4, 5.5]], [[1.0, 2.0], [9.0, 9.0]], [[0.0, 0.0], [0.0, 0.0]]],
        intensity=[[240.0, 230.0], [225.0, 7.0], [1.0, 2.0]],
        count=[2, 1, 0],
        sigma=np.full((3, 2, 2), 0.1),
        score=np.arange(6.0).reshape(3, 2),
    )


def test_targets_mask_what_lies_beyond_the_count():
    targets = example()
    assert len(targets) == 3 and targets.capacity == 2
    assert targets.mask.tolist() == [[True, True], [True, False], [False, False]]
    for name in ("xy", "intensity", "sigma", "score"):
        value = getattr(targets, name)
        assert np.isfinite(value[targets.mask]).all() and np.isnan(value[~targets.mask]).all()
    assert targets.cell.tolist() == [[5, 5], [1, 2], [-1, -1]]
    assert targets.count.dtype == np.int64


def test_targets_do_not_change_their_makers_arrays():
    xy, intensity = np.zeros((1, 2, 2)), np.ones((1, 2))
    Targets(xy, intensity, [1])
    assert np.isfinite(xy).all() and np.isfinite(intensity).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"xy": np.zeros((2, 2))}, r"xy must have shape \(n, K, 2\)"),
        ({"xy": np.zeros((1, 2, 3))}, r"xy must have shape \(n, K, 2\)"),
        ({"intensity": np.ones((1, 3))}, r"intensity must have shape \(1, 2\)"),
        ({"count": [3]}, "whole numbers from 0 to 2"),
        ({"count": [-1]}, "whole numbers from 0 to 2"),
        ({"count": [1.5]}, "whole numbers from 0 to 2"),
        ({"count": [math.nan]}, "whole numbers from 0 to 2"),
        ({"count": [1, 1]}, "must hold 1 whole"),
        ({"count": 1}, "must hold 1 whole"),
        ({"xy": np.full((1, 2, 2), math.nan)}, "must be finite"),
        ({"intensity": np.full((1, 2), math.inf)}, "must be finite"),
        ({"sigma": np.ones((1, 2))}, r"sigma must have shape \(1, 2, 2\)"),
        ({"score": np.ones((1, 1))}, r"score must have shape \(1, 2\)"),
    ],
)
def test_inconsistent_targets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Targets(**{"xy": np.zeros((1, 2, 2)), "intensity": np.ones((1, 2)), "count": [2], **arguments})


def test_indexing_keeps_the_frame_axis():
    targets = example()
    assert len(targets[0]) == 1 and targets[0].xy.tolist() == targets.xy[:1].tolist()
    assert targets[-1].count.tolist() == [0] and targets[np.int64(1)].count.tolist() == [1]
    assert targets[:2].count.tolist() == [2, 1]
    assert targets[np.array([True, False, True])].count.tolist() == [2, 0]
    chosen = targets[[1, 0]]
    assert chosen.score[0, 0] == 2 and chosen.sigma[1, 1, 1] == 0.1 and chosen.count.tolist() == [1, 2]
    with pytest.raises(IndexError):
        targets[3]


def test_lists_rank_by_score_or_intensity():
    targets = example()
    assert targets.lists()[0].tolist() == [[5.0, 5.1, 0.0], [5.4, 5.5, 1.0]]
    plain = Targets(targets.xy, targets.intensity, targets.count)
    assert plain.lists()[0][:, 2].tolist() == [240, 230]
    rescored = plain.with_score(np.full((3, 2), 0.5))
    assert rescored.lists()[1].tolist() == [[1.0, 2.0, 0.5]] and plain.score is None
    assert targets.lists()[2].shape == (0, 3)


def test_from_lists_and_lists_are_inverse():
    scene = draw(50, count=(0, 4))
    rows = scene.lists()
    again = Targets.from_lists([r[:, :2] for r in rows], [r[:, 2] for r in rows])
    assert np.array_equal(again.count, scene.count)
    k = again.capacity
    assert np.array_equal(again.xy, scene.xy[:, :k], equal_nan=True) and np.array_equal(again.intensity, scene.intensity[:, :k], equal_nan=True)
    full = Targets.from_lists([[[1, 2]], []], [[9.0], []], scores=[[0.5], []], sigmas=[[[0.1, 0.2]], []])
    assert full.score[0, 0] == 0.5 and full.sigma[0, 0].tolist() == [0.1, 0.2]


def test_from_lists_of_nothing():
    assert len(Targets.from_lists([], [])) == 0
    empty = Targets.from_lists([[], np.zeros((0, 2))], [[], []])
    assert empty.capacity == 1 and empty.count.tolist() == [0, 0]


@pytest.mark.parametrize(
    "positions, intensities, message",
    [
        ([[5, 5]], [[240.0, 240.0]], "frame 0 has 2 positions"),  # a flat (x, y) is not two targets
        ([[[5, 5], [6, 6]]], [[240.0]], "frame 0 has 2 positions"),
        ([[[5, 5], [6, 6]]], [240.0], "frame 0 has 2 positions"),
        ([[[5, 5]], []], [[240.0], [1.0]], "frame 1 has 0 positions"),
        ([[[5, 5]]], [[240.0], [1.0]], "one entry per frame"),
        ([[[5, 5]], [[6, 6]]], [[240.0]], "one entry per frame"),
    ],
)
def test_from_lists_spreads_no_value_over_several_targets(positions, intensities, message):
    with pytest.raises(ValueError, match=message):
        Targets.from_lists(positions, intensities)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rng": 0}, r"pass rng=numpy.random.default_rng\(seed\). Got 0"),
        ({"intensity": 240}, r"a range \(low, high\)"),
        ({"cells": [[20, 20]] * 3}, "each of cells must be a pixel"),
    ],
)
def test_what_is_no_scene_says_so(changes, words):
    with pytest.raises(ValueError, match=words):
        random_targets(3, **{"rng": np.random.default_rng(0), **changes})
