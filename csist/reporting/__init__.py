"""Tables, plots and sentences of the results pages, made from the result files and from nothing else (book part "Results").

A row joins what the paper prints (columns ``paper_*``, from ``reproduce/paper/*.csv``) with what was measured here (columns ``ours_*``, from
``reproduce/results/*.json``). The two never mix: a method without a result file has no ``ours_*`` score, whatever the paper says about it.

Everything that a page needs is a name of this package; its modules follow the order of the work: ``sources`` (files), ``selection`` (which rows) and ``rows``,
``layout`` and ``tables``, ``sentences``, ``ceilings``, ``confidence``, ``live`` (evaluation while a page is made), ``learning``, ``remake`` (training
again), ``parameters``, ``pictures``.
"""
# ruff: noqa: F401 (this file only passes names on)
from csist.reporting.ceilings import Ceilings, describe_ceilings, draw_ceilings, grid_ceilings, on_grid, stored_ceilings
from csist.reporting.confidence import confidence_rows, confidence_table, describe_confidence
from csist.reporting.layout import MISSING, Column, Table, make_table, number, percent
from csist.reporting.learning import (
    RankScores,
    common_budget,
    describe_learning,
    describe_places,
    describe_ranking,
    learning_table,
    nearest_distance,
    plot_detection,
    rank_by_distance,
    rank_scores,
    ranking_rows,
    ranking_table,
    trained_rows,
)
from csist.reporting.live import (
    FEW_FRAMES,
    PIECE,
    ROUNDING,
    SIGMAS,
    Live,
    check_live,
    clear_progress,
    evaluate_live,
    live_tolerance,
    progress_bar,
    solve_in_pieces,
    verify_result,
)
from csist.reporting.parameters import MANY_ROWS, SCALES, check_parameters
from csist.reporting.pictures import plot_comparison, plot_hyperparameters, plot_learning_curves, plot_ratios, plot_samples
from csist.reporting.remake import runs_of, score_ista, source_folder, write_ista_result
from csist.reporting.rows import ablation_rows, hyperparameter_rows, make_rows, network_cost, parameters_with_gradient, recipe_text, table1_rows
from csist.reporting.selection import (
    ABLATION,
    AXIS_LABELS,
    SUSPECTS,
    Entry,
    ablation_entries,
    entries,
    grid_ratio_entries,
    hyperparameter_entries,
    known_methods,
    longer_entries,
    method_label,
    open_question_entries,
    recipe_run,
    suspect_entries,
    variant_entry,
)
from csist.reporting.sentences import (
    NEARLY_ALL,
    bullets,
    describe_axis,
    describe_chance,
    describe_lengths,
    describe_order,
    describe_origin,
    describe_ratio,
    describe_suspects,
    describe_whole_frames,
    discrepancies,
    discrepancy,
    effect,
    effects,
    explain_costs,
    explain_ista,
    explain_zero_weight,
    longer_training,
)
from csist.reporting.sources import (
    AP_NAMES,
    load_paper_table,
    load_result,
    load_runs,
    paper_training,
    paper_values,
    read_json,
    reproduce_folder,
    run_family,
    seed_results,
    weights_file,
    write_rows,
    write_text,
)
from csist.reporting.tables import (
    HOURS,
    bench_table,
    comparison_table,
    device_text,
    difference,
    headline_table,
    hours_text,
    image_table,
    our_score,
    paper_score,
    parts_table,
    precision_table,
    read_off,
    readme_table,
    seeds_text,
    size_table,
    training_table,
)
