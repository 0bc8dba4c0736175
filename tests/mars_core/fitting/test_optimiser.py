"""The batched optimiser against finite differences and SciPy."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from mars_core.fitting.newton import minimise
from mars_core.fitting.problem import build_problem
from mars_core.fitting.starts import projected_starts
from mars_core.laws import get_law

THETA = {
    "performance": [8.0, 0.05, 0.15, 0.3, 1.0],
    "convergence": [2.0, -0.25, 0.8, 10.0],
    "chinchilla": [482.0, 2085.0, 1.817, 0.348, 0.366],
    "performance_imbalance": [8.0, 0.05, 0.15, 0.3, 1.0, 0.02, 0.01],
    "performance_overfit": [8.0, 0.05, 0.15, 0.3, 1.0, 0.01, 0.3, 0.1],
}


def planted(name, noise=0.01, seed=0, n_points=80, censored=0.0):
    law = get_law(name)
    rng = np.random.default_rng(seed)
    ranges = {"r_me": (2, 64), "r_llm": (2, 64), "r": (2, 64), "D": (100, 1e5), "N": (1e7, 1e10)}
    X = {column: np.exp(rng.uniform(*np.log(ranges[column]), n_points)) for column in law.inputs}
    if name == "chinchilla":
        X["D"] = X["D"] * 1e6
    y = law.predict(THETA[name], X) * np.exp(noise * rng.standard_normal(n_points))
    problem = build_problem(law, X, y, rng.random(n_points) < censored, 1e-3, 1e-5)
    return law, X, y, problem


@pytest.mark.parametrize("censored", [0.0, 0.3])
@pytest.mark.parametrize("name", list(THETA))
def test_gradient_of_the_objective_agrees_with_finite_differences(name, censored):
    law, X, y, problem = planted(name, censored=censored)
    phi = problem.centring.centred(projected_starts(law, X, y, 3, 0))
    weights = np.random.default_rng(1).integers(0, 3, (3, 80)).astype(float)
    analytic = problem.evaluate(phi, weights).gradient
    for j in range(law.n_params):
        h = np.zeros(law.n_params)
        h[j] = 1e-6
        up, down = problem.evaluate(phi + h, weights), problem.evaluate(phi - h, weights)
        numeric = (up.objective - down.objective) / 2e-6
        np.testing.assert_allclose(analytic[:, j], numeric, rtol=1e-4, atol=1e-8)


def test_newton_matrix_is_the_gauss_newton_hessian():
    _, _, _, problem = planted("performance", noise=1e-5)
    # With every residual inside the threshold, H = J'J exactly (the curvature of f is left out by design).
    phi = problem.centring.centred(get_law("performance").internal(THETA["performance"]))[None, :]
    J = problem.jacobian(phi[0])
    at = problem.evaluate(phi, np.ones((1, 80)))
    np.testing.assert_allclose(at.newton[0], J.T @ J, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(at.majorant[0], J.T @ J, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(THETA))
def test_no_scipy_run_from_the_same_starts_ends_lower(name):
    law, X, y, problem = planted(name, noise=0.02)
    starts = np.clip(problem.centring.centred(projected_starts(law, X, y, 12, 0)), problem.lower, problem.upper)
    weights = np.ones((1, 80))

    def value_and_gradient(x):
        at = problem.evaluate(x[None, :], weights)
        return at.objective[0], at.gradient[0]

    bounds = list(zip(problem.lower, problem.upper, strict=True))
    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 2000}
    best = min(
        minimize(value_and_gradient, x0, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun
        for x0 in starts
    )
    own = minimise(problem, starts, weights, max_iterations=300, tolerance=1e-12).objective.min()
    assert own <= best * (1 + 1e-6)


def test_rows_of_a_batch_do_not_influence_each_other():
    law, X, y, problem = planted("performance")
    starts = problem.centring.centred(projected_starts(law, X, y, 5, 0))
    weights = np.random.default_rng(1).integers(0, 3, (5, 80)).astype(float)
    together = minimise(problem, starts, weights)
    alone = [minimise(problem, starts[i : i + 1], weights[i : i + 1]).objective[0] for i in range(5)]
    np.testing.assert_allclose(together.objective, alone, rtol=1e-8)


def test_seeds_of_one_cell_share_a_prediction_but_not_a_residual():
    law = get_law("performance")
    table = pd.DataFrame({"r_me": [8, 8, 16, 16.0], "r_llm": [8, 8, 8, 32.0], "D": [100, 100, 200, 400.0]})
    y = np.array([2.0, 2.2, 1.9, 1.7])
    problem = build_problem(law, table, y, np.zeros(4, bool), 1e-3, 1.0)
    assert problem.M.shape[1] == 3
    phi = problem.centring.centred(law.internal([8.0, 0.05, 0.15, 0.3, 1.0]))
    expected = np.log(law.predict([8.0, 0.05, 0.15, 0.3, 1.0], table) / y)
    np.testing.assert_allclose(problem.residuals(phi)[0], expected, rtol=1e-10)


def test_equal_bounds_hold_a_coefficient():
    law, X, y, problem = planted("performance")
    starts = problem.centring.centred(projected_starts(law, X, y, 4, 0))
    lower, upper = np.tile(problem.lower, (4, 1)), np.tile(problem.upper, (4, 1))
    lower[:, 3] = upper[:, 3] = 0.25
    found = minimise(problem, starts, np.ones((1, 80)), lower=lower, upper=upper)
    np.testing.assert_array_equal(found.phi[:, 3], 0.25)


def test_a_tiny_floor_does_not_trap_the_iterations():
    law, _, _, problem = planted("performance", noise=0.0)
    start = problem.centring.centred(law.internal([8.0, 0.05, 0.15, 0.3, 1e-5]))[None, :]
    found = minimise(problem, start, np.ones((1, 80)), max_iterations=200, tolerance=1e-12)
    assert law.natural(problem.centring.raw(found.phi))[0, 4] == pytest.approx(1.0, rel=1e-3)
