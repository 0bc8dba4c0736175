"""The whole pipeline: calibrate, fit, search, final fine-tune, evaluate, report."""

from __future__ import annotations

from typing import Any

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
from tasks.config import StudyConfig
from tasks.revision import newest_revision
from tasks.storage.location import working_folder
from tasks.summary import summarise


@flow(name="mars-study", flow_run_name="study {config.study}", **JSON_RESULTS)
def study_flow(config: StudyConfig, new_revision: bool = False, command: str = "mars run") -> dict[str, Any]:
    """Run every stage that is missing; returns the chosen pair, why, what it cost and where things are."""
    calibrate_flow(config, new_revision)
    fit_flow(config)
    search_flow(config)
    revision = newest_revision(working_folder(config.study))
    for role, pair in final_pairs(config, revision).items():
        finetune_flow(config, pair.r_me, pair.r_llm, role)
    evaluate_flow(config)
    accept_flow(config)
    report_flow(config, command)
    return summarise(config, revision)
