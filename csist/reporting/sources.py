"""The files that a results page is made from and writes: results, runs, the paper's printed numbers."""
from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

from csist.training import Run, write_json

AP_NAMES = ("ap05", "ap10", "ap15", "ap20", "ap25")  # AP at 0.05 .. 0.25 px, as the paper's table names them


def reproduce_folder() -> Path:
    """The repository's ``reproduce`` folder: beside the package, else in or above the working directory.

    Raises
    ------
    FileNotFoundError
        If csist was installed without its repository; the message says what to do.
    """
    places = [Path(__file__).resolve().parents[2], Path.cwd(), *Path.cwd().parents]
    for place in places:
        if (place / "reproduce" / "runs.yaml").is_file():
            return place / "reproduce"
    raise FileNotFoundError("no reproduce/runs.yaml beside the package or above the working directory; clone the repository and run `pip install -e .` in it")


def load_result(name: str, folder: Path | None = None) -> dict | None:
    """The result file ``results/<name>.json``, or None if there is none.

    Parameters
    ----------
    name : str
        For example ``"dista-net-c3-seed0"``.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.
    """
    path = (folder or reproduce_folder()) / "results" / f"{name}.json"
    return read_json(path) if path.is_file() else None


def seed_results(name: str, folder: Path | None = None) -> list[str]:
    """Names of the results of a run's seeds, in order; empty for a result whose name has no seed.

    Parameters
    ----------
    name : str
        One of them, for example ``"dista-net-c3-seed0"``; its own result need not exist.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.
    """
    family = run_family(name)
    return [] if family == name else [path.stem for path in sorted(((folder or reproduce_folder()) / "results").glob(f"{family}-seed*.json"))]


def run_family(name: str) -> str:
    """A run's name without its seed.

    >>> run_family("dista-net-c3-seed12"), run_family("ista-paper-c3")
    ('dista-net-c3', 'ista-paper-c3')
    """
    return re.sub(r"-seed\d+$", "", name)


def read_json(path) -> dict:
    """Content of a JSON file; a damaged one is an error that names the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}); restore it, or delete it and make it again") from None


def load_paper_table(name: str) -> list[dict]:
    """A file of ``reproduce/paper`` as one dict per line; numbers as float, empty cells as None.

    >>> load_paper_table("table1_main_c3.csv")[0]["method"]
    'ISTA'
    """
    with open(reproduce_folder() / "paper" / name, newline="", encoding="utf-8") as file:
        return [{key: _number_or_text(value) for key, value in line.items()} for line in csv.DictReader(file)]


def _number_or_text(text: str | None):
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def paper_values(ratio: int = 3) -> dict[str, dict]:
    """What the paper prints at a sub-pixel ratio, by method name in lower case; empty for a ratio that it does not treat.

    Table 1 is at c = 3, Table 3 at 5 and 7 (with fewer columns).

    >>> paper_values(3)["dista-net"]["cso_map"], paper_values(5)["dista-net"]["cso_map"], paper_values(9)
    (46.74, 69.58, {})
    """
    if ratio == 3:
        lines = load_paper_table("table1_main_c3.csv")
    else:
        lines = [line for line in load_paper_table("table3_grid_ratio.csv") if line["c"] == ratio]
    return {line["method"].lower(): line for line in lines}


def write_text(path, text: str) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load_runs(methods=None, ratio: int | None = None) -> list[Run]:
    """The runs of ``reproduce/runs.yaml``, all or those of some methods and one ratio."""
    from csist.training import load_runs as read_runs

    runs = read_runs(reproduce_folder() / "runs.yaml")
    return [run for run in runs if (methods is None or run.network in methods) and (ratio is None or run.ratio == ratio)]


def paper_training(method: str, ratio: int = 3) -> dict:
    """How the paper's toolkit trained a method: ``epochs_at_most``, ``best_epoch`` (None if not published), ``frames_per_epoch``; empty if it is unknown."""
    lines = [line for line in load_paper_table("training.csv") if line["method"].lower() == method and line["c"] == ratio]
    return lines[0] if lines else {}


def write_rows(rows, folder, name: str = "table1", **more) -> list[Path]:
    """Write ``<name>.csv`` and ``<name>.json`` (rows and whatever else is passed); returns the two paths.

    CSV cells are Python's text of the values, an empty cell is None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else ["key"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{name}.csv", buffer.getvalue())
    write_json(folder / f"{name}.json", {"rows": rows, **more})
    return [folder / f"{name}.csv", folder / f"{name}.json"]


def weights_file(run: str, folder: Path | None = None) -> Path | None:
    """``weights/<run>.safetensors``, or None if there is none."""
    path = (folder or reproduce_folder()) / "weights" / f"{run}.safetensors"
    return path if path.is_file() else None
