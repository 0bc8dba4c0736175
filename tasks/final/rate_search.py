"""The learning rate of a baseline, searched for at a budget that is the same for every baseline.

Short runs as long as a calibration run, one per rate and calibration seed, end in a validation loss; a parabola in the
log rate about the lowest has the best rate at its vertex. A rank pair's short runs are calibration runs. Those of
other methods are trained as their final run is, and lie beside it:

STUDY/revisions/001/final/NAME-tuned/rate_search.json   the rate, what was tried, what it cost
STUDY/revisions/001/final/NAME-tuned/rates/ID.json      a short run
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.metrics.identity import content_hash
from mars_core.rate_search import MOST_ROUNDS, best_of_range, rate_beyond, rates_around
from mars_core.rate_search.design import rounded
from mars_core.records import Float, Record, json_safe
from mars_core.search.objective import objective_named
from mars_core.training.finetune import FinalRun, FinalSettings, FinetuneDiverged, Listeners
from tasks.calibration.steps import Step
from tasks.calibration.stored import metrics_path, read_metrics, summary_path
from tasks.final.run import trained_on
from tasks.final.train import release, settings_of, train
from tasks.inputs.base_model import device_name, resolve_device
from tasks.inputs.opened import Inputs
from tasks.running.progress import noting, progress_bar
from tasks.settings.baselines import Baseline
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.plan import PlannedRun, calibration_schedules, plan_rates
from tasks.study.rates import read_rates
from tasks.study.stage import Stage
from tasks.tracking import runs as tracking
from tasks.tracking.live_curves import LiveCurves


class NoRateHeld(ValueError):  # noqa: N818 - reads as the fact it states
    """Every short run of a baseline diverged."""


@dataclass(frozen=True)
class ShortRun:
    """learning_rate: peak rate, the LLM's where modules differ. loss: at the end, on the calibration validation set, in
    the objective's unit; not a number where it diverged. seconds: of training and evaluation."""

    learning_rate: float
    seed: int
    loss: Float
    seconds: float


@dataclass(frozen=True)
class RateSearch(Record):
    """The learning rate of a baseline.

    start: rate that the search began about, None where the rates to try were given. learning_rate: the best one, the
    LLM's where modules differ. learning_rates: of vision encoder, projector and LLM. at_edge: whether it is the lowest
    or the highest of the rates that held. steps: optimizer steps of each run.
    """

    baseline: str
    start: float | None
    learning_rate: float
    learning_rates: tuple[float, float, float]
    at_edge: bool
    steps: int
    objective: str
    runs: tuple[ShortRun, ...]

    stored_too: ClassVar[tuple[str, ...]] = ("cost",)

    @property
    def cost(self) -> dict[str, float]:
        """What the search took: runs, their optimizer steps together, and their seconds."""
        return {
            "runs": len(self.runs),
            "pair_steps": len(self.runs) * self.steps,
            "seconds": sum(run.seconds for run in self.runs),
        }


def start_rate(study: Study, baseline: Baseline) -> float:
    """Where the search begins: the best rate of the study's range test, else the baseline's rate as it is without a
    search; times the method's share of it (`rate_share`)."""
    decided = read_rates(study.revision)
    usual = baseline.peak_rates(study.config.recipe.as_recipe()).llm
    return (usual if decided is None else decided.range_test.best) * baseline.settings.rate_share


def first_rates(study: Study, baseline: Baseline, given: Sequence[float]) -> tuple[float, ...]:
    """Rates that are tried first: those given, else those about `start_rate`."""
    return tuple(given) or rates_around(start_rate(study, baseline))


def wider_rate(study: Study, runs: Sequence[ShortRun], rounds: int) -> float | None:
    """The rate to try next, where the best one lies at the edge of those tried; None after the last round.

    Raises:
        NoRateHeld: every run diverged.
    """
    if rounds >= MOST_ROUNDS:
        return None
    return rate_beyond({run.learning_rate for run in runs}, _best(runs, study.config.search.objective))


def conclude(study: Study, baseline: Baseline, given: Sequence[float], runs: Sequence[ShortRun]) -> RateSearch:
    """What the short runs come down to.

    Raises:
        NoRateHeld: every run diverged.
    """
    objective, recipe = study.config.search.objective, study.config.recipe.as_recipe()
    exact, held = _best(runs, objective), _held(runs)
    best = rounded(exact)
    rates = baseline.at_rate(best, recipe).peak_rates(recipe)
    return RateSearch(
        baseline=baseline.as_tuned().name,
        start=None if given else start_rate(study, baseline),
        learning_rate=best,
        learning_rates=(rates.me, rates.projector, rates.llm),
        at_edge=any(math.isclose(exact, edge.learning_rate) for edge in (held[0], held[-1])),
        steps=short_steps(study.inputs),
        objective=objective,
        runs=tuple(sorted(runs, key=lambda run: (run.learning_rate, run.seed))),
    )


def _best(runs: Sequence[ShortRun], objective: str) -> float:
    """The vertex of the parabola through the best rate and its neighbours; at the edge of those that held, the edge.

    It stays local on purpose: over a factor of 32 the loss is no parabola, and a rival must not pay for that.
    """
    held = _held(runs)
    if not held:
        tried = ", ".join(f"{rate:g}" for rate in sorted({run.learning_rate for run in runs}))
        raise NoRateHeld(f"every short run diverged, at learning rates {tried}: give lower ones with --rates")
    values = objective_named(objective).value(np.array([run.loss for run in held]))
    ends: dict[float, list[float]] = {}
    for run, value in zip(held, values, strict=True):
        ends.setdefault(run.learning_rate, []).append(float(value))
    return best_of_range({rate: sum(found) / len(found) for rate, found in ends.items()})


def _held(runs: Sequence[ShortRun]) -> list[ShortRun]:
    """Runs at rates where none diverged, the lowest rate first."""
    lost = {run.learning_rate for run in runs if not (math.isfinite(run.loss) and run.loss > 0.0)}
    return sorted((run for run in runs if run.learning_rate not in lost), key=lambda run: run.learning_rate)


def short_steps(inputs: Inputs) -> int:
    """Optimizer steps of a short run: those of a calibration run."""
    return calibration_schedules(inputs)[0][0].horizon


def pair_step(study: Study, baseline: Baseline, rates: Sequence[float]) -> tuple[Study, Step]:
    """The calibration runs of a rank pair at these rates, and the study with them as its plan."""
    assert baseline.pair is not None
    planned = study.with_plan(plan_rates(study.inputs, baseline.pair, rates))
    return planned, Step(f"learning rates of {baseline.name}", planned.plan.runs)


def pair_runs(study: Study, runs: Sequence[PlannedRun]) -> list[ShortRun]:
    """Stored calibration runs of a rank pair as short runs."""
    return [_pair_run(study, run) for run in runs]


def _pair_run(study: Study, run: PlannedRun) -> ShortRun:
    rates = run.learning_rates or study.config.recipe.as_recipe().learning_rates.of_pair(run.pair)
    summary = read_json(summary_path(study.revision, run.run_id))
    column = objective_named(study.config.search.objective).column
    loss = math.nan
    if summary["diverged_at"] is None:
        loss = float(read_metrics(metrics_path(study.revision, run.run_id))[column].iloc[-1])
    return ShortRun(rates.llm, run.seed, loss, summary["wall_seconds"])


@task(name="try-rate", task_run_name="try {rate:g} for {baseline.name}", cache_policy=NO_CACHE, persist_result=False)
def train_short(study: Study, baseline: Baseline, rate: float, seed: int, parent: str) -> ShortRun:
    """A short run of any method as its final run is trained; one that is stored is not trained again."""
    own = baseline.at_rate(rate, study.config.recipe.as_recipe())
    path = _short_path(study, baseline, own, seed)
    if not path.is_file():
        write_json(path, _trained(study, own, rate, seed, path, parent))
    stored = read_json(path)
    return ShortRun(rate, seed, math.nan if stored["loss"] is None else stored["loss"], stored["seconds"])


def _short_path(study: Study, baseline: Baseline, own: Baseline, seed: int) -> Path:
    made_of = trained_on(study.inputs, own) | {"steps": short_steps(study.inputs), "seed": seed}
    return search_path(study.revision, baseline).parent / "rates" / f"{content_hash(made_of, length=12)}.json"


def _trained(study: Study, own: Baseline, rate: float, seed: int, path: Path, parent: str) -> dict[str, Any]:
    """Train; the record of the run."""
    steps, name = short_steps(study.inputs), f"{own.name} lr{rate:g} seed{seed}"
    parameters = {"baseline": own.settings.described(), "learning_rate": rate, "seed": seed, "steps": steps}
    tags = {"mars.kind": "rate-search", "mars.revision": str(study.revision.number)}
    with (
        tracking.child_run(parent, name, parameters, tags) as tracked,
        progress_bar(f"learning rate {rate:g} of {own.name}", steps) as advance,
    ):
        curves = LiveCurves(tracked)
        checkpoints = path.parent.parent / f"checkpoints-{path.stem}"
        started = time.perf_counter()
        settings = replace(settings_of(study.config, own, steps, checkpoints), seed=seed, evaluations=1)
        run = _run(study.inputs, own, settings, Listeners(on_step=advance, on_log=noting(advance, curves.log)))
        curves.end()
        shutil.rmtree(checkpoints, ignore_errors=True)
        record = {
            "learning_rate": rate,
            "seed": seed,
            "steps": steps,
            "loss": math.nan if run is None else _end(run),
            "seconds": time.perf_counter() - started if run is None else run.seconds,
            "device": device_name(resolve_device(study.config.device)),
            "devices": 1 if run is None else run.devices,
            "mlflow_run_id": tracked,
        }
    stored: dict[str, Any] = json_safe(record)
    return stored


def _run(inputs: Inputs, own: Baseline, settings: FinalSettings, listeners: Listeners) -> FinalRun | None:
    """The run; None where it diverged."""
    try:
        wrapped, run = train(inputs, own, settings, listeners)
    except FinetuneDiverged:
        return None
    release(inputs, own, wrapped)
    return run


def _end(run: FinalRun) -> float:
    return run.best_val_loss if run.best_objective is None else run.best_objective


def search_path(revision: Revision, baseline: Baseline) -> Path:
    """Where the search of a baseline, tuned or to be tuned, lies."""
    name = (baseline if baseline.tuned else baseline.as_tuned()).name
    return revision.path("final", name, "rate_search.json")


def read_search(revision: Revision, baseline: Baseline) -> RateSearch:
    """The search that a tuned baseline has its rate from."""
    return RateSearch.from_json(read_json(search_path(revision, baseline)))


def rate_stage(baseline: Baseline, given: Collection[float]) -> Stage:
    """The search for a baseline's rate as a stage."""

    def inputs(study: Study, _: str) -> str:
        first = first_rates(study, baseline, tuple(given))
        own = baseline.at_rate(first[0], study.config.recipe.as_recipe())
        made_of = trained_on(study.inputs, own)
        seeds = list(study.config.calibration.seeds)
        return content_hash([made_of, list(first), bool(given), seeds, short_steps(study.inputs)])

    def outputs(study: Study) -> list[Path]:
        path = search_path(study.revision, baseline)
        return [path, *sorted((path.parent / "rates").glob("*.json"))]

    return Stage(f"rate-{baseline.as_tuned().name}", inputs=inputs, outputs=outputs)


def tuned_baseline(study: Study, baseline: Baseline) -> Baseline:
    """A baseline, whose search has finished, at the rate that it found."""
    found, recipe = read_search(study.revision, baseline), study.config.recipe.as_recipe()
    return baseline.as_tuned().at_rate(found.learning_rate, recipe)
