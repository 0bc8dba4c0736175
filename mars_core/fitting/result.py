"""What a fit returns: coefficients with intervals, draws, held-out error and statuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from mars_core.laws import get_law
from mars_core.laws.law import Columns, Floats
from mars_core.records import Float, FloatArray, Record

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Status(Record):
    """One thing an engineer should know about a fit; docs/law-diagnostics.md explains each code."""

    code: str
    message: str
    severity: Severity


@dataclass(frozen=True)
class HeldOut(Record):
    """Error on points that the fit did not see.

    Attributes:
        rule: which points were held out, in words.
        n_train: points fitted.
        n_test: points held out.
        train_mape: mean absolute relative error on the fitted points.
        mape: the same on the held-out points (a censored point errs only where the prediction is too low).
        largest_error: largest absolute relative error on the held-out points.
        rivals: mape of each trivial rival on the same held-out points.
        unseen_rank_mape: mape there for ranks that were left out of the fit as well (law C), None where not measured.
        unseen_rank_rivals: the same of each trivial rival.
        difference_error: mean absolute error (log target) there of the difference between a rank pair and the mean of
            the pairs, each pair predicted without its own runs (law P), None where not measured.
        no_difference_error: the same where no difference is predicted.
    """

    rule: str
    n_train: int
    n_test: int
    train_mape: Float
    mape: Float
    largest_error: Float
    rivals: Mapping[str, Float] = field(default_factory=dict)
    unseen_rank_mape: float | None = None
    unseen_rank_rivals: Mapping[str, Float] = field(default_factory=dict)
    difference_error: float | None = None
    no_difference_error: float | None = None

    stored_too: ClassVar[tuple[str, ...]] = ("best_rival",)

    @property
    def best_rival(self) -> str | None:
        """Trivial rival with the smallest held-out error, None where there is none."""
        return min(self.rivals, key=lambda name: self.rivals[name]) if self.rivals else None


@dataclass(frozen=True)
class Profile(Record):
    """Best objective for each fixed value of one coefficient."""

    symbol: str
    values: tuple[Float, ...]
    objectives: tuple[Float, ...]


@dataclass(frozen=True, eq=False)
class LawFit(Record):
    """A fitted law.

    Attributes:
        law: its name in `mars_core.laws.LAWS`.
        coefficients: natural coefficients under the paper's symbols.
        intervals: bootstrap interval of each coefficient at `level`.
        draws: bootstrap coefficients, (n_draws, n_params), natural, in the law's symbol order.
        objective: sum of Huber losses on log residuals at the optimum.
        delta: Huber threshold.
        level: coverage that the intervals aim at.
        n_points: points fitted, censored ones included.
        n_censored: right-censored points among them.
        n_groups: runs (or rows) that the bootstrap resampled.
        grouped_by: column that names a run, "row" where every row was resampled on its own.
        statuses: what an engineer should know.
        held_out: error on held-out points, None where too few points were left to fit.
        start_agreement: share of starts that reached the best objective.
        condition_number: of J'J in centred internal coefficients, None where it is singular.
        correlations: bootstrap correlations of the internal coefficients, (n_params, n_params).
        profiles: profile of the floor and of each exponent.
        noise_scale: median absolute log residual.
    """

    law: str
    coefficients: Mapping[str, Float]
    intervals: Mapping[str, tuple[Float, Float]]
    draws: FloatArray
    objective: Float
    delta: Float
    level: Float
    n_points: int
    n_censored: int
    n_groups: int
    grouped_by: str
    statuses: tuple[Status, ...]
    held_out: HeldOut | None
    start_agreement: Float
    condition_number: float | None
    correlations: FloatArray
    profiles: tuple[Profile, ...]
    noise_scale: Float

    def __post_init__(self) -> None:
        object.__setattr__(self, "draws", self.draws.reshape(-1, len(self.coefficients)))  # also where there are none

    @property
    def theta(self) -> Floats:
        """Natural coefficients in the law's symbol order, (n_params,)."""
        return np.array([self.coefficients[symbol] for symbol in get_law(self.law).symbols])

    def predict(self, X: Columns) -> Floats:
        """Predicted target at X, (n_points,)."""
        return get_law(self.law).predict(self.theta, X)

    def predict_draws(self, X: Columns) -> Floats:
        """Prediction of every bootstrap draw, (n_draws, n_points)."""
        return get_law(self.law).predict(self.draws, X)

    def predict_interval(self, X: Columns) -> tuple[Floats, Floats]:
        """Interval of the predicted mean at `level`, two arrays of (n_points,)."""
        tail = 50.0 * (1.0 - self.level)
        low, high = np.percentile(self.predict_draws(X), [tail, 100.0 - tail], axis=0)
        return np.asarray(low), np.asarray(high)

    def has(self, code: str) -> bool:
        """Whether a status with this code stands on the fit."""
        return any(status.code == code for status in self.statuses)


def finite_or_none(value: float) -> float | None:
    """JSON has no infinity: None stands for it."""
    return float(value) if math.isfinite(value) else None
