"""Finding clusters: pixels of simulated clusters, borders, noise, neighbours, dark frames."""
import numpy as np
import pytest

from csist.datasets import csist100k
from csist.imaging import FocalPlane
from csist.scenes import Targets, random_targets
from csist.solvers.finding import brightest_block, find_cells, find_clusters


def spread_cells(rng, shape, number: int, apart: int = 5) -> np.ndarray:
    """Random pixels at least ``apart`` from each other in row or column."""
    cells = np.zeros((0, 2), dtype=int)
    while len(cells) < number:
        cell = np.array([rng.integers(0, size) for size in shape])
        if (np.abs(cells - cell).max(1, initial=0) >= apart).all():
            cells = np.vstack([cells, cell])
    return cells


def scene_about(cells, rng, shape, count=(1, 5)) -> Targets:
    """One scene of random clusters about some pixels."""
    parts = random_targets(len(cells), rng, shape=shape, cells=cells, count=count)
    return Targets(parts.xy[parts.mask][None], parts.intensity[parts.mask][None], [parts.count.sum()])


def test_a_frame_of_the_data_set_has_one_cluster_in_its_pixel():
    data = csist100k("val", size=500)
    frame, cell = find_clusters(data.frames, 5, least=44)
    assert frame.tolist() == list(range(500))
    assert (cell == data.targets.cell).all(1).mean() > 0.98
    assert np.array_equal(cell, find_cells(data.frames, 5))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("read_noise", [0.0, 5.0])
def test_clusters_five_pixels_apart_are_all_found(seed, read_noise):
    rng, plane = np.random.default_rng(seed), FocalPlane(shape=(64, 96), read_noise=read_noise)
    cells = spread_cells(rng, plane.shape, 12)
    frames = plane.render(scene_about(cells, rng, plane.shape, count=(2, 5)), rng)
    _, found = find_clusters(frames, 5, 3 * read_noise, 44)
    assert sorted(map(tuple, found)) == sorted(map(tuple, cells))


def test_noise_alone_is_no_cluster():
    plane = FocalPlane(shape=(200, 300), read_noise=5)
    frames = plane.render(Targets(np.zeros((2, 1, 2)), np.zeros((2, 1)), [0, 0]), np.random.default_rng(0))
    assert len(find_clusters(frames, 5, 15.0, 44)[0]) == 0


def test_clusters_come_brightest_first_frame_by_frame():
    frames = np.zeros((3, 12, 20))
    frames[0, 3, 3], frames[0, 9, 15], frames[2, 6, 6] = 100, 200, 60
    frame, cell = find_clusters(frames, 5, least=[10, 10, 10])
    assert frame.tolist() == [0, 0, 2] and cell.tolist() == [[9, 15], [3, 3], [6, 6]]
    assert find_clusters(frames, 5, least=[150, 10, 61])[0].tolist() == [0]
    assert find_clusters(frames[:0], 5)[0].shape == (0,) and len(find_clusters(np.zeros((2, 6, 7)), 5)[0]) == 0


def test_the_brightest_block_is_that_of_a_plain_search():
    frames = np.random.default_rng(0).integers(0, 9, (4, 6, 7)).astype(float)
    padded = np.pad(frames, ((0, 0), (1, 1), (1, 1)))
    plain = [max(frame[i : i + 3, j : j + 3].sum() for i in range(6) for j in range(7)) for frame in padded]
    assert brightest_block(frames).tolist() == plain
    assert brightest_block(frames, threshold=8).tolist() == [0.0] * 4


def test_a_window_takes_away_just_its_light():
    """Light outside the first window begins the next cluster, but only four pixels on; blocks are summed anew where light was taken."""
    frames = np.zeros((2, 9, 30))
    frames[0, 4, [4, 7, 8]] = 100, 40, 50
    frames[1, 4, [4, 7, 20]] = 100, 50, 10
    frame, cell = find_clusters(frames, 5)
    assert frame.tolist() == [0, 0, 1, 1] and cell.tolist() == [[4, 4], [4, 8], [4, 4], [4, 20]]


def test_a_frame_full_of_light_ends():
    frame, cell = find_clusters(np.full((1, 11, 11), 255.0), 5)
    apart = np.abs(cell[:, None] - cell).max(-1)[~np.eye(len(cell), dtype=bool)]
    assert len(cell) > 1 and apart.min() >= 4


@pytest.mark.parametrize(
    ("frames", "side", "message"),
    [
        (np.zeros((11, 11)), 5, "frames must be an array .n, rows, columns."),
        (np.full((1, 11, 11), np.nan), 5, "finite"),
        (np.zeros((1, 11, 11)), 4, "odd number"),
        (np.zeros((1, 11, 11)), 5.0, "odd number"),
    ],
)
def test_wrong_frames_and_sides_are_refused(frames, side, message):
    with pytest.raises(ValueError, match=message):
        find_clusters(frames, side)
