"""The record of a final run, final/NAME/training.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mars_core.ranks import Pair
from mars_core.records import Float, Record
from tasks.final.arm import Arm
from tasks.final.run import run_folder
from tasks.storage.files import read_json
from tasks.storage.folder import Revision


@dataclass(frozen=True)
class FinalRecord(Record):
    """What a final run left, of a rank pair or of another baseline.

    The Trainer's part is as in `mars_core.training.finetune.FinalRun`; what earlier versions did not record has a
    default. pair, learning_rates: of a rank pair. baseline, settings: of another baseline. role: the one that it was
    trained in. reload_difference: largest difference of a logit after saving and loading.
    """

    role: str
    mlflow_run_id: str
    steps: int
    best_step: int
    best_val_loss: Float
    seconds: float
    trainable_parameters: int
    pair: Pair | None = None
    learning_rates: tuple[float, ...] | None = None
    baseline: str | None = None
    settings: Mapping[str, Any] | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    best_objective: float | None = None
    device: str | None = None
    processes: int = 1
    devices: int | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int = 0
    reload_difference: Float | None = None


def read_final(revision: Revision, arm: Arm) -> FinalRecord:
    """The record of a pair's final run."""
    return FinalRecord.from_json(read_json(run_folder(revision, arm.baseline) / "training.json"))
