"""A final run, of a rank pair or any other baseline: train at the full budget, save, load again and compare, record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mars_core.metrics.identity import content_hash
from mars_core.models.loading import Base
from mars_core.models.processor import save_processor
from mars_core.records import json_safe
from mars_core.training.finetune import FinalRun, Listeners, logits_at_answers
from tasks.calibration.hours import final_hours
from tasks.final.train import release, settings_of, train
from tasks.inputs.base_model import device_name
from tasks.inputs.data import scored_batches
from tasks.inputs.objective import objective_identity
from tasks.inputs.opened import Inputs
from tasks.running.progress import noting, progress_bar
from tasks.settings.baselines import Baseline
from tasks.storage.files import replacing_folder, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.tracking import runs as tracking
from tasks.tracking.datasets import log_datasets
from tasks.tracking.live_curves import LiveCurves

# What was trained is saved and read in its own precision, so the reloaded model computes the very same products.
RELOAD_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Described:
    """How a final run is named and recorded: in MLflow, on the progress bar and in its training.json.

    name: of its MLflow run. label: of its progress bar. parameters: of its MLflow run. record: the first entries of its
    training.json. attached: files and folders that its MLflow run gets, by the folder that they get there.
    """

    name: str
    label: str
    role: str
    parameters: Mapping[str, Any]
    record: Mapping[str, Any]
    attached: Mapping[str, Path] = field(default_factory=dict)


def final_steps(inputs: Inputs) -> int:
    """Optimizer steps of a final run: epochs over the training set in batches, at least one."""
    samples = len(inputs.usable("train"))
    return max(1, round(inputs.config.final.epochs * samples / inputs.config.recipe.batch_size))


def trained_on(inputs: Inputs, baseline: Baseline) -> dict[str, Any]:
    """Everything that decides a run of a baseline but for how long it is and its seed."""
    settings = {
        "model": inputs.fingerprint,
        "data": inputs.data.data_hash,
        "recipe": inputs.config.recipe.identity(),
        **baseline.identity,
    }
    identity = objective_identity(inputs.config)
    return settings if identity is None else settings | {"objective": identity}


def run_inputs(inputs: Inputs, baseline: Baseline) -> str:
    """Hash of everything that decides a final run."""
    length = {"epochs": inputs.config.final.epochs, "seed": inputs.config.final.seed}
    return content_hash(trained_on(inputs, baseline) | length)


def run_folder(revision: Revision, baseline: Baseline) -> Path:
    """Where a final run's files lie."""
    return revision.path("final", baseline.slug)


def train_final(study: Study, baseline: Baseline, described: Described, parent: str) -> Path:
    """Train at the full budget, save the result and make sure of it, record the run; returns the result's folder.

    Raises:
        RuntimeError: what was saved, loaded again, does not give the same logits.
    """
    method, partition = baseline.method, study.inputs.partition
    method.check(partition, study.config.recipe.as_recipe())
    steps, folder = final_steps(study.inputs), run_folder(study.revision, baseline)
    result, count = folder / method.result, method.trainable_parameters(partition)
    parameters = {
        **described.parameters,
        "role": described.role,
        "steps": steps,
        "seed": study.config.final.seed,
        "trainable_parameters": count,
        "data_hash": study.inputs.data.data_hash,
        "recipe": study.config.recipe.described(),
    }
    tags = {
        "mars.kind": "final",
        "mars.role": described.role,
        "mars.revision": str(study.revision.number),
        tracking.INPUTS_TAG: run_inputs(study.inputs, baseline),
    }
    with (
        tracking.child_run(parent, described.name, parameters, tags) as tracked,
        progress_bar(described.label, steps) as advance,
    ):
        log_datasets(tracked, study.inputs, ("train", "validation"))
        curves = LiveCurves(tracked)
        # Named after what decides the run, so that another run's checkpoints are never resumed.
        checkpoints = folder / f"checkpoints-{run_inputs(study.inputs, baseline)}"
        settings = settings_of(study.config, baseline, steps, checkpoints)
        wrapped, run = train(
            study.inputs, baseline, settings, Listeners(on_step=advance, on_log=noting(advance, curves.log))
        )
        difference = _save_and_compare(study.inputs, baseline, wrapped, result)
        curves.end()
        for name, path in described.attached.items():
            tracking.log_file(tracked, path, name)
        record = {
            **described.record,
            "role": described.role,
            **_as_json(run),
            "device": device_name(next(study.inputs.final_base_model.model.parameters()).device),
            "trainable_parameters": count,
            "reload_difference": difference,
            "mlflow_run_id": tracked,
        }
        tracking.log_values(tracked, final_hours(record) | _speed(run))
        write_json(folder / "training.json", json_safe(record))
    for leftover in folder.glob("checkpoints-*"):
        shutil.rmtree(leftover)
    return result


def _save_and_compare(inputs: Inputs, baseline: Baseline, wrapped: nn.Module, folder: Path) -> float:
    """Save, take the training off the base model, load it again; returns the largest difference of a logit."""
    method, base = baseline.method, inputs.final_base_model
    try:
        with replacing_folder(folder) as temporary:
            method.save(wrapped, temporary)
            save_processor(base.processor, base.model_id, temporary)
        # As what is loaded: PyTorch folds a product in another way where its weight has gradients.
        wrapped.requires_grad_(False)
        batch = _one_sample(inputs, base)
        before = logits_at_answers(wrapped, batch)
    finally:
        release(inputs, baseline, wrapped)
    loaded = method.load(inputs.final_base_model.model, folder)
    try:
        difference = float((logits_at_answers(loaded, batch) - before).abs().max())
    finally:
        method.unwrap(loaded)
    if not difference <= RELOAD_TOLERANCE:
        raise RuntimeError(
            f"what was saved in {folder} gives other logits than the trained model (off by {difference})"
        )
    return difference


def _one_sample(inputs: Inputs, base: Base) -> Mapping[str, Tensor]:
    """A validation sample as a batch of one, which fits wherever training did; it reaches the modality encoder too."""
    validation = inputs.validation_set
    number = next((number for number, sample in enumerate(validation.samples) if sample.media), 0)
    batch, _ = next(islice(scored_batches(validation, base, 1)(), number, None))
    return batch


def _as_json(run: FinalRun) -> dict[str, Any]:
    return asdict(run) | {"history": [dict(entry) for entry in run.history]}


def _speed(run: FinalRun) -> dict[str, float]:
    """What a run says of its speed and memory, as metrics."""
    names = ("processes", "samples_per_second", "tokens_per_second", "peak_memory_bytes")
    return {name: getattr(run, name) for name in names}
