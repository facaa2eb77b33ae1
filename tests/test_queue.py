"""The training queue: durations, order, locks, budgets, the packed archive, and one tiny run from end to end."""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
yaml = pytest.importorskip("yaml")
REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "reproduce" / "queue.py"


def load_queue():
    """The script as a module, under a name that does not hide the standard library's."""
    specification = importlib.util.spec_from_file_location("training_queue", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


from csist.cli import duration, hold  # noqa: E402
from csist.training import as_plain, load_runs  # noqa: E402

training_queue = load_queue()
SMALL = {"network": "ista-net", "options": {"stages": 1}, "batch": 8, "train_size": 32, "val_size": 8, "test_size": 8, "epoch": 16}
CPU = ["--device", "cpu", "--precision", "no"]


@pytest.fixture
def folder(tmp_path):
    """A runs file with two tiny runs, and room for their output."""
    runs = [{"name": name, **SMALL, "phases": [{"samples": 32}]} for name in ("first", "second")]
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump({"runs": runs}))
    return tmp_path


def work(folder, *arguments):
    return training_queue.main(["--runs", str(folder / "runs.yaml"), "--output", str(folder), *CPU, *arguments])


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that would be trained, in order, with the seconds that each was given; nothing is trained."""
    calls = []

    def train(run, checkpoints, *, time_budget, results, weights, device, precision, compiled):
        calls.append((run.name, time_budget))

    monkeypatch.setattr("csist.training.train", train)
    return calls


# Arguments


@pytest.mark.parametrize("text, expected", [("90", 90), ("90s", 90), ("25m", 1500), ("1.5h", 5400), (" 2m ", 120), ("0", 0)])
def test_durations(text, expected):
    assert duration(text) == expected


@pytest.mark.parametrize("text", ["", "m", "5 m", "-3s", "1d", "1h30m", "1e3", "nan"])
def test_wrong_durations_say_how_one_looks(text):
    with pytest.raises(argparse.ArgumentTypeError, match="90s, 25m or 1.5h"):
        duration(text)


def test_the_committed_runs_are_well_formed():
    runs = load_runs(SCRIPT.with_name("runs.yaml"))
    assert runs[0].name == "dista-net-c3-seed0", "the headline comes first"
    from csist.networks import NETWORKS

    assert {run.network for run in runs} <= set(NETWORKS)


def test_two_runs_may_not_share_a_name(folder):
    (folder / "runs.yaml").write_text(yaml.safe_dump({"runs": [{"name": "a", **SMALL}, {"name": "b", **SMALL}, {"name": "a", **SMALL}]}))
    with pytest.raises(ValueError, match="used twice: a"):
        load_runs(folder / "runs.yaml")


def test_an_unknown_run_is_an_error_that_names_near_ones(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        work(folder, "--only", "third")
    assert stop.value.code == 2
    assert "no such run: third (--list names all)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        work(folder, "--only", "secnd")
    assert "no such run: secnd; did you mean second?" in capsys.readouterr().err


# Which run is next


def test_runs_are_taken_in_the_files_order_or_the_one_asked_for(folder, trained):
    assert work(folder) == 0
    assert work(folder, "--only", "second", "first") == 0
    assert [name for name, _ in trained] == ["first", "second", "second", "first"]
    assert {budget for _, budget in trained} == {None}


@pytest.mark.parametrize("arguments, compiled", [([], False), (["--compile"], True)], ids=["plain", "compiled"])
def test_compiling_is_asked_for(folder, monkeypatch, arguments, compiled):
    asked = []
    monkeypatch.setattr("csist.training.train", lambda run, checkpoints, **how: asked.append(how["compiled"]))
    assert work(folder, *arguments) == 0
    assert asked == [compiled, compiled]


def test_finished_runs_are_skipped(folder, trained, capsys):
    (folder / "results").mkdir()
    (folder / "results" / "first.json").write_text(json.dumps({"run": as_plain(load_runs(folder / "runs.yaml")[0])}))
    work(folder)
    assert [name for name, _ in trained] == ["second"]
    (folder / "checkpoints" / "second.safetensors").touch()
    work(folder, "--list")
    assert capsys.readouterr().out.split() == ["first", "finished", "second", "begun"]


def test_a_finished_run_that_is_asked_for_says_so(folder, trained, capsys):
    (folder / "results").mkdir()
    (folder / "results" / "first.json").write_text(json.dumps({"run": as_plain(load_runs(folder / "runs.yaml")[0])}))
    work(folder, "--only", "first")
    said = capsys.readouterr().out
    assert trained == [] and said.startswith("first: finished before, see") and "--output FOLDER trains it anew" in said
    work(folder)
    assert "finished before" not in capsys.readouterr().out  # the whole queue passes over in silence


def test_a_run_that_another_worker_holds_is_skipped_until_that_worker_dies(folder, trained):
    code = "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    (folder / "checkpoints").mkdir()
    command = [sys.executable, "-c", code, str(folder / "checkpoints" / "first.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        work(folder)
        assert [name for name, _ in trained] == ["second"]
        other.kill()
    work(folder)
    assert [name for name, _ in trained] == ["second", "first", "second"]


def test_the_budget_is_shared_by_the_runs_and_ends_the_queue(folder, trained, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(training_queue.time, "monotonic", lambda: clock[0])
    work(folder, "--time-budget", "1m")
    assert trained == [("first", 60), ("second", 60)]
    trained.clear()
    train = sys.modules["csist.training"].train

    def slow(*arguments, **options):
        clock[0] += 60
        return train(*arguments, **options)

    monkeypatch.setattr("csist.training.train", slow)
    work(folder, "--time-budget", "1m")
    assert trained == [("first", 60)], "no time is left for the second"
    work(folder, "--time-budget", "0")
    assert len(trained) == 1


def test_an_interrupt_ends_the_queue_and_still_packs(folder, monkeypatch, capsys):
    def train(run, *_, **__):
        raise KeyboardInterrupt(f"{run.name} was interrupted")

    monkeypatch.setattr("csist.training.train", train)
    assert work(folder, "--pack", str(folder / "parts")) == 130
    captured = capsys.readouterr()
    assert captured.err.count("interrupted") == 1 and "results.tar.gz.00" in captured.out


# The archive


def test_the_parts_join_to_a_whole_archive(tmp_path):
    source, target = tmp_path / "results", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    payload = os.urandom(50_000)
    (source / "a.bin").write_bytes(payload)
    (target / "results.tar.gz.07").write_bytes(b"left over from a longer archive")
    parts = training_queue.pack([source, tmp_path / "absent"], target, part_bytes=16_000)
    assert [part.name for part in parts] == [f"results.tar.gz.{k:02d}" for k in range(len(parts))] and len(parts) == 4
    assert sorted(target.iterdir()) == parts, "nothing else may lie there: the parts are joined by a wildcard"
    assert max(part.stat().st_size for part in parts) <= 16_000
    (tmp_path / "joined.tar.gz").write_bytes(b"".join(part.read_bytes() for part in sorted(target.glob("results.tar.gz.*"))))
    with tarfile.open(tmp_path / "joined.tar.gz") as archive:
        assert archive.getnames() == ["results", "results/a.bin"]
        assert archive.extractfile("results/a.bin").read() == payload


# End to end


def test_a_tiny_queue_from_end_to_end(folder, capsys, one_thread):
    assert work(folder, "--only", "first", "--time-budget", "0.001s") == 0  # one step, then a checkpoint
    work(folder, "--list")
    assert capsys.readouterr().out.split() == ["first", "begun", "second", "not", "trained", "yet"]
    assert work(folder, "--pack", str(folder / "parts")) == 0
    out = capsys.readouterr().out
    assert "first: CSO-mAP x 100 = " in out and "second: CSO-mAP x 100 = " in out and "results.tar.gz.00" in out
    for name in ("first", "second"):
        result = json.loads((folder / "results" / f"{name}.json").read_text())
        assert result["run"]["name"] == name and [entry["samples"] for entry in result["history"]] == [16, 32]
        assert (folder / "weights" / f"{name}.safetensors").exists()
    before = (folder / "results" / "first.json").stat().st_mtime_ns
    assert work(folder) == 0, "nothing is left to do"
    assert (folder / "results" / "first.json").stat().st_mtime_ns == before


def run_script(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=REPOSITORY, **options)


def test_the_script_lists_its_runs():
    done = run_script("reproduce/queue.py", "--list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [run.name for run in load_runs(SCRIPT.with_name("runs.yaml"))]
    assert all(line.split(maxsplit=1)[1] in ("finished", "begun", "not trained yet") for line in lines)


def test_the_scripts_name_does_not_hide_the_standard_librarys_queue():
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}); import queue; print(queue.__file__); queue.Queue"
    done = run_script("-c", code)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(str(REPOSITORY))


@pytest.mark.slow
def test_two_processes_under_torchrun_pass_over_a_held_run_together(folder):
    """Only the first process sees the lock; the other must follow it to the second run, not wait alone at the first."""
    (folder / "checkpoints").mkdir()
    handle = hold(folder / "checkpoints" / "first.lock")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = run_script(*launch, SCRIPT, "--runs", folder / "runs.yaml", "--output", folder, *CPU, timeout=400)
    handle.close()
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("second: CSO-mAP") == 1 and "first" not in done.stdout
    assert [path.name for path in (folder / "results").iterdir()] == ["second.json"]
