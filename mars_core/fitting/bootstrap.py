"""Bootstrap over runs: resample whole runs, refit every draw from several warm starts at once."""

from __future__ import annotations

import numpy as np

from mars_core.fitting.newton import minimise
from mars_core.fitting.profile import floor_starts
from mars_core.fitting.solve import Solution
from mars_core.fitting.table import Table
from mars_core.laws.law import Floats


def bootstrap(solution: Solution, table: Table, n_draws: int, seed: int) -> Floats:
    """Coefficients of resampled runs, internal and centred, (n_draws, n_params).

    Every draw starts from the fit and, where the law has a floor, from the best fits with a low, a middle
    and a high floor (at most 4 starts), so that a draw may leave the fit's basin.
    """
    weights = resampled_counts(table, n_draws, seed)
    starts = np.concatenate([solution.phi[None, :], floor_starts(solution)])
    minima = minimise(
        solution.problem,
        np.tile(starts, (n_draws, 1)),
        np.repeat(weights, len(starts), axis=0),
        max_iterations=60,
        tolerance=1e-8,
    )
    best = minima.objective.reshape(n_draws, len(starts)).argmin(axis=1)
    return np.asarray(minima.phi.reshape(n_draws, len(starts), -1)[np.arange(n_draws), best])


def resampled_counts(table: Table, n_draws: int, seed: int) -> Floats:
    """How often each point counts in each draw, (n_draws, n_points): runs drawn with replacement."""
    rng = np.random.default_rng(seed)
    n_groups = table.n_groups
    counts = rng.multinomial(n_groups, np.full(n_groups, 1.0 / n_groups), size=n_draws)
    return np.asarray(counts[:, table.groups], dtype=np.float64)
