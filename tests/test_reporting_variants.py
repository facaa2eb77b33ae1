"""Rows of networks with options, of other grids and of other recipes: the pages of Table 2, Table 3 and Figure 7."""
from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from csist import reporting
from csist.datasets import csist100k, frames_hash
from csist.evaluation import provenance
from csist.metrics import score_report
from csist.networks import create_network
from csist.networks.registry import NETWORKS, write_weights
from csist.networks.unfolding import UnmixingNetwork
from csist.plotting import method_colour
from csist.scenes import Targets
from csist.training import Phase, Run, write_json

FRAMES = 40


def made_up_test(spread: float = 0.1) -> dict:
    data, rng = csist100k("test", FRAMES), np.random.default_rng(3)
    answer = Targets(data.targets.xy + rng.normal(0, spread, data.targets.xy.shape), data.targets.intensity, data.targets.count)
    return {"frames": FRAMES, "frames_sha256": frames_hash(data), "psnr": 30.0, "ssim": 0.95, **score_report(answer, data.targets, resamples=20)}


def write_result(folder, entry, *, spread: float = 0.1, samples: int = 1000, **changes) -> None:
    """A result file for a row, with an answer that nobody trained."""
    run = Run(entry.result, entry.method, entry.ratio, phases=(Phase("windows", samples),), options=entry.options)
    result = {"run": asdict(run) | changes, "hours": 0.5, "history": [{"samples": 1000, "view": "windows", "val_cso_map": 0.4}]}
    (folder / "results").mkdir(exist_ok=True)
    write_json(folder / "results" / f"{entry.result}.json", result | {"test": made_up_test(spread), "provenance": provenance()})


def by_key(rows) -> dict:
    return {row["key"]: row for row in rows}


# Rows


def test_the_ablation_has_the_papers_rows_and_numbers():
    rows = by_key(reporting.make_rows(reporting.ablation_entries()))
    printed = {"ista-net-standard": 45.16, "dista-net-no-transform": 46.32, "dista-net-no-threshold": 46.17, "dista-net-standard": 46.74}
    assert {key: row["paper_cso_map"] for key, row in rows.items()} == printed
    assert rows["dista-net-no-threshold"]["paper_parameters_m"] == 5.111 and rows["dista-net-no-transform"]["paper_ap25"] == 97.50


def test_a_variants_cost_is_that_of_the_network_with_its_options(tmp_path):
    rows = by_key(reporting.make_rows(reporting.ablation_entries(), tmp_path))
    sizes = {"ista-net-standard": 171_090, "dista-net-no-transform": 490_986, "dista-net-no-threshold": 2_137_410, "dista-net-standard": 2_179_104}
    assert {key: row["ours_parameters"] for key, row in rows.items()} == sizes


def test_a_seed_picks_its_own_runs():
    assert [entry.result for entry in reporting.ablation_entries(2)][-2:] == ["dista-net-no-threshold-c3-seed2", "dista-net-standard-c3-seed2"]
    assert {entry.result.rpartition("-seed")[2] for entry in reporting.hyperparameter_entries("dynamic", 1)} == {"1"}


def test_a_variant_borrows_no_score_from_the_main_run(tmp_path):
    *_, whole = reporting.ablation_entries()
    write_result(tmp_path, whole)
    rows = reporting.ablation_rows(folder=tmp_path)
    assert [row["key"] for row in rows if row["ours_cso_map"] is not None] == ["dista-net-standard"]
    assert {row["status"] for row in rows} == {"scored", "not trained yet"}


def test_a_result_of_other_options_is_refused(tmp_path):
    entry = reporting.ablation_entries()[1]
    write_result(tmp_path, entry, options={"dynamic_threshold": False})
    with pytest.raises(ValueError, match="dista-net-no-transform-c3-seed0.json was made with the options .*dynamic_threshold"):
        reporting.make_rows([entry], tmp_path)


def test_an_option_that_does_not_exist_is_not_implemented_yet(tmp_path):
    entry = reporting.variant_entry("dista-net", "quantum", "quantum stages", {"quantum": True})
    (row,) = reporting.make_rows([entry], tmp_path)
    assert row["status"] == "not implemented yet" and row["ours_parameters"] is None


class Guess(UnmixingNetwork):
    """The frame, enlarged and weighed by one number."""

    def __init__(self, ratio=3, plane=None, start=True):
        super().__init__(ratio, plane)
        self.value = torch.nn.Parameter(torch.zeros(1))

    def forward(self, frames, origin=None):
        return self.value * frames.repeat_interleave(self.ratio, 1).repeat_interleave(self.ratio, 2)


@pytest.fixture
def forget_costs():
    reporting.network_cost.cache_clear()
    yield
    reporting.network_cost.cache_clear()


def test_a_method_becomes_trainable_by_being_registered(tmp_path, monkeypatch, forget_costs):
    monkeypatch.delitem(NETWORKS, "cfgn", raising=False)
    (before,) = reporting.make_rows(reporting.grid_ratio_entries(["cfgn"], [5])[:1], tmp_path)
    monkeypatch.setitem(NETWORKS, "cfgn", Guess)
    (after,) = reporting.make_rows(reporting.grid_ratio_entries(["cfgn"], [5])[:1], tmp_path)
    assert before["status"] == "not implemented yet" and after["status"] == "not trained yet"
    assert before["paper_cso_map"] == after["paper_cso_map"] == 67.95
    assert before["ours_parameters"] is None and after["ours_parameters"] == 1


def test_another_recipe_is_a_row_once_it_is_trained_or_if_plans_count(tmp_path, monkeypatch):
    names = lambda **options: [entry.result for entry in reporting.entries(["dista-net"], folder=tmp_path, **options)]
    monkeypatch.setattr(reporting.selection, "load_runs", lambda: [Run("dista-net-ours-c3-seed0", "dista-net", options={"stages": 2})])
    assert names() == ["dista-net-c3-seed0"] and names(planned=True) == ["dista-net-c3-seed0", "dista-net-ours-c3-seed0"]
    assert reporting.entries(["dista-net"], folder=tmp_path, planned=True)[1].options == {"stages": 2}
    write_result(tmp_path, reporting.Entry("", "dista-net", "", reporting.recipe_run("dista-net", 3, 0, "ours")), samples=3000)
    row = reporting.table1_rows(3, ["dista-net"], folder=tmp_path)[1]
    assert row["label"] == "DISTA-Net (our recipe)" and row["ours_samples"] == 3000 and row["paper_cso_map"] == 46.74 and row["ours_seeds"] == 1


def test_a_recipe_says_all_but_the_length():
    run = Run("name", "dista-net", phases=(Phase("windows", 10, 1e-3), Phase("frames", 20, 1e-4, "constant")), clip=1.0)
    assert reporting.recipe_text(asdict(run)) == "cosine from 0.001, then constant 0.0001, batches of 64, gradients clipped at 1"
    more = asdict(replace(run, fresh=True, average=0.999, target_weight=2.0, symmetries=True))
    extras = "samples turned and mirrored, new frames in every epoch, weights averaged with decay 0.999, sub-pixels with a target weigh 2"
    assert reporting.recipe_text(more).endswith(extras)


def test_rows_at_two_ratios_have_keys_of_their_own():
    rows = reporting.make_rows(reporting.grid_ratio_entries(["ista-net", "dista-net"], [5, 7]))
    main = [row for row in rows if "(" not in row["label"]]
    assert [row["key"] for row in main] == ["ista-net-c5", "dista-net-c5", "ista-net-c7", "dista-net-c7"]
    assert [row["paper_cso_map"] for row in main] == [66.90, 69.58, 71.19, 72.84] and main[3]["label"] == "DISTA-Net, c = 7"
    assert main[3]["ours_parameters"] == 6_408_896


def test_both_axes_of_figure_7_pass_through_the_main_run():
    for axis, options in (("stages", {"stages": 4}), ("dynamic", {"static_weight": 0.9})):
        work = reporting.hyperparameter_entries(axis)
        assert [entry.result for entry in work if not entry.options] == ["dista-net-standard-c3-seed0"]
        assert work[1].options == options
    assert [entry.result for entry in work][1] == "dista-net-dynamic-10-c3-seed0"
    values = [row["value"] for row in reporting.hyperparameter_rows() if row["axis"] == "dynamic"]
    assert values == [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1]


# What the training reaches


def test_the_released_code_leaves_the_kernel_generator_untrained():
    assert reporting.parameters_with_gradient("dista-net", 3) == 2_179_104
    assert reporting.parameters_with_gradient("dista-net", 3, variant="released") == reporting.network_cost("dista-net", 3, dynamic_transform=False)[0]


def test_weight_zero_computes_what_the_network_without_a_dynamic_transform_does():
    torch.manual_seed(0)
    weighted, without = (create_network("dista-net", **options) for options in ({"static_weight": 1.0}, {"dynamic_transform": False}))
    without.load_state_dict({name: value for name, value in weighted.state_dict().items() if name in without.state_dict()})
    frames = torch.from_numpy(csist100k("test", 2).frames).float()
    with torch.no_grad():
        assert torch.allclose(weighted(frames), without(frames), rtol=1e-5, atol=1e-3)
    text = reporting.explain_zero_weight()
    assert "46.32, the number that its Table 2 prints" in text and "2,179,104 parameters instead of 490,986" in text


# Sentences and tables


def test_two_printed_costs_are_those_of_a_finer_grid():
    lines = reporting.explain_costs(reporting.make_rows(reporting.ablation_entries())).splitlines()
    assert "we count the same" in lines[0] and "we count the same" in lines[3]
    assert "we count 0.491 M" in lines[1] and "that of ISTA-Net at c = 5" in lines[1]
    assert "we count 2.137 M" in lines[2] and "that of DISTA-Net w/o Thres. at c = 5" in lines[2]


def test_a_printed_cost_without_a_network_says_so():
    (row,) = reporting.make_rows(reporting.ablation_entries()[:1])
    assert reporting.explain_costs([row | {"paper_parameters_m": 9.0}]).endswith("No row of the table has the printed pair.")


def trained(folder, *lengths) -> list[dict]:
    for entry, samples in zip(reporting.ablation_entries(), lengths):
        write_result(folder, entry, samples=samples, spread=samples / 10_000)
    return reporting.make_rows(reporting.ablation_entries(), folder)


def test_unequal_training_is_said(tmp_path):
    rows = trained(tmp_path, 1000, 2000)
    text = reporting.describe_lengths(rows)
    assert "not trained equally long" in text and "1,000 samples (ISTA-Net) to 2,000 (DISTA-Net w/o DT)" in text
    assert "1,000 and 2,000 samples, so this is no pure effect" in reporting.effect(rows[0], rows[1])


def test_equal_training_is_said(tmp_path):
    rows = trained(tmp_path, 1000, 1000)
    assert reporting.describe_lengths(rows) == "The 2 trained rows were shown equally many samples, 1,000."
    assert "no pure effect" not in reporting.effect(rows[0], rows[1])
    other = [rows[0] | {"ours_recipe": "another"}, rows[1]]
    assert "Their recipes still differ; " in reporting.describe_lengths(other)
    longer = [rows[0] | {"ours_recipe": "another", "ours_samples": 3000}, rows[1]]
    assert "Their recipes differ in more than length; " in reporting.describe_lengths(longer)
    assert "Fewer than two" in reporting.describe_lengths(rows[:1] + rows[2:])


def test_an_effect_is_a_difference_with_both_errors(tmp_path):
    first, second, third, _ = trained(tmp_path, 1000, 1000)
    text = reporting.effect(first | {"ours_cso_map": 0.45, "ours_standard_error": 0.003}, second | {"ours_cso_map": 0.46, "ours_standard_error": 0.004})
    beginning = "**ISTA-Net** against DISTA-Net w/o DT: −1.16 in the paper; −1.00 here "
    assert text == beginning + "(95 % interval −1.98 to −0.02: zero lies outside)."
    assert "zero lies inside" in reporting.effect(first | {"ours_cso_map": 0.46, "ours_standard_error": 0.003}, second | {"ours_cso_map": 0.46})
    assert reporting.effect(third, first).endswith("unknown here, because it is not trained yet.")
    assert reporting.effect(first, third).endswith("unknown here, because DISTA-Net w/o Thres. is not trained yet.")


def scored(rows, scores, error: float = 0.001, **more) -> list[dict]:
    """Rows with made-up scores; None leaves a row untrained."""
    made = {"status": "scored", "ours_standard_error": error, "ours_samples": 1000} | more
    return [row if score is None else row | made | {"ours_cso_map": score} for row, score in zip(rows, scores)]


def test_effects_of_rows_that_are_missing_share_a_sentence(tmp_path):
    rows = reporting.make_rows(reporting.ablation_entries(), tmp_path)
    none = reporting.effects(rows[:3], rows[3])
    assert len(none) == 1 and "because DISTA-Net itself is not trained yet" in none[0] and "DISTA-Net w/o DT (−0.42 in the paper)" in none[0]
    one, rest = reporting.effects((some := scored(rows, [None, 0.45, None, 0.46]))[:3], some[3])
    assert "−1.00 here" in one and rest == "**Unknown here so far**: ISTA-Net (−1.58 in the paper), DISTA-Net w/o Thres. (−0.57 in the paper)."
    assert len(reporting.effects((every := scored(rows, [0.44, 0.45, 0.45, 0.46]))[:3], every[3])) == 3


def test_the_papers_order_is_reproduced_or_not(tmp_path):
    rows = reporting.make_rows(reporting.ablation_entries(), tmp_path)  # the paper: DISTA-Net, w/o DT, w/o Thres., ISTA-Net
    assert "at least two" in reporting.describe_order(rows) and "at least two" in reporting.describe_order(scored(rows, [0.45, None, None, None]))
    same = reporting.describe_order(scored(rows, [0.43, 0.4501, 0.45, 0.47]))
    assert same.startswith("**The paper's order is reproduced**: from the highest score, DISTA-Net, DISTA-Net w/o DT, DISTA-Net w/o Thres., ISTA-Net. ")
    assert "Of the 6 pairs, 5 differ here beyond the sampling error of the test frames (5 in the paper's direction), 1 does not." in same
    other = reporting.describe_order(scored(rows, [0.47, 0.45, 0.45, 0.43]))
    assert "is not reproduced" in other and "we have ISTA-Net, " in other and "(5 in the other one)" in other
    two = reporting.describe_order(scored(rows, [0.45, None, None, 0.4501]))
    assert two.startswith("**The paper's order of the trained rows is reproduced**") and "Their difference is within the sampling error" in two
    assert "0 differ here" in reporting.describe_order(scored(rows, [0.45, 0.4502, 0.4501, 0.4503]))


def test_what_a_suspect_explains(tmp_path):
    rows = reporting.make_rows(reporting.suspect_entries("lamp"), tmp_path)
    assert [row["paper_cso_map"] for row in rows] == [14.22] * 4
    assert [row["options"] for row in rows] == [None, '{"variant": "released"}', None, '{"variant": "released"}']
    assert "has not been trained again" in reporting.describe_suspects(scored(rows, [0.354, None, None, None]))
    partly = reporting.describe_suspects(scored(rows, [0.354, 0.295, None, 0.281]))
    assert "the toolkit's start −5.90 and both −7.30 points" in partly
    assert "at most 7.3 of the 21.2 points above the paper's 14.22; the rest is unknown" in partly
    assert reporting.describe_suspects(scored(rows, [0.354, 0.15, None, None])).endswith("That reaches the paper's 14.22.")


def test_what_whole_frames_change(tmp_path):
    entries = reporting.grid_ratio_entries(["cfgn"], [7])
    assert [entry.result for entry in entries] == ["cfgn-c7-seed0", "cfgn-frames-c7-seed0", "cfgn-long-c7-seed0"]
    entries = entries[:2]
    assert reporting.describe_whole_frames(*reporting.make_rows(entries, tmp_path)) == "**CFGN, c = 7**: not trained yet."
    files = [tmp_path / "results" / f"{entry.result}.json" for entry in entries]
    for entry, file, precision in zip(entries, files, ("bf16", "no")):
        write_result(tmp_path, entry)
        write_json(file, json.loads(file.read_text()) | {"precision": precision})
    points = [{"samples": 1000, "view": "windows", "val_cso_map": 0.24}, {"samples": 2000, "view": "windows", "val_cso_map": 0.2}]
    write_json(files[0], json.loads(files[0].read_text()) | {"history": [*points, {"samples": 3000, "view": "frames", "val_cso_map": 0.51}]})
    rows = scored(reporting.make_rows(entries, tmp_path), [0.51, 0.56])
    assert reporting.describe_whole_frames(*rows, tmp_path) == (
        "**CFGN, c = 7**: on whole validation frames it scored 24.00 after 1,000 windows, 20.00 after 2,000 and 51.00 when it had learned from whole frames as "
        "well. Trained on whole frames only, it scores 56.00 on test instead of 51.00: +5.00 (95 % interval over test frames +4.72 to +5.28). That is 5.0 of "
        "the 19.4 points that it lacks to the paper's 70.38. Besides, the first was trained in bfloat16, the second in float32."
    )
    assert "all of the 19.4 points" in reporting.describe_whole_frames(*scored(rows, [0.51, 0.75]), tmp_path)
    worse = reporting.describe_whole_frames(*scored(rows, [0.51, 0.5]), tmp_path)
    assert "That is" not in worse and "−0.72). So windows do not hold it back. Besides" in worse


def test_what_seeds_can_say(tmp_path):
    rows = reporting.make_rows(reporting.ablation_entries(), tmp_path)
    assert "Each row is one training." in reporting.describe_order(scored(rows, [0.44, 0.45, 0.45, 0.46], ours_seeds=1))
    several = reporting.describe_order(scored(rows, [0.44, 0.45, 0.45, 0.46], ours_seeds=3, ours_seeds_sd=0.002))
    assert "DISTA-Net w/o Thres. (3 seeds)" in several and "(3 seeds) has a standard deviation of 0.20, pooled. Two single trainings" in several
    first = scored(rows[:1], [0.44], ours_seeds=3, ours_seeds_sd=0.002) + scored(rows[1:], [0.45, 0.45, 0.46], ours_seeds=1)
    one = reporting.describe_order(first)
    assert "ISTA-Net (3 seeds) has a standard deviation of 0.20. If the other rows, of one seed each, vary as much, two single trainings" in one
    assert one.endswith("These pairs differ by more than twice that: ISTA-Net and DISTA-Net w/o DT; ISTA-Net and DISTA-Net w/o Thres.; ISTA-Net and DISTA-Net; "
                        "DISTA-Net w/o DT and DISTA-Net; DISTA-Net w/o Thres. and DISTA-Net.")
    near = reporting.describe_order(scored(rows, [0.44, 0.441, 0.442, 0.443], ours_seeds=3, ours_seeds_sd=0.002))
    assert near.endswith("No two rows differ by more than twice that.")


def test_which_rows_chance_cannot_explain(tmp_path):
    rows = reporting.make_rows(reporting.ablation_entries(), tmp_path)
    single = scored(rows, [0.44, 0.45, None, 0.46], ours_seeds=1)
    assert "can be said when" in reporting.describe_chance(single, single[3]) and "can be said when" in reporting.describe_chance(rows, rows[3])
    repeated = scored(rows[:1], [0.44], ours_seeds=3, ours_seeds_sd=0.002) + scored(rows[1:], [0.455, None, 0.46], ours_seeds=1)
    assert reporting.describe_chance(repeated, repeated[3]) == (
        "The scores of ISTA-Net have a standard deviation of 0.20 over training seeds. That of a difference of two trainings is √2 times as large, so up to "
        "twice that, 0.57 points, may be chance. Further than that from DISTA-Net is "
        "ISTA-Net (−2.00). Not told apart from it by one training each is DISTA-Net w/o DT (−0.50)."
    )
    both = scored(rows[:1], [0.44], ours_seeds=3, ours_seeds_sd=0.002) + scored(rows[3:], [0.46], ours_seeds=2, ours_seeds_sd=0.003)
    # each row once, though the reference is among the rows; two and one seeds beyond the first: sqrt((2 * 0.2^2 + 0.3^2) / 3) = 0.238
    assert "The scores of DISTA-Net and ISTA-Net have a standard deviation of 0.24 (pooled)" in reporting.describe_chance(both, both[1])
    one_kind = scored(rows, [0.46, 0.46, 0.46, 0.46], ours_seeds=3, ours_seeds_sd=0.002)
    assert "Further" not in reporting.describe_chance(one_kind, one_kind[3])
    assert "of 0.20 (pooled) over training seeds" in reporting.describe_chance(one_kind, one_kind[3])


def test_what_longer_training_gave(tmp_path):
    short, *_ = trained(tmp_path, 1000)
    (longer,) = reporting.make_rows(reporting.longer_entries()[:1], tmp_path)
    assert "nothing to compare, because it is not trained yet" in reporting.longer_training(short, longer)
    scored = longer | {"status": "scored", "ours_samples": 3000, "ours_cso_map": short["ours_cso_map"] + 0.01, "ours_recipe": short["ours_recipe"]}
    assert "differ in more than length" in reporting.longer_training(short, scored | {"ours_recipe": "another"})
    text = reporting.longer_training(short, scored)
    assert text.startswith("**ISTA-Net (Table 1)**: a training of 3,000 samples instead of 1,000 takes it from") and text.endswith(", +1.00.")
    rough, exact = ({"ours_recipe": f"{short['ours_recipe']}, in {precision}"} for precision in ("bfloat16", "float32"))
    assert reporting.longer_training(short | rough, scored | exact).endswith(", +1.00 (in bfloat16 before, in float32 now).")


def test_seeds_of_several_precisions_say_so(tmp_path):
    first, second = (reporting.grid_ratio_entries(["cfgn"], [7], seed)[0] for seed in (0, 1))
    for entry, precision in ((first, "bf16"), (second, "no")):
        write_result(tmp_path, entry)
        file = tmp_path / "results" / f"{entry.result}.json"
        write_json(file, json.loads(file.read_text()) | {"precision": precision})
    (row,) = reporting.make_rows([first], tmp_path)
    assert "Over 2 seeds (trained 1 in bfloat16, 1 in float32) it is" in reporting.discrepancy(row, seeds=True)
    write_json(file, json.loads(file.read_text()) | {"precision": "bf16"})
    assert "Over 2 seeds it is" in reporting.discrepancy(*reporting.make_rows([first], tmp_path), seeds=True)


def test_a_point_that_the_paper_only_draws_is_marked(tmp_path):
    entries = reporting.hyperparameter_entries("stages")
    write_result(tmp_path, entries[0])
    drawn, _, printed, *_ = [row for row in reporting.hyperparameter_rows(folder=tmp_path) if row["axis"] == "stages"]
    assert reporting.paper_score(drawn) == "45.94 (curve)" and reporting.paper_score(printed) == "46.74"
    assert "45.94, read off its curve. Two draws" in reporting.discrepancy(drawn)


def test_an_axis_names_its_peak_and_what_is_missing(tmp_path):
    for entry in reporting.hyperparameter_entries("stages")[:2]:
        write_result(tmp_path, entry)
    rows = [row for row in reporting.hyperparameter_rows(folder=tmp_path) if row["axis"] == "stages"]
    text = reporting.describe_axis(rows)
    assert "highest point is at 6 (46.74)" in text and "Of our 2 trained" in text and "Not trained yet here: 6, 8 and 10." in text
    assert "lie within" not in text  # no result of the main point, so no idea of how much two draws differ


def test_an_axis_says_how_much_its_peak_means(tmp_path):
    entry = next(entry for entry in reporting.hyperparameter_entries("stages") if entry.result.startswith("dista-net-standard"))
    write_result(tmp_path, entry)
    rows = [row for row in reporting.hyperparameter_rows(folder=tmp_path) if row["axis"] == "stages"]
    half = np.sqrt(2) * 100 * (rows[2]["ours_high"] - rows[2]["ours_low"]) / 2  # in points, as the paper prints its scores
    flat = sum(rows[2]["paper_cso_map"] - row["paper_cso_map"] <= half for row in rows) - 1
    assert flat > 0 and f"{flat} of the other 4 points lie within {half:.2f} of the highest" in reporting.describe_axis(rows)


def test_a_ratio_is_held_against_its_ceiling():
    rows = reporting.make_rows(reporting.grid_ratio_entries(["ista-net", "dista-net"], [5]))
    text = reporting.describe_ratio([row | {"ours_cso_map": 0.75} for row in rows], reporting.Ceilings(0.72, 0.79))
    assert text.startswith("**c = 5.**") and "the paper's best row is 2.42 below and ours is 3.00 above" in text


@pytest.mark.parametrize("make", [lambda rows: reporting.comparison_table(rows, ["ap20", "ap25"]), reporting.size_table], ids=["comparison", "size"])
def test_every_variant_is_a_line_of_the_tables(make, tmp_path):
    rows = reporting.ablation_rows(folder=tmp_path)
    lines = make(rows).markdown().splitlines()
    assert len(lines) == 2 + len(rows) and len({line.count("|") for line in lines}) == 1 and "w/o Thres." in lines[4]


def test_the_size_table_counts_gradients_where_rows_do(tmp_path):
    rows = reporting.ablation_rows(folder=tmp_path)
    assert any("gradient" in name for _, name in reporting.size_table(rows).columns)
    assert not any("gradient" in name for _, name in reporting.size_table(reporting.make_rows(reporting.ablation_entries(), tmp_path)).columns)
    assert by_key(rows)["dista-net-released"]["ours_with_gradient"] == 490_986


# Evaluated again, trained again


def test_rows_of_one_run_share_its_answer(tmp_path):
    entries = [reporting.Entry(key, "ista-net", key, "ista-net-c3-seed0") for key in ("one", "two")]
    (tmp_path / "weights").mkdir()
    write_weights(tmp_path / "weights" / f"{entries[0].result}.safetensors", create_network("ista-net", start=False), {"network": "ista-net", "ratio": 3})
    p = reporting.check_parameters({"n_test": 4, "device": "cpu"}, ["n_test", "device"])
    live = reporting.evaluate_live(p, tmp_path, work=entries)
    assert list(live) == ["one", "two"] and live["one"] is live["two"]


def test_only_the_runs_of_a_pages_rows_are_trained():
    names = [run.name for run in reporting.runs_of(reporting.entries(["ista-net+"]))]
    assert names and all(name.startswith("ista-net-plus-c3-seed") for name in names)


# Parameters


def test_a_page_may_have_ratios_and_fewer_frames():
    known = ["scale", "methods", "ratios", "n_test"]
    cell = {"scale": "laptop", "methods": ["cfgn"], "ratios": [5, 7, 5], "n_test": None}
    p = reporting.check_parameters(dict(cell), known, reporting.MANY_ROWS)
    assert p.ratios == [5, 7] and p.n_test == reporting.MANY_ROWS["laptop"] < reporting.SCALES["laptop"]
    for change, message in (({"ratios": 5}, "ratios must be a list"), ({"ratios": [4]}, "odd integer"), ({"methods": ["cfng"]}, "Did you mean 'cfgn'")):
        with pytest.raises(ValueError, match=message):
            reporting.check_parameters(cell | change, known)
    with pytest.raises(ValueError, match="laptop 500"):
        reporting.check_parameters(cell | {"n_test": 0}, known, reporting.MANY_ROWS)


# Pictures


@pytest.fixture
def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_figure_7_fills_what_is_printed(pyplot, tmp_path):
    write_result(tmp_path, reporting.hyperparameter_entries("stages")[2], spread=0.09)
    rows = reporting.hyperparameter_rows(folder=tmp_path)
    rows = [row if row["ours_cso_map"] is None else row | {"ours_cso_map": 0.46, "ours_low": 0.458, "ours_high": 0.462} for row in rows]
    stages, dynamic = reporting.plot_hyperparameters(rows).axes
    points = {float(line.get_xdata()[0]): line.get_markerfacecolor() for line in stages.lines if line.get_marker() == "D"}
    assert {value for value, colour in points.items() if colour != "white"} == {6} and set(points) == {2, 4, 6, 8, 10}
    assert len(stages.containers) == len(dynamic.containers) == 1  # ours: only the main run, which lies on both axes
    assert [text.get_text() for text in dynamic.texts] == ["paper 30.62"] and dynamic.get_xlim()[1] > 1


def test_each_ratio_has_its_panel_and_ceilings(pyplot):
    rows = reporting.make_rows(reporting.grid_ratio_entries(["ista-net", "dista-net"], [5, 7]))
    ceilings = {5: reporting.Ceilings(0.72, 0.79), 7: reporting.Ceilings(0.83, 0.87)}
    figure = reporting.plot_ratios(rows, ceilings)
    assert [ax.get_title() for ax in figure.axes] == ["c = 5", "c = 7"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][:1] == ["ISTA-Net"]
    assert all(ax.get_xlim()[1] > 100 * ceilings[ratio].ranked for ax, ratio in zip(figure.axes, ceilings))


def test_a_variants_learning_curve_is_dashed_in_a_colour_of_its_own(pyplot, tmp_path):
    rows = [row for row in trained(tmp_path, 1000, 1000, 1000, 1000)]
    lines = {line.get_label(): line for line in reporting.plot_learning_curves(rows, tmp_path).axes[0].lines}
    assert {lines[row["label"]].get_linestyle() for row in rows} == {"--"} and len({lines[row["label"]].get_color() for row in rows}) == 4
    assert lines["DISTA-Net"].get_color() == method_colour("dista-net")  # the network as it is
    write_result(tmp_path, reporting.longer_entries()[0])
    (main,) = reporting.make_rows(reporting.longer_entries()[:1], tmp_path)
    assert reporting.plot_learning_curves([main], tmp_path).axes[0].lines[0].get_linestyle() == "-"


def test_options_are_stored_as_json(tmp_path):
    rows = reporting.make_rows(reporting.ablation_entries(), tmp_path)
    assert [json.loads(row["options"] or "{}") for row in rows][1] == {"dynamic_transform": False} and rows[0]["options"] is None
