"""Packs: which runs are trained together, and what that is expected to take."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.cores import usable_cores
from mars_core.packing.cost import ACTIVATION_MARGIN, Cost, measure_cost
from mars_core.packing.footprint import adapter_bytes
from tasks.calibration.free_memory import free_memory
from tasks.calibration.state import drop_state, read_state
from tasks.calibration.stored import Expected
from tasks.inputs.base_model import device_name, resolve_device
from tasks.inputs.data import scored_batches, step_batches
from tasks.inputs.opened import Inputs
from tasks.inputs.used_layers import check_layers_are_used
from tasks.running.progress import show_message
from tasks.settings.study import StudyConfig
from tasks.storage.files import read_json, write_json
from tasks.study.opened import Study
from tasks.study.plan import CalibrationPlan, PlannedPack, PlannedRun, RunSchedule

# Where workers share the packs: enough runs for the frozen backbone to pay off, few enough to keep several GPUs busy.
RUNS_PER_PACK_ON_WORKERS = 4


@dataclass(frozen=True)
class PackForecast:
    """What a calibration is expected to take on this machine.

    packs: the packs. pair_steps: optimizer steps of all runs. seconds: on one device, packs one after another, of them
    training_seconds in steps and evaluations, the rest before the first steps. memory_bytes: of the largest pack, the
    model included. adapter_batches: how it goes through the model.
    """

    packs: tuple[PlannedPack, ...]
    pair_steps: int
    seconds: float
    training_seconds: float
    memory_bytes: int
    adapter_batches: AdapterBatches
    device: str

    @property
    def runs_side_by_side(self) -> int:
        """Runs under way at a time."""
        return min(
            self.adapter_batches.width * self.adapter_batches.at_once, max(len(pack.runs) for pack in self.packs)
        )

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


def forecast(inputs: Inputs, plan: CalibrationPlan, runs: Sequence[PlannedRun]) -> PackForecast:
    """Measure a few steps and say what training `runs` will take; no run is stored.

    Raises:
        ValueError: not even one run fits the memory.
    """
    base = inputs.base_model
    check_layers_are_used(inputs, base)
    cost, adapter_batches = _measured_cost(inputs, runs)
    packs = plan_packs(inputs, runs, cost)
    largest = max(packs, key=lambda pack: len(pack.runs))
    training = sum(_training_seconds(cost, run.schedule) for run in runs)
    return PackForecast(
        packs=tuple(packs),
        pair_steps=sum(run.schedule.horizon for run in runs),
        seconds=training + cost.startup_seconds * len(packs),
        training_seconds=training,
        memory_bytes=cost.memory_bytes(base.partition, [run.pair for run in largest.runs], adapter_batches),
        adapter_batches=adapter_batches,
        device=device_name(resolve_device(inputs.config.device)),
    )


def begin_packs(study: Study, missing: Sequence[PlannedRun]) -> tuple[list[PlannedPack], Expected | None]:
    """The packs that train `missing`, those begun earlier first, and what they are expected to take; shows that too."""
    begun, fresh = _begun_and_fresh(study, missing)
    if begun:
        runs = sum(len(pack.runs) for pack in begun)
        show_message(f"calibrate: going on with {len(begun)} unfinished packs of {runs} runs")
    if not fresh:
        return begun, None
    if resolve_device(study.config.device).type == "cuda" and torch.cuda.device_count() > 1:
        show_message(
            f"note: calibration here takes one of {torch.cuda.device_count()} GPUs; "
            "`mars up`, then `--where workers`, takes all of them"
        )
    expected = forecast(study.inputs, study.plan, fresh)
    show_message(f"calibrate: expected to take {expected}")
    taken = Expected(tuple(run.run_id for run in fresh), expected.training_seconds, expected.memory_bytes)
    return [*begun, *expected.packs], taken


def _begun_and_fresh(study: Study, missing: Sequence[PlannedRun]) -> tuple[list[PlannedPack], list[PlannedRun]]:
    begun = unfinished_packs(study, missing)
    taken = {run.run_id for pack in begun for run in pack.runs}
    return begun, [run for run in missing if run.run_id not in taken]


def packs_for_workers(
    study: Study, missing: Sequence[PlannedRun], workers: int | None
) -> tuple[list[PlannedPack], Expected | None]:
    """The packs that workers train, those begun earlier first. Nothing is measured: this machine may have no GPU.

    `calibration.pack_hours` needs a measurement and is left out of account. Without `pack_runs` the packs are as small
    as it takes to give each of the workers one, and hold `RUNS_PER_PACK_ON_WORKERS` runs at most.

    workers: how many there are, None where that is not known.
    """
    begun, fresh = _begun_and_fresh(study, missing)
    limit = study.config.calibration.pack_runs or _runs_per_pack(len(fresh), workers)
    asked = study.revision.path("calibration", "packs", f"of-{study.config.calibration.pack_runs or 'workers'}.json")
    return [*begun, *_asked_for(asked, study.plan, limit, fresh)], None


def _runs_per_pack(runs: int, workers: int | None) -> int:
    share = math.ceil(runs / workers) if workers else RUNS_PER_PACK_ON_WORKERS
    return max(1, min(share, RUNS_PER_PACK_ON_WORKERS))


def _asked_for(path: Path, plan: CalibrationPlan, limit: int, fresh: Sequence[PlannedRun]) -> list[PlannedPack]:
    """Packs of at most `limit` runs. Those of an earlier call stay as they were: workers may have them by now.

    path: where the packs are written down.
    """
    known, left = {run.run_id: run for run in plan.every_run}, {run.run_id for run in fresh}
    before = read_json(path) if path.is_file() else []
    kept = [ids for ids in before if left.intersection(ids) and known.keys() >= set(ids)]
    left -= {run_id for ids in kept for run_id in ids}
    packs = [PlannedPack(tuple(known[run_id] for run_id in ids)) for ids in kept]
    packs += _in_packs_of(limit, [run for run in fresh if run.run_id in left])
    write_json(path, [[run.run_id for run in pack.runs] for pack in packs])
    return packs


def _measured_cost(inputs: Inputs, runs: Sequence[PlannedRun]) -> tuple[Cost, AdapterBatches]:
    base = inputs.base_model
    return measure_cost(
        base.model,
        base.partition,
        [run.pair for run in runs],
        steps=partial(
            step_batches,
            inputs.calibration_set(),
            base,
            inputs.config.recipe.batch_size,
            inputs.config.micro_batch_size,
        ),
        validation=scored_batches(inputs.validation_set, base, inputs.config.evaluation_batch_size),
        validation_samples=len(inputs.validation_set),
        recipe=inputs.config.recipe.as_recipe(),
        memory_bytes=memory_budget(inputs),
        at_once=adapter_batches_at_once(inputs.config),
    )


def plan_packs(inputs: Inputs, runs: Sequence[PlannedRun], cost: Cost | None = None) -> list[PlannedPack]:
    """Group runs into packs of nearly equal size, as few as `calibration.pack_runs`, `pack_hours` and memory allow.

    cost: needed for the limits in time and memory; without it there is only the number of runs.
    """
    limits = [len(runs)]
    if inputs.config.calibration.pack_runs is not None:
        limits.append(inputs.config.calibration.pack_runs)
    if cost is not None and runs:
        limits.append(_runs_in_memory(inputs, cost, runs))
    return [
        pack for alike in _alike(runs) for pack in _evenly(min(*limits, _in_time(inputs.config, cost, alike)), alike)
    ]


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


def _runs_in_memory(inputs: Inputs, cost: Cost, runs: Sequence[PlannedRun]) -> int:
    partition = inputs.base_model.partition
    largest = max(adapter_bytes(partition, [run.pair]) for run in runs)
    one_pass = max(int(cost.activation_bytes * ACTIVATION_MARGIN), cost.scoring.bytes(1, 1))
    room = memory_budget(inputs) - cost.base_bytes - one_pass
    return max(1, room // largest)


def _in_time(config: StudyConfig, cost: Cost | None, alike: Sequence[PlannedRun]) -> int:
    """How many of some runs of one schedule `calibration.pack_hours` allows in a pack."""
    if config.calibration.pack_hours is None or cost is None:
        return len(alike)
    seconds = config.calibration.pack_hours * 3600 - cost.startup_seconds
    return max(1, int(seconds / _training_seconds(cost, alike[0].schedule)))


def _training_seconds(cost: Cost, schedule: RunSchedule) -> float:
    return cost.seconds(1, schedule.horizon, len(schedule.checkpoint_steps)) - cost.startup_seconds


def memory_budget(inputs: Inputs) -> int:
    """Bytes that a pack may use: as configured, else nine tenths of what the device has free, the model counted in."""
    if inputs.config.calibration.memory_gigabytes is not None:
        return int(inputs.config.calibration.memory_gigabytes * 1e9)
    base = inputs.base_model
    model = sum(weight.nbytes for weight in base.model.parameters())
    device = resolve_device(inputs.config.device)
    free = _free_on_gpu(device) if device.type == "cuda" else free_memory()
    return int(0.9 * free) + model


def _free_on_gpu(device: torch.device) -> int:
    # What PyTorch holds back for itself is free for a pack.
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def adapter_batches_at_once(config: StudyConfig) -> int:
    """Adapter batches trained at the same time: as configured, else one per core on a CPU and one on a GPU."""
    if config.calibration.parallel is not None:
        return config.calibration.parallel
    return 1 if resolve_device(config.device).type == "cuda" else usable_cores()


PACK_FILE = "runs.json"
"""Beside the state of a pack: the ids of its runs."""


def unfinished_packs(study: Study, missing: Sequence[PlannedRun]) -> list[PlannedPack]:
    """Packs of planned runs that were begun, with runs that are still missing: they go on where they stopped."""
    known = {run.run_id: run for run in study.plan.every_run}
    left = {run.run_id for run in missing}
    found = []
    for path in sorted(study.revision.path("calibration", "state").glob(f"*/{PACK_FILE}")):
        ids = read_json(path)
        if not (left.intersection(ids) and known.keys() >= set(ids)):
            continue
        pack = PlannedPack(tuple(known[run_id] for run_id in ids))
        if read_state(path.parent, pack.schedule.checkpoint_steps) is not None:
            found.append(pack)
            left -= set(ids)
    return found


def drop_pack_states(study: Study) -> None:
    """Delete what packs go on from, once every run is stored.

    A pack that was killed when its last run was stored has nothing left to train: nobody begins it again to tidy up.
    """
    for path in study.revision.path("calibration", "state").glob(f"*/{PACK_FILE}"):
        drop_state(path.parent)
