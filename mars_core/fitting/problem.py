"""The optimisation problem of one fit, evaluated for many coefficient vectors at once.

| symbol | meaning | shape |
|---|---|---|
| phi | internal coefficients on the centred design | (n_problems, n_params) |
| weights | how often a point counts (1, or its bootstrap count) | (n_problems, n_points) or (1, n_points) |
| M | centred design of the distinct input rows | (n_terms, n_distinct, n_params) |

Points that share their inputs (seeds) share one prediction, so exponentials are taken once per distinct row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mars_core.fitting.huber import LossParts, censored_huber, huber
from mars_core.laws.law import Columns, Floats, Law, columns_of

Bools = NDArray[np.bool_]
Integers = NDArray[np.intp]


class Evaluation(NamedTuple):
    """Objective, gradient and the two curvature matrices at n_problems coefficient vectors."""

    objective: Floats  # (n_problems,)
    gradient: Floats  # (n_problems, n_params)
    newton: Floats  # (n_problems, n_params, n_params), from the loss's true second derivative
    majorant: Floats  # the same from iteratively reweighted least squares; always a descent metric


@dataclass(frozen=True)
class Centring:
    """Linear map between coefficients on the raw and on the centred design."""

    to_raw: Floats  # (n_params, n_params): phi_raw = to_raw @ phi_centred
    to_centred: Floats

    def raw(self, phi: Floats) -> Floats:
        """Centred to raw internal coefficients, any leading shape."""
        return np.asarray(phi @ self.to_raw.T)

    def centred(self, phi: Floats) -> Floats:
        """Raw to centred internal coefficients, any leading shape."""
        return np.asarray(phi @ self.to_centred.T)


def centring_of(law: Law, M: Floats, weights: Floats) -> Centring:
    """Centring that moves every feature's mean into its term's scale; weights (n_rows,)."""
    means = np.einsum("n,knp->kp", weights / weights.sum(), M)
    to_centred = np.eye(law.n_params)
    for k, term in enumerate(law.terms):
        row = law.index(term.scale)
        for symbol, _ in term.factors:
            to_centred[row, law.index(symbol)] = means[k, law.index(symbol)]
    return Centring(to_raw=np.asarray(np.linalg.inv(to_centred), dtype=np.float64), to_centred=to_centred)


@dataclass(frozen=True)
class Problem:
    """Data of one fit, ready for batched evaluation."""

    law: Law
    delta: float
    scale: float  # noise scale of the censored likelihood, unused without censored points
    M: Floats  # (n_terms, n_distinct, n_params)
    outer: Floats  # (n_term_pairs, n_distinct, n_params^2), symmetrised products of design rows
    row_starts: Integers  # first point of each distinct row; points are sorted by row
    row_of_point: Integers  # (n_points,)
    order: Integers  # (n_points,) original index of each sorted point
    log_y: Floats  # (n_points,), sorted
    censored: Bools  # (n_points,), sorted
    centring: Centring
    lower: Floats  # (n_params,), centred
    upper: Floats

    @property
    def n_points(self) -> int:
        """Number of points, observed and censored."""
        return len(self.log_y)

    @property
    def floors(self) -> Bools:
        """True where a coefficient is the logarithm of a constant term, (n_params,)."""
        constants = [term.scale for term in self.law.terms if not term.factors]
        return np.array([symbol in constants for symbol in self.law.symbols])

    def with_scale(self, scale: float) -> Problem:
        """The same data under another noise scale of the censored likelihood."""
        return replace(self, scale=scale)

    def evaluate(self, phi: Floats, weights: Floats) -> Evaluation:
        """Objective and derivatives for sorted `weights`; see the module's table for shapes."""
        log_prediction, shares = self._forward(phi)
        loss = self._loss(self._per_point(log_prediction) - self.log_y)
        slope, *curvatures = (self._per_row(weights * part) for part in loss[1:])
        objective = np.add.reduce(weights * loss.value, axis=1)
        gradient = sum((slope * share) @ rows for share, rows in zip(shares, self.M, strict=True))
        newton, majorant = self._curvature(shares, np.stack(curvatures))
        return Evaluation(objective, np.asarray(gradient), newton, majorant)

    def residuals(self, phi: Floats) -> Floats:
        """Predicted minus observed log target in the caller's point order, (n_problems, n_points)."""
        log_prediction, _ = self._forward(np.atleast_2d(phi))
        residual = np.empty((len(log_prediction), self.n_points))
        residual[:, self.order] = self._per_point(log_prediction) - self.log_y
        return residual

    def jacobian(self, phi: Floats) -> Floats:
        """Gradient of the log prediction at every sorted point, (n_points, n_params), for one phi."""
        _, shares = self._forward(phi[None, :])
        rows = sum(np.broadcast_to(share[0], len(M))[:, None] * M for share, M in zip(shares, self.M, strict=True))
        return np.asarray(rows)[self.row_of_point]

    def _forward(self, phi: Floats) -> tuple[Floats, list[Floats]]:
        """Log prediction (n_problems, n_distinct) and each term's share of the prediction (or its elasticity)."""
        logs = [
            phi @ rows.T if term.factors else phi[:, self.law.index(term.scale), None]
            for term, rows in zip(self.law.terms, self.M, strict=True)
        ]
        if self.law.combination is not None:
            shape = (len(phi), self.M.shape[1])
            log_prediction, elasticities = self.law.combination.joined(
                np.stack([np.broadcast_to(log, shape) for log in logs])
            )
            return log_prediction, list(elasticities)
        sizes = [np.exp(np.minimum(log, 500.0)) for log in logs]
        total = sum(sizes[1:], sizes[0])
        if total.shape[1] != self.M.shape[1]:  # a law that is a constant
            total = np.broadcast_to(total, (len(phi), self.M.shape[1]))
        return np.log(total), [size / total for size in sizes]

    def _loss(self, residual: Floats) -> LossParts:
        parts = huber(residual, self.delta)
        if not self.censored.any():
            return parts
        tail = censored_huber(residual[:, self.censored], self.delta, self.scale)
        for whole, part in zip(parts, tail, strict=True):
            whole[:, self.censored] = part
        return parts

    def _curvature(self, shares: list[Floats], row_weight: Floats) -> Floats:
        """sum_i row_weight_i J_i J_i^T with J = sum_k share_k M_k.

        row_weight: of several curvatures, (n_curvatures, n_problems, n_distinct). Returns (n_curvatures, n_problems,
        n_params, n_params).
        """
        pairs = combinations_with_replacement(shares, 2)
        flat = sum(
            (row_weight * one * other) @ products for (one, other), products in zip(pairs, self.outer, strict=True)
        )
        n_params = self.law.n_params
        return np.asarray(flat).reshape(*row_weight.shape[:2], n_params, n_params)

    def _per_point(self, per_row: Floats) -> Floats:
        if per_row.shape[1] == self.n_points:
            return per_row
        return per_row.take(self.row_of_point, axis=1)

    def _per_row(self, per_point: Floats) -> Floats:
        if len(self.row_starts) == self.n_points:
            return per_point
        return np.asarray(np.add.reduceat(per_point, self.row_starts, axis=1))


def build_problem(law: Law, points: Columns, y: Floats, censored: Bools, delta: float, scale: float) -> Problem:
    """Sort points by distinct inputs, centre the design and set the bounds.

    Args:
        law: the law to fit.
        points: columns holding the law's inputs, (n_points,) each.
        y: targets, (n_points,); a censored point's is its lower limit.
        censored: True where the target is only a lower limit.
        delta: Huber threshold on log residuals.
        scale: noise scale of the censored likelihood.
    """
    inputs = columns_of(law, points)
    table = np.stack([inputs[column] for column in law.inputs], axis=1)
    distinct, row_of_point = np.unique(table, axis=0, return_inverse=True)
    row_of_point = row_of_point.reshape(-1)
    order = np.argsort(row_of_point, kind="stable")
    sorted_rows = row_of_point[order]
    raw = law.design(dict(zip(law.inputs, distinct.T, strict=True)))
    centring = centring_of(law, raw, np.bincount(sorted_rows).astype(np.float64))
    M = raw @ centring.to_raw
    lower, upper = law.bounds(y)
    return Problem(
        law=law,
        delta=delta,
        scale=scale,
        M=M,
        outer=_outer_products(M),
        row_starts=np.searchsorted(sorted_rows, np.arange(len(distinct))),
        row_of_point=sorted_rows,
        order=order,
        log_y=np.log(y)[order],
        censored=censored[order],
        centring=centring,
        lower=lower,
        upper=upper,
    )


def _outer_products(M: Floats) -> Floats:
    n_terms, n_rows, n_params = M.shape
    products = []
    for k in range(n_terms):
        for m in range(k, n_terms):
            outer = M[k][:, :, None] * M[m][:, None, :]
            products.append(outer if k == m else outer + outer.transpose(0, 2, 1))
    return np.stack(products).reshape(len(products), n_rows, n_params * n_params)
