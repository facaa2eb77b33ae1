"""Scores: hand-worked cases, invariances, agreement of the fast and the plain version, the paper's ceilings, speed."""
import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csist import metrics
from csist.datasets import csist100k
from csist.imaging import SubpixelGrid
from csist.metrics import average_precision, cso_map, cso_map_from_lists, cso_map_reference, match_detections
from csist.scenes import Targets, random_targets

quick = settings(max_examples=60, deadline=None)
NOTHING = np.zeros((0, 3))


def one_frame(detections, truths, delta):
    """AP at one threshold of one frame."""
    return cso_map_from_lists([np.array(detections, dtype=float)], [np.array(truths, dtype=float)], [delta]).ap[0]


# --- by hand -------------------------------------------------------------------------------------------------------------------------------


def test_example_of_the_public_names():
    # Frame 0: (5, 5) is 0.1 px from (5, 5.1); (1, 1) is far from everything. Frame 1: one target, missed. N = 2.
    # At 0.05: no hit, AP 0. From 0.10 on: hit, miss; AP = 1/2 * 1 = 0.5.
    result = cso_map_from_lists([np.array([[5.0, 5.0, 9.0], [1.0, 1.0, 8.0]]), np.zeros((0, 3))], [np.array([[5.0, 5.1]]), np.array([[2.0, 2.0]])])
    assert np.allclose(result.ap, [0, 0.5, 0.5, 0.5, 0.5])
    assert result.map == pytest.approx(0.4) and (result.n_detections, result.n_targets) == (2, 2)


def test_nearest_already_claimed_does_not_fall_back():
    # Targets at 0 and 0.30. Detection A at 0.00 (score 2) claims the first. B at 0.14 (score 1) is 0.14 from the first and 0.16 from the second:
    # its nearest is taken, so it is false at 0.20 although the free second target is within 0.20. AP = 1/2 * 1.
    assert one_frame([[0, 0, 2], [0.14, 0, 1]], [[0, 0], [0.30, 0]], 0.20) == pytest.approx(0.5)
    # B at 0.16 is nearest to the second target and within 0.20 of it: both hit, AP = 1.
    assert one_frame([[0, 0, 2], [0.16, 0, 1]], [[0, 0], [0.30, 0]], 0.20) == pytest.approx(1.0)


def test_two_detections_near_one_target():
    # Both within 0.10 of the only target; the higher score claims it though it is farther. hit, miss: AP = 1 * 1.
    assert one_frame([[5.08, 5, 9], [5.0, 5, 1]], [[5, 5]], 0.10) == pytest.approx(1.0)
    # At 0.05 the higher one is too far and claims nothing, so the lower one may: miss, hit; precision at the hit is 1/2, AP = 0.5.
    assert one_frame([[5.08, 5, 9], [5.0, 5, 1]], [[5, 5]], 0.05) == pytest.approx(0.5)


def test_order_is_by_score_not_by_place():
    # The false alarm is listed first but scored last: hit, miss gives 1; scored first: miss, hit gives 1/2.
    assert one_frame([[9, 9, 1], [5, 5, 2]], [[5, 5]], 0.1) == pytest.approx(1.0)
    assert one_frame([[9, 9, 3], [5, 5, 2]], [[5, 5]], 0.1) == pytest.approx(0.5)


def test_intensity_ranks_unless_there_is_a_score():
    truth = Targets([[[5.0, 5.0]]], [[240.0]], [1])
    estimate = Targets([[[9.0, 9.0], [5.0, 5.0]]], [[250.0, 240.0]], [2])
    assert cso_map(estimate, truth).ap == pytest.approx(0.5)  # the brighter one is false
    assert cso_map(estimate.with_score([[0.1, 0.9]]), truth).ap == pytest.approx(1.0)


@pytest.mark.parametrize("delta", metrics.DISTANCE_THRESHOLDS)
@pytest.mark.parametrize("start", [0.0, 2.0, 5.0, 10.0])
def test_a_distance_equal_to_the_threshold_counts(start, delta):
    # 5.2 - 5.0 is 0.2000000000000002 in binary; the rule is "equal counts", whatever the rounding.
    assert one_frame([[start + delta, 5, 1]], [[start, 5]], delta) == 1
    assert one_frame([[5, start - delta, 1]], [[5, start]], delta) == 1
    assert one_frame([[start + delta + 1e-6, 5, 1]], [[start, 5]], delta) == 0


def test_equally_near_targets_go_to_the_lower_index():
    # A detection half-way claims target 0. The second detection sits on target 1: both hit. On target 0: its nearest is claimed.
    truths = [[4.9, 5], [5.1, 5]]
    assert one_frame([[5, 5, 2], [5.1, 5, 1]], truths, 0.1) == pytest.approx(1.0)
    assert one_frame([[5, 5, 2], [4.9, 5, 1]], truths, 0.1) == pytest.approx(0.5)
    assert one_frame([[5, 5, 2], [4.9, 5, 1]], truths[::-1], 0.1) == pytest.approx(1.0)


def test_ties_of_score():
    # Same frame: the detection listed earlier goes first. miss, hit -> 1/2; hit, miss -> 1.
    assert one_frame([[9, 9, 1], [5, 5, 1]], [[5, 5]], 0.1) == pytest.approx(0.5)
    assert one_frame([[5, 5, 1], [9, 9, 1]], [[5, 5]], 0.1) == pytest.approx(1.0)
    # Two frames, all scores equal: the earlier frame goes first. hit, miss -> AP = 1/2 * 1; miss, hit -> 1/2 * 1/2.
    good, bad, truth = np.array([[5, 5, 1]]), np.array([[9, 9, 1]]), np.array([[5, 5]])
    assert cso_map_from_lists([good, bad], [truth, truth]).ap == pytest.approx(0.5)
    assert cso_map_from_lists([bad, good], [truth, truth]).ap == pytest.approx(0.25)


def test_frames_are_pooled():
    # Frame 0: hit with score 3, miss with 1. Frame 1: hit with score 2. Pooled: hit, hit, miss -> AP = 1 with N = 2.
    # (A mean over frames of the frames' own APs would be 1 as well, so raise the miss to 2.5: hit, miss, hit -> (1 + 2/3) / 2 = 5/6.)
    truths = [[[5, 5]], [[2, 2]]]
    assert cso_map_from_lists([[[5, 5, 3], [9, 9, 1]], [[2, 2, 2]]], truths).ap == pytest.approx(1.0)
    assert cso_map_from_lists([[[5, 5, 3], [9, 9, 2.5]], [[2, 2, 2]]], truths).ap == pytest.approx(5 / 6)


def test_area_under_the_envelope():
    # miss, hit, hit, miss, hit with N = 4: precision at the hits is 1/2, 2/3, 3/5. The envelope lifts the first to 2/3.
    # Area = (2/3 + 2/3 + 3/5) / 4 = 29/60; without the envelope it would be (1/2 + 2/3 + 3/5) / 4 = 53/120.
    hits = [False, True, True, False, True]
    assert average_precision(hits, 4) == pytest.approx(29 / 60)
    recall, precision, envelope = metrics.precision_recall(hits, 4)
    assert np.allclose(recall, [0, 1 / 4, 1 / 2, 1 / 2, 3 / 4]) and np.allclose(precision, [0, 1 / 2, 2 / 3, 1 / 2, 3 / 5])
    assert np.allclose(envelope, [2 / 3, 2 / 3, 2 / 3, 3 / 5, 3 / 5])
    assert np.diff(recall, prepend=0) @ envelope == pytest.approx(29 / 60)


def test_weights_of_average_precision():
    # hit x 2, miss x 3, hit x 1 is hit hit miss miss miss hit: (1 + 1 + 3/6) / N.
    assert average_precision([True, False, True], 5, [2, 3, 1]) == pytest.approx(2.5 / 5)
    assert average_precision([True, False, True], 5, [2, 3, 1]) == average_precision([1, 1, 0, 0, 0, 1], 5)
    assert average_precision([False, True, True], 1, [0, 0, 1]) == 1  # what is drawn zero times is not there


def test_frames_without_anything():
    target, hit = np.array([[5.0, 5.0]]), np.array([[5.0, 5.0, 1.0]])
    assert cso_map_from_lists([hit, NOTHING], [target, NOTHING]).map == 1  # an empty frame answered by nothing is harmless
    assert cso_map_from_lists([hit, [[1, 1, 2]]], [target, []]).map == pytest.approx(0.5)  # a false alarm in one is not
    assert cso_map_from_lists([NOTHING], [target]).map == 0  # no detections
    assert cso_map_from_lists([hit], [NOTHING]).map == 0  # no targets, yet detections
    assert math.isnan(cso_map_from_lists([NOTHING], [NOTHING]).map)  # neither: nothing to score
    assert math.isnan(cso_map_from_lists([], []).map)
    no_frames = random_targets(0, np.random.default_rng(0))
    assert math.isnan(cso_map(no_frames, no_frames).map) and math.isnan(cso_map_reference(no_frames, no_frames).map)


@pytest.mark.parametrize("empty", [[], np.zeros(0), np.zeros((0, 2)), NOTHING, np.zeros((0, 5))])
def test_every_shape_of_empty(empty):
    assert cso_map_from_lists([empty], [np.array([[5.0, 5.0]])]).map == 0
    assert cso_map_from_lists([np.array([[5.0, 5.0, 1.0]])], [empty]).map == 0


def test_bare_arrays_are_one_frame():
    assert cso_map_from_lists(np.array([[5.0, 5.0, 1.0]]), np.array([[5.0, 5.0]])).map == 1
    assert cso_map_from_lists(NOTHING, np.array([[5.0, 5.0]])).map == 0
    assert cso_map_from_lists([[[5, 5, 1]]], [[[5, 5, 240, 7]]]).map == 1  # more columns of truth are ignored


def test_one_frame_and_infinite_scores():
    truth = Targets([[[5.0, 5.0]]], [[240.0]], [1])
    assert cso_map(truth, truth).map == 1
    assert cso_map_from_lists([[[5, 5, np.inf], [9, 9, -np.inf]]], [[[5, 5]]]).map == 1


def test_repr_reads_like_the_paper():
    text = repr(cso_map_from_lists([[[5, 5, 9], [1, 1, 8]], []], [[[5, 5.1]], [[2, 2]]]))
    assert text == "CSO-mAP 40.00 (AP-05 0.00, AP-10 50.00, AP-15 50.00, AP-20 50.00, AP-25 50.00; 2 detections, 2 targets)"
    assert "AP-12.5 " in repr(cso_map_from_lists([[[5, 5, 9]]], [[[5, 5.1]]], [0.125]))


def test_matches_tell_who_hit_whom():
    truth = Targets([[[5.0, 5.0], [6.0, 5.0]], [[np.nan] * 2] * 2], [[240.0] * 2, [np.nan] * 2], [2, 0])
    estimate = Targets([[[6.1, 5.0], [5.0, 5.0]], [[1.0, 1.0], [0, 0]]], [[230.0, 250.0], [240.0, 0]], [2, 1])
    matches = match_detections(estimate, truth)
    assert matches.frame.tolist() == [0, 1, 0] and matches.slot.tolist() == [1, 0, 0] and matches.nearest.tolist() == [0, -1, 1]
    assert np.allclose(matches.distance, [0, np.inf, 0.1]) and matches.is_hit.sum(axis=0).tolist() == [5, 0, 4]


# --- for all inputs ------------------------------------------------------------------------------------------------------------------------

# Whole numbers of 0.05 px make exact distances, equal distances and equal positions common: the worst case for ties.
lattice = st.integers(0, 9)
detections = st.lists(st.tuples(lattice, lattice, st.integers(0, 3)), max_size=5)
truths = st.lists(st.tuples(lattice, lattice), max_size=4, unique=True)
frames = st.lists(st.tuples(detections, truths), min_size=1, max_size=6)


def as_targets(drawn, distinct=False):
    """Targets of drawn frames; with ``distinct``, scores in a scrambled order without ties."""
    found = [np.array(d, dtype=float).reshape(-1, 3) for d, _ in drawn]
    total = sum(map(len, found))
    order = iter(np.random.default_rng(total).permutation(total))
    scores = [np.array([next(order) for _ in rows]) if distinct else rows[:, 2] for rows in found]
    estimate = Targets.from_lists([5 + 0.05 * rows[:, :2] for rows in found], [240 + rows[:, 2] for rows in found], scores)
    positions = [5 + 0.05 * np.array(t, dtype=float).reshape(-1, 2) for _, t in drawn]
    return estimate, Targets.from_lists(positions, [np.full(len(p), 240.0) for p in positions])


def same(a, b):
    return np.allclose(a.ap, b.ap, atol=1e-12, rtol=0, equal_nan=True)


def moved(targets, move):
    return Targets(move(targets.xy), targets.intensity, targets.count, None, targets.score)


@quick
@given(frames)
def test_fast_and_plain_version_agree(drawn):
    estimate, truth = as_targets(drawn)
    fast = cso_map(estimate, truth)
    assert same(fast, cso_map_reference(estimate, truth))
    assert same(fast, cso_map_from_lists(estimate.lists(), truth.lists()))


def test_fast_and_plain_version_agree_on_crowded_frames():
    rng = np.random.default_rng(3)
    truth = random_targets(300, rng, count=(0, 5))
    xy = np.nan_to_num(truth.xy[:, :1], nan=5.0) + rng.normal(0, 0.25, (300, 9, 2))
    estimate = Targets(xy, rng.integers(50, 60, (300, 9)), rng.integers(0, 10, 300))  # ten grey levels: many ties
    assert same(cso_map(estimate, truth), cso_map_reference(estimate, truth))


@quick
@given(frames, st.randoms(use_true_random=False))
def test_order_of_frames_does_not_matter(drawn, random):
    estimate, truth = as_targets(drawn, distinct=True)
    order = list(range(len(drawn)))
    random.shuffle(order)
    assert same(cso_map(estimate, truth), cso_map(estimate[order], truth[order]))


@quick
@given(frames, st.floats(-20, 20), st.floats(-20, 20))
def test_shift_mirror_and_transposition(drawn, dx, dy):
    estimate, truth = as_targets(drawn)
    before = cso_map(estimate, truth)
    for move in (lambda xy: xy + [dx, dy], lambda xy: 10 - xy, lambda xy: xy * [1, -1], lambda xy: xy[..., ::-1]):
        assert same(before, cso_map(moved(estimate, move), moved(truth, move)))


@quick
@given(frames)
def test_only_the_order_of_scores_matters(drawn):
    estimate, truth = as_targets(drawn)
    assert same(cso_map(estimate, truth), cso_map(estimate.with_score(np.exp(3 * estimate.score) - 7), truth))


@quick
@given(frames)
def test_a_lower_scored_duplicate_never_helps(drawn):
    estimate, truth = as_targets(drawn)
    doubled = [np.repeat(rows, 2, axis=0) - [[0, 0, 0], [0, 0, 0.5]] * len(rows) if len(rows) else rows for rows in estimate.lists()]
    double = Targets.from_lists([rows[:, :2] for rows in doubled], [np.full(len(rows), 240.0) for rows in doubled], [rows[:, 2] for rows in doubled])
    before, after = cso_map(estimate, truth).ap, cso_map(double, truth).ap
    assert np.isnan(before).all() or (after <= before + 1e-12).all()


@quick
@given(frames)
def test_perfect_answer_scores_one_and_every_score_is_a_fraction(drawn):
    estimate, truth = as_targets(drawn)
    if truth.count.sum():
        assert np.all(cso_map(truth, truth).ap == 1)
    ap = cso_map(estimate, truth).ap
    assert np.isnan(ap).all() or ((ap >= 0) & (ap <= 1)).all()


@quick
@given(frames, st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_multiplicity_equals_copied_frames(drawn, multiplicity):
    estimate, truth = as_targets(drawn, distinct=True)
    multiplicity = np.array(multiplicity[: len(drawn)])
    copies = np.repeat(np.arange(len(drawn)), multiplicity)
    weighted = match_detections(estimate, truth).average_precisions(multiplicity)
    assert np.allclose(weighted, cso_map(estimate[copies], truth[copies]).ap, atol=1e-12, rtol=0, equal_nan=True)


@quick
@given(frames, st.lists(st.booleans(), min_size=6, max_size=6))
def test_boolean_multiplicity_selects_frames_ties_included(drawn, chosen):
    estimate, truth = as_targets(drawn)
    chosen = np.array(chosen[: len(drawn)])
    picked = match_detections(estimate, truth).average_precisions(chosen)
    assert np.allclose(picked, cso_map(estimate[chosen], truth[chosen]).ap, atol=1e-12, rtol=0, equal_nan=True)
    assert metrics.score_frames(estimate, truth, chosen).frames == chosen.sum()


# --- the paper's ceilings and speed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regenerated():
    return random_targets(4_000, np.random.default_rng(11))


def snap(truth, ratio):
    """The best on-grid answer: every target at its nearest sub-pixel."""
    grid, mask = SubpixelGrid(ratio=ratio), truth.mask
    xy = truth.xy.copy()
    xy[mask] = grid.to_position(grid.to_index(xy[mask]))
    return Targets(xy, truth.intensity, truth.count)


@pytest.mark.parametrize("ratio, unranked, ranked", [(3, 45.6, 56.4), (5, 72.4, 79.0), (7, 82.8, 87.4)])
def test_grid_ceilings(regenerated, ratio, unranked, ranked):
    snapped = snap(regenerated, ratio)
    by_chance = snapped.with_score(np.random.default_rng(5).random(snapped.intensity.shape))
    by_distance = snapped.with_score(-np.linalg.norm(snapped.xy - regenerated.xy, axis=-1))
    assert 100 * cso_map(by_chance, regenerated).map == pytest.approx(unranked, abs=1.5)
    assert 100 * cso_map(by_distance, regenerated).map == pytest.approx(ranked, abs=1.5)


def nine_a_frame(n):
    rng = np.random.default_rng(2)
    truth = random_targets(n, rng)
    return Targets(truth.xy[:, :1] + rng.normal(0, 0.3, (n, 9, 2)), rng.uniform(50, 250, (n, 9)), np.full(n, 9)), truth


def test_ten_thousand_crowded_frames_take_a_moment():
    estimate, truth = nine_a_frame(10_000)
    start = time.perf_counter()
    cso_map(estimate, truth)
    matched = time.perf_counter()
    metrics.bootstrap_interval(estimate, truth, resamples=50)
    assert matched - start < 2.0  # 0.05 s on an idle core
    assert time.perf_counter() - matched < 4.0  # 0.1 s


# --- bootstrap -----------------------------------------------------------------------------------------------------------------------------


def test_bootstrap_interval(regenerated):
    truth = regenerated[:1000]
    snapped = snap(truth, 3)
    estimate = snapped.with_score(np.random.default_rng(5).random(snapped.intensity.shape))
    score, interval = cso_map(estimate, truth).map, metrics.bootstrap_interval(estimate, truth, seed=1)
    assert interval.low < score < interval.high and interval.high - interval.low == pytest.approx(3.92 * interval.standard_error, rel=0.3)
    assert interval == metrics.bootstrap_interval(estimate, truth, seed=1) and interval != metrics.bootstrap_interval(estimate, truth, seed=2)
    # Four times fewer frames: twice the standard error (itself known to 1 / sqrt(2 * 200) = 5 % each).
    fewer = metrics.bootstrap_interval(estimate[:250], truth[:250], seed=1)
    assert fewer.standard_error / interval.standard_error == pytest.approx(2, rel=0.4)


def test_bootstrap_draws_are_paired_and_match_copied_frames(regenerated):
    truth = regenerated[:60]
    snapped = snap(truth, 3)
    estimate = snapped.with_score(np.random.default_rng(5).random(snapped.intensity.shape))
    samples = metrics.bootstrap_samples(estimate, truth, resamples=3, seed=9)
    rng = np.random.default_rng(9)
    for sample in samples:
        drawn = rng.integers(0, 60, 60)
        assert sample == pytest.approx(cso_map(estimate[drawn], truth[drawn]).map, abs=1e-12)
    assert np.all(metrics.bootstrap_samples(truth, truth, resamples=3) == 1)


# --- counting and measuring ----------------------------------------------------------------------------------------------------------------


def test_localisation_by_hand():
    # Two pairs with errors (0.03, 0.04) and (0, -0.1) -> distances 0.05 and 0.10.
    # RMSE = sqrt((0.0025 + 0.01) / 2), bias = (0.015, -0.03), median 0.075; intensities +4 and -2: bias 1, RMSE sqrt(10).
    truth = Targets([[[5.0, 5.0], [5.5, 5.0], [8.0, 8.0]]], [[240.0, 230.0, 220.0]], [3])
    estimate = Targets([[[5.5, 4.9], [5.03, 5.04], [1.0, 1.0], [2.0, 2.0]]], [[228.0, 244.0, 1.0, 1.0]], [4])
    errors = metrics.localisation(estimate, truth)
    assert errors.rmse == pytest.approx(math.sqrt(0.00625)) and errors.median == pytest.approx(0.075)
    assert (errors.bias_x, errors.bias_y) == pytest.approx((0.015, -0.03))
    assert (errors.intensity_bias, errors.intensity_rmse) == pytest.approx((1, math.sqrt(10)))
    assert (errors.recall, errors.precision, errors.pairs) == pytest.approx((2 / 3, 1 / 2, 2))


def test_matching_prefers_more_pairs_to_nearer_ones():
    # On a line: targets 0 and 0.4, detections 0.39 and 0.75 (cap 0.5). Nearest first pairs 0.39 with 0.4 and leaves 0.75 to 0, too far: one pair.
    # Two pairs are possible: 0.39 - 0 and 0.75 - 0.4.
    truth = Targets([[[0.0, 5.0], [0.4, 5.0]]], [[240.0] * 2], [2])
    estimate = Targets([[[0.39, 5.0], [0.75, 5.0]]], [[240.0] * 2], [2])
    assert [index.tolist() for index in metrics.match_pairs(estimate, truth)] == [[0, 0], [0, 1], [0, 1]]
    assert metrics.localisation(estimate, truth, cap=0.2).pairs == 1


def test_localisation_without_pairs():
    truth, nothing = Targets([[[5.0, 5.0]]], [[240.0]], [1]), Targets([[[5.0, 5.0]]], [[240.0]], [0])
    errors = metrics.localisation(nothing, truth)
    assert math.isnan(errors.rmse) and errors.recall == 0 and math.isnan(errors.precision) and errors.pairs == 0


def test_count_accuracy(regenerated):
    assert metrics.count_accuracy(regenerated, regenerated) == 1
    fewer = Targets(regenerated.xy, regenerated.intensity, np.maximum(regenerated.count - 1, 1))
    assert metrics.count_accuracy(fewer, regenerated) == np.mean(regenerated.count == 1)


def test_pixel_locking(regenerated):
    rng = np.random.default_rng(0)
    free = Targets(rng.uniform(0, 10, (500, 4, 2)), np.ones((500, 4)), np.full(500, 4))
    smooth, locked = metrics.fractional_positions(free), metrics.fractional_positions(snap(free, 3), truth=free)
    assert (smooth.uniform_distance < 1.95 / math.sqrt(2000)).all()  # the 0.1 % point of the Kolmogorov-Smirnov test
    assert np.allclose(locked.uniform_distance, 1 / 6, atol=0.03) and np.allclose(locked.truth_distance, 1 / 6, atol=0.03)
    assert np.allclose(locked.histogram.sum(axis=1), 1) and ((locked.histogram > 0).sum(axis=1) == 3).all() and smooth.truth_distance is None
    for ratio in (5, 7):
        assert ((metrics.fractional_positions(snap(free, ratio)).histogram > 0).sum(axis=1) == ratio).all()
    itself = metrics.fractional_positions(regenerated, truth=regenerated)
    assert np.all(itself.truth_distance == 0) and np.all(itself.uniform_distance > 0)
    nobody = Targets(np.zeros((2, 1, 2)), np.zeros((2, 1)), [0, 0])
    assert np.isnan(metrics.fractional_positions(nobody, truth=free).uniform_distance).all()


# --- images --------------------------------------------------------------------------------------------------------------------------------


def ssim_by_loops(a, b):
    """SSIM of two images straight from its definition."""
    values = []
    for i in range(a.shape[0] - 6):
        for j in range(a.shape[1] - 6):
            p, q = a[i : i + 7, j : j + 7].ravel().astype(float), b[i : i + 7, j : j + 7].ravel().astype(float)
            (v_p, v_pq), (_, v_q) = np.cov(p, q)  # unbiased: divided by 48
            luminance = (2 * p.mean() * q.mean() + 2.55**2) / (p.mean() ** 2 + q.mean() ** 2 + 2.55**2)
            values.append(luminance * (2 * v_pq + 7.65**2) / (v_p + v_q + 7.65**2))
    return np.mean(values)


def test_ssim_and_psnr_against_their_definitions():
    rng = np.random.default_rng(4)
    a = rng.integers(0, 256, (4, 12, 15)).astype(np.uint8)
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    a[3], b[3] = 0, 0
    b[3, 5, 5] = 240
    expected = [ssim_by_loops(p, q) for p, q in zip(a, b)]
    assert np.allclose(metrics.ssim_of_frames(a, b), expected, atol=1e-9)
    # Frame 3: one pixel of 180 is off by 240, MSE = 240^2 / 180 = 320, PSNR = 10 log10(65025 / 320).
    assert metrics.psnr_of_frames(a, b)[3] == pytest.approx(10 * math.log10(65025 / 320))
    assert metrics.psnr_ssim(a, b).ssim == pytest.approx(np.mean(expected)) and metrics.psnr_ssim(a[0], b[0]).ssim == pytest.approx(expected[0])


def test_eight_bits_clip_and_truncate():
    truth = np.full((1, 8, 8), 255.0)
    assert metrics.psnr_ssim(truth + 45, truth) == (100.0, pytest.approx(1))
    assert metrics.psnr_ssim(np.full((1, 8, 8), -3.0), np.zeros((1, 8, 8))).psnr == 100
    # 254.9 truncates to 254: MSE = 1.
    assert metrics.psnr_ssim(truth - 0.1, truth).psnr == pytest.approx(10 * math.log10(65025))


def test_zeros_score_well_which_is_the_trouble():
    images = SubpixelGrid(ratio=3).image(csist100k("test", 200).targets)
    assert metrics.psnr_ssim(images, images) == (100.0, pytest.approx(1.0))
    psnr, ssim = metrics.psnr_ssim(np.zeros_like(images), images)
    assert psnr == pytest.approx(26.9, abs=0.25) and ssim == pytest.approx(0.938, abs=0.003)


# --- parts and the report ------------------------------------------------------------------------------------------------------------------


def test_by_count_and_border(regenerated):
    parts = metrics.by_count(snap(regenerated, 3), regenerated)
    assert list(parts) == [1, 2, 3, 4, 5] and sum(part.frames for part in parts.values()) == len(regenerated)
    assert all(part.targets == number * part.frames for number, part in parts.items())
    border = metrics.is_border(regenerated)
    assert border.mean() == pytest.approx(40 / 121, abs=0.04)  # 121 - 9 x 9 pixels touch the edge
    inside = regenerated.xy[~border]
    assert np.nanmin(inside) >= 0.5 and np.nanmax(inside) <= 9.5
    nobody = Targets(np.zeros((1, 1, 2)), np.zeros((1, 1)), [0])
    assert not metrics.is_border(nobody).any()


def test_targets_off_the_frame_ask_for_its_shape():
    far = Targets([[[5.0, 5.0], [0.0, 0.0]], [[20.0, 30.0], [50.0, 20.0]]], [[240.0] * 2] * 2, [1, 2])
    for call in (metrics.is_border, lambda truth: metrics.score_report(truth, truth, resamples=2)):
        with pytest.raises(ValueError, match=r"frame 1 holds a target off 11 x 11 px, at \[20.0, 30.0\]; pass the frames' own size as shape="):
            call(far)
    assert metrics.is_border(far, (64, 64)).tolist() == [False, False]
    shifted = csist100k("test", 300, cluster_shift=-0.3).targets
    assert np.nanmin(shifted.xy) < -0.5 and metrics.is_border(shifted).any(), "a shift leaves some targets just off the frame"


def test_report_is_plain_json(regenerated):
    truth = regenerated[:200]
    estimate = snap(truth, 3)
    report = metrics.score_report(estimate, truth, resamples=20, seed=4)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["cso_map"] == cso_map(estimate, truth).map and report["ap"] == cso_map(estimate, truth).ap.tolist()
    assert report["interval"][0] <= report["cso_map"] <= report["interval"][1]
    assert report["interior"]["frames"] + report["border"]["frames"] == report["frames"] == 200
    assert sum(part["targets"] for part in report["by_count"].values()) == report["targets"]
    assert report["localisation"]["rmse"] <= math.sqrt(2) / 6 and report["count_accuracy"] == 1
    assert report == metrics.score_report(estimate, truth, resamples=20, seed=4)


def test_report_of_nothing():
    nobody = Targets(np.zeros((2, 1, 2)), np.zeros((2, 1)), [0, 0])
    report = json.loads(json.dumps(metrics.score_report(nobody, nobody, resamples=2), allow_nan=False))
    assert report["cso_map"] is None and report["interval"] == [None, None] and report["count_accuracy"] == 1


# --- errors --------------------------------------------------------------------------------------------------------------------------------

ONE = Targets([[[5.0, 5.0]]], [[240.0]], [1])
ERRORS = {
    "2 frames, truth has 1": lambda: cso_map(ONE[[0, 0]], ONE),
    "estimate has 1 frames": lambda: cso_map_from_lists([NOTHING], [NOTHING, NOTHING]),
    "frame 0, detection 0.*nan cannot be ranked": lambda: cso_map(ONE.with_score([[np.nan]]), ONE),
    "1 of 2 scores are nan": lambda: cso_map_from_lists([[[5, 5, 1], [5, 5, np.nan]]], [[[5, 5]]]),
    "thresholds must be distances": lambda: cso_map(ONE, ONE, [-0.1]),
    "at least one": lambda: cso_map(ONE, ONE, []),
    r"detections\[0\] must have shape \(m, 3\)": lambda: cso_map_from_lists([np.ones((2, 2))], [NOTHING]),
    r"truths\[0\] must have shape \(k, 2": lambda: cso_map_from_lists([NOTHING], [np.ones(2)]),
    "2 hits but only 1 targets": lambda: average_precision([True, True], 1),
    "one-dimensional": lambda: average_precision([[True]], 1),
    "weight must have shape": lambda: average_precision([True], 1, [1, 1]),
    "recall needs at least one target": lambda: metrics.precision_recall([True], 0),
    "one number for each of 1 frames": lambda: match_detections(ONE, ONE).average_precisions([1, 1]),
    "resamples must be": lambda: metrics.bootstrap_samples(ONE, ONE, resamples=0),
    "level must be": lambda: metrics.bootstrap_interval(ONE, ONE, level=95),
    "cap must be": lambda: metrics.localisation(ONE, ONE, cap=0),
    "bins must be": lambda: metrics.fractional_positions(ONE, bins=0),
    "selection must be a boolean array": lambda: metrics.score_frames(ONE, ONE, [0]),
    "both stacks must have the same shape": lambda: metrics.psnr_ssim(np.zeros((1, 9, 9)), np.zeros((2, 9, 9))),
    "at least 7 px": lambda: metrics.psnr_ssim(np.zeros((1, 6, 9)), np.zeros((1, 6, 9))),
    "no 8-bit value": lambda: metrics.psnr_ssim(np.full((1, 9, 9), np.nan), np.zeros((1, 9, 9))),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_name_the_trouble(message):
    with pytest.raises(ValueError, match=message):
        ERRORS[message]()


def test_lists_given_to_the_wrong_function():
    with pytest.raises(TypeError, match="cso_map_from_lists"):
        cso_map([NOTHING], ONE)
