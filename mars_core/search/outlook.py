"""What the calibration says of every pair at the target size: draws of a posterior, and what follows from them.

| symbol | meaning | shape |
|---|---|---|
| value | of the objective: differences of values are logs of 1 + excess | (n_draws, n_pairs) |
| excess | relative excess of one pair over another, exp(value - value') - 1 | (n_draws, n_pairs) |
| regret | relative excess over the best of all pairs in that draw | (n_draws, n_pairs) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mars_core.fitting.learning_rate import RateFit
from mars_core.ranks import Pair
from mars_core.search.objective import Objective
from mars_core.search.points import Points
from mars_core.surface import Curves, Level, Surface, fit_level, fit_surface, read_curves, without_differences

Floats = NDArray[np.float64]
INTERVAL = (2.5, 97.5)  # percent


@dataclass(frozen=True, eq=False)
class Outlook:
    """Draws at the target size.

    pairs: all pairs that may be chosen. value: differences beside the mean of the pairs. quantity: the objective's
    quantity that one final run of a pair will reach, its own luck included. largest: largest size measured, samples.
    """

    pairs: tuple[Pair, ...]
    value: Floats
    quantity: Floats
    D_target: float
    largest: float

    @cached_property
    def regret(self) -> Floats:
        """Of every pair, over all pairs."""
        return np.asarray(np.expm1(self.value - self.value.min(axis=1, keepdims=True)))

    @cached_property
    def expected_regret(self) -> Floats:
        """Mean regret, (n_pairs,)."""
        return np.asarray(self.regret.mean(axis=0))

    def excess_over(self, pair: Pair) -> Floats:
        """Of every pair over one."""
        return np.asarray(np.expm1(self.value - self.value[:, [self.pairs.index(pair)]]))


@dataclass(frozen=True, eq=False)
class Calibration:
    """The posterior before a target is named: differences between pairs at their best learning rates, the level that
    they share, and the learning-rate law (None where all runs have one rate)."""

    curves: Curves
    surface: Surface
    level: Level
    objective: Objective
    rates: RateFit | None = None

    def at(self, D_target: float, allowed: Sequence[Pair]) -> Outlook:
        """Draws at a size in unique samples, of the pairs that may be chosen."""
        value = self.surface.differences(D_target)
        value = value - value.mean(axis=1, keepdims=True)
        common = self.objective.value(np.exp(self.level.at(D_target)))
        luck = self.surface.luck(seed=3)
        kept = [self.surface.pairs.index(pair) for pair in allowed]
        quantity = self.objective.quantity_of((common + luck)[:, None] + value)
        return Outlook(tuple(allowed), value[:, kept], quantity[:, kept], float(D_target), self.curves.largest)


def read_calibration(points: Points, pairs: Sequence[Pair], objective: Objective, seed: int = 0) -> Calibration:
    """Fit the posterior to points.

    Args:
        points: all runs.
        pairs: all pairs to be compared; measured pairs that are not among them inform all the same.
        objective: what is minimised.
        seed: of the draws.
    """
    level = objective.level(points.runs["value"].to_numpy(dtype=np.float64))
    curves = read_curves(points.runs, level=level, rates=points.rates)
    everything = [*pairs, *(pair for pair in curves.pairs if pair not in pairs)]
    surface = fit_surface(curves, everything, seed)
    common = without_differences(curves, surface)
    shared = fit_level(curves, objective.log_quantity(common), len(surface.beta), seed)
    return Calibration(curves, surface, shared, objective, points.rates)
