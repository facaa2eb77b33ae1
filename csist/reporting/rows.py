"""Rows of the results pages: what the paper prints (``paper_*``) beside what was measured here (``ours_*``).

The two never mix: a method without a result file has no ``ours_*`` score, whatever the paper says about it.
"""
from __future__ import annotations

import collections
import functools
import json
import statistics
from pathlib import Path

import torch

from csist.datasets import csist100k
from csist.imaging import check_ratio
from csist.networks import create_network
from csist.networks.registry import NETWORKS
from csist.reporting.selection import AXES, Entry, ablation_entries, entries, hyperparameter_entries, open_question_entries
from csist.reporting.sources import AP_NAMES, load_result, seed_results

GPU_NAMES = ("NVIDIA", "GeForce", "Tesla", "Quadro", "Instinct", "Radeon")  # how the names begin that torch.cuda.get_device_name gives
PRECISIONS = {"bf16": "bfloat16", "no": "float32"}  # of the convolutions while training, as the queue calls them


def make_rows(work: list[Entry], folder: Path | None = None) -> list[dict]:
    """Rows as plain JSON values, one for each entry.

    Parameters
    ----------
    work : list of Entry
        For example of :func:`csist.reporting.entries`.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.

    Returns
    -------
    list of dict
        Keys ``paper_*`` in the paper's units (scores in per cent, parameters in millions, costs in G), keys ``ours_*`` as fractions, dB and plain
        numbers; None where there is nothing to say. ``status`` is "scored", "not trained yet", "not scored yet" or "not implemented yet".

    Raises
    ------
    ValueError
        If a result file was made by a network with other options than its row says.
    """
    return [_row(entry, folder) for entry in work]


def table1_rows(ratio: int = 3, methods=("ista", "ista-net", "ista-net+", "dista-net"), *, seed: int = 0, folder: Path | None = None) -> list[dict]:
    """Rows of the main comparison as plain JSON values.

    Parameters
    ----------
    ratio : int
        Sub-pixel ratio c.
    methods : sequence of str
        Names as in :func:`known_methods`, or one such name.
    seed : int
        Training seed whose scores are shown; all seeds that have results give the mean and the spread.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.

    Returns
    -------
    list of dict
        See :func:`make_rows`.

    Raises
    ------
    ValueError
        For an unknown method (with the nearest known one) or an even ratio.
    """
    return make_rows(entries(methods, check_ratio(ratio), seed, folder), folder)


def ablation_rows(seed: int = 0, folder: Path | None = None) -> list[dict]:
    """Rows of the paper's Table 2 and of what it leaves open; ``ours_with_gradient`` counts the parameters that the training loss reaches."""
    work = ablation_entries(seed) + open_question_entries(seed)
    reached = [parameters_with_gradient(entry.method, entry.ratio, **entry.options) if entry.implemented else None for entry in work]
    return [row | {"ours_with_gradient": number} for row, number in zip(make_rows(work, folder), reached)]


def hyperparameter_rows(seed: int = 0, folder: Path | None = None) -> list[dict]:
    """Rows of the paper's Figure 7: those of :func:`make_rows`, which say in ``axis`` and ``value`` where they stand."""
    rows = []
    for axis in AXES.values():
        work = hyperparameter_entries(axis, seed)
        rows += [row | {"axis": axis, "value": entry.printed["value"]} for row, entry in zip(make_rows(work, folder), work)]
    return rows


def _row(entry: Entry, folder: Path | None) -> dict:
    result = load_result(entry.result, folder)
    _check_options(entry, result)
    return {
        "key": entry.key,
        "method": entry.method,
        "label": entry.label,
        "ratio": entry.ratio,
        "options": json.dumps(entry.options) if entry.options else None,
        "status": _status(entry, result),
        "result": entry.result if result else None,
        **_paper_columns(entry.printed),
        **_score_columns(result["test"] if result else None),
        **_cost_columns(entry),
        **_seed_columns(entry, folder),
        **_training_columns(result),
    }


def _check_options(entry: Entry, result: dict | None) -> None:
    found = ((result or {}).get("run") or {}).get("options", entry.options)
    if found != entry.options:
        raise ValueError(f"results/{entry.result}.json was made with the options {found}, but its row is for {entry.options}; train the run again")


def _status(entry: Entry, result: dict | None) -> str:
    if result:
        return "scored"
    if not entry.implemented:
        return "not implemented yet"
    return "not trained yet" if entry.method in NETWORKS else "not scored yet"


def _paper_columns(printed: dict) -> dict:
    names = {
        **{name: name for name in ("cso_map", *AP_NAMES)},
        "psnr": "psnr_arxiv",
        "ssim": "ssim_arxiv",
        "psnr_later": "psnr_repo",
        "ssim_later": "ssim_repo",
        "parameters_m": "params_m",
        "macs_g_batch64": "macs_g_batch64",
        "note": "note",
    }
    return {f"paper_{name}": printed.get(column) for name, column in names.items()}


def _score_columns(test: dict | None) -> dict:
    test = test or {}
    low, high = test.get("interval") or (None, None)
    parts = {**{f"{n}_targets": (test.get("by_count") or {}).get(str(n)) for n in range(1, 6)}, "interior": test.get("interior"), "border": test.get("border")}
    return {
        "ours_cso_map": test.get("cso_map"),
        "ours_low": low,
        "ours_high": high,
        "ours_standard_error": test.get("standard_error"),
        **{f"ours_{name}": ap for name, ap in zip(AP_NAMES, test.get("ap") or [None] * 5)},
        "ours_count_accuracy": test.get("count_accuracy"),
        "ours_psnr": test.get("psnr"),
        "ours_ssim": test.get("ssim"),
        "ours_frames": test.get("frames"),
        "ours_frames_sha256": test.get("frames_sha256"),
        **{f"ours_{part}_{score}": (scores or {}).get(score) for part, scores in parts.items() for score in ("cso_map", "count_accuracy")},
    }


@functools.lru_cache(maxsize=64)
def network_cost(method: str, ratio: int, **options) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates of one frame, and those of 64 frames counted as the paper does.

    >>> network_cost("dista-net", 3, dynamic_transform=False)[0]
    490986
    """
    from csist.networks.cost import multiply_accumulates, parameter_count

    network = create_network(method, ratio=ratio, start=False, **options)
    macs = multiply_accumulates(network)
    return parameter_count(network), macs["per_frame"], macs["paper_batch64"]


@functools.lru_cache(maxsize=16)
def parameters_with_gradient(method: str, ratio: int, **options) -> int:
    """How many of a network's parameters the training loss reaches, found by asking for the gradient on one frame.

    >>> parameters_with_gradient("dista-net", 3, variant="released")
    490986
    """
    network = create_network(method, ratio=ratio, start=False, **options)
    frame = torch.from_numpy(csist100k("val", 1).frames).float()
    sum(network.loss(frame, torch.zeros(1, 11 * ratio, 11 * ratio)).values()).backward()
    return sum(parameter.numel() for parameter in network.parameters() if parameter.grad is not None)


def _cost_columns(entry: Entry) -> dict:
    cost = network_cost(entry.method, entry.ratio, **entry.options) if entry.method in NETWORKS and entry.implemented else (None, None, None)
    return dict(zip(("ours_parameters", "ours_macs_per_frame", "ours_macs_batch64"), cost))


def _seed_columns(entry: Entry, folder: Path | None) -> dict:
    """Mean and standard deviation over training seeds; a method without training has none."""
    results = [load_result(name, folder) for name in seed_results(entry.result, folder)]
    scores, precisions = [result["test"]["cso_map"] for result in results], collections.Counter(result.get("precision") for result in results)
    shares = ", ".join(f"{count} in {PRECISIONS.get(precision, precision)}" for precision, count in precisions.items())
    return {
        "ours_seeds": len(scores) or None,
        "ours_seeds_mean": statistics.mean(scores) if scores else None,
        "ours_seeds_sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "ours_seeds_precisions": shares if len(precisions) > 1 else None,
    }


def _training_columns(result: dict | None) -> dict:
    """What a row was made with; None throughout without a result file."""
    result = result or {}
    run, origin = result.get("run") or {}, result.get("provenance") or {}
    phases = run.get("phases") or []
    shown = {"samples": sum(phase["samples"] for phase in phases), "views": ", then ".join(f"{phase['samples']:,} {phase['view']}" for phase in phases)}
    return {
        "ours_settings": json.dumps(result["settings"]) if "settings" in result else None,
        "ours_samples": shown["samples"] or None,
        "ours_views": shown["views"] or None,
        "ours_recipe": recipe_text(run, result.get("precision")) if phases else None,
        "ours_hours": result.get("hours"),
        "ours_processor_hours": None if on_gpu(origin.get("device")) else result.get("cpu_hours"),
        "ours_device": origin.get("device"),
        "ours_seed": run.get("seed"),
        "ours_commit": origin.get("commit"),
        "ours_date": origin.get("date"),
    }


def on_gpu(device: str | None) -> bool:
    """Whether a result's ``device`` is a GPU, to go by its name; the hours of a processor that only feeds one say nothing.

    >>> on_gpu("NVIDIA H100 80GB HBM3"), on_gpu("AMD EPYC"), on_gpu("AMD Instinct MI300X"), on_gpu(None)
    (True, False, True, False)
    """
    return any(maker in (device or "") for maker in GPU_NAMES)


def recipe_text(run: dict, precision: str | None = None) -> str:
    """How a run, given as in its result file, was trained, apart from how long: rates, batch, what else was done to gradients, samples and weights, precision.

    >>> recipe_text({"phases": [{"schedule": "cosine", "rate": 0.001}], "batch": 64, "clip": 1.0, "symmetries": True})
    'cosine from 0.001, batches of 64, gradients clipped at 1, samples turned and mirrored'
    >>> recipe_text({"phases": [{"schedule": "constant", "rate": 0.0001}], "batch": 64}, "bf16")
    'constant 0.0001, batches of 64, in bfloat16'
    """
    words = {"cosine": "cosine from", "constant": "constant"}
    rates = ", then ".join(f"{words[phase['schedule']]} {phase['rate']:g}" for phase in run["phases"])
    more = {
        f"gradients clipped at {run.get('clip') or 0:g}": run.get("clip"),
        "samples turned and mirrored": run.get("symmetries"),
        "new frames in every epoch": run.get("fresh"),
        f"weights averaged with decay {run.get('average') or 0:g}": run.get("average"),
        f"sub-pixels with a target weigh {run.get('target_weight') or 1:g}": run.get("target_weight", 1) != 1,
        f"in {PRECISIONS.get(precision, precision)}": precision,
    }
    return ", ".join([rates, f"batches of {run['batch']}", *[text for text, applies in more.items() if applies]])
