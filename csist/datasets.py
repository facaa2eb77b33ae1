"""Data sets: CSIST-100K rebuilt from its recipe, cached on disk; the original folder layout read and written."""
from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csist.imaging import FocalPlane, check_plane
from csist.scenes import Targets, random_targets

SPLITS = {"train": 80_000, "val": 10_000, "test": 10_000}
DEFAULT_SEED = 2025
BLOCK = 1_000  # frames that share one random stream: a smaller data set is a prefix of a larger one
RECIPE_VERSION = 1  # raise it when the way a seed becomes data changes


class Frames(NamedTuple):
    """Frames and what is in them."""

    frames: np.ndarray
    targets: Targets


def csist100k(
    split: str = "test", size: int | None = None, seed: int = DEFAULT_SEED, *, plane: FocalPlane | None = None, cluster_shift=0.0, cache: bool = True
) -> Frames:
    """CSIST-100K regenerated: 11 x 11 frames of 1 to 5 targets inside one pixel (paper, section 4.1; book chapter "CSIST-100K rebuilt").

    The data are a pure function of the arguments. Each block of 1,000 frames has its own random stream, derived from (seed, split, block), so splits
    never share a stream and the first frames of a split do not depend on ``size``.

    Parameters
    ----------
    split : {"train", "val", "test"}
        80,000, 10,000 and 10,000 frames.
    size : int, optional
        Number of frames; any number, more than the split's own gives more of the same law.
    seed : int
        Seed of the whole data set.
    plane : FocalPlane, optional
        Optics and sensor; by default sigma = 0.5 px, 8 bits, clipped at 255, no read noise.
    cluster_shift : float
        Displacement of the cluster's unit square from the pixel's centre [px]; the paper's figures suggest about -0.07 (same chapter, "How faithful
        is it?").
    cache : bool
        Keep the arrays under ``$CSIST_CACHE`` (default ``~/.cache/csist``), keyed by the recipe's hash and verified when read.

    Returns
    -------
    Frames
        Named tuple ``frames`` (n, 11, 11) uint8 and ``targets``.

    >>> csist100k("test", size=4).frames.shape
    (4, 11, 11)
    """
    if split not in SPLITS:
        raise ValueError(f"csist100k: split must be one of {', '.join(SPLITS)}; got {split!r}")
    size = SPLITS[split] if size is None else size
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"csist100k: size must be a whole number >= 1, or None for the split's {SPLITS[split]:,}; got {size!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"csist100k: seed must be a whole number >= 0; got {seed!r}")
    plane = check_plane(plane)
    recipe = data_recipe(split, int(size), int(seed), plane, cluster_shift)
    if not cache:
        return _generate(recipe, plane)
    path = cache_folder() / f"csist100k-{split}-{recipe_hash(recipe)}.npz"
    return _read_cache(path, recipe) or _write_cache(path, recipe, _generate(recipe, plane))


def data_recipe(split: str, size: int, seed: int, plane: FocalPlane, cluster_shift=0.0) -> dict:
    """Everything that determines a regenerated data set, as plain JSON values."""
    return {
        "name": "CSIST-100K regenerated",
        "version": RECIPE_VERSION,
        "split": split,
        "size": size,
        "seed": seed,
        "shape": list(plane.shape),
        "sigma": float(plane.sigma),
        "bits": plane.bits,
        "clip": plane.clip,
        "read_noise": float(plane.read_noise),
        "cluster_shift": np.asarray(cluster_shift, dtype=float).tolist(),
    }


def recipe_hash(recipe: dict) -> str:
    """Short SHA-256 of a recipe's canonical JSON."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def frames_hash(data: Frames) -> str:
    """SHA-256 of the frames' bytes, the fingerprint that a result file quotes."""
    return hashlib.sha256(np.ascontiguousarray(data.frames).tobytes()).hexdigest()


def cache_folder() -> Path:
    """Where regenerated data are kept: ``$CSIST_CACHE``, else ``~/.cache/csist``."""
    return Path(os.environ.get("CSIST_CACHE") or Path.home() / ".cache" / "csist")


def _generate(recipe: dict, plane: FocalPlane) -> Frames:
    size, stream = recipe["size"], list(SPLITS).index(recipe["split"])
    blocks = []
    for block in range(-(-size // BLOCK)):
        rng = np.random.default_rng(np.random.SeedSequence(recipe["seed"], spawn_key=(stream, block)))
        try:
            targets = random_targets(BLOCK, rng, count=(1, 5), min_distance=0.52 * plane.rayleigh, cluster_shift=recipe["cluster_shift"], shape=plane.shape)
        except ValueError as error:
            raise ValueError(
                f"csist100k: with sigma = {plane.sigma:g} px the smallest distance, 0.52 R, is {0.52 * plane.rayleigh:.3f} px, and clusters of five targets "
                f"were not found within a pixel ({error}); use sigma <= 0.6 px, or random_targets with a min_distance of your own"
            ) from error
        blocks.append((plane.render(targets, rng), targets))
    frames = np.concatenate([f for f, _ in blocks])[:size]
    xy, intensity, count = (np.concatenate([getattr(t, name) for _, t in blocks])[:size] for name in ("xy", "intensity", "count"))
    return Frames(frames, Targets(xy, intensity, count))


def _digest(arrays: dict) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(name.encode() + str(arrays[name].dtype).encode() + str(arrays[name].shape).encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()


def _read_cache(path: Path, recipe: dict) -> Frames | None:
    """The cached arrays if the file is whole and of this recipe; None (with a warning if it is damaged) otherwise."""
    if not os.path.exists(path):  # unlike Path.exists, False for a folder that may not be searched
        return None
    try:
        # Opened here, because numpy leaves the file open when it is cut short, and Windows cannot replace an open file.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(str(arrays.pop("header")))
        if header["recipe"] != recipe or header["sha256"] != _digest(arrays):
            raise ValueError("its content does not match its checksum")
    except Exception as error:  # zipfile, zlib, json, key and value errors all mean the same: not our bytes any more
        warnings.warn(f"cached data {path} are damaged ({error}); generating them again", stacklevel=3)
        return None
    return Frames(arrays["frames"], Targets(arrays["xy"], arrays["intensity"], arrays["count"]))


def _write_cache(path: Path, recipe: dict, data: Frames) -> Frames:
    """Write under a temporary name, then rename; a folder that cannot be written only costs the cache."""
    arrays = {"frames": data.frames, "xy": data.targets.xy, "intensity": data.targets.intensity, "count": data.targets.count}
    header = json.dumps({"recipe": recipe, "sha256": _digest(arrays)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, header=np.array(header), **arrays)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    except OSError as error:
        warnings.warn(f"could not cache the data in {path.parent} ({error}); set CSIST_CACHE to a folder that can be written", stacklevel=3)
    return data
