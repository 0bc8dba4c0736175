"""The steps of a calibration: all runs at once, or with automatic learning rates a range test and rounds.

What to try next is decided from the runs so far and stored before it is trained, so that a calibration that was stopped
goes on with the same rates, and every process plans the same runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mars_core.ranks import Pair, RankPair
from mars_core.rate_search import MOST_ROUNDS, Confirmation, anchors, best_of_range, first_rates
from mars_core.search.confirm import Budget, confirmations, measured_outlook
from mars_core.search.next_rates import diverged_rates, next_rates
from mars_core.search.objective import objective_named
from mars_core.search.points import Points, read_points
from tasks.calibration.diverged import collect_metrics, divergence
from tasks.calibration.stored import metrics_path, read_metrics, summary_path
from tasks.running.progress import show_message
from tasks.settings.study import StudyConfig
from tasks.storage.files import read_json
from tasks.storage.transfer import publish_files
from tasks.study.opened import Study
from tasks.study.plan import CalibrationPlan, PlannedRun, calibration_pairs
from tasks.study.rates import DecidedRates, PairRates, RangeResult, rates_path, read_rates, write_rates

ALL_AT_ONCE, RANGE_TEST = "calibration", "learning-rate range test"


@dataclass(frozen=True)
class Step:
    """Runs that are trained before anything else is decided, by the name that people see."""

    name: str
    runs: tuple[PlannedRun, ...]

    @property
    def run_lengths(self) -> str:
        """How long its runs are, in words."""
        return CalibrationPlan(self.runs, ()).run_lengths


def calibration_steps(study: Study) -> Iterator[Step]:
    """The steps one after another; the runs of each must be stored before the next is asked for."""
    if not study.plan.outline:
        yield Step(ALL_AT_ONCE, study.plan.runs)
        return
    if not study.plan.runs:
        yield Step(RANGE_TEST, study.plan.range_test)
        _decide(study, first_round(study, range_result(study)))
    while True:
        decided = _decided(study)
        yield Step(f"calibration round {len(decided.rounds)}", study.plan.runs)
        if decided.complete:
            return
        wider = next_round(study, decided)
        _decide(study, wider)
        if wider.complete:
            return


def range_result(study: Study) -> RangeResult:
    """What the runs of the range test gave.

    Raises:
        ValueError: all of them diverged.
    """
    ends: dict[float, list[float]] = {}
    for run in study.plan.range_test:
        assert run.learning_rates is not None
        ends.setdefault(run.learning_rates.llm, []).append(_end(study, run))
    losses = {rate: sum(found) / len(found) for rate, found in ends.items()}
    pairs = tuple(dict.fromkeys(run.pair for run in study.plan.range_test))
    found = RangeResult(pairs, study.plan.range_test[0].schedule.horizon, losses, best_of_range(losses))
    show_message(f"calibrate: {_range_words(found)}")
    return found


def _end(study: Study, run: PlannedRun) -> float:
    if read_json(summary_path(study.revision, run.run_id, run.part))["diverged_at"] is not None:
        return math.nan
    return float(read_metrics(metrics_path(study.revision, run.run_id, run.part))["val_loss"].iloc[-1])


def first_round(study: Study, found: RangeResult) -> DecidedRates:
    """The rates that each pair is tried at first."""
    rates = first_rates(calibration_pairs(study.config), study.config.calibration.reference, found.best)
    return DecidedRates(study.plan.rates_hash, found, (round_of(rates),))


def next_round(study: Study, decided: DecidedRates) -> DecidedRates:
    """The rates that are missing after the runs so far; none, where every pair was tried near its best rate and the
    pairs that may be best can be told apart, or their runs are spent."""
    points = read_points(collect_metrics(study, divergence(study)), objective_named(study.config.search.objective))
    tried: dict[Pair, tuple[float, ...]] = dict(iter(decided.rates.items()))
    if not decided.confirmations and len(decided.rounds) < MOST_ROUNDS:
        several = anchors(calibration_pairs(study.config), study.config.calibration.reference)
        if missing := next_rates(points, tried, several):
            words = ", ".join(f"{pair} at {_listed(rates)}" for pair, rates in missing.items())
            show_message(f"calibrate: the best learning rate may lie beyond those tried: next {words}")
            return replace(decided, rounds=(*decided.rounds, round_of(missing)))
    return _confirmed(study, decided, points, diverged_rates(points, tried))


def _confirmed(
    study: Study, decided: DecidedRates, points: Points, diverged: Mapping[Pair, Sequence[float]]
) -> DecidedRates:
    found: tuple[Confirmation, ...] = ()
    spent, budget = len(decided.confirmations), confirming_budget(study.config)
    if points.rates is not None and spent < budget.most:
        outlook = measured_outlook(points, objective_named(study.config.search.objective))
        seeds = [run.seed for run in study.plan.runs]
        found = confirmations(outlook, points.rates, seeds, spent, budget, diverged)
    if not found:
        return replace(decided, complete=True)
    by_pair: dict[Pair, list[Confirmation]] = {}
    for one in found:
        by_pair.setdefault(one.pair, []).append(one)
    round_ = tuple(
        PairRates(pair, tuple(one.rate for one in own), tuple(one.seed for one in own)) for pair, own in by_pair.items()
    )
    words = ", ".join(f"{one.pair} at {_listed(sorted(set(one.learning_rates)))}" for one in round_)
    show_message(f"calibrate: the best pairs cannot be told apart yet: {len(found)} more runs of {words}")
    return replace(decided, rounds=(*decided.rounds, round_))


def confirming_budget(config: StudyConfig) -> Budget:
    """How many runs may train pairs again, of each schedule."""
    own = config.calibration
    return Budget.of(len(calibration_pairs(config)), len(own.seeds), own.confirm_runs)


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def round_of(rates: Mapping[Pair, tuple[float, ...]] | Mapping[RankPair, tuple[float, ...]]) -> tuple[PairRates, ...]:
    """Rates of pairs as they are stored."""
    return tuple(PairRates(pair, own) for pair, own in rates.items())


def _decided(study: Study) -> DecidedRates:
    decided = read_rates(study.revision)
    assert decided is not None  # the plan has its runs from there
    return decided


def _decide(study: Study, decided: DecidedRates) -> None:
    write_rates(study.revision, decided)
    publish_files(study.config.study, [rates_path(study.revision)])
    study.plan_again()


def _range_words(found: RangeResult) -> str:
    ends = ", ".join(
        f"{rate:g}: {f'{loss:.3f}' if math.isfinite(loss) else 'diverged'}"
        for rate, loss in sorted(found.losses.items())
    )
    return f"the range test is best at a learning rate of {found.best:.2g} (validation loss by rate: {ends})"
