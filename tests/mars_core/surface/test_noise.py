"""The scatter of runs against restricted maximum likelihood with full matrices."""

from itertools import product

import numpy as np
import pytest

from mars_core.surface.common import common_columns
from mars_core.surface.curves import read_curves
from mars_core.surface.noise import GROWTHS, PHIS, PRIOR_FREEDOM, USUAL_SHARE, estimate_scatter


def correlation(curves, phi, growth):
    """Of the scatter at sigma 1: AR(1) within a run, larger at small sizes."""
    sd = curves.size**-growth
    place = np.array([int(np.sum(curves.run[:i] == run)) for i, run in enumerate(curves.run)])
    same = curves.run[:, None] == curves.run[None, :]
    lag = np.abs(place[:, None] - place[None, :])
    return np.where(same, (phi or 1e-300) ** lag, 0.0) * np.outer(sd, sd)


def effects(curves):
    """An orthonormal basis of all that is no scatter: common effects, each run's level, a quadratic in the log ranks
    at each checkpoint."""
    logs = [np.log(np.array(ranks, dtype=float)) for ranks in zip(*curves.pairs, strict=True)]
    x, y = (own[curves.pair] - own.mean() for own in logs)
    n_me, n_llm = (len(set(own)) for own in logs)
    forms = [x, y, *([x * x] if n_me > 2 else []), *([y * y] if n_llm > 2 else []), x * y]
    at = np.unique(np.round(curves.size, 9), return_inverse=True)[1]
    columns = [*(np.where(at == k, form, 0.0) for k in range(at.max() + 1) for form in forms)]
    columns += [(curves.run == run).astype(float) for run in range(curves.n_runs)]
    columns += list(common_columns(curves.common, curves.size, curves.heat).T)
    U, values, _ = np.linalg.svd(np.column_stack(columns), full_matrices=False)
    return U[:, values > 1e-9 * values[0]]


def by_full_matrices(curves):
    """phi, growth and sigma of the largest restricted likelihood, sigma profiled out under its prior."""
    X, y, found = effects(curves), curves.value, []
    for phi, growth in product(PHIS, GROWTHS):
        V = correlation(curves, phi, growth)
        inverse = np.linalg.inv(V)
        A = X.T @ inverse @ X
        squares = y @ inverse @ y - (X.T @ inverse @ y) @ np.linalg.solve(A, X.T @ inverse @ y)
        freedom = len(y) - X.shape[1] + PRIOR_FREEDOM
        variance = (squares + PRIOR_FREEDOM * (USUAL_SHARE * curves.level) ** 2) / freedom
        determinants = np.linalg.slogdet(V)[1] + np.linalg.slogdet(A)[1]
        found.append((-0.5 * determinants - 0.5 * freedom * np.log(variance), phi, growth, float(np.sqrt(variance))))
    return max(found)[1:]


@pytest.mark.parametrize("rng", [0, 1])
@pytest.mark.parametrize("apart", [False, True], ids=["shared seeds", "a seed for every run"])
def test_the_likeliest_scatter(table_of, eq1, schedule, rng, apart):
    table = table_of(eq1, ranks_me=(8, 32, 64), ranks_llm=(8, 16), seeds=2, noise=0.01, lr=schedule, rng=rng)
    table = table[~((table["run_id"] == "8-8-0") & (table["step"] > 128) | (table["run_id"] == "64-16-1"))]
    if apart:
        table = table.assign(seed=table["run_id"].factorize()[0])
    curves = read_curves(table)
    phi, growth, sigma = by_full_matrices(curves)
    found = estimate_scatter(curves)
    assert (found.phi, found.growth) == (phi, growth)
    assert found.sigma == pytest.approx(sigma, rel=1e-8)
