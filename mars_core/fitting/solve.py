"""The best coefficients of one law on one table: many starts, then a polish of the best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mars_core.fitting.conditional import minimise_along_floor
from mars_core.fitting.huber import noise_scale
from mars_core.fitting.newton import Minima, minimise
from mars_core.fitting.problem import Problem, build_problem
from mars_core.fitting.starts import projected_starts
from mars_core.fitting.table import Table
from mars_core.laws.law import Floats, Law

AGREEMENT_TOLERANCE = 1e-4  # relative objective within which two starts count as the same optimum
START_ITERATIONS = 300  # starts that have converged stop; only hard forms come near this
FLOOR_SCAN = (1e-6, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)  # of the smallest target
SCALE_ROUNDS = 3


@dataclass(frozen=True)
class Solution:
    """Optimum of a problem.

    Attributes:
        problem: the data and, for censored points, the noise scale it was solved with.
        phi: centred internal coefficients, (n_params,).
        objective: sum of Huber losses there.
        minima: where each start ended.
    """

    problem: Problem
    phi: Floats
    objective: float
    minima: Minima

    @property
    def theta(self) -> Floats:
        """Natural coefficients on the raw inputs."""
        return self.problem.law.natural(self.problem.centring.raw(self.phi))

    @property
    def start_agreement(self) -> float:
        """Share of starts that reached the best objective."""
        slack = AGREEMENT_TOLERANCE * abs(self.objective) + 1e-14
        return float(np.mean(self.minima.objective <= self.objective + slack))


def solve(law: Law, table: Table, delta: float, n_starts: int, seed: int) -> Solution:
    """Fit `law` to `table`.

    With censored points the noise scale of their likelihood is estimated from the observed points'
    residuals and the fit repeated until both agree (a few rounds suffice; the scale enters weakly).
    """
    problem = build_problem(law, table.inputs, table.y, table.censored, delta, _first_scale(delta))
    starts = projected_starts(law, table.inputs, table.y, n_starts, seed)
    solution = _solve_once(problem, problem.centring.centred(starts))
    if not table.censored.any():
        return solution
    for _ in range(SCALE_ROUNDS):
        problem = problem.with_scale(_observed_scale(solution))
        solution = _solve_once(problem, solution.minima.phi)
    return solution


def polish(problem: Problem, phi: Floats, weights: Floats) -> tuple[Floats, float]:
    """L-BFGS-B with tight tolerances from an optimum; the better of before and after is kept.

    Ranked by objective, not by the optimiser's own verdict: an abnormal line-search exit at the minimum
    is no failure.
    """
    sorted_weights = weights[:, problem.order]

    def value_and_gradient(x: Floats) -> tuple[float, Floats]:
        at = problem.evaluate(x[None, :], sorted_weights)
        return float(at.objective[0]), at.gradient[0]

    before = value_and_gradient(phi)[0]
    after = minimize(
        value_and_gradient,
        phi,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(problem.lower, problem.upper, strict=True)),
        options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 200},
    )
    if float(after.fun) < before:
        return np.asarray(after.x, dtype=np.float64), float(after.fun)
    return phi, before


def _solve_once(problem: Problem, starts: Floats) -> Solution:
    """Best of all starts, then of a scan over the floor (its valley can be long and nearly flat), then polished."""
    ones = np.ones((1, problem.n_points))
    minima = _minima(problem, starts)
    best = minima.phi[int(np.argmin(minima.objective))]
    scan = minimise_along_floor(problem, best, FLOOR_SCAN)
    released = _minima(problem, np.concatenate([best[None, :], scan.phi]))
    phi, objective = polish(problem, released.phi[int(np.argmin(released.objective))], ones)
    return Solution(problem, phi, objective, minima)


def _minima(problem: Problem, starts: Floats) -> Minima:
    ones = np.ones((1, problem.n_points))
    return minimise(problem, starts, ones, max_iterations=START_ITERATIONS, tolerance=1e-12)


def _first_scale(delta: float) -> float:
    """Noise scale before any residual is known: tails of 10% on the logarithm."""
    return 0.1 * delta


def _observed_scale(solution: Solution) -> float:
    problem = solution.problem
    residual = problem.residuals(solution.phi)[0][problem.order]
    observed = ~problem.censored
    # Never below a thousandth of the threshold's own tail: a perfect fit must not turn limits into walls.
    floor = 1e-3 * _first_scale(problem.delta)
    return max(noise_scale(residual[observed], np.ones(int(observed.sum())), problem.delta), floor)
