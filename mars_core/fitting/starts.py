"""Starting points by variable projection: exponents are spread, scales follow in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import qmc

from mars_core.laws.law import Columns, Floats, Law


def projected_starts(law: Law, X: Columns, y: Any, n_starts: int, seed: int) -> Floats:
    """Starting points in internal coefficients on the uncentred inputs, shape (n_starts, n_params).

    Exponents are spread over `law.start_ranges`; for each set of exponents the scales are linear and solved in closed
    form, so that every start already has the data's size.
    """
    targets = np.asarray(y, dtype=np.float64)
    phi = np.zeros((n_starts, law.n_params))
    exponents = _spread_exponents(law, n_starts, seed)
    for j, symbol in enumerate(law.start_ranges):
        phi[:, law.index(symbol)] = exponents[:, j]
    M = law.design(X)
    log_shapes = np.stack([phi @ rows.T for rows in M])  # (n_terms, n_starts, n_points), scales still 1
    joined = law.combination
    log_scales = _solve_scales(log_shapes, targets) if joined is None else joined.start_scales(log_shapes, targets)
    for k, term in enumerate(law.terms):
        phi[:, law.index(term.scale)] = log_scales[:, k]
    return phi


def _spread_exponents(law: Law, n_starts: int, seed: int) -> Floats:
    """Latin hypercube over `start_ranges`, shape (n_starts, n_exponents)."""
    ranges = np.array(list(law.start_ranges.values()), dtype=np.float64).reshape(-1, 2)
    if ranges.size == 0:
        return np.zeros((n_starts, 0))
    unit = qmc.LatinHypercube(d=len(ranges), seed=seed).random(n_starts)
    return np.asarray(ranges[:, 0] + unit * (ranges[:, 1] - ranges[:, 0]))


def _solve_scales(log_shapes: Floats, y: Floats) -> Floats:
    """Log scales that fit y best in relative error for given exponents, shape (n_starts, n_terms).

    Negative solutions are put at a small positive share instead: the optimiser takes it from there.
    """
    peak = log_shapes.max(axis=2)  # (n_terms, n_starts)
    columns = np.exp(log_shapes - peak[:, :, None]) / y  # relative residual: sum_k c_k column_k = 1
    normal = np.einsum("ksn,lsn->skl", columns, columns)
    target = np.einsum("ksn->sk", columns)
    ridge = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(len(log_shapes))
    scales = np.linalg.solve(normal + ridge, target[:, :, None])[:, :, 0]
    smallest = 0.05 / np.maximum(columns.mean(axis=2).T, 1e-300)
    return np.asarray(np.log(np.maximum(scales, smallest)) - peak.T)
