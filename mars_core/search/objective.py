"""What the search minimises: perplexity, or a metric of the validation answers.

Law P is fitted to a positive quantity in log residuals: to the loss for perplexity, to the metric itself otherwise. So
the excess of one pair over another is read differently: exp(loss - loss') - 1 for perplexity, metric / metric' - 1 for
a metric; both are shares, and a margin means the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mars_core.metrics.schema import PERPLEXITY

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """name: what is minimised. quantity: what law P predicts of it. column: of the checkpoint metrics that holds it.

    excess: share by which predictions exceed others. perplexity: of a predicted value, None where it says nothing.
    value: of the quantity, such that an excess is exp of a difference of values, less 1. log_quantity: log of the
    quantity from its value. quantity_of: the quantity from its value. level: of values, what noise is a share of.
    """

    name: str
    quantity: str
    column: str
    excess: Callable[[Floats, Floats], Floats]
    perplexity: Callable[[float], float | None]
    value: Callable[[Floats], Floats]
    log_quantity: Callable[[Floats], Floats]
    quantity_of: Callable[[Floats], Floats]
    level: Callable[[Floats], float]


def _excess_perplexity(loss: Floats, other: Floats) -> Floats:
    return np.asarray(np.expm1(loss - other))


def _excess(value: Floats, other: Floats) -> Floats:
    return np.asarray(value / other - 1.0)


def _same(values: Floats) -> Floats:
    return values


def _log(values: Floats) -> Floats:
    return np.asarray(np.log(values))


def _exp(values: Floats) -> Floats:
    return np.asarray(np.exp(values))


def _median(losses: Floats) -> float:
    return max(float(np.median(np.abs(losses))), 1e-9)


def _one(logs: Floats) -> float:
    return 1.0  # a difference of logarithms is a share already


PERPLEXITY_OBJECTIVE = Objective(
    PERPLEXITY,
    "loss",
    "val_loss",
    _excess_perplexity,
    math.exp,
    value=_same,
    log_quantity=_log,
    quantity_of=_same,
    level=_median,
)


def objective_named(name: str) -> Objective:
    """Perplexity, or the metric of this name."""
    if name == PERPLEXITY:
        return PERPLEXITY_OBJECTIVE
    return Objective(
        name,
        name,
        "val_objective",
        _excess,
        lambda _: None,
        value=_log,
        log_quantity=_same,
        quantity_of=_exp,
        level=_one,
    )
