"""The board, the gallery, and the scripts that measure for them."""
from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from csist.datasets import csist100k
from csist.networks import NETWORKS
from csist.networks.registry import run_name

pytest.importorskip("accelerate")
from csist import reporting
from csist.readout import READOUTS
from csist.reporting import gallery, leaderboard
from csist.reporting.leaderboard import QUANTITIES, coordinates, crowded_range, later_work, leaderboard_rows, spread

REPRODUCE = Path(__file__).resolve().parent.parent / "reproduce"
TRAINED = [name for name in NETWORKS if (REPRODUCE / "weights" / f"{run_name(name, 3)}.safetensors").is_file()]
SMALLEST = "ista-net"


def script(name: str):
    """A script of reproduce as a module, under a name of its own: "queue" is taken."""
    spec = importlib.util.spec_from_file_location(f"reproduce_{name}", REPRODUCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = sys.path.copy()
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def score(value: float) -> dict:
    return {"cso_map": value, "count_accuracy": value / 2}


@pytest.fixture
def folder(tmp_path):
    """A reproduce folder with the stored results, and made-up speeds and read-outs of one network."""
    shutil.copytree(REPRODUCE / "results", tmp_path / "results")
    measurements = [
        {"batch": 64, "precision": "float32", "windows": False, "frames_per_second": 100.0},
        {"batch": 64, "precision": "bfloat16", "windows": True, "frames_per_second": 400.0},
        {"batch": 64, "precision": "bfloat16", "windows": False, "error": "not on this machine"},
        {"batch": 1, "precision": "float32", "windows": False, "frames_per_second": 20.0},
    ]
    machine = {"device": "cpu", "threads": 2}
    speeds = {"ratio": 3, "machine": machine, "networks": {SMALLEST: {"measurements": measurements}}, "provenance": {"date": "2026-01-01", "device": "x"}}
    # "merged" is better on test frames, "fitted" on validation frames: the choice must be made on the latter
    scores = {"threshold": (0.45, 0.45), "fitted": (0.55, 0.54), "merged": (0.50, 0.56), "counted": (0.52, 0.53)}
    entry = {"readouts": {name: {"settings": {}, "validation": {"cso_map": val}, "test": score(test)} for name, (val, test) in scores.items()}}
    (tmp_path / "results" / "throughput.json").write_text(json.dumps(speeds))
    (tmp_path / "results" / "readouts.json").write_text(json.dumps({"runs": {run_name(SMALLEST, 3): entry}}))
    return tmp_path


@pytest.fixture
def bare(folder):
    """The same without speeds and read-outs."""
    for name in ("throughput", "readouts"):
        (folder / "results" / f"{name}.json").unlink()
    return folder


# Rows


def test_rows_are_ordered_by_our_score_and_then_by_the_papers(folder):
    rows = leaderboard_rows(3, folder=folder)
    scored = [row for row in rows if row["status"] == "scored"]
    assert rows[: len(scored)] == scored and [row["rank"] for row in scored] == list(range(1, len(scored) + 1))
    assert [row["ours_cso_map"] for row in scored] == sorted((row["ours_cso_map"] for row in scored), reverse=True)
    printed = [row["paper_cso_map"] or 0 for row in rows[len(scored) :]]
    assert printed == sorted(printed, reverse=True) and all(row["rank"] is None for row in rows[len(scored) :])


def test_scores_are_those_of_the_result_files(folder):
    for row in leaderboard_rows(3, folder=folder):
        if row["status"] == "scored":
            assert row["ours_cso_map"] == reporting.load_result(row["result"], folder)["test"]["cso_map"]


def test_speed_is_that_of_the_fastest_way_that_worked(folder):
    row = next(row for row in leaderboard_rows(3, folder=folder) if row["key"] == SMALLEST)
    assert row["frames_per_second"] == 400 and row["latency_ms"] == 50


def test_the_best_read_out_is_chosen_on_validation_frames(folder):
    row = next(row for row in leaderboard_rows(3, folder=folder) if row["key"] == SMALLEST)
    assert row["readout"] == "fitted" and row["readout_cso_map"] == 0.54 and row["counted_cso_map"] == 0.53


def test_missing_files_leave_gaps_and_are_named(bare):
    rows = leaderboard_rows(3, folder=bare)
    assert all(row[name] is None for row in rows for name in ("frames_per_second", "latency_ms", "readout", "readout_cso_map", "counted_cso_map"))
    text = leaderboard.describe_sources(bare)
    assert "throughput.json` is missing" in text and "readouts.json` is missing" in text
    assert "| –" in leaderboard.leaderboard_table(rows).markdown() and leaderboard.readout_table(None).cells == []


def test_speeds_of_another_ratio_are_not_borrowed(folder):
    path = folder / "results" / "throughput.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ratio": 5}))
    assert all(row["frames_per_second"] is None for row in leaderboard_rows(3, folder=folder))


def test_every_row_without_a_score_says_why(folder):
    rows = leaderboard_rows(3, folder=folder)
    text = leaderboard.describe_status(rows)
    assert all(row["status"] == "scored" or row["label"] in text for row in rows)
    table = leaderboard.leaderboard_table(rows, later_work(3))
    assert len(table.cells) == len(rows) + len(later_work(3)) and sum("not " in line[1] for line in table.cells) == sum(row["rank"] is None for row in rows)


def test_the_cost_table_has_the_networks_in_the_boards_order(folder):
    rows = leaderboard_rows(3, folder=folder)
    names = [line[0] for line in leaderboard.cost_table(rows).cells]
    board = [line[0] for line in leaderboard.leaderboard_table(rows).cells]
    assert names == [name for name in board if name in names] and len(names) == sum(row["ours_parameters"] is not None for row in rows)


def test_later_work_is_cited_with_what_it_prints():
    work = later_work(3)
    assert work and work == sorted(work, key=lambda line: -line["cso_map"]) and later_work(7) == []
    text = leaderboard.cite_later_work(work)
    assert all(line["label"] in text and (line["note"] or "") in text for line in work)
    assert all(f"{line['cso_map']:.2f}" in text for line in work if line["cso_map_low"] is None) and "84.6 or 89.0, inferred" in text


def test_readout_tables_have_a_column_for_each_read_out_that_was_scored(folder):
    table = leaderboard.readout_table(reporting.load_result("readouts", folder))
    assert [name for _, name in table.columns] == ["network", "threshold", "merged", "fitted", "counted"]
    assert table.cells == [[run_name(SMALLEST, 3), "45.00", "56.00", "54.00", "53.00"]]


def test_a_speed_on_windows_counts_only_where_a_window_tells_as_much():
    measured = {"measurements": [{"batch": 64, "windows": windows, "frames_per_second": speed} for windows, speed in ((False, 100.0), (True, 400.0))]}
    speed = lambda method: leaderboard._speed_columns(method, measured)["frames_per_second"]
    assert speed("ista-net") == 400 and speed("edsr") == 100  # EDSR takes a mean over the image


def test_rows_that_were_trained_longer_are_named():
    rows = [{"label": label, "ours_samples": samples} for label, samples in (("A", 3000), ("B", 1800), ("C", 1000), ("D", 1000), ("E", None))]
    assert leaderboard.describe_training(rows).startswith("Shown 1.8 to 3.0 times as many samples as most others: A, B. ")
    assert leaderboard.describe_training(rows[1:]).startswith("Shown 1.8 times as many samples as most others: B. ")
    assert leaderboard.describe_training(rows[2:]) == "" == leaderboard.describe_training([])


def test_the_shift_of_windows_is_computed(folder):
    stored, own = reporting.load_result("readouts", folder), reporting.load_result(run_name(SMALLEST, 3), folder)["test"]
    expected = abs(0.45 - own["cso_map"]), abs(0.225 - own["count_accuracy"])
    text = leaderboard.describe_shift(stored, folder)
    assert f"{100 * expected[0]:.2f} points" in text and f"{100 * expected[1]:.1f} percentage points" in text
    assert "No network" in leaderboard.describe_shift(None, folder)


# Figures


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_figures_draw_every_row_that_has_a_place_and_a_score(folder, quantity):
    plt = pytest.importorskip("matplotlib.pyplot")
    rows, later = leaderboard_rows(3, folder=folder), later_work(3)
    ceilings = reporting.grid_ceilings(csist100k("test", 64).targets, 3)
    figure = leaderboard.plot_against(rows, quantity, ceilings, later)
    names = {text.get_text() for ax in figure.axes for text in ax.texts}
    placed = {row["label"] for row in rows if any(coordinates(row, quantity).values()) and (row["ours_cso_map"] or row["paper_cso_map"])}
    assert names == placed | {f"{work['label']} ({work['year']:.0f})" for work in later}
    missing = leaderboard.describe_missing(rows, quantity)
    assert all(row["label"] in missing for row in rows if row["label"] not in placed)
    open_marks = [line for line in figure.axes[0].get_lines() if line.get_marker() == "D" and len(line.get_xdata())]
    assert all(line.get_markerfacecolor() == "none" for line in open_marks)
    assert sum(line.get_ydata()[0] == 100 * ceilings.random for line in figure.axes[1].get_lines() if len(line.get_ydata())) == 1
    plt.close(figure)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_names_do_not_overlap(folder, quantity):
    plt = pytest.importorskip("matplotlib.pyplot")
    from matplotlib.text import Text

    figure = leaderboard.plot_against(leaderboard_rows(3, folder=folder), quantity, None, later_work(3))
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = sorted((Text.get_window_extent(text) for text in ax.texts), key=lambda box: box.y0)  # the words alone, not the line to their point
        assert all(lower.y1 <= upper.y0 + 1 for lower, upper in zip(boxes, boxes[1:]))
    plt.close(figure)


def test_without_any_speed_there_is_no_figure(bare):
    rows = leaderboard_rows(3, folder=bare)
    assert leaderboard.plot_against(rows, "speed", None, later_work(3)) is None
    text = leaderboard.describe_missing(rows, "speed")
    assert "Without a measured speed" in text and all(row["label"] in text for row in rows)


def test_unknown_quantities_are_named():
    with pytest.raises(ValueError, match="quantity must be one of parameters, macs, speed"):
        coordinates({}, "price")


def test_spread_keeps_order_distance_and_ends():
    rng = np.random.default_rng(0)
    for number in (1, 2, 7, 30):
        places = np.sort(rng.random(number))
        moved = spread(list(places), 0.05)
        gap = min(0.05, 1 / max(number - 1, 1))
        assert all(b - a >= gap - 1e-9 for a, b in zip(moved, moved[1:])) and moved[0] >= -1e-9 and moved[-1] <= 1 + 1e-9
    assert spread([], 0.1) == [] and spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])


def test_the_magnified_part_holds_the_best_scores():
    low, high = crowded_range([7.5, 30.0, 44.5, 46.7])
    assert 30 < low < 44.5 and 46.7 < high < 50 and crowded_range([]) == (49.5, 50.5)


# Gallery


def first_frames():
    data = csist100k("test", 64)
    places = gallery.first_of_each_count(data)
    return gallery.take(data, places), places


def test_the_gallery_takes_the_first_frame_of_each_count():
    data, places = first_frames()
    everything = csist100k("test", 64).targets.count
    assert data.targets.count.tolist() == [1, 2, 3, 4, 5] and all(count not in everything[:place] for count, place in zip(data.targets.count, places))
    with pytest.raises(ValueError, match="none of these 64 frames has 6 targets"):
        gallery.first_of_each_count(csist100k("test", 64), counts=(6,))


def test_the_gallery_shows_trained_networks_and_names_the_others(tmp_path):
    data, _ = first_frames()
    found = gallery.answers(data, [SMALLEST, "lista", "ista"], folder=tmp_path)
    assert all(answer.images is None for answer in found) and [answer.status for answer in found] == ["not trained yet", "not trained yet", "no network"]
    assert "LISTA (not trained yet)" in gallery.describe_missing(found)


def test_a_perfect_answer_has_no_missed_and_no_false_detection():
    from csist.imaging import SubpixelGrid

    data, places = first_frames()
    perfect = gallery.Answer("perfect", "perfect", SubpixelGrid(ratio=3).image(data.targets), "trained")
    rows = gallery.error_rows(data, places, [perfect])
    assert [row["hits"] for row in rows] == [1, 2, 3, 4, 5] and all(row["missed"] == row["false"] == 0 and 0 < row["rms_distance"] < 0.24 for row in rows)
    assert gallery.error_table(rows).cells[0][1].startswith("1 of 1, 0 false, 0.")
    empty = perfect._replace(images=np.zeros((5, 33, 33)))
    assert [row["missed"] for row in gallery.error_rows(data, places, [empty])] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(SMALLEST not in TRAINED, reason="no weights yet")
def test_the_gallery_has_a_line_for_the_frame_the_truth_and_each_network():
    plt = pytest.importorskip("matplotlib.pyplot")
    data, places = first_frames()
    found = gallery.answers(data, [SMALLEST, "lista", "ista"])
    figure = gallery.plot_gallery(data, places, found)
    shown = sum(answer.images is not None for answer in found)
    assert len(figure.axes) == 5 * (2 + shown) and all(len([line for line in ax.get_lines() if line.get_marker() == "o"]) == 1 for ax in figure.axes)
    plt.close(figure)


# Scripts


@pytest.mark.slow
def test_throughput_is_measured_for_every_way_a_network_can_run(tmp_path):
    throughput, output = script("throughput"), tmp_path / "throughput.json"
    assert throughput.main(["--networks", SMALLEST, "--seconds", "0.001", "--output", str(output)]) == 0
    stored = json.loads(output.read_text())
    ways = [(entry["batch"], entry["precision"], entry["windows"]) for entry in stored["networks"][SMALLEST]["measurements"]]
    assert len(ways) == len(set(ways)) == 8 and {"versions", "device", "commit"} <= set(stored["provenance"])
    assert all(entry.get("frames_per_second", 0) > 0 or entry["error"] for entry in stored["networks"][SMALLEST]["measurements"])
    with pytest.raises(SystemExit):
        throughput.main(["--networks", SMALLEST])  # a trial must not replace the measurements of all networks


@pytest.mark.skipif(SMALLEST not in TRAINED, reason="no weights yet")
def test_scoring_read_outs_goes_on_where_it_was(tmp_path, capsys):
    scoring, output, run = script("score_readouts"), tmp_path / "readouts.json", run_name(SMALLEST, 3)
    trial = ["--only", run, "--val-size", "12", "--size", "12", "--output", str(output)]
    assert scoring.main(trial) == 0
    stored = json.loads(output.read_text())["runs"][run]
    assert set(stored["readouts"]) == set(READOUTS) and stored["frames"] == stored["validation_frames"] == 12
    for entry in stored["readouts"].values():
        assert 0 <= entry["test"]["cso_map"] <= 1 and len(entry["test"]["ap"]) == 5 and len(entry["test"]["interval"]) == 2
        assert entry["validation"]["tried"] >= 1
    capsys.readouterr()
    assert scoring.main(trial) == 0 and "is current" in capsys.readouterr().out
    options = argparse.Namespace(val_size=12, size=12, whole=True)
    assert not scoring.is_current(stored, scoring.plan(options, REPRODUCE / "weights" / f"{run}.safetensors"))
    with pytest.raises(SystemExit):
        scoring.main(["--size", "12"])  # a trial must not replace scores of the whole split


# Pages


@pytest.mark.slow
@pytest.mark.parametrize(("name", "figures"), [("figure5_gallery", 1), ("leaderboard", 2)])
def test_pages_run_at_smoke_scale_from_anywhere(tmp_path, monkeypatch, name, figures):
    papermill = pytest.importorskip("papermill")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    parameters = {"scale": "smoke", "device": "cpu", "output_dir": str(tmp_path / "output")}
    if name == "figure5_gallery":
        parameters["methods"] = [SMALLEST]
    paths = str(REPRODUCE / f"{name}.ipynb"), str(tmp_path / "page.ipynb")
    page = papermill.execute_notebook(*paths, parameters, kernel_name="python3", cwd=str(tmp_path), progress_bar=False)
    outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"] and str(tmp_path) not in json.dumps(outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= figures
    rows = json.loads((tmp_path / "output" / f"{name}.json").read_text())["rows"]
    assert rows and (tmp_path / "output" / f"{name}.csv").read_text().count("\n") == len(rows) + 1
