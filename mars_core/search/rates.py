"""What a choice says of the learning rate: the best rate of the chosen pair, and what a fixed rate would have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mars_core.fitting.learning_rate import RateFit
from mars_core.ranks import Pair
from mars_core.rates import LearningRates
from mars_core.search.outlook import Outlook

Floats = NDArray[np.float64]
Interval = tuple[float, float]
SAME = 0.01  # of a log: rates that are one
BELOW = float(np.log(4.0))  # how far below the tried rates a longer final run may be trained
AT_EDGE = 0.05  # of a log: a best rate so little inside the measured range is at its edge


@dataclass(frozen=True)
class BestRate:
    """The best peak learning rate of a pair on one axis at the target size, with its 95% interval.

    axis: `all` for one rate of all modules, else `me` or `llm`.
    """

    pair: Pair
    axis: str
    rate: float
    interval: Interval


@dataclass(frozen=True)
class FixedRate:
    """What one fixed rate for all pairs gives, as shares of the objective.

    rates: peak rates of vision encoder and LLM. pair: best at this rate. excess: of that pair at this rate over the
    chosen pair at its best rate. default: the pair of a user who searches nothing, None where it was not compared.
    rate_gain: what the best rate gains for it. rank_gain: what the best pair gains over it, both at this rate.
    at_least: the rate lies outside those that were tried, and figures are those of the nearest one that was.
    """

    rates: tuple[float, float]
    pair: Pair
    excess: float
    default: Pair | None
    rate_gain: float
    rank_gain: float
    at_least: bool = False

    @property
    def was_the_limit(self) -> bool:
        """Whether changing the rate gains more than any change of rank: `learning rate was the limit`."""
        return self.default is not None and self.rate_gain > self.rank_gain


@dataclass(frozen=True)
class RateAnswer:
    """The learning-rate part of a choice.

    chosen: best rate of the chosen pair on each axis. pairs: of every pair. slopes: the law's coefficients with their
    95% intervals. measured: smallest and largest rate that was tried on each axis. notes: what may be wrong with it.
    fixed: beside the rate that the user gave, None where none was.
    """

    chosen: tuple[BestRate, ...]
    pairs: tuple[BestRate, ...]
    slopes: Mapping[str, tuple[float, float, float]]
    measured: Mapping[str, Interval]
    notes: tuple[str, ...] = ()
    fixed: FixedRate | None = None

    @property
    def learning_rates(self) -> LearningRates:
        """The rates to train the chosen pair with; the projector follows the LLM."""
        return _together(self.chosen)

    def of_pair(self, pair: Pair) -> LearningRates | None:
        """The rates to train a pair with, None for one that was not compared."""
        own = [one for one in (*self.chosen, *self.pairs) if one.pair == tuple(pair)]
        return _together(own) if own else None


def _together(own: Sequence[BestRate]) -> LearningRates:
    """Best rates of a pair's modules; a module without adapters has that of the other."""
    rate = {one.axis: float(f"{one.rate:.2g}") for one in own}  # as people can read and repeat it
    one_of_them = rate.get("all", rate.get("llm", rate.get("me", float("nan"))))
    return LearningRates(rate.get("all", rate.get("me", one_of_them)), one_of_them, one_of_them)


def rate_answer(fit: RateFit, outlook: Outlook, chosen: Pair, default: Pair, fixed: LearningRates | None) -> RateAnswer:
    """State the rates.

    Args:
        fit: the learning-rate law.
        outlook: every pair at its best rate, at the target size.
        chosen: the chosen pair.
        default: the pair that a user would take without a search.
        fixed: the rates that a user would take without a search, None where they are not known.
    """
    pairs = [*outlook.pairs, *([] if chosen in outlook.pairs else [chosen])]
    best = [one for pair in pairs for one in _best_rates(fit, pair, outlook.D_target)]
    own = tuple(one for one in best if one.pair == chosen)
    measured: dict[str, Interval] = {axis: _span(rates) for axis, rates in zip(fit.law.axes, fit.rates, strict=True)}
    symbols = [name for name in fit.law.symbols if name.startswith(("s_", "b", "l"))]
    slopes = {name: (float(fit.phi[fit.law.symbols.index(name)]), *fit.interval(name)) for name in symbols}
    answer = None
    if fixed is not None and chosen in outlook.pairs:
        answer = _fixed_rate(fit, outlook, chosen, default, fixed)
    return RateAnswer(own, tuple(best), slopes, measured, tuple(_edges(fit, chosen, measured)), answer)


def _best_rates(fit: RateFit, pair: Pair, size: float) -> list[BestRate]:
    """Of every module's adapters; none above the highest rate that was tried and held."""
    best, intervals = fit.best(pair, size), fit.best_interval(pair, size)
    found: list[BestRate] = []
    for i, axis in enumerate(fit.law.axes):
        middle = float(np.clip(best[i], fit.rates[i].min() - BELOW, fit.rates[i].max()))
        low, high = min(float(intervals[i, 0]), middle), max(float(intervals[i, 1]), middle)
        shifts = {"me": fit.ratio, "llm": 0.0} if axis == "all" and fit.ratio else {axis: 0.0}
        found += [BestRate(pair, name, *_exp(middle + by, low + by, high + by)) for name, by in shifts.items()]
    found += [BestRate(pair, name, *_exp(rate, rate, rate)) for name, rate in fit.held.items()]
    return [one for one in found if _adapted(one.axis, pair)]


def _exp(middle: float, low: float, high: float) -> tuple[float, Interval]:
    return float(np.exp(middle)), (float(np.exp(low)), float(np.exp(high)))


def _adapted(axis: str, pair: Pair) -> bool:
    return axis == "all" or pair[0 if axis == "me" else 1] > 0


def _span(log_rates: Floats) -> Interval:
    return float(np.exp(log_rates.min())), float(np.exp(log_rates.max()))


def _edges(fit: RateFit, chosen: Pair, measured: Mapping[str, Interval]) -> list[str]:
    """At the largest measured size: how the rate goes beyond it, no further rate would tell."""
    notes = []
    for axis, best in zip(fit.law.axes, fit.best(chosen, fit.law.centre.size), strict=True):
        (low, high), rate = measured[axis], float(np.exp(best))
        if _adapted(axis, chosen) and not low * np.exp(AT_EDGE) < rate < high * np.exp(-AT_EDGE):
            further = (
                "lower rates too" if rate < np.sqrt(low * high) else "higher rates too, unless runs diverged there"
            )
            of = "" if axis == "all" else f" of the {'vision encoder' if axis == 'me' else 'LLM'}"
            notes.append(
                f"the best learning rate{of} for {chosen} lies at the edge of the measured ones, {low:.2g} to "
                f"{high:.2g}: calibrate {further}"
            )
    return notes


def _fixed_rate(fit: RateFit, outlook: Outlook, chosen: Pair, default: Pair, fixed: LearningRates) -> FixedRate:
    """By the fitted law as it is: its doubt about a far target would count as a cost of the fixed rate alone."""
    paid, outside = _paid(fit, outlook, fixed)
    value, at_fixed = outlook.value, outlook.value + paid
    regret = np.expm1(at_fixed - at_fixed.min(axis=1, keepdims=True)).mean(axis=0)
    best = int(np.argmin(regret))
    at = outlook.pairs.index(default) if default in outlook.pairs else None
    return FixedRate(
        rates=(fixed.me, fixed.llm),
        pair=outlook.pairs[best],
        excess=float(np.expm1(at_fixed[:, best] - value[:, outlook.pairs.index(chosen)]).mean()),
        default=None if at is None else outlook.pairs[at],
        rate_gain=0.0 if at is None else float(np.expm1(paid[at])),
        rank_gain=0.0 if at is None else float(np.expm1(at_fixed[:, at] - at_fixed[:, best]).mean()),
        at_least=outside,
    )


def _paid(fit: RateFit, outlook: Outlook, fixed: LearningRates) -> tuple[Floats, bool]:
    """What every pair pays for the fixed rate, (n_pairs,), and whether that is the nearest tried rate in its place: far
    below the rates that were tried, the law's parabola says much too much."""
    logs = {"me": float(np.log(fixed.me)), "llm": float(np.log(fixed.llm)), "all": float(np.log(fixed.llm))}
    wanted = np.array([logs[axis] for axis in fit.law.axes])
    nearest = np.array([np.clip(rate, own.min(), own.max()) for rate, own in zip(wanted, fit.rates, strict=True)])
    rows, size = np.tile(nearest, (len(outlook.pairs), 1)), np.full(len(outlook.pairs), outlook.D_target)
    outside = bool(np.any(np.abs(nearest - wanted) > SAME))
    return fit.law.penalty(fit.phi, rows, outlook.pairs, size), outside
