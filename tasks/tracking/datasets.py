"""MLflow datasets: which data a run was trained and scored on, with the hash of each split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from tasks.inputs.opened import Inputs
from tasks.settings.data import DataConfig
from tasks.tracking.outage import never_blocks

DIGEST_LENGTH = 36  # MLflow's limit
CONTEXTS: Mapping[str, str] = {"train": "training", "validation": "validation", "test": "test"}


@never_blocks(None)
def log_datasets(run_id: str, inputs: Inputs, splits: tuple[str, ...] = ("train", "validation", "test")) -> None:
    """Name the splits of the study's data as inputs of a run; logging them again changes nothing."""
    named = [
        DatasetInput(_dataset(inputs, split), [InputTag(MLFLOW_DATASET_CONTEXT, CONTEXTS[split])]) for split in splits
    ]
    MlflowClient().log_inputs(run_id, named)


def _dataset(inputs: Inputs, split: str) -> Dataset:
    data = inputs.data
    samples = data.parts[split]
    profile = {"samples": len(samples), "task_types": dict(Counter(sample.task for sample in samples))}
    return Dataset(
        name=split,
        digest=data.hashes[split][:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": _file_of(inputs.config.data, split)}),
        profile=json.dumps(profile),
    )


def _file_of(data: DataConfig, split: str) -> str:
    """The file that a split comes from: its own, else the training file that it was split off."""
    own = {"validation": data.validation, "test": data.test}.get(split)
    return own or data.train
