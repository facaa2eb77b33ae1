"""Tables, plots and sentences of the results pages: what they take from files, what they refuse, how they say it."""
from __future__ import annotations

import csv
import json
import re
import statistics
from dataclasses import asdict, replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from csist import reporting
from csist.datasets import csist100k, frames_hash
from csist.evaluation import provenance
from csist.metrics import score_report
from csist.networks import create_network
from csist.networks.registry import NETWORKS, run_name, write_weights
from csist.reporting import selection, sources
from csist.scenes import Targets
from csist.solvers.ista import PAPER, TUNED
from csist.training import Phase, Run, write_json

METHODS = ["ista", "ista-net", "ista-net+", "dista-net"]
FRAMES = 40


def noisy_answer(targets: Targets, spread: float) -> Targets:
    """The truth, moved about."""
    rng = np.random.default_rng(3)
    return Targets(targets.xy + rng.normal(0, spread, targets.xy.shape), targets.intensity, targets.count)


def made_up_test(spread: float = 0.1) -> dict:
    """A ``test`` block of a result file on a few test frames."""
    data = csist100k("test", FRAMES)
    report = score_report(noisy_answer(data.targets, spread), data.targets, resamples=20)
    return {"frames": FRAMES, "frames_sha256": frames_hash(data), "psnr": 30.0, "ssim": 0.95, **report}


def made_up_result(name: str, spread: float = 0.1) -> dict:
    """The result file of a run of runs.yaml, with an answer that nobody trained."""
    run = next(run for run in reporting.load_runs() if run.name == name)
    history = [{"samples": n * 1000, "view": view, "val_cso_map": 0.1 * n} for n, view in ((1, "windows"), (2, "frames"))]
    return {"run": asdict(run), "hours": 0.5, "history": history, "test": made_up_test(spread), "provenance": provenance()}


@pytest.fixture
def folder(tmp_path):
    """A folder with DISTA-Net trained by three seeds, ISTA scored in the paper's setting, and nothing else."""
    (tmp_path / "results").mkdir()
    (tmp_path / "weights").mkdir()
    for seed, spread in enumerate((0.10, 0.11, 0.09)):
        write_json(tmp_path / "results" / f"dista-net-c3-seed{seed}.json", made_up_result(f"dista-net-c3-seed{seed}", spread))
    ista = {"name": "ista-paper-c3", "settings": asdict(PAPER), "hours": 0.1, "test": made_up_test(0.3), "provenance": provenance()}
    write_json(tmp_path / "results" / "ista-paper-c3.json", ista)
    return tmp_path


@pytest.fixture
def rows(folder):
    return {row["key"]: row for row in reporting.table1_rows(3, METHODS, folder=folder)}


# What the paper prints


def test_the_papers_means_are_the_means_of_its_precisions():
    wrong = {
        line["method"]
        for line in reporting.load_paper_table("table1_main_c3.csv")
        if abs(np.mean([line[name] for name in reporting.AP_NAMES]) - line["cso_map"]) > 0.011
    }
    assert wrong == {"EGASR", "LIHT", "TiLISTA"}  # three rows of the paper contradict themselves; see reproduce/paper/README.md


def test_empty_cells_of_the_paper_stay_empty():
    assert reporting.paper_values(3)["ista"]["params_m"] is None
    assert reporting.paper_values(3)["hit-sir"]["psnr_repo"] is None


# Rows


def test_rows_come_in_the_order_asked_for(rows):
    assert list(rows) == ["ista-paper", "ista-tuned", "ista-net", "ista-net+", "dista-net"]


def test_without_a_result_a_row_says_so_and_borrows_nothing(rows):
    row = rows["ista-net"]
    assert row["status"] == "not trained yet" and row["result"] is None and row["paper_cso_map"] == 45.16
    of_the_code = {"ours_parameters", "ours_macs_per_frame", "ours_macs_batch64"}
    assert {name for name, value in row.items() if name.startswith("ours_") and value is not None} == of_the_code
    assert rows["ista-tuned"]["status"] == "not scored yet"


def test_a_method_that_is_not_here_says_so(tmp_path, monkeypatch):
    monkeypatch.delitem(NETWORKS, "srfbn", raising=False)
    (row,) = reporting.table1_rows(3, ["srfbn"], folder=tmp_path)
    assert row["status"] == "not implemented yet" and row["label"] == "SRFBN" and row["paper_cso_map"] == 46.05
    assert row["ours_parameters"] is None


@pytest.mark.parametrize("ratio", [3, 5, 7])
def test_every_method_of_the_paper_can_be_a_row(tmp_path, ratio):
    rows = reporting.table1_rows(ratio, list(reporting.paper_values(ratio)), folder=tmp_path)
    assert rows and all(row["paper_cso_map"] is not None for row in rows if row["key"] != "ista-tuned")


def test_our_columns_hold_the_files_numbers_and_no_others(folder, rows):
    test = reporting.load_result("dista-net-c3-seed0", folder)["test"]
    row = rows["dista-net"]
    assert [row["ours_cso_map"], row["ours_low"], row["ours_high"]] == [test["cso_map"], *test["interval"]]
    assert [row[f"ours_{name}"] for name in reporting.AP_NAMES] == test["ap"]
    assert row["ours_5_targets_cso_map"] == test["by_count"]["5"]["cso_map"] and row["ours_border_cso_map"] == test["border"]["cso_map"]
    assert row["paper_cso_map"] == 46.74 and row["ours_count_accuracy"] == 1.0


def test_the_papers_numbers_never_reach_our_columns(monkeypatch, folder):
    before = reporting.table1_rows(3, METHODS, folder=folder)
    monkeypatch.setattr(reporting.selection, "paper_values", lambda ratio=3: {name: {"method": name, "cso_map": -1.0, "ap05": -1.0} for name in METHODS})
    after = reporting.table1_rows(3, METHODS, folder=folder)
    ours = lambda rows: [{name: value for name, value in row.items() if name.startswith("ours_")} for row in rows]
    assert ours(before) == ours(after)


def test_seeds_give_mean_and_sample_deviation(folder, rows):
    scores = [reporting.load_result(f"dista-net-c3-seed{seed}", folder)["test"]["cso_map"] for seed in range(3)]
    row = rows["dista-net"]
    assert row["ours_seeds"] == 3 and row["ours_seeds_mean"] == pytest.approx(np.mean(scores)) and row["ours_seeds_sd"] == pytest.approx(np.std(scores, ddof=1))
    assert reporting.seeds_text(row).endswith("(3)") and "±" in reporting.seeds_text(row)


def test_one_seed_has_no_spread(folder):
    for seed in (1, 2):
        (folder / "results" / f"dista-net-c3-seed{seed}.json").unlink()
    (row,) = reporting.table1_rows(3, ["dista-net"], folder=folder)
    assert row["ours_seeds"] == 1 and row["ours_seeds_sd"] is None and "±" not in reporting.seeds_text(row)
    assert "spread over seeds is unknown" in reporting.discrepancy(row)


def test_another_seed_shows_its_own_scores(folder, rows):
    (row,) = reporting.table1_rows(3, ["dista-net"], seed=1, folder=folder)
    assert row["ours_seed"] == 1 and row["ours_cso_map"] != rows["dista-net"]["ours_cso_map"]
    assert row["ours_seeds_mean"] == rows["dista-net"]["ours_seeds_mean"]


def test_a_run_by_the_papers_recipe_is_a_row_of_its_own(folder):
    write_json(folder / "results" / "dista-net-c3-paper-recipe.json", made_up_result("dista-net-c3-paper-recipe"))
    row = reporting.table1_rows(3, ["dista-net"], folder=folder)[1]
    assert row["key"] == "dista-net-paper-recipe" and row["ours_samples"] == 20_000_000 and row["ours_seeds"] is None


def test_training_columns_say_what_was_shown(rows):
    row = rows["dista-net"]
    phases = next(run for run in reporting.load_runs() if run.name == "dista-net-c3-seed0").phases
    assert row["ours_samples"] == sum(phase.samples for phase in phases)
    assert row["ours_views"].split(", then ") == [f"{phase.samples:,} {phase.view}" for phase in phases]
    assert row["ours_hours"] == 0.5 and row["ours_device"] and row["ours_seed"] == 0


def test_costs_are_the_codes_own(rows):
    assert rows["dista-net"]["ours_parameters"] == 2_179_104 and rows["ista-paper"]["ours_parameters"] is None
    assert rows["ista-net"]["ours_macs_batch64"] == pytest.approx(12.77e9, rel=1e-3)


def test_a_misspelt_method_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'dista-net'"):
        reporting.table1_rows(3, ["dista-nett"], folder=tmp_path)


def test_one_method_may_be_named_without_a_list(folder):
    assert reporting.table1_rows(3, "dista-net", folder=folder) == reporting.table1_rows(3, ["dista-net"], folder=folder)


def test_a_damaged_result_file_is_named(folder):
    (folder / "results" / "dista-net-c3-seed0.json").write_text('{"test": ')
    with pytest.raises(ValueError, match="dista-net-c3-seed0.json is no whole JSON"):
        reporting.table1_rows(3, ["dista-net"], folder=folder)


# Tables and files


class Outline(HTMLParser):
    """Counts elements, checks that they close, keeps the scopes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.scopes = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag == "th":
            self.scopes.append(dict(attributes).get("scope"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


TABLES = [
    reporting.headline_table,
    reporting.precision_table,
    reporting.size_table,
    reporting.image_table,
    reporting.readme_table,
]


@pytest.mark.parametrize("make", TABLES, ids=lambda make: make.__name__)
def test_tables_are_accessible_and_complete(make, rows):
    table = make(list(rows.values()))
    text = table.html()
    outline = Outline(text)
    assert not outline.open and outline.count["caption"] == 1 and "overflow-x: auto" in text
    assert outline.scopes.count("row") == len(rows) and outline.scopes.count("col") == len(table.columns) and None not in outline.scopes
    assert not re.search(r"#[0-9a-f]{3,6}|rgb\(|color: (?!inherit)", text)  # the page's own colours, so that dark mode works
    lines = table.markdown().splitlines()
    assert len(lines) == 2 + len(rows) and len({line.count("|") for line in lines}) == 1


def test_group_heads_span_their_columns(rows):
    text = reporting.headline_table(list(rows.values())).html()
    assert 'scope="colgroup" colspan="1"' in text and 'scope="colgroup" colspan="4"' in text


def test_the_headline_says_what_is_missing(rows):
    lines = reporting.headline_table(list(rows.values())).markdown().splitlines()
    line = next(line for line in lines if line.startswith("| ISTA-Net |"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["45.16", "not trained yet"]


def test_cells_are_escaped():
    table = reporting.Table("a < b", [("", "method"), ("", "x|y")], [["<i>", "1|2"]])
    assert "<i>" not in table.html() and "&lt;i&gt;" in table.html()
    assert r"x\|y" in table.markdown() and r"1\|2" in table.markdown()


def test_a_short_row_is_an_error():
    with pytest.raises(ValueError, match="2 cells"):
        reporting.Table("t", [("", "a"), ("", "b")], [["1"]])


def test_rows_survive_the_files(folder, rows, tmp_path):
    rows = list(rows.values())
    table, data = reporting.write_rows(rows, tmp_path / "new" / "output", ceilings={"random": 0.45})
    stored = json.loads(data.read_text())
    assert stored["rows"] == rows and stored["ceilings"] == {"random": 0.45}
    with open(table, newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    assert not list((tmp_path / "new" / "output").glob("*.part"))


# Sentences


def test_a_discrepancy_says_side_and_interval(rows):
    row = rows["dista-net"] | {"ours_cso_map": 0.47, "ours_low": 0.468, "ours_high": 0.472, "ours_ap25": 0.97}
    text = reporting.discrepancy(row)
    assert "ours is 47.00 (95 % interval 46.80 to 47.20), 0.26 above the paper's 46.74." in text
    assert "may differ by 0.28 by chance; this difference may be chance" in text  # sqrt(2) times 0.2: both numbers come from a draw of frames
    assert "nearly every target is found" in text and f"{row['ours_samples']:,} samples in all, in 0.50 hours" in text
    assert "the paper's weights had seen 3,760,000 (epoch 47 of at most 250)" in text
    sure = reporting.discrepancy(row | {"ours_low": 0.469, "ours_high": 0.471, "ours_ap25": 0.8})
    assert "differ by 0.14 by chance; this difference is more than that chance" in sure and "or false detections rank above hits" in sure


def test_a_discrepancy_without_a_score_is_short(rows):
    assert reporting.discrepancy(rows["ista-net"]) == "**ISTA-Net**: not trained yet; the paper prints 45.16."


def test_ista_is_explained_by_the_tuning_file(folder):
    assert "not been tuned yet" in reporting.explain_ista(folder)
    row = asdict(PAPER) | {"frames": 30, "cso_map": 0.0812, "detections_per_frame": 7.25}
    tuned = asdict(replace(PAPER, momentum=True, mask_saturated=True, sparsity=0.01)) | {"frames": 30, "cso_map": 0.2345, "detections_per_frame": 4.5}
    tuning = {
        "choice": {name: tuned[name] for name in asdict(PAPER)},
        "validation": tuned,
        "reference": {"paper": [row, row | {"threshold": 70.0, "cso_map": 0.0901}], "paper_converged": [row | {"cso_map": 0.0777}]},
        "data": {"split": "val", "seed": 2025},
    }
    write_json(folder / "results" / "ista-tuning.json", tuning)
    text = reporting.explain_ista(folder)
    assert all(part in text for part in ("prints 7.46", "8.12 at a threshold of 50", "9.01 at a threshold of 70", "7.77", "23.45", "7.25 detections: the flux"))
    assert "λ = 0.01 grey levels, 3,000 iterations with momentum" in text and "saturated pixels left out" in text


# Ceilings


def test_ceilings_follow_from_recall():
    truth = csist100k("test", 1000).targets
    ceilings = reporting.grid_ceilings(truth, 3)
    nearest = np.rint((truth.xy[truth.mask]) * 3) / 3  # c = 3: sub-pixel centres are thirds of a pixel
    distance = np.hypot(*(nearest - truth.xy[truth.mask]).T)
    recall = np.array([(distance <= delta).mean() for delta in (0.05, 0.10, 0.15, 0.20, 0.25)])
    # Ranked by distance, all hits come first: AP is the recall. Ranked at random, precision is the recall as well: AP is its square.
    assert ceilings.ranked == pytest.approx(recall.mean(), abs=1e-6)
    assert ceilings.random == pytest.approx((recall**2).mean(), abs=0.01)


def test_the_typical_order_is_that_of_the_brightness_at_the_targets_own_sub_pixels():
    truth = csist100k("test", 300).targets
    snapped = reporting.on_grid(truth, 3)
    distance = np.hypot(*np.moveaxis(snapped.xy - truth.xy, -1, 0))
    index = np.rint(3 * snapped.xy[truth.mask] + 1).astype(int)
    images = np.full((300, 33, 33), 999.0)  # brighter than any target where there is none
    images[np.nonzero(truth.mask)[0], index[:, 0], index[:, 1]] = 1 - distance[truth.mask]
    ceilings = reporting.grid_ceilings(truth, 3, images=images)
    assert ceilings.typical == pytest.approx(ceilings.ranked, abs=1e-9)  # the closer the brighter: as good as the best order
    plain = reporting.grid_ceilings(truth, 3)
    assert (plain.random, plain.ranked, plain.typical) == (ceilings.random, ceilings.ranked, None)
    with pytest.raises(ValueError, match=r"images must be \(300, 33, 33\).*got \(300, 55, 55\)"):
        reporting.grid_ceilings(truth, 3, images=np.zeros((300, 55, 55)))


def test_stored_ceilings_are_those_of_the_test_split(tmp_path):
    stored, whole = reporting.stored_ceilings(3), reporting.grid_ceilings(csist100k("test").targets, 3)
    assert stored[:2] == pytest.approx(whole[:2], abs=1e-9)
    assert stored.random < stored.typical < stored.ranked < stored.attainable < 1
    assert reporting.stored_ceilings(3, tmp_path) == whole  # no files: what can be computed, without a network and without the limit
    text = reporting.describe_ceilings(stored)
    assert all(f"{100 * value:.2f}" in text for value in stored)


def test_ceilings_belong_to_the_weights_that_are_here():
    from hashlib import sha256

    for at in reporting.load_result("ceilings")["ratios"].values():
        path = reporting.reproduce_folder() / "weights" / f"{at['run']}.safetensors"
        assert sha256(path.read_bytes()).hexdigest() == at["weights_sha256"], "run reproduce/ceilings.py again"


def test_a_target_beyond_the_edge_goes_to_the_nearest_sub_pixel():
    truth = Targets([[[-0.55, 5.0]]], [[240.0]], [1])
    assert reporting.grid_ceilings(truth, 3).ranked == pytest.approx(0.2)  # 0.217 px off: within the largest threshold only


# Evaluated again


def parameters(**changes):
    defaults = {"scale": "smoke", "methods": ["ista"], "ratio": 3, "n_test": 16, "seed": 0, "device": "cpu", "output_dir": None}
    return SimpleNamespace(**(defaults | changes))


def test_live_answers_come_from_the_weights_that_are_there(tmp_path):
    run = run_name("ista-net", 3)
    (tmp_path / "weights").mkdir()
    write_weights(tmp_path / "weights" / f"{run}.safetensors", create_network("ista-net", start=False), {"network": "ista-net", "ratio": 3, "run": run})
    live = reporting.evaluate_live(parameters(methods=["ista-net", "dista-net"]), tmp_path)
    assert list(live) == ["ista-net"] and live["ista-net"].frames == 16 and len(live["ista-net"].estimate) == 16


@pytest.mark.parametrize(("frames", "expected"), [(4, 4), (64, 8), (1000, 100), (10_000, 200)])
def test_the_slow_setting_gets_few_frames(frames, expected):
    slow, quick = (reporting.Entry("key", "ista", "label", "result", settings) for settings in (PAPER, TUNED))
    assert reporting.live._live_frames(slow, frames) == expected and reporting.live._live_frames(quick, frames) == frames


def live_of(row, gap):
    return {row["key"]: reporting.Live(None, FRAMES // 2, row["ours_cso_map"] + gap)}


def test_agreement_is_judged_by_the_sampling_error(rows, folder):
    row = rows["dista-net"]
    allowed = reporting.live_tolerance(row, FRAMES // 2)
    assert allowed == pytest.approx(4 * row["ours_standard_error"] + reporting.ROUNDING)  # half of the frames: N / n - 1 = 1
    assert reporting.live_tolerance(row, FRAMES) == reporting.ROUNDING
    assert reporting.check_live([row], live_of(row, 0.9 * allowed), folder).cells[0][-1] == "agrees"
    assert reporting.check_live([row], live_of(row, -1.1 * allowed), folder).cells[0][-1] == "DISAGREES"
    assert reporting.check_live([row], {}, folder).cells[0][-1] == "no weights here to evaluate"
    assert reporting.check_live([rows["ista-net"]], {}, folder).cells[0][-1] == "not trained yet"


def test_the_tolerance_is_that_of_a_part_against_the_whole():
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(4000, 100))
    gaps = samples[:, :20].mean(1) - samples.mean(1)
    row = {"ours_standard_error": 1 / 10, "ours_frames": 100}
    assert statistics.stdev(gaps) == pytest.approx((reporting.live_tolerance(row, 20) - reporting.ROUNDING) / reporting.SIGMAS, rel=0.05)


def test_hours_on_a_processor_are_processor_hours(folder):
    name = "dista-net-c3-seed0"
    stored = reporting.load_result(name, folder)
    on = lambda device: stored | {"hours": 2.0, "cpu_hours": 0.25, "provenance": stored["provenance"] | {"device": device}}

    def row(result):
        write_json(folder / "results" / f"{name}.json", result)
        return reporting.table1_rows(3, ["dista-net"], folder=folder)[0]

    counted, fed, old = row(on("AMD EPYC")), row(on("NVIDIA H100 80GB HBM3")), row(stored)
    assert (counted["ours_hours"], counted["ours_processor_hours"]) == (2.0, 0.25)
    assert fed["ours_processor_hours"] is None and old["ours_processor_hours"] is None
    assert [reporting.hours_text(one) for one in (counted, fed, old)] == ["0.25 processor", "2.00", "0.50"]
    assert "in 0.25 processor hours" in reporting.discrepancy(counted) and "in 2.00 hours" in reporting.discrepancy(fed)
    assert reporting.readme_table([counted]).cells[0][-1] == "0.25 processor, AMD EPYC"
    table = reporting.training_table([counted, old])
    assert "processor time" in table.caption and [line[3] for line in table.cells] == ["0.25 processor", "0.50"]


def test_rows_without_anything_are_left_out_beside_others(folder, rows):
    both = [rows["dista-net"], rows["ista-net"]]
    assert [line[0] for line in reporting.parts_table(both[1:]).cells] == ["ISTA-Net"]
    assert [line[0] for line in reporting.parts_table(both).cells] == [line[0] for line in reporting.check_live(both, {}, folder).cells] == ["DISTA-Net"]


def test_a_result_of_other_frames_is_refused(folder):
    result = reporting.load_result("dista-net-c3-seed0", folder)
    result["test"]["frames_sha256"] = "0" * 64
    write_json(folder / "results" / "dista-net-c3-seed0.json", result)
    with pytest.raises(ValueError, match="other test frames"):
        reporting.verify_result("dista-net-c3-seed0", folder)


def test_a_result_of_other_weights_is_refused(folder):
    path = folder / "weights" / "dista-net-c3-seed0.safetensors"
    network = create_network("ista-net", start=False)  # any network will do
    write_weights(path, network, {"network": "ista-net", "ratio": 3, "run": "dista-net-c3-seed0"})
    reporting.verify_result("dista-net-c3-seed0", folder)
    result = reporting.load_result("dista-net-c3-seed0", folder)
    write_json(folder / "results" / "dista-net-c3-seed0.json", result | {"weights_sha256": "0" * 64})
    with pytest.raises(ValueError, match="not the file"):
        reporting.verify_result("dista-net-c3-seed0", folder)
    write_json(folder / "results" / "dista-net-c3-seed0.json", result)
    write_weights(path, network, {"network": "ista-net", "ratio": 3, "run": "dista-net-c3-seed1"})
    with pytest.raises(ValueError, match="dista-net-c3-seed1"):
        reporting.verify_result("dista-net-c3-seed0", folder)


def test_istas_file_has_the_layout_of_a_trained_one(tmp_path):
    settings = replace(PAPER, max_iterations=20)
    result = reporting.write_ista_result("ista-quick", settings, tmp_path, size=12)
    assert result == reporting.read_json(tmp_path / "ista-quick.json") and result["settings"] == asdict(settings)
    assert set(result["test"]) == set(made_up_test()) and result["test"]["frames"] == 12
    assert {"hours", "provenance", "ratio"} <= set(result)


@pytest.mark.slow
def test_the_paper_scale_trains_and_then_skips(tmp_path):
    run = Run(run_name("ista-net", 3), "ista-net", phases=(Phase("windows", 128),), train_size=256, val_size=16, test_size=16, epoch=128)
    wanted = parameters(scale="paper", methods=["ista-net"], output_dir=tmp_path)
    assert reporting.source_folder(wanted, [run]) == tmp_path
    (row,) = reporting.table1_rows(3, ["ista-net"], folder=tmp_path)
    live = reporting.evaluate_live(wanted, tmp_path)
    assert row["status"] == "scored" and reporting.check_live([row], live, tmp_path).cells[0][-1] == "agrees"
    written = (tmp_path / "results" / f"{run.name}.json").stat().st_mtime_ns
    reporting.source_folder(wanted, [run])
    assert (tmp_path / "results" / f"{run.name}.json").stat().st_mtime_ns == written
    assert reporting.plot_learning_curves([row], tmp_path) is not None


def test_other_scales_read_the_repository():
    assert reporting.source_folder(parameters()) == reporting.reproduce_folder()


# Parameters


def notebook(**changes) -> dict:
    """Globals of a notebook after its parameters cell."""
    cell = {"scale": "smoke", "methods": METHODS, "ratio": 3, "n_test": None, "seed": 0, "device": "cpu", "output_dir": "reproduce/output"}
    return {"__name__": "__main__", "In": [""], "Out": {}, "_i": "", "json": json, "run": print, **cell, **changes}


def test_parameters_come_back_ready_for_use(tmp_path):
    p = reporting.check_parameters(notebook(output_dir=str(tmp_path / "a" / "b"), device="auto"))
    assert p.n_test == 64 and p.device in ("cpu", "cuda") and p.output_dir == tmp_path / "a" / "b" and p.output_dir.is_dir()
    assert reporting.check_parameters(notebook(scale="laptop", output_dir=str(tmp_path))).n_test == 2000
    assert reporting.check_parameters(notebook(n_test=5, output_dir=str(tmp_path))).n_test == 5


BAD = [
    ({"scael": "smoke"}, r"unknown parameter 'scael'; known: scale, .*Did you mean 'scale'\?"),
    ({"colour": None}, r"unknown parameter 'colour'; known"),
    ({"scale": "large"}, r"scale must be one of smoke, laptop, paper; got 'large'"),
    ({"scale": "labtop"}, r"Did you mean 'laptop'\?"),
    ({"methods": "dista-net"}, r"methods must be 'all' or a list .*papermill"),
    ({"methods": []}, r"methods must be 'all' or a list"),
    ({"methods": ["dista"]}, r"unknown method 'dista'.*Did you mean"),
    ({"ratio": 4}, r"ratio c must be an odd integer"),
    ({"n_test": 0}, r"n_test must be a whole number >= 1; got 0, or None for the scale's own \(smoke 64, laptop 2,000, paper 10,000\)"),
    ({"n_test": 2.5}, r"n_test must be a whole number"),
    ({"n_test": True}, r"n_test must be a whole number"),
    ({"seed": -1}, r"seed must be a whole number >= 0"),
    ({"device": "gpu"}, r"device must be one of auto, cpu, cuda; got 'gpu'"),
    ({"output_dir": ""}, r"output_dir must be the name of a folder"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_parameters_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reporting.check_parameters(notebook(**{"output_dir": str(tmp_path), **change}))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir .* cannot be created"):
        reporting.check_parameters(notebook(output_dir=str(tmp_path / "file" / "below")))


def test_a_missing_parameter_is_named(tmp_path):
    namespace = notebook(output_dir=str(tmp_path))
    del namespace["seed"]
    with pytest.raises(ValueError, match="'seed' is not set"):
        reporting.check_parameters(namespace)


def test_cells_can_be_run_again_beside_variables_of_ones_own(tmp_path):
    namespace = notebook(output_dir=str(tmp_path))
    reporting.check_parameters(namespace)
    namespace["rows"] = [1, 2]
    reporting.check_parameters(namespace)
    namespace["n_tests"] = 5  # but a slip of the keyboard is still caught
    with pytest.raises(ValueError, match="Did you mean 'n_test'"):
        reporting.check_parameters(namespace)


# Pictures


@pytest.fixture
def pyplot(monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_the_comparison_shows_paper_ours_and_ceilings(pyplot, rows):
    figure = reporting.plot_comparison(list(rows.values()), reporting.Ceilings(0.45, 0.56))
    wide = figure.axes[0]
    assert [label.get_text() for label in wide.get_yticklabels()] == [row["label"] for row in rows.values()]
    shown = {round(float(line.get_xdata()[0]), 2) for line in wide.lines if len(line.get_xdata()) and line.get_marker() == "D"}
    assert shown == {7.46, 45.16, 46.06, 46.74}
    assert {"--", "-"} == {line.get_linestyle() for line in wide.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] in (45.0, 56.00000000000001)}
    limits = reporting.plot_comparison(list(rows.values()), reporting.Ceilings(0.45, 0.56, 0.46, 0.947)).axes[0]
    assert {line.get_linestyle() for line in limits.lines if len(line.get_xdata()) == 2} >= {"--", "-.", "-", ":"} and limits.get_xlim()[1] >= 94.7
    assert len(wide.containers) == 1 + 2  # the legend's, DISTA-Net's and ISTA's intervals


def test_learning_curves_need_a_history(pyplot, rows, folder):
    assert reporting.plot_learning_curves([rows["ista-net"], rows["ista-paper"]], folder) is None
    figure = reporting.plot_learning_curves([rows["dista-net"]], folder)
    assert sum(line.get_linestyle() == "-" and len(line.get_xdata()) == 2 for line in figure.axes[0].lines) == 3  # one line per seed


def test_samples_are_the_first_frames_of_their_kind(pyplot, rows):
    data = csist100k("test", FRAMES)
    live = {"dista-net": reporting.Live(noisy_answer(data.targets, 0.05), FRAMES, 0.5)}
    figure = reporting.plot_samples(data, [rows["dista-net"]], live)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [f"frame {np.flatnonzero(data.targets.count == n)[0]}: {n} targets\nfound {n}" for n in (2, 3, 5)]
    assert reporting.plot_samples(data, [rows["ista-net"]], {}).axes  # nothing to show yet but the frames


def test_all_methods_are_those_the_paper_prints_and_those_with_a_result():
    shown = selection.shown_methods(3)
    assert shown[: len(sources.paper_values(3))] == list(sources.paper_values(3)) and "omp" not in shown
    for method in shown[len(sources.paper_values(3)) :]:
        assert any(sources.load_result(entry.result) for entry in selection.entries([method]))


def test_rows_without_a_score_share_a_sentence(tmp_path):
    sentences = reporting.discrepancies(reporting.table1_rows(3, ["han", "ista-net", "rdn"], folder=tmp_path))
    assert len(sentences) == 1
    assert all(words in sentences[0] for words in ("Not trained yet", "HAN (45.70)", "ISTA-Net (45.16)", "RDN (45.81)"))
