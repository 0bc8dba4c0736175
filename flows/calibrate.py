"""Calibration as a flow: train the runs that are missing, here or on workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows.place import Place, Where, place_of
from flows.results import JSON_RESULTS
from tasks.calibration.hours import publish_calibration
from tasks.calibration.open_runs import end_open_runs
from tasks.calibration.packs import drop_pack_states
from tasks.calibration.reuse import reuse_runs
from tasks.calibration.stage import CALIBRATE
from tasks.calibration.steps import ALL_AT_ONCE, Step, calibration_steps
from tasks.calibration.stored import Expected, beside_taken, calibration_cost, describe_cost, missing_runs
from tasks.inputs.opened import open_inputs
from tasks.running.kept import kept_open
from tasks.running.progress import show_message
from tasks.settings.study import StudyConfig
from tasks.storage.location import working_folder
from tasks.study.lock import at_work_on
from tasks.study.opened import Study, open_study
from tasks.study.parent_run import parent_run
from tasks.study.plan import plan_calibration


@flow(name="mars-calibrate", flow_run_name="calibrate {config.short_name}", **JSON_RESULTS)
def calibrate_flow(config: StudyConfig, new_revision: bool = False, where: Where = "here") -> str:
    """Train the calibration runs that are missing; returns the revision's folder.

    Args:
        config: The study.
        new_revision: Open a new revision in the study folder, for a new model, new data or a new recipe.
        where: Train in this process, or each pack in a run of its own on the workers of pool mars-gpu.
    """
    place = place_of(where)
    with kept_open(), at_work_on(working_folder(config.study)):
        place.check(config)
        plan_calibration(open_inputs(config))  # refuses what cannot be planned before a revision is opened for it
        study = open_study(config, new=new_revision)
        study.plan_again()
        for note in study.plan.notes:
            show_message(f"note: {note}")
        CALIBRATE.run(study, lambda: _train_missing(study, place))
    return study.address(study.revision.folder)


def _train_missing(study: Study, place: Place) -> Mapping[str, Any]:
    """Train what is missing, step by step; returns what the calibration cost."""
    with parent_run(study) as parent:
        expected = [train_step(study, place, step, parent) for step in calibration_steps(study)]
        end_open_runs(study, parent)
    drop_pack_states(study)
    cost, compared = calibration_cost(study), beside_taken(study, expected)
    show_message(f"calibrate: took {describe_cost(cost, compared)}")
    return cost.to_json() | (compared.to_json() if compared else {})


def train_step(study: Study, place: Place, step: Step, parent: str) -> Expected | None:
    """Take runs over from older revisions, train the others; returns what they were expected to take."""
    reused = reuse_runs(study, step.runs)
    if reused:
        show_message(f"calibrate: {len(reused)} runs taken over from older revisions")
    missing = missing_runs(study, step.runs)
    name = "" if step.name == ALL_AT_ONCE else f"{step.name}: "
    show_message(f"calibrate: {name}{len(missing)} of {len(step.runs)} runs to train, {step.run_lengths} each")
    packs, expected = place.plan_packs(study, missing)
    place.train_packs(study, packs, parent, step.name)
    study.pull()  # the runs that other machines trained
    _insist_on_every_run(study, step)
    publish_calibration(study, missing, parent)
    return expected


def _insist_on_every_run(study: Study, step: Step) -> None:
    missing = missing_runs(study, step.runs)
    if missing:
        raise RuntimeError(
            f"{len(missing)} of {len(step.runs)} calibration runs are missing or not measured at steps "
            f"{list(missing[0].schedule.checkpoint_steps)} after all packs have ended, first {missing[0].name} in "
            f"{study.path('calibration')}: run `mars calibrate` again, it trains those"
        )
