"""Evaluation while a page is made, and whether it agrees with the stored scores."""
from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csist.datasets import Frames, csist100k, frames_hash
from csist.evaluation import DETECTION_THRESHOLD, detect, predict
from csist.imaging import SubpixelGrid
from csist.metrics import cso_map
from csist.networks.registry import read_weights
from csist.reporting.layout import MISSING, Table, percent, signed
from csist.reporting.selection import Entry, entries
from csist.reporting.sources import load_result, reproduce_folder, weights_file
from csist.scenes import Targets
from csist.solvers.ista import PAPER, unmix_ista

FEW_FRAMES = 200  # for settings that need thousands of iterations a frame
PIECE = 250  # frames between two movements of the progress bar
SIGMAS = 4.0  # a re-evaluation may differ from the stored score by so many standard errors: false alarms once in 16,000 rows
ROUNDING = 0.0005  # CSO-mAP that another device's or thread count's rounding may move (0.05 in the tables)


class Live(NamedTuple):
    """A row evaluated now, on the first frames of the test split."""

    estimate: Targets
    frames: int
    cso_map: float


def solve_in_pieces(solve, frames: np.ndarray, bar=None) -> np.ndarray:
    """``solve(frames)`` in pieces of a few hundred frames, moving a progress bar; sub-pixel images (n, 11c, 11c)."""
    images = []
    for start in range(0, len(frames), PIECE):
        piece = frames[start : start + PIECE]
        images.append(solve(piece))
        if bar is not None:
            bar.update(len(piece))
    return np.concatenate(images)


def progress_bar(total: int, what: str):
    """A bar that also moves inside a notebook; it writes to standard output, since text on standard error fails the book's build."""
    from tqdm import tqdm

    options = {"file": sys.stdout, "disable": False} if "ipykernel" in sys.modules else {"disable": None}  # None: quiet unless on a terminal
    return tqdm(total=total, desc=what, unit="frame", leave=False, mininterval=1, **options)


def clear_progress() -> None:
    """Remove the bar from a notebook's output, so that two runs of a page store the same bytes."""
    if "ipykernel" in sys.modules:
        from IPython.display import clear_output

        clear_output()


def evaluate_live(parameters, folder: Path | None = None, data: Frames | None = None, work: list[Entry] | None = None) -> dict[str, Live]:
    """Unmix the first test frames with every row that can be computed now: committed weights, and ISTA.

    Parameters
    ----------
    parameters : namespace
        Of :func:`check_parameters`: ``n_test``, ``device``, and without ``work`` also ``methods``, ``ratio``, ``seed``.
    folder : path, optional
        Holds ``weights``; by default the repository's ``reproduce``.
    data : Frames, optional
        By default the first ``n_test`` frames of the test split.
    work : list of Entry, optional
        The rows; by default those of the methods. Rows that show the same run share its answer.

    Returns
    -------
    dict
        By the row's key. Rows without weights are left out; the paper's ISTA setting gets at most a tenth of the frames, and at most 200.
    """
    folder = folder or reproduce_folder()
    data = data or csist100k("test", parameters.n_test)
    work = entries(parameters.methods, parameters.ratio, parameters.seed, folder) if work is None else work
    work = [entry for entry in work if entry.settings or weights_file(entry.result, folder)]
    once = {entry.result: entry for entry in work}
    bar = progress_bar(sum(_live_frames(entry, len(data.frames)) for entry in once.values()), "unmixing")
    answers = {result: _unmix(entry, data, parameters.device, folder, bar) for result, entry in once.items()}
    bar.close()
    clear_progress()
    return {entry.key: answers[entry.result] for entry in work}


def _unmix(entry: Entry, data: Frames, device: str, folder: Path, bar) -> Live:
    frames = _live_frames(entry, len(data.frames))
    solve, threshold = _solver(entry, device, folder)
    estimate = detect(solve_in_pieces(solve, data.frames[:frames], bar), SubpixelGrid(ratio=entry.ratio), threshold)
    return Live(estimate, frames, cso_map(estimate, data.targets[:frames]).map)


def _live_frames(entry: Entry, frames: int) -> int:
    return min(FEW_FRAMES, max(8, frames // 10), frames) if entry.settings is PAPER else frames


def _solver(entry: Entry, device: str, folder: Path):
    """A function from frames to sub-pixel images, and the detection threshold that belongs to it."""
    if entry.settings:
        return functools.partial(unmix_ista, ratio=entry.ratio, settings=entry.settings), entry.settings.threshold
    network, _ = read_weights(weights_file(entry.result, folder))
    return functools.partial(predict, network, device=device), DETECTION_THRESHOLD


def verify_result(name: str, folder: Path | None = None) -> None:
    """Check that a result file speaks of these test frames and these weights.

    Raises
    ------
    ValueError
        If the regenerated test frames have another fingerprint, or the weights file is another one than the result was made with.
    """
    from hashlib import sha256

    result, path = load_result(name, folder), weights_file(name, folder)
    found = _test_frames_hash(result["test"]["frames"])
    if result["test"]["frames_sha256"] != found:
        raise ValueError(f"{name}: its scores belong to other test frames ({result['test']['frames_sha256'][:12]}... against {found[:12]}...); score it again")
    if path is None:
        return
    stored = result.get("weights_sha256")
    if stored is not None and stored != sha256(path.read_bytes()).hexdigest():
        raise ValueError(f"{path} is not the file that results/{name}.json was scored with; restore it, or train the run again")
    run = read_weights(path)[1].get("run")
    if run != result["run"]["name"]:
        raise ValueError(f"{path} holds the weights of the run {run!r}, not of {result['run']['name']!r}; restore it, or train the run again")


@functools.lru_cache(maxsize=8)
def _test_frames_hash(size: int) -> str:
    return frames_hash(csist100k("test", size))


def live_tolerance(row: dict, frames: int) -> float:
    r"""How far a score of the first n of N frames may lie from that of all N: :math:`4\,\sigma_N\sqrt{N/n - 1}`, plus rounding.

    The variance of the part is :math:`\sigma_N^2 N/n`, its covariance with the whole :math:`\sigma_N^2`.
    """
    return SIGMAS * row["ours_standard_error"] * math.sqrt(max(row["ours_frames"] / frames - 1, 0.0)) + ROUNDING


def check_live(rows, live: dict[str, Live], folder: Path | None = None) -> Table:
    """Compare the rows evaluated now with the stored results; a table with the outcome of each row that has either.

    Raises
    ------
    ValueError
        If a result file belongs to other frames or other weights (:func:`verify_result`).
    """
    there = [row for row in rows if row["result"] or row["ours_cso_map"] is not None or row["key"] in live] or rows  # what is not there needs no check
    cells = [[row["label"], *_live_cells(row, live.get(row["key"]), folder)] for row in there]
    names = ["frames now", "CSO-mAP now", "stored", "difference", "allowed", "outcome"]
    return Table("CSO-mAP × 100 computed while this page was made, beside the stored score.", [("", name) for name in ["method", *names]], cells)


def _live_cells(row: dict, now: Live | None, folder: Path | None) -> list[str]:
    if row["result"]:
        verify_result(row["result"], folder)
    stored = percent(row["ours_cso_map"])
    if now is None:
        outcome = row["status"] if row["status"] != "scored" else "no weights here to evaluate"
        return [MISSING, MISSING, stored, MISSING, MISSING, outcome]
    if row["ours_cso_map"] is None:
        return [f"{now.frames:,}", percent(now.cso_map), stored, MISSING, MISSING, "no stored score to compare with"]
    gap, allowed = now.cso_map - row["ours_cso_map"], live_tolerance(row, now.frames)
    outcome = "agrees" if abs(gap) <= allowed else "DISAGREES"
    return [f"{now.frames:,}", percent(now.cso_map), stored, signed(100 * gap), percent(allowed), outcome]
