"""Calibration: plan the runs of every rank pair and seed, train what is missing, store checkpoint metrics."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core import __version__
from mars_core.metrics.identity import content_hash, run_id
from mars_core.metrics.schema import SCHEMA, SCHEMA_VERSION, from_table, to_table
from mars_core.models.lora import RankPair, check_ranks, trainable_parameters
from mars_core.models.partition import GROUPS, Partition, check_against_forward, layers_used_by_forward
from mars_core.search.constraints import allowed_pairs
from mars_core.training.calibration import CalibrationRun, train_run
from mars_core.training.schedule import geometric_steps
from tasks import tracking
from tasks.config import StudyConfig
from tasks.data import (
    StudyData,
    calibration_set,
    dropped_samples,
    load_data,
    scored_batches,
    train_batches,
    usable_samples,
    validation_set,
)
from tasks.progress import progress_bar
from tasks.resources import base_model, device_name, model_fingerprint, resolve_device
from tasks.revision import recipe_hash
from tasks.storage.location import working_folder
from tasks.storage.study import publish_part, pull
from tasks.store import Revision, read_json, replacing, write_json

CHECKPOINTS_PER_DOUBLING = 2


@dataclass(frozen=True)
class PlannedRun:
    """One calibration run to be: its identity, pair and seed."""

    run_id: str
    pair: RankPair
    seed: int

    @property
    def name(self) -> str:
        """How the run is called where people see it."""
        return f"{self.pair.slug} seed{self.seed}"


@dataclass(frozen=True)
class PlannedPack:
    """Calibration runs that one worker trains together over one frozen backbone."""

    runs: tuple[PlannedRun, ...]

    @property
    def pack_id(self) -> str:
        """Hash of the runs in it, whatever their order."""
        return content_hash(sorted(run.run_id for run in self.runs))

    @property
    def name(self) -> str:
        """How the pack is called where people see it."""
        first, *others = self.runs
        return f"{first.name} and {len(others)} more" if others else first.name


@dataclass(frozen=True)
class CalibrationPlan:
    """All runs of a revision and what they share.

    horizon: optimizer steps of a run and of its schedule. checkpoint_steps: steps at which it is evaluated.
    notes: what the user should know, such as a largest size capped by the dataset.
    """

    runs: tuple[PlannedRun, ...]
    horizon: int
    checkpoint_steps: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def inputs_hash(self) -> str:
        """Hash of everything that decides the metrics of the whole calibration."""
        return content_hash([sorted(run.run_id for run in self.runs), self.checkpoint_steps])


def plan_calibration(config: StudyConfig) -> CalibrationPlan:
    """Lay out the calibration of a study without training anything.

    Raises:
        ValueError: the dataset is smaller than the smallest size, or a rank does not fit the model.
    """
    data = load_data(config.data)
    base = base_model(config.model, config.device, config.recipe.dtype)
    pairs = [
        RankPair(r_me, r_llm) for r_me in sorted(config.calibration.ranks) for r_llm in sorted(config.calibration.ranks)
    ]
    ranks = config.available_ranks
    count = partial(_count_parameters, base.partition)
    allowed_pairs(ranks, ranks, config.search.as_constraints(), count)  # raises where they leave none
    for pair in [*pairs, *(RankPair(rank, rank) for rank in config.available_ranks)]:
        check_ranks(base.partition, pair)
    horizon, notes = _horizon(config)
    _check_partition(config)
    first = math.ceil(config.calibration.smallest_size / config.recipe.batch_size)
    steps = geometric_steps(first, horizon, per_doubling=CHECKPOINTS_PER_DOUBLING)
    runs = tuple(
        PlannedRun(_identity(config, data, base.partition, pair, seed, horizon), pair, seed)
        for seed in config.calibration.seeds
        for pair in pairs
    )
    return CalibrationPlan(runs, horizon, steps, notes)


def _count_parameters(partition: Partition, pair: tuple[int, int]) -> int:
    return trainable_parameters(partition, RankPair(*pair))


def _horizon(config: StudyConfig) -> tuple[int, tuple[str, ...]]:
    available, wanted = len(usable_samples(config, "train")), config.calibration.samples
    smallest = max(config.calibration.smallest_size, config.recipe.batch_size)
    notes = [
        f"{dropped} {split} samples are longer than {config.recipe.max_tokens} tokens and left out"
        for split in ("train", "validation", "test")
        if (dropped := dropped_samples(config, split))
    ]
    if available < smallest:
        raise ValueError(
            f"the training set has {available} usable samples, fewer than the smallest calibration size "
            f"{smallest}: add data, or lower calibration.smallest_size (now {config.calibration.smallest_size}) "
            f"or recipe.batch_size (now {config.recipe.batch_size})"
        )
    if available < wanted:
        notes.append(f"largest size capped by the dataset: {available} instead of {wanted} samples")
    return min(available, wanted) // config.recipe.batch_size, tuple(notes)


def _identity(
    config: StudyConfig, data: StudyData, partition: Partition, pair: RankPair, seed: int, horizon: int
) -> str:
    layers = [layer.name for group in GROUPS for layer in partition.group(group)]
    return run_id(
        model_id=model_fingerprint(config.model),
        data_hash=data.data_hash,
        recipe_hash=recipe_hash(config),
        r_me=pair.r_me,
        r_llm=pair.r_llm,
        seed=seed,
        data_seed=config.calibration.data_seed,
        adapted=content_hash(layers),
        horizon=horizon,
    )


def missing_runs(
    revision: Revision, plan: CalibrationPlan, runs: Sequence[PlannedRun] | None = None
) -> list[PlannedRun]:
    """Those of the planned runs (or of some of them) whose metrics are not there yet or not whole."""
    return [run for run in (plan.runs if runs is None else runs) if not _is_stored(revision, run, plan)]


def plan_packs(runs: Sequence[PlannedRun]) -> list[PlannedPack]:
    """Group runs into packs."""
    return [PlannedPack((run,)) for run in runs]


def _is_stored(revision: Revision, run: PlannedRun, plan: CalibrationPlan) -> bool:
    summary, metrics = _summary_path(revision, run.run_id), _metrics_path(revision, run.run_id)
    if not (summary.is_file() and metrics.is_file()):
        return False
    if read_json(summary)["diverged_at"] is not None:
        return True
    try:
        return tuple(read_metrics(metrics)["step"]) == plan.checkpoint_steps
    except ValueError:  # a damaged file (pyarrow's errors are ValueErrors too): the run is trained again
        return False


@task(
    name="calibrate-pack",
    task_run_name="calibrate {pack.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    tags=["calibration"],
)
def calibrate_pack(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, pack: PlannedPack, parent: str, label: str | None
) -> list[str]:
    """Train the runs of a pack that are still missing and store their metrics; returns the paths of the Parquet files.

    label: of the progress bar, None for none (several packs at once share the flow's bar).
    """
    tracking.use_store(working_folder(config.study))
    pull(config.study)  # another machine may have trained some of them since the packs were planned
    for run in missing_runs(revision, plan, pack.runs):
        _calibrate_run(config, revision, plan, run, parent, label)
    publish_part(config.study, revision, "calibrate", run_files(revision, pack.runs))
    return [str(_metrics_path(revision, run.run_id)) for run in pack.runs]


def _calibrate_run(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, run: PlannedRun, parent: str, label: str | None
) -> None:
    data = load_data(config.data)
    base = base_model(config.model, config.device, config.recipe.dtype)
    train = calibration_set(config)
    validation = validation_set(config)
    parameters = {
        "r_me": run.pair.r_me,
        "r_llm": run.pair.r_llm,
        "seed": run.seed,
        "trainable_parameters": trainable_parameters(base.partition, run.pair),
        "data_hash": data.data_hash,
        "recipe": config.recipe.model_dump(mode="json"),
    }
    tags = {"mars.kind": "calibration", "mars.revision": str(revision.number), "mars.run_id": run.run_id}
    with (
        tracking.child_run(parent, run.name, parameters, tags) as tracked,
        progress_bar(label, plan.horizon) if label else nullcontext() as advance,
    ):
        result = train_run(
            base.model,
            base.partition,
            run.pair,
            seed=run.seed,
            train_batches=train_batches(train, base, config.recipe.batch_size),
            validation=scored_batches(validation, base, config.evaluation_batch_size),
            recipe=config.recipe.as_recipe(),
            horizon=plan.horizon,
            checkpoint_steps=plan.checkpoint_steps,
            on_step=advance,
        )
        rows = _rows(config, revision, data, run, result)
        tracking.log_steps(tracked, _curves(rows))
        _store(revision, run, rows, result, tracked)


def share_cores(processes: int) -> None:
    """Give this process its share of the cores: more threads than cores cost far more than they bring."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def _check_partition(config: StudyConfig) -> None:
    # One sample through the frozen model: an adapter on a layer that is never called would learn nothing.
    base = base_model(config.model, config.device, config.recipe.dtype)
    for batch, _ in scored_batches(validation_set(config), base, 1)():
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if "pixel_values" in inputs:
            check_against_forward(base.partition, layers_used_by_forward(base.model, inputs))
            return


def _rows(
    config: StudyConfig, revision: Revision, data: StudyData, run: PlannedRun, result: CalibrationRun
) -> pd.DataFrame:
    shared = {
        "schema_version": SCHEMA_VERSION,
        "study_id": revision.study.name,
        "revision": revision.number,
        "run_id": run.run_id,
        "pack_id": run.run_id,  # one run per pack
        "r_me": run.pair.r_me,
        "r_llm": run.pair.r_llm,
        "seed": run.seed,
        "data_seed": config.calibration.data_seed,
        "device": device_name(resolve_device(config.device)),
        "recipe_hash": recipe_hash(config),
        "data_hash": data.data_hash,
        "model_id": config.model,
        "code_version": __version__,
    }
    rows = []
    for checkpoint in result.checkpoints:
        seen = checkpoint.step * config.recipe.batch_size
        sizes = {"samples_seen": seen, "unique_samples": min(seen, len(data.splits.train))}
        rows.append(shared | sizes | asdict(checkpoint) | {"val_perplexity": math.exp(checkpoint.val_loss)})
    return pd.DataFrame(rows, columns=SCHEMA.names)


def _curves(rows: pd.DataFrame) -> list[Mapping[str, float]]:
    names = ["train_loss", "val_loss", "val_perplexity", "val_accuracy", "lr", "grad_norm_me", "grad_norm_llm"]
    curves: list[Mapping[str, float]] = rows[["step", *names]].to_dict("records")
    return curves


def _store(revision: Revision, run: PlannedRun, rows: pd.DataFrame, result: CalibrationRun, tracked: str) -> None:
    with replacing(_metrics_path(revision, run.run_id)) as temporary:
        pq.write_table(to_table(rows), temporary)
    last = result.checkpoints[-1] if result.checkpoints else None
    summary = {
        "run_id": run.run_id,
        "pair": [run.pair.r_me, run.pair.r_llm],
        "seed": run.seed,
        "diverged_at": result.diverged_at,
        "wall_seconds": last.wall_seconds if last else 0.0,
        "peak_memory_bytes": last.peak_memory_bytes if last else 0,
        "mlflow_run_id": tracked,
    }
    write_json(_summary_path(revision, run.run_id), summary)


def read_metrics(path: Path) -> pd.DataFrame:
    """Checkpoint metrics of one run, validated."""
    return from_table(pq.read_table(path))


def collect_metrics(revision: Revision, plan: CalibrationPlan) -> tuple[pd.DataFrame, list[str]]:
    """Metrics of all planned runs that did not diverge, and a note on each that did."""
    frames, notes = [], []
    for run in plan.runs:
        diverged_at = read_json(_summary_path(revision, run.run_id))["diverged_at"]
        if diverged_at is None:
            frames.append(read_metrics(_metrics_path(revision, run.run_id)))
        else:
            notes.append(f"run {run.name} diverged at step {diverged_at} and is left out of the laws")
    if not frames:
        raise ValueError("every calibration run diverged: lower recipe.learning_rate and open a new revision")
    return pd.concat(frames, ignore_index=True), notes


def calibration_outputs(revision: Revision, plan: CalibrationPlan) -> list[Path]:
    """Files that a finished calibration consists of."""
    return run_files(revision, plan.runs)


def run_files(revision: Revision, runs: Sequence[PlannedRun]) -> list[Path]:
    """Files of finished runs, the summary of each last."""
    return [path(revision, run.run_id) for run in runs for path in (_metrics_path, _summary_path)]


def calibration_cost(revision: Revision, plan: CalibrationPlan) -> dict[str, Any]:
    """What the planned runs took, as they recorded it themselves."""
    summaries = [read_json(_summary_path(revision, run.run_id)) for run in plan.runs]
    return {
        "seconds": sum(summary["wall_seconds"] for summary in summaries),
        "peak_memory_bytes": max(summary["peak_memory_bytes"] for summary in summaries),
        "runs": len(plan.runs),
        "steps": plan.horizon * len(plan.runs),
        "notes": list(plan.notes),
    }


def _metrics_path(revision: Revision, run: str) -> Path:
    return revision.path("calibration", f"{run}.parquet")


def _summary_path(revision: Revision, run: str) -> Path:
    return revision.path("calibration", f"{run}.json")


def describe_plan(plan: CalibrationPlan) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        "runs": len(plan.runs),
        "pairs": sorted({(run.pair.r_me, run.pair.r_llm) for run in plan.runs}),
        "steps_per_run": plan.horizon,
        "steps": plan.horizon * len(plan.runs),
        "checkpoint_steps": list(plan.checkpoint_steps),
        "notes": list(plan.notes),
    }
