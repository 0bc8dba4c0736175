"""What a revision cost: the hours that its runs held a GPU, or a process on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.calibration.stored import run_files
from tasks.running.retrying import SENDING
from tasks.storage.files import read_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.plan import PlannedRun
from tasks.tracking import runs as tracking
from tasks.tracking.datasets import log_datasets

GPU_HOURS, CPU_HOURS = "gpu_hours", "cpu_hours"


def device_hours(seconds: float, device: str, held: int = 1) -> dict[str, float]:
    """Seconds on a device as hours under the name of its kind; held: how many GPUs, or processes on the CPU."""
    return {CPU_HOURS if device == "cpu" else GPU_HOURS: held * seconds / 3600}


def revision_hours(revision: Revision) -> dict[str, float]:
    """Hours of everything trained in a revision so far; runs taken over from older revisions cost nothing here."""
    parts = [
        *(
            _run_hours(read_json(path), path.with_suffix(".parquet"))
            for folder in (revision.path("calibration"), revision.path("calibration", "range-test"))
            for path in folder.glob("*.json")
        ),
        *(final_hours(read_json(path)) for path in revision.path("final").glob("*/training.json")),
        *(final_hours(read_json(path)) for path in revision.path("final").glob("*/rates/*.json")),
    ]
    return {kind: sum(part.get(kind, 0.0) for part in parts) for kind in (GPU_HOURS, CPU_HOURS)}


def final_hours(record: Mapping[str, Any]) -> dict[str, float]:
    """Hours of a final run over all that it held, from its record; none where an older record names no device."""
    if "device" not in record:
        return {}
    return device_hours(record["seconds"], record["device"], record.get("devices", record.get("processes", 1)))


def _run_hours(summary: Mapping[str, Any], metrics: Path) -> dict[str, float]:
    if "adopted_from" in summary or not metrics.is_file():
        return {}
    devices = pq.read_table(metrics, columns=["device"])["device"].to_pylist()
    return device_hours(summary["wall_seconds"], devices[0]) if devices else {}


@task(name="publish-calibration", cache_policy=NO_CACHE, persist_result=False, **SENDING)
def publish_calibration(study: Study, trained: Sequence[PlannedRun], parent: str) -> None:
    """Put datasets and hours on the MLflow runs of what was just trained, and the revision's on its parent run."""
    log_datasets(parent, study.inputs)
    tracking.log_values(parent, revision_hours(study.revision))
    for run in trained:
        metrics, summary = run_files(study.revision, [run])
        record = read_json(summary)
        if not tracking.is_tracked(record["mlflow_run_id"]):  # another machine trained it meanwhile
            continue
        log_datasets(record["mlflow_run_id"], study.inputs, ("train", "validation"))
        tracking.log_values(record["mlflow_run_id"], _run_hours(record, metrics))
