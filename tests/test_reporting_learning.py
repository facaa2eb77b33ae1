"""What the histories of the runs say about architecture and training length, and what shuffled ranks say about detection and ranking."""
from __future__ import annotations

import numpy as np
import pytest

from csist import reporting
from csist.datasets import csist100k
from csist.imaging import SubpixelGrid
from csist.metrics import cso_map
from csist.reporting.live import Live
from csist.scenes import Targets

BUDGET = 336_000


def made_up(method: str, scores, samples: int, *, test: float, ap25: float, key: str | None = None) -> dict:
    """A trained row with a history of equal steps, as :func:`csist.reporting.trained_rows` gives it."""
    steps = [samples * (k + 1) // len(scores) for k in range(len(scores))]
    history = [{"samples": step, "view": "windows", "val_cso_map": score, "val_ap": [0, 0, 0, 0, ap25]} for step, score in zip(steps, scores)]
    about = {"key": key or method, "method": method, "label": method.upper(), "ours_samples": samples, "ours_cso_map": test, "ours_ap25": ap25}
    return about | {"ours_seeds": 1, "history": history, "result": f"{method}-c3-seed0", "ratio": 3}


@pytest.fixture
def trained():
    return [
        made_up("edsr", [0.40, 0.43, 0.44, 0.445], BUDGET, test=0.445, ap25=0.966),
        made_up("cfgn", [0.40, 0.44, 0.45, 0.452], BUDGET, test=0.4466, ap25=0.970),
        made_up("srcnn", [0.30, 0.34, 0.35, 0.36], BUDGET, test=0.36, ap25=0.84),
        made_up("dista-net", [0.44, 0.45, 0.455, 0.46], 4 * BUDGET, test=0.458, ap25=0.986),
    ]


def test_the_budget_is_the_one_that_most_rows_share(trained):
    assert reporting.common_budget(trained) == BUDGET
    assert reporting.common_budget(trained[2:]) is None and reporting.common_budget([]) is None


def test_length_and_architecture_are_compared_at_one_budget(trained):
    text = reporting.describe_learning(trained)
    assert "3 networks were shown 336,000 samples" in text and "between 44.50 (EDSR) and 44.66 (CFGN)" in text
    assert "SRCNN 36.00, with an AP-25 of 84.0" in text  # not among the good ones
    assert "DISTA-NET +2.00" in text  # from its best at 336,000 samples to its end
    assert "**So**" not in text  # no network was trained twice


@pytest.mark.parametrize("shorter, verdict", [(0.451, "The first is the larger"), (0.4565, "The two are of one size"), (0.4575, "The second is the larger")])
def test_training_and_architecture_are_weighed_by_what_one_network_gained(trained, shorter, verdict):
    twin = made_up("dista-net", [0.44, 0.445], BUDGET, test=shorter, ap25=0.90, key="dista-net-standard")
    text = reporting.describe_learning([*trained, twin])
    assert f"worth +{100 * (0.458 - shorter):.2f} to +{100 * (0.458 - shorter):.2f} points" in text and "0.16 separate" in text
    assert f"{verdict}, and each row is one training" in text and "would move them, which is unknown" in text
    repeated = reporting.describe_learning([*trained, twin | {"ours_seeds": 3, "ours_seeds_sd": 0.0012}])
    assert f"would move them (standard deviation of {twin['label']} 0.12 over 3 seeds)." in repeated


def test_too_few_rows_are_no_comparison(trained):
    assert "cannot be told apart" in reporting.describe_learning(trained[:1]) and "cannot be told apart" in reporting.describe_learning([])


def test_the_same_network_with_both_budgets_is_compared_on_test(trained):
    twin = made_up("dista-net", [0.44, 0.445], BUDGET, test=0.451, ap25=0.97, key="dista-net-standard")
    assert "of the shorter one: DISTA-NET +0.70 (" in reporting.describe_learning([*trained, twin])


def test_the_table_says_how_far_a_run_had_come(trained):
    lines = reporting.learning_table(trained).markdown().splitlines()
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells == ["DISTA-NET", "1,344,000", "44.00", "44.00", "46.00", "+0.50", "98.60"]


def test_rows_of_the_repository_have_histories():
    rows = reporting.table1_rows(methods=["ista", "ista-net", "dista-net"])
    found = reporting.trained_rows(rows)
    assert {row["key"] for row in found} >= {"ista-net", "dista-net"} and all(row["history"] for row in found)
    assert "ista-tuned" not in {row["key"] for row in found}


def test_marks_of_all_runs_are_drawn(trained):
    pytest.importorskip("matplotlib").use("Agg")
    figure = reporting.plot_detection(trained, reporting.Ceilings(0.456, 0.564))
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels[1:] == [row["label"] for row in trained]
    assert reporting.plot_detection([], reporting.Ceilings(0.456, 0.564)) is None
    without = [{**row, "history": [{"samples": 1, "val_cso_map": 0.4}]} for row in trained]
    assert reporting.plot_detection(without, reporting.Ceilings(0.456, 0.564)) is None


def on_grid(truth: Targets) -> Targets:
    """Every target at its nearest sub-pixel, its brightness saying nothing about the error."""
    grid = SubpixelGrid(ratio=3)
    xy = truth.xy.copy()
    xy[truth.mask] = grid.to_position(grid.to_index(np.clip(truth.xy[truth.mask], -0.5, 10.5)))
    return Targets(xy, truth.intensity, truth.count)


def test_perfect_detection_is_told_apart_from_ranking():
    truth = csist100k("test", 400).targets
    scores, ceilings = reporting.rank_scores(on_grid(truth), truth, draws=5), reporting.grid_ceilings(truth)
    assert scores.shuffled == pytest.approx(ceilings.random, abs=0.01) and scores.hits_first == pytest.approx(scores.shuffled, abs=0.01)
    assert scores.best == pytest.approx(ceilings.ranked, abs=1e-9) and scores.best > scores.own


def test_false_alarms_cost_only_where_they_are_ranked_with_the_hits():
    truth = csist100k("test", 200).targets
    perfect = on_grid(truth)
    known = [(xy[:m], light[:m]) for xy, light, m in zip(perfect.xy, perfect.intensity, perfect.count)]
    stranger = [[-0.4, 10.4]]  # a dim answer in a corner of every frame
    both = Targets.from_lists([np.concatenate([xy, stranger]) for xy, _ in known], [np.append(light, 60.0) for _, light in known])
    scores, clean = reporting.rank_scores(both, truth, draws=5), reporting.rank_scores(perfect, truth, draws=5)
    assert scores.hits_first == pytest.approx(clean.hits_first, abs=0.01) and scores.own == pytest.approx(clean.own, abs=1e-3)
    assert scores.shuffled < clean.shuffled - 0.05


def test_ranks_by_distance_are_worth_what_the_table_says():
    truth = csist100k("test", 200).targets
    perfect, ceilings = on_grid(truth), reporting.grid_ceilings(truth)
    knowing = perfect.with_score(-reporting.nearest_distance(perfect, truth))
    rows = [{"key": name, "method": name, "label": name.upper()} for name in ("edsr", "cfgn")]
    live = {"edsr": Live(knowing, 200, cso_map(knowing, truth).map), "cfgn": Live(perfect, 200, cso_map(perfect, truth).map)}
    ranked = reporting.ranking_rows(rows, live, truth)
    assert ranked[0]["own"] == pytest.approx(ranked[0]["best"]) and ranked[0]["shuffled"] == pytest.approx(ranked[1]["shuffled"])
    text = reporting.describe_ranking(ranked, ceilings)
    assert "+0.00 (EDSR)" in text.split("**Room.**")[1] and "(EDSR) points" in text.split("**Brightness**")[1].split("hits first")[0]
    assert "nothing to compare" in reporting.describe_ranking(ranked[:1], ceilings)
    assert len(reporting.ranking_table(ranked, ceilings).cells) == 3


def test_no_target_means_no_distance():
    nobody, somebody = Targets([[[0.0, 0.0]]], [[0.0]], [0]), Targets([[[5.0, 5.0]]], [[240.0]], [1])
    assert np.isinf(reporting.nearest_distance(somebody, nobody)).all()


def test_places_are_compared_with_their_own_ceilings():
    truth = csist100k("test", 300).targets
    part = {"ours_samples": 1, "ours_ap25": 0.97}
    rows = [
        {"label": "A", "ours_interior_cso_map": 0.60, "ours_border_cso_map": 0.40, **part},
        {"label": "B", "ours_interior_cso_map": 0.59, "ours_border_cso_map": 0.43, **part},
    ]
    text = reporting.describe_places(rows, truth)
    assert "2 of the 2 trained networks reach the first number (A, B)" in text
    assert "differ by 1.0 points inside and by 3.0 at the border." in text


def test_that_there_is_one_seed_is_said_once():
    rows = reporting.table1_rows(methods=["ista-net", "dista-net"])
    single = reporting.discrepancies([{**row, "ours_seeds": 1, "ours_seeds_sd": None} for row in rows])
    assert not any("One seed" in sentence for sentence in single) and [sentence.startswith("**Seeds**") for sentence in single] == [False, False, True]
    several = reporting.discrepancies([{**row, "ours_seeds": 3, "ours_seeds_sd": 0.001} for row in rows])
    assert len(several) == 2 and all("Over 3 seeds" in sentence for sentence in several)
