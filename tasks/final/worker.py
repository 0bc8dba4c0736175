"""What each process of `accelerate launch` runs: `python -m tasks.final.worker JOB.json`.

It talks to neither Prefect nor MLflow. The first process writes events as they happen, and at the end the trained
weights and the run; the process that launched it reads them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from mars_core.data.collate import collate
from mars_core.rates import LearningRates
from mars_core.records import json_safe
from mars_core.training.finetune import FinalRun, FinetuneDiverged, Listeners, Samples, finetune
from tasks.final.train import ERROR, ERRORS, EVENTS, RUN, WEIGHTS, Job, settings_of, wrap
from tasks.inputs.base_model import load_study_base, resolve_device, study_dtype
from tasks.inputs.data import scored_batches
from tasks.inputs.objective import measurement
from tasks.inputs.opened import open_inputs
from tasks.running.memory import FINAL_RUN, out_of_memory
from tasks.settings.baselines import SETTINGS, Baseline
from tasks.settings.study import StudyConfig
from tasks.storage.files import read_json, replacing, write_json

FAILED = 3


class OwnerGone(RuntimeError):  # noqa: N818 - reads as the fact it states
    """The process that launched this one has ended."""


def main() -> None:
    """Do the job; a failure that the user can do something about is left in a file."""
    job = Job(**read_json(Path(sys.argv[1])))
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        run = _train(job, first)
    except (ValueError, FinetuneDiverged, MemoryError) as error:
        traceback.print_exc()  # into the log, since libraries raise ValueError too
        if first:
            kind = next(name for name, known in ERRORS.items() if isinstance(error, known))
            write_json(Path(job.folder) / ERROR, {"kind": kind, "message": str(error)})
        sys.exit(FAILED)
    if first:
        write_json(Path(job.folder) / RUN, json_safe(asdict(run)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@out_of_memory("the final run", FINAL_RUN)
def _train(job: Job, first: bool) -> FinalRun:
    inputs = open_inputs(StudyConfig.model_validate(job.study))
    config, baseline = inputs.config, _baseline(job)
    settings = replace(
        settings_of(config, baseline, job.steps, Path(job.checkpoints)), seed=job.seed, evaluations=job.evaluations
    )
    device = _device(config)
    # Shards are moved to the GPU; whole models would not fit there.
    base = load_study_base(config, torch.device("cpu") if _sharded() else device, study_dtype(config))
    metric = measurement(inputs)
    # A metric needs all samples in every process.
    share = (0, 1) if metric else (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    wrapped = wrap(base, baseline, settings)
    write = _writer(Path(job.folder) / EVENTS) if first else None
    return finetune(
        wrapped,
        Samples(
            inputs.training_set,
            lambda items: collate(items, base.pad_token_id),
            scored_batches(inputs.validation_set, base, config.evaluation_batch_size, device=device, share=share),
            metric,
        ),
        settings,
        method=baseline.method,
        partition=base.partition,
        listeners=Listeners(
            on_step=_on_step(job, write),
            on_log=(lambda entry: write({"log": json_safe(dict(entry))})) if write else None,
            on_state=lambda state: _save(state, Path(job.folder) / WEIGHTS),
        ),
    )


def _baseline(job: Job) -> Baseline:
    rates = job.baseline["learning_rates"]
    settings = SETTINGS.validate_python(job.baseline["settings"])
    return Baseline(job.baseline["name"], settings, LearningRates(*rates) if rates else None)


def _device(config: StudyConfig) -> torch.device:
    device = resolve_device(config.device)
    if device.type == "cuda" and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _sharded() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _writer(events: Path) -> Callable[[Mapping[str, Any]], None]:
    def write(event: Mapping[str, Any]) -> None:
        with events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    return write


def _on_step(job: Job, write: Callable[[Mapping[str, Any]], None] | None) -> Callable[[int], None]:
    def on_step(step: int) -> None:
        if not _owner_lives(job):
            raise OwnerGone(f"process {job.owner}, which launched this training, has ended")
        if write:
            write({"step": step})

    return on_step


def _owner_lives(job: Job) -> bool:
    try:
        return bool(psutil.Process(job.owner).create_time() == job.owner_created)
    except psutil.NoSuchProcess:
        return False


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    with replacing(path) as temporary:
        save_file(dict(state), temporary)


if __name__ == "__main__":
    main()
