"""The benchmark: it runs, it writes what it measured, and what it compares computes the same thing."""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import csist

SCRIPT = Path(__file__).resolve().parents[1] / "reproduce" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data():
    return csist.csist100k("train", size=8, cache=False)


def test_quick_run(bench, tmp_path, capsys):
    output = tmp_path / "new" / "bench.json"
    assert bench.main(["--quick", "--limit", "0", "--networks", "ista-net", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["quick"] and result["machine"]["threads"] >= 1 and result["provenance"]["versions"]["torch"]
    assert len(result["entries"]) == len(capsys.readouterr().out.strip().split("\n")) == 4 + 3 + 3
    for value in result["entries"]:
        assert value["ours"]["seconds"] > 0 and value["ours"]["repeats"] >= 1
        if "naive" in value:
            assert value["agree"] is True and value["naive"]["seconds"] > 0
            assert value["ratio"] == pytest.approx(value["ours"]["seconds"] / value["naive"]["seconds"]) == pytest.approx(1 / value["times_faster"])
    assert [p.name for p in output.parent.iterdir()] == ["bench.json"]


def test_a_quick_run_does_not_replace_the_results(bench, monkeypatch):
    monkeypatch.setattr(bench, "run", lambda *_, **__: {"entries": []})
    monkeypatch.setattr(bench, "write_json", lambda *_: pytest.fail("a quick run's numbers mean nothing and must not be stored"))
    assert bench.main(["--quick"]) == 0


def test_disagreement_is_an_error(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run", lambda *_, **__: {"entries": [{"what": "this pair", "agree": False}]})
    assert bench.main(["--quick"]) == 1
    assert "this pair" in capsys.readouterr().err


@pytest.mark.parametrize("name, options", [("dista-net", {"stages": 2}), ("ista-net+", {"stages": 2}), ("ista-net", {"stages": 3})])
def test_naive_network_equals_ours(bench, data, name, options):
    """Images, loss and all gradients agree to float32 rounding, on a batch whose samples differ."""
    differences = bench.compare_networks(name, data, samples=3, **options)
    assert differences["images"] < 1e-4 and differences["loss"] < 1e-4 and differences["gradients"] < 1e-3, differences
    assert bench.compute_the_same(differences)


def test_comparison_notices_a_difference(bench, data, monkeypatch):
    monkeypatch.setattr(bench, "KERNEL_INPUT_SCALE", 0.02)
    assert not bench.compute_the_same(bench.compare_networks("dista-net", data, samples=2, stages=2), tolerance=1e-6)


@pytest.mark.parametrize("view, precision, naive", [("frames", "no", True), ("frames", "no", False), ("windows", "bf16", False)])
def test_a_step_trains(bench, data, view, precision, naive):
    step = bench.Step("ista-net", data, 4, view, precision, naive)
    before = [parameter.detach().clone() for parameter in step.module.network.parameters()]
    assert np.isfinite(step())
    assert any(not torch.equal(old, new) for old, new in zip(before, step.module.network.parameters()))


def test_one_step_of_both_ways_gives_the_same_weights(bench, data):
    ours, naive = (bench.Step("ista-net", data, 4, naive=naive) for naive in (False, True))
    assert ours() == pytest.approx(naive(), rel=1e-5)
    for one, other in zip(ours.module.network.parameters(), naive.module.network.parameters()):
        # Adam's first step is the sign of the gradient, so a gradient that is zero up to rounding may differ; nearly all weights must agree.
        assert (torch.isclose(one, other, atol=1e-6)).float().mean() > 0.99


def test_quadrature_is_the_pixel_response(bench):
    response = csist.FocalPlane().response(4.8, 5.3)
    for i, j in ((5, 5), (4, 6), (7, 5)):
        assert bench.pixel_by_quadrature(i, j, 4.8, 5.3, 0.5) == pytest.approx(response[i, j], abs=1e-8)


def test_measure_takes_turns(bench):
    order = []
    times = bench.measure({"one": lambda: order.append(1), "two": lambda: order.append(2)}, limit=5, most=4)
    assert order == [1, 2] * 5  # a warm-up and four repeats
    assert times["one"]["repeats"] == times["two"]["repeats"] == 4 and times["one"]["fastest"] <= times["one"]["seconds"]
