"""The sentences of the results pages, with numbers from files."""
from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

from csist.datasets import csist100k
from csist.evaluation import provenance
from csist.reporting.ceilings import Ceilings, describe_ceilings
from csist.reporting.layout import as_printed, number, percent, signed
from csist.reporting.rows import PRECISIONS, network_cost
from csist.reporting.selection import ABLATION, AXIS_LABELS, MAIN_POINT
from csist.reporting.sources import load_paper_table, load_result, paper_training, paper_values
from csist.reporting.tables import difference, hours_text, our_score, read_off
from csist.solvers.ista import PAPER

NEARLY_ALL = 0.95  # AP-25 from which on detection counts as solved; what is missing to 1 is then a matter of a few targets in a hundred


def discrepancy(row: dict, seeds: bool = True) -> str:
    """What separates our number from the paper's, as Markdown; ``seeds`` says whether to speak of the spread over training seeds."""
    if row["status"] != "scored":
        printed = f"; the paper prints {number(row['paper_cso_map'])}" if row["paper_cso_map"] is not None else ""
        return f"**{row['label']}**: {row['status']}{printed}."
    parts = [_compare(row), _compare_seeds(row) if seeds else "", _compare_detection(row), _compare_training(row)]
    return f"**{row['label']}**: " + " ".join(part for part in parts if part)


def discrepancies(rows: list[dict]) -> list[str]:
    """:func:`discrepancy` of every scored row, and one sentence for all the others of a kind."""
    several = any((row["ours_seeds"] or 0) > 1 for row in rows)
    sentences = [discrepancy(row, seeds=several) for row in rows if row["status"] == "scored"]
    if not several and any(row["ours_seeds"] for row in rows):
        sentences.append("**Seeds**: one training of each row is finished, so the spread over seeds of these rows is unknown.")
    for status in dict.fromkeys(row["status"] for row in rows if row["status"] != "scored"):
        names = (row["label"] + ("" if row["paper_cso_map"] is None else f" ({number(row['paper_cso_map'])})") for row in rows if row["status"] == status)
        printed = any(row["paper_cso_map"] is not None for row in rows if row["status"] == status)
        sentences.append(f"**{status.capitalize()}**{', with what the paper prints' * printed}: {', '.join(names)}.")
    return sentences


def _compare(row: dict) -> str:
    ours, gap = percent(row["ours_cso_map"]), difference(row)
    interval = f"95 % interval {percent(row['ours_low'])} to {percent(row['ours_high'])}"
    if gap is None:
        return f"ours is {ours} ({interval}); the paper prints no number for it."
    source = ", read off its curve" if read_off(row) else ""
    side = "equal to" if abs(gap) < 0.005 else f"{abs(gap):.2f} {'above' if gap > 0 else 'below'}"
    margin = math.sqrt(2) * 50 * (row["ours_high"] - row["ours_low"])  # the paper's number comes from a draw of frames, too
    meaning = "may be chance" if abs(gap) <= margin else "is more than that chance"
    return (
        f"ours is {ours} ({interval}), {side} the paper's {number(row['paper_cso_map'])}{source}. Two draws of test frames may differ by {margin:.2f} "
        f"by chance; this difference {meaning}."
    )


def _compare_seeds(row: dict) -> str:
    if row["ours_seeds_sd"] is None:
        return "" if row["ours_seeds"] is None else "One seed is trained, so the spread over seeds is unknown."
    mixed = f" (trained {row['ours_seeds_precisions']})" if row["ours_seeds_precisions"] else ""
    return f"Over {row['ours_seeds']} seeds{mixed} it is {percent(row['ours_seeds_mean'])} ± {percent(row['ours_seeds_sd'])}."


def _compare_detection(row: dict) -> str:
    printed = f" (the paper {number(row['paper_ap25'])})" if row["paper_ap25"] is not None else ""
    if row["ours_ap25"] >= NEARLY_ALL:
        meaning = "nearly every target is found within a quarter of a pixel; what is left to gain is the right sub-pixel, the grid's own error and ranking"
    else:
        meaning = "targets are missed at a quarter of a pixel, or false detections rank above hits; mending that would gain, and so would better ranks of hits"
    return f"AP-25 is {percent(row['ours_ap25'])}{printed}: {meaning}."


def _compare_training(row: dict) -> str:
    if not row["ours_samples"]:
        return ""
    ours, theirs = row["ours_samples"], paper_training(row["method"], row["ratio"])
    text = f"We showed it {ours:,} samples in all, in {hours_text(row)} hours"
    if not theirs or row["options"]:  # how the paper trained its variants is not published
        return text + "."
    at_most, best = theirs["epochs_at_most"], theirs["best_epoch"]
    seen = (best or at_most) * theirs["frames_per_epoch"]
    whose = f"the paper's weights had seen {seen:,.0f} (epoch {best:.0f} of at most {at_most:.0f})" if best else f"the paper's recipe shows up to {seen:,.0f}"
    return f"{text}; {whose}, {seen / ours:.{0 if seen >= 10 * ours else 1}f} times as many as we showed."


def bullets(sentences) -> str:
    """Sentences as a Markdown list.

    >>> bullets(["one.", "two."])
    '- one.\\n- two.'
    """
    return "\n".join(f"- {sentence}" for sentence in sentences)


def explain_ista(folder: Path | None = None, printed: float | None = None) -> str:
    """Why ISTA's row in the paper is so low, in numbers of ``results/ista-tuning.json``; says so if that file is missing.

    Parameters
    ----------
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.
    printed : float, optional
        The paper's number; by default Table 1's.
    """
    tuning = load_result("ista-tuning", folder)
    if tuning is None:
        return "ISTA has not been tuned yet: run `python reproduce/tune_ista.py`."
    printed = paper_values(3)["ista"]["cso_map"] if printed is None else printed
    return "\n\n".join([_explain_setting(tuning, printed), _explain_detections(tuning), _explain_tuning(tuning)])


def _reference(tuning: dict, name: str) -> dict:
    """Score of a reference row at the paper's threshold."""
    return next(row for row in tuning["reference"][name] if row["threshold"] == PAPER.threshold)


def _explain_setting(tuning: dict, printed: float) -> str:
    rows = tuning["reference"]["paper"]
    scores = _listed([f"{percent(row['cso_map'])} at a threshold of {row['threshold']:.0f}" for row in rows])
    weight = f"{PAPER.sparsity:g} grey level{'s' * (PAPER.sparsity != 1)}"
    return (
        f"The paper prints {number(printed)} for ISTA. The settings of its toolkit (weight λ = {weight}, at most "
        f"{PAPER.max_iterations:,} iterations, start at the least-norm solution) give here, on {rows[0]['frames']:,} validation frames, {scores} grey levels."
    )


def _explain_detections(tuning: dict) -> str:
    first, converged = (_reference(tuning, name) for name in ("paper", "paper_converged"))
    targets = csist100k(tuning["data"]["split"], first["frames"], seed=tuning["data"]["seed"]).targets.count.mean()
    why = ""
    if first["detections_per_frame"] > targets:
        why = ": the flux of one target comes out spread over several sub-pixels, and each one above the threshold counts as a detection"
    return (
        f"A frame holds {targets:.2f} targets on average; this setting reports {first['detections_per_frame']:.2f} detections{why}. "
        f"Iterating on to convergence gives {percent(converged['cso_map'])} with {converged['detections_per_frame']:.2f} detections a frame."
    )


def _explain_tuning(tuning: dict) -> str:
    best = tuning["validation"]
    return (
        f"Settings chosen on validation frames give {percent(best['cso_map'])} with {best['detections_per_frame']:.2f} detections a frame: "
        f"{_describe(tuning['choice'])}. The sparse model and the grid are the same, so settings alone make up much of the distance to the networks."
    )


def _describe(settings: dict) -> str:
    words = [
        f"λ = {settings['sparsity']:g} grey levels",
        f"{settings['max_iterations']:,} iterations{' with momentum' if settings['momentum'] else ''}",
        "intensities kept positive" if settings["non_negative"] else "intensities of either sign",
        "saturated pixels left out" if settings["mask_saturated"] else "all pixels used",
        f"threshold {settings['threshold']:.0f}",
    ]
    return ", ".join(words)


def describe_origin() -> str:
    """Where and when the numbers of a page were computed, as one Markdown sentence."""
    origin = provenance()
    commit = f"commit `{origin['commit']}`" if origin["commit"] else "code outside a repository"
    versions = ", ".join(f"{name} {origin['versions'][name]}" for name in ("torch", "numpy", "scipy"))
    return f"This page was made on {origin['date']} from {commit} with {versions}, on {origin['device']}."


# ---- comparing rows ---------------------------------------------------------------------------------------------------


def describe_lengths(rows) -> str:
    """How long the trained rows of a table were trained, and what that means for their differences."""
    trained = sorted((row for row in rows if row["ours_samples"]), key=lambda row: row["ours_samples"])
    if len({row["result"] for row in trained}) < 2:
        return "Fewer than two of these rows are trained so far, so they cannot be compared with each other."
    shortest, longest = trained[0], trained[-1]
    if shortest["ours_samples"] < longest["ours_samples"]:
        text = (
            f"**The rows were not trained equally long**: from {shortest['ours_samples']:,} samples ({shortest['label']}) to {longest['ours_samples']:,} "
            f"({longest['label']}). A difference between two such rows may measure the training, not the architecture."
        )
    else:
        text = f"The {len(trained)} trained rows were shown equally many samples, {longest['ours_samples']:,}."
    if len({row["ours_recipe"] for row in trained}) > 1:
        text += f" Their recipes {'differ in more than length' if shortest['ours_samples'] < longest['ours_samples'] else 'still differ'}; "
        text += "the table of how the rows were made says in what."
    return text


def effect(row: dict, reference: dict) -> str:
    """What a variant loses or gains against another row, in the paper and here, as Markdown.

    The interval joins the bootstrap errors of both scores as if each row had its own test frames. The rows share them, so the true interval is narrower.
    """
    parts = [f"**{row['label']}** against {reference['label']}:"]
    if row["paper_cso_map"] is not None and reference["paper_cso_map"] is not None:
        parts.append(f"{signed(row['paper_cso_map'] - reference['paper_cso_map'])} in the paper;")
    missing = next((one for one in (row, reference) if one["status"] != "scored"), None)
    if missing:
        return " ".join([*parts, f"unknown here, because {'it' if missing is row else reference['label']} is {missing['status']}."])
    gap = 100 * (row["ours_cso_map"] - reference["ours_cso_map"])
    margin = _margin(row, reference)
    meaning = "zero lies inside, so the choice of test frames alone could make it" if abs(gap) <= margin else "zero lies outside"
    parts.append(f"{signed(gap)} here (95 % interval {signed(gap - margin)} to {signed(gap + margin)}: {meaning}).")
    if row["ours_samples"] != reference["ours_samples"]:
        parts.append(f"They were shown {row['ours_samples']:,} and {reference['ours_samples']:,} samples, so this is no pure effect of the architecture.")
    return " ".join(parts)


def _margin(row: dict, reference: dict) -> float:
    """Half the width of the 95 % interval of a difference of two scores, in points."""
    return 196 * math.hypot(row["ours_standard_error"], reference["ours_standard_error"])


def effects(rows, reference: dict) -> list[str]:
    """:func:`effect` of every row that can be compared with the reference, and one sentence on all the others."""
    known = lambda row: row["status"] == reference["status"] == "scored"
    printed = lambda row: row["paper_cso_map"] is not None and reference["paper_cso_map"] is not None
    papers = lambda row: f" ({signed(row['paper_cso_map'] - reference['paper_cso_map'])} in the paper)" if printed(row) else ""
    sentences = [effect(row, reference) for row in rows if known(row)]
    names = [row["label"] + papers(row) for row in rows if not known(row)]
    reason = "" if reference["status"] == "scored" else f", because {reference['label']} itself is {reference['status']} with this budget"
    return sentences + ([f"**Unknown here so far**{reason}: {', '.join(names)}."] if names else [])


def describe_suspects(rows) -> str:
    """What the retrainings of :func:`csist.reporting.suspect_entries` cost the first row's score, and what they leave unexplained; one Markdown paragraph."""
    main, again = rows[0], [row for row in rows[1:] if row["status"] == "scored"]
    if main["status"] != "scored" or not again:
        return f"{main['label']} has not been trained again with other settings yet."
    words = lambda row: row["label"].removeprefix(f"{main['label']}, ")
    costs = [f"{words(row)} {signed(100 * (row['ours_cso_map'] - main['ours_cso_map']))}" for row in again]
    lowest, printed = min(row["ours_cso_map"] for row in rows if row["status"] == "scored"), main["paper_cso_map"]
    left = 100 * lowest - printed
    text = f"**{main['label']}** scores {percent(main['ours_cso_map'])}, {signed(difference(main))} from the paper. "
    text += f"What other settings change: {_listed(costs)} points."
    if left > 1:
        known = 100 * (main["ours_cso_map"] - lowest)
        return f"{text} They explain at most {known:.1f} of the {difference(main):.1f} points above the paper's {number(printed)}; the rest is unknown."
    return f"{text} That reaches the paper's {number(printed)}."


def describe_whole_frames(row: dict, whole: dict, folder: Path | None = None) -> str:
    """What it changes that a network never sees a window, as Markdown.

    Parameters
    ----------
    row : dict
        The network trained on windows first and whole frames then.
    whole : dict
        The same network and schedule, with whole frames throughout.
    folder : path, optional
        Holds ``results``; by default the repository's ``reproduce``.
    """
    missing = next((one for one in (row, whole) if one["status"] != "scored"), None)
    if missing:
        return f"**{missing['label']}**: {missing['status']}."
    history = load_result(row["result"], folder)["history"]
    windows = [point for point in history if point["view"] == "windows"]
    gain, margin = 100 * (whole["ours_cso_map"] - row["ours_cso_map"]), _margin(whole, row)
    course = [(windows[0], "after {samples:,} windows"), (windows[-1], "after {samples:,}"), (history[-1], "when it had learned from whole frames as well")]
    scores = [f"{percent(point['val_cso_map'])} {when.format(**point)}" for point, when in course]
    text = (
        f"**{row['label']}**: on whole validation frames it scored {_listed(scores)}. Trained on whole frames only, it scores "
        f"{percent(whole['ours_cso_map'])} on test instead of {percent(row['ours_cso_map'])}: "
        f"{signed(gain)} (95 % interval over test frames {signed(gain - margin)} to {signed(gain + margin)})."
    )
    lacking = -difference(row) if row["paper_cso_map"] is not None else 0
    if gain <= margin:
        text += " So windows do not hold it back."
    elif lacking > 0:
        share = "all" if gain >= lacking else f"{gain:.1f}"
        text += f" That is {share} of the {lacking:.1f} points that it lacks to the paper's {number(row['paper_cso_map'])}."
    precisions = [PRECISIONS.get(load_result(one["result"], folder).get("precision")) for one in (row, whole)]
    return text + (" Besides, the first was trained in {}, the second in {}.".format(*precisions) if len(set(precisions)) > 1 else "")


def describe_order(rows) -> str:
    """Whether our scores stand in the paper's order, how many of the differences are resolved, and what the seeds allow to say; one Markdown paragraph."""
    both = [row for row in rows if row["paper_cso_map"] is not None and row["status"] == "scored"]
    if len(both) < 2:
        return "Whether the paper's order is reproduced can be said when at least two of its rows are trained."
    theirs, ours = (sorted(both, key=lambda row: -row[name]) for name in ("paper_cso_map", "ours_cso_map"))
    named = lambda some: ", ".join(row["label"] for row in some)
    few = "" if len(both) == sum(row["paper_cso_map"] is not None for row in rows) else " of the trained rows"
    if theirs == ours:
        text = f"**The paper's order{few} is reproduced**: from the highest score, {named(ours)}."
    else:
        text = f"**The paper's order{few} is not reproduced**: from the highest score, the paper has {named(theirs)}; we have {named(ours)}."
    return f"{text} {_describe_pairs(theirs)} {_describe_seeds(both)}"


def _describe_pairs(theirs) -> str:
    """How many pairs of rows, given in the paper's order, differ here beyond the sampling error."""
    pairs = [(100 * (upper["ours_cso_map"] - lower["ours_cso_map"]), _margin(upper, lower)) for upper, lower in itertools.combinations(theirs, 2)]
    same, other = sum(gap > margin for gap, margin in pairs), sum(gap < -margin for gap, margin in pairs)
    rest = len(pairs) - same - other
    if len(pairs) == 1:
        return "Their difference is " + ("within the sampling error of the test frames." if rest else "beyond the sampling error of the test frames.")
    counts = [f"{number_} {words}" for number_, words in ((same, "in the paper's direction"), (other, "in the other one")) if number_]
    resolved = f"{same + other} differ{'s' * (same + other == 1)} here beyond the sampling error of the test frames"
    return f"Of the {len(pairs)} pairs, {resolved}{f' ({_listed(counts)})' if counts else ''}, {rest} {'does' if rest == 1 else 'do'} not."


def _describe_seeds(rows) -> str:
    """What the number of trainings behind some rows allows to say."""
    repeated = [row for row in rows if row["ours_seeds_sd"] is not None]
    if not repeated:
        return (
            "Each row is one training. Another seed would end at another score, and one seed does not tell how far away. So even a difference beyond the "
            "sampling error shows that two trainings differ, not that a part of the network helps or harms."
        )
    spread = _seed_spread(repeated)
    whose = _listed([f"{row['label']} ({row['ours_seeds']} seeds)" for row in repeated])
    others = "Two" if len(repeated) == len(rows) else "If the other rows, of one seed each, vary as much, two"
    apart = math.sqrt(2) * spread
    pairs = itertools.combinations(rows, 2)
    far = "; ".join(f"{one['label']} and {two['label']}" for one, two in pairs if abs(one["ours_cso_map"] - two["ours_cso_map"]) > 0.02 * apart)
    return (
        f"Over training seeds the score of {whose} has a standard deviation of {spread:.2f}{', pooled' * (len(repeated) > 1)}. {others} single "
        f"trainings differ by about {apart:.2f} by chance. "
    ) + (f"These pairs differ by more than twice that: {far}." if far else "No two rows differ by more than twice that.")


def _seed_spread(repeated) -> float:
    """Pooled standard deviation over training seeds, in points: a row weighs as much as it has seeds beyond the first."""
    freedom = [row["ours_seeds"] - 1 for row in repeated]
    return 100 * math.sqrt(sum(count * row["ours_seeds_sd"] ** 2 for count, row in zip(freedom, repeated)) / sum(freedom))


def describe_chance(rows, reference: dict) -> str:
    """Which rows differ from a reference by more than twice what two trainings differ by chance, as one Markdown paragraph.

    Parameters
    ----------
    rows : list of dict
        Rows of one training budget; those with several seeds say what chance does.
    reference : dict
        The row that all others are held against.
    """
    every = [reference, *(row for row in rows if row is not reference)]
    repeated = [row for row in every if row["ours_seeds_sd"] is not None]
    scored = [row for row in rows if row["status"] == "scored" and row is not reference]
    if not repeated or not scored or reference["status"] != "scored":
        return "Whether these rows differ by more than chance can be said when they are trained, and one row of the table with several seeds."
    spread = _seed_spread(repeated)
    twice = 2 * math.sqrt(2) * spread
    gaps = [(row["label"], 100 * (row["ours_cso_map"] - reference["ours_cso_map"])) for row in scored]
    far, near = ([f"{label} ({signed(gap)})" for label, gap in gaps if (abs(gap) > twice) == beyond] for beyond in (True, False))
    whose, kind = _listed([row["label"] for row in repeated]), " (pooled)" * (len(repeated) > 1)
    text = (
        f"The scores of {whose} have a standard deviation of {spread:.2f}{kind} over training seeds. That of a difference of two trainings is √2 times as "
        f"large, so up to twice that, {twice:.2f} points, may be chance. "
    )
    if far:
        text += f"Further than that from {reference['label']} {'is' if len(far) == 1 else 'are'} {_listed(far)}. "
    if near:
        text += f"Not told apart from it by one training each {'is' if len(near) == 1 else 'are'} {_listed(near)}."
    return text.strip()


def longer_training(row: dict, longer: dict) -> str:
    """What longer training gave the same network, as Markdown."""
    missing = next((one for one in (longer, row) if one["status"] != "scored"), None)
    if missing:
        return f"**{longer['label']}**: nothing to compare, because {'it' if missing is longer else 'the row with the common budget'} is {missing['status']}."
    gap = 100 * (longer["ours_cso_map"] - row["ours_cso_map"])
    apart = [set(one.split(", ")) - set(other.split(", ")) for one, other in itertools.permutations((row["ours_recipe"], longer["ours_recipe"]))]
    if all(len(parts) == 1 and next(iter(parts)).removeprefix("in ") in PRECISIONS.values() for parts in apart):
        other = " ({} before, {} now)".format(*(next(iter(parts)) for parts in apart))
    else:
        other = " (their recipes differ in more than length, see below)" * any(apart)
    return (
        f"**{longer['label']}**: a training of {longer['ours_samples']:,} samples instead of {row['ours_samples']:,} takes it from "
        f"{percent(row['ours_cso_map'])} to {percent(longer['ours_cso_map'])}, {signed(gap)}{other}."
    )


def explain_costs(rows, ratios=(3, 5)) -> str:
    """Which printed sizes and costs are not those of their row: each printed pair is looked up among all the rows' networks at some ratios.

    Parameters
    ----------
    rows : list of dict
        Those of :func:`csist.reporting.ablation_rows`.
    ratios : sequence of int
        Sub-pixel ratios at which the networks are built and counted.
    """
    rows = [row for row in rows if row["paper_parameters_m"] is not None and row["ours_parameters"] is not None]
    costs = {(row["label"], ratio): network_cost(row["method"], ratio, **json.loads(row["options"] or "{}")) for row in rows for ratio in ratios}
    return "\n".join(f"- **{row['label']}**: {_explain_cost(row, costs)}" for row in rows)


def _explain_cost(row: dict, costs: dict) -> str:
    own = costs[row["label"], row["ratio"]]
    printed = f"the paper prints {as_printed(row['paper_parameters_m'])} M parameters and {as_printed(row['paper_macs_g_batch64'])} G,"
    if _prints(row, own):
        return f"{printed} and we count the same, to within a thousandth."
    twins = [f"{label} at c = {ratio} ({_cost_words(cost)})" for (label, ratio), cost in costs.items() if _prints(row, cost)]
    counted = f"we count {_cost_words(own)} at c = {row['ratio']}"
    return f"{printed} but {counted}. " + (f"The printed pair is that of {twins[0]}." if twins else "No row of the table has the printed pair.")


def _prints(row: dict, cost) -> bool:
    """Whether a cost rounds to the printed parameters, and to the printed multiply-accumulates within a thousandth."""
    return round(cost[0] / 1e6, 3) == row["paper_parameters_m"] and math.isclose(cost[2] / 1e9, row["paper_macs_g_batch64"], rel_tol=1e-3)


def _cost_words(cost) -> str:
    return f"{number(cost[0], 3, 1e6)} M, {number(cost[2], 2, 1e9)} G"


def describe_ratio(rows, ceilings: Ceilings) -> str:
    """Where the scores at one sub-pixel ratio stand between no answer and a perfect one, as one Markdown paragraph."""
    text = f"**c = {rows[0]['ratio']}.** {describe_ceilings(ceilings)}"
    printed = max((row["paper_cso_map"] for row in rows if row["paper_cso_map"] is not None), default=None)
    ours = max((100 * row["ours_cso_map"] for row in rows if row["ours_cso_map"] is not None), default=None)
    scores = {"the paper's best row": printed, "ours" if printed else "our best row": ours}
    gaps = {whose: score - 100 * ceilings.random for whose, score in scores.items() if score is not None}
    best = [f"{whose} is {abs(gap):.2f} {'above' if gap > 0 else 'below'}" for whose, gap in gaps.items()]
    return f"{text} Against the first of these numbers, {' and '.join(best)}." if best else text


def describe_axis(rows) -> str:
    """One axis of the paper's Figure 7 in words: where the paper's curve and ours are highest, how much that means, and what is missing."""
    name = AXIS_LABELS[rows[0]["axis"]]
    best = max(rows, key=lambda row: row["paper_cso_map"])
    parts = [f"**The {name}.** The paper's highest point is at {best['value']:g} ({number(best['paper_cso_map'])})."]
    main = next((row for row in rows if row["value"] == MAIN_POINT[row["axis"]] and row["status"] == "scored"), None)
    if main:
        half = math.sqrt(2) * 50 * (main["ours_high"] - main["ours_low"])
        flat = sum(best["paper_cso_map"] - row["paper_cso_map"] <= half for row in rows) - 1
        parts.append(
            f"{flat} of the other {len(rows) - 1} points lie within {half:.2f} of the highest, by which the scores of one network, our DISTA-Net, could differ "
            "on two draws of test frames."
        )
    trained = [row for row in rows if row["status"] == "scored"]
    if trained:
        ours = max(trained, key=lambda row: row["ours_cso_map"])
        where = "Ours has one point," if len(trained) == 1 else f"Of our {len(trained)} trained, the highest is"
        parts.append(f"{where} at {ours['value']:g}: {our_score(ours)}.")
    missing = [f"{row['value']:g}" for row in rows if row["status"] != "scored"]
    return " ".join([*parts, f"Not trained yet here: {_listed(missing)}." if missing else ""]).strip()


def _listed(words) -> str:
    """Words with commas and a last "and".

    >>> _listed(["2", "4", "8"]), _listed(["2"])
    ('2, 4 and 8', '2')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def explain_zero_weight() -> str:
    """Why the dynamic branch's weight 0 is Table 2's row without a dynamic transform, and what still differs."""
    zero = next(line for line in load_paper_table("fig7_hyperparameters_c3.csv") if line["axis"] == "dynamic_branch_weight" and line["value"] == 0)
    without = next(line for line in load_paper_table("table2_ablation_c3.csv") if ABLATION[line["variant"]][1] == "no-transform")
    same = "the number that its Table 2 prints" if zero["cso_map"] == without["cso_map"] else f"where its Table 2 prints {number(without['cso_map'])}"
    sizes = [network_cost("dista-net", 3, **options)[0] for options in ({"static_weight": 1.0}, {"dynamic_transform": False})]
    return (
        f"At weight 0 the paper shows {number(zero['cso_map'])}, {same} for the network without a dynamic transform. Both compute the same function of what "
        f"they learned, because the dynamic branch is multiplied by zero. But at weight 0 the kernel generator is still there, unused and untrained, so the "
        f"network has {sizes[0]:,} parameters instead of {sizes[1]:,}; and two trainings end apart by chance."
    )
