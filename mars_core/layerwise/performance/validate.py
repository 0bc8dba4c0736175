"""How well a performance model predicts schedules that it has not seen: MSE and MAE over folds (Table VIII)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import KFold

from mars_core.layerwise.performance.encoding import Array
from mars_core.layerwise.performance.predictors import Predictor
from mars_core.records import Record

FOLDS = 5


@dataclass(frozen=True)
class Validated(Record):
    """Errors in units of each metric's standard deviation over the schedules: the mean's MSE is about 1.

    mse, mae: over all held-out schedules and metrics. by_fold: mean squared error of each fold.
    """

    mse: float
    mae: float
    by_fold: tuple[float, ...]


def cross_validate(make: Callable[[], Predictor], x: Array, y: Array, folds: int = FOLDS) -> Validated:
    """Errors on schedules left out, a fold at a time.

    Args:
        make: Gives a model that has learned nothing.
        x: Encoded schedules, shape (n, T, F).
        y: Their metrics, shape (n, m).

    Raises:
        ValueError: there are fewer schedules than folds.
    """
    if len(x) < folds:
        raise ValueError(f"{folds} folds need as many schedules, got {len(x)}: train more")
    spread = y.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    errors = []
    for train, held_out in KFold(folds, shuffle=True, random_state=0).split(x):
        centre = y[train].mean(axis=0)
        model = make()
        model.fit(x[train], (y[train] - centre) / spread)
        errors.append(model.predict(x[held_out]) - (y[held_out] - centre) / spread)
    together = np.concatenate(errors)
    squares = tuple(float(np.square(own).mean()) for own in errors)
    return Validated(float(np.square(together).mean()), float(np.abs(together).mean()), squares)
