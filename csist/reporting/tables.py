"""The tables of the results pages."""
from __future__ import annotations

import re

from csist.reporting.layout import MISSING, Column, Table, as_printed, make_table, number, percent, row_value, signed
from csist.reporting.sources import AP_NAMES

RATES = ("cosine", "constant", "then ")  # how the parts of a recipe begin that speak of the learning rate


def our_score(row: dict) -> str:
    """CSO-mAP of a row with its interval, or why there is none."""
    if row["status"] != "scored":
        return row["status"]
    return f"{percent(row['ours_cso_map'])} ({percent(row['ours_low'])} to {percent(row['ours_high'])})"


def seeds_text(row: dict) -> str:
    """Mean ± standard deviation over training seeds, with their number."""
    if row["ours_seeds"] is None:
        return MISSING
    spread = f" ± {percent(row['ours_seeds_sd'])}" if row["ours_seeds_sd"] is not None else ""
    return f"{percent(row['ours_seeds_mean'])}{spread} ({row['ours_seeds']})"


def difference(row: dict) -> float | None:
    """Our CSO-mAP minus the paper's, in points; None unless both exist."""
    if row["ours_cso_map"] is None or row["paper_cso_map"] is None:
        return None
    return 100 * row["ours_cso_map"] - row["paper_cso_map"]


def hours_text(row: dict) -> str:
    """Hours that a row took, and which: of processor time where a training on a processor counted them, else on the clock.

    >>> hours_text({"ours_hours": 0.84, "ours_processor_hours": 0.168}), hours_text({"ours_hours": 2.03, "ours_processor_hours": None})
    ('0.17 processor', '2.03')
    """
    if row["ours_processor_hours"] is not None:
        return f"{number(row['ours_processor_hours'])} processor"
    return number(row["ours_hours"])


HOURS = 'Hours are those on the clock; "processor" marks hours of processor time, all cores added up.'  # for captions


def device_text(device: str | None) -> str:
    """A processor's name without trade marks, filling words and clock rate.

    >>> device_text("Intel(R) Xeon(R) Processor @ 2.50GHz"), device_text("AMD EPYC"), device_text(None)
    ('Intel Xeon', 'AMD EPYC', '–')
    """
    return " ".join(word for word in re.sub(r"\((R|TM)\)|@.*", "", device or MISSING).split() if word not in ("Processor", "CPU"))


def headline_table(rows) -> Table:
    """CSO-mAP of the paper and ours side by side."""
    columns = [
        Column("paper", "CSO-mAP", row_value("paper_cso_map")),
        Column("ours", "CSO-mAP (95 % interval)", our_score),
        Column("ours", "difference", lambda row: signed(difference(row))),
        Column("ours", "mean ± sd (seeds)", seeds_text),
        Column("ours", "count right [%]", row_value("ours_count_accuracy", percent, digits=1)),
    ]
    return make_table(rows, columns, _caption("CSO-mAP × 100 on the test split", rows))


def comparison_table(rows, precisions=()) -> Table:
    """CSO-mAP and some of the five average precisions, the paper's and ours, with the training that each row had; ``precisions`` are of AP_NAMES."""
    columns = [Column("paper", "CSO-mAP", paper_score)]
    columns += [Column("paper", _threshold(name), row_value(f"paper_{name}")) for name in precisions]
    columns += [Column("ours", "CSO-mAP (95 % interval)", our_score)]
    columns += [Column("ours", _threshold(name), row_value(f"ours_{name}", percent)) for name in precisions]
    columns += [Column("ours", "mean ± sd (seeds)", seeds_text), Column("ours", "samples shown", row_value("ours_samples", digits=0))]
    return make_table(rows, columns, _caption("CSO-mAP × 100 on the test split", rows))


def paper_score(row: dict) -> str:
    """The paper's CSO-mAP; one that it only draws is marked."""
    return number(row["paper_cso_map"]) + (" (curve)" if read_off(row) else "")


def read_off(row: dict) -> bool:
    """Whether the paper's number was read off a drawn curve instead of being printed."""
    return (row["paper_note"] or "").startswith("read off")


def _threshold(name: str) -> str:
    return f"AP-{name[2:]}"


def precision_table(rows) -> Table:
    """AP at the five distance thresholds."""
    columns = [Column("paper", _threshold(name), row_value(f"paper_{name}")) for name in AP_NAMES]
    columns += [Column("ours", _threshold(name), row_value(f"ours_{name}", percent)) for name in AP_NAMES]
    return make_table(rows, columns, _caption("Average precision × 100 at 0.05 to 0.25 px", rows))


def size_table(rows) -> Table:
    """Parameters and multiply-accumulates, printed (where for any row they are) and counted here; for rows that say so, also how many parameters the
    training reaches."""
    columns = [
        Column("paper", "parameters [M]", row_value("paper_parameters_m", as_printed)),
        Column("paper", "MACs of 64 frames [G]", row_value("paper_macs_g_batch64", as_printed)),
        Column("ours", "parameters", row_value("ours_parameters", digits=0)),
        Column("ours", "MACs of 64 frames [G]", row_value("ours_macs_batch64", digits=2, unit=1e9)),
        Column("ours", "of one, as run [M]", row_value("ours_macs_per_frame", digits=0, unit=1e6)),
    ]
    if any("ours_with_gradient" in row for row in rows):
        columns.insert(3, Column("ours", "of these with a gradient", row_value("ours_with_gradient", digits=0)))
    columns = [column for column in columns if column.group == "ours" or any(column.text(row) != MISSING for row in rows)]
    return make_table(rows, columns, "Size and cost; multiply-accumulates (MACs) of 64 frames in the paper's count, and of a single frame as it runs here.")


def image_table(rows) -> Table:
    """PSNR and SSIM, which reward empty images (book chapter "Keeping score")."""
    columns = [
        Column("paper", "PSNR [dB]", lambda row: _two(row["paper_psnr"], row["paper_psnr_later"], 2)),
        Column("paper", "SSIM", lambda row: _two(row["paper_ssim"], row["paper_ssim_later"], 4)),
        Column("ours", "PSNR [dB]", row_value("ours_psnr")),
        Column("ours", "SSIM", row_value("ours_ssim", digits=4)),
    ]
    return make_table(rows, columns, "Image scores; where the paper has two values, the article's comes first and its code page's second.")


def _two(first, second, digits: int) -> str:
    return " / ".join(dict.fromkeys(number(value, digits) for value in (first, second)))


def training_table(rows) -> Table:
    """What each scored row was made with; what all their recipes share is said once, in the caption."""
    rows = [row for row in rows if row["status"] == "scored"] or rows
    recipes = [row["ours_recipe"].split(", ") for row in rows if row["ours_recipe"]]
    shared = [part for part in (recipes[0] if recipes else []) if not part.startswith(RATES) and all(part in recipe for recipe in recipes)]
    own = lambda recipe: ", ".join(part for part in recipe.split(", ") if part not in shared)
    seeds = {row["ours_seed"] for row in rows if row["ours_seed"] is not None}
    columns = [
        Column("ours", "samples shown", lambda row: row["ours_views"] or _settings_text(row)),
        Column("ours", "recipe", lambda row: own(row["ours_recipe"]) if row["ours_recipe"] else MISSING),
        Column("ours", "hours", hours_text),
        Column("ours", "device", lambda row: device_text(row["ours_device"])),
        *([Column("ours", "seed", row_value("ours_seed", digits=0))] if len(seeds) > 1 else []),
        Column("ours", "commit and date", lambda row: ", ".join(filter(None, (row["ours_commit"], row["ours_date"]))) or MISSING),
    ]
    alike = [*shared, *(f"seed {seed}" for seed in seeds if len(seeds) == 1)]
    said = f" All trainings: {', '.join(alike)}." if alike else ""
    return make_table(rows, columns, f"How the rows were made: the training, or the computing of a row without training. {HOURS}{said}")


def _settings_text(row: dict) -> str:
    return "nothing is trained" if row["ours_settings"] else MISSING


def parts_table(rows, score: str = "cso_map") -> Table:
    """A score of the scored rows by number of targets, inside and at the border of the frame; ``score`` is "cso_map" or "count_accuracy"."""
    rows = [row for row in rows if row["status"] == "scored"] or rows
    names = {**{f"{n}_targets": f"{n} target{'s' * (n > 1)}" for n in range(1, 6)}, "interior": "interior", "border": "border"}
    columns = [Column("", name, row_value(f"ours_{part}_{score}", percent)) for part, name in names.items()]
    captions = {
        "cso_map": "Our CSO-mAP × 100 by number of true targets and by place, each part ranked by itself.",
        "count_accuracy": "Our share of frames with the right number of targets, in per cent, by that number and by place.",
    }
    return make_table(rows, columns, captions[score])


def bench_table(bench: dict) -> Table:
    """The measurements of ``reproduce/bench.py``: time per unit, gain over the naive version, and the score where there is one."""
    columns = [("", "what"), ("", "time"), ("", "gain"), ("", "CSO-mAP × 100")]
    cells = []
    for value in bench["entries"]:
        gain = f"{value['times_faster']:,.{0 if value['times_faster'] >= 100 else 1}f} ×" if "naive" in value else MISSING
        score = f"{100 * value['cso_map']:.2f}" if "cso_map" in value else MISSING
        cells.append([value["what"], f"{_duration(value['ours']['seconds'])} per {value['unit']}", gain, score])
    return Table("Measured in one run; the gain is over the naive version named behind the slash.", columns, cells)


def _duration(seconds: float) -> str:
    """A time in the unit that keeps its number readable.

    >>> _duration(0.0027), _duration(4.48), _duration(3.6e-9)
    ('2.70 ms', '4.48 s', '3.60 ns')
    """
    unit, scale = next((u for u in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if seconds >= u[1]), ("ns", 1e-9))
    return f"{seconds / scale:.3g} {unit}" if seconds / scale >= 100 else f"{seconds / scale:.2f} {unit}"


def _caption(what: str, rows) -> str:
    frames = sorted({row["ours_frames"] for row in rows if row["ours_frames"]})
    counted = f", {' or '.join(f'{n:,}' for n in frames)} frames" if frames else ""
    ratios = " and ".join(str(ratio) for ratio in dict.fromkeys(row["ratio"] for row in rows))
    return f"{what}{counted}, c = {ratios}." if rows else f"{what}."


def readme_table(rows) -> Table:
    """The headline table of README.md."""
    columns = [
        Column("", "paper", row_value("paper_cso_map")),
        Column("", "ours (95 % interval)", our_score),
        Column("", "mean ± sd (seeds)", seeds_text),
        Column("", "parameters", row_value("ours_parameters", digits=0)),
        Column("", "samples shown", row_value("ours_samples", digits=0)),
        Column("", "hours, device", lambda row: f"{hours_text(row)}, {device_text(row['ours_device'])}" if row["ours_hours"] is not None else MISSING),
    ]
    return make_table(rows, columns, _caption("CSO-mAP × 100 on the test split", rows))
