"""MLflow runs that are still open though what they track has ended: killed processes left them, or MLflow was away."""

from __future__ import annotations

from typing import Any

from tasks.calibration.curves import curves
from tasks.calibration.stored import read_metrics, run_files
from tasks.storage.files import read_json
from tasks.study.opened import Study
from tasks.study.plan import PlannedRun
from tasks.tracking import runs as tracking


def end_open_runs(study: Study, parent: str) -> None:
    """End the calibration's runs under `parent` that are still open: all of the plan are stored, nobody trains now.

    A process that dies after it has stored a run and before it has ended its MLflow run has nothing left to train; so
    nobody would end that run. One that MLflow did not take the last checkpoints of is sent them first.
    """
    stored = {_record(study, run)["mlflow_run_id"]: run for run in study.plan.every_run}
    for part in sorted({run.part for run in study.plan.every_run}):
        for run_id in tracking.open_children(parent, {"mars.kind": part}):
            if run_id in stored:
                _send_and_end(study, run_id, stored[run_id])
            else:
                tracking.end_child(run_id, "KILLED")


def _send_and_end(study: Study, run_id: str, run: PlannedRun) -> None:
    metrics, _ = run_files(study.revision, [run])
    if tracking.log_new_steps(run_id, curves(read_metrics(metrics)), "val_loss"):
        tracking.end_child(run_id, "FINISHED" if _record(study, run)["diverged_at"] is None else "FAILED")


def _record(study: Study, run: PlannedRun) -> dict[str, Any]:
    _, summary = run_files(study.revision, [run])
    record: dict[str, Any] = read_json(summary)
    return record
