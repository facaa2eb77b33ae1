"""Making the results again: scoring ISTA, and at scale "paper" training every row of a page."""
from __future__ import annotations

import functools
import time
from dataclasses import asdict
from pathlib import Path

from csist.datasets import csist100k, frames_hash
from csist.evaluation import detect, provenance
from csist.imaging import SubpixelGrid
from csist.metrics import psnr_ssim, score_report
from csist.reporting.live import clear_progress, progress_bar, solve_in_pieces
from csist.reporting.selection import Entry, entries
from csist.reporting.sources import load_result, load_runs, reproduce_folder, run_family, write_text
from csist.solvers.ista import IstaSettings, unmix_ista
from csist.training import Run, train, write_json


def score_ista(settings: IstaSettings, ratio: int = 3, size: int | None = None, resamples: int = 200) -> dict:
    """The ``test`` block of a result file for ISTA: scores on the test split, laid out like those of :func:`csist.training.score_weights`."""
    data, grid = csist100k("test", size), SubpixelGrid(ratio=ratio)
    bar = progress_bar(len(data.frames), "ISTA")
    images = solve_in_pieces(functools.partial(unmix_ista, ratio=ratio, settings=settings), data.frames, bar)
    bar.close()
    report = score_report(detect(images, grid, settings.threshold), data.targets, resamples=resamples, seed=0)
    psnr, ssim = psnr_ssim(images, grid.image(data.targets))
    return {"frames": len(data.frames), "frames_sha256": frames_hash(data), "psnr": psnr, "ssim": ssim, **report}


def write_ista_result(name: str, settings: IstaSettings, folder, ratio: int = 3, size: int | None = None) -> dict:
    """Score ISTA and write ``<folder>/<name>.json``; returns its content."""
    started = time.perf_counter()
    test = score_ista(settings, ratio, size)
    hours = (time.perf_counter() - started) / 3600
    result = {"name": name, "method": "ista", "ratio": ratio, "settings": asdict(settings), "hours": hours, "test": test, "provenance": provenance()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / f"{name}.json", result)
    return result


def runs_of(work: list[Entry]) -> list[Run]:
    """The runs of ``reproduce/runs.yaml`` that train some rows, with all their seeds.

    >>> [run.name for run in runs_of(entries(["ista-net"]))][0]
    'ista-net-c3-seed0'
    """
    families = {run_family(entry.result) for entry in work}
    return [run for run in load_runs() if run_family(run.name) in families]


def source_folder(parameters, runs: list[Run] | None = None, work: list[Entry] | None = None) -> Path:
    """Where a page takes its results from: the repository's, or at scale "paper" ``output_dir``, after training and scoring everything there.

    Finished runs are kept, begun ones go on from their checkpoints.

    Parameters
    ----------
    parameters : namespace
        Of :func:`check_parameters`.
    runs : list of Run, optional
        What to train; by default the runs of runs.yaml, all seeds, that the rows show.
    work : list of Entry, optional
        The page's rows; by default those of its methods at its ratio, with all recipes.

    Raises
    ------
    KeyboardInterrupt
        If training was interrupted; the next call goes on from its checkpoint.
    """
    if parameters.scale != "paper":
        return reproduce_folder()
    folder = parameters.output_dir
    work = entries(parameters.methods, parameters.ratio, parameters.seed, folder, planned=True) if work is None else work
    for run in runs_of(work) if runs is None else runs:
        if load_result(run.name, folder) is None:
            print(f"training {run.name}", flush=True)
            train(run, folder / "checkpoints", device=parameters.device)
    for entry in work:
        if entry.settings and load_result(entry.result, folder) is None:
            write_ista_result(entry.result, entry.settings, folder / "results", entry.ratio, parameters.n_test)
    tuning = reproduce_folder() / "results" / "ista-tuning.json"
    if tuning.is_file():  # the record of a choice that was made once, on validation frames; it is no result of this run
        write_text(folder / "results" / tuning.name, tuning.read_text())
    clear_progress()
    return folder
