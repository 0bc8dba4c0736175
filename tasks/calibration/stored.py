"""What has been stored of a calibration's runs: metrics, summaries, cost, and what is still missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mars_core.metrics.schema import PEAKS, from_table
from mars_core.rates import LearningRates
from mars_core.records import Record
from tasks.running.progress import show_message
from tasks.settings.recipe import RecipeConfig
from tasks.storage.files import file_hash, read_json
from tasks.storage.folder import Revision, read_manifest
from tasks.study.opened import Study
from tasks.study.plan import Part, PlannedRun
from tasks.study.rates import rates_path


def missing_runs(study: Study, runs: Sequence[PlannedRun] | None = None) -> list[PlannedRun]:
    """Those of the planned runs (or of some of them) whose metrics are not there yet or not whole."""
    return [run for run in (study.plan.every_run if runs is None else runs) if not _is_stored(study.revision, run)]


def _is_stored(revision: Revision, run: PlannedRun) -> bool:
    metrics, summary = run_files(revision, [run])
    if not (summary.is_file() and metrics.is_file()):
        return False
    try:
        record = read_json(summary)
        # Summaries of before it was written have no hash.
        if record.get("metrics_sha256", "") not in ("", file_hash(metrics)):
            raise ValueError("its hash is not the one that its summary has")
        whole = (
            record["diverged_at"] is not None or tuple(read_metrics(metrics)["step"]) == run.schedule.checkpoint_steps
        )
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:  # pyarrow's errors are among them
        show_message(f"calibrate: {metrics} or its summary is damaged ({error}): the run is trained again")
        return False
    return whole


def read_metrics(path: Path) -> pd.DataFrame:
    """Checkpoint metrics of one run, validated.

    Raises:
        ValueError: the file is damaged, or its rows are none of a run.
    """
    try:
        # What pandas notes in a file is not needed, and may be damaged too.
        return from_table(pq.read_table(path).replace_schema_metadata(None))
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is not a readable Parquet file ({error}): delete it and run its stage again"
        ) from error


def with_peaks(metrics: pd.DataFrame, rates: LearningRates) -> pd.DataFrame:
    """Metrics with these peak learning rates, the recipe's, where a run of before they were stored names none."""
    return metrics.assign(**{name: metrics[name].fillna(rate) for name, rate in zip(PEAKS, rates, strict=True)})


def stored_metrics(revision: Revision) -> pd.DataFrame:
    """Metrics of the runs of a finished calibration that did not diverge, without planning it again.

    Raises:
        ValueError: there are none.
    """
    manifest = read_manifest(revision, "calibrate")
    if manifest is None:
        raise ValueError(f"calibration has not finished in {revision.folder}: run `mars calibrate` first")
    summaries = [revision.path(name) for name in manifest.outputs if name.endswith(".json")]
    runs = [path for path in summaries if path.parent == revision.path("calibration")]
    kept = [path.with_suffix(".parquet") for path in runs if read_json(path)["diverged_at"] is None]
    if not kept:
        raise ValueError(f"every calibration run in {revision.folder} diverged: lower recipe.learning_rate")
    recipe = RecipeConfig.model_validate(read_json(revision.path("revision.json"))["recipe"]).as_recipe()
    return with_peaks(pd.concat([read_metrics(path) for path in kept], ignore_index=True), recipe.learning_rates)


def calibration_outputs(study: Study) -> list[Path]:
    """Files that a finished calibration consists of."""
    decided = [rates_path(study.revision)] if study.plan.outline else []
    return [*run_files(study.revision, study.plan.every_run), *decided]


def run_files(revision: Revision, runs: Sequence[PlannedRun]) -> list[Path]:
    """Files of finished runs, the summary of each last."""
    return [path(revision, run.run_id, run.part) for run in runs for path in (metrics_path, summary_path)]


@dataclass(frozen=True)
class CalibrationCost(Record):
    """What the planned runs took in training and evaluation, as they recorded it. notes: those of the plan."""

    seconds: float
    peak_memory_bytes: int
    runs: int
    steps: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Expected:
    """What some runs are expected to take, by a measurement of a few steps; runs: their ids."""

    runs: tuple[str, ...]
    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Compared(Record):
    """Expectations of the calibration's steps, and what their runs then took."""

    expected_runs: tuple[str, ...]
    expected_seconds: float
    expected_memory_bytes: int
    seconds_of_expected_runs: float


def calibration_cost(study: Study, runs: Sequence[PlannedRun] | None = None) -> CalibrationCost:
    """What the planned runs (or some of them) took in training and evaluation, as they recorded it."""
    plan = study.plan
    runs = plan.every_run if runs is None else runs
    summaries = [read_json(summary_path(study.revision, run.run_id, run.part)) for run in runs]
    return CalibrationCost(
        seconds=sum(summary["wall_seconds"] for summary in summaries),
        peak_memory_bytes=max((summary["peak_memory_bytes"] for summary in summaries), default=0),
        runs=len(runs),
        steps=plan.steps,
        notes=tuple(plan.notes),
    )


def beside_taken(study: Study, expectations: Sequence[Expected | None]) -> Compared | None:
    """Expectations of the calibration's steps with what their runs then took; None where there are none."""
    known = [expected for expected in expectations if expected]
    if not known:
        return None
    ids = [run for expected in known for run in expected.runs]
    runs = [run for run in study.plan.every_run if run.run_id in ids]
    summaries = [read_json(summary_path(study.revision, run.run_id, run.part)) for run in runs]
    return Compared(
        expected_runs=tuple(ids),
        expected_seconds=sum(expected.seconds for expected in known),
        expected_memory_bytes=max(expected.memory_bytes for expected in known),
        seconds_of_expected_runs=sum(summary["wall_seconds"] for summary in summaries),
    )


def describe_cost(cost: CalibrationCost, compared: Compared | None) -> str:
    """What calibration took, beside what was expected, in one line."""
    took = f"{cost.seconds:.0f} s and {cost.peak_memory_bytes / 1e9:.1f} GB, the process included"
    if compared is None:
        return took
    expected = f"expected {compared.expected_seconds:.0f} s"
    if len(compared.expected_runs) == cost.runs:
        return f"{took}; {expected}"
    fresh = f"{len(compared.expected_runs)} of the {cost.runs} runs"
    return f"{took}; {expected} for {fresh}, which took {compared.seconds_of_expected_runs:.0f} s"


def metrics_path(revision: Revision, run: str, part: Part = "calibration") -> Path:
    """Checkpoint metrics of a run."""
    return _folder(revision, part) / f"{run}.parquet"


def summary_path(revision: Revision, run: str, part: Part = "calibration") -> Path:
    """What else is kept of a run: whether it diverged, time and memory, its MLflow run."""
    return _folder(revision, part) / f"{run}.json"


def _folder(revision: Revision, part: Part) -> Path:
    return revision.path("calibration") if part == "calibration" else revision.path("calibration", part)
