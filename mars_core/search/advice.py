"""Warnings: what may change the decision, and what would settle it."""

from __future__ import annotations

import numpy as np

from mars_core.ranks import Pair
from mars_core.search.observed import Measured
from mars_core.search.outlook import INTERVAL, Calibration, Outlook

APART = 0.1  # share of such checkpoints above which it is said
FAR = 8.0  # times the largest measured size
LONGER = 4  # how much longer a calibration the warning speaks of


def warnings_of(calibration: Calibration, outlook: Outlook, chosen: Pair, measured: Measured) -> tuple[str, ...]:
    """The gravest first."""
    return (*_unmeasured(outlook, chosen, measured), *_apart(calibration), *_far(calibration, outlook, chosen))


def _unmeasured(outlook: Outlook, chosen: Pair, measured: Measured) -> list[str]:
    if chosen not in outlook.pairs:
        return [
            f"no calibration run has the chosen pair {chosen}, so its regret is not stated: calibrate it, or name the "
            "available ranks (ranks_me, ranks_llm)"
        ]
    if measured.is_extrapolated(chosen):
        return [f"the chosen pair {chosen} has a rank outside the calibrated ones: calibrate it before relying on it"]
    if chosen not in measured.pairs:
        return [f"no calibration run has the chosen pair {chosen}: its loss is read off its neighbours"]
    return []


def _apart(calibration: Calibration) -> list[str]:
    """Runs that share too little to be compared at the same point."""
    doubt = calibration.curves.common.doubt
    apart = float(np.mean(doubt > 0))
    if apart <= APART:
        return []
    return [
        f"{apart:.0%} of the checkpoints have no other pair's run of the same seed and step beside them, so pairs are "
        f"compared across them at a doubt of {float(doubt.max()):.1%} of the loss: give all pairs the same seeds and "
        "checkpoints"
    ]


def _far(calibration: Calibration, outlook: Outlook, chosen: Pair) -> list[str]:
    """The target lies far beyond what was measured: how far, and what a longer calibration costs and gains."""
    factor = outlook.D_target / outlook.largest
    if factor <= FAR:
        return []
    longer = int(LONGER * outlook.largest)
    message = (
        f"the final run's {outlook.D_target:,.0f} samples are {factor:.0f} times the largest calibrated size of "
        f"{outlook.largest:,.0f}; calibrating on {longer:,} samples takes {LONGER} times as many steps"
    )
    now, then = (
        _half_width(calibration, outlook, chosen, size) for size in (outlook.D_target, outlook.D_target / LONGER)
    )
    if now is None or then is None:
        return [message]
    return [
        f"{message} and would take the 95% interval of the difference to the next best pair from ±{now:.2%} to about "
        f"±{then:.2%}"
    ]


def _half_width(calibration: Calibration, outlook: Outlook, chosen: Pair, size: float) -> float | None:
    """Of the excess of the next best pair at a size: a calibration four times as long leaves a quarter of the way."""
    if len(outlook.pairs) < 2 or chosen not in outlook.pairs:
        return None
    order = [outlook.pairs[i] for i in np.argsort(outlook.expected_regret) if outlook.pairs[i] != chosen]
    there = calibration.at(size, outlook.pairs)
    low, high = np.percentile(there.excess_over(chosen)[:, there.pairs.index(order[0])], INTERVAL)
    return float(high - low) / 2.0
