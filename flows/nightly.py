"""Nightly recalibration: look, calibrate only what is new, compare with what stands, act on a material change."""

# No `from __future__ import annotations` here: Prefect loads a served flow's file as a module that it does not name
# in sys.modules, where annotations that are strings cannot be resolved.

import time
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.states import Completed

from flows.calibrate import calibrate_flow
from flows.place import Where, place_of
from flows.results import JSON_RESULTS
from flows.stages import fit_flow, search_flow
from flows.study import train_and_report
from mars_core.drift import ChoiceDrift, Night, quiet_night_as_markdown
from tasks.final.arm import Arm
from tasks.final.pairs import final_arms
from tasks.inputs.data import check_data
from tasks.nightly.champion import Champion, present_acceptance, read_champion
from tasks.nightly.run import Seen, find_drift, last_findings, look, publish_night, show_night, stored_runs
from tasks.running.kept import kept_open
from tasks.running.progress import show_message
from tasks.settings.find import find_study, require_full
from tasks.settings.study import StudyConfig
from tasks.storage.folder import revisions
from tasks.storage.location import working_folder
from tasks.study.lock import StudyBusyError, at_work_on
from tasks.study.opened import Study, open_study, reopen_study
from tasks.study.parent_run import parent_run
from tasks.study.revision import current_revision

Trigger = Literal["propose", "run"]
Outcome = Literal["kept", "proposed", "refused", "accepted", "triggered"]


@flow(name="mars-nightly", flow_run_name="nightly {study}", **JSON_RESULTS)
def nightly_flow(study: str, trigger: Trigger = "propose", where: Where = "here") -> dict[str, Any]:
    """See whether data, model, recipe or settings changed; if so recalibrate, compare, and propose or run a final run.

    While another night or another training of the study is under way, this one ends, and says that it was skipped.

    Args:
        study: The study's folder, or its STUDY.yaml: a full path or a URL. Its settings are read anew every night.
        trigger: On a material change, `propose` a final run in the report, or `run` it.
        where: Train in this process, or in runs of their own on the workers of pool mars-gpu.

    Returns:
        What was found and done.
    """
    config = find_study(require_full(study))
    try:
        with kept_open(), at_work_on(working_folder(config.study)):
            return _night(config, trigger, where)
    except StudyBusyError as error:
        skipped: dict[str, Any] = _skipped(str(error))
        return skipped


def _skipped(why: str) -> Any:
    """A state of its own name, for the list of runs in the UI; whoever called the flow gets the dictionary."""
    show_message(f"nightly: skipped. {why}")
    return Completed(name="Skipped", message=why, data={"outcome": "skipped", "reason": why})


def _night(config: StudyConfig, trigger: Trigger, where: Where) -> dict[str, Any]:
    started = time.perf_counter()
    seen = look(config)
    night = None if seen.unchanged else _recalibrate(config, seen, where)
    study = reopen_study(config) if night is None else open_study(config)
    choice = night.choice if night else _stored_findings(study, seen)
    outcome, done = _act(study, choice, trigger, where)
    report = _publish(study, night, choice, done)
    show_message(f"nightly: {outcome}. {choice.reason} {done}")
    return {
        "changes": list(seen.changes),
        "revision": study.revision.number,
        "trained_runs": night.trained if night else 0,
        "adopted_runs": night.adopted if night else 0,
        "standing": list(choice.standing) if choice.standing else None,
        "chosen": list(choice.chosen),
        "verdict": choice.verdict,
        "reason": choice.reason,
        "outcome": outcome,
        "done": done,
        "report": report,
        "seconds": time.perf_counter() - started,
    }


def _recalibrate(config: StudyConfig, seen: Seen, where: Where) -> Night:
    study = working_folder(config.study)
    check_data(config.data).raise_if_bad()  # before anything expensive
    before = set() if seen.opens_revision or not revisions(study) else stored_runs(current_revision(config))
    calibrate_flow(config, seen.opens_revision, where)
    fit_flow(config)
    search_flow(config)
    opened = open_study(config)
    return find_drift(opened, seen, stored_runs(opened.revision) - before)


def _stored_findings(study: Study, seen: Seen) -> ChoiceDrift:
    """What the last night found; found again where another final run has been accepted since."""
    return last_findings(study.revision) or find_drift(study, seen, set()).choice


def _act(study: Study, choice: ChoiceDrift, trigger: Trigger, where: Where) -> tuple[Outcome, str]:
    if not choice.needs_final_run:
        return "kept", "No final run is needed."
    champion, arm = read_champion(study.folder), final_arms(study)["chosen"]
    before = _decided(study, arm, champion)
    if before is not None and before[0] == "refused":
        return before
    if trigger == "propose":
        return "proposed", f"A final run of {arm} is proposed; `mars nightly --trigger run` makes it."
    train_and_report(study, place_of(where), "mars nightly")
    return _decided(study, arm, champion) or ("triggered", f"A final run of {arm} was set off.")


def _decided(study: Study, arm: Arm, champion: Champion | None) -> tuple[Outcome, str] | None:
    """What came of the pair's final run against what stood before it, None where there was none."""
    decision = present_acceptance(study, arm, champion)
    if decision is None:
        return None
    if decision.accepted:
        return "accepted", f"The final run of {arm} was accepted: {decision.reason}."
    return "refused", f"The final run of {arm} was not accepted: {decision.reason}."


def _publish(study: Study, night: Night | None, choice: ChoiceDrift, done: str) -> str:
    if night is None:
        show_night(quiet_night_as_markdown(study.folder.name, study.revision.number, choice, done))
        return study.address(study.path("drift.md"))
    with parent_run(study) as parent:
        return study.address(Path(publish_night(study, night, done, parent)))
