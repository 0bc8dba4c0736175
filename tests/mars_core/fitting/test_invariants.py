"""Properties that must hold for any surface (hypothesis)."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.fitting import fit_law
from mars_core.fitting.solve import solve
from mars_core.fitting.table import read_table
from mars_core.laws import get_law

SIZES = 2.0 ** np.arange(6, 13)
few = settings(max_examples=8, deadline=None)  # a fit takes some 50 ms


def optimum(name, table):
    law = get_law(name)
    return solve(law, read_table(law, table, None), 1e-3, 16, 0)


def performance(theta, noise=0.0, seed=0):
    table = pd.DataFrame([(a, b, D) for a in (4, 8, 16, 32) for b in (4, 8, 16, 32) for D in SIZES])
    table.columns = ["r_me", "r_llm", "D"]
    noise_of = np.random.default_rng(seed).standard_normal(len(table))
    return table.assign(loss=get_law("performance").predict(theta, table) * np.exp(noise * noise_of))


def convergence(theta, noise=0.0, seed=0):
    table = pd.DataFrame([(r, D) for r in (4, 8, 16, 32, 64) for D in SIZES], columns=["r", "D"])
    noise_of = np.random.default_rng(seed).standard_normal(len(table))
    return table.assign(steps=get_law("convergence").predict(theta, table) * np.exp(noise * noise_of))


@few
@given(
    alpha_m=st.floats(-0.3, 0.5), alpha_l=st.floats(-0.3, 0.5), beta=st.floats(0.1, 1.0),
    A=st.floats(2.0, 20.0), floor=st.floats(0.3, 3.0),
)  # fmt: skip
def test_noiseless_law_p_is_recovered(alpha_m, alpha_l, beta, A, floor):
    theta = np.array([A, alpha_m, alpha_l, beta, floor])
    table = performance(theta)
    solution = optimum("performance", table)
    np.testing.assert_allclose(get_law("performance").predict(solution.theta, table), table.loss, rtol=1e-5)
    np.testing.assert_allclose(solution.theta, theta, rtol=2e-2, atol=2e-3)


@few
@given(k=st.floats(0.1, 50.0), gamma=st.floats(-1.0, 0.5), delta=st.floats(0.2, 1.2), share=st.floats(0.0, 0.5))
def test_noiseless_law_c_is_reproduced(k, gamma, delta, share):
    floor = share * k * 16.0**gamma * 512.0**delta
    table = convergence([k, gamma, delta, floor])
    predicted = get_law("convergence").predict(optimum("convergence", table).theta, table)
    np.testing.assert_allclose(predicted, table.steps, rtol=1e-4)


@few
@given(alpha=st.floats(0.2, 0.6), beta=st.floats(0.2, 0.6), floor=st.floats(1.0, 2.5))
def test_noiseless_chinchilla_surface_extrapolates_exactly(alpha, beta, floor):
    table = pd.DataFrame([(N, D) for N in 10.0 ** np.arange(7, 10.5, 0.5) for D in 10.0 ** np.arange(9, 12, 0.5)])
    table.columns = ["N", "D"]
    law = get_law("chinchilla")
    theta = [0.5 * 1e8**alpha, 0.5 * 1e10**beta, floor, alpha, beta]
    solution = optimum("chinchilla", table.assign(loss=law.predict(theta, table)))
    far = {"N": np.array([1e12]), "D": np.array([1e14])}
    np.testing.assert_allclose(law.predict(solution.theta, far), law.predict(theta, far), rtol=1e-3)


@few
@given(factor=st.floats(1e-3, 1e6), seed=st.integers(0, 5))
def test_units_of_size_change_k_and_nothing_else(factor, seed):
    table = convergence([2.0, -0.25, 0.8, 10.0], noise=0.03, seed=seed)
    own, scaled = optimum("convergence", table).theta, optimum("convergence", table.assign(D=table.D * factor)).theta
    # Both fits end within 1e-12 of the same objective; in the flat directions that leaves about 1e-5.
    np.testing.assert_allclose(scaled[1:], own[1:], rtol=1e-3)
    np.testing.assert_allclose(scaled[0] * factor ** own[2], own[0], rtol=1e-2)


@few
@given(factor=st.floats(1e-3, 1e3))
def test_units_of_loss_scale_a_and_floor(factor):
    table = performance([8.0, 0.05, 0.15, 0.3, 1.0], noise=0.01)
    own, scaled = optimum("performance", table), optimum("performance", table.assign(loss=table.loss * factor))
    np.testing.assert_allclose(scaled.theta / own.theta, [factor, 1, 1, 1, factor], rtol=1e-3)
    np.testing.assert_allclose(scaled.objective, own.objective, rtol=1e-8)


@few
@given(seed=st.integers(0, 1000), noise=st.floats(0.001, 1.0))
def test_coefficients_stay_within_bounds_whatever_the_data(seed, noise):
    table = performance([8.0, 0.05, 0.15, 0.3, 1.0], noise=noise, seed=seed)
    fit = fit_law("performance", table, n_bootstrap=10, n_starts=4, hold_out=False)
    law = get_law("performance")
    for symbol, (low, high) in law.exponent_bounds.items():
        values = fit.draws[:, law.index(symbol)]
        assert low - 1e-12 <= values.min() <= values.max() <= high + 1e-12
    assert np.all(fit.draws[:, law.index("E")] <= table.loss.max() * (1 + 1e-9))
    assert np.all(np.isfinite(fit.draws))


def test_row_order_does_not_matter():
    table = performance([8.0, 0.05, 0.15, 0.3, 1.0], noise=0.01)
    shuffled = table.sample(frac=1.0, random_state=3).reset_index(drop=True)
    np.testing.assert_allclose(optimum("performance", shuffled).theta, optimum("performance", table).theta, rtol=1e-6)
