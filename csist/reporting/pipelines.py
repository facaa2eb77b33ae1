"""The page on unmixers that a detector follows: its rows, sentences, pictures, and the evaluation while the page is made."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from csist import reporting
from csist.datasets import csist100k, frames_hash
from csist.evaluation import predict
from csist.metrics import DISTANCE_THRESHOLDS, cso_map, match_pairs
from csist.networks.detector import read_detector
from csist.networks.registry import read_weights, run_name
from csist.pipeline import DetectorRecipe, Pipeline, detector_name, file_hash, network_weights, train_detector
from csist.scenes import Targets


def pipeline_entries(methods, seed: int = 0) -> list[reporting.Entry]:
    """Three rows for each network: its images read out as in Table 1, and by a detector that leaves the grid or stays on it.

    >>> [entry.result for entry in pipeline_entries(["dista-net"])]
    ['dista-net-c3-seed0', 'dista-net-detector-c3-seed0', 'dista-net-detector-grid-c3-seed0']
    """
    printed = {line["pipeline"].split(" + ")[0]: line for line in reporting.load_paper_table("sr_plus_detector_c3.csv")}
    labels, work = {name.lower(): name for name in printed}, []
    for method in methods:
        label = labels.get(method, reporting.method_label(method))
        work += [
            reporting.Entry(method, method, f"{label}, brightness", run_name(method, 3, seed), printed=reporting.paper_values(3).get(method, {})),
            reporting.Entry(f"{method}-detector", method, f"{label} + detector", detector_name(method, True, seed), printed=printed.get(label, {})),
            reporting.Entry(f"{method}-detector-grid", method, f"{label} + detector on the grid", detector_name(method, False, seed)),
        ]
    return work


def is_detector(key: str) -> bool:
    """True for the rows that a detector reads."""
    return key.endswith(("-detector", "-detector-grid"))


def pipeline_rows(work: list[reporting.Entry], folder: Path | None = None) -> list[dict]:
    """Rows of :func:`csist.reporting.make_rows`, with how the answers look (``ours_detections`` per target, ``ours_median`` [px]) and the detector's size."""
    rows = []
    for row in reporting.make_rows(work, folder):
        result = reporting.load_result(row["result"], folder) if row["result"] else None
        test = (result or {}).get("test")
        row["ours_detections"] = test["detections"] / test["targets"] if test else None
        row["ours_median"] = test["localisation"]["median"] if test else None
        row["ours_detector_parameters"] = result["parameters"] if result and is_detector(row["key"]) else None
        row["ours_samples"] = result["recipe"]["samples"] if result and is_detector(row["key"]) else row["ours_samples"]
        rows.append(row)
    return rows


def answers_table(rows) -> reporting.Table:
    """How many detections a target gets, how far they lie, and what the detector cost."""
    value = lambda name, show=reporting.number, **options: lambda row: show(row[name], **options)
    columns = [
        reporting.Column("ours", "detections per target", value("ours_detections")),
        reporting.Column("ours", "count right [%]", value("ours_count_accuracy", reporting.percent, digits=1)),
        reporting.Column("ours", "median distance [px]", value("ours_median", digits=3)),
        reporting.Column("ours", "detector's parameters", value("ours_detector_parameters", digits=0)),
        reporting.Column("ours", "samples shown", value("ours_samples", digits=0)),
        reporting.Column("ours", "hours", reporting.hours_text),
    ]
    caption = "What the answers look like on the test split, and what training the row's own part took (network or detector)."
    return reporting.make_table(rows, columns, f"{caption} {reporting.HOURS}")


def explain(row: dict, rows) -> str:
    """What separates a row from the paper's number and from the same network's images read by their brightness, as Markdown."""
    if row["status"] != "scored" or not is_detector(row["key"]):
        return reporting.discrepancy(row)
    ours = f"{reporting.percent(row['ours_cso_map'])} ({reporting.percent(row['ours_low'])} to {reporting.percent(row['ours_high'])})"
    plain = next(other for other in rows if other["key"] == row["method"])
    return " ".join([f"**{row['label']}**: ours is {ours}{_beside_paper(row)}.", *_gain(row, plain)])


def _beside_paper(row: dict) -> str:
    gap = reporting.difference(row)
    if gap is None:
        return "; the paper prints no such row"
    return f", {abs(gap):.2f} {'above' if gap > 0 else 'below'} the paper's {reporting.number(row['paper_cso_map'])}, whose detector and frames are others"


def _gain(row: dict, plain: dict) -> list[str]:
    if plain["status"] != "scored":
        return []
    ours = 100 * (row["ours_cso_map"] - plain["ours_cso_map"])
    counts = f"{plain['ours_detections']:.2f} detections per target by brightness, {row['ours_detections']:.2f} here"
    bright = reporting.percent(plain["ours_cso_map"])
    sentences = [f"The network's images of whole frames, read by their brightness, give {bright}: the detector adds {_points(ours)} ({counts})."]
    if row["paper_cso_map"] is not None and plain["paper_cso_map"] is not None:
        sentences.append(f"In the paper the detector adds {_points(row['paper_cso_map'] - plain['paper_cso_map'])}.")
    return sentences


def _points(gain: float) -> str:
    return f"{gain:+.2f} points".replace("-", "−")


def pipeline_folder(parameters, work: list[reporting.Entry]) -> Path:
    """Where the page takes its results from: the repository, or at scale "paper" ``output_dir``, after training networks and detectors there."""
    folder = reporting.source_folder(parameters, work=[entry for entry in work if not is_detector(entry.key)])
    if parameters.scale != "paper":
        return folder
    for entry in work:
        trainable = reporting.weights_file(run_name(entry.method, 3, parameters.seed), folder) is not None
        if is_detector(entry.key) and trainable and reporting.load_result(entry.result, folder) is None:
            recipe = DetectorRecipe(offsets=not entry.key.endswith("-grid"), seed=parameters.seed)
            train_detector(entry.method, folder, recipe, device=parameters.device)
    reporting.clear_progress()
    return folder


def evaluate_pipelines(parameters, work: list[reporting.Entry], folder: Path) -> dict[str, reporting.Live]:
    """Unmix and detect in the first ``n_test`` test frames with every detector that has weights; by the row's key."""
    data, answers = csist100k("test", parameters.n_test), {}
    work = [entry for entry in work if is_detector(entry.key) and reporting.weights_file(entry.result, folder)]
    for method in dict.fromkeys(entry.method for entry in work):
        unmixer = read_weights(network_weights(method, folder, parameters.seed))[0]
        images = predict(unmixer, data.frames, windows=True, device=parameters.device)  # the detectors of one network share them
        for entry in (entry for entry in work if entry.method == method):
            pipeline = Pipeline(unmixer, read_detector(reporting.weights_file(entry.result, folder))[0])
            estimate = pipeline.read(images, data.frames, device=parameters.device)
            answers[entry.key] = reporting.Live(estimate, len(data.frames), cso_map(estimate, data.targets).map)
    return answers


def verify_pipeline(name: str, folder: Path) -> None:
    """Check that a detector's result speaks of these test frames, these weights and this network.

    Raises
    ------
    ValueError
        Otherwise; the message says which of them is another one.
    """
    result = reporting.load_result(name, folder)
    if result["test"]["frames_sha256"] != frames_hash(csist100k("test", result["test"]["frames"])):
        raise ValueError(f"{name}: its scores belong to other test frames; train it again")
    for run, key in ((name, "weights_sha256"), (run_name(result["network"], result["ratio"], result["recipe"]["seed"]), "network_weights_sha256")):
        path = reporting.weights_file(run, folder)
        if path is not None and file_hash(path) != result[key]:
            raise ValueError(f"{path} is not the file that results/{name}.json was scored with; restore it, or train the detector again")


def check_pipelines(rows, live: dict[str, reporting.Live], folder: Path) -> reporting.Table:
    """Compare what was computed now with the stored results (:func:`csist.reporting.check_live`), after :func:`verify_pipeline`."""
    detectors = [row for row in rows if is_detector(row["key"])]
    for row in detectors:
        if row["result"]:
            verify_pipeline(row["result"], folder)
    return reporting.check_live([row | {"result": None} for row in detectors], live, folder)  # None: verified already


def plot_distances(rows, live: dict[str, reporting.Live], truth: Targets):
    """Share of the true targets that have a detection of their own within a distance, one curve per row; returns the figure.

    The vertical lines are CSO-mAP's thresholds. Pairs are those of :func:`csist.metrics.match_pairs`, which sees no scores.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import FAINT, method_colour, style

    with style():
        figure, ax = plt.subplots(figsize=(6.4, 3.8))
        for delta in DISTANCE_THRESHOLDS:
            ax.axvline(delta, color=FAINT, lw=0.7, zorder=0)
        for row in rows:
            if row["key"] not in live:
                continue
            now, line = live[row["key"]], ":" if not is_detector(row["key"]) else "--" if row["key"].endswith("-grid") else "-"
            part = truth[: now.frames]
            frame, detection, target = match_pairs(now.estimate, part)
            distance = np.sort(np.hypot(*(now.estimate.xy[frame, detection] - part.xy[frame, target]).T))
            share = 100 * np.arange(1, len(distance) + 1) / part.count.sum()
            ax.plot(distance, share, line, color=method_colour(row["method"]), label=row["label"])
        ax.set(xlabel="distance [px]", ylabel="targets found [%]", xlim=(0, 0.4), ylim=(0, 100))
        ax.legend(loc="lower right")
    return figure
