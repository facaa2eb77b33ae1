r"""Does a table compare architectures, or how long they were trained? (book page "Table 1")

At c = 3 a score has three parts. *Detection*: AP-25 is close to 1 when every target is found, for every sub-pixel's centre is within 0.236 px of its targets.
*The grid*: perfect detection with meaningless ranks scores :func:`csist.reporting.grid_ceilings`'s first number, and no more. *Ranking*: brightness that knows
how well a target fits its sub-pixel adds to that. The histories of the runs and a shuffle of the ranks tell the three apart.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csist.metrics import DISTANCE_THRESHOLDS, cso_map, is_border, match_pairs
from csist.networks.registry import NETWORKS
from csist.reporting.ceilings import Ceilings, grid_ceilings
from csist.reporting.layout import Column, Table, make_table, number, percent, signed
from csist.reporting.live import Live
from csist.reporting.pictures import MARKS
from csist.reporting.rows import make_rows
from csist.reporting.selection import variant_entry
from csist.reporting.sentences import NEARLY_ALL, bullets
from csist.reporting.sources import load_result
from csist.scenes import Targets

DRAWS = 20  # shuffles of the ranks


# ---- histories --------------------------------------------------------------------------------------------------------


def trained_rows(rows, folder: Path | None = None) -> list[dict]:
    """The rows whose results have a history, and their networks' runs with the budget of the ablation, where those are finished; each with its ``history``."""
    keys = {row["key"] for row in rows}
    twins = [variant_entry(row["method"], "standard", f"{row['label']} (shorter)", {}, ratio=row["ratio"]) for row in rows if row["key"] == row["method"]]
    more = make_rows([replace(twin, printed={}) for twin in twins if twin.key not in keys and load_result(twin.result, folder)], folder)
    found = [{**row, "history": (load_result(row["result"], folder) or {}).get("history")} for row in [*rows, *more] if row["result"]]
    return [row for row in found if row["history"]]


def common_budget(rows) -> int | None:
    """The number of samples that most rows were shown, if at least two share it."""
    counted = Counter(row["ours_samples"] for row in rows if row["ours_samples"])
    samples, times = max(counted.items(), key=lambda pair: (pair[1], -pair[0]), default=(None, 0))
    return samples if times > 1 else None


def score_at(history, samples: float) -> float | None:
    """Best validation score among the entries up to a number of samples.

    >>> score_at([{"samples": 80, "val_cso_map": 0.42}, {"samples": 160, "val_cso_map": 0.41}], 160), score_at([], 160)
    (0.42, None)
    """
    return max((entry["val_cso_map"] for entry in history if entry["samples"] <= samples), default=None)


def _last_quarter(row: dict) -> float | None:
    """Validation points that the last quarter of the samples added."""
    history = row["history"]
    before, best = score_at(history, 0.75 * history[-1]["samples"]), score_at(history, np.inf)
    return None if before is None else 100 * (best - before)


def _best_ap25(row: dict) -> float | None:
    best = max(row["history"], key=lambda entry: entry["val_cso_map"])
    return best["val_ap"][-1] if "val_ap" in best else None


def learning_table(trained) -> Table:
    """How far each run had come on the way; ``trained`` is :func:`trained_rows`."""
    budget = common_budget(trained)
    columns = [
        Column("", "samples shown", lambda row: number(row["ours_samples"], 0)),
        Column("validation, best up to", "the first epoch", lambda row: percent(score_at(row["history"], row["history"][0]["samples"]))),
        *([Column("validation, best up to", f"{budget:,} samples", lambda row: percent(score_at(row["history"], budget)))] if budget else []),
        Column("validation, best up to", "the end", lambda row: percent(score_at(row["history"], np.inf))),
        Column("", "gain of the last quarter", lambda row: signed(_last_quarter(row))),
        Column("", "AP-25", lambda row: percent(_best_ap25(row))),
    ]
    return make_table(trained, columns, "Validation CSO-mAP × 100 on the way; AP-25 is that of the weights that were kept.")


def describe_learning(trained) -> str:
    """What training length and architecture are worth, as a Markdown list; ``trained`` is :func:`trained_rows`."""
    budget = common_budget(trained)
    if not budget:
        return "- Fewer than two of these networks were shown equally many samples so far, so length and architecture cannot be told apart."
    equal = sorted((row for row in trained if row["ours_samples"] == budget), key=lambda row: -row["ours_cso_map"])
    good = [row for row in equal if (row["ours_ap25"] or 0) >= NEARLY_ALL]
    sentences = [_describe_equal(equal, good, budget)]
    longer = [row for row in trained if row["ours_samples"] > budget and score_at(row["history"], budget) is not None]
    gains = {row["label"]: 100 * (score_at(row["history"], np.inf) - score_at(row["history"], budget)) for row in longer}
    if gains:
        listed = ", ".join(f"{label} {signed(gain)}" for label, gain in gains.items())
        sentences.append(
            f"**Longer.** Beyond their first {budget:,} samples the others gained, in validation points: {listed}. At that moment their learning rates "
            "were still high, and a training made for this length would presumably have ended higher; read these gains as upper bounds."
        )
    twins = _twin_gains(trained, budget)
    if twins:
        listed = ", ".join(f"{label} {signed(gain)}" for label, gain in twins.items())
        sentences.append(
            f"**The same network twice.** Test score of the longer training against that of the shorter one: {listed} (where their recipes differ in more than "
            "length, the table of how the rows were made says so)."
        )
    if twins and len(good) > 1:
        spread, least, most = 100 * (good[0]["ours_cso_map"] - good[-1]["ours_cso_map"]), min(twins.values()), max(twins.values())
        size = "The first is the larger" if most > 2 * spread else "The second is the larger" if 2 * most < spread else "The two are of one size"
        moved = [f"{row['label']} {percent(row['ours_seeds_sd'])} over {row['ours_seeds']} seeds" for row in trained if row.get("ours_seeds_sd") is not None]
        seeds = f" (standard deviation of {', '.join(moved)})" if moved else ", which is unknown"
        sentences.append(
            f"**So** a longer training of the same network was worth {signed(least)} to {signed(most)} points on the test split, and {spread:.2f} separate the "
            "architectures that were trained equally long, though not all by one recipe, and find nearly every target. "
            f"{size}, and each row is one training: rows of different length cannot be ranked, and rows of one length only as far as they differ by "
            f"more than another seed would move them{seeds}."
        )
    return bullets(sentences)


def _describe_equal(equal, good, budget: int) -> str:
    text = f"**Equally long.** {len(equal)} networks were shown {budget:,} samples each."
    if len(good) > 1:
        text += (
            f" The {len(good)} with an AP-25 of {percent(NEARLY_ALL, 0)} or more lie between {_named(good[-1])} and {_named(good[0])} on the test split."
        )
    others = [row for row in equal if row not in good]
    if others:
        listed = ", ".join(f"{row['label']} {percent(row['ours_cso_map'])}, with an AP-25 of {percent(row['ours_ap25'], 1)}" for row in others)
        text += f" Behind, because they miss targets or rank false detections above hits (see the table of orders below, where the weights are here): {listed}."
    return text


def _named(row: dict) -> str:
    return f"{percent(row['ours_cso_map'])} ({row['label']})"


def _twin_gains(trained, budget: int) -> dict[str, float]:
    """Test points that networks gained which were trained twice, with the common budget and for longer."""
    short = {row["method"]: row for row in trained if row["key"].endswith("-standard")}
    pairs = [(short[row["method"]], row) for row in trained if row["key"] == row["method"] in short and row["ours_samples"] > budget]
    return {row["label"]: 100 * (row["ours_cso_map"] - twin["ours_cso_map"]) for twin, row in pairs}


def plot_detection(trained, ceilings: Ceilings):
    """CSO-mAP against AP-25 at every validation of every run, and what random ranks would give; returns the figure, None without a history."""
    import matplotlib.pyplot as plt

    from csist.plotting import INK, method_colour, style

    points = {row["label"]: (row, [(100 * e["val_ap"][-1], 100 * e["val_cso_map"]) for e in row["history"] if "val_ap" in e]) for row in trained}
    points = {label: (row, some) for label, (row, some) in points.items() if some}
    if not points:
        return None
    with style():
        figure, (whole, near) = plt.subplots(2, 1, figsize=(5.4, 7.0))
        for ax in (whole, near):
            ax.plot([0, 100], [0, 100 * ceilings.random], color=INK, ls="--", lw=1.2, label="AP-25 × perfect detection, random ranks")
            for (label, (row, some)), mark in zip(points.items(), MARKS * len(points)):
                best = max(some, key=lambda point: point[1])
                ax.plot(*zip(*some), color=method_colour(row["method"]), lw=0.8, marker=mark, ms=3, alpha=0.6)
                ax.plot(*best, color=method_colour(row["method"]), ls="", marker=mark, ms=8, label=label)
        lowest = min(x for _, some in points.values() for x, _ in some)
        whole.set(xlim=(lowest - 3, 101), ylim=(0.9 * min(y for _, some in points.values() for _, y in some), 100 * ceilings.random + 2))
        near.set(xlim=(93, 100), ylim=(0.93 * 100 * ceilings.random - 1.5, 100 * ceilings.random + 1.5))
        for ax in (whole, near):
            ax.set_ylabel("validation CSO-mAP × 100")
        near.set_xlabel("validation AP-25 × 100")
        figure.legend(*whole.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


# ---- detection, grid and ranking --------------------------------------------------------------------------------------


def nearest_distance(estimate: Targets, truth: Targets) -> np.ndarray:
    """Distance of every detection to the nearest true target of its frame (n, detections) [px]; infinite where there is none.

    >>> nearest_distance(Targets([[[5.0, 5.0]]], [[240.0]], [1]), Targets([[[5.3, 5.0], [5.0, 5.4]]], [[230.0, 230.0]], [2])).round(3).tolist()
    [[0.3]]
    """
    difference = estimate.xy[:, :, None] - truth.xy[:, None]  # (n, detections, targets, 2)
    return np.where(truth.mask[:, None], np.sqrt((difference**2).sum(-1)), np.inf).min(-1)


def rank_by_distance(estimate: Targets, truth: Targets) -> Targets:
    """The same detections in the best order that there is: by their distance from the nearest true target."""
    return estimate.with_score(-np.minimum(nearest_distance(estimate, truth), 99.0))


class RankScores(NamedTuple):
    """CSO-mAP of the same detections in four orders, as fractions."""

    shuffled: float  # at random
    hits_first: float  # those that are within 0.25 px of a target of their own before all others, otherwise at random
    own: float  # as they are
    best: float  # by their distance from the nearest true target


def rank_scores(estimate: Targets, truth: Targets, draws: int = DRAWS, seed: int = 0) -> RankScores:
    """What the order of some detections is worth; random orders are averaged over ``draws``.

    >>> truth = Targets([[[5.0, 5.0]]], [[240.0]], [1])
    >>> rank_scores(truth, truth)
    RankScores(shuffled=1.0, hits_first=1.0, own=1.0, best=1.0)
    """
    rng, size = np.random.default_rng(seed), estimate.intensity.shape
    frame, detection, _ = match_pairs(estimate, truth, cap=max(DISTANCE_THRESHOLDS))
    hit = np.zeros(size)
    hit[frame, detection] = 1.0
    score = lambda ranks: float(cso_map(estimate.with_score(ranks), truth).map)
    mean = lambda base: float(np.mean([score(base + rng.random(size)) for _ in range(draws)]))
    return RankScores(mean(0.0), mean(hit), float(cso_map(estimate, truth).map), float(cso_map(rank_by_distance(estimate, truth), truth).map))


def ranking_rows(rows, live: dict[str, Live], truth: Targets) -> list[dict]:
    """For every row that was answered on this page: ``key``, ``method``, ``label``, ``frames`` and the four of :class:`RankScores`."""
    answered = [(row, live[row["key"]]) for row in rows if row["key"] in live]
    about = lambda row, now: {"key": row["key"], "method": row["method"], "label": row["label"], "frames": now.frames}
    return [about(row, now) | rank_scores(now.estimate, truth[: now.frames])._asdict() for row, now in answered]


def ranking_table(ranked, ceilings: Ceilings) -> Table:
    """The scores of :func:`ranking_rows`, under those of a perfect detector on the same frames."""
    perfect = {"label": "perfect on the grid", "frames": None, "shuffled": ceilings.random, "hits_first": ceilings.random, "own": None, "best": ceilings.ranked}
    columns = [
        Column("", "frames", lambda row: number(row["frames"], 0)),
        Column("CSO-mAP × 100, detections in the order", "random", lambda row: percent(row["shuffled"])),
        Column("CSO-mAP × 100, detections in the order", "hits first", lambda row: percent(row["hits_first"])),
        Column("CSO-mAP × 100, detections in the order", "brightness", lambda row: percent(row["own"])),
        Column("CSO-mAP × 100, detections in the order", "true distance", lambda row: percent(row["best"])),
    ]
    return make_table([perfect, *ranked], columns, "The same detections in another order, on the frames answered on this page.")


def describe_ranking(ranked, ceilings: Ceilings) -> str:
    """What detection, false alarms and ranking are worth, as a Markdown list; ``ceilings`` are those of the frames that the networks answered."""
    networks = [row for row in ranked if row["method"] in NETWORKS]
    if len(networks) < 2:
        return "- Fewer than two networks were answered on this page, so there is nothing to compare."
    missed = [100 * (row["hits_first"] - ceilings.random) for row in networks]
    sorted_out = [100 * (row["hits_first"] - row["shuffled"]) for row in networks]
    placed = [100 * (row["own"] - row["hits_first"]) for row in networks]
    room = [100 * (row["best"] - row["own"]) for row in networks]
    return bullets([
        f"**Targets missed.** With all false alarms at the end, the networks stand {_span(missed, networks)} points from a perfect detector with random ranks.",
        f"**False alarms.** Hits first instead of random order is worth {_span(sorted_out, networks)} points: that much can be won by giving the lowest "
        "scores to false alarms, such as the halves of split targets.",
        f"**Brightness** stands {_span(placed, networks)} points from \"hits first\": it wins by knowing a little of how well a target fits its sub-pixel, and "
        f"loses where a false alarm outshines a hit. {_beyond(placed, networks)}",
        f"**Room.** The same detections in the order of their true distance would score {_span(room, networks)} points more.",
    ])


def _beyond(placed, rows) -> str:
    """Whose brightness wins more by what it knows of the places than it loses by false alarms."""
    names = ", ".join(row["label"] for value, row in zip(placed, rows) if value > 0)
    return f"Above zero ({names}) the first outweighs the second." if names else "Nowhere does the first outweigh the second."


def _span(values, rows) -> str:
    """From the smallest to the largest value, each with its row."""
    low, high = int(np.argmin(values)), int(np.argmax(values))
    return f"{signed(values[low])} ({rows[low]['label']}) to {signed(values[high])} ({rows[high]['label']})"


def describe_places(rows, truth: Targets, ratio: int = 3) -> str:
    """Interior and border apart: ceilings of both, and how far the rows stay below them, as one Markdown paragraph."""
    border = is_border(truth)
    inside, outside = (100 * grid_ceilings(truth[np.flatnonzero(some)], ratio).random for some in (~border, border))
    text = (
        f"Perfect detection with random ranks would score {inside:.1f} inside and {outside:.1f} at the border, where {100 * border.mean():.0f} % of the frames "
        "have their cluster."
    )
    trained = [row for row in rows if row["ours_samples"] and row["ours_interior_cso_map"] is not None]
    if len(trained) < 2:
        return text
    places = {name: [100 * row[f"ours_{name}_cso_map"] for row in trained] for name in ("interior", "border")}
    reach = [row["label"] for row in trained if 100 * row["ours_interior_cso_map"] >= inside]
    at_border = [row["label"] for row in trained if 100 * row["ours_border_cso_map"] >= outside]
    good = [row for row in trained if (row["ours_ap25"] or 0) >= NEARLY_ALL]
    listed = f" ({', '.join(reach)})" if reach else ""
    text += f" {len(reach)} of the {len(trained)} trained networks reach the first number{listed}, {len(at_border)} the second; the best at the border has "
    text += f"{max(places['border']):.1f}."
    if len(good) > 1:
        width = {name: max(values) - min(values) for name in places for values in [[100 * row[f"ours_{name}_cso_map"] for row in good]]}
        text += (
            f" Among the {len(good)} that find nearly every target the scores differ by {width['interior']:.1f} points inside and by {width['border']:.1f} at "
            "the border."
        )
    return text
