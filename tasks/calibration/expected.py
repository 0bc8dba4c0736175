"""What a calibration will take before it has run; with automatic learning rates, its parts as far as they are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mars_core.rate_search import MOST_ROUNDS, RANGE, first_rates
from mars_core.records import Record
from tasks.calibration.steps import RANGE_TEST, round_of
from tasks.inputs.opened import Inputs
from tasks.settings.study import StudyConfig
from tasks.study.plan import CalibrationPlan, PlannedRun, calibration_pairs, describe_plan, plan_calibration
from tasks.study.rates import DecidedRates, RangeResult

CONFIRMING = "further runs of pairs that may be best"


def expected_plan(inputs: Inputs) -> CalibrationPlan:
    """The plan; with automatic rates that of a first round about the middle of the range test's rates.

    Which rates a pair gets changes no cost, how many it gets is known.

    Raises:
        ValueError: the study cannot be planned.
    """
    plan = plan_calibration(inputs)
    if not plan.outline:
        return plan
    middle = math.sqrt(RANGE[0] * RANGE[-1])
    rates = first_rates(calibration_pairs(inputs.config), inputs.config.calibration.reference, middle)
    found = RangeResult((), plan.range_test[0].schedule.horizon, {}, middle)
    return plan_calibration(inputs, DecidedRates(plan.rates_hash, found, (round_of(rates),)))


@dataclass(frozen=True)
class Axes(Record):
    """How many pairs, learning rates (of the pair with most), seeds and sizes a calibration has."""

    pairs: int
    learning_rates: int
    seeds: int
    sizes: int


@dataclass(frozen=True)
class PlanPart(Record):
    """Runs and steps of a part of the calibration; at_most: it may be shorter, or not needed."""

    name: str
    runs: int
    pair_steps: int
    at_most: bool


def describe_expected(config: StudyConfig, plan: CalibrationPlan) -> dict[str, Any]:
    """`describe_plan` with what each axis costs (`axes`, `parts`), as JSON values."""
    costs = {"axes": axes_of(config, plan).to_json(), "parts": [part.to_json() for part in parts_of(plan, config)]}
    return describe_plan(plan) | costs


def axes_of(config: StudyConfig, plan: CalibrationPlan) -> Axes:
    """The axes of a plan."""
    rates = [sum(run.pair == pair for run in plan.runs) for pair in calibration_pairs(config)]
    repeats = len(config.calibration.seeds) * len(plan.schedules)
    return Axes(len(rates), max(rates) // repeats, len(config.calibration.seeds), len(plan.schedules))


def parts_of(plan: CalibrationPlan, config: StudyConfig) -> list[PlanPart]:
    """The parts of a plan; with automatic learning rates, as far as they are known."""
    if not plan.outline:
        return [_part("calibration", plan.runs)]
    wider = MOST_ROUNDS - 1
    parts = [
        _part(RANGE_TEST, plan.range_test),
        _part("calibration round 1", plan.runs),
        replace(_part(f"calibration rounds 2 to {1 + wider}", plan.outline * wider), at_most=True),
    ]
    if config.calibration.confirm_runs:
        further = _part(CONFIRMING, plan.outline * config.calibration.confirm_runs)
        parts.append(replace(further, at_most=True))
    return parts


def _part(name: str, runs: Sequence[PlannedRun]) -> PlanPart:
    return PlanPart(name, len(runs), sum(run.schedule.horizon for run in runs), at_most=False)


def parts_in_words(axes: Axes, parts: Sequence[PlanPart]) -> list[str]:
    """The axes and the parts, a line each."""
    several = "up to " if len(parts) > 1 else ""
    named = (
        (axes.pairs, "", "pair"),
        (axes.learning_rates, several, "learning rate"),
        (axes.seeds, "", "seed"),
        *([(axes.sizes, "", "size")] if axes.sizes > 1 else []),
    )
    words = [f"{few}{count} {word}{'' if count == 1 else 's'}" for count, few, word in named]
    lines = [f"axes: {' x '.join(words)}"]
    for part in parts:
        most = "at most " if part.at_most else ""
        lines.append(f"{part.name}: {most}{part.runs} runs, {part.pair_steps} steps in all")
    return lines
