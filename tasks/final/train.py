"""Train one method on a study's data: in this process, or in the processes of `accelerate launch`.

Either way the caller gets the trained model here, so that saving, checking and tracking know one case only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file
from torch import nn

from mars_core.data.collate import collate
from mars_core.models.loading import Base
from mars_core.training.checkpoints import damaged_checkpoints
from mars_core.training.finetune import (
    FinalRun,
    FinalSettings,
    FinetuneDiverged,
    Listeners,
    Samples,
    finetune,
)
from tasks.inputs.data import scored_batches
from tasks.inputs.objective import measurement
from tasks.inputs.opened import Inputs
from tasks.inputs.used_layers import check_layers_are_used
from tasks.running.child import path_safe
from tasks.running.memory import FINAL_RUN, out_of_memory
from tasks.running.progress import show_message
from tasks.service.stack.processes import last_lines
from tasks.settings.accelerate import Acceleration, acceleration_of
from tasks.settings.baselines import Baseline
from tasks.settings.study import StudyConfig
from tasks.storage.files import read_json, write_json

MODULE = "tasks.final.worker"
WEIGHTS, RUN, EVENTS, ERROR, LOG = "trained.safetensors", "run.json", "events.jsonl", "error.json", "launch.log"
POLL_SECONDS, STOP_SECONDS = 0.2, 20.0
ERRORS: Mapping[str, type[Exception]] = {kind.__name__: kind for kind in (FinetuneDiverged, MemoryError, ValueError)}


@dataclass(frozen=True)
class Job:
    """What the launched processes are to do; plain JSON values.

    study, baseline: settings. steps, seed, evaluations: as in `FinalSettings`. checkpoints, folder: where checkpoints
    lie and results are put. owner, owner_created: process that waits for the result, and when it was created: without
    it, nobody is left to train for.
    """

    study: dict[str, Any]
    baseline: dict[str, Any]
    steps: int
    seed: int
    checkpoints: str
    evaluations: int
    folder: str
    owner: int
    owner_created: float


def train(
    inputs: Inputs, baseline: Baseline, settings: FinalSettings, listeners: Listeners
) -> tuple[nn.Module, FinalRun]:
    """Train, on from a checkpoint where there is one; returns the study's base model as trained, and the run.

    Raises:
        FinetuneDiverged: the validation loss is not finite.
        MemoryError: it does not fit; the message says what to lower.
        ValueError: the settings cannot be trained in the way that was asked for.
    """
    _drop_damaged(settings.checkpoints)
    acceleration = acceleration_of(inputs.config)
    if acceleration is None:
        return _train_here(inputs, baseline, settings, listeners)
    return _train_launched(inputs, baseline, acceleration, settings, listeners)


def _drop_damaged(checkpoints: Path) -> None:
    """Delete checkpoints that cannot be gone on with, so that none of them is taken for the best one later."""
    for damaged in damaged_checkpoints(checkpoints):
        show_message(f"final run: {damaged} is damaged or was never whole: it is deleted, training goes on without it")
        shutil.rmtree(damaged)


@out_of_memory("the final run", FINAL_RUN)
def _train_here(
    inputs: Inputs, baseline: Baseline, settings: FinalSettings, listeners: Listeners
) -> tuple[nn.Module, FinalRun]:
    base = inputs.final_base_model
    check_layers_are_used(inputs, base)
    wrapped = wrap(base, baseline, settings)
    try:
        run = finetune(
            wrapped,
            Samples(
                inputs.training_set,
                lambda items: collate(items, base.pad_token_id),
                scored_batches(inputs.validation_set, base, inputs.config.evaluation_batch_size),
                measurement(inputs),
            ),
            settings,
            method=baseline.method,
            partition=base.partition,
            listeners=listeners,
        )
    except BaseException:
        release(inputs, baseline, wrapped)
        raise
    return wrapped, run


def settings_of(config: StudyConfig, baseline: Baseline, steps: int, checkpoints: Path) -> FinalSettings:
    """A study's settings of a final run, as mars_core's record."""
    return FinalSettings(
        baseline.recipe(config.recipe.as_recipe()),
        steps,
        config.final.seed,
        checkpoints,
        config.micro_batch_size,
        config.loading.gradient_checkpointing,
    )


def wrap(base: Base, baseline: Baseline, settings: FinalSettings) -> nn.Module:
    """A base model made trainable."""
    return baseline.method.wrap(
        base.model, base.partition, seed=settings.seed, recipe=settings.recipe, steps=settings.steps
    )


def release(inputs: Inputs, baseline: Baseline, wrapped: nn.Module) -> None:
    """Give the base model back as it was, or have it loaded anew where training has changed it."""
    baseline.method.unwrap(wrapped)
    if not baseline.method.keeps_base:
        inputs.drop_models()


def _train_launched(
    inputs: Inputs, baseline: Baseline, acceleration: Acceleration, settings: FinalSettings, listeners: Listeners
) -> tuple[nn.Module, FinalRun]:
    if acceleration.sharded:
        _require_alike(inputs)
    inputs.drop_models()  # the launched processes need the memory
    folder = settings.checkpoints / "launch"
    job = _job(inputs.config, baseline, acceleration, settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (WEIGHTS, RUN, EVENTS, ERROR):
        (folder / stale).unlink(missing_ok=True)
    write_json(folder / "job.json", asdict(job))
    with _launched(acceleration, folder) as process:
        _follow(process, folder / EVENTS, listeners)
    _raise_failure(process, folder)
    wrapped = wrap(inputs.final_base_model, baseline, settings)
    baseline.method.restore(wrapped, load_file(folder / WEIGHTS))
    return wrapped.eval(), FinalRun(**read_json(folder / RUN))


def _job(
    config: StudyConfig, baseline: Baseline, acceleration: Acceleration, settings: FinalSettings, folder: Path
) -> Job:
    checkpoints = settings.checkpoints
    return Job(
        study=config.model_dump(mode="json"),
        baseline={
            "name": baseline.name,
            "settings": baseline.settings.model_dump(mode="json"),
            "learning_rates": baseline.learning_rates and list(baseline.learning_rates),
        },
        steps=settings.steps,
        seed=settings.seed,
        # Sharded checkpoints and others cannot be resumed from one another.
        checkpoints=str(checkpoints / "sharded" if acceleration.sharded else checkpoints),
        evaluations=settings.evaluations,
        folder=str(folder),
        owner=os.getpid(),
        owner_created=psutil.Process().create_time(),
    )


def _require_alike(inputs: Inputs) -> None:
    # Without an image a process would not reach the vision encoder's shards, and the others would wait for ever.
    kinds = {bool(sample.media) for split in ("train", "validation") for sample in inputs.usable(split)}
    if len(kinds) > 1:
        raise ValueError(
            "some samples have images and some have none: with FSDP all must be alike; use DDP (distributed_type "
            "MULTI_GPU), or leave the text-only samples out"
        )


def launch_command(acceleration: Acceleration, job: Path) -> list[str]:
    """The command line that trains a job; accelerate finds a free port unless the configuration names one.

    Precision is the recipe's: without `--mixed_precision no`, the launcher hands the configuration's to the Trainer,
    which takes it wherever the recipe asks for none.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(acceleration.file)]
    launch += ["--mixed_precision", "no"]
    if acceleration.processes > 1 and "main_process_port" not in acceleration.file.read_text(encoding="utf-8"):
        launch += ["--main_process_port", "0"]
    return [*launch, "--module", MODULE, str(job)]


def start_launch(acceleration: Acceleration, folder: Path) -> subprocess.Popen[bytes]:
    """Start the processes that do the job in a folder; what they print goes into a log there."""
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(
            launch_command(acceleration, folder / "job.json"),
            env=path_safe(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def _launched(acceleration: Acceleration, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start_launch(acceleration, folder)
    try:
        yield process
    finally:
        _stop(process)


def _follow(process: subprocess.Popen[bytes], events: Path, listeners: Listeners) -> None:
    """Pass on what the first process reports, until the launch ends."""
    read = 0
    while True:
        ended = process.poll() is not None
        if events.is_file():
            with events.open("rb") as file:
                file.seek(read)
                whole, _, _ = file.read().rpartition(b"\n")
            for line in whole.splitlines():
                _pass_on(json.loads(line), listeners)
            read += len(whole) + 1 if whole else 0
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _pass_on(event: Mapping[str, Any], listeners: Listeners) -> None:
    if "log" in event and listeners.on_log:
        listeners.on_log(event["log"])
    if "step" in event and listeners.on_step:
        listeners.on_step(event["step"])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and everything it started."""
    family = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    if process.poll() is None:
        process.kill()
        process.wait()


def _raise_failure(process: subprocess.Popen[bytes], folder: Path) -> None:
    if (folder / ERROR).is_file():
        error = read_json(folder / ERROR)
        raise ERRORS[error["kind"]](error["message"])
    if process.returncode or not (folder / RUN).is_file():
        raise RuntimeError(
            f"`accelerate launch` ended with status {process.returncode}; the end of {folder / LOG}:\n"
            f"{last_lines(folder / LOG, 25)}"
        )
