"""Minima with one coefficient held at given values: the points of a profile."""

from __future__ import annotations

import numpy as np

from mars_core.fitting.newton import Minima, minimise
from mars_core.fitting.problem import Problem
from mars_core.laws.law import Floats


def minimise_with_fixed(problem: Problem, phi: Floats, at: int, values: Floats) -> Minima:
    """Minima with coefficient `at` held at each of `values`, all starting from one point.

    Args:
        problem: data and law.
        phi: starting point of the other coefficients, centred and internal, (n_params,).
        at: which coefficient is held.
        values: where, centred and internal, (n_values,).

    Returns:
        One minimum per value.
    """
    starts = np.tile(phi, (len(values), 1))
    starts[:, at] = values
    lower, upper = np.tile(problem.lower, (len(values), 1)), np.tile(problem.upper, (len(values), 1))
    lower[:, at] = upper[:, at] = values
    weights = np.ones((1, problem.n_points))
    return minimise(problem, starts, weights, lower=lower, upper=upper, max_iterations=60, tolerance=1e-9)


def minimise_along_floor(problem: Problem, phi: Floats, shares: tuple[float, ...]) -> Minima:
    """Minima with the floor held at shares of the smallest target; none where the law has no floor."""
    law = problem.law
    if law.floor is None:
        return Minima(np.empty((0, law.n_params)), np.empty(0), 0)
    values = problem.log_y.min() + np.log(np.array(shares))
    return minimise_with_fixed(problem, phi, law.index(law.floor), values)
