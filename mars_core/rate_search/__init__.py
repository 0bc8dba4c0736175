"""Which learning rates are tried with which rank pairs, so that each pair can be judged at its own best rate."""

from mars_core.rate_search.design import (
    MOST_ROUNDS,
    Confirmation,
    anchors,
    first_rates,
    measured_edge,
    missing_rates,
    rate_beyond,
    rates_around,
)
from mars_core.rate_search.range_test import RANGE, best_of_range, range_pairs

__all__ = [
    "MOST_ROUNDS",
    "RANGE",
    "Confirmation",
    "anchors",
    "best_of_range",
    "first_rates",
    "measured_edge",
    "missing_rates",
    "range_pairs",
    "rate_beyond",
    "rates_around",
]
