"""Bootstrap over runs: resample whole runs, refit every draw from several warm starts at once."""

from __future__ import annotations

import numpy as np

from mars_core.fitting.conditional import minimise_along_floor
from mars_core.fitting.newton import Minima, minimise
from mars_core.fitting.solve import Solution
from mars_core.fitting.table import Table
from mars_core.laws.law import Floats

FIRST_ITERATIONS, LAST_ITERATIONS = 8, 60
FLOOR_SHARES = (0.05, 0.6, 0.9)  # of the smallest target
CARRIED = 2  # starts of each draw that are carried to the end
TOLERANCE = 1e-7  # relative objective: moves a coefficient by about a hundredth of its standard error


def bootstrap(solution: Solution, table: Table, n_draws: int, seed: int) -> Floats:
    """Coefficients of resampled runs, internal and centred, (n_draws, n_params)."""
    return refitted(solution, resampled_counts(table, n_draws, seed))


def refitted(solution: Solution, weights: Floats) -> Floats:
    """Coefficients of the fit repeated with other weights of its points, internal and centred, (n_draws, n_params).

    Every draw starts from the fit and, where the law has a floor, from the best fits with a low, a middle
    and a high floor (at most 4 starts), so that a draw may leave the fit's basin. All starts take a few
    iterations; the best of each draw are then carried to the end.

    Args:
        solution: the fit.
        weights: how often each point counts in each draw, (n_draws, n_points).
    """
    n_draws, starts = len(weights), warm_starts(solution)
    first = _refit(solution, np.tile(starts, (n_draws, 1)), weights, FIRST_ITERATIONS)
    ahead = _best_of_each(first, n_draws, min(CARRIED, len(starts)))
    last = _refit(solution, ahead, weights, LAST_ITERATIONS)
    return _best_of_each(last, n_draws, 1)


def warm_starts(solution: Solution) -> Floats:
    """The fit and, where the law has a floor, the best fits with a low, a middle and a high floor, (<= 4, n_params)."""
    along = minimise_along_floor(solution.problem, solution.phi, FLOOR_SHARES)
    return np.concatenate([solution.phi[None, :], along.phi])


def _refit(solution: Solution, starts: Floats, weights: Floats, max_iterations: int) -> Minima:
    """Refit every draw from its starts (consecutive rows of `starts`)."""
    per_start = np.repeat(weights, len(starts) // len(weights), axis=0)
    return minimise(solution.problem, starts, per_start, max_iterations=max_iterations, tolerance=TOLERANCE)


def _best_of_each(minima: Minima, n_draws: int, keep: int) -> Floats:
    """The `keep` best minima of each draw, (n_draws * keep, n_params)."""
    ranked = minima.objective.reshape(n_draws, -1).argsort(axis=1, kind="stable")[:, :keep]
    phi = minima.phi.reshape(n_draws, -1, minima.phi.shape[1])
    return np.asarray(np.take_along_axis(phi, ranked[:, :, None], axis=1).reshape(n_draws * keep, -1))


def resampled_counts(table: Table, n_draws: int, seed: int) -> Floats:
    """How often each point counts in each draw, (n_draws, n_points): runs drawn with replacement."""
    rng = np.random.default_rng(seed)
    n_groups = table.n_groups
    counts = rng.multinomial(n_groups, np.full(n_groups, 1.0 / n_groups), size=n_draws)
    return np.asarray(counts[:, table.groups], dtype=np.float64)
