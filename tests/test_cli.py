"""The command line, called in this process: what it prints, what it writes, what it refuses."""
from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import csist
from csist import cli
from csist.cli import FAILED, OK, UNFINISHED, duration, main
from csist.networks.registry import write_weights

TINY_RUNS = """
runs:
  - name: ista-net-c3-seed0
    network: ista-net
    phases: [{view: windows, samples: 8}, {view: frames, samples: 4, rate: 1.0e-4}]
    options: {stages: 1}
    batch: 4
    train_size: 16
    val_size: 8
    test_size: 8
    epoch: 8
"""


@pytest.fixture
def frames(tmp_path):
    """Two frames as the command reads them: PNG files and annotations in the original layout."""
    folder = tmp_path / "frames"
    csist.write_grokcso(folder, *csist.csist100k("test", size=2, cache=False))
    return folder


@pytest.fixture
def tiny(tmp_path):
    """Arguments of a training that takes three steps."""
    (tmp_path / "runs.yaml").write_text(TINY_RUNS)
    return ["train", "ista-net", "--runs", str(tmp_path / "runs.yaml"), "--output", str(tmp_path / "trained"), "--device", "cpu"]


def json_of(capsys, *arguments, code=OK):
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *arguments) -> str:
    """The one line that a refused command says."""
    assert main([str(word) for word in arguments]) == FAILED
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("csist: error: ") and printed.err.count("\n") == 1, printed
    return printed.err


# Small parts


@pytest.mark.parametrize("text, seconds", [("90", 90), ("90s", 90), ("25m", 1500), ("1.5h", 5400), (" 2m ", 120)])
def test_duration(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "1d", "-5m", "1m30s", "1e3", "nan"])
def test_duration_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="25m"):
        duration(text)


def test_help_and_version(capsys):
    assert main(["--version"]) == OK
    assert capsys.readouterr().out.strip() == f"csist {csist.__version__}"
    for command in ("simulate", "train", "unmix", "evaluate", "info"):
        assert main([command, "--help"]) == OK
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["", "simulatte", "info --nonsense", "simulate", "simulate out --size 0", "evaluate ista --split tset"])
def test_bad_arguments_get_one_line(capsys, words):
    assert "--help" in refusal(capsys, *words.split())


def test_as_a_module():
    run = subprocess.run([sys.executable, "-m", "csist", "info", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["versions"]["csist"] == csist.__version__


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_no_error(tmp_path):
    np.save(tmp_path / "frames.npy", np.zeros((4000, 11, 11), dtype=np.uint8))  # more text than a pipe holds
    command = f'"{sys.executable}" -m csist unmix "{tmp_path / "frames.npy"}" --method omp | head -n 1'
    run = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "" and run.stdout.startswith("frame")


# simulate


def test_simulate_writes_what_csist100k_gives(capsys, tmp_path):
    value = json_of(capsys, "simulate", tmp_path / "out", "--size", 5, "--seed", 3, "--split", "val")
    again, expected = csist.read_grokcso(tmp_path / "out"), csist.csist100k("val", size=5, seed=3, cache=False)
    assert np.array_equal(again.frames, expected.frames)
    assert np.allclose(again.targets.xy[again.targets.mask], expected.targets.xy[expected.targets.mask])
    assert value["frames"] == 5 and value["seed"] == 3 and value["targets"] == int(expected.targets.count.sum())
    assert sum(value["frames_by_target_count"].values()) == 5


def test_simulate_npz(capsys, tmp_path):
    assert main(["simulate", str(tmp_path / "new" / "data.npz"), "--size", "1_0"]) == OK
    assert "x = row" in capsys.readouterr().out
    expected = csist.csist100k("test", size=10, cache=False)
    with np.load(tmp_path / "new" / "data.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["frames"], expected.frames) and np.array_equal(stored["count"], expected.targets.count)
        assert np.array_equal(stored["xy"], expected.targets.xy, equal_nan=True)
    assert os.listdir(tmp_path / "new") == ["data.npz"]  # no temporary file is left


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_simulate_never_replaces_unasked(capsys, tmp_path, name):
    words = ["simulate", tmp_path / name, "--size", 2]
    json_of(capsys, *words)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "overwrite" in refusal(capsys, *words, "--seed", 1)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    json_of(capsys, *words, "--seed", 1, "--overwrite")
    assert before != {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_simulate_refusals(capsys, tmp_path):
    assert "seed" in refusal(capsys, "simulate", tmp_path / "out", "--size", 2, "--seed", -1)
    assert "folder" in refusal(capsys, "simulate", tmp_path, "--size", 2, "--format", "npz")
    (tmp_path / "file").write_text("")
    refusal(capsys, "simulate", tmp_path / "file", "--size", 2)


# unmix


def test_unmix_every_kind_of_input_alike(capsys, tmp_path, frames):
    data = csist.read_grokcso(frames)
    np.save(tmp_path / "all.npy", data.frames)
    np.save(tmp_path / "one.npy", data.frames[1].astype(float))
    expected = csist.unmix(data.frames, "omp")
    folder, array, one, png = (
        json_of(capsys, "unmix", path, "--method", "omp")["frames"]
        for path in (frames, tmp_path / "all.npy", tmp_path / "one.npy", frames / "cso_img" / "image_1.png")
    )
    assert [frame["name"] for frame in folder] == ["image_0.png", "image_1.png"]
    assert [frame["targets"] for frame in folder] == [frame["targets"] for frame in array]
    assert one[0]["targets"] == png[0]["targets"] == folder[1]["targets"]
    assert [[t["x"], t["y"]] for t in folder[1]["targets"]] == expected.xy[1, : expected.count[1]].tolist()


def test_unmix_needs_no_annotations(capsys, frames):
    for path in (frames / "Annotations").iterdir():
        path.unlink()
    (frames / "Annotations").rmdir()
    assert len(json_of(capsys, "unmix", frames, "--method", "omp")["frames"]) == 2


def test_unmix_says_rows_first(capsys, tmp_path):
    """A target at row 2, column 8 is reported as x = 2, y = 8."""
    frame = csist.FocalPlane().render(csist.Targets([[[2.0, 8.0]]], [[240.0]], [1]))
    np.save(tmp_path / "frame.npy", frame)
    (target,) = json_of(capsys, "unmix", tmp_path / "frame.npy", "--method", "omp", "--threshold", 100)["frames"][0]["targets"]
    assert (target["x"], target["y"]) == (2.0, 8.0) and abs(target["intensity"] - 240) < 2
    assert main(["unmix", str(tmp_path / "frame.npy"), "--method", "omp", "--threshold", "100"]) == OK
    head, row = capsys.readouterr().out.strip().split("\n")
    assert head.index("x (row)") < head.index("y (column)") and row.split()[:4] == ["frame.npy[0]", "1", "2.000", "8.000"]


def test_unmix_empty_frame(capsys, tmp_path):
    np.save(tmp_path / "dark.npy", np.zeros((11, 11)))
    assert json_of(capsys, "unmix", tmp_path / "dark.npy", "--method", "omp")["frames"] == [{"name": "dark.npy", "targets": []}]
    assert main(["unmix", str(tmp_path / "dark.npy"), "--method", "omp"]) == OK
    assert "none" in capsys.readouterr().out


def test_target_rows_carry_what_a_method_predicts():
    rows = cli._target_rows(csist.Targets([[[1.0, 2.0]]], [[3.0]], [1], sigma=[[[0.1, 0.2]]], score=[[0.9]]), 0)
    assert rows == [{"x": 1.0, "y": 2.0, "intensity": 3.0, "sigma_x": 0.1, "sigma_y": 0.2, "score": 0.9}]


def test_the_table_shows_what_a_method_predicts():
    target = {"x": 1.0, "y": 2.0, "intensity": 3.0, "sigma_x": 0.1, "sigma_y": 0.2, "score": 0.9}
    frames = [{"name": "a", "targets": [target]}, {"name": "b", "targets": []}]
    head, first, second = cli._unmix_table({"frames": frames}).split("\n")
    assert head.endswith("+- x [px]  +- y [px]  score")
    assert first.split() == ["a", "1", "1.000", "2.000", "3.0", "0.100", "0.200", "0.900"] and second.split() == ["b", "none"]
    plain = {name: target[name] for name in ("x", "y", "intensity")}
    assert "score" not in cli._unmix_table({"frames": [{"name": "a", "targets": [plain]}]})


def test_unmix_off_the_grid(capsys, tmp_path):
    pytest.importorskip("numba")
    np.save(tmp_path / "frame.npy", csist.FocalPlane().render(csist.Targets([[[2.3, 7.9]]], [[240.0]], [1])))
    value = json_of(capsys, "unmix", tmp_path / "frame.npy", "--method", "off-grid", "--tier", "fast")
    (target,) = value["frames"][0]["targets"]
    assert value["ratio"] is None and abs(target["x"] - 2.3) < 0.02 and abs(target["y"] - 7.9) < 0.02
    assert 0 < target["sigma_x"] < 0.02 and target["score"] > 0.9
    assert "threshold" in refusal(capsys, "unmix", tmp_path / "frame.npy", "--method", "off-grid", "--threshold", 50)
    assert "--tier" in refusal(capsys, "unmix", tmp_path / "frame.npy", "--method", "omp", "--tier", "fast")
    assert main(["evaluate", "off-grid", "--split", "val", "--size", "5", "--tier", "fast"]) == OK
    assert capsys.readouterr().out.startswith("off-grid, 5 frames of the val split")


def test_unmix_frames_of_another_focal_plane(capsys, tmp_path):
    """Size, PSF and depth of the frames can be said, and must be."""
    pytest.importorskip("numba")
    plane = csist.FocalPlane((9, 14), 0.7, 12)
    np.save(tmp_path / "frame.npy", plane.render(csist.Targets([[[2.3, 11.9]]], [[3000.0]], [1])))
    sensor = ("--shape", 9, 14, "--sigma", 0.7, "--bits", 12)
    value = json_of(capsys, "unmix", tmp_path / "frame.npy", "--method", "omp", *sensor)
    assert value["focal_plane"] == {"shape": [9, 14], "sigma": 0.7, "bits": 12, "read_noise": 0.0}
    brightest = max(value["frames"][0]["targets"], key=lambda target: target["intensity"])
    assert abs(brightest["x"] - 2.3) < 0.34 and abs(brightest["y"] - 11.9) < 0.34
    assert "say --shape 9 14" in refusal(capsys, "unmix", tmp_path / "frame.npy", "--method", "omp")
    assert "full scale 255" in refusal(capsys, "unmix", tmp_path / "frame.npy", "--method", "omp", "--shape", 9, 14)
    assert "sigma must be" in refusal(capsys, "unmix", tmp_path / "frame.npy", "--method", "omp", *sensor[:3], "--sigma", 0)


def test_unmix_deep_pictures(capsys, tmp_path):
    """A PNG of 16 bits is read where the digitiser is said to be that deep, and gives what its array gives."""
    from PIL import Image

    frame = csist.FocalPlane(bits=12).render(csist.Targets([[[2.0, 8.0]]], [[3000.0]], [1]))[0]
    Image.fromarray(frame.astype(np.uint16)).save(tmp_path / "deep.png")
    np.save(tmp_path / "deep.npy", frame)
    ask = [json_of(capsys, "unmix", tmp_path / name, "--method", "omp", "--bits", 12)["frames"][0]["targets"] for name in ("deep.png", "deep.npy")]
    assert ask[0] == ask[1] and max(target["intensity"] for target in ask[0]) > 2000
    assert "csist unmix --bits" in refusal(capsys, "unmix", tmp_path / "deep.png", "--method", "omp")
    (tmp_path / "cut.png").write_bytes((tmp_path / "deep.png").read_bytes()[:-30])
    assert "damaged" in refusal(capsys, "unmix", tmp_path / "cut.png", "--method", "omp", "--bits", 12)


def test_unmix_told_of_the_scenes(capsys, tmp_path):
    pytest.importorskip("numba")
    np.save(tmp_path / "frame.npy", csist.FocalPlane(bits=12).render(csist.Targets([[[2.3, 7.9]]], [[3000.0]], [1])))
    off_grid = ("unmix", tmp_path / "frame.npy", "--method", "off-grid", "--tier", "fast", "--bits", 12)
    assert main([str(word) for word in off_grid]) == OK
    assert re.fullmatch("csist: warning: .* more light than the prior allows .*\n", capsys.readouterr().err)
    for told in (("--counts", 1, 3, "--intensity", 2000, 4000), ("--counts", "unknown", "--intensity", "unknown", "--min-distance", "unknown")):
        (target,) = json_of(capsys, *off_grid, *told)["frames"][0]["targets"]
        assert abs(target["x"] - 2.3) < 0.02 and abs(target["y"] - 7.9) < 0.02 and abs(target["intensity"] - 3000) < 20
    assert "smallest" in refusal(capsys, *off_grid, "--counts", 1, 3, 5)
    assert "whole number" in refusal(capsys, *off_grid, "--counts", 0, 3)
    assert "belongs to the method 'off-grid'" in refusal(capsys, "unmix", tmp_path / "frame.npy", "--method", "omp", "--bits", 12, "--min-distance", 0.3)


def png_bytes(size=(11, 11), mode="L") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def npy_bytes(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


BAD_FILES = {
    "colour.png": (png_bytes(mode="RGB"), "grey"),
    "large.png": (png_bytes(size=(12, 11)), "--shape 11 12"),
    "cut.png": (png_bytes()[:-20], "damaged"),
    "empty.png": (b"", "PNG"),
    "text.npy": (b"no array", "no .npy"),
    "empty.npy": (b"", "no .npy"),
    "objects.npy": (npy_bytes(np.array([{}])), "no .npy"),
    "colours.npy": (npy_bytes(np.zeros((11, 11, 3))), "make it grey"),
    "shape.npy": (npy_bytes(np.zeros((3, 10, 11))), "(3, 10, 11)"),
    "none.npy": (npy_bytes(np.zeros((0, 11, 11))), "(0, 11, 11)"),
    "nan.npy": (npy_bytes(np.full((11, 11), np.nan)), "finite"),
    "complex.npy": (npy_bytes(np.zeros((11, 11), complex)), "real"),
    "words.npy": (npy_bytes(np.full((11, 11), "a")), "real"),
    "frame.jpg": (b"", ".png"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_unmix_refuses_bad_files(capsys, tmp_path, name):
    content, expected = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    message = refusal(capsys, "unmix", tmp_path / name, "--method", "omp")
    assert expected in message, message


def test_unmix_refuses_bad_settings(capsys, tmp_path, frames):
    assert "'ista'" in refusal(capsys, "unmix", frames, "--method", "itsa")
    assert "odd" in refusal(capsys, "unmix", frames, "--method", "omp", "--ratio", 4)
    assert "did you mean" in refusal(capsys, "unmix", tmp_path)  # the folder above the one that was meant
    (tmp_path / "cso_img").mkdir()
    assert "image_" in refusal(capsys, "unmix", tmp_path)
    assert "does not exist" in refusal(capsys, "unmix", tmp_path / "nothing")


def test_weights_missing_or_damaged(capsys, tmp_path, monkeypatch, frames):
    monkeypatch.setenv("CSIST_WEIGHTS", str(tmp_path))
    assert "train" in refusal(capsys, "unmix", frames, "--method", "dista-net", "--ratio", 9)
    (tmp_path / "ista-net-c9-seed0.safetensors").write_bytes(b"damaged")
    refusal(capsys, "unmix", frames, "--method", "ista-net", "--ratio", 9)


def test_unmix_with_a_network(capsys, tmp_path, monkeypatch, frames):
    network = csist.create_network("ista-net", stages=1, start=False)
    write_weights(tmp_path / "ista-net-c3-seed0.safetensors", network, {"network": "ista-net", "ratio": 3, "options": {"stages": 1}})
    monkeypatch.setenv("CSIST_WEIGHTS", str(tmp_path))
    assert len(json_of(capsys, "unmix", frames, "--method", "ista-net")["frames"]) == 2
    assert json_of(capsys, "info")["weights"]["ista-net-c3-seed0"].startswith(str(tmp_path))


# evaluate, info


def test_evaluate_is_csist_evaluate(capsys):
    value, expected = json_of(capsys, "evaluate", "omp", "--split", "val", "--size", 20), csist.evaluate("omp", "val", 20)
    assert value["scores"] == expected["scores"] and value["frames_sha256"] == expected["frames_sha256"] and value["frames"] == 20
    assert main(["evaluate", "omp", "--split", "val", "--size", "20"]) == OK
    table = capsys.readouterr().out
    assert "CSO-mAP" in table and f"{100 * expected['scores']['cso_map']:.2f}" in table and "AP-25" in table


def test_evaluate_refuses_unknown_methods(capsys):
    assert "dista-net" in refusal(capsys, "evaluate", "dista", "--size", 2)


def test_info(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CSIST_CACHE", str(tmp_path / "here"))
    value = json_of(capsys, "info")
    assert value["cache"] == str(tmp_path / "here") and not (tmp_path / "here").exists()
    assert [*value["methods"]["model-based"], *value["methods"]["learned"]] == csist.list_methods()
    assert main(["info"]) == OK
    assert "dista-net" in capsys.readouterr().out


# train


def test_train_from_start_to_scores(capsys, tiny, tmp_path):
    pytest.importorskip("accelerate")
    value = json_of(capsys, *tiny)
    assert value["finished"] and value["test_frames"] == 8 and 0 <= value["cso_map"] <= 1
    assert all(os.path.isfile(value[name]) for name in ("result", "weights", "checkpoint"))
    before = os.stat(value["result"]).st_mtime_ns
    assert "--overwrite" in refusal(capsys, *tiny)  # trained already
    assert json_of(capsys, *tiny, "--resume") == value and os.stat(value["result"]).st_mtime_ns == before
    assert json_of(capsys, *tiny, "--overwrite")["cso_map"] == value["cso_map"]  # the same seed
    assert os.stat(value["result"]).st_mtime_ns > before
    assert main([*tiny, "--resume"]) == OK
    assert "CSO-mAP x 100" in capsys.readouterr().out


def test_train_in_instalments(capsys, tiny):
    pytest.importorskip("accelerate")
    value = json_of(capsys, *tiny, "--time-budget", "0s", code=UNFINISHED)
    assert not value["finished"] and os.path.isfile(value["checkpoint"]) and not os.path.exists(value["result"])
    assert "--resume" in refusal(capsys, *tiny)  # a checkpoint is not thrown away unasked
    assert main([*tiny, "--resume", "--time-budget", "0s"]) == UNFINISHED
    assert "--resume" in capsys.readouterr().out
    assert json_of(capsys, *tiny, "--resume", "--time-budget", "10m")["finished"]


def test_two_processes_do_not_share_a_run(capsys, tiny, tmp_path):
    pytest.importorskip("fcntl")
    handle = cli.hold(tmp_path / "trained" / "checkpoints" / "ista-net-c3-seed0.lock")
    assert "another process" in refusal(capsys, *tiny)
    handle.close()


def test_train_uses_the_repositorys_runs(capsys):
    run = cli.find_run("dista-net", 3, 0)
    assert run.name == "dista-net-c3-seed0" and run.network == "dista-net" and run.train_size == 80_000
    run = cli.find_run("ista-net+", 5, 7)
    assert (run.name, run.network, run.ratio, run.seed) == ("ista-net-plus-c5-seed7", "ista-net+", 5, 7)
    assert "default recipe" in capsys.readouterr().err


def test_an_interrupted_training_says_where_it_is(capsys, tiny, monkeypatch):
    pytest.importorskip("accelerate")

    def interrupted(run, *_, **__):
        raise KeyboardInterrupt("it goes on from here")

    monkeypatch.setattr("csist.training.train", interrupted)
    assert main(tiny) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_train_refusals(capsys, tmp_path, tiny, monkeypatch):
    assert "learns nothing" in refusal(capsys, "train", "ista")
    assert "train_continuous.py" in refusal(capsys, "train", "continuous")
    assert "dista-net" in refusal(capsys, "train", "dista")
    assert "odd" in refusal(capsys, "train", "dista-net", "--ratio", 4)
    assert "25m" in refusal(capsys, "train", "dista-net", "--time-budget", "soon")
    for text in ("runs: 3", "runs: [{name: a}]", "{", "runs: [{name: a, network: b, colour: red}]"):
        (tmp_path / "runs.yaml").write_text(text)
        assert "runs.yaml" in refusal(capsys, *tiny)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "runs.yaml").write_text(TINY_RUNS)
    assert "GPU" in refusal(capsys, *tiny[:-1], "cuda")


def test_train_names_the_extra(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "accelerate" else find(name, *rest))
    assert 'csist[train]' in refusal(capsys, "train", "dista-net")


def test_train_refuses_a_file_of_runs_that_is_not_there_and_a_result_that_is_none(capsys, tmp_path):
    assert "typo.yaml, given as the file of runs, does not exist" in refusal(capsys, "train", "ista-net", "--runs", tmp_path / "typo.yaml")
    (tmp_path / "runs.yaml").write_text(TINY_RUNS)
    (tmp_path / "trained" / "results").mkdir(parents=True)
    result = tmp_path / "trained" / "results" / "ista-net-c3-seed0.json"
    for content in ("{}", '{"run": '):
        result.write_text(content)
        message = refusal(capsys, "train", "ista-net", "--runs", tmp_path / "runs.yaml", "--output", tmp_path / "trained", "--device", "cpu", "--resume")
        assert f"{result.name} is no result of a training" in message and "--overwrite" in message
