"""The search for a baseline's learning rate, for `mars compare --tune-lr`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow

from flows.calibrate import train_step
from flows.here import Here
from flows.results import JSON_RESULTS
from tasks.final.rate_search import (
    NoRateHeld,
    ShortRun,
    conclude,
    first_rates,
    pair_runs,
    pair_step,
    rate_stage,
    read_search,
    search_path,
    train_short,
    wider_rate,
)
from tasks.running.progress import show_message
from tasks.service.timeouts import bounded
from tasks.settings.baselines import Baseline
from tasks.settings.study import StudyConfig
from tasks.storage.files import write_json
from tasks.study.opened import Study, open_study
from tasks.study.parent_run import parent_run


@flow(name="mars-tune-baseline", flow_run_name="tune rate of {baseline.name} {config.short_name}", **JSON_RESULTS)
def tune_baseline_flow(config: StudyConfig, baseline: Baseline, rates: list[float]) -> dict[str, Any]:
    """Find the learning rate of a baseline by short runs; returns it with what was tried and what that cost.

    Args:
        config: The study.
        baseline: As it was asked for.
        rates: Peak rates to try, none for those about where the search begins.
    """
    study = open_study(config)
    study.pull()  # another machine may have searched

    def work() -> None:
        with parent_run(study) as parent:
            found = conclude(study, baseline, rates, _short_runs(study, baseline, rates, parent))
        write_json(search_path(study.revision, baseline), found.to_json())

    try:
        rate_stage(baseline, rates).run(study, work)
    except NoRateHeld as error:
        raise NoRateHeld(f"baseline {baseline.name}: {error}") from error
    found = read_search(study.revision, baseline)
    edge = ", the edge of those that held: other --rates may do better" if found.at_edge else ""
    show_message(f"compare: {baseline.name} is best at a learning rate of {found.learning_rate:g}{edge}")
    return found.to_json()


def _short_runs(study: Study, baseline: Baseline, given: Sequence[float], parent: str) -> list[ShortRun]:
    """The short runs; where no rates were given, widened as long as the best one lies at the edge."""
    tried, rounds = first_rates(study, baseline, given), 1
    while True:
        runs = _runs_at(study, baseline, tried, parent)
        wider = None if given else wider_rate(study, runs, rounds)
        if wider is None:
            return runs
        show_message(f"compare: the best learning rate of {baseline.name} may lie beyond those tried: next {wider:g}")
        tried, rounds = (*tried, wider), rounds + 1


def _runs_at(study: Study, baseline: Baseline, rates: Sequence[float], parent: str) -> list[ShortRun]:
    if baseline.pair is not None:
        planned, step = pair_step(study, baseline, rates)
        train_step(planned, Here(), step, parent)
        return pair_runs(study, step.runs)
    limit = study.config.timeouts.final_run_hours
    short = bounded(train_short, limit, "timeouts.final_run_hours")
    return [short(study, baseline, rate, seed, parent) for rate in rates for seed in study.config.calibration.seeds]
