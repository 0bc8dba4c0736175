"""Section 8.4 of the MLLM-SFT paper: a score is the law plus noise, P = law + eps with eps ~ N(0, sigma^2).

The law is fitted as ever. sigma is then the noise of single points around it, in the target's unit, with the degrees of
freedom that the coefficients took. What a new run will score has both: how far the law may be off, and its own noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mars_core.fitting.result import LawFit
from mars_core.fitting.table import read_table
from mars_core.laws import get_law
from mars_core.laws.law import Columns, Floats
from mars_core.records import Float, Record


@dataclass(frozen=True)
class NoiseTerm(Record):
    """sigma in the target's unit, its degrees of freedom, and the log likelihood of the points at it."""

    sigma: Float
    freedom: int
    log_likelihood: Float


def noise_term(fit: LawFit, points: Any) -> NoiseTerm:
    """Estimate sigma from the points that a law was fitted to.

    Args:
        fit: the fit.
        points: its table; censored points say nothing of the noise and are left out.

    Raises:
        ValueError: there are no more points than coefficients.
    """
    law = get_law(fit.law)
    table = read_table(law, points, None)
    residual = (table.y - fit.predict(table.inputs))[~table.censored]
    freedom = len(residual) - law.n_params
    if freedom < 1:
        raise ValueError(
            f"law {law.name} has {law.n_params} coefficients, got {len(residual)} observed points: its noise needs more"
        )
    sigma = float(np.sqrt(np.sum(residual**2) / freedom))
    return NoiseTerm(sigma, freedom, _log_likelihood(residual, sigma))


def new_point_interval(fit: LawFit, noise: NoiseTerm, X: Columns, seed: int = 0) -> tuple[Floats, Floats]:
    """Interval for one new point at X: bootstrap draws of the law, each with its own noise, at the fit's level.

    sigma is itself uncertain, so each draw takes one from its scaled chi-square.

    Returns:
        Lower and upper ends, (n_points,) each.
    """
    rng = np.random.default_rng([seed, 5])
    draws = fit.predict_draws(X)
    sigma = noise.sigma * np.sqrt(noise.freedom / rng.chisquare(noise.freedom, len(draws)))
    noisy = draws + sigma[:, None] * rng.standard_normal(draws.shape)
    tail = 50.0 * (1.0 - fit.level)
    low, high = np.percentile(noisy, [tail, 100.0 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


def _log_likelihood(residual: Floats, sigma: float) -> float:
    if sigma == 0.0:
        return float("inf")
    n = len(residual)
    return float(-0.5 * np.sum((residual / sigma) ** 2) - n * np.log(sigma) - 0.5 * n * np.log(2 * np.pi))
