"""What a report is made from: plain values, gathered by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True, eq=False)
class ReportData:
    """One revision of a study, from calibration to test scores. Later stages may still be missing.

    Attributes:
        study: the study's name.
        revision: number of the calibration-and-choice cycle, None for imported runs.
        created: ISO time at which the report was made.
        command: the command line that produces these results again.
        versions: package name -> version.
        model: `id`, `model_type`, `own_code` (whether code of the checkpoint was run), `groups` {me | projector | llm:
            {`layers`, `parameters_per_rank`}}.
        data: `train`, `validation`, `test` (sample counts), `tasks` {task: count}, `data_hash`, `dropped_too_long`.
        recipe: fine-tuning settings, name -> value.
        metrics: checkpoint metrics, one row per (run_id, step); columns of `mars_core.metrics.schema`.
        laws: `D_target`, `performance` and `convergence` {`me`, `llm`} as `LawFit.to_json` writes them (None where
            there is no fit), `causes` {`performance`, `me`, `llm`: why there is no fit}, `convergence_times` (rows of
            `mars_core.convergence.convergence_times`), `reference` [r_me, r_llm].
        choice: `Choice.to_json()`, None before the search.
        adapter: where the final adapter lies, None before the final fine-tune.
        finals: one mapping per final fine-tune: `role` (chosen | uniform), `pair`, `steps`, `best_step`,
            `best_val_loss`, `seconds`, `trainable_parameters`, `history` (the Trainer's log entries).
        evaluation: {base | chosen | uniform: {`overall`: score, `by_task`: {task: score}}} on the test set; a score has
            `loss`, `perplexity`, `accuracy`, `n_tokens`, `n_answers`. None before the evaluation.
        comparison: one mapping per model of `mars compare`: `name`, `role` (base | chosen | baseline),
            `trainable_parameters`, `test` (as in `evaluation`, with `generated` where answers were), and of what was
            trained `seconds`, `best_val_loss`, `settings`; in a table with searches for the learning rate also
            `learning_rates` (vision encoder, projector, LLM) and `search` (`runs`, `pair_steps`, `seconds`), or None.
        forgetting: by model, as `tasks.final.forgetting` stores it: `E`, `F`, `O`, `tasks` and `signs`; empty where no
            upstream tasks were asked.
        tradeoffs: `base_loss` and `pairs` (a `Tradeoff` each), None where pairs were not scored on upstream tasks.
        layer_ranks: `shared` (each way that ranks were shared out over layers: `name`, `title`, `pair`, `modules`
            {module: `rank`, `blocks`, `budget`, `spent`}, `rows` with `module`, `layer`, `block`, `component`,
            `gradient_norm`, `uniform_rank`, `rank`) and `spectra` (of each adapter `name`, `rows` with `module`,
            `block`, `component`, `rank`, `stable_rank`, `utilisation`); empty where nothing was refined.
        costs: one mapping per stage: `stage`, `seconds`, `detail`.
        warnings: sentences on what may change the decision (runs that diverged, much data left out), the gravest first.
        notes: further sentences on how the results came about (a capped size, where runs were imported from).
    """

    study: str
    revision: int | None
    created: str
    command: str
    versions: Mapping[str, str]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    recipe: Mapping[str, Any]
    metrics: pd.DataFrame
    laws: Mapping[str, Any]
    choice: Mapping[str, Any] | None
    adapter: str | None = None
    finals: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Mapping[str, Any]] | None = None
    comparison: Sequence[Mapping[str, Any]] = ()
    forgetting: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tradeoffs: Mapping[str, Any] | None = None
    layer_ranks: Mapping[str, Any] = field(default_factory=dict)
    costs: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
