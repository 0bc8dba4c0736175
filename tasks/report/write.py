"""Gather what the stages stored and write the report."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from mars_core.markdown import code, markdown_table, plain
from mars_core.metrics.identity import content_hash
from mars_core.metrics.schema import SCHEMA
from mars_core.models.auto import of_its_tower
from mars_core.models.loading import read_model_type
from mars_core.models.partition import GROUPS, Partition
from mars_core.ranks import RankPair
from mars_core.report import ReportData, render_with_figures
from mars_core.report.tables import has_balance
from mars_core.search import Choice
from mars_core.search.fitted_laws import FittedLaws
from tasks.calibration.diverged import Divergence, collect_metrics, divergence, metrics_of
from tasks.calibration.hours import revision_hours
from tasks.calibration.stage import CALIBRATE
from tasks.calibration.stored import calibration_cost, missing_runs
from tasks.choice.approval import approval_notes
from tasks.choice.fit import FIT, laws_path, read_laws, target_size
from tasks.choice.markdown import choice_markdown, decision_text
from tasks.choice.search import SEARCH, choice_path, read_choice
from tasks.final.arm import Arm
from tasks.final.compare import present_comparison
from tasks.final.evaluate import EVALUATE, ModelScores, generated_values, is_evaluated, read_evaluation
from tasks.final.forgetting import forgetting_table
from tasks.final.pair import final_folder, finetune_stage
from tasks.final.pair_forgetting import read_pairs
from tasks.final.pairs import trained_arms
from tasks.final.record import FinalRecord, read_final
from tasks.inputs.opened import Inputs
from tasks.refine.shown import layer_ranks_shown
from tasks.running.retrying import IO_RETRIES, REQUESTS, SENDING
from tasks.storage.files import replacing, replacing_folder
from tasks.storage.folder import Revision, stage_details
from tasks.study.opened import Study
from tasks.study.plan import WARNING, PlannedRun
from tasks.study.stage import Stage
from tasks.tracking import runs as tracking

VERSIONED = ("mars-rank-search", "torch", "transformers", "peft", "accelerate", "prefect", "mlflow", "scipy", "numpy")


@dataclass(frozen=True)
class Results:
    """What there is to report of a study.

    finals: the final runs that have finished, by role. evaluated: whether the stored test scores are theirs.
    """

    study: Study
    finals: Mapping[str, Arm]
    evaluated: bool


@task(name="write-report", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def write_report(results: Results, command: str) -> str:
    """Write a revision's report as one HTML file; returns its path."""
    revision = results.study.revision
    data = gather(results, command)
    page, figures = render_with_figures(data)
    model_type = data.model["model_type"]
    with replacing_folder(figures_path(revision)) as temporary:
        for name, picture in figures.items():
            (temporary / f"{name}.svg").write_text(of_its_tower(picture, model_type), encoding="utf-8")
    path = report_path(revision)
    with replacing(path) as temporary:
        temporary.write_text(of_its_tower(page, model_type), encoding="utf-8")
    return str(path)


def gather(results: Results, command: str) -> ReportData:
    """Read everything that the report shows; stages that have not run are left out."""
    study, finals = results.study, results.finals
    config, revision = study.config, study.revision
    stored = _stored_runs(study)
    found = divergence(study, stored.runs)
    laws = replace(_laws(study), D_target=target_size(study.inputs))
    choice = read_choice(revision) if study.has_finished_once(SEARCH.name) else None
    trained = [replace(read_final(revision, arm), role=role) for role, arm in finals.items()]
    chosen = finals.get("chosen")
    return ReportData(
        study=revision.study.name,
        revision=revision.number,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        versions={name: version(name) for name in VERSIONED} | {"python": platform.python_version()},
        model=_model(study.inputs),
        data=study.inputs.data.summary() | {"dropped_too_long": study.inputs.dropped("train")},
        recipe=config.recipe.described(),
        metrics=_metrics(study, stored.runs, found),
        laws=laws.to_json(),
        choice=choice.to_json() if choice else None,
        adapter=study.address(final_folder(revision, chosen) / "adapter") if chosen else None,
        finals=[final.to_json() for final in trained],
        evaluation=_scores(revision) if results.evaluated else None,
        comparison=present_comparison(revision),
        forgetting=forgetting_table(study),
        tradeoffs=read_pairs(study),
        layer_ranks=layer_ranks_shown(revision),
        costs=costs(study, trained, stored.every_run),
        warnings=[*stored.missing, *_warnings(study, found.warnings)],
        notes=[note for note in _notes(study, laws, choice) if note not in found.warnings],
    )


@dataclass(frozen=True)
class _Stored:
    """Runs of the calibration that have finished. missing: a sentence where there are others."""

    every_run: Sequence[PlannedRun]
    missing: Sequence[str]

    @property
    def runs(self) -> list[PlannedRun]:
        """Without those of the range test."""
        return [run for run in self.every_run if run.part == "calibration"]


def _stored_runs(study: Study) -> _Stored:
    every = study.plan.every_run
    if study.has_finished_once(CALIBRATE.name):
        return _Stored(every, ())
    lacking = set(missing_runs(study))
    stored = [run for run in every if run not in lacking]
    return _Stored(stored, (f"{len(stored)} of {len(every)} calibration runs have finished: the others are not shown",))


def _metrics(study: Study, runs: Sequence[PlannedRun], found: Divergence) -> pd.DataFrame:
    """What laws and choice read; before the calibration has finished, what there is of it."""
    if study.has_finished_once(CALIBRATE.name):
        return collect_metrics(study, found)
    kept = [run for run in runs if run not in found.left_out]
    return metrics_of(study, kept) if kept else SCHEMA.empty_table().to_pandas()


def _laws(study: Study) -> FittedLaws:
    if study.has_finished_once(FIT.name):
        return read_laws(study.revision)
    return FittedLaws(
        None, {}, dict.fromkeys(("performance", "me", "llm"), "it has not been tried yet: run `mars fit`")
    )


def _scores(revision: Revision) -> dict[str, Mapping[str, Any]]:
    return {role: found.to_json() for role, found in read_evaluation(revision).items()}


def _warnings(study: Study, diverged: list[str]) -> list[str]:
    """What may change the decision: runs that diverged, very much data left out, another pair trained by a person."""
    left_out = [note.removeprefix(WARNING) for note in study.plan.notes if note.startswith(WARNING)]
    return [*diverged, *left_out, *approval_notes(study.revision)]


def _notes(study: Study, laws: FittedLaws, choice: Choice | None) -> list[str]:
    """How the results came about: sentences that are no warning, each once."""
    notes = [
        *(note for note in study.plan.notes if not note.startswith(WARNING)),
        *study.inputs.data.splits.notes,
        *laws.notes,
        *(choice.diagnostics.get("notes", ()) if choice else ()),
    ]
    return list(dict.fromkeys(notes))


def costs(study: Study, finals: Sequence[FinalRecord], stored: Sequence[PlannedRun]) -> list[dict[str, Any]]:
    """Seconds of each costly part, as the runs recorded them; stored: the calibration runs that have finished."""
    calibration = calibration_cost(study, stored)
    detail = f"{calibration.runs} runs of {study.plan.run_lengths}, peak memory {_gib(calibration.peak_memory_bytes)}"
    rows = [{"stage": "calibration", "seconds": calibration.seconds, "detail": detail}]
    for final in finals:
        detail = f"{final.steps} steps, peak memory {_gib(final.peak_memory_bytes)}"
        name = f"final fine-tune {RankPair(*(final.pair or (0, 0)))} ({final.role})"
        rows.append({"stage": name, "seconds": final.seconds, "detail": detail})
    for stage in ("fit", "search", "evaluate"):
        if study.revision.manifest(stage).is_file():
            rows.append({"stage": stage, "seconds": stage_details(study.revision, stage)["seconds"], "detail": ""})
    return rows


def _gib(amount: int) -> str:
    return f"{amount / 2**30:.2f} GiB"


def _model(inputs: Inputs) -> dict[str, Any]:
    return {
        "id": inputs.config.model,
        "model_type": read_model_type(inputs.config.model, trust_remote_code=inputs.config.loading.trust_remote_code),
        "own_code": inputs.config.loading.trust_remote_code,
        "groups": partition_summary(inputs.partition),
    }


def partition_summary(partition: Partition) -> dict[str, dict[str, int]]:
    """Adapted layers and LoRA parameters per unit of rank, by group."""
    return {
        group: {"layers": len(partition.group(group)), "parameters_per_rank": partition.parameters_per_rank(group)}
        for group in GROUPS
    }


@task(name="publish-to-mlflow", cache_policy=NO_CACHE, persist_result=False, **SENDING)
def publish_to_mlflow(revision: Revision, evaluated: bool, parent: str) -> None:
    """Put choice, laws, report with its figures, test scores and hours on the study's parent run."""
    choice = read_choice(revision) if choice_path(revision).is_file() else None
    if choice is not None:
        values: dict[str, float] = {"chosen_r_me": choice.pair[0], "chosen_r_llm": choice.pair[1]}
        stated = {"regret": choice.regret, "regret_bound": choice.regret_bound}
        values |= {name: value for name, value in stated.items() if value is not None}
        tracking.tag(parent, _comparable_tags(choice))
        tracking.tag(parent, {"mlflow.note.content": choice_markdown(choice)})  # what its page shows first
        tracking.log_values(parent, values)
    if evaluated:
        scores = read_evaluation(revision)
        tracking.log_values(parent, _against_uniform(scores))
        tracking.log_values(
            parent,
            {
                f"test_{name}_{role}": getattr(score.overall, name)
                for role, score in scores.items()
                for name in ("perplexity", "accuracy")
            }
            | {
                f"{name}_{role}": value
                for role, score in scores.items()
                for name, value in generated_values(score).items()
            },
        )
    for path in (laws_path(revision), choice_path(revision), report_path(revision)):
        if path.is_file():
            tracking.log_file(parent, path)
    if figures_path(revision).is_dir():
        tracking.log_file(parent, figures_path(revision), "figures")
    tracking.log_values(parent, revision_hours(revision))


def _comparable_tags(choice: Choice) -> dict[str, str]:
    """What tells studies apart in MLflow's table of runs: tags, since a later choice of the revision may be another."""
    best = min(choice.candidates, key=lambda one: math.inf if one.loss is None else one.loss, default=None)
    uniform = next((rival.pair for rival in choice.rivals if rival.name == "uniform"), None)
    return {
        "mars.choice": str(choice.pair),
        "mars.verdict": choice.verdict,
        "mars.predicted_best": "" if best is None else str(best.pair),
        "mars.uniform": "" if uniform is None else str(uniform),
        "mars.learning_rate": "" if choice.rates is None else str(choice.rates.learning_rates),
        "mars.reason": choice.reason,
    }


def _against_uniform(scores: Mapping[str, ModelScores]) -> dict[str, float]:
    """Relative test perplexity of the chosen pair over the uniform one, below 0 where it is better."""
    if "chosen" not in scores or "uniform" not in scores:
        return {}
    chosen, uniform = (scores[role].overall.perplexity for role in ("chosen", "uniform"))
    return {"test_perplexity_over_uniform": chosen / uniform - 1.0}


@task(name="publish-artifacts", cache_policy=NO_CACHE, persist_result=False, **REQUESTS)
def publish_artifacts(revision: Revision) -> None:
    """Show the laws, the candidates and the choice in the Prefect UI."""
    choice = read_choice(revision)
    laws = read_laws(revision)
    create_markdown_artifact(choice_markdown(choice), key="mars-choice", description="The chosen rank pair and why")
    create_table_artifact(_candidate_rows(choice), key="mars-candidates", description="Candidate pairs")
    create_table_artifact(_law_rows(laws), key="mars-laws", description="Fitted coefficients with intervals")


@task(name="show-report", cache_policy=NO_CACHE, persist_result=False, **REQUESTS)
def show_report(results: Results, parent: str) -> None:
    """Show in the Prefect UI what the study comes down to, and where its report is."""
    text = report_markdown(results, tracking.page_of(parent, report_path(results.study.revision).name))
    create_markdown_artifact(text, key="mars-report", description="The report, the test scores and the adapter")


def report_markdown(results: Results, page: str | None) -> str:
    """The study in short, for the Prefect UI.

    page: where MLflow shows the report.
    """
    study, revision, chosen = results.study, results.study.revision, results.finals.get("chosen")
    lines = [f"# Study {plain(revision.study.name)}, revision {revision.number:03d}"]
    if choice_path(revision).is_file():
        choice = read_choice(revision)
        lines.append(f"Rank pair (r_me, r_llm) = {choice.pair}, **{choice.verdict}**: {decision_text(choice)}")
    lines.extend(map(plain, approval_notes(revision)))
    if results.evaluated:
        lines.append(_scores_markdown(read_evaluation(revision), results.finals))
    if page:
        lines.append(f"[Report in MLflow]({page})")
    lines.append(f"Report: {code(study.address(report_path(revision)))}")
    if chosen:
        lines.append(f"Adapter: {code(study.address(final_folder(revision, chosen) / 'adapter'))}")
    return "\n\n".join(lines)


def _scores_markdown(scores: Mapping[str, ModelScores], finals: Mapping[str, Arm]) -> str:
    names = {role: f"{plain(role)} {arm}" for role, arm in finals.items()} | {"base": "before"}
    rows = [
        [names.get(role, role), f"{score.overall.perplexity:.4f}", f"{score.overall.accuracy:.1%}"]
        for role, score in scores.items()
    ]
    return markdown_table(["test split", "perplexity", "exact match"], rows)


def _candidate_rows(choice: Choice) -> list[dict[str, Any]]:
    return [
        {
            "r_me": candidate.pair[0],
            "r_llm": candidate.pair[1],
            "trainable parameters": candidate.trainable_parameters,
            "predicted": candidate.loss,
            "95% interval": str(candidate.loss_interval),
            "expected regret": candidate.expected_regret,
            "excess over the chosen pair": candidate.excess,
            "its 95% interval": str(candidate.excess_interval),
            "probability best": candidate.probability_best,
            **({"balanced": candidate.source.balanced} if has_balance(choice) else {}),
        }
        for candidate in choice.candidates
    ]


def _law_rows(laws: FittedLaws) -> list[dict[str, Any]]:
    fits = {"law P": laws.performance, **{f"law C {m}": fit for m, fit in laws.convergence.items()}}
    return [
        {"law": name, "coefficient": symbol, "value": value, "95% interval": str(list(fit.intervals[symbol]))}
        for name, fit in fits.items()
        if fit
        for symbol, value in fit.coefficients.items()
    ]


def _stages(study: Study) -> list[Stage]:
    """Stages that a report shows, as far as they have finished; one that was made with other settings is required."""
    begun = [stage for stage in (CALIBRATE, FIT, SEARCH) if study.has_finished_once(stage.name)]
    finals = [finetune_stage(arm) for arm in trained_arms(study).values()]
    return [*begun, *finals, *([EVALUATE] if is_evaluated(study) else [])]


def _inputs(study: Study, shown: str) -> str:
    compared = study.outputs_hash("compare") if study.has_finished_once("compare") else None
    found = [shown, [stage.name for stage in _stages(study)], compared]
    # Named, or absent, so that reports of studies without them stay as they are.
    upstream, refined = [forgetting_table(study), read_pairs(study)], layer_ranks_shown(study.revision)
    later = [*([upstream] if any(upstream) else []), *([{"layer_ranks": refined}] if refined else [])]
    partial = [] if study.has_finished_once(CALIBRATE.name) else [[run.run_id for run in _stored_runs(study).runs]]
    return content_hash([*found, *later, *partial])


REPORT = Stage("report", reads=_stages, inputs=_inputs, outputs=lambda study: (report_path(study.revision),))


def figures_path(revision: Revision) -> Path:
    """Where the report's figures lie as pictures."""
    return revision.path("figures")


def report_path(revision: Revision) -> Path:
    """Where the report lies."""
    return revision.path("report.html")
