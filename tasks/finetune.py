"""The final fine-tune of one pair: train, keep the best checkpoint, save adapter and processor, reload and compare."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.metrics.identity import content_hash
from mars_core.models.loading import Base
from mars_core.models.lora import RankPair, trainable_parameters
from mars_core.models.processor import save_processor
from mars_core.search.choice import json_safe
from mars_core.training.finetune import FinalRun, all_logits
from tasks import tracking
from tasks.baselines import of_pair
from tasks.config import StudyConfig
from tasks.data import load_data, scored_batches, usable_samples, validation_set
from tasks.hours import final_hours
from tasks.inputs import log_datasets
from tasks.live_curves import LiveCurves
from tasks.objective import objective_identity
from tasks.progress import progress_bar
from tasks.resources import device_name, final_base_model, model_fingerprint, study_partition
from tasks.store import Revision, read_json, replacing_folder, write_json
from tasks.train import release, train

# The adapter is saved and read in fp32, so the reloaded model computes the very same products.
RELOAD_TOLERANCE = 1e-5


def final_steps(config: StudyConfig) -> int:
    """Optimizer steps of a final run: epochs over the training set in batches, at least one."""
    samples = len(usable_samples(config, "train"))
    return max(1, round(config.final.epochs * samples / config.recipe.batch_size))


def final_inputs(config: StudyConfig, pair: RankPair) -> str:
    """Hash of everything that decides a final run."""
    settings = {
        "model": model_fingerprint(config),
        "data": load_data(config.data).data_hash,
        "recipe": config.recipe.model_dump(mode="json"),
        "pair": [pair.r_me, pair.r_llm],
        "epochs": config.final.epochs,
        "seed": config.final.seed,
    }
    identity = objective_identity(config)
    return content_hash(settings if identity is None else settings | {"objective": identity})


@task(name="final-fine-tune", task_run_name="fine-tune {pair}", cache_policy=NO_CACHE, persist_result=False)
def finetune_pair(config: StudyConfig, revision: Revision, pair: RankPair, role: str, parent: str) -> str:
    """Train one pair at the full budget and save its adapter; returns the adapter's path.

    Raises:
        RuntimeError: the saved adapter, reloaded, does not give the same logits.
    """
    baseline, partition = of_pair(pair), study_partition(config)
    baseline.method.check(partition)
    steps, folder = final_steps(config), final_folder(revision, pair)
    # Named after what decides the run, so that another run's checkpoints are never resumed.
    checkpoints = folder / f"checkpoints-{final_inputs(config, pair)}"
    parameters = {
        "r_me": pair.r_me,
        "r_llm": pair.r_llm,
        "role": role,
        "steps": steps,
        "seed": config.final.seed,
        "trainable_parameters": trainable_parameters(partition, pair),
        "data_hash": load_data(config.data).data_hash,
        "recipe": config.recipe.model_dump(mode="json"),
    }
    tags = {"mars.kind": "final", "mars.role": role, "mars.revision": str(revision.number)}
    with (
        tracking.child_run(parent, f"final {pair.slug} ({role})", parameters, tags) as tracked,
        progress_bar(f"final fine-tune {pair} ({role})", steps) as advance,
    ):
        log_datasets(tracked, config, ("train", "validation"))
        curves = LiveCurves(tracked)
        wrapped, run = train(
            config,
            baseline,
            steps=steps,
            checkpoints=checkpoints,
            on_step=advance,
            on_log=curves.log,
        )
        try:
            curves.end()
            base = final_base_model(config)
            _save_adapter(wrapped, base, folder / "adapter")
            batch, _ = next(iter(scored_batches(validation_set(config), base, 4)()))
            difference = _reload_difference(wrapped, config, folder / "adapter", batch)
            tracking.log_file(tracked, folder / "adapter", "adapter")
            record = _record(run, pair, role, base, difference, tracked)
            tracking.log_values(tracked, final_hours(record) | speed(run))
            write_json(folder / "training.json", json_safe(record))
        finally:
            release(baseline, wrapped)
        for leftover in folder.glob("checkpoints-*"):
            shutil.rmtree(leftover)
    return str(folder / "adapter")


def _save_adapter(wrapped: Any, base: Base, folder: Path) -> None:
    with replacing_folder(folder) as temporary:
        wrapped.save_pretrained(str(temporary), save_embedding_layers=False)
        save_processor(base.processor, base.model_id, temporary)


def _reload_difference(wrapped: Any, config: StudyConfig, adapter: Path, batch: Mapping[str, Any]) -> float:
    # A second copy of the base model would double the memory, so the trained adapters step aside for a moment.
    before = all_logits(wrapped, batch)
    wrapped.load_adapter(str(adapter), adapter_name="reloaded")
    wrapped.set_adapter("reloaded")
    difference = float((all_logits(wrapped, batch) - before).abs().max())
    wrapped.set_adapter("default")
    wrapped.delete_adapter("reloaded")
    if not difference <= RELOAD_TOLERANCE:
        raise RuntimeError(
            f"the adapter saved in {adapter} gives other logits than the trained model (off by {difference})"
        )
    return difference


def _record(run: FinalRun, pair: RankPair, role: str, base: Base, difference: float, tracked: str) -> dict[str, Any]:
    return {
        "pair": [pair.r_me, pair.r_llm],
        "role": role,
        **run_record(run),
        "device": device_name(next(base.model.parameters()).device),
        "trainable_parameters": trainable_parameters(base.partition, pair),
        "reload_difference": difference,
        "mlflow_run_id": tracked,
    }


def run_record(run: FinalRun) -> dict[str, Any]:
    """A run as JSON values."""
    return asdict(run) | {"history": [dict(entry) for entry in run.history]}


def speed(run: FinalRun) -> dict[str, float]:
    """What a run says of its speed and memory, as metrics."""
    names = ("processes", "samples_per_second", "tokens_per_second", "peak_memory_bytes")
    return {name: getattr(run, name) for name in names}


def final_folder(revision: Revision, pair: RankPair) -> Path:
    """Where a final run's files lie."""
    return revision.path("final", pair.slug)


def final_outputs(revision: Revision, pair: RankPair) -> Iterator[Path]:
    """Files that a finished final run consists of; its checkpoints, only for resuming, are gone by then.

    The model card is left out: later stages complete it, and it is a stage of its own (`tasks.card`).
    """
    folder = final_folder(revision, pair)
    yield from (path for path in sorted((folder / "adapter").iterdir()) if path.name != "README.md")
    yield folder / "training.json"


def read_final(revision: Revision, pair: RankPair) -> dict[str, Any]:
    """The record of a finished final run."""
    record: dict[str, Any] = read_json(final_folder(revision, pair) / "training.json")
    return record
