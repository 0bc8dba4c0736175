"""The level that all pairs share, carried to a size that was not measured.

    log quantity = log L + log(f + (1 - f) size^-beta) + c heat + scatter

| symbol | meaning | shape |
|---|---|---|
| L | level at the largest measured size, annealed | () |
| f | share of it that no data take away: E of Eq. 1 over the loss there | grid |
| beta | exponent of the size | grid |
| c | what a full learning rate adds | () |

Every (f, beta) of a grid counts by how well it fits, so that what the curves do not tell stays open: a floor is never
seen, only approached. The final run is one run, so its own scatter belongs to its interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mars_core.surface.curves import Curves, Floats

SHARES = np.linspace(0.0, 0.95, 20)
BETAS = np.geomspace(0.05, 1.6, 24)
MOVED = (0.0, 0.5, 1.0)  # weight of movement against samples seen in what counts as the size
USUAL_SHARE, PRIOR_FREEDOM = 0.004, 3.0
CORRELATION = 0.6  # of neighbouring checkpoints: what the order of the samples does lasts
FORM_ERROR = 0.025  # of the level for each factor e of extrapolation: no power law holds to the end
C_PRIOR = 0.1  # standard deviation of c


@dataclass(frozen=True, eq=False)
class Level:
    """Draws of log L, f, beta, (n_draws,) each; largest: size in samples they are taken at."""

    log_level: Floats
    share: Floats
    beta: Floats
    largest: float
    form: Floats

    def at(self, size: float) -> Floats:
        """Draws of the log quantity, annealed, at a size in samples."""
        ratio = size / self.largest
        shrunk = np.log(self.share + (1.0 - self.share) * ratio**-self.beta)
        return np.asarray(self.log_level + shrunk + self.form * FORM_ERROR * np.log(max(ratio, 1.0)))


def fit_level(curves: Curves, log_quantity: Floats, n_draws: int, seed: int = 0) -> Level:
    """Draw from the posterior of the common curve.

    Args:
        curves: the calibration.
        log_quantity: log of the objective's quantity of every row, differences between pairs taken off, (n_rows,).
        n_draws: number of draws.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 2])
    y, log_size, log_seen, heat = _mean_curve(curves, log_quantity)
    f, beta, moved = (grid.ravel() for grid in np.meshgrid(SHARES, BETAS, MOVED, indexing="ij"))
    log_sizes = np.outer(moved, log_size) + np.outer(1.0 - moved, log_seen)
    target = y - np.log(f[:, None] + (1.0 - f[:, None]) * np.exp(-beta[:, None] * log_sizes))  # (n_cells, n)
    design = np.column_stack([np.ones_like(y), heat])
    whiten = _whitening(len(y))
    X, Y = whiten @ design, target @ whiten.T
    precision = X.T @ X + np.diag([0.0, (USUAL_SHARE / C_PRIOR) ** 2])
    solved = np.linalg.solve(precision, X.T @ Y.T).T  # (n_cells, 2)
    squares = np.sum(Y**2, axis=1) - np.einsum("ij,ij->i", Y @ X, solved)
    freedom = max(len(y) - 1, 0) + PRIOR_FREEDOM  # only the level has a flat prior
    scale = np.maximum(squares, 0.0) + PRIOR_FREEDOM * USUAL_SHARE**2
    logs = -0.5 * freedom * np.log(scale)
    weights = np.exp(logs - logs.max())
    cell = rng.choice(len(f), n_draws, p=weights / weights.sum())
    variance = scale[cell] / rng.chisquare(freedom, n_draws)
    root = np.linalg.cholesky(np.linalg.inv(precision))
    log_level = solved[cell, 0] + np.sqrt(variance) * (rng.standard_normal((n_draws, 2)) @ root.T)[:, 0]
    return Level(log_level, f[cell], beta[cell], curves.largest, rng.standard_normal(n_draws))


def _mean_curve(curves: Curves, log_quantity: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean of the runs near their best rate at each size, with log size, log samples seen and heat, sorted by size."""
    near = curves.near[curves.run]
    log_quantity = log_quantity[near]
    keys = np.round(np.column_stack([np.log(curves.size), np.log(curves.seen), curves.heat])[near], 9)
    distinct, of_row = np.unique(keys, axis=0, return_inverse=True)
    of_row = of_row.reshape(-1)
    mean = np.bincount(of_row, weights=log_quantity) / np.bincount(of_row)
    return mean, *distinct.T


def _whitening(n: int) -> Floats:
    """Inverse Cholesky factor of the correlation of neighbouring checkpoints, (n, n)."""
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return np.asarray(np.linalg.inv(np.linalg.cholesky(CORRELATION**lags)))
