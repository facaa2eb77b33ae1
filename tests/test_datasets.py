"""CSIST-100K rebuilt: a pure function of its arguments, and a cache that is never believed blindly."""
from __future__ import annotations

import time
import warnings

import numpy as np
import pytest

from csist import datasets
from csist.datasets import BLOCK, DEFAULT_SEED, SPLITS, cache_folder, csist100k, data_recipe, frames_hash, recipe_hash
from csist.imaging import FocalPlane

# Frozen. If this changes, every result and weight in reproduce/ was made from other data: raise RECIPE_VERSION and make them again.
FIRST_TEST_FRAMES = "9c9cf70bf9ae903bb19a1531c0f1bf3a8a6bd30761ee67db0f11fe7677b05cc2"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CSIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(a, b):
    arrays = zip((a.frames, a.targets.xy, a.targets.intensity, a.targets.count), (b.frames, b.targets.xy, b.targets.intensity, b.targets.count))
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") and x.dtype == y.dtype for x, y in arrays)


def only_file(folder):
    (path,) = folder.iterdir()
    return path


# Content


def test_known_fingerprint():
    assert frames_hash(csist100k("test", 1000, cache=False)) == FIRST_TEST_FRAMES


def test_same_arguments_same_data_other_seed_other_data():
    first = csist100k("val", 100, seed=3, cache=False)
    assert same(first, csist100k("val", 100, seed=3, cache=False))
    assert not np.array_equal(first.targets.count, csist100k("val", 100, seed=4, cache=False).targets.count)


def test_frames_are_what_the_focal_plane_renders():
    frames, targets = csist100k("train", 200, cache=False)
    assert frames.shape == (200, 11, 11) and frames.dtype == np.uint8 and len(targets) == 200
    np.testing.assert_array_equal(frames, FocalPlane().render(targets))
    assert (frames == 255).any()  # clipping is part of the recipe


def test_preset_is_that_of_the_paper():
    assert SPLITS == {"train": 80_000, "val": 10_000, "test": 10_000}
    targets = csist100k("test", 1000, cache=False).targets
    assert set(targets.count.tolist()) == {1, 2, 3, 4, 5}
    assert np.nanmin(targets.intensity) >= 220 and np.nanmax(targets.intensity) <= 250


def test_splits_and_blocks_share_no_stream():
    parts = [csist100k(split, 2 * BLOCK, cache=False).targets.intensity.reshape(2, -1) for split in SPLITS]
    values = np.concatenate([part[np.isfinite(part)] for part in parts])
    assert len(np.unique(values)) == len(values)  # float64 draws do not repeat by chance


def test_default_seed_differs_from_its_neighbours():
    values = np.concatenate([csist100k("test", 50, seed=seed, cache=False).targets.intensity.ravel() for seed in (DEFAULT_SEED, DEFAULT_SEED + 1, 0)])
    values = values[np.isfinite(values)]
    assert len(np.unique(values)) == len(values)


@pytest.mark.parametrize("plane", [None, FocalPlane(read_noise=2.0)])
def test_smaller_is_a_prefix_of_larger(plane):
    small, large = (csist100k("test", size, plane=plane, cache=False) for size in (64, 1500))
    np.testing.assert_array_equal(small.frames, large.frames[:64])
    np.testing.assert_array_equal(small.targets.xy, large.targets.xy[:64])
    assert len(large.frames) == 1500


def test_plane_and_cluster_shift_enter():
    plain = csist100k("test", 50, cache=False)
    shifted = csist100k("test", 50, cluster_shift=-0.07, cache=False)
    np.testing.assert_allclose(shifted.targets.xy, plain.targets.xy - 0.07, atol=1e-12)
    unclipped = csist100k("test", 50, plane=FocalPlane(clip=False), cache=False)
    assert unclipped.frames.dtype == np.uint16
    np.testing.assert_array_equal(np.minimum(unclipped.frames, 255), plain.frames)
    assert csist100k("test", 5, plane=FocalPlane(bits=None), cache=False).frames.dtype == np.float64
    assert csist100k("test", 5, plane=FocalPlane(shape=(4, 9)), cache=False).frames.shape == (5, 4, 9)


def test_ten_thousand_frames_take_seconds():
    begin = time.process_time()  # not wall time: the machine may be busy
    csist100k("val", 10_000, cache=False)
    assert time.process_time() - begin < 3


def test_recipe_names_everything_that_matters():
    plane = FocalPlane()
    base = data_recipe("test", 10, 1, plane)
    variants = [
        data_recipe("val", 10, 1, plane),
        data_recipe("test", 11, 1, plane),
        data_recipe("test", 10, 2, plane),
        data_recipe("test", 10, 1, FocalPlane(sigma=0.6)),
        data_recipe("test", 10, 1, FocalPlane(bits=12)),
        data_recipe("test", 10, 1, FocalPlane(bits=None)),
        data_recipe("test", 10, 1, FocalPlane(clip=False)),
        data_recipe("test", 10, 1, FocalPlane(read_noise=1)),
        data_recipe("test", 10, 1, FocalPlane(shape=(12, 11))),
        data_recipe("test", 10, 1, plane, cluster_shift=0.1),
        data_recipe("test", 10, 1, plane, cluster_shift=(0.1, 0.2)),
    ]
    assert len({recipe_hash(recipe) for recipe in [base, *variants]}) == 12
    assert recipe_hash(base) == recipe_hash(data_recipe("test", 10, 1, FocalPlane(bits=np.int64(8))))


# Cache


def test_cache_hit_is_equal_and_needs_no_generation(cache, monkeypatch):
    first = csist100k("test", 20)
    path = only_file(cache)
    assert path.name.startswith("csist100k-test-") and path.suffix == ".npz"
    monkeypatch.setattr(datasets, "_generate", lambda *_: pytest.fail("generated although cached"))
    assert same(csist100k("test", 20), first)
    assert same(csist100k("test", 20, seed=np.int64(DEFAULT_SEED), plane=FocalPlane()), first)


def test_cache_false_leaves_no_file(cache):
    csist100k("test", 20, cache=False)
    assert not cache.exists()


def test_cache_keeps_recipes_apart(cache):
    csist100k("test", 20), csist100k("test", 21), csist100k("val", 20), csist100k("test", 20, cluster_shift=(0.0, 0.1))
    assert len(list(cache.iterdir())) == 4


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def empty(path):
    path.write_bytes(b"")


def other_recipe(path):
    csist100k("test", 21)
    (other,) = set(path.parent.iterdir()) - {path}
    other.rename(path)


def not_an_archive(path):
    path.write_bytes(b"hello" * 100)


def pickled(path):
    with path.open("wb") as file:
        np.savez(file, header=np.array({"any": "object"}, dtype=object))


def no_header(path):
    with path.open("wb") as file:
        np.savez(file, frames=np.zeros(3))


@pytest.mark.parametrize("damage", [flip, truncate, empty, other_recipe, not_an_archive, pickled, no_header])
def test_damaged_cache_is_noticed_and_rebuilt(cache, damage):
    first = csist100k("test", 20)
    path = only_file(cache)
    damage(path)
    with pytest.warns(UserWarning, match=f"{path.name}.* damaged .*generating them again"):
        assert same(csist100k("test", 20), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(csist100k("test", 20), first)
    assert only_file(cache) == path


def test_every_flipped_byte_is_noticed_or_harmless(cache):
    first = csist100k("test", 3)
    recipe, path = data_recipe("test", 3, DEFAULT_SEED, FocalPlane()), only_file(cache)
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = datasets._read_cache(path, recipe)
        assert stored is None or same(stored, first)


def test_unwritable_cache_only_warns(tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("a file where the folder should be")
    monkeypatch.setenv("CSIST_CACHE", str(blocker))
    with pytest.warns(UserWarning, match="set CSIST_CACHE to a folder that can be written"):
        data = csist100k("test", 20)
    assert same(data, csist100k("test", 20, cache=False))


def test_forbidden_cache_only_warns(cache, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(datasets.tempfile, "mkstemp", refuse)
    with pytest.warns(UserWarning, match="Permission denied.*set CSIST_CACHE"):
        csist100k("test", 20)


def test_full_disk_leaves_no_part_behind(cache, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.np, "savez", fail)
    with pytest.warns(UserWarning, match="No space left"):
        csist100k("test", 20)
    assert list(cache.iterdir()) == []


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CSIST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("CSIST_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "csist")


# Errors


@pytest.mark.parametrize("split", ["Test", "training", "", None, 0])
def test_unknown_splits_are_refused(split):
    with pytest.raises(ValueError, match="one of train, val, test"):
        csist100k(split, 10)


@pytest.mark.parametrize("size", [0, -1, 1.5, 10.0, "10", True])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match="size must be a whole number >= 1"):
        csist100k("test", size)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed must be a whole number >= 0"):
        csist100k("test", 10, seed=seed)
