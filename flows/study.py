"""The whole pipeline: calibrate, fit, search, final fine-tune, evaluate, report."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.approval import AfterChoice, may_train
from flows.calibrate import calibrate_flow
from flows.place import Place, Where, place_of
from flows.results import JSON_RESULTS
from flows.stages import accept_flow, fit_flow, report_flow, search_flow
from tasks.report.summary import summarise
from tasks.running.kept import kept_open
from tasks.settings.find import find_study, require_full
from tasks.settings.study import StudyConfig
from tasks.study.lock import at_work_on
from tasks.study.opened import Study, open_study


@flow(name="mars-study", flow_run_name="study {config.short_name}", **JSON_RESULTS)
def study_flow(
    config: StudyConfig,
    new_revision: bool = False,
    after_choice: AfterChoice = "train",
    where: Where = "here",
    command: str = "mars run",
) -> dict[str, Any]:
    """Run every stage that is missing; returns the chosen pair, why, what it cost and where things are.

    Args:
        config: The study: model, data, recipe and what to search over.
        new_revision: Open a new revision in the study folder, for a new model, new data or a new recipe.
        after_choice: Train the chosen pair at once, ask a person first (this run pauses), or stop after the choice.
        where: Train in this process, or in runs of their own on the workers of pool mars-gpu.
        command: How the report says that the study was started.
    """
    with kept_open():
        calibrate_flow(config, new_revision, where)
        fit_flow(config)
        chosen = search_flow(config)
        study = open_study(config)
        if not may_train(study, after_choice):
            return {"pair": chosen, "stopped": "after the choice"}
        # Not before: a person who is asked may take days.
        with at_work_on(study.folder):
            train_and_report(study, place_of(where), command)
        return summarise(study)


@flow(name="mars-study-from-file", flow_run_name="study {file}", **JSON_RESULTS)
def study_from_file_flow(
    file: str,
    new_revision: bool = False,
    after_choice: AfterChoice = "train",
    where: Where = "here",
) -> dict[str, Any]:
    """Run a study that is written down already, as `mars run` does; returns what `study_flow` does.

    Args:
        file: Full path or URL of a STUDY.yaml, or of a study folder, as workers see it.
        new_revision: Open a new revision in the study folder, for a new model, new data or a new recipe.
        after_choice: Train the chosen pair at once, ask a person first (this run pauses), or stop after the choice.
        where: Train in this process, or in runs of their own on the workers of pool mars-gpu.
    """
    config = find_study(require_full(file))
    # In this very run: one that pauses is the one that a person looks at.
    return study_flow.fn(config, new_revision, after_choice, where, f"mars run {file}")


def train_and_report(study: Study, place: Place, command: str) -> None:
    """Make the final runs of the present choice: train, score, accept, report."""
    study.pull()
    place.train_finals(study)
    place.evaluate(study)
    accept_flow(study.config)
    report_flow(study.config, command)
