"""What has been stored of a calibration's runs: metrics, summaries, cost, and what is still missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from mars_core.metrics.schema import from_table
from tasks.storage.files import read_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.plan import PlannedRun


def missing_runs(study: Study, runs: Sequence[PlannedRun] | None = None) -> list[PlannedRun]:
    """Those of the planned runs (or of some of them) whose metrics are not there yet or not whole."""
    return [run for run in (study.plan.runs if runs is None else runs) if not _is_stored(study.revision, run)]


def _is_stored(revision: Revision, run: PlannedRun) -> bool:
    summary, metrics = summary_path(revision, run.run_id), metrics_path(revision, run.run_id)
    if not (summary.is_file() and metrics.is_file()):
        return False
    if read_json(summary)["diverged_at"] is not None:
        return True
    try:
        return tuple(read_metrics(metrics)["step"]) == run.schedule.checkpoint_steps
    except ValueError:  # a damaged file (pyarrow's errors are ValueErrors too): the run is trained again
        return False


def read_metrics(path: Path) -> pd.DataFrame:
    """Checkpoint metrics of one run, validated."""
    return from_table(pq.read_table(path))


def collect_metrics(study: Study) -> tuple[pd.DataFrame, list[str]]:
    """Metrics of all planned runs that did not diverge, and a note on each that did."""
    frames, notes = [], []
    for run in study.plan.runs:
        diverged_at = read_json(summary_path(study.revision, run.run_id))["diverged_at"]
        if diverged_at is None:
            frames.append(read_metrics(metrics_path(study.revision, run.run_id)))
        else:
            notes.append(f"run {run.name} diverged at step {diverged_at} and is left out of the laws")
    if not frames:
        raise ValueError("every calibration run diverged: lower recipe.learning_rate and open a new revision")
    return pd.concat(frames, ignore_index=True), notes


def diverged_pairs(study: Study) -> dict[tuple[int, int], str]:
    """Pairs with a planned run that diverged, each with the words for those runs.

    A pair of several seeds is among them with one: what its other seeds reached is what it reaches where it holds.
    """
    found: dict[tuple[int, int], list[str]] = {}
    for run in study.plan.runs:
        diverged_at = read_json(summary_path(study.revision, run.run_id))["diverged_at"]
        if diverged_at is not None:
            size = "" if run.schedule.size is None else f" and size {run.schedule.size}"
            words = f"seed {run.seed}{size} at step {diverged_at}"
            found.setdefault(run.pair, []).append(words)
    return {pair: ", ".join(runs) for pair, runs in found.items()}


def stored_metrics(revision: Revision) -> pd.DataFrame:
    """Metrics of the runs of a finished calibration that did not diverge, without planning it again.

    Raises:
        ValueError: there are none.
    """
    manifest = revision.manifest("calibrate")
    if not manifest.is_file():
        raise ValueError(f"calibration has not finished in {revision.folder}: run `mars calibrate` first")
    summaries = [revision.path(name) for name in read_json(manifest)["outputs"] if name.endswith(".json")]
    kept = [path.with_suffix(".parquet") for path in summaries if read_json(path)["diverged_at"] is None]
    if not kept:
        raise ValueError(f"every calibration run in {revision.folder} diverged: lower recipe.learning_rate")
    return pd.concat([read_metrics(path) for path in kept], ignore_index=True)


def calibration_outputs(study: Study) -> list[Path]:
    """Files that a finished calibration consists of."""
    return run_files(study.revision, study.plan.runs)


def run_files(revision: Revision, runs: Sequence[PlannedRun]) -> list[Path]:
    """Files of finished runs, the summary of each last."""
    return [path(revision, run.run_id) for run in runs for path in (metrics_path, summary_path)]


def calibration_cost(study: Study) -> dict[str, Any]:
    """What the planned runs took in training and evaluation, as they recorded it."""
    summaries = [read_json(summary_path(study.revision, run.run_id)) for run in study.plan.runs]
    return {
        "seconds": sum(summary["wall_seconds"] for summary in summaries),
        "peak_memory_bytes": max(summary["peak_memory_bytes"] for summary in summaries),
        "runs": len(study.plan.runs),
        "steps": study.plan.steps,
        "notes": list(study.plan.notes),
    }


def beside_taken(revision: Revision, expected: Mapping[str, Any]) -> dict[str, Any]:
    """An expectation with what its runs then took; nothing where there is none."""
    if not expected:
        return {}
    summaries = [read_json(revision.path("calibration", f"{run}.json")) for run in expected["expected_runs"]]
    return {**expected, "seconds_of_expected_runs": sum(summary["wall_seconds"] for summary in summaries)}


def describe_cost(cost: Mapping[str, Any]) -> str:
    """What calibration took, beside what was expected, in one line."""
    took = f"{cost['seconds']:.0f} s and {cost['peak_memory_bytes'] / 1e9:.1f} GB, the process included"
    if "expected_seconds" not in cost:
        return took
    expected = f"expected {cost['expected_seconds']:.0f} s"
    if len(cost["expected_runs"]) == cost["runs"]:
        return f"{took}; {expected}"
    fresh = f"{len(cost['expected_runs'])} of the {cost['runs']} runs"
    return f"{took}; {expected} for {fresh}, which took {cost['seconds_of_expected_runs']:.0f} s"


def metrics_path(revision: Revision, run: str) -> Path:
    """Checkpoint metrics of a run."""
    return revision.path("calibration", f"{run}.parquet")


def summary_path(revision: Revision, run: str) -> Path:
    """What else is kept of a run: whether it diverged, time and memory, its MLflow run."""
    return revision.path("calibration", f"{run}.json")
