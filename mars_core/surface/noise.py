"""How much a run scatters around its own curve from checkpoint to checkpoint.

The deviations of one run are an AR(1) series over its checkpoints, possibly with more noise at small sizes:

    sd_k = sigma * size_k^-growth,   corr(k, m) = phi^|k - m|

They are estimated by restricted maximum likelihood beside everything that is no scatter: what all runs of a seed have
in common at a checkpoint, a quadratic in the log ranks at each checkpoint, the level of each run. Nothing is assumed of
how curves go over the checkpoints: a run's fast start would count as scatter, or its scatter as a trend. Few runs say
little, so sigma is pulled towards a usual value by a prior of a few degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from mars_core.surface.common import Common, common_columns
from mars_core.surface.curves import Curves, Floats

PHIS = (0.0, 0.3, 0.6, 0.8)
GROWTHS = (0.0, 0.4, 0.8, 1.2)
USUAL_SHARE = 0.003  # of the level: what one checkpoint of one run usually scatters
PRIOR_FREEDOM = 4.0


@dataclass(frozen=True)
class Scatter:
    """sigma: standard deviation at the largest size, in units of the value. phi, growth: see the module."""

    sigma: float
    phi: float
    growth: float


def estimate_scatter(curves: Curves) -> Scatter:
    """Restricted maximum likelihood over a small grid of phi and growth."""
    design = _no_scatter(curves)
    usual = USUAL_SHARE * curves.level
    best, found = -np.inf, Scatter(usual, 0.5, 0.0)
    for phi, growth in product(PHIS, GROWTHS):
        likelihood, sigma = _restricted(curves, design, Scatter(1.0, phi, growth), usual)
        if likelihood > best:
            best, found = likelihood, Scatter(sigma, phi, growth)
    return found


def _no_scatter(curves: Curves) -> Floats:
    """Columns of all effects that are no scatter, but for the level of each run, (n_rows, n_effects)."""
    common = common_columns(curves.common, curves.size, curves.heat)
    ranks = np.array(curves.pairs, dtype=np.float64).T
    x, y = (_centred_log(own) for own in ranks)
    n_me, n_llm = (len(np.unique(own[own > 0])) for own in ranks)
    forms = [
        x,
        y,
        *((own == 0).astype(np.float64) for own in ranks if (own == 0).any()),
        *([x**2] if n_me > 2 else []),
        *([y**2] if n_llm > 2 else []),
        *([x * y] if n_me + n_llm > 4 else []),
    ]
    checkpoint = np.unique(np.round(curves.size, 9), return_inverse=True)[1].reshape(-1)
    at = np.eye(int(checkpoint.max()) + 1)[checkpoint]
    return np.column_stack([common, *(at * form[curves.pair, None] for form in forms)])


def _centred_log(ranks: Floats) -> Floats:
    """Log ranks less their mean; 0 for rank 0, whose effect is a column of its own."""
    logs = np.log(np.maximum(ranks, 1.0))
    return np.where(ranks > 0, logs - (logs[ranks > 0].mean() if (ranks > 0).any() else 0.0), 0.0)


def whitened(curves: Curves, scatter: Scatter, columns: Floats) -> tuple[Floats, float]:
    """Columns with the scatter made white, and half the log determinant of its covariance.

    Args:
        curves: the runs, rows sorted by run.
        scatter: of each run.
        columns: (n_rows, n).
    """
    sd = scatter.sigma * curves.size**-scatter.growth
    scaled = columns / sd[:, None]
    # An AR(1) series is whitened by one step back: (x_k - phi x_{k-1}) / sqrt(1 - phi^2), the first value as it is.
    first = np.concatenate([[True], curves.run[1:] != curves.run[:-1]])
    before = np.concatenate([scaled[:1], scaled[:-1]])
    root = np.sqrt(1.0 - scatter.phi**2)
    white = np.where(first[:, None], scaled, (scaled - scatter.phi * before) / root)
    return white, float(np.sum(np.log(sd)) + np.sum(~first) * np.log(root))


def spread_of_runs(curves: Curves) -> float:
    """Standard deviation of the mean deviation of runs of one pair, what all runs of a seed share taken off; 0 where no
    pair has two runs near its best rate."""
    curves = _near(curves)
    # Runs that were made for several sizes are compared with those of their own size.
    end = np.array([np.round(curves.seen[curves.run == run].max(), 6) for run in range(curves.n_runs)])[curves.run]
    _, alike = np.unique(np.column_stack([curves.pair, end]), axis=0, return_inverse=True)
    own = np.eye(int(alike.max()) + 1)[alike.reshape(-1)]
    design = np.column_stack([common_columns(curves.common, curves.size, curves.heat), own])
    residual = curves.value - design @ np.linalg.lstsq(design, curves.value, rcond=None)[0]
    runs = np.bincount(curves.run)
    means = np.bincount(curves.run, weights=residual) / runs
    averaged = np.eye(curves.n_runs)[curves.run].T @ design / runs[:, None]
    freedom = curves.n_runs - int(np.linalg.matrix_rank(averaged))
    return float(np.sqrt(np.sum(means**2) / freedom)) if freedom > 0 else 0.0


def _near(curves: Curves) -> Curves:
    """The runs near the best rate of their pair."""
    if curves.near.all():
        return curves
    rows = curves.near[curves.run]
    run = np.unique(curves.run[rows], return_inverse=True)[1].reshape(-1)
    common = Common(curves.common.effect[rows], curves.common.doubt[rows])
    kept = {name: getattr(curves, name)[rows] for name in ("value", "size", "seen", "heat", "pair")}
    seeds = tuple(seed for seed, near in zip(curves.seeds, curves.near, strict=True) if near)
    return replace(curves, **kept, run=run, common=common, seeds=seeds, rates=None)


def _restricted(curves: Curves, design: Floats, unit: Scatter, usual: float) -> tuple[float, float]:
    """Restricted log likelihood with sigma profiled out, up to a constant of the design, and sigma."""
    columns = np.column_stack([np.ones_like(curves.value), design, curves.value])
    white, half_determinant = whitened(curves, unit, columns)
    level, others = white[:, 0], white[:, 1:]
    # A run's level has a column that is 0 in all other runs: taken out run by run, hundreds of runs cost no more.
    largest = np.linalg.norm(others[:, :-1], axis=0).max()
    squared = np.bincount(curves.run, weights=level**2)
    slopes = np.column_stack([np.bincount(curves.run, weights=level * column) for column in others.T])
    others = others - level[:, None] * (slopes / squared[:, None])[curves.run]
    U, values, _ = np.linalg.svd(others[:, :-1], full_matrices=False)
    kept = values > 1e-9 * largest
    residual = others[:, -1] - U[:, kept] @ (U[:, kept].T @ others[:, -1])
    freedom = len(residual) - curves.n_runs - int(kept.sum())
    squares = float(residual @ residual) if freedom > 0 else 0.0
    variance = (squares + PRIOR_FREEDOM * usual**2) / (freedom + PRIOR_FREEDOM)
    likelihood = -half_determinant - 0.5 * float(np.sum(np.log(squared))) - float(np.sum(np.log(values[kept])))
    return likelihood - 0.5 * (freedom + PRIOR_FREEDOM) * np.log(variance), float(np.sqrt(variance))
