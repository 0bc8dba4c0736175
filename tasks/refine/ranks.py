"""Share a pair's budget out over its layers.

REV/refine/PAIR/NAME.json      the rank of every layer, with what each module may take and takes
REV/refine/PAIR/NAME.parquet   the same, a row per layer, beside its gradient norm
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from mars_core.layerwise.budget import Budget, check_spent, parameters
from mars_core.layerwise.probe import Probe
from mars_core.metrics.identity import content_hash
from mars_core.models.lora import layer_ranks
from mars_core.records import Record
from tasks.final.arm import Arm
from tasks.refine.probe import measures_of, probe_path, probe_stage, read_probe
from tasks.refine.refinement import Refinement
from tasks.running.retrying import REQUESTS
from tasks.settings.baselines import Baseline, LayerRanksSettings
from tasks.storage.files import read_json, replacing, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage
from tasks.tracking import runs as tracking


@dataclass(frozen=True)
class SharedModule(Record):
    """A module whose rank was shared out. rank: the uniform one. budget, spent: trainable parameters."""

    rank: int
    blocks: int
    budget: int
    spent: int


@dataclass(frozen=True)
class SharedOut(Record):
    """A pair's budget shared out. title: the method in words. ranks: of every adapted layer, by its path; modules that
    were not shared out and layers outside of blocks have the pair's."""

    name: str
    method: str
    title: str
    pair: tuple[int, int]
    modules: Mapping[str, SharedModule]
    ranks: Mapping[str, int]


@task(
    name="share-out-ranks", task_run_name="share out ranks: {refined.name}", cache_policy=NO_CACHE, persist_result=False
)
def share_out(study: Study, refined: Refinement) -> str:
    """Share the budget out, check what it takes, store it; returns the path of the ranks."""
    own, pair = refined.allocator, refined.arm.pair
    probes = read_probe(study.revision, refined.arm, measures_of(own.needs))
    ranks = layer_ranks(study.inputs.partition, pair)
    modules: dict[str, SharedModule] = {}
    for module in refined.shared_out():
        probe, budget = probes[module], Budget(pair.rank(module))
        found = own.allocate(probe, budget)
        check_spent(found, probe, budget)
        ranks |= found
        modules[module] = SharedModule(budget.rank, probe.blocks, budget.limit(probe), parameters(found, probe))
    shared = SharedOut(refined.name, refined.method, own.title, (pair.r_me, pair.r_llm), modules, ranks)
    with replacing(table_path(study.revision, refined)) as temporary:
        pq.write_table(_table(shared, probes), temporary)
    write_json(ranks_path(study.revision, refined), shared.to_json())
    return str(ranks_path(study.revision, refined))


def _table(shared: SharedOut, probes: Mapping[str, Probe]) -> pa.Table:
    rows = [
        {
            "module": module,
            "layer": one.place.layer,
            "block": one.place.block,
            "component": one.place.component,
            "gradient_norm": one.norm,
            "uniform_rank": shared.modules[module].rank if module in shared.modules else shared.ranks[one.place.layer],
            "rank": shared.ranks[one.place.layer],
        }
        for module, probe in probes.items()
        for one in probe.layers
    ]
    return pa.Table.from_pylist(rows)


@task(name="publish-ranks", cache_policy=NO_CACHE, persist_result=False, **REQUESTS)
def publish_ranks(study: Study, refined: Refinement, parent: str) -> None:
    """Put the ranks on the study's MLflow run and show them in the Prefect UI, a row per block."""
    for path in (ranks_path(study.revision, refined), table_path(study.revision, refined)):
        tracking.log_file(parent, path, "refine")
    rows = pq.read_table(table_path(study.revision, refined)).to_pandas()
    blocks = rows.groupby(["module", "block"], sort=False).agg(
        gradient_norm=("gradient_norm", "mean"), lowest=("rank", "min"), highest=("rank", "max")
    )
    create_table_artifact(
        blocks.reset_index().to_dict("records"), key="mars-layer-ranks", description=f"Layer-wise ranks: {refined.name}"
    )


def ranks_path(revision: Revision, refined: Refinement) -> Path:
    """Where the ranks lie as JSON."""
    return revision.path("refine", refined.arm.slug, f"{refined.name}.json")


def table_path(revision: Revision, refined: Refinement) -> Path:
    """Where they lie as a table."""
    return ranks_path(revision, refined).with_suffix(".parquet")


def read_shared(revision: Revision, refined: Refinement) -> SharedOut:
    """The stored ranks."""
    return SharedOut.from_json(read_json(ranks_path(revision, refined)))


def shared_out_in(revision: Revision) -> list[tuple[Path, SharedOut]]:
    """All ranks that were shared out in a revision, with the path of each."""
    paths = sorted(revision.path("refine").glob("me*-llm*/*.json"))
    return [(path, SharedOut.from_json(read_json(path))) for path in paths]


def ranks_stage(refined: Refinement) -> Stage:
    """The ranks as a stage."""
    measures = measures_of(refined.allocator.needs)

    def inputs(study: Study, probed: str) -> str:
        settings = [refined.method, refined.stages, refined.step, refined.setting, list(refined.modules)]
        return content_hash([probed, settings, list(refined.arm.pair)])

    return Stage(
        f"refine-ranks-{refined.name}",
        reads=lambda _: tuple(probe_stage(refined.arm, measure) for measure in measures),
        inputs=inputs,
        outputs=lambda study: (ranks_path(study.revision, refined), table_path(study.revision, refined)),
    )


def refined_baseline(study: Study, refined: Refinement) -> Baseline:
    """What the ranks are trained as, at the pair's learning rates."""
    return baseline_of(read_shared(study.revision, refined), refined.arm)


def baseline_of(shared: SharedOut, arm: Arm) -> Baseline:
    """Stored ranks as what they are trained as."""
    r_me, r_llm = shared.pair
    settings = LayerRanksSettings(method="layer-ranks", r_me=r_me, r_llm=r_llm, ranks=dict(shared.ranks))
    return Baseline(shared.name, settings, arm.learning_rates)


def norms_table(revision: Revision, arm: Arm) -> Path:
    """Where a pair's gradient norms lie."""
    return probe_path(revision, arm, "norms")
