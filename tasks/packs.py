"""Packs: which runs are trained together, at what cost, and their training with all that is kept of it."""

from __future__ import annotations

import math
import os
from asyncio import CancelledError
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core import __version__
from mars_core.metrics.schema import SCHEMA, SCHEMA_VERSION, to_table
from mars_core.models.loading import Base
from mars_core.models.lora import trainable_parameters
from mars_core.packing.cores import usable_cores
from mars_core.packing.cost import ACTIVATION_MARGIN, Cost, activation_bytes, lanes_for, measure_cost, scoring_of
from mars_core.packing.export import save_adapter
from mars_core.packing.footprint import adapter_bytes
from mars_core.packing.lanes import Lanes
from mars_core.packing.member import PackMember
from mars_core.packing.state import PackState
from mars_core.packing.train import TrainedPack, train_pack
from mars_core.training.calibration import CalibrationRun, Checkpoint
from tasks import tracking
from tasks.calibrate import (
    CalibrationPlan,
    PlannedPack,
    PlannedRun,
    RunSchedule,
    metrics_path,
    missing_runs,
    run_files,
    summary_path,
)
from tasks.check_model import check_layers_are_used
from tasks.config import StudyConfig
from tasks.data import calibration_set, load_data, scored_batches, step_batches, validation_set
from tasks.free_memory import free_memory
from tasks.machine_load import machine_load
from tasks.objective import measurement
from tasks.pack_state import drop_state, has_state, read_state, state_folder, write_state
from tasks.progress import progress_bar, say
from tasks.resources import base_model, device_name, resolve_device
from tasks.revision import recipe_hash
from tasks.storage.location import working_folder
from tasks.storage.study import publish_part, pull
from tasks.store import Revision, read_json, replacing, replacing_folder, write_json

# Where workers share the packs: enough runs for the frozen backbone to pay off, few enough to keep several GPUs busy.
RUNS_PER_PACK_ON_WORKERS = 4


@dataclass(frozen=True)
class PackForecast:
    """What a calibration is expected to take on this machine.

    packs: the packs. pair_steps: optimizer steps of all runs. seconds: on one device, packs one after another, of them
    training_seconds in steps and evaluations, the rest before the first steps. memory_bytes: of the largest pack, the
    model included. lanes: how it goes through the model.
    """

    packs: tuple[PlannedPack, ...]
    pair_steps: int
    seconds: float
    training_seconds: float
    memory_bytes: int
    lanes: Lanes
    device: str

    @property
    def runs_side_by_side(self) -> int:
        """Runs under way at a time."""
        return min(self.lanes.width * self.lanes.at_once, max(len(pack.runs) for pack in self.packs))

    def as_json(self) -> dict[str, Any]:
        """The forecast in the units that people plan with."""
        hours = self.seconds / 3600
        kind = "cpu" if self.device == "cpu" else "gpu"
        return {
            "packs": [len(pack.runs) for pack in self.packs],
            "pair_steps": self.pair_steps,
            "hours": round(hours, 4),
            f"{kind}_hours": round(hours * (os.cpu_count() or 1 if kind == "cpu" else 1), 4),
            "memory_gigabytes": round(self.memory_bytes / 1e9, 3),
            "runs_side_by_side": self.runs_side_by_side,
            "device": self.device,
        }

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.pair_steps} steps of all runs together in about {_duration(self.seconds)} on {self.device}: "
            f"{len(self.packs)} {'pack' if len(self.packs) == 1 else 'packs'}, {self.runs_side_by_side} runs side "
            f"by side, about {self.memory_bytes / 1e9:.1f} GB for model, adapters and activations"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def forecast(config: StudyConfig, plan: CalibrationPlan, runs: Sequence[PlannedRun]) -> PackForecast:
    """Measure a few steps and say what training `runs` will take; no run is stored.

    Raises:
        ValueError: not even one run fits the memory.
    """
    base = base_model(config)
    check_layers_are_used(config, base)
    cost, lanes = _measured_cost(config, runs)
    packs = plan_packs(config, runs, cost)
    largest = max(packs, key=lambda pack: len(pack.runs))
    training = sum(_training_seconds(cost, run.schedule) for run in runs)
    return PackForecast(
        packs=tuple(packs),
        pair_steps=sum(run.schedule.horizon for run in runs),
        seconds=training + cost.startup_seconds * len(packs),
        training_seconds=training,
        memory_bytes=cost.memory_bytes(base.partition, [run.pair for run in largest.runs], lanes),
        lanes=lanes,
        device=device_name(resolve_device(config.device)),
    )


def begin_packs(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, missing: Sequence[PlannedRun]
) -> tuple[list[PlannedPack], dict[str, Any]]:
    """The packs that train `missing`, those begun earlier first, and what they are expected to take (also told)."""
    begun, fresh = _begun_and_fresh(revision, plan, missing)
    if begun:
        runs = sum(len(pack.runs) for pack in begun)
        say(f"calibrate: going on with {len(begun)} unfinished packs of {runs} runs")
    if not fresh:
        return begun, {}
    if resolve_device(config.device).type == "cuda" and torch.cuda.device_count() > 1:
        say(
            f"note: calibration here takes one of {torch.cuda.device_count()} GPUs; "
            "`mars up`, then `--where workers`, takes all of them"
        )
    expected = forecast(config, plan, fresh)
    say(f"calibrate: expected to take {expected}")
    return [*begun, *expected.packs], {
        "expected_runs": [run.run_id for run in fresh],
        "expected_seconds": expected.training_seconds,
        "expected_memory_bytes": expected.memory_bytes,
    }


def _begun_and_fresh(
    revision: Revision, plan: CalibrationPlan, missing: Sequence[PlannedRun]
) -> tuple[list[PlannedPack], list[PlannedRun]]:
    begun = unfinished_packs(revision, plan, missing)
    taken = {run.run_id for pack in begun for run in pack.runs}
    return begun, [run for run in missing if run.run_id not in taken]


def packs_for_workers(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, missing: Sequence[PlannedRun], workers: int | None
) -> tuple[list[PlannedPack], dict[str, Any]]:
    """The packs that workers train, those begun earlier first. Nothing is measured: this machine may have no GPU.

    `calibration.pack_hours` needs a measurement and is left out of account. Without `pack_runs` the packs are as small
    as it takes to give each of the workers one, and hold `RUNS_PER_PACK_ON_WORKERS` runs at most.

    workers: how many there are, None where that is not known.
    """
    begun, fresh = _begun_and_fresh(revision, plan, missing)
    limit = config.calibration.pack_runs or _runs_per_pack(len(fresh), workers)
    asked = revision.path("calibration", "packs", f"of-{config.calibration.pack_runs or 'workers'}.json")
    return [*begun, *_asked_for(asked, plan, limit, fresh)], {}


def _runs_per_pack(runs: int, workers: int | None) -> int:
    share = math.ceil(runs / workers) if workers else RUNS_PER_PACK_ON_WORKERS
    return max(1, min(share, RUNS_PER_PACK_ON_WORKERS))


def _asked_for(path: Path, plan: CalibrationPlan, limit: int, fresh: Sequence[PlannedRun]) -> list[PlannedPack]:
    """Packs of at most `limit` runs. Those of an earlier call stay as they were: workers may have them by now.

    path: where the packs are written down.
    """
    known, left = {run.run_id: run for run in plan.runs}, {run.run_id for run in fresh}
    before = read_json(path) if path.is_file() else []
    kept = [ids for ids in before if left.intersection(ids) and known.keys() >= set(ids)]
    left -= {run_id for ids in kept for run_id in ids}
    packs = [PlannedPack(tuple(known[run_id] for run_id in ids)) for ids in kept]
    packs += _in_packs_of(limit, [run for run in fresh if run.run_id in left])
    write_json(path, [[run.run_id for run in pack.runs] for pack in packs])
    return packs


def _measured_cost(config: StudyConfig, runs: Sequence[PlannedRun]) -> tuple[Cost, Lanes]:
    base = base_model(config)
    return measure_cost(
        base.model,
        base.partition,
        [run.pair for run in runs],
        steps=partial(step_batches, calibration_set(config), base, config.recipe.batch_size, config.micro_batch_size),
        validation=scored_batches(validation_set(config), base, config.evaluation_batch_size),
        validation_samples=len(validation_set(config)),
        recipe=config.recipe.as_recipe(),
        memory_bytes=memory_budget(config),
        at_once=lanes_at_once(config),
    )


def plan_packs(config: StudyConfig, runs: Sequence[PlannedRun], cost: Cost | None = None) -> list[PlannedPack]:
    """Group runs into packs of nearly equal size, as few as `calibration.pack_runs`, `pack_hours` and memory allow.

    cost: needed for the limits in time and memory; without it there is only the number of runs.
    """
    limits = [len(runs)]
    if config.calibration.pack_runs is not None:
        limits.append(config.calibration.pack_runs)
    if cost is not None and runs:
        limits.append(_runs_in_memory(config, cost, runs))
    return [pack for alike in _alike(runs) for pack in _evenly(min(*limits, _in_time(config, cost, alike)), alike)]


def _in_packs_of(limit: int, runs: Sequence[PlannedRun]) -> list[PlannedPack]:
    """Packs of nearly equal size; the runs of a pack are of one length and see the samples in one order."""
    return [pack for alike in _alike(runs) for pack in _evenly(limit, alike)]


def _alike(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that may share a pack: of one order of the samples and one schedule."""
    found: dict[tuple[int, RunSchedule], list[PlannedRun]] = {}
    for run in runs:
        found.setdefault((run.data_seed, run.schedule), []).append(run)
    return list(found.values())


def _evenly(limit: int, runs: Sequence[PlannedRun]) -> list[PlannedPack]:
    packs = math.ceil(len(runs) / limit)
    bounds = [round(len(runs) * number / packs) for number in range(packs + 1)] if packs else []
    return [PlannedPack(tuple(runs[start:stop])) for start, stop in pairwise(bounds)]


def _runs_in_memory(config: StudyConfig, cost: Cost, runs: Sequence[PlannedRun]) -> int:
    partition = base_model(config).partition
    largest = max(adapter_bytes(partition, [run.pair]) for run in runs)
    one_pass = max(int(cost.activation_bytes * ACTIVATION_MARGIN), cost.scoring.bytes(1, 1))
    room = memory_budget(config) - cost.base_bytes - one_pass
    return max(1, room // largest)


def _in_time(config: StudyConfig, cost: Cost | None, alike: Sequence[PlannedRun]) -> int:
    """How many of some runs of one schedule `calibration.pack_hours` allows in a pack."""
    if config.calibration.pack_hours is None or cost is None:
        return len(alike)
    seconds = config.calibration.pack_hours * 3600 - cost.startup_seconds
    return max(1, int(seconds / _training_seconds(cost, alike[0].schedule)))


def _training_seconds(cost: Cost, schedule: RunSchedule) -> float:
    return cost.seconds(1, schedule.horizon, len(schedule.checkpoint_steps)) - cost.startup_seconds


def memory_budget(config: StudyConfig) -> int:
    """Bytes that a pack may use: as configured, else nine tenths of what the device has free, the model counted in."""
    if config.calibration.memory_gigabytes is not None:
        return int(config.calibration.memory_gigabytes * 1e9)
    base = base_model(config)
    model = sum(weight.nbytes for weight in base.model.parameters())
    device = resolve_device(config.device)
    free = _free_on_gpu(device) if device.type == "cuda" else free_memory()
    return int(0.9 * free) + model


def _free_on_gpu(device: torch.device) -> int:
    # What PyTorch holds back for itself is free for a pack.
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def lanes_at_once(config: StudyConfig) -> int:
    """Lanes trained at the same time: as configured, else one per core on a CPU and one on a GPU."""
    if config.calibration.parallel is not None:
        return config.calibration.parallel
    return 1 if resolve_device(config.device).type == "cuda" else usable_cores()


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

    label: of the progress bar, None for none.
    """
    tracking.use_store(working_folder(config.study))
    pull(config.study)  # another machine may have trained some of them since the packs were planned
    missing = missing_runs(revision, plan, pack.runs)
    if missing:
        # A pack with a state goes on as it was, even if some of its runs were stored before it was killed.
        state = state_folder(revision, pack.pack_id)
        begun = read_state(state, pack.schedule.checkpoint_steps) is not None
        if has_state(state) and not begun:
            say(f"pack {pack.name}: starts anew, its state is damaged or was made with other checkpoint steps")
        whole = pack if begun else PlannedPack(tuple(missing))
        _train_and_store(config, revision, whole, missing, parent, label)
    publish_part(config.study, revision, "calibrate", run_files(revision, pack.runs))
    return [str(metrics_path(revision, run.run_id)) for run in pack.runs]


def _train_and_store(
    config: StudyConfig,
    revision: Revision,
    pack: PlannedPack,
    missing: Sequence[PlannedRun],
    parent: str,
    label: str | None,
) -> None:
    folder = state_folder(revision, pack.pack_id)
    write_json(folder / PACK_FILE, [run.run_id for run in pack.runs])
    base = base_model(config)
    check_layers_are_used(config, base)
    tracked = {run: _begin(config, revision, base, run, pack, parent) for run in missing}
    try:
        with machine_load(list(tracked.values())):
            trained = _train(config, revision, pack, tracked, label)
    except BaseException as error:
        # A run that was killed outright stays open, and the next process goes on with it; this one is going on no more.
        status = "KILLED" if isinstance(error, (KeyboardInterrupt, CancelledError)) else "FAILED"
        for run_id in tracked.values():
            tracking.end_child(run_id, status)
        raise
    for run, result in zip(pack.runs, trained.runs, strict=True):
        if run not in tracked:
            continue
        rows = _rows(config, revision, pack, run, result.checkpoints)
        _log_new(tracked[run], rows)
        _store(revision, run, rows, result, tracked[run])
        tracking.end_child(tracked[run], "FINISHED" if result.diverged_at is None else "FAILED")
    drop_state(folder)


PACK_FILE = "runs.json"
"""Beside the state of a pack: the ids of its runs."""


def unfinished_packs(revision: Revision, plan: CalibrationPlan, missing: Sequence[PlannedRun]) -> list[PlannedPack]:
    """Packs of planned runs that were begun, with runs that are still missing: they go on where they stopped."""
    known = {run.run_id: run for run in plan.runs}
    left = {run.run_id for run in missing}
    found = []
    for path in sorted(revision.path("calibration", "state").glob(f"*/{PACK_FILE}")):
        ids = read_json(path)
        if not (left.intersection(ids) and known.keys() >= set(ids)):
            continue
        pack = PlannedPack(tuple(known[run_id] for run_id in ids))
        if read_state(path.parent, pack.schedule.checkpoint_steps) is not None:
            found.append(pack)
            left -= set(ids)
    return found


def _train(
    config: StudyConfig,
    revision: Revision,
    pack: PlannedPack,
    tracked: Mapping[PlannedRun, str],
    label: str | None,
) -> TrainedPack:
    base = base_model(config)
    folder = state_folder(revision, pack.pack_id)
    validation = scored_batches(validation_set(config), base, config.evaluation_batch_size)
    samples = calibration_set(config, pack.data_seed)
    steps = partial(step_batches, samples, base, config.recipe.batch_size, config.micro_batch_size)
    horizon, checkpoint_steps = pack.schedule.horizon, pack.schedule.checkpoint_steps
    begun = read_state(folder, checkpoint_steps)
    if begun is not None:
        say(f"pack {pack.name}: going on after step {begun.step} of {horizon}")

    def keep(state: PackState) -> None:
        if config.calibration.snapshots:
            _keep_snapshots(revision, base, pack, state)
        for run, member in zip(pack.runs, state.members, strict=True):
            if run not in tracked:
                continue
            checkpoints = [Checkpoint(**checkpoint) for checkpoint in member["checkpoints"]]
            if checkpoints:
                _log_new(tracked[run], _rows(config, revision, pack, run, checkpoints))
        write_state(folder, state)  # last: what is repeated after a kill in between replaces its equal

    with progress_bar(label, horizon) if label else nullcontext() as advance:
        return train_pack(
            base.model,
            base.partition,
            [PackMember(run.pair, run.seed) for run in pack.runs],
            train_steps=steps,
            validation=validation,
            recipe=config.recipe.as_recipe(),
            horizon=horizon,
            checkpoint_steps=checkpoint_steps,
            lanes=_lanes(config, base, pack),
            measurement=measurement(config),
            resume=begun,
            on_step=advance,
            on_checkpoint=keep,
        )


def _lanes(config: StudyConfig, base: Base, pack: PlannedPack) -> Lanes:
    pairs, recipe = [run.pair for run in pack.runs], config.recipe.as_recipe()
    validation = islice(scored_batches(validation_set(config), base, config.evaluation_batch_size)(), 2)
    samples = calibration_set(config, pack.data_seed)
    steps = step_batches(samples, base, config.recipe.batch_size, config.micro_batch_size, 0)
    first = max(next(iter(steps)), key=lambda batch: batch["labels"].numel())
    largest = max(pairs, key=partial(trainable_parameters, base.partition))
    return lanes_for(
        activation_bytes(base.model, base.partition, first, largest, recipe),
        scoring_of(base.model, (batch for batch, _ in validation)),
        sum(weight.nbytes for weight in base.model.parameters()),
        adapter_bytes(base.partition, pairs),
        memory_budget(config),
        at_once=lanes_at_once(config),
        device=resolve_device(config.device).type,
    )


def _begin(config: StudyConfig, revision: Revision, base: Base, run: PlannedRun, pack: PlannedPack, parent: str) -> str:
    parameters = {
        "r_me": run.pair.r_me,
        "r_llm": run.pair.r_llm,
        "seed": run.seed,
        "data_seed": run.data_seed,
        "trainable_parameters": trainable_parameters(base.partition, run.pair),
        "data_hash": load_data(config.data).data_hash,
        "pack_runs": len(pack.runs),
        "recipe": config.recipe.model_dump(mode="json"),
        **({} if run.schedule.size is None else {"size": run.schedule.size}),
    }
    tags = {
        "mars.kind": "calibration",
        "mars.revision": str(revision.number),
        "mars.run_id": run.run_id,
        "mars.pack_id": pack.pack_id,
    }
    return tracking.begin_child(parent, run.name, parameters, tags)


def _keep_snapshots(revision: Revision, base: Base, pack: PlannedPack, state: PackState) -> None:
    for number, run in enumerate(pack.runs):
        flat = state.tensors.get(f"{number}.weights")
        if flat is not None:
            folder = revision.path("calibration", "snapshots", run.run_id, f"step-{state.step:06d}")
            with replacing_folder(folder) as temporary:
                save_adapter(flat, base.partition, run.pair, temporary, model_id=base.model_id)


def _log_new(tracked: str, rows: pd.DataFrame) -> None:
    """Log the checkpoints that MLflow does not have yet: a resumed pack comes by some of them again."""
    known = tracking.logged_steps(tracked, "val_loss")
    tracking.log_steps(tracked, [row for row in _curves(rows) if row["step"] not in known])


def _rows(
    config: StudyConfig,
    revision: Revision,
    pack: PlannedPack,
    run: PlannedRun,
    checkpoints: Sequence[Checkpoint],
) -> pd.DataFrame:
    data = load_data(config.data)
    shared = {
        "schema_version": SCHEMA_VERSION,
        "study_id": revision.study.name,
        "revision": revision.number,
        "run_id": run.run_id,
        "pack_id": pack.pack_id,
        "r_me": run.pair.r_me,
        "r_llm": run.pair.r_llm,
        "seed": run.seed,
        "data_seed": run.data_seed,
        "device": device_name(resolve_device(config.device)),
        "objective": config.search.objective,
        "recipe_hash": recipe_hash(config),
        "data_hash": data.data_hash,
        "model_id": config.model,
        "code_version": __version__,
    }
    rows = []
    for checkpoint in checkpoints:
        seen = checkpoint.step * config.recipe.batch_size
        sizes = {"samples_seen": seen, "unique_samples": min(seen, len(data.splits.train))}
        rows.append(shared | sizes | asdict(checkpoint) | {"val_perplexity": math.exp(checkpoint.val_loss)})
    return pd.DataFrame(rows, columns=SCHEMA.names)


def _curves(rows: pd.DataFrame) -> list[Mapping[str, float]]:
    names = ["train_loss", "val_loss", "val_perplexity", "val_accuracy", "lr", "grad_norm_me", "grad_norm_llm"]
    if rows["val_objective"].notna().any():
        names.append("val_objective")
    curves: list[Mapping[str, float]] = rows[["step", *names]].to_dict("records")
    return curves


def _store(revision: Revision, run: PlannedRun, rows: pd.DataFrame, result: CalibrationRun, tracked: str) -> None:
    with replacing(metrics_path(revision, run.run_id)) as temporary:
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
    write_json(summary_path(revision, run.run_id), summary)
