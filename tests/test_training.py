"""Training: runs as data, batches, resuming after any kind of stop, several processes, and the result file."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csist.datasets import Frames, csist100k, frames_hash
from csist.imaging import FocalPlane, SubpixelGrid
from csist.networks import create_network, load_network
from csist.networks.registry import read_weights, write_weights
from csist.scenes import Targets
from csist.training import Phase, Run, Trainer, TrainingSet, finish, is_finished, score_weights, train, window_origin, write_json

pytest.importorskip("accelerate")
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def one_thread_in_this_module():
    """Runs are compared bit for bit, so all of them add up their sums in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CPU = {"device": "cpu", "precision": "no", "progress": False}
TINY = Run(
    "tiny",
    "ista-net",
    options={"stages": 2},
    phases=(Phase("windows", samples=160, rate=1e-3), Phase("frames", samples=64, rate=1e-4)),
    batch=16,
    train_size=256,
    val_size=32,
    test_size=32,
    epoch=80,
)
pytestmark = pytest.mark.usefixtures("one_thread")


def trainer_of(run, folder):
    return Trainer(run, folder, device="cpu", precision="no")


def same_weights(first, second):
    return all(torch.equal(first[key], second[key]) for key in first.keys() | second.keys())


def without_times(history):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


# Runs as data


def test_a_run_is_read_from_plain_values():
    run = Run.from_dict({"name": "a", "network": "ista-net", "phases": [{"samples": 100, "rate": 0.01}, {"view": "frames", "samples": 65}]})
    assert run.phases == (Phase("windows", 100, 0.01), Phase("frames", 65))
    assert run.steps == [2, 2]
    assert [run.place(step) for step in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert Run.from_dict({"name": "a", "network": "ista-net"}).phases == (Phase(),)
    assert Run.from_dict(json.loads(json.dumps(asdict(run)))) == run


@pytest.mark.parametrize(
    "entry, error",
    [
        ({"name": "a", "network": "ista-net", "epochs": 3}, TypeError),
        ({"name": "a", "network": "ista-net", "phases": [{"size": 3}]}, TypeError),
        ({"network": "ista-net"}, TypeError),
        ({"name": "a", "network": "ista-net", "phases": [{"view": "windws"}]}, ValueError),
        ({"name": "a", "network": "ista-net", "phases": [{"schedule": "linear"}]}, ValueError),
        ({"name": "a", "network": "ista-net", "phases": [{"samples": 0}]}, ValueError),
        ({"name": "a", "network": "ista-net", "phases": [{"rate": -1.0}]}, ValueError),
        ({"name": "a", "network": "ista-net", "phases": []}, ValueError),
    ],
)
def test_a_wrong_run_is_an_error(entry, error):
    with pytest.raises(error):
        Run.from_dict(entry)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"samples": "80"}, "samples must be a whole number >= 1; got '80'"),
        ({"samples": 10.5}, "samples must be a whole number"),
        ({"samples": True}, "samples must be a whole number"),
        ({"rate": "1e-3"}, "rate must be a positive number; got '1e-3'.*1.0e-3 in YAML"),
        ({"rate": float("nan")}, "rate must be a positive number"),
    ],
)
def test_a_phase_names_the_setting_that_is_wrong(settings, words):
    with pytest.raises(ValueError, match=words):
        Phase(**settings)


def test_numpy_numbers_make_the_run_of_plain_ones():
    phase = Phase(samples=np.int64(32), rate=np.float32(0.5))
    run = Run("numpy", "ista-net", phases=[phase], batch=np.int16(16), clip=np.float32(0.5), fresh=np.bool_(True))
    assert json.loads(json.dumps(asdict(run)))["batch"] == 16
    assert run == Run("numpy", "ista-net", phases=(Phase(samples=32, rate=0.5),), batch=16, clip=0.5, fresh=True)


def test_the_rate_warms_up_and_falls_along_half_a_cosine():
    run = Run("a", "ista-net", phases=(Phase(samples=64_000, rate=2e-3), Phase("frames", samples=640, rate=1e-4, schedule="constant")))
    rates = [run.rate(step) for step in range(1010)]
    assert rates[:50] == pytest.approx([2e-3 * (k + 1) / 50 for k in range(50)])
    assert max(rates) == rates[49] == rates[50] == 2e-3
    assert all(np.diff(rates[50:1000]) < 0) and 0 < rates[999] < 1e-8
    assert rates[525] == pytest.approx(1e-3)  # half way down
    assert rates[1000:] == [1e-4] * 10
    assert [run.rate(step) for step in (700, 3)] == [rates[700], rates[3]]  # no memory
    assert Run("a", "ista-net", phases=(Phase(samples=1),)).rate(0) == 1e-3  # one step is all warm-up


# Data


def test_windows_hold_every_grey_level():
    data = csist100k("train", 2_000)
    samples = TrainingSet(data, 3, seed=0)
    windows, _, origin = samples.batch(torch.arange(2_000), "windows")
    assert windows.shape == (2_000, 5, 5) and int(origin.min()) == 0 and int(origin.max()) == 6
    assert torch.equal(windows.sum((1, 2)), torch.from_numpy(data.frames).float().sum((1, 2)))
    for k in (0, 77, 1_999):
        row, column = origin[k].tolist()
        np.testing.assert_array_equal(windows[k], data.frames[k, row : row + 5, column : column + 5])


@pytest.mark.parametrize("ratio", [1, 3, 5])
def test_the_truth_of_a_window_is_the_crop_of_the_frames_truth(ratio):
    data = csist100k("train", 300)
    samples = TrainingSet(data, ratio, seed=0)
    numbers = torch.arange(300)
    _, part, origin = samples.batch(numbers, "windows")
    frames, whole, none = samples.batch(numbers, "frames")
    assert none is None and frames.dtype == torch.float32
    np.testing.assert_array_equal(frames, data.frames)
    np.testing.assert_allclose(whole, samples.grid.image(data.targets), rtol=1e-6)
    for k, (row, column) in enumerate((ratio * origin).tolist()):
        assert torch.equal(part[k], whole[k, row : row + 5 * ratio, column : column + 5 * ratio])
    assert torch.allclose(part.sum((1, 2)), whole.sum((1, 2)))  # and nothing lies outside the window


@pytest.mark.parametrize("view", ["windows", "frames"])
def test_a_turned_sample_is_the_sample_of_the_turned_scene(view):
    # The oracle turns the positions of the targets and lets the imaging model render them again.
    data, plane = csist100k("train", 64), FocalPlane(bits=None, clip=False)
    turns = torch.tensor([[code & 1, code & 2, code & 4] for code in range(8)] * 8).bool()
    xy = data.targets.xy.copy()
    xy[turns[:, 0].numpy(), :, 0] *= -1
    xy[turns[:, 1].numpy(), :, 1] *= -1
    xy[turns[:, 0].numpy(), :, 0] += 10
    xy[turns[:, 1].numpy(), :, 1] += 10
    xy[turns[:, 2].numpy()] = xy[turns[:, 2].numpy()][..., ::-1]
    turned = Targets(xy, data.targets.intensity, data.targets.count)
    expected = TrainingSet(Frames(np.floor(plane.render(turned)).clip(0, 255).astype(np.uint8), turned), 3, seed=0)
    original = TrainingSet(Frames(np.floor(plane.render(data.targets)).clip(0, 255).astype(np.uint8), data.targets), 3, seed=0)
    numbers = torch.arange(64)
    for got, right in zip(original.batch(numbers, view, turns), expected.batch(numbers, view)):
        assert (got is None and right is None) or (got - right).abs().max() <= 1  # floor may fall either way


@pytest.mark.parametrize("view", ["windows", "frames"])
def test_deep_frames_turn_like_shallow_ones(view):
    data, turns = csist100k("train", 8), torch.tensor([[code & 1, code & 2, code & 4] for code in range(8)]).bool()
    expected = TrainingSet(data, 3, seed=0).batch(torch.arange(8), view, turns)
    for kind in (np.uint16, ">u2", np.float64):
        got = TrainingSet(Frames(data.frames.astype(kind), data.targets), 3, seed=0).batch(torch.arange(8), view, turns)
        assert all(torch.equal(one, other) for one, other in zip(got, expected) if other is not None)


def test_turns_are_a_function_of_the_step_and_use_all_eight():
    samples = TrainingSet(csist100k("train", 100), 3, seed=0)
    assert torch.equal(samples.turns(5, 64), samples.turns(5, 64)) and not torch.equal(samples.turns(5, 64), samples.turns(6, 64))
    assert len({tuple(turn) for turn in samples.turns(0, 500).tolist()}) == 8


def test_a_fresh_stream_has_new_frames_in_every_pass_and_can_go_back():
    data = csist100k("train", 200)
    samples = TrainingSet(data, 3, seed=0, fresh=True)
    frames = []
    for step in (0, 2, 4, 0, 2):  # 100 samples a step, two steps a pass
        samples.go_to(step, 100)
        frames.append(samples.frames.clone())
    assert torch.equal(frames[0], torch.from_numpy(data.frames)) and torch.equal(frames[3], frames[0]) and torch.equal(frames[4], frames[1])
    everything = torch.cat([*frames[:3], torch.from_numpy(csist100k("test", 200).frames)])
    assert len(everything.flatten(1).unique(dim=0)) == 800


def test_window_origins_stay_on_the_frame():
    assert window_origin([[0, 10], [1, 5], [9, 2]], 11).tolist() == [[0, 6], [0, 3], [6, 0]]


def test_every_pass_shows_each_sample_once_in_an_order_of_its_own():
    data = csist100k("train", 100)
    samples = TrainingSet(data, 3, seed=4)
    shown = np.concatenate([samples.numbers(step, 16).numpy() for step in range(25)])  # 400 samples, four passes, batches across their borders
    passes = shown.reshape(4, 100)
    assert all(sorted(one) == list(range(100)) for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) == 4
    assert samples.numbers(3, 16).tolist() == shown[48:64].tolist(), "a pure function of the step"
    assert samples.numbers(0, 250).tolist() == shown[:250].tolist()
    assert TrainingSet(data, 3, seed=5).numbers(0, 16).tolist() != shown[:16].tolist()


# Training and stopping


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The tiny run in one go: the trainer after it, which nothing may change."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer = trainer_of(TINY, tmp_path_factory.mktemp("straight"))
    assert trainer.fit(progress=False)
    torch.set_num_threads(before)
    return trainer


def test_training_goes_through_all_steps_and_validates_after_each_epoch(straight):
    assert straight.step == straight.total == 14
    assert [entry["samples"] for entry in straight.history] == [80, 160, 224]
    assert [entry["view"] for entry in straight.history] == ["windows", "windows", "frames"]
    assert straight.history[-1]["rate"] == TINY.rate(13)
    assert all(np.isfinite(entry["loss"]) and 0 <= entry["val_cso_map"] <= 1 and len(entry["val_ap"]) == 5 for entry in straight.history)


@pytest.mark.parametrize("pieces", [14, 2])
def test_a_run_in_pieces_is_bit_for_bit_the_run_in_one_go(straight, tmp_path, pieces):
    """Each piece is a new trainer that knows only the checkpoint; weights, best weights, moments and history must not differ in one bit."""
    steps, trainer = 0, None
    while trainer is None or trainer.step < trainer.total:
        trainer = trainer_of(TINY, tmp_path)
        assert trainer.resume() == (steps > 0)
        if pieces == 14:
            done = trainer.fit(time_budget=0, progress=False)  # a budget of nothing is one step
        else:
            stop_after(trainer, 5 if steps == 0 else 100)
            done = trainer.fit(progress=False)
        steps = trainer.step
        assert done == (steps == 14)
    assert same_weights(trainer.network.state_dict(), straight.network.state_dict())
    assert same_weights(trainer.best, straight.best)
    assert without_times(trainer.history) == without_times(straight.history)
    for mine, theirs in zip(trainer.optimiser.state_dict()["state"].values(), straight.optimiser.state_dict()["state"].values()):
        assert same_weights(mine, theirs)
    assert not list(tmp_path.glob("*.part"))


OURS = replace(TINY, name="ours", train_size=64, symmetries=True, fresh=True, average=0.9, target_weight=3.0, clip=1.0)


def test_every_option_of_a_run_survives_being_cut_into_pieces(tmp_path):
    whole = trainer_of(OURS, tmp_path / "whole")
    assert whole.fit(progress=False)
    for steps in (4, 6):
        piece = trainer_of(OURS, tmp_path / "pieces")
        piece.resume()
        stop_after(piece, steps)
        assert not piece.fit(progress=False)
    rest = trainer_of(OURS, tmp_path / "pieces")
    assert rest.resume() and rest.step < rest.total and rest.fit(progress=False)
    assert same_weights(rest.network.state_dict(), whole.network.state_dict()) and same_weights(rest.best, whole.best)
    assert without_times(rest.history) == without_times(whole.history)


def test_averaged_weights_are_the_running_mean_and_are_the_ones_kept(tmp_path):
    trainer = trainer_of(replace(OURS, average=0.5), tmp_path)
    mean = {name: value.clone() for name, value in trainer.network.named_parameters()}
    for step in range(12):
        trainer._optimise()
        decay = min(0.5, (1 + step) / (10 + step))
        mean = {name: decay * mean[name] + (1 - decay) * value.detach() for name, value in trainer.network.named_parameters()}
        trainer.step += 1
    for name, value in trainer.kept.named_parameters():
        torch.testing.assert_close(value, mean[name])
    assert not same_weights(trainer.kept.state_dict(), trainer.network.state_dict())
    trainer._validate(0.0, 192)
    assert same_weights(trainer.best, trainer.averaged.state_dict())


def test_the_target_weight_counts_only_where_a_target_is():
    network = create_network("ista-net", stages=1, start=False)
    estimate, truth = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])
    assert network.discrepancy(estimate, truth) == 4.0
    network.target_weight = 5.0
    assert network.discrepancy(estimate, truth) == 12.0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"average": 1.0}, "average"),
        ({"average": 0}, "average"),
        ({"average": "0.9"}, "average"),
        ({"target_weight": 0.0}, "target_weight"),
        ({"target_weight": "2"}, "target_weight"),
        ({"clip": -1}, "clip, where it is not None, must be a positive number; got -1"),
        ({"batch": 0}, "batch must be a whole number >= 1; got 0"),
        ({"batch": 2.5}, "batch must be a whole number"),
        ({"batch": "64"}, "batch must be a whole number"),
        ({"epoch": 0}, "epoch must be a whole number"),
        ({"train_size": 0}, "train_size must be a whole number"),
        ({"val_size": None}, "val_size must be a whole number"),
        ({"test_size": 0}, "test_size, where it is not None, must be a whole number"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"symmetries": "no"}, "symmetries must be True or False"),
        ({"phases": ()}, "phases must be a tuple of one Phase or more"),
        ({"phases": Phase()}, "phases must be a tuple of one Phase or more"),
        ({"phases": ({"view": "frames"},)}, "Run.from_dict takes them as mappings"),
    ],
)
def test_options_out_of_range_are_errors(change, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **change)


def test_a_network_that_needs_whole_frames_is_not_shown_windows(tmp_path, monkeypatch):
    monkeypatch.setattr("csist.networks.ista_net.IstaNet.windows", False)
    with pytest.raises(ValueError, match="whole frames only.*frames"):
        trainer_of(TINY, tmp_path)


def stop_after(trainer, steps):
    """As if Ctrl-C were pressed during that step."""
    optimise, count = trainer._optimise, [0]

    def counted():
        count[0] += 1
        if count[0] == steps:
            signal.raise_signal(signal.SIGINT)
        return optimise()

    trainer._optimise = counted


def test_ctrl_c_ends_a_run_cleanly_and_works_as_usual_afterwards(tmp_path, monkeypatch):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    optimise = Trainer._optimise

    def interrupted(self):
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return optimise(self)

    monkeypatch.setattr(Trainer, "_optimise", interrupted)
    with pytest.raises(KeyboardInterrupt, match="goes on from"):
        train(TINY, tmp_path / "checkpoints", **CPU)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    trainer = trainer_of(TINY, tmp_path / "checkpoints")
    assert trainer.resume() and trainer.step == 3


def test_one_process_may_train_in_either_precision(tmp_path):
    run, weights = replace(TINY, name="either", phases=(Phase(samples=32),)), {}
    for precision in ("bf16", "no"):
        trainer = Trainer(run, tmp_path / precision, device="cpu", precision=precision)
        trainer.fit(progress=False)
        weights[precision] = trainer.network.state_dict()
        assert all(value.dtype == torch.float32 for value in weights[precision].values())
    assert not same_weights(weights["bf16"], weights["no"])
    for key, value in weights["no"].items():
        torch.testing.assert_close(weights["bf16"][key], value, rtol=0, atol=3e-3)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_steps_are_the_same_steps(tmp_path):
    run, trained = replace(TINY, name="fused", options={"stages": 1}, phases=(Phase("windows", samples=32), Phase("frames", samples=16))), {}
    for compiled in (False, True):
        trained[compiled] = Trainer(run, tmp_path / str(compiled), device="cpu", precision="no", compiled=compiled)
        trained[compiled].fit(progress=False)
    assert trained[True].network.state_dict().keys() == trained[False].network.state_dict().keys(), "a compiled run's weights load anywhere"
    for key, value in trained[False].network.state_dict().items():
        torch.testing.assert_close(trained[True].network.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_training_in_another_thread_leaves_signals_alone(tmp_path):
    trainer = trainer_of(replace(TINY, name="threaded", phases=(Phase(samples=16),)), tmp_path)
    done = []
    worker = threading.Thread(target=lambda: done.append(trainer.fit(progress=False)))
    worker.start()
    worker.join()
    assert done == [True]


def test_the_time_budget_ends_a_run_and_train_says_none(tmp_path):
    assert train(TINY, tmp_path / "checkpoints", time_budget=0, **CPU) is None
    assert (tmp_path / "checkpoints" / "tiny.safetensors").exists()
    assert not (tmp_path / "results").exists() and not (tmp_path / "weights").exists()


def test_a_checkpoint_of_another_run_or_other_data_is_refused(tmp_path):
    trainer = trainer_of(TINY, tmp_path)
    trainer.fit(time_budget=0, progress=False)
    with pytest.raises(ValueError, match="another version of the run"):
        trainer_of(replace(TINY, seed=1), tmp_path).resume()
    data = {"train": csist100k("train", 256, seed=1), "val": csist100k("val", 32)}
    with pytest.raises(ValueError, match="another version of the run"):
        Trainer(TINY, tmp_path, device="cpu", precision="no", data=data).resume()
    assert trainer_of(replace(TINY, name="elsewhere"), tmp_path).resume() is False


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_checkpoint_says_which_file_to_delete(tmp_path, damage):
    from safetensors.torch import save_file

    trainer = trainer_of(TINY, tmp_path)
    trainer.fit(time_budget=0, progress=False)
    whole = trainer.path.read_bytes()
    if damage == "foreign":
        save_file({"x": torch.zeros(1)}, str(trainer.path))
    else:
        trainer.path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    with pytest.raises(ValueError, match="tiny.safetensors is no whole checkpoint.*delete it"):
        trainer_of(TINY, tmp_path).resume()


@pytest.mark.parametrize(
    "options, words", [({"device": "gpu"}, "None, 'cpu' or 'cuda'"), ({"device": "cuda"}, "no such GPU"), ({"precision": "fp16"}, "'bf16' or 'no'")]
)
def test_a_device_or_precision_that_is_not_there_is_an_error(tmp_path, options, words):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=words):
        Trainer(TINY, tmp_path, **options)


def subprocess_environment():
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


SCRIPT = """
import json, sys, time
import torch
import csist.training as training
torch.set_num_threads(1)
training.CHECKPOINT_SECONDS = 0.0
optimise = training.Trainer._optimise
def slow(self):
    print("step", self.step, flush=True)
    time.sleep(float(sys.argv[2]))
    return optimise(self)
training.Trainer._optimise = slow
run = training.Run.from_dict(json.loads(sys.argv[3]))
trainer = training.Trainer(run, sys.argv[1], device="cpu")
print("resumed", trainer.resume(), flush=True)
assert trainer.fit(progress=False)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path):
    """kill -9 in the middle of a step; the checkpoint before it and a new process give the weights of a run that nobody killed, in bfloat16."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = json.dumps(asdict(TINY))
    command = [sys.executable, str(script)]
    surroundings = {"cwd": REPOSITORY, "env": subprocess_environment(), "text": True}
    with subprocess.Popen([*command, str(tmp_path / "killed"), "0.2", run], stdout=subprocess.PIPE, **surroundings) as process:
        for line in process.stdout:
            if line.startswith("step 6"):
                break
        time.sleep(0.1)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    second = subprocess.run([*command, str(tmp_path / "killed"), "0", run], capture_output=True, check=True, **surroundings)
    assert "resumed True\nstep 6" in second.stdout
    Trainer(TINY, tmp_path / "straight", device="cpu").fit(progress=False)
    killed, straight = (tmp_path / name / "tiny.safetensors" for name in ("killed", "straight"))
    from safetensors.torch import load_file

    assert same_weights(load_file(killed), load_file(straight))  # network, best weights and the optimiser's moments


# What training is for


def test_the_loss_falls(tmp_path):
    run = Run("falls", "ista-net", options={"stages": 2}, phases=(Phase(samples=960, rate=2e-3),), batch=16, train_size=64, val_size=16, epoch=160)
    trainer = trainer_of(run, tmp_path)
    trainer.fit(progress=False)
    losses = [entry["loss"] for entry in trainer.history]
    assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]


def test_the_best_epoch_is_chosen_on_the_validation_frames(tmp_path, monkeypatch):
    """Scores that rise, fall and tie: the first of the best must win, and its weights must be the ones that are kept."""
    scores = iter([0.2, 0.5, 0.3, 0.5])
    run = replace(TINY, name="best", phases=(Phase(samples=64),), epoch=16)
    trainer, seen = trainer_of(run, tmp_path), []

    class Score:
        def __init__(self):
            self.map, self.ap = next(scores), [0.0] * 5
            seen.append({key: value.clone() for key, value in trainer.network.state_dict().items()})

    monkeypatch.setattr("csist.metrics.cso_map", lambda estimate, truth: Score())
    trainer.fit(progress=False)
    assert len(seen) == 4 and not same_weights(seen[0], seen[1])
    assert same_weights(trainer.best, seen[1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny run, trained, stored and scored."""
    folder = tmp_path_factory.mktemp("finished")
    result = train(TINY, folder / "checkpoints", results=folder / "results", weights=folder / "weights", **CPU)
    return folder, result


def test_the_result_says_everything_about_its_run(finished):
    folder, result = finished
    assert json.loads((folder / "results" / "tiny.json").read_text()) == json.loads(json.dumps(result))
    assert {"run", "parameters", "train_sha256", "precision", "compiled", "processes", "hours", "history", "selected", "test", "provenance"} <= set(result)
    assert {"versions", "python", "device", "threads", "commit", "date"} <= set(result["provenance"])
    assert {"frames", "frames_sha256", "psnr", "ssim", "cso_map", "ap", "interval"} <= set(result["test"])
    assert result["test"]["frames"] == 32 and result["processes"] == 1 and result["precision"] == "no"
    assert result["parameters"] == 2 * 19_010
    assert result["selected"] == max(result["history"], key=lambda entry: entry["val_cso_map"])
    assert Run.from_dict(json.loads(json.dumps(result["run"]))) == TINY
    assert not list(folder.rglob("*.part"))


def test_the_stored_weights_are_the_best_ones_and_are_what_was_scored(finished, straight):
    folder, result = finished
    network, header = read_weights(folder / "weights" / "tiny.safetensors")
    assert header == {"network": "ista-net", "ratio": 3, "options": {"stages": 2}, "run": "tiny", "seed": 0}
    for key, value in network.named_parameters():
        assert torch.equal(value, straight.best[key].half().float()), key
    again = score_weights(folder / "weights" / "tiny.safetensors", 32)
    assert again["cso_map"] == pytest.approx(result["test"]["cso_map"], abs=1e-3)


def test_the_result_names_the_commit_at_which_the_training_began(finished, tmp_path, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr("csist.evaluation.current_commit", lambda: "began")
    trainer = Trainer(TINY, folder / "checkpoints", device="cpu", precision="no")
    monkeypatch.setattr("csist.evaluation.current_commit", lambda: "committed meanwhile")
    trainer.resume()
    assert finish(trainer, tmp_path, tmp_path)["provenance"]["commit"] == "began"


def test_a_finished_run_can_be_finished_again_without_training(finished, tmp_path):
    folder, result = finished
    again = train(TINY, folder / "checkpoints", results=tmp_path / "results", weights=tmp_path / "weights", **CPU)
    assert again["history"] == result["history"] and again["test"] == result["test"]


def test_half_precision_on_disk_costs_no_score(tmp_path):
    """A network that finds targets (one stage that passes the linear start on), stored as float16 and as it is."""
    from csist.evaluation import detect, predict
    from csist.metrics import cso_map

    torch.manual_seed(0)
    network = create_network("ista-net", stages=1)
    pass_on(network.fcs[0])
    data = csist100k("test", 400)
    grid = SubpixelGrid(ratio=3)
    exact = 100 * cso_map(detect(predict(network, data.frames), grid), data.targets).map
    header = {"network": "ista-net", "ratio": 3, "options": {"stages": 1}}
    write_weights(tmp_path / "a.safetensors", network, header)
    stored = 100 * score_weights(tmp_path / "a.safetensors", 400, resamples=2)["cso_map"]
    assert exact > 1
    assert abs(stored - exact) < 0.1


def pass_on(stage):
    """Make a stage's learned functions the identity plus a little noise: features +s and -s through both ReLUs, recombined."""
    with torch.no_grad():
        for kernel in (stage.conv1_forward, stage.conv2_forward, stage.conv1_backward, stage.conv2_backward):
            kernel.mul_(1e-3)
        stage.conv1_forward[:2, 0, 1, 1] += torch.tensor([1.0, -1.0])
        stage.conv2_forward[:2, :2, 1, 1] += torch.eye(2)
        stage.conv1_backward[:2, :2, 1, 1] += torch.eye(2)
        stage.conv2_backward[0, :2, 1, 1] += torch.tensor([1.0, -1.0])


def test_json_is_never_half_written(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# Several processes

TOGETHER = """
    import json, os, sys
    import numpy as np, torch
    import csist.training as training
    from csist.evaluation import detect, predict

    torch.set_num_threads(1)
    folder, run = sys.argv[1], training.Run.from_dict(json.loads(sys.argv[2]))
    written = []
    write = training.write_json
    training.write_json = lambda path, value: (written.append(str(path)), write(path, value))
    scored = []
    estimate = training.Trainer.estimate
    def counted(self, frames):
        result = estimate(self, frames)
        alone = detect(predict(self.network, frames), self.set.grid)  # the same frames, all of them in this process
        assert len(result) == len(frames) == 33 and np.array_equal(result.count, alone.count)
        assert np.allclose(np.nan_to_num(result.xy), np.nan_to_num(alone.xy[:, :result.capacity]))
        scored.append(len(result))
        return result
    training.Trainer.estimate = counted
    assert training.train(run, folder + "/checkpoints", device="cpu", precision="no", time_budget=0) is None
    result = training.train(run, folder + "/checkpoints", device="cpu", precision="no", progress=False)
    with open(folder + f"/report{os.environ['RANK']}.json", "w") as file:
        json.dump({"written": len(written), "scored": scored, "result": result}, file)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_train_the_run_of_one(tmp_path):
    """They share every batch and every validation set, agree on the result, and only one of them writes it."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(TOGETHER))
    run = replace(TINY, name="together", val_size=33)  # an odd number of frames does not divide among two processes
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command += [str(script), str(tmp_path), json.dumps(asdict(run))]
    process = subprocess.run(command, cwd=REPOSITORY, env=subprocess_environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]
    reports = [json.loads((tmp_path / f"report{rank}.json").read_text()) for rank in (0, 1)]
    assert [report["written"] for report in reports] == [1, 0]
    assert reports[0]["scored"] == reports[1]["scored"] == [33, 33, 33]
    assert reports[0]["result"] == reports[1]["result"] and reports[0]["result"]["processes"] == 2

    alone = trainer_of(run, tmp_path / "alone")
    alone.fit(progress=False)
    losses = [[entry["loss"] for entry in history] for history in (reports[0]["result"]["history"], alone.history)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the mean over two half batches is the mean over the batch
    trained, _ = read_weights(tmp_path / "weights" / "together.safetensors")
    for key, value in trained.named_parameters():
        torch.testing.assert_close(value, alone.best[key], rtol=5e-3, atol=1e-3)


def test_a_batch_must_divide_among_the_processes(tmp_path, monkeypatch):
    import accelerate

    monkeypatch.setattr(accelerate.Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(ValueError, match="divisible by the number of processes, 3"):
        trainer_of(TINY, tmp_path)


def test_frames_may_be_given_instead_of_generated(tmp_path):
    data = csist100k("train", 40)
    pieces = {"train": Frames(data.frames[:32], data.targets[:32]), "val": Frames(data.frames[32:], data.targets[32:])}
    trainer = Trainer(replace(TINY, name="given"), tmp_path, device="cpu", precision="no", data=pieces)
    assert len(trainer.set) == 32 and len(trainer.val.frames) == 8


def test_own_data_are_what_is_scored(tmp_path):
    parts = {name: csist100k("val", 24, plane=FocalPlane(sigma=0.6), seed=seed) for seed, name in enumerate(("train", "val", "test"))}
    run = replace(TINY, name="own")
    result = train(run, tmp_path / "checkpoints", data=parts, **CPU)
    assert result["test"]["frames_sha256"] == frames_hash(parts["test"])
    for data, words in (({"train": parts["train"]}, "the parts 'train', 'val'"), (parts | {"extra": parts["val"]}, "'extra'")):
        with pytest.raises(ValueError, match=words):
            Trainer(run, tmp_path, device="cpu", data=data)
    with pytest.raises(ValueError, match="fresh=True"):
        Trainer(replace(run, fresh=True), tmp_path, device="cpu", data=parts)
    del parts["test"]
    with pytest.raises(ValueError, match="needs a 'test' part"):
        train(run, tmp_path / "checkpoints", data=parts, **CPU)


def parts_of(frames, targets):
    """Data of one's own that differ from good ones in the part "train" alone."""
    return {"train": (frames, targets), "val": csist100k("val", 4)}


FEW = csist100k("train", 4)


@pytest.mark.parametrize(
    "part, words",
    [
        ((FEW.frames[:2], FEW.targets), "'train' of data must have one frame or more and the targets of each; got 2 frames and the targets of 4"),
        ((FEW.frames, FEW.targets[:2]), "got 4 frames and the targets of 2"),
        ((FEW.frames[:0], FEW.targets[:0]), "got 0 frames"),
        ((FEW.frames * np.nan, FEW.targets), "'train' of data: frames must be finite"),
        ((np.zeros((4, 16, 16)), FEW.targets), r"frames must have shape \(n, 11, 11\).*options=\{'plane'"),
        ((FEW.frames * 300.0, FEW.targets), "exceeds the sensor's full scale 255"),
        ((FEW.frames, FEW.targets.xy), "must be Frames"),
        ((FEW.frames, Targets([[[20.0, 5.0]]] * 4, [[240.0]] * 4, [1] * 4)), r"frame 0 has a target off the frame \(4 such frames\)"),
    ],
)
def test_own_data_that_cannot_be_trained_on_are_refused(tmp_path, part, words):
    run = replace(TINY, network="srcnn", options={}, phases=(Phase("frames", 16),))
    with pytest.raises(ValueError, match=words):
        Trainer(run, tmp_path, device="cpu", data=parts_of(*part))


def test_own_frames_may_be_lists_of_another_byte_order(tmp_path):
    run = replace(TINY, network="srcnn", options={}, symmetries=True)
    for frames in (list(FEW.frames), FEW.frames.astype(">u2")):
        trainer = Trainer(run, tmp_path, device="cpu", data=parts_of(frames, FEW.targets))
        np.testing.assert_array_equal(trainer.set.frames, FEW.frames)
    with pytest.raises(ValueError, match="no mapping but Frames"):
        Trainer(run, tmp_path, device="cpu", data=FEW)


def test_windows_are_refused_where_a_frame_holds_several_clusters(tmp_path):
    xy = np.array([[[2.0, 2.0], [2.4, 2.0]], [[1.0, 2.0], [8.0, 9.0]], [[5.0, 3.0], [5.0, 7.4]]])
    targets = Targets(xy, np.full((3, 2), 240.0), [2, 2, 2])
    data = parts_of(FocalPlane().render(targets), targets)
    run = replace(TINY, network="srcnn", options={})
    with pytest.raises(ValueError, match=r"'train' of data: frame 1 has a target outside the 5 x 5 pixels .*\(1 such frames\).*view='frames'"):
        Trainer(run, tmp_path, device="cpu", data=data)
    assert len(Trainer(replace(run, phases=(Phase("frames", 16),)), tmp_path, device="cpu", data=data).set) == 3


def test_a_run_carries_its_own_optics(tmp_path, monkeypatch):
    plane = FocalPlane((9, 9), sigma=0.55, bits=14)
    options = {"plane": {"shape": [9, 9], "sigma": 0.55, "bits": 14}}
    run = Run("optics", "srcnn", options=options, phases=(Phase(samples=8),), batch=4, symmetries=True, fresh=True, train_size=4, val_size=4, test_size=4)
    result = train(run, tmp_path / "checkpoints", **CPU)
    assert result["train_sha256"] == frames_hash(csist100k("train", 4, plane=plane))
    assert result["test"]["frames_sha256"] == frames_hash(csist100k("test", 4, plane=plane))
    assert is_finished(run, tmp_path / "results")
    assert read_weights(tmp_path / "weights" / "optics.safetensors")[1]["options"] == options
    monkeypatch.setenv("CSIST_WEIGHTS", str(tmp_path / "weights"))
    assert load_network("srcnn", run="optics").plane == plane


def test_other_labels_and_a_shorter_run_do_not_go_on(tmp_path):
    trainer = trainer_of(TINY, tmp_path)
    trainer.fit(progress=False)
    data, val = csist100k("train", TINY.train_size), csist100k("val", TINY.val_size)
    swapped = Targets(data.targets.xy[..., ::-1], data.targets.intensity, data.targets.count)
    for own in ({"train": Frames(data.frames, swapped), "val": val}, {"train": data, "val": csist100k("val", TINY.val_size + 1)}):
        with pytest.raises(ValueError, match="another version of the run"):
            Trainer(TINY, tmp_path, device="cpu", precision="no", data=own).resume()
    assert trainer_of(TINY, tmp_path).resume() is True
    short = replace(TINY, phases=(replace(TINY.phases[0], samples=TINY.batch),))
    with pytest.raises(ValueError, match="has only 1 now"):
        trainer_of(short, tmp_path).resume()


@pytest.mark.parametrize("options", [{"plane": FocalPlane(sigma=0.7)}, {"stages": np.int64(1)}])
def test_what_could_not_be_stored_is_refused_before_the_first_step(tmp_path, options):
    with pytest.raises(ValueError, match="could not be stored and read again"):
        trainer_of(replace(TINY, options=options), tmp_path)


@pytest.mark.parametrize(
    "changes, words", [({"name": "ablation/a"}, "name of a file"), ({"name": ""}, "name of a file"), ({"options": None}, "must be a mapping")]
)
def test_a_run_that_cannot_be_stored_is_no_run(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **changes)


def test_signals_work_again_after_an_error(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = trainer_of(TINY, tmp_path)
    monkeypatch.setattr(Trainer, "_optimise", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(progress=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(ValueError, match="time_budget must be a number of seconds"):
        trainer.fit(time_budget="10m", progress=False)


def test_a_run_goes_on_after_phases_are_added_but_not_after_its_past_is_changed(tmp_path):
    entry = {"name": "grown", "network": "ista-net", "options": {"stages": 1}, "batch": 8, "train_size": 32, "val_size": 8, "test_size": 8, "epoch": 16}
    first, second = {"view": "windows", "samples": 32}, {"view": "frames", "samples": 16}
    where = {"results": tmp_path / "results", "weights": tmp_path / "weights", "device": "cpu", "precision": "no", "progress": False}
    short = Run.from_dict({**entry, "phases": [first]})
    grown = Run.from_dict({**entry, "phases": [first, second]})
    train(short, tmp_path, **where)
    assert is_finished(short, tmp_path / "results") and not is_finished(grown, tmp_path / "results")
    result = train(grown, tmp_path, **where)
    assert [item["samples"] for item in result["history"]] == [16, 32, 48]
    changed = Run.from_dict({**entry, "phases": [{**first, "rate": 1e-2}, second]})
    with pytest.raises(ValueError, match="another version of the run"):
        train(changed, tmp_path, **where)
