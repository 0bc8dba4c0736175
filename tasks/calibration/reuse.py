"""Take over calibration runs that an older revision has already trained: equal run_id, equal checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from mars_core.metrics.schema import to_table
from tasks.calibration.plan import CalibrationPlan, PlannedRun
from tasks.calibration.stored import calibration_outputs, missing_runs, read_metrics
from tasks.storage.files import read_json, replacing, write_json
from tasks.storage.folder import Revision, revisions


def adopt_runs(revision: Revision, plan: CalibrationPlan) -> list[PlannedRun]:
    """Copy planned runs that are missing here and whole in an older revision; returns them.

    A run_id is a hash of everything that decides a run, so a run that carries it is the run that would be trained.
    The rows get this revision's number; the run's record says where it comes from. Nothing is taken twice.
    """
    adopted: list[PlannedRun] = []
    for older in reversed([known for known in revisions(revision.study) if known.number != revision.number]):
        missing = missing_runs(revision, plan)
        if not missing:
            break
        elsewhere = {run.run_id for run in missing_runs(older, plan)}
        available = [run for run in missing if run.run_id not in elsewhere]
        for run in available:
            _copy(older, revision, plan, run)
        adopted += available
    return adopted


def _copy(older: Revision, revision: Revision, plan: CalibrationPlan, run: PlannedRun) -> None:
    metrics, summary = _files(older, plan, run)
    to_metrics, to_summary = _files(revision, plan, run)
    rows = read_metrics(metrics).assign(revision=revision.number)
    with replacing(to_metrics) as temporary:
        pq.write_table(to_table(rows), temporary)
    record = read_json(summary)  # last: a run counts as stored only once both files are there
    write_json(to_summary, {**record, "adopted_from": record.get("adopted_from", older.number)})


def _files(revision: Revision, plan: CalibrationPlan, run: PlannedRun) -> tuple[Path, Path]:
    metrics, summary = calibration_outputs(revision, replace(plan, runs=(run,)))
    return metrics, summary
