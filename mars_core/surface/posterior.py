"""Posterior of the differences between rank pairs at any size, from the calibration's curves.

Law plus discrepancy in one linear Gaussian model: a part of a pair's loss that shrinks with data as a power of the size
(the form of Eq. 1 of MARS), and a part that does not; each is smooth in the log ranks, and the data say how large it
is. Where the differences shrink as the law says, the first part takes them; where not, the measurements decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mars_core.ranks import Pair
from mars_core.surface.curves import Curves, Floats, Ints
from mars_core.surface.equations import KNOTS, EquationsByExponent, build_equations, designs, features, features_at
from mars_core.surface.noise import Scatter, estimate_scatter, spread_of_runs
from mars_core.surface.prior import NAMES, Distances, bounds, distances, factors
from mars_core.surface.sampler import States, draw_states

BETAS = (0.08, 0.14, 0.22, 0.3, 0.4, 0.55, 0.75, 1.0)
BETA_PRIOR = (0.08, 0.12, 0.16, 0.18, 0.16, 0.14, 0.1, 0.06)
DRIFT_ON = 0.1  # how far differences drift beyond the measured sizes, as a share of the variance of the last stretch
BYTES = 64_000_000  # of the matrices that are factorised at once
LAST_STRETCH = 2  # block of the hinge over the last stretch


@dataclass(frozen=True, eq=False)
class Surface:
    """Draws of every pair's coefficients.

    pairs: as given. coefficients: (n_draws, n_features, n_pairs), common effects taken off. drift: how the
    differences go on beside the law over one more stretch of log size, (n_draws, n_pairs): as much as they moved over
    the last one, in an unknown direction. beta: of each draw.
    tau: standard deviation of a run's level, per draw. scatter: of a checkpoint. largest: largest size measured.
    """

    pairs: tuple[Pair, ...]
    coefficients: Floats
    drift: Floats
    beta: Floats
    tau: Floats
    scatter: Scatter
    largest: float

    def differences(self, size: float) -> Floats:
        """Draws of each pair's value beside an unknown common one, annealed, (n_draws, n_pairs). size: in samples."""
        ratio = np.full(len(self.beta), size / self.largest)
        parts = np.stack(features_at(ratio, self.beta), axis=1)
        known = np.einsum("df,dfn->dn", parts, self.coefficients[:, : parts.shape[1]])
        ahead = np.sqrt(DRIFT_ON * max(float(np.log(ratio[0])), 0.0) / (KNOTS[1] - KNOTS[0]))
        return np.asarray(known + ahead * self.drift)

    def luck(self, seed: int) -> Floats:
        """Draws of what the level and the last checkpoint of one run add by chance, (n_draws,)."""
        both = np.sqrt(self.tau**2 + self.scatter.sigma**2)
        return np.asarray(both * np.random.default_rng([seed, 4]).standard_normal(len(self.tau)))


def fit_surface(curves: Curves, pairs: Sequence[Pair], seed: int = 0) -> Surface:
    """Draw from the posterior.

    Args:
        curves: the calibration.
        pairs: pairs to be compared, the measured ones among them.
        seed: of the draws.
    """
    place = {index: list(pairs).index(pair) for index, pair in enumerate(curves.pairs)}
    scatter = estimate_scatter(curves)
    equations = EquationsByExponent(
        [build_equations(curves, scatter, *designs(curves, beta, len(pairs), place)) for beta in BETAS]
    )
    between, n_features = distances(pairs, curves.pairs), 6 if curves.annealed else 5
    limits = bounds(scatter.sigma, spread_of_runs(curves))

    at_once = max(1, BYTES // (8 * (n_features * len(pairs)) ** 2))

    def log_likelihood(exponent: Ints, hyper: Floats) -> Floats:
        n = math.ceil(len(hyper) / at_once)
        parts = zip(np.array_split(exponent, n), np.array_split(hyper, n), strict=True)
        return np.concatenate([_log_evidence(equations, between, n_features, *part) for part in parts])

    states = draw_states(log_likelihood, limits.low, limits.high, np.log(BETA_PRIOR), seed)
    coefficients, drift = _draw_coefficients(equations, between, n_features, states, np.random.default_rng([seed, 1]))
    twice = np.concatenate([states.exponent, states.exponent])
    tau = np.exp(states.hyper[:, NAMES.index("tau")])
    return Surface(
        tuple(pairs),
        coefficients.reshape(len(coefficients), n_features, len(pairs)),
        drift,
        np.array(BETAS)[twice],
        np.concatenate([tau, tau]),
        scatter,
        curves.largest,
    )


def _whitened_posterior(
    equations: EquationsByExponent, between: Distances, n_features: int, exponent: Ints, hyper: Floats
) -> tuple[list[Floats], Floats, Floats, Floats]:
    """Prior factors G of the blocks, Cholesky factor C of I + G' information G, C^-1 G' score, and the constant."""
    information, score, constant = equations.at(exponent, np.exp(hyper[:, NAMES.index("tau")]))
    G = factors(between, hyper, n_features)
    n, n_pairs = len(hyper), G[0].shape[1]
    whole = np.empty((n, n_features * n_pairs + 1, n_features * n_pairs + 1))
    places = [slice(index * n_pairs, (index + 1) * n_pairs) for index in range(n_features)]
    for i, at in enumerate(places):
        left = np.swapaxes(G[i], 1, 2)
        whole[:, -1, at] = (left @ score[:, at, None])[:, :, 0]
        for j, other in enumerate(places[: i + 1]):
            whole[:, at, other] = left @ information[:, at, other] @ G[j]
    diagonal = np.arange(n_features * n_pairs)
    whole[:, diagonal, diagonal] += 1.0
    # As a last row below the matrix, the score comes out of the factorisation divided by C: A >= I keeps it definite.
    whole[:, -1, -1] = 1.0 + (whole[:, -1, :-1] ** 2).sum(axis=1)
    C = np.linalg.cholesky(whole)  # reads the lower triangle alone
    return G, C[:, :-1, :-1], C[:, -1, :-1], constant


def _log_evidence(
    equations: EquationsByExponent, between: Distances, n_features: int, exponent: Ints, hyper: Floats
) -> Floats:
    """Log marginal likelihood of the hyperparameters, (n,), up to a constant of the data."""
    _, C, reduced, constant = _whitened_posterior(equations, between, n_features, exponent, hyper)
    half_determinant = np.log(np.diagonal(C, axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(constant - half_determinant + 0.5 * (reduced**2).sum(axis=1))


def _draw_coefficients(
    equations: EquationsByExponent, between: Distances, n_features: int, states: States, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Two draws per state, on either side of its mean: of coefficients (.., n_coef) and of the drift (.., n_pairs)."""
    n_pairs = between.lines.shape[1]
    mean, spread = np.empty((2, len(states.exponent), n_features * n_pairs))
    drift = np.empty((len(states.exponent), n_pairs))
    for exponent in np.unique(states.exponent):
        own = states.exponent == exponent
        G, C, reduced, _ = _whitened_posterior(equations, between, n_features, states.exponent[own], states.hyper[own])
        both = np.stack([reduced, rng.standard_normal(reduced.shape)], axis=2)
        solved = np.linalg.solve(np.swapaxes(C, 1, 2), both).reshape(len(both), n_features, -1, 2)
        coefficients = np.stack([block @ solved[:, index] for index, block in enumerate(G)], axis=1)
        mean[own], spread[own] = np.moveaxis(coefficients.reshape(len(both), -1, 2), 2, 0)
        drift[own] = (G[LAST_STRETCH] @ rng.standard_normal((len(both), n_pairs, 1)))[:, :, 0]
    return np.concatenate([mean + spread, mean - spread]), np.concatenate([drift, -drift])


def without_differences(curves: Curves, surface: Surface) -> Floats:
    """Values of every row with the mean posterior difference of its pair taken off, (n_rows,)."""
    mean = surface.coefficients.mean(axis=0)
    mean = mean - mean.mean(axis=1, keepdims=True)
    place = np.array([surface.pairs.index(pair) for pair in curves.pairs])
    own = mean[:, place[curves.pair]]
    return np.asarray(curves.value - np.einsum("nf,fn->n", features(curves, float(np.median(surface.beta))), own))
