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
import pandas as pd
from numpy.typing import NDArray

from mars_core.metrics.schema import PERPLEXITY

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """name: what is minimised. quantity: what law P predicts of it. column: of the checkpoint metrics that holds it.

    excess: share by which predictions exceed others. perplexity: of a predicted value, None where it says nothing.
    """

    name: str
    quantity: str
    column: str
    excess: Callable[[Floats, Floats], Floats]
    perplexity: Callable[[float], float | None]


def _excess_perplexity(loss: Floats, other: Floats) -> Floats:
    return np.asarray(np.expm1(loss - other))


def _excess(value: Floats, other: Floats) -> Floats:
    return np.asarray(value / other - 1.0)


PERPLEXITY_OBJECTIVE = Objective(PERPLEXITY, "loss", "val_loss", _excess_perplexity, math.exp)


def objective_named(name: str) -> Objective:
    """Perplexity, or the metric of this name."""
    if name == PERPLEXITY:
        return PERPLEXITY_OBJECTIVE
    return Objective(name, name, "val_objective", _excess, lambda _: None)


@dataclass(frozen=True, eq=False)
class Points:
    """Points that law P can be fitted to.

    cause: why it cannot be, None if it can. notes: what was left out.
    """

    table: pd.DataFrame
    cause: str | None
    notes: tuple[str, ...]


def points_of(metrics: pd.DataFrame, objective: Objective) -> pd.DataFrame:
    """Checkpoint metrics as the points of law P: r_me, r_llm, D, loss (the objective's quantity), and their run."""
    renamed = metrics.assign(loss=metrics[objective.column]).rename(columns={"unique_samples": "D"})
    return renamed[["r_me", "r_llm", "D", "loss", "run_id", "seed"]]


def positive_points(points: pd.DataFrame, quantity: str) -> Points:
    """The points that a power law can hold: a value of 0 is below every power law, and a missing one is none.

    Where a run has reached 0 at the largest size, no law may rank the pairs: it would be fitted to the worse ones.
    """
    missing, zero = points["loss"].isna(), points["loss"] == 0
    notes = []
    if missing.any():
        notes.append(f"{quantity} has no value at {int(missing.sum())} of {len(points)} checkpoints: they are left out")
    if zero.any():
        notes.append(
            f"{quantity} is 0 at {int(zero.sum())} of {len(points)} checkpoints, which no power law reaches: they are "
            "left out"
        )
    at_end = points[zero & (points["D"] == points["D"].max())]
    cause = None
    if not at_end.empty:
        perfect = sorted(set(zip(at_end["r_me"], at_end["r_llm"], strict=True)))
        pairs = ", ".join(f"({r_me}, {r_llm})" for r_me, r_llm in perfect)
        cause = f"{quantity} is already 0 at the largest size for {pairs}: a power law cannot rank what is perfect"
    return Points(points[~(missing | zero)], cause, tuple(notes))
