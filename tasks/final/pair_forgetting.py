"""What each calibrated pair forgets: its loss on the upstream tasks, against the loss that is predicted on the target.

STUDY/revisions/001/pair_forgetting.json   base model's upstream loss, and a `Tradeoff` of every pair
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.evaluation.forgetting import pareto_front
from mars_core.metrics.identity import content_hash
from mars_core.models.lora import remove_adapters
from mars_core.ranks import Pair
from mars_core.search.objective import objective_named
from mars_core.search.points import read_points
from tasks.calibration.diverged import collect_metrics, divergence
from tasks.calibration.stage import CALIBRATE
from tasks.choice.search import SEARCH, read_choice
from tasks.final.upstream_scores import upstream_loss
from tasks.running.progress import progress_bar
from tasks.running.retrying import IO_RETRIES
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage


@task(name="measure-forgetting-per-pair", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def measure_pairs(study: Study) -> str:
    """Score the last adapter of each pair's calibration runs on the upstream tasks; returns the path of the front.

    Raises:
        ValueError: adapters of the calibration runs were not kept.
    """
    base, runs = study.inputs.base_model, _runs(study)
    before = upstream_loss(study.inputs, base, base.model)
    losses: dict[Pair, list[float]] = {}
    with progress_bar("upstream losses of the calibrated pairs", len(runs)) as advance:
        for done, (run_id, pair) in enumerate(runs.items(), 1):
            wrapped = PeftModel.from_pretrained(base.model, str(_last_snapshot(study, run_id)))
            try:
                losses.setdefault(pair, []).append(upstream_loss(study.inputs, base, wrapped))
            finally:
                remove_adapters(wrapped)
            advance(done)
    means = {pair: sum(own) / len(own) for pair, own in losses.items()}
    predicted = {candidate.pair: candidate.loss for candidate in read_choice(study.revision).candidates}
    target = {pair: loss for pair, loss in predicted.items() if loss is not None}
    front = pareto_front(target, means, before, study.config.search.forgetting_weight or 0.0)
    write_json(pairs_path(study.revision), {"base_loss": before, "pairs": [one.to_json() for one in front]})
    return str(pairs_path(study.revision))


def _runs(study: Study) -> dict[str, Pair]:
    """Runs that stand for their pairs: where rates were searched for, those nearest each pair's best one."""
    metrics = collect_metrics(study, divergence(study))
    points = read_points(metrics, objective_named(study.config.search.objective))
    kept = metrics if points.rates is None else metrics[metrics["run_id"].isin(points.nearest)]
    rows = kept.groupby("run_id")[["r_me", "r_llm"]].first()
    return {str(run): (int(row.r_me), int(row.r_llm)) for run, row in rows.iterrows()}


def _last_snapshot(study: Study, run_id: str) -> Path:
    folder = study.path("calibration", "snapshots", run_id)
    steps = sorted(folder.iterdir()) if folder.is_dir() else []
    if not steps:
        raise ValueError(
            f"no adapter of calibration run {run_id} was kept in {folder}: set calibration.snapshots to true before "
            "calibrating, or leave search.forgetting_weight out"
        )
    return steps[-1]


def pairs_path(revision: Revision) -> Path:
    """Where the pairs' losses lie."""
    return revision.path("pair_forgetting.json")


def _inputs(study: Study, chosen: str) -> str:
    asked = [study.inputs.upstream_hash, study.inputs.fingerprint, study.config.search.forgetting_weight]
    return content_hash([chosen, *asked])


PAIR_FORGETTING = Stage(
    "search-forgetting",
    reads=lambda _: (CALIBRATE, SEARCH),
    inputs=_inputs,
    outputs=lambda study: (pairs_path(study.revision),),
)


def read_pairs(study: Study) -> dict[str, Any] | None:
    """The pairs' losses, None where they were not measured as the study now asks."""
    if study.config.search.forgetting_weight is None or not pairs_path(study.revision).is_file():
        return None
    return dict(read_json(pairs_path(study.revision))) if PAIR_FORGETTING.is_finished(study) else None
