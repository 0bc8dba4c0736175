"""The best of many independent fits of one law, side by side (MLLM-SFT paper, section 3.2: 100 fits, five kept)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mars_core.fitting.solve import solve
from mars_core.fitting.table import DEFAULT_GROUP, Table, read_table
from mars_core.laws.law import Floats, Law
from mars_core.records import Float, Record

N_FITS, KEPT = 100, 5


@dataclass(frozen=True)
class OneFit(Record):
    """Where one independent fit ended: natural coefficients, sum of Huber losses, R^2 of the target."""

    coefficients: Mapping[str, Float]
    objective: Float
    r_squared: Float


def best_fits(
    law: Law,
    points: Any,
    *,
    delta: float = 1e-3,
    n_fits: int = N_FITS,
    keep: int = KEPT,
    seed: int = 0,
    group: str | None = DEFAULT_GROUP,
) -> tuple[OneFit, ...]:
    """Fit a law from independent starting points and keep the best, by objective, best first.

    Fits that agree say that the optimum is one; coefficients that differ at the same objective are not told by the
    data.

    Args:
        law: the law.
        points: table with the law's columns, as for `fit_law`.
        delta: Huber threshold on log residuals.
        n_fits: independent fits.
        keep: how many are returned.
        seed: of the starting points.
        group: column that names a run, as for `fit_law`.

    Raises:
        ValueError: the table cannot be used, or fewer fits are made than kept.
    """
    if not 1 <= keep <= n_fits:
        raise ValueError(f"keep must lie between 1 and the number of fits, got {keep} of {n_fits}")
    table = read_table(law, points, group)
    solution = solve(law, table, delta, n_fits, seed)
    minima, problem = solution.minima, solution.problem
    best = np.argsort(minima.objective, kind="stable")[:keep]
    natural = law.natural(problem.centring.raw(minima.phi[best]))
    return tuple(
        OneFit(
            coefficients=dict(zip(law.symbols, theta.tolist(), strict=True)),
            objective=float(objective),
            r_squared=r_squared(law.predict(theta, table.inputs), table),
        )
        for theta, objective in zip(natural, minima.objective[best], strict=True)
    )


def r_squared(predicted: Floats, table: Table) -> float:
    """1 - residual over total sum of squares of the target itself, over points that are not censored."""
    observed = ~table.censored
    y, residual = table.y[observed], (table.y - predicted)[observed]
    total = float(np.sum((y - y.mean()) ** 2))
    return 1.0 - float(np.sum(residual**2)) / total if total > 0 else float("nan")
