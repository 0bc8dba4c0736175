"""What a calibration will take before it has run; with automatic learning rates, its parts as far as they are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mars_core.rate_search import MOST_ROUNDS, RANGE, first_rates
from tasks.calibration.steps import RANGE_TEST, round_of
from tasks.settings.study import StudyConfig
from tasks.study.plan import CalibrationPlan, PlannedRun, calibration_pairs, describe_plan, plan_calibration
from tasks.study.rates import DecidedRates, RangeResult

CONFIRMING = "further runs of pairs that may be best"


def expected_plan(config: StudyConfig) -> CalibrationPlan:
    """The plan; with automatic rates that of a first round about the middle of the range test's rates.

    Which rates a pair gets changes no cost, how many it gets is known.

    Raises:
        ValueError: the study cannot be planned.
    """
    plan = plan_calibration(config)
    if not plan.outline:
        return plan
    middle = math.sqrt(RANGE[0] * RANGE[-1])
    rates = first_rates(calibration_pairs(config), config.calibration.reference, middle)
    found = RangeResult((), plan.range_test[0].schedule.horizon, {}, middle)
    return plan_calibration(config, DecidedRates(plan.rates_hash, found, (round_of(rates),)))


def describe_expected(config: StudyConfig, plan: CalibrationPlan) -> dict[str, Any]:
    """`describe_plan` with what each axis costs, as JSON values.

    axes: how many pairs, learning rates (of the pair with most), seeds and sizes there are. parts: runs and steps of
    each part of the calibration; `at_most` says that a part may be shorter, or not needed.
    """
    rates = [sum(run.pair == pair for run in plan.runs) for pair in calibration_pairs(config)]
    repeats = len(config.calibration.seeds) * len(plan.schedules)
    axes = {
        "pairs": len(rates),
        "learning_rates": max(rates) // repeats,
        "seeds": len(config.calibration.seeds),
        "sizes": len(plan.schedules),
    }
    return describe_plan(plan) | {"axes": axes, "parts": _parts(plan, config)}


def _parts(plan: CalibrationPlan, config: StudyConfig) -> list[dict[str, Any]]:
    if not plan.outline:
        return [_part("calibration", plan.runs)]
    wider = MOST_ROUNDS - 1
    parts = [
        _part(RANGE_TEST, plan.range_test),
        _part("calibration round 1", plan.runs),
        _part(f"calibration rounds 2 to {1 + wider}", plan.outline * wider) | {"at_most": True},
    ]
    if config.calibration.confirm_runs:
        parts.append(_part(CONFIRMING, plan.outline * config.calibration.confirm_runs) | {"at_most": True})
    return parts


def _part(name: str, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    steps = sum(run.schedule.horizon for run in runs)
    return {"name": name, "runs": len(runs), "pair_steps": steps, "at_most": False}


def parts_in_words(described: dict[str, Any]) -> list[str]:
    """The axes and the parts, a line each."""
    axes, parts = described["axes"], described["parts"]
    several = "up to " if len(parts) > 1 else ""
    named = (
        ("pairs", axes["pairs"], "", "pair"),
        ("learning_rates", axes["learning_rates"], several, "learning rate"),
        ("seeds", axes["seeds"], "", "seed"),
        ("sizes", axes["sizes"], "", "size"),
    )
    words = [
        f"{few}{count} {word}{'' if count == 1 else 's'}"
        for name, count, few, word in named
        if name != "sizes" or count > 1
    ]
    lines = [f"axes: {' x '.join(words)}"]
    for part in parts:
        most = "at most " if part["at_most"] else ""
        lines.append(f"{part['name']}: {most}{part['runs']} runs, {part['pair_steps']} steps in all")
    return lines
