"""Take over calibration runs that an older revision has already trained: equal run_id, equal checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.parquet as pq

from mars_core.metrics.schema import to_table
from tasks.calibration.stored import missing_runs, read_metrics, run_files
from tasks.storage.files import file_hash, read_json, replacing, write_json
from tasks.storage.folder import Revision, revisions
from tasks.study.opened import Study
from tasks.study.plan import PlannedRun


def reuse_runs(study: Study, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Copy those of the runs that are missing here and whole in an older revision; returns them.

    A run_id is a hash of everything that decides a run, so a run that carries it is the run that would be trained.
    The rows get this revision's number; the run's record says where it comes from. Nothing is taken twice.
    """
    reused: list[PlannedRun] = []
    others = [known for known in revisions(study.folder) if known.number != study.revision.number]
    for older in reversed(others):
        missing = missing_runs(study, runs)
        if not missing:
            break
        elsewhere = {run.run_id for run in missing_runs(study.at(older), missing)}
        available = [run for run in missing if run.run_id not in elsewhere]
        for run in available:
            _copy(older, study.revision, run)
        reused += available
    return reused


def _copy(older: Revision, revision: Revision, run: PlannedRun) -> None:
    metrics, summary = run_files(older, [run])
    to_metrics, to_summary = run_files(revision, [run])
    rows = read_metrics(metrics).assign(revision=revision.number)
    with replacing(to_metrics) as temporary:
        pq.write_table(to_table(rows), temporary)
    record = read_json(summary)  # last: a run counts as stored only once both files are there
    changed = {"adopted_from": record.get("adopted_from", older.number), "metrics_sha256": file_hash(to_metrics)}
    write_json(to_summary, record | changed)
