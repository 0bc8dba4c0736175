"""Which learning rates to try next, after the runs so far: the rule of a calibration's rounds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from mars_core.ranks import Pair
from mars_core.rate_search import measured_edge, missing_rates
from mars_core.search.points import Points


def next_rates(
    points: Points, tried: Mapping[Pair, Sequence[float]], several: Collection[Pair]
) -> dict[Pair, tuple[float, ...]]:
    """Rates that are missing, by pair; empty where every pair was tried near its best rate.

    Args:
        points: the runs so far, without those that diverged.
        tried: rates of each pair so far, those that diverged among them.
        several: pairs that are tried at several rates.

    Raises:
        ValueError: no pair has runs at two rates that did not diverge.
    """
    if points.rates is None:
        raise ValueError(
            "no pair has runs at two learning rates that did not diverge: lower rates are needed, name them in "
            "calibration.learning_rates"
        )
    size = float(points.runs["D"].max())
    ends = _ends(points, tried)
    # Where a pair's runs are lowest at the edge of its rates, the law may see a bottom inside: further rates must tell.
    best = {pair: measured_edge(own) or math.exp(float(points.rates.best(pair, size)[0])) for pair, own in ends.items()}
    return missing_rates(tried, best, several, diverged_rates(points, tried))


def diverged_rates(points: Points, tried: Mapping[Pair, Sequence[float]]) -> dict[Pair, list[float]]:
    """Rates of each pair at which a run diverged.

    Args:
        points: the runs so far, without those that diverged.
        tried: rates of each pair so far, those that diverged among them.
    """
    return {
        pair: [rate for rate, loss in own.items() if math.isnan(loss)] for pair, own in _ends(points, tried).items()
    }


def _ends(points: Points, tried: Mapping[Pair, Sequence[float]]) -> dict[Pair, dict[float, float]]:
    size = float(points.runs["D"].max())
    return {pair: _losses(points, pair, rates, size) for pair, rates in tried.items()}


def _losses(points: Points, pair: Pair, rates: Sequence[float], size: float) -> dict[float, float]:
    """Mean loss of a pair's runs at the largest size by rate, not a number where they diverged."""
    runs = points.runs
    own = runs[(runs["r_me"] == pair[0]) & (runs["r_llm"] == pair[1]) & (runs["D"] == size)]
    return {rate: float(own.loc[np.isclose(own["log_llm"], math.log(rate)), "loss"].mean()) for rate in rates}
