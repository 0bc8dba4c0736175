"""Nightly recalibration: look, calibrate only what is new, compare with what stands, act on a material change."""

# No `from __future__ import annotations` here: Prefect loads a served flow's file as a module that it does not name
# in sys.modules, where annotations that are strings cannot be resolved.

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prefect import flow

from flows.stages import (
    JSON_RESULTS,
    accept_flow,
    calibrate_flow,
    evaluate_flow,
    final_pairs,
    finetune_flow,
    fit_flow,
    report_flow,
    search_flow,
)
from mars_core.drift import ChoiceDrift, Night, quiet_night_as_markdown
from mars_core.models.lora import RankPair
from tasks import tracking
from tasks.config import StudyConfig
from tasks.data import check_data
from tasks.nightly import Seen, find_drift, last_findings, look, publish_night, show_night, stored_runs
from tasks.progress import say
from tasks.revision import newest_revision
from tasks.standing import Standing, read_acceptance, read_standing
from tasks.storage.location import address, working_folder
from tasks.store import Revision, revisions

Trigger = Literal["propose", "run"]
Outcome = Literal["kept", "proposed", "refused", "accepted", "triggered"]
RunFinal = Callable[[StudyConfig], None]


@flow(name="mars-nightly", flow_run_name="nightly {config.study}", **JSON_RESULTS)
def nightly_flow(config: StudyConfig, trigger: Trigger = "propose") -> dict[str, Any]:
    """See whether data, model, recipe or settings changed; if so recalibrate, compare, and propose or run a final run.

    Args:
        config: the study.
        trigger: on a material change, `propose` a final run in the report, or `run` it.

    Returns:
        What was found and done.
    """
    return run_night(config, trigger, final_run_here)


def run_night(config: StudyConfig, trigger: Trigger, run_final: RunFinal) -> dict[str, Any]:
    """One night. `run_final` makes the final run of the newest revision's choice, or sets it off elsewhere."""
    started = time.perf_counter()
    seen = look(config)
    night = None if seen.unchanged else _recalibrate(config, seen)
    revision = newest_revision(working_folder(config.study))
    choice = night.choice if night else _stored_findings(config, revision, seen)
    outcome, done = _act(config, revision, choice, trigger, run_final)
    report = _publish(config, revision, night, choice, done)
    say(f"nightly: {outcome}. {choice.reason} {done}")
    return {
        "changes": list(seen.changes),
        "revision": revision.number,
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


def final_run_here(config: StudyConfig) -> None:
    """Make the final runs of the newest revision's choice in this process: train, score, accept, report."""
    for role, pair in final_pairs(config, newest_revision(working_folder(config.study))).items():
        finetune_flow(config, pair.r_me, pair.r_llm, role)
    evaluate_flow(config)
    accept_flow(config)
    report_flow(config, command="mars nightly")


def _recalibrate(config: StudyConfig, seen: Seen) -> Night:
    study = working_folder(config.study)
    check_data(config.data).raise_if_bad()  # before anything expensive
    before = set() if seen.opens_revision or not revisions(study) else stored_runs(newest_revision(study))
    calibrate_flow(config, new_revision=seen.opens_revision)
    fit_flow(config)
    search_flow(config)
    revision = newest_revision(study)
    return find_drift(config, revision, seen, stored_runs(revision) - before)


def _stored_findings(config: StudyConfig, revision: Revision, seen: Seen) -> ChoiceDrift:
    """What the last night found; found again where another final run has been accepted since."""
    return last_findings(revision) or find_drift(config, revision, seen, set()).choice


def _act(
    config: StudyConfig, revision: Revision, choice: ChoiceDrift, trigger: Trigger, run_final: RunFinal
) -> tuple[Outcome, str]:
    if not choice.needs_final_run:
        return "kept", "No final run is needed."
    standing, pair = read_standing(revision.study), final_pairs(config, revision)["chosen"]
    before = _decided(revision, pair, standing)
    if before is not None and before[0] == "refused":
        return before
    if trigger == "propose":
        return "proposed", f"A final run of {pair} is proposed; `mars nightly --trigger run` makes it."
    run_final(config)
    return _decided(revision, pair, standing) or ("triggered", f"A final run of {pair} was set off.")


def _decided(revision: Revision, pair: RankPair, standing: Standing | None) -> tuple[Outcome, str] | None:
    """What came of the pair's final run against what stood before it, None where there was none."""
    decision = read_acceptance(revision, pair, standing)
    if decision is None:
        return None
    if decision.accepted:
        return "accepted", f"The final run of {pair} was accepted: {decision.reason}."
    return "refused", f"The final run of {pair} was not accepted: {decision.reason}."


def _publish(config: StudyConfig, revision: Revision, night: Night | None, choice: ChoiceDrift, done: str) -> str:
    if night is None:
        show_night(quiet_night_as_markdown(revision.study.name, revision.number, choice, done))
        return address(config.study, revision.path("drift.md"))
    with tracking.study_run(working_folder(config.study), revision.number, config.model_dump(mode="json")) as parent:
        return address(config.study, Path(publish_night(config, revision, night, done, parent)))
