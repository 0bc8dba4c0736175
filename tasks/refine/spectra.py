"""What trained adapters make of their ranks, layer by layer.

REV/refine/spectra/NAME.parquet   NAME as in REV/final/NAME; a row per adapted layer
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE
from safetensors.torch import load_file

from mars_core.layerwise.places import component_of, places_in
from mars_core.layerwise.spectra import ENERGY, spectra
from mars_core.metrics.identity import content_hash
from mars_core.models.partition import GROUPS, Partition
from tasks.final.compare import training_stage
from tasks.final.run import run_folder
from tasks.settings.baselines import Baseline
from tasks.storage.files import replacing
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage

WEIGHTS = "adapter_model.safetensors"


@task(name="measure-spectrum", task_run_name="spectrum {baseline.slug}", cache_policy=NO_CACHE, persist_result=False)
def measure_spectrum(study: Study, baseline: Baseline) -> str:
    """Store stable rank and utilisation of a trained adapter's layers; returns the table's path."""
    weights = load_file(run_folder(study.revision, baseline) / baseline.method.result / WEIGHTS)
    where = _places(study.inputs.partition)
    rows = [
        {**where[one.layer], **asdict(one), "utilisation": one.utilisation}
        for one in spectra(weights)
        if one.layer in where
    ]
    path = spectrum_path(study.revision, baseline.slug)
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return str(path)


def _places(partition: Partition) -> dict[str, dict[str, str | int | None]]:
    """Module, block and component of every adapted layer; no block for those outside of numbered ones."""
    found: dict[str, dict[str, str | int | None]] = {}
    for group in GROUPS:
        layers = partition.group(group)
        for layer in layers:
            found[layer.name] = {"module": group, "block": None, "component": component_of(layer.name)}
        if group != "projector" and layers:
            for place in places_in(layers, group):
                found[place.layer]["block"] = place.block
    return found


def spectrum_path(revision: Revision, name: str) -> Path:
    """Where the spectrum of a final run's adapter lies."""
    return revision.path("refine", "spectra", f"{name}.parquet")


def spectrum_stage(baseline: Baseline) -> Stage:
    """The spectrum as a stage."""
    return Stage(
        f"refine-spectrum-{baseline.slug}",
        reads=lambda _: (training_stage(baseline),),
        inputs=lambda _, trained: content_hash([trained, ENERGY]),
        outputs=lambda study: (spectrum_path(study.revision, baseline.slug),),
        announced=False,
    )
