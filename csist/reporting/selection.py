"""Which rows a results page has: a method in one setting each, with the name of its run and what the paper prints for it."""
from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path

from csist.evaluation import list_methods
from csist.imaging import check_ratio
from csist.networks.registry import NETWORKS, run_name, unknown_name
from csist.reporting.sources import load_paper_table, load_result, load_runs, paper_values, run_family
from csist.solvers.ista import PAPER, TUNED, IstaSettings

PAPER_RATIOS = (3, 5, 7)  # of the paper's Tables 1 and 3
LABELS = {"fista": "FISTA", "omp": "OMP", "off-grid": "Off-grid posterior", "continuous": "Continuous network"}  # methods that the paper has no row for
RECIPES = {  # other ways to train a method, and how a table calls them
    "ours": "our recipe",
    "paper-recipe": "the paper's recipe",
    "frames": "whole frames",
    "long": "three times as long",
}


@dataclass(frozen=True)
class Entry:
    """One row of a table before it is filled: a method in one setting."""

    key: str  # unique on its page, for example "ista-tuned"
    method: str  # its name in the paper's table and in the package, lower case
    label: str
    result: str  # name of the result file that the row shows, for a network the name of its run
    settings: IstaSettings | None = None  # of a model-based row
    options: dict = field(default_factory=dict)  # of the network's class, where they are not the paper's
    ratio: int = 3
    printed: dict = field(default_factory=dict)  # what the paper prints for exactly this setting, by the column names of its Table 1

    @property
    def implemented(self) -> bool:
        """Whether the package has the network with these options, or the model-based method."""
        if self.method not in NETWORKS:
            return self.method in list_methods()
        return set(self.options) <= set(inspect.signature(NETWORKS[self.method]).parameters)


def known_methods(ratio: int = 3) -> list[str]:
    """Methods that a table may show: all of the paper's table at this ratio, and all of this package."""
    return list(dict.fromkeys([*paper_values(ratio), *list_methods()]))


def shown_methods(ratio: int = 3, folder: Path | None = None) -> list[str]:
    """Methods that a full table shows: all that the paper prints at this ratio, and what else has a result here.

    >>> shown_methods()[-2:]
    ['dista-net', 'cfgn']
    """
    printed = paper_values(ratio)
    return [method for method in known_methods(ratio) if method in printed or any(load_result(entry.result, folder) for entry in entries([method], ratio))]


def method_label(method: str, ratio: int = 3) -> str:
    """A method's name as the paper writes it.

    >>> method_label("dista-net"), method_label("cfgn"), method_label("omp")
    ('DISTA-Net', 'CFGN', 'OMP')
    """
    printed = (values[method]["method"] for values in map(paper_values, (ratio, *PAPER_RATIOS)) if method in values)
    return next(printed, LABELS.get(method, method))


# ---- methods in their main setting ------------------------------------------------------------------------------------


def entries(methods, ratio: int = 3, seed: int = 0, folder: Path | None = None, *, planned: bool = False) -> list[Entry]:
    """The rows that some methods have: ISTA one per setting, a network one, and one more for each other recipe that it was trained by.

    Parameters
    ----------
    methods : sequence of str
        Names as in :func:`known_methods`, or one such name; an unknown one is a ValueError that names the nearest.
    ratio : int
        Sub-pixel ratio c.
    seed : int
        Training seed whose scores a row shows.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.
    planned : bool
        Also give other recipes a row that ``reproduce/runs.yaml`` lists but that have no result yet.

    >>> [entry.key for entry in entries(["ista", "ista-net"])][:3]
    ['ista-paper', 'ista-tuned', 'ista-net']
    """
    rows = []
    for method in [methods] if isinstance(methods, str) else methods:
        if method not in known_methods(ratio):
            raise unknown_name(method, known_methods(ratio))
        rows += _ista_entries(ratio) if method == "ista" else _network_entries(method, ratio, seed, folder, planned)
    return rows


def _ista_entries(ratio: int) -> list[Entry]:
    label, printed = method_label("ista", ratio), paper_values(ratio).get("ista", {})
    first = Entry("ista-paper", "ista", f"{label} (the paper's setting)", f"ista-paper-c{ratio}", PAPER, ratio=ratio, printed=printed)
    return [first, Entry("ista-tuned", "ista", f"{label} (tuned on validation)", f"ista-tuned-c{ratio}", TUNED, ratio=ratio)]


def _network_entries(method: str, ratio: int, seed: int, folder: Path | None, planned: bool) -> list[Entry]:
    run = run_name(method, ratio, seed) if method in NETWORKS else f"{method}-c{ratio}"
    main = Entry(method, method, method_label(method, ratio), run, ratio=ratio, printed=paper_values(ratio).get(method, {}))
    listed = {run.name: run for run in load_runs()} if planned else {}
    rows = [main]
    for recipe, words in RECIPES.items():
        name = recipe_run(method, ratio, seed, recipe)
        result = load_result(name, folder)
        if result or name in listed:
            options = result["run"]["options"] if result else listed[name].options
            rows.append(replace(main, key=f"{method}-{recipe}", label=f"{main.label} ({words})", result=name, options=options))
    return rows


def recipe_run(method: str, ratio: int, seed: int, recipe: str) -> str:
    """Name of the run that trains a method by another recipe; the paper's has one seed only, and none in its name.

    >>> recipe_run("dista-net", 3, 1, "ours"), recipe_run("dista-net", 3, 1, "paper-recipe")
    ('dista-net-ours-c3-seed1', 'dista-net-c3-paper-recipe')
    """
    return run_family(run_name(method, ratio)) + "-paper-recipe" if recipe == "paper-recipe" else run_name(f"{method}-{recipe}", ratio, seed)


# ---- Table 2: the ablation, and what it leaves open -------------------------------------------------------------------

ABLATION = {  # row of the paper's Table 2: method, variant, options of its network; "standard" has no options, but the variants' training budget
    "ISTA-Net": ("ista-net", "standard", {}),
    "DISTA-Net w/o DT": ("dista-net", "no-transform", {"dynamic_transform": False}),
    "DISTA-Net w/o Thres.": ("dista-net", "no-threshold", {"dynamic_threshold": False}),
    "DISTA-Net": ("dista-net", "standard", {}),
}
OPEN_QUESTIONS = {  # a row that the paper does not have, but that its published code raises: variant, options of DISTA-Net
    "DISTA-Net, untrained kernels": ("frozen-kernels", {"train_kernels": False}),
    "DISTA-Net, gate as threshold": ("gate", {"gate": True}),
    "DISTA-Net as released": ("released", {"variant": "released"}),
}


def variant_entry(method: str, variant: str, label: str, options: dict, *, ratio: int = 3, seed: int = 0, printed: dict | None = None) -> Entry:
    """A row for a network with options, or with a budget of its own: its run is named ``<method>-<variant>-c<ratio>-seed<seed>``.

    >>> variant_entry("dista-net", "stages-2", "2 stages", {"stages": 2}).result
    'dista-net-stages-2-c3-seed0'
    """
    name = f"{method}-{variant}"
    return Entry(name, method, label, run_name(name, ratio, seed), options=options, ratio=ratio, printed=printed or {})


def ablation_entries(seed: int = 0) -> list[Entry]:
    """The rows of the paper's Table 2, in its order.

    >>> [entry.result for entry in ablation_entries()][1:3]
    ['dista-net-no-transform-c3-seed0', 'dista-net-no-threshold-c3-seed0']
    """
    rows = []
    for line in load_paper_table("table2_ablation_c3.csv"):
        method, variant, options = ABLATION[line["variant"]]
        printed = line | {"params_m": line["params_m_printed"], "macs_g_batch64": line["macs_g_batch64_printed"]}
        rows.append(variant_entry(method, variant, line["variant"], options, seed=seed, printed=printed))
    return rows


def open_question_entries(seed: int = 0) -> list[Entry]:
    """Rows that tell the parts of DISTA-Net's published code apart; the paper prints nothing for them."""
    return [variant_entry("dista-net", variant, label, options, seed=seed) for label, (variant, options) in OPEN_QUESTIONS.items()]


def longer_entries(seed: int = 0) -> list[Entry]:
    """The ablation's unchanged networks as Table 1 has them, trained longer.

    >>> [(entry.label, entry.result) for entry in longer_entries()][0]
    ('ISTA-Net (Table 1)', 'ista-net-c3-seed0')
    """
    methods = [method for method, variant, _ in ABLATION.values() if variant == "standard"]
    return [replace(entry, label=f"{entry.label} (Table 1)") for entry in entries(methods, seed=seed) if entry.key == entry.method]


# ---- rows far above the paper's: is it the toolkit's start, or the paper's optimiser? -------------------------------

SUSPECTS = {  # method: its retrainings, each a variant, words for it, options of the network
    "lamp": (
        ("released", "the toolkit's start", {"variant": "released"}),
        ("paper-rate", "the paper's optimiser", {}),
        ("released-paper-rate", "both", {"variant": "released"}),
    ),
    "liht": (("paper-rate", "the paper's optimiser", {}),),
    "tilista": (("paper-rate", "the paper's optimiser", {}),),
}


def suspect_entries(method: str, seed: int = 0) -> list[Entry]:
    """A row of Table 1 that stands far above the paper's, and the same network trained with what may have held the paper's down.

    >>> [entry.result for entry in suspect_entries("tilista")]
    ['tilista-c3-seed0', 'tilista-paper-rate-c3-seed0']
    """
    main = entries([method], seed=seed)[0]
    again = [variant_entry(method, variant, f"{main.label}, {words}", options, seed=seed, printed=main.printed) for variant, words, options in SUSPECTS[method]]
    return [main, *again]


# ---- Table 3: finer grids ---------------------------------------------------------------------------------------------


def grid_ratio_entries(methods, ratios, seed: int = 0) -> list[Entry]:
    """Rows for some methods at some sub-pixel ratios, ratio by ratio; keys and labels say the ratio.

    >>> [entry.key for entry in grid_ratio_entries(["ista-net"], [5, 7])][0]
    'ista-net-c5'
    """
    rows = [entry for ratio in ratios for entry in entries(methods, check_ratio(ratio), seed, planned=True)]
    return [replace(entry, key=f"{entry.key}-c{entry.ratio}", label=f"{entry.label}, c = {entry.ratio}") for entry in rows]


# ---- Figure 7: hyper-parameters ---------------------------------------------------------------------------------------

AXES = {"stages": "stages", "dynamic_branch_weight": "dynamic"}  # axis of the paper's Figure 7: how the names of its runs begin
AXIS_LABELS = {"stages": "number of stages", "dynamic": "weight of the dynamic branch"}
MAIN_POINT = {"stages": 6, "dynamic": 0.3}  # where an axis passes through the network as the paper proposes it


def hyperparameter_entries(axis: str, seed: int = 0) -> list[Entry]:
    """The points of one axis of the paper's Figure 7, by rising value; the axis is "stages" or "dynamic".

    >>> [entry.result for entry in hyperparameter_entries("stages")][1:3]
    ['dista-net-stages-4-c3-seed0', 'dista-net-standard-c3-seed0']
    """
    lines = [line for line in load_paper_table("fig7_hyperparameters_c3.csv") if AXES[line["axis"]] == axis]
    return [_hyperparameter_entry(axis, line, seed) for line in sorted(lines, key=lambda line: line["value"])]


def _hyperparameter_entry(axis: str, line: dict, seed: int) -> Entry:
    value = line["value"]
    if axis == "stages":
        label, variant, options = f"{value:g} stages", f"stages-{value:g}", {"stages": int(value)}
    else:  # runs say the weight in per cent, networks take that of the static branch
        label, variant, options = f"dynamic weight {value:g}", f"dynamic-{100 * value:.0f}", {"static_weight": round(1 - value, 6)}
    if value == MAIN_POINT[axis]:
        variant, options = "standard", {}
    return replace(variant_entry("dista-net", variant, label, options, seed=seed, printed=line), key=f"{axis}-{value:g}")
