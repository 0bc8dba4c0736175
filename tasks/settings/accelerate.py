"""The user's accelerate configuration: what is taken from it, and what is refused before anything expensive."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file

from mars_core.training.finetune import micro_batches
from tasks.settings.study import StudyConfig

KINDS = ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP")


@dataclass(frozen=True)
class Acceleration:
    """How the final run is launched.

    file: accelerate's configuration. kind: its distributed_type. processes: how many train together on this machine.
    """

    file: Path
    kind: str
    processes: int

    @property
    def sharded(self) -> bool:
        """Whether the model is sharded over the processes."""
        return self.kind == "FSDP"


def acceleration_of(config: StudyConfig) -> Acceleration | None:
    """How the study's final run is launched, None for in this process.

    Raises:
        ValueError: the configuration is missing, broken, or asks for what the final run cannot do.
    """
    if config.final.accelerate is None:
        return None
    path = Path(config.final.accelerate).expanduser()
    found = _read(path)
    made = Acceleration(path, _name(found.distributed_type), int(found.num_processes))
    _check_machine(made, found)
    _check_study(made, config)
    return made


def require_one_process() -> None:
    """Refuse to run a study's stages in every process of a distributed launch.

    Raises:
        ValueError: this process is one of several.
    """
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "this command was started by a distributed launcher, and would do everything in every process: start it "
            "without, and give it the launcher's configuration (mars finetune STUDY --accelerate FILE)"
        )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(
            f"there is no accelerate configuration {path}: `accelerate config --config_file {path}` writes one"
        )
    try:
        return load_config_from_file(str(path))
    except Exception as error:  # accelerate's reader lets YAML's, its enums' and its dataclass's errors out
        raise ValueError(f"{path} is no accelerate configuration: {str(error).splitlines()[0]}") from error


def _name(kind: Any) -> str:
    return str(getattr(kind, "value", kind))


def _check_machine(made: Acceleration, found: Any) -> None:
    if made.kind not in KINDS:
        raise ValueError(
            f"{made.file}: distributed_type {made.kind} is not supported, use one of {', '.join(KINDS[1:])}"
        )
    if getattr(found, "num_machines", 1) > 1:
        raise ValueError(
            f"{made.file}: num_machines is {found.num_machines}, but the final run is launched on one machine: set it "
            "to 1"
        )
    if made.processes < 1:
        raise ValueError(f"{made.file}: num_processes is {made.processes}: set it to the number of GPUs to use")
    if made.kind == "MULTI_CPU" and made.processes > 1 and not getattr(found, "mpirun_config", None):
        raise ValueError(
            f"{made.file}: accelerate starts several CPU processes through MPI only (mpirun_config); without MPI use "
            "distributed_type MULTI_GPU with use_cpu true"
        )
    if made.sharded and int((found.fsdp_config or {}).get("fsdp_version", 1)) != 2:
        raise ValueError(
            f"{made.file}: only the second version of FSDP is supported: set fsdp_version to 2 (`accelerate to-fsdp2` "
            "converts a configuration)"
        )
    if made.sharded and found.use_cpu:
        raise ValueError(f"{made.file}: accelerate shards (FSDP) on GPUs only: set use_cpu to false, or use DDP")


def _check_study(made: Acceleration, config: StudyConfig) -> None:
    try:
        micro_batches(config.recipe.batch_size, config.micro_batch_size, made.processes)
    except ValueError as error:
        raise ValueError(f"{made.file}: {error}") from error
    if config.loading.spread:
        raise ValueError(
            "loading.spread puts one model over all GPUs, and final.accelerate one process on each: use one of them"
        )
    if made.sharded and config.loading.four_bit:
        raise ValueError("a 4-bit base cannot be sharded: set loading.four_bit to false, or use DDP")
