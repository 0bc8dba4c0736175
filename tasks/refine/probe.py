"""Measure the layers of a pair: gradient norms over a short run, and what single methods ask for besides.

REV/refine/PAIR/norms.parquet                a short run of the pair, as long as a calibration run and trained like one
REV/refine/PAIR/importance.parquet           GoRA; under the base model
REV/refine/PAIR/explained_variance.parquet   EVA; under the base model
REV/refine/PAIR/triplets.parquet             a short run of AdaLoRA
Each has a row per layer, columns of `mars_core.layerwise.probe.SCHEMA`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.layerwise.eva import RHO
from mars_core.layerwise.measure_importance import weight_importance
from mars_core.layerwise.measure_variance import explained_variance
from mars_core.layerwise.places import MODULES, places_of
from mars_core.layerwise.probe import Probe, ProbedLayer, probe_table, read_probes
from mars_core.metrics.identity import content_hash
from mars_core.models.partition import Group
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.layer_norms import LayerNorm
from mars_core.packing.run import PackRun
from mars_core.packing.state import PackState
from mars_core.packing.train import train_pack
from mars_core.training.finetune import Listeners
from mars_core.training.methods.adalora import triplet_importance
from tasks.calibration.state import drop_state, read_state, state_folder, write_state
from tasks.final.arm import Arm
from tasks.final.rate_search import short_steps
from tasks.final.run import trained_on
from tasks.final.train import release, settings_of, train
from tasks.inputs.base_model import device_name, resolve_device
from tasks.inputs.data import scored_batches, step_batches
from tasks.inputs.used_layers import check_layers_are_used
from tasks.running.progress import progress_bar, show_message
from tasks.settings.baselines import AdaLoraSettings, Baseline
from tasks.storage.files import replacing
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.plan import calibration_schedules, data_seed_of
from tasks.study.stage import Stage
from tasks.tracking import runs as tracking

NORMS = "norms"
MEASURED_STEPS = 8
"""Optimizer steps' worth of samples that the base model is looked at with."""


def probed_modules(arm: Arm) -> tuple[Group, ...]:
    """Modules of a pair that have adapters."""
    return tuple(module for module in MODULES if arm.pair.rank(module))


def measures_of(needs: Iterable[str]) -> tuple[str, ...]:
    """The measurements that columns of a probe come from, gradient norms always among them: every report shows them."""
    others = [name for name in needs if name not in ("norm_a", "norm_b", "fisher")]
    return (NORMS, *others)


@task(name="probe-layers", task_run_name="probe {measure} of {arm}", cache_policy=NO_CACHE, persist_result=False)
def probe_layers(study: Study, arm: Arm, measure: str, parent: str) -> str:
    """Make one measurement of a pair's layers and store it; returns the path of its table."""
    check_layers_are_used(study.inputs, study.inputs.base_model)
    path = probe_path(study.revision, arm, measure)
    parameters = {**arm.pair._asdict(), "measure": measure, "steps": short_steps(study.inputs)}
    tags = {"mars.kind": "probe", "mars.revision": str(study.revision.number)}
    with tracking.child_run(parent, f"probe {measure} of {arm.slug}", parameters, tags) as tracked:
        table = probe_table(MEASURES[measure](study, arm))
        with replacing(path) as temporary:
            pq.write_table(table, temporary)
        tracking.log_file(tracked, path)
        if measure == NORMS:
            for module, probe in read_probes(table).items():
                rows = [{"step": block, f"gradient_norm_{module}": n} for block, n in enumerate(probe.block_norms())]
                tracking.log_steps(tracked, rows)
    return str(path)


def _norms(study: Study, arm: Arm) -> list[Probe]:
    """A short run of the pair in a pack of its own; it goes on from its last checkpoint where it was killed."""
    inputs, config = study.inputs, study.config
    base, recipe = inputs.base_model, config.recipe.as_recipe()
    seed, schedule = config.calibration.seeds[0], calibration_schedules(inputs)[0][0]
    folder = state_folder(study.revision, f"probe-{norms_inputs(study, arm)}")
    samples = inputs.calibration_set(data_seed_of(config, seed))
    begun = read_state(folder, schedule.checkpoint_steps)
    if begun is not None:
        show_message(f"refine: going on after step {begun.step} of {schedule.horizon}")

    def keep(state: PackState) -> None:
        write_state(folder, state)

    with progress_bar(f"gradient norms of {arm}", schedule.horizon) as advance:
        pack = train_pack(
            base.model,
            base.partition,
            [PackRun(arm.pair, seed, arm.learning_rates)],
            train_steps=partial(step_batches, samples, base, config.recipe.batch_size, config.micro_batch_size),
            validation=scored_batches(inputs.validation_set, base, config.evaluation_batch_size),
            recipe=recipe,
            horizon=schedule.horizon,
            checkpoint_steps=schedule.checkpoint_steps,
            adapter_batches=AdapterBatches(1, 1),
            record_norms=True,
            resume=begun,
            on_step=advance,
            on_checkpoint=keep,
        )
    (run,), (norms,) = pack.runs, pack.norms
    if run.diverged_at is not None or norms is None:
        raise ValueError(
            f"the probe run of {arm} diverged at step {run.diverged_at}: lower its learning rate (recipe.learning_rate)"
        )
    drop_state(folder)
    return probes_of_norms(study, arm, norms)


def probes_of_norms(study: Study, arm: Arm, norms: Iterable[LayerNorm]) -> list[Probe]:
    """The probe of each adapted module from the norms of a run of its pair."""
    by_layer = {norm.layer: norm for norm in norms}
    probes = []
    for module in probed_modules(arm):
        rank = arm.pair.rank(module)
        layers = []
        for place in places_of(study.inputs.partition, module):
            norm = by_layer[place.layer]
            layers.append(ProbedLayer(place, norm.a, norm.b, norm.squared / (rank * place.cost)))
        probes.append(Probe(module, tuple(layers)))
    return probes


def _importance(study: Study, arm: Arm) -> list[Probe]:
    base = study.inputs.base_model
    layers = [place.layer for module in probed_modules(arm) for place in places_of(base.partition, module)]
    samples = study.inputs.calibration_set()
    steps = step_batches(samples, base, study.config.recipe.batch_size, study.config.micro_batch_size, 0)
    return _with_column(study, arm, "importance", weight_importance(base.model, layers, islice(steps, MEASURED_STEPS)))


def _explained_variance(study: Study, arm: Arm) -> list[Probe]:
    base, config = study.inputs.base_model, study.config
    layers = [place.layer for module in probed_modules(arm) for place in places_of(base.partition, module)]
    steps = step_batches(study.inputs.calibration_set(), base, config.recipe.batch_size, 1, 0)
    batches = (batch for step in islice(steps, MEASURED_STEPS) for batch in step)
    components = round(RHO * max(arm.pair))
    return _with_column(study, arm, "explained_variance", explained_variance(base.model, layers, batches, components))


def _triplets(study: Study, arm: Arm) -> list[Probe]:
    inputs, config = study.inputs, study.config
    settings = AdaLoraSettings(method="adalora", target_rank=max(arm.pair))
    baseline = Baseline("probe-adalora", settings, arm.learning_rates)
    baseline.method.check(inputs.partition, config.recipe.as_recipe())
    steps = short_steps(inputs)
    checkpoints = probe_path(study.revision, arm, "checkpoints").with_suffix("")
    how = replace(settings_of(config, baseline, steps, checkpoints), seed=config.calibration.seeds[0], evaluations=1)
    with progress_bar(f"AdaLoRA's allocation for {arm}", steps) as advance:
        wrapped, _ = train(inputs, baseline, how, Listeners(on_step=advance))
    try:
        values = triplet_importance(wrapped)
    finally:
        release(inputs, baseline, wrapped)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return _with_column(study, arm, "triplets", values)


def _with_column(study: Study, arm: Arm, column: str, values: Mapping[str, Any]) -> list[Probe]:
    probes = []
    for module in probed_modules(arm):
        bare = Probe(module, tuple(map(ProbedLayer, places_of(study.inputs.partition, module))))
        probes.append(bare.with_values(**{column: values}))
    return probes


MEASURES: Mapping[str, Callable[[Study, Arm], list[Probe]]] = {
    NORMS: _norms,
    "importance": _importance,
    "explained_variance": _explained_variance,
    "triplets": _triplets,
}


def probe_path(revision: Revision, arm: Arm, measure: str) -> Path:
    """Where a measurement of a pair's layers lies."""
    return revision.path("refine", arm.slug, f"{measure}.parquet")


def read_probe(revision: Revision, arm: Arm, measures: Iterable[str]) -> dict[str, Probe]:
    """The probe of each module, with the columns of all these measurements."""
    first, *others = [read_probes(pq.read_table(probe_path(revision, arm, name))) for name in measures]
    for other in others:
        for module, probe in other.items():
            columns = {
                name: {one.place.layer: getattr(one, name) for one in probe.layers if getattr(one, name) is not None}
                for name in Probe.columns
            }
            first[module] = first[module].with_values(**columns)
    return first


def norms_inputs(study: Study, arm: Arm) -> str:
    """Hash of everything that decides a pair's gradient norms."""
    length = {"steps": short_steps(study.inputs), "seed": study.config.calibration.seeds[0], "measure": NORMS}
    return content_hash(trained_on(study.inputs, arm.baseline) | length)


def probe_stage(arm: Arm, measure: str) -> Stage:
    """A measurement as a stage."""

    def inputs(study: Study, _: str) -> str:
        return content_hash([norms_inputs(study, arm), measure, MEASURED_STEPS])

    return Stage(
        f"refine-{measure}-{arm.slug}",
        inputs=inputs,
        outputs=lambda study: (probe_path(study.revision, arm, measure),),
    )


def probed_on(study: Study) -> str:
    """The device that probes are made on, for people."""
    return device_name(resolve_device(study.config.device))
