"""Which flows are deployed where: the one table that registration and prefect.yaml follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GPU_POOL, CPU_POOL = "mars-gpu", "mars-cpu"


@dataclass(frozen=True)
class Pool:
    """A work pool and its queues, the most urgent first."""

    name: str
    description: str
    queues: tuple[str, ...]


@dataclass(frozen=True)
class Deployed:
    """A flow, by its import path, under a name on a queue of a pool.

    parameters: defaults that differ from the flow's own.
    """

    name: str
    entrypoint: str
    pool: str
    queue: str
    tags: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)


POOLS = (
    Pool(
        GPU_POOL,
        "Training: calibration packs, final runs, test scores. One worker per GPU, started with --limit 1.",
        ("final", "evaluate", "calibration"),
    ),
    Pool(
        CPU_POOL,
        "Coordination: studies, fit and search, reports. These runs mostly wait; give their worker no limit.",
        ("studies", "nightly"),
    ),
)

# What a flow run's process is told, whatever worker starts it: the `mars` logger's lines belong in the UI.
# And it imports nothing from where the worker was started: a `tasks.py` there would be taken for this project's.
RUN_ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "mars",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "TOKENIZERS_PARALLELISM": "false",
}

ON_WORKERS = {"where": "workers"}

DEPLOYMENTS = (
    Deployed(
        "study",
        "flows.study.study_flow",
        CPU_POOL,
        "studies",
        ("mars", "study"),
        ON_WORKERS | {"command": "deployment mars-study/study"},
    ),
    Deployed("study-from-file", "flows.study.study_from_file_flow", CPU_POOL, "studies", ("mars", "study"), ON_WORKERS),
    Deployed("calibrate", "flows.calibrate.calibrate_flow", CPU_POOL, "studies", ("mars", "calibration"), ON_WORKERS),
    Deployed(
        "calibrate-pack", "flows.on_workers.calibrate_pack_flow", GPU_POOL, "calibration", ("mars", "calibration")
    ),
    Deployed("fit-and-search", "flows.on_workers.fit_and_search_flow", CPU_POOL, "studies", ("mars", "search")),
    Deployed("final-finetune", "flows.on_workers.final_flow", GPU_POOL, "final", ("mars", "final")),
    Deployed("refine", "flows.refine.refine_flow", GPU_POOL, "final", ("mars", "refine")),
    Deployed("evaluate", "flows.on_workers.score_flow", GPU_POOL, "evaluate", ("mars", "evaluate")),
    Deployed("report", "flows.stages.report_flow", CPU_POOL, "studies", ("mars", "report")),
    Deployed(
        "nightly-recalibration", "flows.nightly.nightly_flow", CPU_POOL, "nightly", ("mars", "nightly"), ON_WORKERS
    ),
)
