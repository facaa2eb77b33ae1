"""The page beyond the paper: its rows, figures, sentences, and the page itself at the smallest scale."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from csist.datasets import csist100k
from csist.imaging import FocalPlane
from csist.metrics import cso_map, score_report
from csist.scenes import Targets

pytest.importorskip("accelerate")
from csist import reporting
from csist.reporting import beyond

REPRODUCE = Path(__file__).resolve().parent.parent / "reproduce"
DATA = csist100k("test", 40)


def report(score: float, frames: int = 10_000) -> dict:
    part = {"frames": 10, "cso_map": score, "count_accuracy": score}
    counts = {str(count): part for count in range(1, 6)}
    scores = {"cso_map": score, "interval": [score - 0.01, score + 0.01], "standard_error": 0.005, "count_accuracy": 0.9}
    return {"frames": frames, **scores, "by_count": counts, "interior": part, "border": part, "localisation": {"median": 0.01}}


def made_answer(data, spread: float = 0.02, seed: int = 0) -> beyond.Answer:
    """The truth with a known error, and scores that claim just that."""
    rng = np.random.default_rng(seed)
    truth = data.targets
    score = np.full(truth.xy.shape[:2], np.mean([1 - np.exp(-(t**2) / (2 * spread**2)) for t in (0.05, 0.1, 0.15, 0.2, 0.25)]))
    estimate = Targets(truth.xy + rng.normal(0, spread, truth.xy.shape), truth.intensity, truth.count, np.full(truth.xy.shape, spread), score)
    return beyond.Answer(estimate, len(truth), cso_map(estimate, truth).map, 0.001)


@pytest.fixture
def folder(tmp_path):
    """A reproduce folder with one result of each kind, made up."""
    results = tmp_path / "results"
    results.mkdir()
    for name in ("ista-net-c3-seed0", "dista-net-c3-seed0", "cfgn-detector-c3-seed0", "ista-tuned-c3", "attainable"):
        if not (REPRODUCE / "results" / f"{name}.json").is_file():
            pytest.skip(f"{name} has no result yet")
        shutil.copy(REPRODUCE / "results" / f"{name}.json", results)
    peer = {"label": "A library", "told": dict.fromkeys(beyond.KNOWLEDGE, False) | {"count": True}, "test": report(0.5, 300), "seconds_per_frame": 0.01}
    write = lambda name, content: (results / f"{name}.json").write_text(json.dumps(content))
    write("peers", {"entries": {"library": peer | {"validation_frames": 30}}})
    without = {"frames": 500, "scores": {"any count": {"cso_map": 0.85, "count_accuracy": 0.97, "frames_per_processor_second": 90.0}}}
    curve = [{"from": 0.0, "to": 1.0, "detections": 100, "claimed": 0.9, "real": 0.88}]
    about = {"frames_per_processor_second": 1000.0, "settings": {"calibration": [[0.5], [0.5]]}, "calibration": curve, "without_priors": without}
    write("off-grid-fast", {"test": report(0.9), **about})
    write("continuous-small", {"method": "small continuous network", "test": report(0.8), "frames_per_second": 5000.0})
    readouts = {name: {"validation": {"cso_map": value}, "test": report(value)} for name, value in (("threshold", 0.45), ("fitted", 0.55))}
    write("readouts", {"runs": {"ista-net-c3-seed0": {"frames": 10_000, "readouts": readouts}}})
    return tmp_path


# Rows


def test_rows_come_from_every_kind_of_file_best_first(folder):
    rows = beyond.beyond_rows(folder)
    assert {row["family"] for row in rows} == set(beyond.FAMILIES)
    scores = [row["ours_cso_map"] for row in rows]
    assert scores == sorted(scores, reverse=True) and rows[0]["key"] == "off-grid-fast"
    by_key = {row["key"]: row for row in rows}
    assert by_key["library"]["frames_per_second"] == 100 and by_key["library"]["told_count"] is True and by_key["library"]["ours_frames"] == 300
    assert by_key["ista-net-c3-seed0:fitted"]["ours_cso_map"] == 0.55 and by_key["ista-net-c3-seed0"]["told_psf"] is True
    assert by_key["continuous-small"]["label"] == "small continuous network"
    stored = json.loads((REPRODUCE / "results" / "ista-net-c3-seed0.json").read_text())["test"]
    assert by_key["ista-net-c3-seed0"]["ours_cso_map"] == stored["cso_map"]


def test_a_network_on_several_grids_is_quoted_by_recipe(folder):
    for name, score in (("cfgn-c3", 0.44), ("cfgn-c7", 0.51), ("cfgn-frames-c7", 0.49), ("cfgn-long-c5", 0.61), ("cfgn-long-c7", 0.62)):
        run = {"network": "cfgn", "ratio": int(name[-1])}
        (folder / "results" / f"{name}-seed0.json").write_text(json.dumps({"run": run, "test": report(score)}))
    rows = beyond.beyond_rows(folder)
    assert {"CFGN (three times as long), c = 7", "CFGN (whole frames), c = 7", "CFGN, c = 7"} < {row["label"] for row in rows}
    assert beyond.describe_finer(rows) == (
        "CFGN (three times as long) has 61.00 at c = 5, 62.00 at c = 7; CFGN has 44.00 at c = 3, 51.00 at c = 7."
    )


def test_an_empty_folder_has_no_rows_and_says_what_to_run(tmp_path):
    (tmp_path / "results").mkdir()
    rows = beyond.beyond_rows(tmp_path)
    assert rows == [] and beyond.attainable(tmp_path) is None
    text = beyond.describe_sources(rows, tmp_path)
    assert "score_offgrid.py --tier standard" in text and "score_peers.py" in text and "robustness.py" in text
    assert "missing" in beyond.describe_limit(None) and beyond.robustness_rows(None) == [] and beyond.plot_robustness([]) is None
    assert "Not run yet" in beyond.robustness_table([]).caption and "Not run yet" in beyond.describe_robustness([])


def test_stored_speeds_are_kept_and_missing_ones_are_measured(folder):
    rows = [row for row in beyond.beyond_rows(folder) if row["family"] in ("peer", "off-grid", "detector")]
    answers = {"cfgn-detector-c3-seed0": made_answer(DATA)}
    speeds = {row["key"]: row["frames_per_second"] for row in beyond.add_speeds(rows, answers, folder, frames=4)}
    assert speeds["library"] == 100 and speeds["off-grid-fast"] == 1000 and speeds["cfgn-detector-c3-seed0"] == pytest.approx(1000)


def test_a_speed_is_that_of_one_thread():
    seen, threads = [], torch.get_num_threads()
    assert beyond._speed(lambda frames: seen.append((len(frames), torch.get_num_threads())) or np.ones((200, 200)) @ np.ones((200, 200)), 16) > 0
    assert seen == [(8, 1), (16, 1), (16, 1)] and torch.get_num_threads() == threads


def test_the_attainable_limit_says_where_it_comes_from():
    limit = beyond.attainable()
    text = beyond.describe_limit(limit)
    assert f"{100 * limit['cso_map']:.2f} ± {100 * limit['uncertainty']:.2f}" in text and "exact posterior" in text and "attainable.py" in text
    assert f"{limit['sampled']:,} were answered" in text and f"{100 * limit['interior']['cso_map']:.1f}" in text


def test_a_crowd_of_networks_leaves_room_for_the_others(folder):
    rows = beyond.beyond_rows(folder)
    network = next(row for row in rows if row["family"] == "network")
    crowd = [{**network, "key": f"net-{place}", "label": f"net {place}", "ours_cso_map": 0.3 - place / 100} for place in range(20)]
    named = [row["label"] for row in beyond.named_rows([*rows, *crowd])]
    assert "DISTA-Net" in named and "A library" in named and "net 1" in named and "net 19" not in named


# Tables and sentences


def test_tables_have_a_line_for_every_row(folder):
    rows = beyond.beyond_rows(folder)
    table = beyond.frontier_table(rows)
    assert [line[0] for line in table.cells] == [row["label"] for row in rows] and "90.00 (89.00 to 91.00)" in table.cells[0]
    known = beyond.knowledge_table(rows)
    assert sum(len(line[0].split("; ")) for line in known.cells) == len(rows)
    library = next(line for line in known.cells if line[0] == "A library")
    assert library[1:-1] == ["no"] * 5 + ["yes"] and library[-1] == "settings, on 30 frames"
    continuous = next(line for line in known.cells if "continuous" in line[0])
    assert continuous[1:-1] == ["yes"] * 5 + ["no"]
    assert [row["family"] for row in beyond.best_of_families(rows)] == ["off-grid", "continuous", *[row["family"] for row in beyond.best_of_families(rows)][2:]]


def test_what_knowledge_is_worth(folder, tmp_path_factory):
    table = beyond.prior_table(folder)
    assert table.cells == [["any count", "fast", "85.00", "97.0", "90"]] and "500 test frames" in table.caption
    text = beyond.describe_prior(beyond.beyond_rows(folder), folder)
    assert "scores 85.00 on these 500 frames (tier fast); CFGN + detector, the best that learned" in text  # the continuous network has the rules built in
    empty = tmp_path_factory.mktemp("empty")
    (empty / "results").mkdir()
    assert "Not run yet" in beyond.prior_table(empty).caption and "not been measured yet" in beyond.describe_prior([], empty)


def test_the_frontier_in_words_quotes_the_rows(folder):
    limit = beyond.attainable(folder)
    text = beyond.describe_frontier(beyond.beyond_rows(folder), limit)
    assert "off-grid, fast (90.00)" in text and f"{100 * limit['cso_map'] - 90:.1f} points below the attainable limit" in text and "A library (50.00)" in text
    assert "Without a measured speed" in beyond.describe_unplaced(beyond.beyond_rows(folder))


# Calibration and failures


def test_honest_claims_lie_on_the_diagonal():
    rng = np.random.default_rng(0)
    n = 4_000
    truth = Targets(np.full((n, 1, 2), 5.0), np.full((n, 1), 240.0), np.ones(n, dtype=int))
    claimed = rng.uniform(0.05, 0.95, n)
    distance = np.where(rng.random(n) < claimed, 0.01, 0.4)  # a hit at all thresholds, or at none
    estimate = Targets(truth.xy + np.stack([distance, 0 * distance], axis=-1)[:, None], truth.intensity, truth.count, score=claimed[:, None])
    rows = beyond.reliability(estimate, truth)
    assert sum(row["detections"] for row in rows) == n and all(row["from"] <= row["claimed"] <= row["to"] for row in rows)
    assert all(abs(row["claimed"] - row["real"]) < 4 * np.sqrt(0.25 / row["detections"]) for row in rows)
    bold = beyond.reliability(estimate.with_score(np.full((n, 1), 0.99)), truth)
    assert len(bold) == 1 and bold[0]["real"] < 0.6


def test_frame_errors_by_hand():
    truth = Targets([[[5.0, 5.0], [5.4, 5.0]], [[2.0, 2.0], [0.0, 0.0]]], [[240.0, 240.0]] * 2, [2, 1])
    shifted = Targets(truth.xy + [0.03, 0.04], truth.intensity, truth.count)
    assert np.allclose(beyond.frame_errors(shifted, truth), 0.05)
    extra = Targets([[[5.0, 5.0], [5.4, 5.0]], [[2.0, 2.0], [9.0, 9.0]]], [[240.0, 240.0]] * 2, [2, 2])
    assert np.allclose(beyond.frame_errors(extra, truth), [0, np.sqrt(0.25 / 2)])


def test_the_worst_frames_come_with_their_reasons():
    truth = DATA.targets
    wrong = Targets(truth.xy, truth.intensity, np.maximum(truth.count - 1, 1), np.full(truth.xy.shape, 0.1))
    answer = beyond.Answer(wrong, len(truth), 0.5, 0.001)
    worst = beyond.worst_frames(answer, DATA, 6)
    errors = beyond.frame_errors(wrong, truth)
    assert [failure.error for failure in worst] == sorted(errors, reverse=True)[:6]
    assert all(f"count {truth.count[failure.frame] - 1} for {truth.count[failure.frame]}" in failure.reason for failure in worst)
    perfect = beyond.Answer(truth, len(truth), 1.0, 0.001)
    assert all("fits as well" in failure.reason and "count" not in failure.reason for failure in beyond.worst_frames(perfect, DATA, 4))
    text = beyond.describe_failures(worst, answer, DATA)
    assert "Of the 6 worst of 40 frames" in text and "In 6 the count is wrong" in text and "0 % of these frames' coordinates" in text


# Robustness


def robustness_content() -> dict:
    score = lambda value: {"frames": 100, "cso_map": value, "interval": [value - 0.02, value + 0.02], "standard_error": 0.01, "count_accuracy": 0.9}
    base = {"group": "base", "value": 0, "what": "as CSIST-100K", "methods": {"off-grid-fast:plain": score(0.91), "dista-net:plain": score(0.46)}}
    noisy = {"off-grid-fast:plain": score(0.3), "off-grid-fast:informed": score(0.8), "dista-net:plain": score(0.4)}
    ramp = {"off-grid-fast:plain": score(0.2), "off-grid-fast:informed": score(0.35), "dista-net:plain": score(0.41), "dista-net:informed": score(0.45)}
    return {
        "conditions": {
            "base": base,
            "read-noise-2": {"group": "read_noise", "value": 2.0, "what": "read noise of 2", "methods": noisy},
            "airy": {"group": "psf", "value": "Airy", "what": "an Airy pattern", "methods": {"dista-net:plain": score(0.2)}},
            "background-5": {"group": "background", "value": 5.0, "what": "a ramp", "methods": ramp},
        }
    }


def test_robustness_rows_prefer_what_a_user_could_tell():
    rows = beyond.robustness_rows(robustness_content())
    table = {(row["condition"], row["line"]): row for row in rows}
    assert table["read-noise-2", "off-grid-fast"]["variant"] == "informed" and table["read-noise-2", "off-grid-fast:plain"]["cso_map"] == 0.3
    assert table["base", "off-grid-fast"]["variant"] == "plain" and table["background-5", "dista-net"]["cso_map"] == 0.45
    text = beyond.describe_robustness(rows)
    assert "worth up to 50.0 points (read noise of 2)" in text and "falls from 91.0 to 35.0 with a ramp" in text
    assert "1 of 2 conditions: beyond the uncertainty under 1 (a ramp) (a ramp was subtracted" in text
    cells = {line[0]: line[1:] for line in beyond.robustness_table(rows).cells}
    assert cells["an Airy pattern"].count("–") == len(cells["an Airy pattern"]) - 1


def test_claims_and_noise_of_stored_conditions():
    content = robustness_content()
    content["conditions"]["read-noise-2"]["methods"]["off-grid-fast:plain"] |= {"claimed": 0.9, "real": 0.4}
    rows = beyond.robustness_rows(content)
    bold = beyond.robustness_score(rows, "read-noise-2", "off-grid-fast:plain")
    assert (bold["claimed"], bold["real"]) == (0.9, 0.4) and beyond.robustness_score(rows, "base", "dista-net")["claimed"] is None
    axes = beyond.plot_claims(rows).axes[0]
    assert [text.get_text() for text in axes.texts] == ["read-noise-2"] and len(axes.get_lines()) == 2
    assert beyond.plot_claims(beyond.robustness_rows(robustness_content())) is None
    table = beyond.noise_table(rows)
    assert table.cells == [["0", "91.0", "46.0", "51.5"], ["2", "30.0", "40.0", "49.1"]] and table.columns[-1] == ("as printed, on SeqCSIST", "DeRefNet")


def test_figures_are_drawn(folder):
    plt = pytest.importorskip("matplotlib.pyplot")
    rows = [{**row, "frames_per_second": row["frames_per_second"] or 50.0} for row in beyond.beyond_rows(folder)]
    ceilings = {3: reporting.grid_ceilings(DATA.targets, 3)}
    figure = beyond.plot_frontier(rows, ceilings, beyond.attainable(folder))
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {row["label"] for row in beyond.named_rows(rows)} | {"attainable", "perfect on the grid, c = 3"} == texts
    answers = {"off-grid-fast": made_answer(DATA), "ista-net-c3-seed0": made_answer(DATA, 0.2), "cfgn-detector-c3-seed0": made_answer(DATA, 0.1)}
    locking = beyond.plot_locking(answers, DATA.targets, rows)
    assert len(locking.axes) == 3
    curves = beyond.plot_reliability(answers, DATA.targets, rows, folder)
    assert len(curves.axes[0].get_lines()) == 3  # the diagonal, the stored tier, the detector
    assert "off-grid, fast (stored, 10,000 frames, earlier claims)" in [line.get_label() for line in curves.axes[0].get_lines()]  # made with other curves
    worst = beyond.worst_frames(answers["ista-net-c3-seed0"], DATA, 5)
    assert sum(ax.axison for ax in beyond.plot_failures(worst, answers["ista-net-c3-seed0"], DATA).axes) == 5
    assert len(beyond.plot_parts(beyond.best_of_families(rows), beyond.attainable(folder)).axes) == 2
    panels = beyond.plot_robustness(beyond.robustness_rows(robustness_content()))
    assert [ax.get_title() for ax in panels.axes if ax.axison] == [beyond.GROUPS[group][0] for group in ("read_noise", "psf", "background")]
    assert len(beyond.plot_robustness(beyond.robustness_rows(robustness_content()), groups=("psf",)).axes) == 1
    plt.close("all")


def test_claims_of_a_known_error_are_nearly_honest():
    answer = made_answer(csist100k("test", 300), 0.05)
    text = beyond.describe_reliability({"off-grid-fast": answer}, csist100k("test", 300).targets, [])
    claimed, real = (float(part.split(" %")[0].split(" ")[-1]) for part in (text.split(" on average")[0], text.split("and ")[1].split(" are hits")[0]))
    assert abs(claimed - real) < 3 and score_report(answer.estimate, csist100k("test", 300).targets, resamples=5)["cso_map"] > 0.7


# The page


@pytest.mark.slow
def test_the_page_runs_at_smoke_scale_from_anywhere(tmp_path, monkeypatch):
    papermill = pytest.importorskip("papermill")
    pytest.importorskip("numba")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    parameters = {"scale": "smoke", "n_test": 24, "output_dir": str(tmp_path / "output")}
    paths = str(REPRODUCE / "beyond.ipynb"), str(tmp_path / "page.ipynb")
    page = papermill.execute_notebook(*paths, parameters, kernel_name="python3", cwd=str(tmp_path), progress_bar=False)
    outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"] and str(tmp_path) not in json.dumps(outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    stored = json.loads((tmp_path / "output" / "beyond.json").read_text())
    assert stored["rows"] and (tmp_path / "output" / "beyond.csv").read_text().count("\n") == len(stored["rows"]) + 1
    assert len(stored["failures"]) == 24 and set(stored["ceilings"]) == {"3", "5", "7"}


def test_the_parameters_comment_names_the_scales_frames():
    text = (REPRODUCE / "beyond.md").read_text(encoding="utf-8")
    assert "{:,}, {:,} or {:,} by scale".format(*beyond.SCALES.values()) in text and FocalPlane().bits == 8
