"""The boiled-down likelihood and posterior against the dense Gaussian model written out with full matrices."""

import numpy as np
import pytest

from mars_core.surface.curves import read_curves
from mars_core.surface.equations import EquationsByExponent, build_equations, designs
from mars_core.surface.noise import Scatter, whitened
from mars_core.surface.posterior import _log_evidence, _whitened_posterior
from mars_core.surface.prior import NAMES, bounds, distances, factors

SCATTER = Scatter(0.01, 0.5, 0.4)
BETA = 0.35


def covariance(curves):
    """Of the scatter: AR(1) within a run, larger at small sizes."""
    sd = SCATTER.sigma * curves.size**-SCATTER.growth
    n = len(curves.value)
    place = np.array([int(np.sum(curves.run[:i] == curves.run[i])) for i in range(n)])
    same = curves.run[:, None] == curves.run[None, :]
    lag = np.abs(place[:, None] - place[None, :])
    return np.where(same, SCATTER.phi**lag, 0.0) * np.outer(sd, sd)


def apart(table):
    """A seed of its own for every run, and one pair looked at at steps that no other has."""
    table = table.assign(seed=table["run_id"].factorize()[0])
    moved = (table["r_me"] == 64) & (table["r_llm"] == 8)
    return table.assign(step=table["step"] + moved, D=table["D"] + 8 * moved)


@pytest.fixture(params=["shared", "apart"])
def curves(table_of, eq1, schedule, request):
    """Unbalanced on purpose: two seeds, one run without its last checkpoints, one pair with one seed."""
    table = table_of(eq1, ranks_me=(8, 32, 64), ranks_llm=(8, 16), seeds=2, noise=0.01, lr=schedule)
    lost = (table["run_id"] == "8-8-0") & (table["step"] > 128) | (table["run_id"] == "64-16-1")
    kept = table[~lost]
    return read_curves(kept if request.param == "shared" else apart(kept))


def hypers(seed):
    limits = bounds(SCATTER.sigma)
    return np.random.default_rng(seed).uniform(limits.low, limits.high, (4, len(NAMES)))


def dense(curves, hyper):
    """Restricted log likelihood and posterior mean of the coefficients."""
    place = {i: i for i in range(len(curves.pairs))}
    common, own, level = designs(curves, BETA, len(curves.pairs), place)
    between = distances(curves.pairs, curves.pairs)
    blocks = [G[0] @ G[0].T for G in factors(between, hyper[None, :], own.shape[1] // len(curves.pairs))]
    K = np.zeros((own.shape[1], own.shape[1]))
    n = len(curves.pairs)
    for i, block in enumerate(blocks):
        K[i * n : (i + 1) * n, i * n : (i + 1) * n] = block
    tau = np.exp(hyper[NAMES.index("tau")])
    doubt = np.diag((curves.level * curves.common.doubt) ** 2)
    sigma = own @ K @ own.T + tau**2 * level @ level.T + covariance(curves) + doubt
    inverse = np.linalg.inv(sigma)
    information = common.T @ inverse @ common
    P = inverse - inverse @ common @ np.linalg.solve(information, common.T @ inverse)
    y = curves.value
    evidence = -0.5 * (np.linalg.slogdet(sigma)[1] + np.linalg.slogdet(information)[1] + y @ P @ y)
    return evidence, K @ own.T @ P @ y


def test_whitening_whitens(curves):
    white, half_determinant = whitened(curves, SCATTER, np.linalg.cholesky(covariance(curves)))
    np.testing.assert_allclose(white @ white.T, np.eye(len(white)), atol=1e-9)
    assert half_determinant == pytest.approx(0.5 * np.linalg.slogdet(covariance(curves))[1])


@pytest.mark.parametrize("seed", range(3))
def test_evidence_and_mean_equal_the_dense_model(curves, seed):
    """Both sides are exact up to rounding; the evidence may differ by a constant of the data."""
    place = {i: i for i in range(len(curves.pairs))}
    own, other = (build_equations(curves, SCATTER, *designs(curves, b, len(curves.pairs), place)) for b in (BETA, 0.9))
    equations = EquationsByExponent([other, own])
    between, hyper = distances(curves.pairs, curves.pairs), hypers(seed)
    exponent = np.ones(len(hyper), dtype=np.int64)
    found = _log_evidence(equations, between, 6, exponent, hyper)
    G, C, reduced, _ = _whitened_posterior(equations, between, 6, exponent, hyper)
    n = len(curves.pairs)
    for i, one in enumerate(hyper):
        evidence, mean = dense(curves, one)
        assert found[i] - found[0] == pytest.approx(evidence - dense(curves, hyper[0])[0], rel=1e-5, abs=1e-4)
        inner = np.linalg.solve(C[i].T, reduced[i]).reshape(6, n)
        ours = np.concatenate([G[block][i] @ inner[block] for block in range(6)])
        np.testing.assert_allclose(ours, mean, rtol=1e-4, atol=1e-7)


def test_a_level_that_all_runs_of_a_seed_share_at_a_step_says_nothing(curves, table_of, eq1, schedule):
    """Whatever the schedule or the order of the samples adds to all runs alike, the posterior is the same."""
    place = {i: i for i in range(len(curves.pairs))}
    moved = np.random.default_rng(0).normal(0, 1, int(curves.common.effect.max()) + 1)
    other = type(curves)(**{**vars(curves), "value": curves.value + moved[curves.common.effect]})
    one, two = (build_equations(c, SCATTER, *designs(c, BETA, len(c.pairs), place)) for c in (curves, other))
    np.testing.assert_allclose(one.score, two.score, atol=1e-6 * np.abs(one.score).max())
    assert two.constant == pytest.approx(one.constant, rel=1e-8)
