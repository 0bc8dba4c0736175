"""MLflow runs that a killed process left open though what they track has ended."""

from __future__ import annotations

from tasks.calibration.stored import summary_path
from tasks.storage.files import read_json
from tasks.study.opened import Study
from tasks.tracking import runs as tracking


def end_open_runs(study: Study, parent: str) -> None:
    """End the calibration's runs under `parent` that are still open: all of the plan are stored, nobody trains now.

    A process that dies after it has stored a run and before it has ended its MLflow run has nothing left to train; so
    nobody would end that run.
    """
    ended = {}
    for run in study.plan.every_run:
        record = read_json(summary_path(study.revision, run.run_id, run.part))
        ended[record["mlflow_run_id"]] = "FINISHED" if record["diverged_at"] is None else "FAILED"
    for part in sorted({run.part for run in study.plan.every_run}):
        for run_id in tracking.open_children(parent, {"mars.kind": part}):
            tracking.end_child(run_id, ended.get(run_id, "KILLED"))
