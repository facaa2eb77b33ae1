"""The page beyond the paper: every kind of unmixer on the same frames, what each was told, and what happens when the frames change (book part "Results").

Rows join result files and invent nothing: networks (``<run>.json``, ``readouts.json``), detectors behind them, the training-free sampler
(``off-grid-<tier>.json``), networks that answer off the grid (``continuous-*.json``) and well-known libraries (``peers.json``); ``robustness.json`` holds the
scores on changed frames and ``attainable.json`` what one detection per target can reach. A file that is missing leaves its rows out, and the page says so.
"""
from __future__ import annotations

import math
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from csist import reporting
from csist.datasets import Frames, csist100k
from csist.evaluation import detect, predict, shows_windows
from csist.imaging import FocalPlane, SubpixelGrid
from csist.limits import INTENSITY_PRIOR, crlb
from csist.metrics import cso_map, fractional_positions, is_border, match_detections, match_pairs
from csist.networks.detector import read_detector
from csist.networks.registry import NETWORKS, read_weights, run_name
from csist.pipeline import Pipeline
from csist.reporting.layout import MISSING, Column, Table, make_table, number, percent, row_value
from csist.reporting.selection import RECIPES
from csist.scenes import Targets
from csist.solvers.offgrid import CALIBRATION

SCALES = reporting.SCALES | {"laptop": 1_000}  # test frames answered while the page is made
SPEED_FRAMES = 64  # frames that a network's speed is measured on
TIERS = ("fast", "standard", "accurate")
FAMILIES = {  # colour (colour-blind safe), mark, how the legend says it
    "off-grid": ("#009e73", "o", "sampler without training"),
    "continuous": ("#cc79a7", "*", "network that answers off the grid"),
    "detector": ("#0072b2", "D", "network and detector"),
    "read-out": ("#e69f00", "^", "network, best read-out"),
    "network": ("#d55e00", "s", "network, threshold 50"),
    "peer": ("#666666", "X", "well-known library"),
    "sparse": ("#882255", "v", "ISTA on the grid, tuned"),
}
KNOWLEDGE = ("psf", "saturation", "cell", "distance", "intensity", "count")
WORDS = {"psf": "PSF", "saturation": "clipping", "cell": "one pixel", "distance": "smallest distance", "intensity": "intensity range", "count": "true count"}
IMPLICIT = "from examples"
SHORT = {IMPLICIT: "learned", "chosen on validation frames": "tuned"}  # how a table's cell says it
GRADIENT = ("ista-net", "ista-net+", "fista-net", "dista-net", "lista", "tilista", "lamp", "liht")  # networks with the steering matrix inside
LEARNED = "80,000 labelled frames"


# ---- rows -------------------------------------------------------------------------------------------------------------


def beyond_rows(folder: Path | None = None) -> list[dict]:
    """All methods that have been scored, the best first.

    Parameters
    ----------
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.

    Returns
    -------
    list of dict
        ``key``, ``label``, ``family`` (of FAMILIES), ``ours_*`` scores as fractions (as :func:`csist.reporting.make_rows` has them, None where a file does
        not say), ``frames_per_second`` of one core (None until it is measured), ``told_*`` (what the method knows beforehand) and ``learned``.
    """
    folder = folder or reporting.reproduce_folder()
    rows = [*_offgrid_rows(folder), *_continuous_rows(folder), *_detector_rows(folder), *_network_rows(folder), *_peer_rows(folder)]
    return sorted(rows, key=lambda row: -row["ours_cso_map"])


def _row(key: str, label: str, family: str, test: dict, told: dict, learned: str, *, result: str | None = None, speed=None, run=None, ratio=None) -> dict:
    low, high = test.get("interval") or (None, None)
    parts = {f"{count}_targets": (test.get("by_count") or {}).get(str(count)) for count in range(1, 6)}
    parts |= {name: test.get(name) for name in ("interior", "border")}
    return {
        "key": key,
        "label": label,
        "family": family,
        "status": "scored",
        "result": result,
        "run": run,
        "ratio": ratio,
        "ours_cso_map": test["cso_map"],
        "ours_low": low,
        "ours_high": high,
        "ours_standard_error": test.get("standard_error"),
        "ours_frames": test.get("frames"),
        "ours_count_accuracy": test.get("count_accuracy"),
        "ours_median": (test.get("localisation") or {}).get("median"),
        **{f"ours_{part}_{score}": (scores or {}).get(score) for part, scores in parts.items() for score in ("cso_map", "count_accuracy")},
        "frames_per_second": speed,
        **{f"told_{name}": told.get(name) for name in KNOWLEDGE},
        "learned": learned,
    }


def _offgrid_rows(folder: Path) -> list[dict]:
    told, rows = {**dict.fromkeys(KNOWLEDGE, True), "count": False}, []
    for tier in TIERS:
        result = reporting.load_result(f"off-grid-{tier}", folder)
        if result:
            learned = "only its calibration, on validation frames" if (result.get("settings") or {}).get("calibration") else "nothing"
            speed = result.get("frames_per_processor_second") or result.get("frames_per_second")
            rows.append(_row(f"off-grid-{tier}", f"off-grid, {tier}", "off-grid", result["test"], told, learned, result=f"off-grid-{tier}", speed=speed))
    return rows


def _continuous_rows(folder: Path) -> list[dict]:
    rows, told = [], {**dict.fromkeys(KNOWLEDGE, True), "count": False}  # model and rules are part of the network, and of its polish
    for path in sorted((folder / "results").glob("continuous-*.json")):
        result = reporting.read_json(path)
        label, speed = result.get("label") or result.get("method") or path.stem, result.get("frames_per_second")
        rows.append(_row(path.stem, label, "continuous", result["test"], told, result.get("learned") or "simulated frames with labels", speed=speed))
    return rows


def _detector_rows(folder: Path) -> list[dict]:
    rows = []
    for path in sorted((folder / "results").glob("*-detector*-seed0.json")):
        result = reporting.read_json(path)
        label = f"{reporting.method_label(result['network'])} + detector{'' if result['recipe']['offsets'] else ' on the grid'}"
        run, told = f"{result['network'].replace('+', '-plus')}-c{result['ratio']}-seed{result['recipe']['seed']}", _told_by_training(result["network"])
        rows.append(_row(path.stem, label, "detector", result["test"], told, LEARNED, run=run, ratio=result["ratio"]))
    return rows


def _told_by_training(network: str) -> dict:
    return {name: IMPLICIT for name in KNOWLEDGE} | {"psf": True if network in GRADIENT else IMPLICIT, "count": False}


def _recipe_words(name: str, run: dict, stems) -> str | None:
    """What a network's label adds to its name: nothing for the main training, words for another recipe, None for a training without a row here."""
    main = run_name(run["network"], run["ratio"])
    named = {main: "", run_name(f"{run['network']}-standard", run["ratio"]): " (shorter)" if main in stems else ""}
    named |= {reporting.recipe_run(run["network"], run["ratio"], 0, recipe): f" ({words})" for recipe, words in RECIPES.items()}
    return named.get(name)


def _network_rows(folder: Path) -> list[dict]:
    stored = (reporting.load_result("readouts", folder) or {"runs": {}})["runs"]
    rows, stems = [], {path.stem for path in (folder / "results").glob("*-seed0.json")}
    for path in sorted((folder / "results").glob("*-seed0.json")):
        result, name = reporting.read_json(path), path.stem
        run = result.get("run") or {}
        recipe = _recipe_words(name, run, stems) if run.get("network") in NETWORKS and not run.get("options") else None
        if recipe is None:
            continue  # variants and suspects have their places on the pages of the tables
        ratio, told = "" if run["ratio"] == 3 else f", c = {run['ratio']}", _told_by_training(run["network"])
        label = reporting.method_label(run["network"]) + recipe + ratio
        about = {"run": name, "ratio": run["ratio"]}
        rows.append(_row(name, label, "network", result["test"], told, LEARNED, result=name, **about))
        readouts = stored.get(name, {"readouts": {}})["readouts"]
        best = max(readouts, key=lambda one: readouts[one]["validation"]["cso_map"], default=None)
        if best and best != "threshold":
            test = {**readouts[best]["test"], "frames": stored[name]["frames"]}
            rows.append(_row(f"{name}:{best}", f"{label}, {best}", "read-out", test, told, f"{LEARNED}; read-out: 2,000 more", **about))
    return rows


def _peer_rows(folder: Path) -> list[dict]:
    rows = []
    ista = reporting.load_result("ista-tuned-c3", folder)
    if ista:
        told = {"psf": True, "saturation": True} | dict.fromkeys(KNOWLEDGE[2:], False)
        speed = ista["test"]["frames"] / 3600 / ista["hours"]
        rows.append(_row("ista-tuned", "ISTA, tuned, c = 3", "sparse", ista["test"], told, "settings", result="ista-tuned-c3", speed=speed))
    for name, entry in (reporting.load_result("peers", folder) or {"entries": {}})["entries"].items():
        learned = f"settings, on {entry['validation_frames']:,} frames"
        rows.append(_row(name, entry["label"], "peer", entry["test"], entry["told"], learned, speed=1 / entry["seconds_per_frame"]))
    return rows


def attainable(folder: Path | None = None) -> dict | None:
    """What one detection for each estimated target can reach (``results/attainable.json``), or None."""
    return reporting.load_result("attainable", folder)


def describe_sources(rows, folder: Path | None = None) -> str:
    """Which results are there and which are missing, as a Markdown list."""
    folder = folder or reporting.reproduce_folder()
    counted = {family: sum(row["family"] == family for row in rows) for family in FAMILIES}
    lines = [f"{counted[family]} {'row' if counted[family] == 1 else 'rows'}: {words}" for family, (_, _, words) in FAMILIES.items()]
    wanted = {f"off-grid-{tier}": f"python reproduce/score_offgrid.py --tier {tier}" for tier in TIERS}
    wanted |= {"attainable": "python reproduce/attainable.py"}
    wanted |= {"peers": "python reproduce/score_peers.py", "robustness": "python reproduce/robustness.py", "readouts": "python reproduce/score_readouts.py"}
    for name, command in wanted.items():
        if reporting.load_result(name, folder) is None:
            lines.append(f"not run yet: `results/{name}.json`, made by `{command}`")
    return "\n".join(f"- {line}." for line in lines)


def _label_of(key: str, rows) -> str:
    """A row's label, or one made of the key for an answer without a row."""
    return next((row["label"] for row in rows if row["key"] == key), key.replace("off-grid-", "off-grid, "))


# ---- answers now ------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A method's answers on the first test frames, computed now."""

    estimate: Targets
    frames: int
    cso_map: float
    seconds: float  # processor seconds per frame


def answer_now(rows, data: Frames, folder: Path | None = None, *, tier: str = "fast", detectors=("cfgn", "dista-net"), networks=("ista-net", "dista-net")):
    """Answer some frames with the sampler, two networks and the detectors behind networks, as far as their weights are there; by the rows' keys.

    Parameters
    ----------
    rows : list of dict
        Of :func:`beyond_rows`; a network without a row is left out.
    data : Frames
        The first frames of the test split.
    folder : path, optional
        Holds ``weights``; by default the repository's ``reproduce``.
    tier : str
        Of the sampler, which is answered in any case.
    detectors, networks : sequence of str
        Names of networks whose detectors, and which themselves, are wanted.
    """
    from csist.solvers.offgrid import unmix_offgrid

    folder, answers = folder or reporting.reproduce_folder(), {}
    unmix_offgrid(data.frames[:2], tier=tier)  # compiles, which is not part of the time
    answers[f"off-grid-{tier}"] = _answer(lambda frames: unmix_offgrid(frames, tier=tier), data)
    wanted = [f"{name.replace('+', '-plus')}-c3-seed0" for name in networks]
    for row in rows:
        weights = reporting.weights_file(row["key"], folder)
        if row["family"] == "network" and row["key"] in wanted and weights:
            answers[row["key"]] = _answer(_on_grid(read_weights(weights)[0]), data)
        elif row["family"] == "detector" and weights and any(row["key"] == f"{name}-detector-c3-seed0" for name in detectors):
            unmixer = reporting.weights_file(row["run"], folder)
            answers[row["key"]] = _answer(Pipeline(read_weights(unmixer)[0], read_detector(weights)[0]), data)
    return answers


def _on_grid(network):
    return lambda frames: detect(predict(network, frames, windows=shows_windows(network)), SubpixelGrid(ratio=network.ratio))


def _answer(solve, data: Frames) -> Answer:
    started = time.process_time()
    estimate = solve(data.frames)
    seconds = (time.process_time() - started) / len(data.frames)
    return Answer(estimate, len(data.frames), cso_map(estimate, data.targets).map, seconds)


def add_speeds(rows, answers: dict[str, Answer], folder: Path | None = None, frames: int = SPEED_FRAMES) -> list[dict]:
    """The rows with a speed wherever one can be measured now: frames per processor second of networks, alone or with the detector behind them.

    Networks of one architecture and ratio are timed once, by their first row. ``answers`` says how fast the sampler was where its result does not.
    """
    speeds, timed = {key: 1 / answer.seconds for key, answer in answers.items()}, {}
    for row in rows:
        path = reporting.weights_file(row["run"], folder) if row["run"] else None
        if row["frames_per_second"] or path is None:
            continue
        network, header = read_weights(path)
        detector = reporting.weights_file(row["key"], folder) if row["family"] == "detector" else None
        kind = header["network"], header["ratio"], detector is not None
        if kind not in timed:
            timed[kind] = _speed(Pipeline(network, read_detector(detector)[0]) if detector else _on_grid(network), frames)
        speeds[row["key"]] = timed[kind]
    return [{**row, "frames_per_second": row["frames_per_second"] or speeds.get(row["key"])} for row in rows]


def _speed(solve, frames: int) -> float:
    """Frames per processor second on one thread: idle threads that wait for others would be counted as work."""
    shown, threads, times = csist100k("test", frames).frames, torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        solve(shown[:8])  # the first call allocates
        for _ in range(2):  # the faster of two: other work on the machine only ever makes one slower
            started = time.process_time()
            solve(shown)
            times.append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    return len(shown) / min(times)


def check_answers(rows, answers: dict[str, Answer], folder: Path | None = None) -> Table:
    """Compare what was computed now with the stored scores (:func:`csist.reporting.check_live`)."""
    known = {row["key"] for row in rows}
    blank = {"status": "not scored yet", "result": None, "ours_cso_map": None}
    missing = [{"key": key, "label": _label_of(key, rows), **blank} for key in answers if key not in known]
    return reporting.check_live([row for row in rows if row["key"] in answers] + missing, answers, folder)


# ---- tables -----------------------------------------------------------------------------------------------------------


def frontier_table(rows) -> Table:
    """Score, count, errors and speed of every row."""
    columns = [
        Column("", "CSO-mAP (95 % interval)", reporting.our_score),
        Column("", "test frames", row_value("ours_frames", digits=0)),
        Column("", "count right [%]", row_value("ours_count_accuracy", percent, digits=1)),
        Column("", "median error [px]", row_value("ours_median", digits=3)),
        Column("", "frames/s of one core", lambda row: number(row["frames_per_second"], 0 if (row["frames_per_second"] or 0) >= 10 else 1)),
        Column("", "learned from", row_value("learned", str)),
    ]
    return make_table(rows, columns, "CSO-mAP × 100 on test frames, best first; the median error is over matched pairs.")


def knowledge_table(rows) -> Table:
    """What each method is told beforehand and what it had to learn, one line for methods that share both."""
    lines: dict[tuple, list[str]] = {}
    for row in rows:
        told = tuple(_told(row[f"told_{name}"]) for name in KNOWLEDGE)
        lines.setdefault((*told, row["learned"], row["family"]), []).append(row["label"])
    cells = [[_shared(labels, key[-1]), *key[:-1]] for key, labels in lines.items()]
    columns = [("", "method"), *[("told", WORDS[name]) for name in KNOWLEDGE], ("", "learned from")]
    caption = "What each method knows before it sees a test frame; \"learned\" is from examples, \"tuned\" is chosen on validation frames."
    return Table(caption, columns, cells)


def _told(value) -> str:
    return SHORT.get(value, value) if isinstance(value, str) else {True: "yes", False: "no", None: MISSING}[value]


def _shared(labels, family: str) -> str:
    if len(labels) <= 3 or family not in ("network", "read-out", "detector"):
        return "; ".join(labels)
    return f"{len(labels)} rows: {FAMILIES[family][2]} ({'; '.join(labels[:2])} ...)"


def prior_table(folder: Path | None = None) -> Table:
    """What the sampler scores when it is told less of the scenes' law, by the rule that it has to do without (``without_priors`` of its result files)."""
    columns = [("", "told"), ("", "tier"), ("", "CSO-mAP"), ("", "count right [%]"), ("", "frames/s of one core")]
    cells, frames = [], set()
    for tier in TIERS:
        stored = (reporting.load_result(f"off-grid-{tier}", folder) or {}).get("without_priors")
        for words, scores in (stored or {"scores": {}})["scores"].items():
            frames.add(stored["frames"])
            values = percent(scores["cso_map"]), percent(scores["count_accuracy"], 1), number(scores["frames_per_processor_second"], 0)
            cells.append([words, tier, *values])
    counted = " or ".join(f"{n:,}" for n in sorted(frames))
    caption = f"What the sampler's knowledge is worth: CSO-mAP × 100 on {counted} test frames." if cells else "Not run yet: python reproduce/score_offgrid.py"
    return Table(caption, columns, cells)


def describe_prior(rows, folder: Path | None = None) -> str:
    """How the sampler without any rule compares with the best row that learned the rules from examples, as one Markdown sentence."""
    bare, frames = {}, {}
    for tier in TIERS:
        stored = (reporting.load_result(f"off-grid-{tier}", folder) or {}).get("without_priors")
        if stored:
            bare[tier], frames[tier] = list(stored["scores"].values())[-1]["cso_map"], stored["frames"]
    trained = [row for row in rows if row["family"] in ("network", "read-out", "detector")]
    learned = max(trained, key=lambda row: row["ours_cso_map"], default=None)
    if not bare or learned is None:
        return "How the sampler does without these rules has not been measured yet."
    tier, score = max(bare.items(), key=lambda pair: pair[1])
    return (
        f"Without the rules on count, distance and intensity (one pixel is still known) the sampler scores {percent(score)} on these {frames[tier]:,} frames "
        f"(tier {tier}); {learned['label']}, the best that learned the rules from examples, has {percent(learned['ours_cso_map'])} on "
        f"{number(learned['ours_frames'], 0)} frames."
    )


def best_of_families(rows, always=("dista-net-c3-seed0",)) -> list[dict]:
    """The best row of each family that says how it does by number of targets, and those with some keys: the paper's own network."""
    kept = [row for row in rows if row["key"] in always and _has_parts(row)]
    kept += [max(some, key=lambda row: row["ours_cso_map"]) for family in FAMILIES if (some := [r for r in rows if r["family"] == family and _has_parts(r)])]
    return sorted({row["key"]: row for row in kept}.values(), key=lambda row: -row["ours_cso_map"])


def _has_parts(row: dict) -> bool:
    return row["ours_3_targets_cso_map"] is not None


# ---- sentences --------------------------------------------------------------------------------------------------------


def describe_frontier(rows, limit: dict | None, ceilings=None) -> str:
    """Where the families stand against each other and against the limit, as one Markdown paragraph."""
    best = {family: max((row for row in rows if row["family"] == family), key=lambda row: row["ours_cso_map"], default=None) for family in FAMILIES}
    said = {family: f"{row['label']} ({percent(row['ours_cso_map'])})" for family, row in best.items() if row}
    parts = []
    if "network" in said and best["network"]["ratio"]:
        parts.append(f"Read as in the paper, the best network is {said['network']}; read better, {said.get('read-out', 'none is scored')}.")
    if "detector" in said:
        parts.append(f"The best detector behind a network is {said['detector']}.")
    if "peer" in said:
        parts.append(f"Of the libraries that a user would try first, {said['peer']} comes out on top.")
    if "off-grid" in said:
        parts.append(f"The sampler, which is not trained, reaches {said['off-grid']}.")
    if "continuous" in said:
        parts.append(f"A network that answers off the grid reaches {said['continuous']}.")
    if limit and best["off-grid"]:
        gap, margin = 100 * (limit["cso_map"] - best["off-grid"]["ours_cso_map"]), 100 * limit["uncertainty"] + 196 * best["off-grid"]["ours_standard_error"]
        side = "below" if gap > 0 else "above"
        parts.append(f"The sampler's best is {abs(gap):.1f} points {side} the attainable limit; the two are uncertain by {margin:.1f} points together.")
    return " ".join(parts)


def describe_finer(rows) -> str:
    """What networks that are trained on several grids score, read as in the paper, as one Markdown sentence."""
    at: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["family"] == "network" and "(shorter)" not in row["label"]:
            at.setdefault(row["label"].removesuffix(f", c = {row['ratio']}"), {})[row["ratio"]] = row["ours_cso_map"]
    several = {label: scores for label, scores in at.items() if len(scores) > 1}
    listed = [f"{label} has {', '.join(f'{percent(scores[c])} at c = {c}' for c in sorted(scores))}" for label, scores in several.items()]
    return f"{'; '.join(listed)}." if listed else "No network is trained on more than one grid yet."


def describe_limit(limit: dict | None) -> str:
    """What the limit is and where it comes from, as Markdown."""
    if limit is None:
        return "The attainable limit is not known: `results/attainable.json` is missing, made by `python reproduce/attainable.py`."
    again, finer, claims = limit["sampler"]["another_seed"], limit["sampler"]["finer"], limit["claims"][0]
    return (
        f"The black line, **{100 * limit['cso_map']:.2f} ± {100 * limit['uncertainty']:.2f}**, is what unlimited computing would reach on these test frames "
        "with one detection for each target that it finds: "
        f"{limit['settled']['frames']:,} frames that have a single narrow mode are left as they are; of the other "
        f"{limit['frames'] - limit['settled']['frames']:,}, {limit['sampled']:,} were answered from their exact posterior and stand for the rest, and the gain "
        f"over the standard tier ({100 * limit['gain']:.2f} points) added to its score ({100 * limit['standard_tier']:.2f} when this was "
        "computed; `python reproduce/attainable.py`). "
        f"The ± is a 95 % interval of the choice of the sampled frames; for another draw of all test frames, sampled likewise, it would be "
        f"{196 * limit['population']['standard_error']:.2f}. Another seed of the sampler changes it by {_change(again)}; "
        f"{finer['particles']:,} samples in the sampler instead of {limit['sampler']['particles']:,} changed "
        f"{'nothing to speak of' if abs(finer['change']) < 5e-4 else 'it by ' + reporting.layout.signed(100 * finer['change'])} on {finer['frames']} frames, "
        "too few to say more. "
        f"On clusters inside the frame it is {_uncertain(limit['interior'])}, at the border, where light is lost, {_uncertain(limit['border'])}; the posterior "
        f"expects {percent(limit['count_accuracy_expected'], 1)} % of the counts to be right. It claims {percent(claims['claimed'], 1)} % hits on the sampled "
        f"frames, and {percent(claims['real'], 1)} % are: {abs(100 * (claims['claimed'] - claims['real'])):.1f} points too "
        f"{'many' if claims['claimed'] > claims['real'] else 'few'}, so the line is an estimate."
    )


def _uncertain(part: dict) -> str:
    """A part of the limit with the half-width of its 95 % interval, in points."""
    return f"{100 * part['cso_map']:.1f} ± {100 * part['uncertainty']:.1f}"


def _change(check: dict) -> str:
    """By how much a check of the limit changed it, with 1.96 standard errors and the number of frames, in points."""
    return f"{reporting.layout.signed(100 * check['change'])} ± {196 * check['standard_error']:.2f} (on {check['frames']:,} frames)"


def describe_unplaced(rows) -> str:
    """Which rows have no place in the figure, as one sentence."""
    unplaced = [row["label"] for row in rows if not row["frames_per_second"]]
    return f"Without a measured speed, so not in the figure: {', '.join(unplaced)}." if unplaced else "Every row has a place in the figure."


# ---- the frontier -----------------------------------------------------------------------------------------------------


def plot_frontier(rows, ceilings: dict | None = None, limit: dict | None = None):
    """CSO-mAP against frames per second of one core, with the grids' ceilings and the attainable limit; returns the figure.

    Parameters
    ----------
    rows : list of dict
        Of :func:`add_speeds`.
    ceilings : dict, optional
        Of :func:`csist.reporting.grid_ceilings` by ratio; the ranked one is drawn.
    limit : dict, optional
        Of :func:`attainable`.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import FAINT, INK, style
    from csist.reporting.leaderboard import _label

    rows = [row for row in rows if row["frames_per_second"]]
    with style():
        figure, ax = plt.subplots(figsize=(5.4, 7.2))
        ax.set(xscale="log", ylim=(0, 100), xlabel="frames per second of one core", ylabel="CSO-mAP × 100")
        for ratio, ceiling in (ceilings or {}).items():
            ax.axhline(100 * ceiling.ranked, color=FAINT, ls="--", lw=1)
            ax.text(0.2, 100 * ceiling.ranked + 0.6, f"perfect on the grid, c = {ratio}", transform=ax.get_yaxis_transform(), fontsize=7.5, color=INK)
        if limit:
            ax.axhline(100 * limit["cso_map"], color=INK, lw=1.2)
            ax.text(0.2, 100 * limit["cso_map"] + 0.6, "attainable", transform=ax.get_yaxis_transform(), fontsize=7.5, color=INK)
        for family, (colour, mark, words) in FAMILIES.items():
            some = [row for row in rows if row["family"] == family]
            if some:
                place = [row["frames_per_second"] for row in some], [100 * row["ours_cso_map"] for row in some]
                ax.plot(*place, mark, color=colour, ms=9 if mark == "*" else 6, mec="white", mew=0.6, ls="", label=words)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
        figure.draw_without_rendering()  # the layout decides how much room the names have
        _label(ax, [(row["label"], row["frames_per_second"], 100 * row["ours_cso_map"], FAMILIES[row["family"]][0]) for row in named_rows(rows)])
    return figure


def named_rows(rows, best: int = 4) -> list[dict]:
    """The rows whose names a crowded figure shows: of networks and their read-outs the best few of each and DISTA-Net, of the other families all."""
    kept = []
    for family in FAMILIES:
        some = sorted((row for row in rows if row["family"] == family), key=lambda row: -row["ours_cso_map"])
        crowded = family in ("network", "read-out")
        kept += [row for place, row in enumerate(some) if not crowded or place < best or row["key"].startswith("dista-net-c3-seed0")]
    return kept


def plot_parts(rows, limit: dict | None = None):
    """CSO-mAP by number of targets (left), and inside and at the border of the frame (right), of some rows; returns the figure."""
    import matplotlib.pyplot as plt

    from csist.plotting import INK, style

    with style():
        figure, (counts, places) = plt.subplots(1, 2, figsize=(5.8, 3.6), sharey=True, width_ratios=[2, 1])
        for row in rows:
            colour, mark, _ = FAMILIES[row["family"]]
            by_count = [row[f"ours_{number}_targets_cso_map"] for number in range(1, 6)]
            by_place = [row[f"ours_{place}_cso_map"] for place in ("interior", "border")]
            for ax, values in ((counts, by_count), (places, by_place)):
                known = [math.nan if value is None else 100 * value for value in values]
                line = "--" if row["key"] == "dista-net-c3-seed0" else "-"
                ax.plot(range(len(values)), known, line, marker=mark, color=colour, label=row["label"])
        if limit:
            parts = [limit[place] for place in ("interior", "border")]
            bars = [100 * part["uncertainty"] for part in parts]
            places.errorbar(range(2), [100 * part["cso_map"] for part in parts], bars, fmt="_", ms=16, mew=2, color=INK, capsize=3, label="attainable")
        counts.set(xticks=range(5), xticklabels=range(1, 6), xlabel="targets in the frame", ylabel="CSO-mAP × 100", ylim=(0, 102))
        places.set(xticks=range(2), xticklabels=["interior", "border"], xlim=(-0.4, 1.4))
        figure.legend(*places.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


# ---- calibration and pixel locking ------------------------------------------------------------------------------------

EDGES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)  # of claimed hit probabilities


def reliability(estimate: Targets, truth: Targets, edges=EDGES) -> list[dict]:
    """Claimed against real hit probabilities, both averaged over CSO-mAP's thresholds, by claimed probability.

    Parameters
    ----------
    estimate : Targets
        With scores between 0 and 1.
    truth : Targets
        Of the same frames.
    edges : sequence of float
        Borders of the classes, rising.

    Returns
    -------
    list of dict
        ``from``, ``to``, ``detections``, ``claimed``, ``real``; classes without detections are left out.

    >>> truth = Targets([[[5.0, 5.0]]] * 2, [[240.0]] * 2, [1, 1])
    >>> wrong = Targets([[[5.0, 5.0]], [[5.4, 5.0]]], [[240.0]] * 2, [1, 1], score=[[0.6], [0.6]])
    >>> [(row["claimed"], row["real"]) for row in reliability(wrong, truth)]
    [(0.6, 0.5)]
    """
    matches = match_detections(estimate, truth)
    real, place = matches.is_hit.mean(axis=0), np.clip(np.searchsorted(edges, matches.score, side="right") - 1, 0, len(edges) - 2)
    rows = []
    for k in np.unique(place):
        inside = place == k
        means = {"claimed": float(matches.score[inside].mean()), "real": float(real[inside].mean())}
        rows.append({"from": edges[k], "to": edges[k + 1], "detections": int(inside.sum()), **means})
    return rows


def _claims_now(stored: dict, tier: str) -> bool:
    """Whether a stored result's claims were set right by the curves that the package has now."""
    return stored["settings"]["calibration"] == [[list(part) for part in curve] for curve in CALIBRATION[tier]]


def plot_reliability(answers: dict[str, Answer], truth: Targets, rows, folder: Path | None = None):
    """Real against claimed hit probability of the methods whose scores claim one: the sampler's stored tiers, and what was answered now."""
    import matplotlib.pyplot as plt

    from csist.plotting import FAINT, style

    curves = {}
    for tier in TIERS:
        stored = reporting.load_result(f"off-grid-{tier}", folder)
        if stored and stored.get("calibration"):
            line = {"fast": ":", "standard": "--"}.get(tier, "-")
            earlier = "" if _claims_now(stored, tier) else ", earlier claims"
            curves[f"off-grid, {tier} (stored, {stored['test']['frames']:,} frames{earlier})"] = (stored["calibration"], "off-grid", line)
    for key, answer in answers.items():
        if "detector" in key or (key.startswith("off-grid") and not curves):
            name, family = _label_of(key, rows), "detector" if "detector" in key else "off-grid"
            line = ":" if "dista" in key else "-"
            curves[f"{name} (now, {answer.frames:,} frames)"] = (reliability(answer.estimate, truth), family, line)
    with style():
        figure, ax = plt.subplots(figsize=(5.4, 4.6))
        ax.plot([0, 1], [0, 1], color=FAINT, lw=1, label="honest")
        for label, (points, family, line) in curves.items():
            known = [point for point in points if point["detections"] >= 20] or points
            colour, mark, _ = FAMILIES[family]
            ax.plot([point["claimed"] for point in known], [point["real"] for point in known], line, marker=mark, color=colour, label=label, ms=4)
        ax.set(xlabel="claimed probability of a hit", ylabel="share of real hits", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", fontsize=8)
    return figure


def describe_reliability(answers: dict[str, Answer], truth: Targets, rows) -> str:
    """Mean claimed and real hit probability of what was answered now, as a Markdown list."""
    lines = []
    for key, answer in answers.items():
        if "detector" in key or key.startswith("off-grid"):
            points = reliability(answer.estimate, truth, (0.0, 1.0))
            if points:
                lines.append(f"{_label_of(key, rows)} claims {percent(points[0]['claimed'], 1)} % on average, and {percent(points[0]['real'], 1)} % are hits.")
    return reporting.bullets(lines)


def plot_locking(answers: dict[str, Answer], truth: Targets, rows):
    """Histograms of where within their pixel the answers lie, one panel per method, the truth as a line; returns the figure."""
    import matplotlib.pyplot as plt

    from csist.plotting import INK, style

    families = {row["key"]: row["family"] for row in rows}
    chosen = [key for key in answers if "detector" not in key] + [key for key in answers if key.startswith("cfgn-detector")]
    with style():
        figure, axes = plt.subplots(len(chosen), 1, figsize=(6.4, 1.45 * len(chosen) + 0.9), sharex=True, squeeze=False)
        real = fractional_positions(truth)
        for ax, key in zip(axes.flat, chosen):
            found = fractional_positions(answers[key].estimate, truth=truth)
            colour = FAMILIES[families.get(key, "off-grid")][0]
            ax.stairs(100 * found.histogram[0], found.edges, fill=True, color=colour, alpha=0.75)
            ax.stairs(100 * real.histogram[0], real.edges, color=INK, lw=1, baseline=None, label="true targets")
            ax.set_title(f"{_label_of(key, rows)}: {found.truth_distance[0]:.3f} from the truth", loc="left")
        axes[0, 0].legend(loc="upper center")
        axes[-1, 0].set_xlabel("x, relative to the pixel's centre [px]")
        figure.supylabel("answers [%]", fontsize=10)
    return figure


# ---- robustness -------------------------------------------------------------------------------------------------------

GROUPS = {  # axis label, and where CSIST-100K itself stands on it
    "read_noise": ("read noise [grey levels]", 0.0),
    "sigma_error": ("PSF width taken wrong by [%]", 0.0),
    "psf": ("shape of the PSF", "round Gaussian"),
    "gap": ("smallest distance [R]", 0.52),
    "count": ("targets (≥ 0.3 px apart)", None),
    "ratio": ("brightest : faintest", 250 / 220),
    "sensor": ("sensor", "as the paper's"),
    "background": ("background ramp [grey levels]", 0.0),
}
LINES = {  # method: variants in order of preference, label, family's colour, line, mark
    "off-grid-standard": (("informed", "plain"), "off-grid, standard, told", "#009e73", "-", "o"),
    "off-grid-fast": (("informed", "plain"), "off-grid, fast, told", "#009e73", "--", "o"),
    "off-grid-fast:tolerant": (("tolerant",), "off-grid, fast, cautious", "#66ccee", "--", "o"),
    "off-grid-fast:plain": (("plain",), "off-grid, fast, told nothing", "#117733", ":", "o"),
    "continuous": (("informed", "plain"), "continuous network", "#cc79a7", "-", "P"),
    "cfgn-detector": (("informed", "plain"), "CFGN + detector", "#0072b2", "-", "D"),
    "dista-net": (("informed", "plain"), "DISTA-Net", "#d55e00", "-", "s"),
    "ista-net-plus": (("informed", "plain"), "ISTA-Net+", "#882255", "--", "s"),
    "ista-tuned": (("informed", "plain"), "ISTA, tuned, told", "#e69f00", "-", "X"),
}


def robustness_rows(stored: dict | None) -> list[dict]:
    """One row for each condition and line of the figure: ``condition``, ``group``, ``value``, ``line``, ``variant`` and the scores.

    ``claimed`` and ``real`` are mean hit probabilities over CSO-mAP's thresholds, None for methods whose scores claim nothing.
    """
    rows = []
    for name, condition in (stored or {"conditions": {}})["conditions"].items():
        for line, (variants, label, *_) in LINES.items():
            method = line.split(":")[0]
            variant = next((v for v in variants if f"{method}:{v}" in condition["methods"]), None)
            if variant:
                scores = condition["methods"][f"{method}:{variant}"]
                low, high = scores["interval"]
                about = {"condition": name, "group": condition["group"], "value": condition["value"], "what": condition["what"], "line": line, "label": label}
                kept = {key: scores[key] for key in ("frames", "cso_map", "standard_error", "count_accuracy")}
                kept |= {key: scores.get(key) for key in ("claimed", "real")}
                rows.append({**about, "variant": variant, **kept, "low": low, "high": high})
    return rows


def robustness_score(rows, condition: str, line: str) -> dict:
    """The row of one condition and line.

    >>> robustness_score([{"condition": "airy", "line": "dista-net", "cso_map": 0.16}], "airy", "dista-net")["cso_map"]
    0.16
    """
    return next(row for row in rows if (row["condition"], row["line"]) == (condition, line))


def plot_robustness(rows, groups=None):
    """One panel per way in which frames differ, one line per method, 95 % intervals as bars; returns the figure, None without rows.

    ``groups``, of GROUPS, are the panels; by default all.
    """
    import matplotlib.pyplot as plt

    from csist.plotting import style

    groups = [group for group in groups or GROUPS if any(row["group"] == group for row in rows)]
    if not groups:
        return None
    lines, columns = math.ceil(len(groups) / 2), min(2, len(groups))
    with style():
        figure, axes = plt.subplots(lines, columns, figsize=(3.8 * columns if columns > 1 else 5.4, 2.5 * lines + 1.1), sharey=True, squeeze=False)
        for ax in axes.flat[len(groups) :]:
            ax.set_axis_off()
        for ax, group in zip(axes.flat, groups):
            _draw_group(ax, group, rows)
        handles = {}
        for ax in reversed(axes.flat[: len(groups)]):  # the first panel has lines, not only marks
            handles |= dict(zip(*reversed(ax.get_legend_handles_labels())))
        order = [words for _, words, *_ in LINES.values() if words in handles]
        figure.legend([handles[words] for words in order], order, loc="outside upper center", ncols=2, fontsize=8)
        figure.supylabel("CSO-mAP × 100", fontsize=10)
    return figure


def plot_claims(rows, lines=("off-grid-fast:plain", "off-grid-fast", "continuous")):
    """Mean claimed against mean real hit probability, one mark per condition and line; returns the figure, None without claims."""
    import matplotlib.pyplot as plt

    from csist.plotting import FAINT, style

    known = [row for row in rows if row["line"] in lines and row["claimed"] is not None]
    if not known:
        return None
    with style():
        figure, ax = plt.subplots(figsize=(5.2, 4.6))
        ax.plot([0, 1], [0, 1], color=FAINT, lw=1, label="honest")
        for line in lines:
            _, words, colour, _, mark = LINES[line]
            some = [row for row in known if row["line"] == line]
            filled = {"mfc": "none"} if "plain" in line else {}
            if some:
                ax.plot([row["claimed"] for row in some], [row["real"] for row in some], mark, color=colour, label=words, ms=6, alpha=0.8, **filled)
        for line in lines:
            some = [row for row in known if row["line"] == line]
            if some:
                boldest = max(some, key=lambda row: row["claimed"] - row["real"])
                ax.annotate(boldest["condition"], (boldest["claimed"], boldest["real"]), (-7, -3), textcoords="offset points", fontsize=8, ha="right")
        ax.set(xlabel="mean claimed probability of a hit", ylabel="mean share of real hits", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


# DeRefNet, which sees five frames of a sequence, under Gaussian noise, as its paper prints it (SeqCSIST, arXiv 2507.09556); other frames than CSIST-100K's.
DEREFNET_NOISE = {0.0: 0.5155, 2.0: 0.4909, 3.0: 0.4840, 4.0: 0.4841, 5.0: 0.4723}


def noise_table(rows, lines=("off-grid-standard", "off-grid-fast:plain", "continuous", "cfgn-detector", "dista-net")) -> Table:
    """CSO-mAP × 100 against read noise, with the published column of another network on other frames."""
    here = {(row["value"] if row["group"] == "read_noise" else 0.0, row["line"]): row for row in rows if row["group"] in ("base", "read_noise")}
    lines = [line for line in lines if any(key[1] == line for key in here)]
    cells = []
    for sd in sorted({key[0] for key in here}):
        scores = [percent(here[sd, line]["cso_map"], 1) if (sd, line) in here else MISSING for line in lines]
        cells.append([f"{sd:g}", *scores, percent(DEREFNET_NOISE[sd], 1) if sd in DEREFNET_NOISE else MISSING])
    columns = [("", "read noise"), *[("", LINES[line][1]) for line in lines], ("as printed, on SeqCSIST", "DeRefNet")]
    return Table("CSO-mAP × 100 by the read noise's standard deviation [grey levels].", columns, cells)


def _draw_group(ax, group: str, rows) -> None:
    label, base = GROUPS[group]
    here = [row if row["group"] == group else {**row, "value": base} for row in rows if row["group"] == group or (row["group"] == "base" and base is not None)]
    values = list(dict.fromkeys(row["value"] for row in here))
    numeric = all(isinstance(value, (int, float)) for value in values)
    place = {value: value if numeric else number for number, value in enumerate(values)}
    for line, (_, name, colour, dash, mark) in LINES.items():
        some = sorted((row for row in here if row["line"] == line), key=lambda row: place[row["value"]])
        if all(row["group"] == "base" for row in some):  # not measured here
            continue
        if some:
            x, y = [place[row["value"]] for row in some], [100 * row["cso_map"] for row in some]
            bars = [[100 * (row["cso_map"] - row["low"]) for row in some], [100 * (row["high"] - row["cso_map"]) for row in some]]
            bars = np.maximum(bars, 0)
            if not numeric:  # nothing lies between two kinds: no line, and marks side by side
                x = [value + 0.09 * (list(LINES).index(line) - len(LINES) / 2) for value in x]
            look = {"color": colour, "ls": dash if numeric else "", "marker": mark, "ms": 4, "lw": 1.4, "elinewidth": 0.8}
            ax.errorbar(x, y, yerr=bars, label=name, **look)
    ax.set(title=label, ylim=(0, 102))
    if not numeric:
        ax.set_xticks(list(place.values()), [textwrap.fill(str(value), 11) for value in values], fontsize=7.5)
    elif len(values) <= 6:
        ax.set_xticks(values, [f"{value:.3g}" for value in values])


def robustness_table(rows) -> Table:
    """CSO-mAP × 100 of every condition (lines) and method (columns)."""
    lines = [line for line in LINES if any(row["line"] == line for row in rows)]
    names = list(dict.fromkeys(row["condition"] for row in rows))
    cells = []
    for name in names:
        here = {row["line"]: row for row in rows if row["condition"] == name}
        what = next(iter(here.values()))["what"]
        cells.append([what, *[percent(here[line]["cso_map"], 1) if line in here else MISSING for line in lines]])
    frames = sorted({row["frames"] for row in rows})
    counted = f"{frames[0]:,}" if len(frames) == 1 else f"{frames[0]:,} to {frames[-1]:,}" if frames else ""
    margin = f"{196 * max((row['standard_error'] for row in rows), default=0.0):.0f}"
    caption = f"CSO-mAP × 100, on {counted} frames per cell; a cell is uncertain by up to {margin} points (95 %)."
    caption = caption if rows else "Not run yet: python reproduce/robustness.py"
    return Table(caption, [("", "frames"), *[("", LINES[line][1]) for line in lines]], cells)


def describe_robustness(rows) -> str:
    """What hurts most, and what being told saves, as a Markdown list."""
    if not rows:
        return "Not run yet: `python reproduce/robustness.py`."
    lines = []
    for line in ("off-grid-fast", "off-grid-fast:plain", "cfgn-detector", "dista-net"):
        base = next((row for row in rows if row["line"] == line and row["group"] == "base"), None)
        here = [row for row in rows if row["line"] == line and row["group"] != "base"]
        if base and here:
            worst = min(here, key=lambda row: row["cso_map"])
            where = f"falls from {percent(base['cso_map'], 1)} to {percent(worst['cso_map'], 1)} with {worst['what']}"
            lines.append(f"**{LINES[line][1]}** {where}, the worst of these conditions for it.")
    table = {(row["condition"], row["line"]): row for row in rows}
    pairs = [(table.get((name, "off-grid-fast")), row) for (name, line), row in table.items() if line == "off-grid-fast:plain"]
    gains = [(told["cso_map"] - plain["cso_map"], told) for told, plain in pairs if told and told["variant"] == "informed"]
    if gains:
        gain, row = max(gains, key=lambda pair: pair[0])
        lines.append(f"Telling the sampler what changed is worth up to {100 * gain:.1f} points ({row['what']}).")
    told = [row for row in rows if row["line"] == "off-grid-fast" and row["group"] != "base"]
    others = [row for row in rows if not row["line"].startswith("off-grid")]
    best = {row["condition"]: row for row in sorted(others, key=lambda row: row["cso_map"])}
    beaten = [(row, best[row["condition"]]) for row in told if row["condition"] in best and best[row["condition"]]["cso_map"] > row["cso_map"]]
    ramps = any(row["group"] == "background" for row, _ in beaten) * " (a ramp was subtracted for the other method, too)"
    named = lambda pairs: "; ".join(row["what"] for row, _ in pairs)
    clear = [(row, other) for row, other in beaten if other["cso_map"] - row["cso_map"] > 1.96 * math.hypot(other["standard_error"], row["standard_error"])]
    within = [pair for pair in beaten if pair not in clear]
    parts = [f"{words} under {len(some)} ({named(some)})" for words, some in (("beyond the uncertainty", clear), ("within it", within)) if some]
    where = f": {', '.join(parts)}" if parts else ""
    lines.append(f"Another method scores more than the told sampler's fast tier under {len(beaten)} of {len(told)} conditions{where}{ramps}.")
    return reporting.bullets(lines)


# ---- failures ---------------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """A frame that was answered badly, and why."""

    frame: int
    error: float  # px, root mean square over targets, half a pixel for each that has no answer
    reason: str


def frame_errors(estimate: Targets, truth: Targets, cap: float = 0.5) -> np.ndarray:
    """Root mean square distance of each frame's targets from their answers (n,) [px]; a target without an answer, or an answer too many, counts as ``cap``.

    >>> truth = Targets([[[5.0, 5.0], [5.4, 5.0]]], [[240.0, 230.0]], [2])
    >>> frame_errors(truth[[0]], truth).tolist(), frame_errors(Targets([[[5.0, 5.0]]], [[240.0]], [1]), truth).round(3).tolist()
    ([0.0], [0.354])
    """
    frame, detection, target = match_pairs(estimate, truth, cap)
    squared, pairs = np.zeros(len(truth)), np.bincount(frame, minlength=len(truth))
    np.add.at(squared, frame, ((estimate.xy[frame, detection] - truth.xy[frame, target]) ** 2).sum(-1))
    most = np.maximum(np.maximum(estimate.count, truth.count), 1)
    return np.sqrt((squared + (np.maximum(estimate.count, truth.count) - pairs) * cap**2) / most)


def worst_frames(answer: Answer, data: Frames, number: int = 24, plane: FocalPlane | None = None) -> list[Failure]:
    """The frames with the largest errors, each with what explains it: what holds first of a wrong count, a bound that is large, lost light, an ambiguity.

    The bound is the Cramér–Rao bound of the true scene (:func:`csist.limits.crlb`, with the intensities' range as a prior); light is lost beyond the frame's
    border; an ambiguous frame is one that the wrong answer renders as well: rounded to the same grey level in every pixel that is not clipped.
    """
    plane, truth = plane or FocalPlane(), data.targets[: answer.frames]
    errors = frame_errors(answer.estimate, truth)
    chosen = np.argsort(-errors, kind="stable")[:number]
    true, given = truth[chosen], answer.estimate[chosen]
    bound = crlb(true, plane, prior=INTENSITY_PRIOR)[..., :2]
    limit = np.sqrt(np.nansum(np.where(np.isnan(bound), 0, bound) ** 2, axis=(1, 2)) / np.maximum(true.count, 1))
    light = plane.expected(true).sum((1, 2)) / np.nansum(true.intensity, axis=1)
    clipped = data.frames[chosen] >= plane.full_scale
    gap = np.where(clipped, 0.0, abs(plane.expected(given) - data.frames[chosen])).max((1, 2))
    border = is_border(true)
    failures = []
    for k, frame in enumerate(chosen):
        parts = []
        if given.count[k] != true.count[k]:
            parts.append(f"count {given.count[k]} for {true.count[k]}")
        parts.append(f"bound {limit[k]:.2f} px" if limit[k] < 10 else "no bound")
        if border[k]:
            parts.append(f"{100 * (1 - light[k]):.0f} % of light lost")
        if clipped[k].any():
            parts.append(f"{clipped[k].sum()} clipped")
        if gap[k] <= 0.5:
            parts.append("fits as well")
        failures.append(Failure(int(frame), float(errors[frame]), ", ".join(parts)))
    return failures


def plot_failures(failures, answer: Answer, data: Frames, columns: int = 3):
    """The frames of :func:`worst_frames` with truth (open circles) and answer (crosses, bars of one predicted deviation); returns the figure."""
    import matplotlib.pyplot as plt

    from csist.plotting import show_frame, style

    with style():
        lines = math.ceil(len(failures) / columns)
        figure, axes = plt.subplots(lines, columns, figsize=(1.85 * columns, 2.4 * lines), squeeze=False)
        for ax in axes.flat[len(failures) :]:
            ax.set_axis_off()
        for ax, failure in zip(axes.flat, failures):
            truth, estimate = data.targets[failure.frame], answer.estimate[failure.frame]
            show_frame(data.frames[failure.frame], ax, targets=truth, estimate=estimate, method="off-grid", full_scale=255, labels=False)
            reasons = failure.reason.split(", ")
            wrapped = [", ".join(reasons[first : first + 2]) for first in range(0, len(reasons), 2)]
            ax.set_title("\n".join([f"{failure.frame}: {failure.error:.2f} px", *wrapped]), fontsize=7)
            ax.set_facecolor("#c9d6e4")  # beyond the frame; white is a clipped pixel
            (row, column), reach = truth.cell[0], 0.85  # px
            ax.set(xticks=[], yticks=[], xlim=(column - reach, column + reach), ylim=(row + reach, row - reach))
    return figure


def describe_failures(failures, answer: Answer, data: Frames) -> str:
    """How the worst frames differ from the rest, as one Markdown paragraph."""
    truth = data.targets[: answer.frames]
    share = lambda some: f"{100 * np.mean(some):.0f} %"
    frames = [failure.frame for failure in failures]
    border, many = is_border(truth), truth.count >= 4
    alike = sum("fits as well" in failure.reason for failure in failures)
    counts = sum("count" in failure.reason for failure in failures)
    frame, detection, target = match_pairs(answer.estimate[frames], truth[frames])
    error = answer.estimate.xy[np.array(frames)[frame], detection] - truth.xy[np.array(frames)[frame], target]
    bold = abs(error) > 3 * answer.estimate.sigma[np.array(frames)[frame], detection]
    return (
        f"Of the {len(failures)} worst of {answer.frames:,} frames, {share(border[frames])} lie at the border ({share(border)} of all do) and "
        f"{share(many[frames])} hold four or five targets ({share(many)} of all). In {counts} the count is wrong; in {alike} the wrong answer renders the "
        "very same grey levels wherever they are not clipped, so the frame itself does not tell the two scenes apart. "
        f"{share(bold)} of these frames' coordinates are off by more than three predicted deviations."
    )
