"""The reproduction as a whole: notebooks and their text twins, the run list, result files, README's table."""
from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from csist.networks.registry import NETWORKS, read_weights

pytest.importorskip("accelerate")
from csist.training import is_finished, load_runs

REPRODUCE = Path(__file__).resolve().parent.parent / "reproduce"
NOTEBOOKS = sorted(REPRODUCE.glob("*.ipynb"))
RESULTS = sorted((REPRODUCE / "results").glob("*.json"))


def script(name: str):
    """A script of reproduce as a module, under a name of its own: "queue" is taken."""
    spec = importlib.util.spec_from_file_location(f"reproduce_{name}", REPRODUCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = sys.path.copy()
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


# Notebooks


def contents(notebook):
    """What two forms of a notebook must share."""
    keys = ("tags", "mystnb")
    return [(cell.cell_type, cell.source, {key: cell.metadata[key] for key in keys if key in cell.metadata}) for cell in notebook.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_equal_their_text_twins(path):
    jupytext = pytest.importorskip("jupytext")
    assert contents(jupytext.read(path.with_suffix(".md"))) == contents(jupytext.read(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_stored_notebooks_hold_no_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_the_parameters_comment_names_the_scales_frames():
    from csist.reporting import SCALES

    text = (REPRODUCE / "table1.md").read_text(encoding="utf-8")
    assert "{:,}, {:,} or {:,} by scale".format(*SCALES.values()) in text


def run_notebook(folder, **parameters):
    papermill = pytest.importorskip("papermill")
    output = folder / "output"
    return papermill.execute_notebook(
        str(REPRODUCE / "table1.ipynb"),
        str(folder / "table1.ipynb"),
        parameters={"scale": "smoke", "n_test": 24, "device": "cpu", "output_dir": str(output), **parameters},
        kernel_name="python3",
        cwd=str(folder),  # anywhere but the repository
        progress_bar=False,
    )


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
def test_table1_runs_at_smoke_scale_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")  # as test servers set it; the page's figures must appear all the same
    notebook = run_notebook(tmp_path)
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]  # text on stderr fails the book's build
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 2
    stored = json.loads((tmp_path / "output" / "table1.json").read_text())
    assert [row["key"] for row in stored["rows"]][:2] == ["ista-paper", "ista-tuned"] and 0 < stored["ceilings"]["random"] < stored["ceilings"]["ranked"] < 1
    assert (tmp_path / "output" / "table1.csv").read_text().count("\n") == len(stored["rows"]) + 1
    text = json.dumps(notebook)
    for row in stored["rows"]:
        assert row["status"] == "scored" or row["status"] in text
    assert str(tmp_path) not in json.dumps([output for output in outputs(notebook)])  # no folder of this machine in the book


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "message"), [({"scael": "smoke"}, "unknown parameter 'scael'.*Did you mean 'scale'"), ({"ratio": 4}, "ratio c must be an odd integer")]
)
def test_a_wrong_parameter_stops_the_page(tmp_path, parameters, message):
    exceptions = pytest.importorskip("papermill.exceptions")
    with pytest.raises(exceptions.PapermillExecutionError) as error:
        run_notebook(tmp_path, **parameters)
    assert error.value.ename == "ValueError" and re.search(message, error.value.evalue)


# Runs and their results


def test_runs_are_whole_and_have_names_of_their_own():
    runs = load_runs(REPRODUCE / "runs.yaml")
    assert len({run.name for run in runs}) == len(runs) > 0
    assert all(run.network in NETWORKS and run.phases and re.fullmatch(r"[a-z0-9-]+", run.name) for run in runs)
    from csist import reporting

    assert reporting.load_runs() == runs
    assert [run.name for run in reporting.load_runs(["ista-net+"], 3)] == [run.name for run in runs if run.network == "ista-net+" and run.ratio == 3]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_have_provenance(path):
    origin = json.loads(path.read_text())["provenance"]
    assert {"versions", "python", "device", "commit", "date"} <= set(origin)


TRAINED = [path for path in RESULTS if "run" in json.loads(path.read_text())]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_trained_results_are_complete(path):
    from csist.reporting import verify_result

    result = json.loads(path.read_text())
    run = {run.name: run for run in load_runs(REPRODUCE / "runs.yaml")}[path.stem]
    assert is_finished(run, path.parent)
    assert result["test"]["frames"] == 10_000 and len(result["test"]["ap"]) == 5 and result["history"] and result["hours"] > 0
    assert result["selected"] == max(result["history"], key=lambda entry: entry["val_cso_map"])
    network, header = read_weights(REPRODUCE / "weights" / f"{path.stem}.safetensors")
    assert header["run"] == path.stem and sum(p.numel() for p in network.parameters()) == result["parameters"]
    verify_result(path.stem)


@pytest.mark.parametrize("path", [path for path in RESULTS if re.match(r"ista-(paper|tuned)-c", path.stem)], ids=lambda path: path.stem)
def test_istas_results_are_of_the_package_settings(path):
    from csist.solvers.ista import PAPER, TUNED

    result = json.loads(path.read_text())
    assert result["settings"] == asdict(PAPER if "paper" in path.stem else TUNED) and result["test"]["frames"] == 10_000


def test_scoring_the_solvers_is_repeatable(tmp_path, capsys):
    scoring = script("score_solvers")
    trial = ["--size", "10", "--only", "ista-tuned", "--output", str(tmp_path)]
    assert scoring.main(trial) == 0 and scoring.main(trial) == 0
    assert "is current" in capsys.readouterr().out
    assert json.loads((tmp_path / "ista-tuned-c3.json").read_text())["test"]["frames"] == 10
    with pytest.raises(SystemExit):
        scoring.main(["--size", "10"])  # a trial must not replace a result of the whole split


# README


def test_readmes_table_is_written_between_its_markers(tmp_path, capsys):
    table, readme = script("readme_table"), tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{table.BEGIN}\nold\n{table.END}\n\nend\n")
    assert table.main(["--check", "--readme", str(readme)]) == 1 and "old" in readme.read_text()
    assert table.main(["--readme", str(readme)]) == 0
    text = readme.read_text()
    assert "old" not in text and "| DISTA-Net | 46.74 |" in text and text.startswith("# Title\n\n") and text.endswith("\n\nend\n")
    assert table.main(["--check", "--readme", str(readme)]) == 0


def test_a_readme_without_markers_is_an_error():
    with pytest.raises(ValueError, match="headline table"):
        script("readme_table").replace_table("nothing here", "table")


def test_the_readmes_table_is_current():
    readme = REPRODUCE.parent / "README.md"
    if not readme.is_file():
        pytest.skip("there is no README.md yet")
    assert script("readme_table").main(["--check"]) == 0
