"""Named points in the life of a study, at which a process can be made to die.

Found by wrapping what the operating system, MLflow and the Trainer are asked to do: the product knows nothing of them.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from transformers import TrainerState

from mars_core.training.trainer import AnswerTrainer
from tasks.calibration import state as pack_state

FILES = {
    r"manifests/(\w+).*\.json": r"manifest of \1",
    r"calibration/[^/]+\.parquet": "metrics of a run",
    r"calibration/[^/]+\.json": "summary of a run",
    r"state/[^/]+/state\.safetensors": "state of a pack",
    r"state/[^/]+/runs\.json": "list of a pack",
    r"(laws|levels|choice|evaluation|revision|splits|data|standing)\.json": r"\1",
    r"final/[^/]+/adapter": "adapter",
    r"final/[^/]+/adapter/README.md": "model card",
    r"final/[^/]+/training\.json": "training record",
    r"checkpoint-\d+/checksums\.json": "checksums of a checkpoint",
    r"evaluation/.*\.parquet": "answers",
    r"report\.html": "report",
    r"study\.yaml": "study file",
}
CALLS = ("create_run", "log_batch", "set_terminated", "log_artifact", "log_artifacts", "create_model_version",
         "set_registered_model_alias", "log_inputs")  # fmt: skip
TEMPORARY = re.compile(r"/\.(.+)\.[a-z0-9_]{8}(?=/|$)")
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGSTOP": signal.SIGSTOP}


@dataclass(frozen=True)
class Death:
    """Where and how a process dies: at the first of these points that it has come to so many times.

    occurrences: by the name of the point.
    """

    occurrences: Mapping[str, int]
    signal: str


class Points:
    """Counts the points that this process comes to, and has it die at one."""

    def __init__(self, death: Death | None, said: int) -> None:
        self.death, self.said = death, said
        self.seen: Counter[str] = Counter()

    def reach(self, name: str, damage: Callable[[], None] | None = None) -> None:
        """Come to a point; damage: done to a file before dying there."""
        self.seen[name] += 1
        if self.death is None or self.seen[name] != self.death.occurrences.get(name):
            return
        if damage is not None:
            damage()
        os.write(self.said, f"{name}\n".encode())
        os.kill(os.getpid(), SIGNALS[self.death.signal])

    def watch(self) -> None:
        """Have this process come by all points from now on."""
        self._watch_files()
        self._watch_mlflow()
        self._watch_checkpoints()

    def _watch_files(self) -> None:
        fsync, replace = os.fsync, os.replace

        def watched_fsync(file: int) -> None:
            name = _file(str(Path(f"/proc/self/fd/{file}").readlink()))
            if name:
                self.reach(f"{name}: before fsync")
            fsync(file)
            if name:
                self.reach(f"{name}: after fsync")

        def watched_replace(source: Any, target: Any, **how: Any) -> None:
            name = _file(str(target))
            if name:
                self.reach(f"{name}: before rename")
            replace(source, target, **how)
            if name:
                self.reach(f"{name}: after rename")

        os.fsync, os.replace = watched_fsync, watched_replace

    def _watch_mlflow(self) -> None:
        for call in CALLS:
            setattr(MlflowClient, call, self._around(f"MLflow {call}", getattr(MlflowClient, call)))

    def _around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.reach(f"{name}: before")
            done = work(*args, **kwargs)
            self.reach(f"{name}: after")
            return done

        return watched

    def _watch_checkpoints(self) -> None:
        save = pack_state.save_file

        def half_a_state(tensors: Any, path: str, **kwargs: Any) -> None:
            save(tensors, path, **kwargs)
            self.reach("checkpoint of a pack: half written", lambda: _halve(Path(path)))

        pack_state.save_file = half_a_state
        optimizer, state = AnswerTrainer._save_optimizer_and_scheduler, TrainerState.save_to_json

        def half_an_optimizer(trainer: Any, folder: str) -> None:
            self.reach("checkpoint of a final run: weights written")
            optimizer(trainer, folder)
            self.reach(
                "checkpoint of a final run: optimizer half written", lambda: _halve(Path(folder, "optimizer.pt"))
            )

        def half_a_record(trainer_state: Any, path: str) -> None:
            state(trainer_state, path)
            self.reach("checkpoint of a final run: record half written", lambda: _halve(Path(path)))
            self.reach("checkpoint of a final run: before its checksums")

        AnswerTrainer._save_optimizer_and_scheduler = half_an_optimizer  # type: ignore[method-assign]
        TrainerState.save_to_json = half_a_record


def _file(path: str) -> str | None:
    """What a file is, None for one that no stage depends on."""
    plain = TEMPORARY.sub(r"/\1", path)
    for pattern, name in FILES.items():
        if match := re.search(f"/{pattern}$", plain):
            return match.expand(name)
    return None


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
