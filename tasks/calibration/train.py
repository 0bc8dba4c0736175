"""Train a pack and keep all that belongs to its runs: state, metrics, snapshots, MLflow runs."""

from __future__ import annotations

import math
from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice

import pandas as pd
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core import __version__
from mars_core.metrics.schema import PEAKS, SCHEMA, SCHEMA_VERSION, to_table
from mars_core.models.loading import Base
from mars_core.models.lora import trainable_parameters
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.cost import activation_bytes, adapter_batches_for, scoring_of
from mars_core.packing.footprint import adapter_bytes
from mars_core.packing.run import PackRun
from mars_core.packing.saving import save_adapter
from mars_core.packing.state import PackState
from mars_core.packing.train import TrainedPack, train_pack
from mars_core.training.calibration import CalibrationRun, Checkpoint
from tasks.calibration.curves import curves
from tasks.calibration.packs import PACK_FILE, adapter_batches_at_once, memory_budget
from tasks.calibration.state import drop_state, has_state, read_state, state_folder, write_state
from tasks.calibration.stored import metrics_path, missing_runs, run_files
from tasks.inputs.base_model import device_name, resolve_device
from tasks.inputs.data import scored_batches, step_batches
from tasks.inputs.objective import measurement
from tasks.inputs.opened import Inputs
from tasks.inputs.used_layers import check_layers_are_used
from tasks.running.progress import progress_bar, show_message
from tasks.settings.study import StudyConfig
from tasks.storage.files import file_hash, replacing, replacing_folder, write_json
from tasks.storage.folder import Revision
from tasks.storage.transfer import publish_part
from tasks.study.opened import Study
from tasks.study.plan import PlannedPack, PlannedRun
from tasks.study.revision import recipe_hash
from tasks.tracking import runs as tracking
from tasks.tracking.machine_load import machine_load

PASSING_TRACKING_FAULTS = (MlflowException, OSError)  # no answer, a refusal, a full disk under its store


@task(
    name="calibrate-pack",
    task_run_name="calibrate {pack.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    tags=["calibration"],
)
def calibrate_pack(study: Study, pack: PlannedPack, parent: str, label: str | None) -> list[str]:
    """Train the runs of a pack that are still missing and store their metrics; returns the paths of the Parquet files.

    label: of the progress bar, None for none.
    """
    tracking.use_store(study.folder)
    study.pull()  # another machine may have trained some of them since the packs were planned
    missing = missing_runs(study, pack.runs)
    if missing:
        # A pack with a state goes on as it was, even if some of its runs were stored before it was killed.
        state = state_folder(study.revision, pack.pack_id)
        begun = read_state(state, pack.schedule.checkpoint_steps) is not None
        if has_state(state) and not begun:
            show_message(
                f"pack {pack.name}: starts anew, its state is damaged or was made by an earlier version or with other "
                "checkpoint steps"
            )
        whole = pack if begun else PlannedPack(tuple(missing))
        _train_and_store(study, whole, missing, parent, label)
    publish_part(study.config.study, study.revision, "calibrate", run_files(study.revision, pack.runs))
    return [str(metrics_path(study.revision, run.run_id, run.part)) for run in pack.runs]


def _train_and_store(
    study: Study,
    pack: PlannedPack,
    missing: Sequence[PlannedRun],
    parent: str,
    label: str | None,
) -> None:
    folder = state_folder(study.revision, pack.pack_id)
    write_json(folder / PACK_FILE, [run.run_id for run in pack.runs])
    base = study.inputs.base_model
    check_layers_are_used(study.inputs, base)
    tracked = {run: _begin(study, base, run, pack, parent) for run in missing}
    try:
        with machine_load(list(tracked.values())):
            trained = _train(study, pack, tracked, label)
    except BaseException as error:
        # A run that was killed outright stays open, and the next process goes on with it; this one is going on no more.
        stopped = isinstance(error, CancelledError) or not isinstance(error, Exception)  # Ctrl-C, SIGTERM
        status = "KILLED" if stopped else "FAILED"
        for run_id in tracked.values():
            tracking.end_child(run_id, status)
        raise
    for run, result in zip(pack.runs, trained.runs, strict=True):
        if run not in tracked:
            continue
        if not missing_runs(study, [run]):
            show_message(f"run {run.name}: another process was given it too and has stored it: what is here is dropped")
            continue
        rows = _rows(study, pack, run, result.checkpoints)
        whole = tracking.log_new_steps(tracked[run], curves(rows), "val_loss")
        _store(study.revision, run, rows, result, tracked[run])
        if whole:  # else it stays open, and the end of the calibration sends what is missing
            tracking.end_child(tracked[run], "FINISHED" if result.diverged_at is None else "FAILED")
    drop_state(folder)


def _train(
    study: Study,
    pack: PlannedPack,
    tracked: Mapping[PlannedRun, str],
    label: str | None,
) -> TrainedPack:
    base = study.inputs.base_model
    folder = state_folder(study.revision, pack.pack_id)
    validation = scored_batches(study.inputs.validation_set, base, study.config.evaluation_batch_size)
    samples = study.inputs.calibration_set(pack.data_seed)
    steps = partial(step_batches, samples, base, study.config.recipe.batch_size, study.config.micro_batch_size)
    horizon, checkpoint_steps = pack.schedule.horizon, pack.schedule.checkpoint_steps
    begun = read_state(folder, checkpoint_steps)
    if begun is not None:
        show_message(f"pack {pack.name}: going on after step {begun.step} of {horizon}")

    def keep(state: PackState) -> None:
        if study.config.calibration.snapshots:
            _keep_snapshots(study, base, pack, state)
        try:
            _log_state(study, pack, tracked, state)
        except PASSING_TRACKING_FAULTS as error:  # later checkpoints, or the end of the pack, bring what is missing
            show_message(f"note: MLflow could not be told of step {state.step}, it is told later: {error}")
        if advance is not None:
            advance.note = _newest_loss(state)
        write_state(folder, state)  # last: what is repeated after a kill in between replaces its equal

    with progress_bar(label, horizon) if label else nullcontext() as advance:
        return train_pack(
            base.model,
            base.partition,
            [PackRun(run.pair, run.seed, run.learning_rates) for run in pack.runs],
            train_steps=steps,
            validation=validation,
            recipe=study.config.recipe.as_recipe(),
            horizon=horizon,
            checkpoint_steps=checkpoint_steps,
            adapter_batches=_adapter_batches(study.inputs, base, pack),
            measurement=measurement(study.inputs),
            resume=begun,
            on_step=advance,
            on_checkpoint=keep,
        )


def _newest_loss(state: PackState) -> str:
    """Validation losses of the pack's runs at their newest checkpoints, for the log."""
    losses = [run["checkpoints"][-1]["val_loss"] for run in state.runs if run["checkpoints"]]
    return f"validation loss {min(losses):.4f} to {max(losses):.4f}" if losses else ""


def _adapter_batches(inputs: Inputs, base: Base, pack: PlannedPack) -> AdapterBatches:
    pairs, recipe = [run.pair for run in pack.runs], inputs.config.recipe.as_recipe()
    validation = islice(scored_batches(inputs.validation_set, base, inputs.config.evaluation_batch_size)(), 2)
    samples = inputs.calibration_set(pack.data_seed)
    steps = step_batches(samples, base, inputs.config.recipe.batch_size, inputs.config.micro_batch_size, 0)
    first = max(next(iter(steps)), key=lambda batch: batch["labels"].numel())
    largest = max(pairs, key=partial(trainable_parameters, base.partition))
    return adapter_batches_for(
        activation_bytes(base.model, base.partition, first, largest, recipe),
        scoring_of(base.model, (batch for batch, _ in validation)),
        sum(weight.nbytes for weight in base.model.parameters()),
        adapter_bytes(base.partition, pairs),
        memory_budget(inputs),
        at_once=adapter_batches_at_once(inputs.config),
        device=resolve_device(inputs.config.device).type,
    )


def _begin(study: Study, base: Base, run: PlannedRun, pack: PlannedPack, parent: str) -> str:
    parameters = {
        "r_me": run.pair.r_me,
        "r_llm": run.pair.r_llm,
        "seed": run.seed,
        "data_seed": run.data_seed,
        **_peaks(study.config, run),
        "trainable_parameters": trainable_parameters(base.partition, run.pair),
        "data_hash": study.inputs.data.data_hash,
        "pack_runs": len(pack.runs),
        "recipe": study.config.recipe.described(),
        **({} if run.schedule.size is None else {"size": run.schedule.size}),
    }
    tags = {
        "mars.kind": run.part,
        "mars.revision": str(study.revision.number),
        "mars.run_id": run.run_id,
        "mars.pack_id": pack.pack_id,
    }
    return tracking.begin_child(parent, run.name, parameters, tags)


def _keep_snapshots(study: Study, base: Base, pack: PlannedPack, state: PackState) -> None:
    alpha = study.config.recipe.as_recipe().alpha
    for number, run in enumerate(pack.runs):
        flat = state.tensors.get(f"{number}.weights")
        if flat is not None:
            folder = study.path("calibration", "snapshots", run.run_id, f"step-{state.step:06d}")
            with replacing_folder(folder) as temporary:
                save_adapter(flat, base.partition, run.pair, temporary, model_id=base.model_id, alpha=alpha)


def _log_state(study: Study, pack: PlannedPack, tracked: Mapping[PlannedRun, str], state: PackState) -> None:
    for run, stored in zip(pack.runs, state.runs, strict=True):
        checkpoints = [Checkpoint(**checkpoint) for checkpoint in stored["checkpoints"]]
        if run in tracked and checkpoints:
            # MLflow has some already where a pack goes on: it comes by them again.
            tracking.send_new_steps(tracked[run], curves(_rows(study, pack, run, checkpoints)), "val_loss")


def _rows(
    study: Study,
    pack: PlannedPack,
    run: PlannedRun,
    checkpoints: Sequence[Checkpoint],
) -> pd.DataFrame:
    data = study.inputs.data
    shared = {
        "schema_version": SCHEMA_VERSION,
        "study_id": study.folder.name,
        "revision": study.revision.number,
        "run_id": run.run_id,
        "pack_id": pack.pack_id,
        "r_me": run.pair.r_me,
        "r_llm": run.pair.r_llm,
        "seed": run.seed,
        "data_seed": run.data_seed,
        **_peaks(study.config, run),
        "device": device_name(resolve_device(study.config.device)),
        "objective": study.config.search.objective,
        "recipe_hash": recipe_hash(study.config),
        "data_hash": data.data_hash,
        "model_id": study.config.model,
        "code_version": __version__,
    }
    rows = []
    for checkpoint in checkpoints:
        seen = checkpoint.step * study.config.recipe.batch_size
        sizes = {"samples_seen": seen, "unique_samples": min(seen, len(data.splits.train))}
        rows.append(shared | sizes | asdict(checkpoint) | {"val_perplexity": math.exp(checkpoint.val_loss)})
    return pd.DataFrame(rows, columns=SCHEMA.names)


def _peaks(config: StudyConfig, run: PlannedRun) -> dict[str, float]:
    """Peak learning rates of a run's modules by their names in the metrics."""
    return dict(zip(PEAKS, run.learning_rates or config.recipe.as_recipe().learning_rates, strict=True))


def _store(revision: Revision, run: PlannedRun, rows: pd.DataFrame, result: CalibrationRun, tracked: str) -> None:
    metrics, summary = run_files(revision, [run])
    with replacing(metrics) as temporary:
        pq.write_table(to_table(rows), temporary)
    last = result.checkpoints[-1] if result.checkpoints else None
    record = {
        "run_id": run.run_id,
        "pair": list(run.pair),
        "seed": run.seed,
        "learning_rates": None if run.learning_rates is None else list(run.learning_rates),
        "diverged_at": result.diverged_at,
        "wall_seconds": last.wall_seconds if last else 0.0,
        "peak_memory_bytes": last.peak_memory_bytes if last else 0,
        "mlflow_run_id": tracked,
        "metrics_sha256": file_hash(metrics),
    }
    write_json(summary, record)
