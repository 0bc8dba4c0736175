"""The learning rate of one pair alone: a range test, then full-length runs about its best rate, and a parabola.

The runs are those that a calibration would train, so either takes what the other has stored. Nothing needs to be
remembered of what was decided, since the same runs decide the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mars_core.fitting.learning_rate import fit_learning_rates
from mars_core.ranks import RankPair
from mars_core.rate_search import MOST_ROUNDS, best_of_range, rate_beyond, rates_around
from mars_core.rate_search.design import rounded
from mars_core.records import Float, Record
from mars_core.search.objective import objective_named
from tasks.calibration.diverged import divergence
from tasks.calibration.steps import RANGE_TEST, Step, range_result
from tasks.calibration.stored import metrics_path, read_metrics
from tasks.study.opened import Study
from tasks.study.plan import CalibrationPlan, PlannedRun, plan_rates
from tasks.study.rates import RangeResult

AT_EDGE = 0.05  # of a log: a best rate so little inside the tried ones is at their edge


@dataclass(frozen=True)
class TriedRate:
    """A peak rate with the mean end of its runs, in the objective's unit; not a number where one of them diverged."""

    learning_rate: float
    runs: int
    loss: Float


@dataclass(frozen=True)
class TunedRate(Record):
    """The learning rate of a pair.

    learning_rate: best peak rate of a run of `steps` steps, with its 95% interval. tried: full-length runs. range_test:
    None where the rates were given. notes: what may be wrong with it.
    """

    pair: tuple[int, int]
    learning_rate: float
    interval: tuple[float, float]
    steps: int
    objective: str
    tried: tuple[TriedRate, ...]
    range_test: RangeResult | None
    notes: tuple[str, ...]


@dataclass
class Tuning:
    """The search for the rate of one pair.

    study: with the pair's runs as its plan. rates: to try, none for those about the best of a range test.
    """

    study: Study
    pair: RankPair
    rates: tuple[float, ...]
    range_test: RangeResult | None = field(default=None, init=False)
    _tried_now: tuple[float, ...] = field(default=(), init=False)

    def steps(self) -> Iterator[Step]:
        """The steps one after another; the runs of each must be stored before the next is asked for.

        Where no rates were given, they are widened as long as the best one lies at their edge.
        """
        if self.rates:
            yield self._full_length(self.rates)
            return
        yield Step(RANGE_TEST, self._planned().range_test)
        self._planned()
        self.range_test = range_result(self.study)
        tried = rates_around(self.range_test.best)
        for _ in range(MOST_ROUNDS):
            yield self._full_length(tried)
            beyond = rate_beyond(tried, self._best()[0])
            if beyond is None:
                return
            tried = (*tried, beyond)

    def answer(self) -> TunedRate:
        """The best rate by the runs of the last step.

        Raises:
            ValueError: fewer than two rates are left that did not diverge.
        """
        best, interval = self._best()
        tried = self._tried()
        return TunedRate(
            (self.pair.r_me, self.pair.r_llm),
            rounded(best),
            interval,
            self.study.plan.schedules[0].horizon,
            self.study.config.search.objective,
            tried,
            self.range_test,
            tuple(_at_edge(best, [one.learning_rate for one in tried if math.isfinite(one.loss)])),
        )

    def _planned(self) -> CalibrationPlan:
        """The plan of the runs so far, again in place of the calibration's: a study that is pulled plans anew."""
        self.study.plan = plan_rates(self.study.inputs, self.pair, self._tried_now)
        return self.study.plan

    def _full_length(self, rates: Sequence[float]) -> Step:
        self._tried_now = tuple(rates)
        return Step("full-length runs", self._planned().runs)

    def _best(self) -> tuple[float, tuple[float, float]]:
        """The best rate with its 95% interval: of a parabola through the lowest rate and its neighbours on either side.

        One pair has runs enough near its best rate, and a parabola that reaches further can miss it.
        """
        self._planned()
        objective = objective_named(self.study.config.search.objective)
        ends = self._ends()
        ends = ends[ends["loss"] > 0.0].assign(value=lambda rows: objective.value(rows["loss"].to_numpy()))
        by_rate = ends.groupby("log_llm")["value"].mean()
        means = dict(zip(np.exp(by_rate.index.to_numpy(dtype=np.float64)).tolist(), by_rate.tolist(), strict=True))
        near = _about_the_lowest(ends)
        fit = fit_learning_rates(near, objective.level(near["value"].to_numpy())) if len(near) else None
        if fit is None:
            raise ValueError(
                f"fewer than two learning rates of {self.pair} are left that did not diverge: give lower ones with "
                "--rates"
            )
        best, (low, high) = best_of_range(means), np.exp(fit.best_interval(self.pair, float(near["D"].max()))[0])
        return best, (min(float(low), best), max(float(high), best))

    def _ends(self) -> pd.DataFrame:
        """Last checkpoints of the runs at rates where none diverged."""
        left_out = divergence(self.study).left_out
        lost = {self._rate(run) for run in left_out}
        kept = [run for run in self.study.plan.runs if self._rate(run) not in lost]
        columns = ["r_me", "r_llm", "seed", "D", "log_me", "log_llm", "loss"]
        return pd.DataFrame([self._end(run) for run in kept], columns=columns)

    def _end(self, run: PlannedRun) -> list[float]:
        rows = read_metrics(metrics_path(self.study.revision, run.run_id))
        last, log = rows.iloc[-1], math.log(self._rate(run))
        column = objective_named(self.study.config.search.objective).column
        return [*run.pair, run.seed, float(last["unique_samples"]), log, log, float(last[column])]

    def _tried(self) -> tuple[TriedRate, ...]:
        rates = sorted({self._rate(run) for run in self.study.plan.runs})
        ends = self._ends()
        runs = len(self.study.config.calibration.seeds)
        return tuple(
            TriedRate(rate, runs, float(ends.loc[np.isclose(ends["log_llm"], math.log(rate)), "loss"].mean()))
            for rate in rates
        )

    def _rate(self, run: PlannedRun) -> float:
        return (run.learning_rates or self.study.config.recipe.as_recipe().learning_rates.of_pair(self.pair)).llm


def _about_the_lowest(ends: pd.DataFrame) -> pd.DataFrame:
    """Runs at the rate that ended lowest and at its neighbours."""
    means = ends.groupby("log_llm")["value"].mean()
    at = int(means.to_numpy().argmin()) if len(means) else 0
    kept: pd.DataFrame = ends[ends["log_llm"].isin(means.index[max(at - 1, 0) : at + 2])]
    return kept


def begin_tuning(study: Study, pair: RankPair, rates: Sequence[float]) -> Tuning:
    """A search for a pair's rate on a study's data, whose own plan is left as it is."""
    return Tuning(Study(study.config, study.revision, study.inputs), pair, tuple(rates))


def _at_edge(best: float, tried: Sequence[float]) -> Iterator[str]:
    low, high = min(tried), max(tried)
    if best <= low * math.exp(AT_EDGE) or best >= high * math.exp(-AT_EDGE):
        side = "lower" if best < math.sqrt(low * high) else "higher"
        yield (
            f"the best rate, {best:.2g}, lies at the edge of those that held, {low:.2g} to {high:.2g}: try {side} ones "
            "with --rates"
        )
