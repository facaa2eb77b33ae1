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


MANY_ROWS = ("table1", "table2_ablation", "table3_grid_ratio", "figure7_hyperparameters", "sr_plus_detector")


@pytest.mark.parametrize("name", MANY_ROWS)
def test_the_parameters_comment_names_the_scales_frames(name):
    from csist import reporting

    scales = reporting.MANY_ROWS
    text = (REPRODUCE / f"{name}.md").read_text(encoding="utf-8")
    assert "{:,}, {:,} or {:,} by scale".format(*scales.values()) in text and "reporting.MANY_ROWS" in text


def run_notebook(folder, name="table1", **parameters):
    papermill = pytest.importorskip("papermill")
    output = folder / "output"
    return papermill.execute_notebook(
        str(REPRODUCE / f"{name}.ipynb"),
        str(folder / f"{name}.ipynb"),
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


def stored(folder, name: str) -> dict:
    """What a page wrote: its JSON, after a check that the CSV has a line for each row."""
    content = json.loads((folder / "output" / f"{name}.json").read_text())
    assert (folder / "output" / f"{name}.csv").read_text().count("\n") == len(content["rows"]) + 1
    return content


def check_page(notebook, folder, rows, figures: int):
    """A page's promises: no text on stderr, its figures, no folder of this machine; every row that has no score says why and borrows none."""
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= figures
    text = json.dumps(outputs(notebook))
    assert str(folder) not in text
    for row in rows:
        assert row["status"] == "scored" or (row["status"] in text and row["ours_cso_map"] is None)
        assert (row["status"] == "scored") == (REPRODUCE / "results" / f"{row['result']}.json").is_file()


@pytest.mark.slow
def test_table2_runs_at_smoke_scale(tmp_path):
    notebook = run_notebook(tmp_path, "table2_ablation")
    content = stored(tmp_path, "table2_ablation")
    check_page(notebook, tmp_path, content["rows"], figures=2)
    parts = ["no-transform", "no-threshold", "standard", "frozen-kernels", "gate", "released"]
    assert [row["key"] for row in content["rows"]][:7] == ["ista-net-standard", *[f"dista-net-{part}" for part in parts]]
    scored = [row for row in content["rows"] + content["longer"] if row["status"] == "scored"]
    assert set(content["live"]) == {row["key"] for row in scored if (REPRODUCE / "weights" / f"{row['result']}.safetensors").is_file()}
    assert json.dumps(notebook).count("The printed pair is that of") == 2  # the two rows of the paper's table that print the cost of c = 5


@pytest.mark.slow
def test_table3_runs_at_smoke_scale(tmp_path):
    notebook = run_notebook(tmp_path, "table3_grid_ratio", methods=["ista-net", "cfgn"], ratios=[5, 7])
    content = stored(tmp_path, "table3_grid_ratio")
    check_page(notebook, tmp_path, content["rows"], figures=2)
    keys = [row["key"] for row in content["rows"]]
    others = {"cfgn-long-c5", "cfgn-frames-c7", "cfgn-long-c7"}  # CFGN's other recipes
    assert others < set(keys)
    assert [key for key in keys if "ours" not in key and "recipe" not in key and key not in others] == ["ista-net-c5", "cfgn-c5", "ista-net-c7", "cfgn-c7"]
    assert 0.5 < content["ceilings"]["5"]["random"] < content["ceilings"]["7"]["random"] < content["ceilings"]["7"]["ranked"] < 1


@pytest.mark.slow
def test_figure7_runs_at_smoke_scale(tmp_path):
    notebook = run_notebook(tmp_path, "figure7_hyperparameters")
    content = stored(tmp_path, "figure7_hyperparameters")
    check_page(notebook, tmp_path, content["rows"], figures=1)
    assert [(row["axis"], row["value"]) for row in content["rows"] if row["options"] is None] == [("stages", 6), ("dynamic", 0.3)]
    assert content["live"].get("stages-6") == content["live"].get("dynamic-0.3")  # one run, two places


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


def variant_entries():
    from csist import reporting

    axes = [entry for axis in reporting.AXIS_LABELS for entry in reporting.hyperparameter_entries(axis)]
    ratios = [entry for entry in reporting.grid_ratio_entries(["ista-net", "ista-net+", "dista-net"], [5, 7]) if not re.search("recipe|ours", entry.key)]
    suspects = [entry for method in reporting.SUSPECTS for entry in reporting.suspect_entries(method)[1:]]
    return [*reporting.ablation_entries(), *reporting.open_question_entries(), *axes, *ratios, *suspects]


def test_the_runs_are_what_the_pages_take_them_for():
    """A run by the name of a row must be that row's network."""
    runs = {run.name: run for run in load_runs(REPRODUCE / "runs.yaml")}
    for entry in variant_entries():
        if entry.result in runs:
            run = runs[entry.result]
            assert (run.network, run.ratio, run.options) == (entry.method, entry.ratio, entry.options), f"{run.name} is not the run that {entry.label!r} shows"


def test_no_variant_goes_by_a_name_that_no_page_knows():
    rows = variant_entries()
    names = {entry.result for entry in rows}
    known = [(entry.method, entry.ratio, entry.options) for entry in rows]
    for run in load_runs(REPRODUCE / "runs.yaml"):
        if run.seed == 0 and run.options and (run.network, run.ratio, run.options) in known:
            assert run.name in names, f"{run.name} trains a row's network under another name than the row's"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_have_provenance(path):
    origin = json.loads(path.read_text())["provenance"]
    assert {"versions", "python", "device", "commit", "date"} <= set(origin)


LARGEST_WEIGHTS = 25e6  # bytes of a committed file, two for each parameter
TRAINED = [path for path in RESULTS if "run" in json.loads(path.read_text())]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_trained_results_are_complete(path):
    from csist.reporting import verify_result

    result = json.loads(path.read_text())
    run = {run.name: run for run in load_runs(REPRODUCE / "runs.yaml")}[path.stem]
    assert is_finished(run, path.parent)
    assert result["test"]["frames"] == 10_000 and len(result["test"]["ap"]) == 5 and result["history"] and result["hours"] > 0
    assert result["selected"] == max(result["history"], key=lambda entry: entry["val_cso_map"])
    weights = REPRODUCE / "weights" / f"{path.stem}.safetensors"
    if 2 * result["parameters"] > LARGEST_WEIGHTS:
        assert not weights.exists(), "too large for the repository: keep the result and train the weights again"
        return
    network, header = read_weights(weights)
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
