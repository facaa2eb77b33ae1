"""What the order of the detections is worth when it is learned: the rows of ``results/confidence.json`` (pages "Table 1" and "Table 3")."""
from __future__ import annotations

from pathlib import Path

from csist.networks.registry import run_name
from csist.reporting.ceilings import Ceilings
from csist.reporting.layout import Column, Table, make_table, percent
from csist.reporting.selection import method_label
from csist.reporting.sources import load_result


def confidence_rows(ratios=(3,), folder: Path | None = None) -> list[dict]:
    """The networks in their main setting whose detections were ranked by a learned confidence, by ratio, the best first.

    Each has ``label``, ``method``, ``ratio``, ``training_frames`` and, of the test split, ``cso_map``, ``interval``, ``brightness``, ``true_distance``,
    ``claimed`` and ``real``; ``validation`` is the score on validation frames.
    """
    runs = (load_result("confidence", folder) or {"runs": {}})["runs"]
    rows = []
    for name, run in runs.items():
        if run["ratio"] in ratios and name == run_name(run["network"], run["ratio"]):
            about = {"key": name, "method": run["network"], "ratio": run["ratio"], "label": method_label(run["network"], run["ratio"])}
            shown = {"training_frames": run["shown"]["training"]["frames"], "validation": run["validation"]["cso_map"]}
            rows.append(about | shown | run["test"])
    return sorted(rows, key=lambda row: (row["ratio"], -row["cso_map"]))


def confidence_table(rows, ceilings: dict[int, Ceilings]) -> Table:
    """The rows of :func:`confidence_rows` under a perfect detector on each grid; ``ceilings`` by ratio, of the test split."""
    several, group = len(ceilings) > 1, "test CSO-mAP × 100 by"
    at = lambda label, ratio: f"{label}, c = {ratio}" if several else label
    lines = []
    for ratio, ceiling in ceilings.items():
        blank = dict.fromkeys(("interval", "brightness", "cso_map", "claimed", "real"))
        lines.append({**blank, "label": at("perfect on the grid", ratio), "random": ceiling.random, "true_distance": ceiling.ranked})
        lines += [{**row, "label": at(row["label"], ratio), "random": None} for row in rows if row["ratio"] == ratio]
    columns = [
        Column(group, "random ranks", lambda row: percent(row["random"])),
        Column(group, "brightness", lambda row: percent(row["brightness"])),
        Column(group, "confidence", lambda row: percent(row["cso_map"])),
        Column(group, "95 % interval", lambda row: " to ".join(percent(value) for value in row["interval"]) if row["interval"] else percent(None)),
        Column(group, "true distance", lambda row: percent(row["true_distance"])),
        Column("thresholds met [%]", "claimed", lambda row: percent(row["claimed"], 1)),
        Column("thresholds met [%]", "real", lambda row: percent(row["real"], 1)),
    ]
    return make_table(lines, columns, "The same detections at the same places, ranked by brightness, by the learned confidence and by true distance.")


def describe_confidence(rows, ceilings: dict[int, Ceilings]) -> str:
    """What the learned confidence is worth and how much of the room it uses, as Markdown: a paragraph for each ratio."""
    paragraphs = []
    for ratio, ceiling in ceilings.items():
        some = [row for row in rows if row["ratio"] == ratio]
        if not some:
            paragraphs.append(f"No network at c = {ratio} has a learned confidence yet.")
            continue
        best = max(some, key=lambda row: row["cso_map"])
        gain, room = (100 * (best[name] - best["brightness"]) for name in ("cso_map", "true_distance"))
        sizes = " and ".join(f"{size:,}" for size in sorted({row["training_frames"] for row in some}))
        paragraphs.append(
            f"At c = {ratio}, trees that learned from {sizes} training frames lift {best['label']} from {percent(best['brightness'])} to "
            f"**{percent(best['cso_map'])}**: {gain:.1f} of the {room:.1f} points that the best order of its detections would bring. A perfect detector has "
            f"{percent(ceiling.random)} with random and {percent(ceiling.ranked)} with perfect ranks."
        )
    return "\n\n".join(paragraphs)
