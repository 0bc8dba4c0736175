"""Draw hyperparameters from their posterior: an affine-invariant ensemble, all walkers of a half at once.

Goodman and Weare 2010 ("Ensemble samplers with affine invariance"), the stretch move with a = 2. Walkers start at prior
draws taken by their likelihood. Between sweeps the exponent of the size may step to a neighbouring value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mars_core.surface.curves import Floats, Ints

WALKERS = 40
STARTS = 400
BURN_IN, KEPT = 40, 25  # sweeps
STRETCH = 2.0

LogLikelihood = Callable[[int, Floats], Floats]


@dataclass(frozen=True, eq=False)
class States:
    """Draws: hyperparameters (n, n_hyper) and the index of the size's exponent (n,)."""

    hyper: Floats
    exponent: Ints


def draw_states(
    log_likelihood: LogLikelihood, low: Floats, high: Floats, log_prior_exponent: Floats, seed: int
) -> States:
    """Sample hyperparameters under a uniform prior between `low` and `high`.

    Args:
        log_likelihood: of an exponent's index and hyperparameters (n, n_hyper), gives (n,).
        low: lower bounds.
        high: upper bounds.
        log_prior_exponent: log prior of each exponent.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    n_exponents = len(log_prior_exponent)

    def log_posterior(exponent: Ints, hyper: Floats) -> Floats:
        found = np.full(len(hyper), -np.inf)
        inside = np.all((hyper >= low) & (hyper <= high), axis=1)
        for index in np.unique(exponent[inside]):
            chosen = inside & (exponent == index)
            found[chosen] = log_likelihood(int(index), hyper[chosen]) + log_prior_exponent[index]
        return found

    starts = rng.uniform(low, high, (STARTS, len(low)))
    exponents = rng.choice(n_exponents, STARTS, p=_shares(log_prior_exponent[None, :])[0])
    weights = _shares(0.5 * log_posterior(exponents, starts)[None, :])[0]  # tempered: more than a few must survive
    taken = rng.choice(STARTS, WALKERS, p=weights)
    walkers, exponent = starts[taken] + 1e-3 * rng.standard_normal((WALKERS, len(low))), exponents[taken]
    walkers = np.clip(walkers, low, high)
    density = log_posterior(exponent, walkers)
    kept: list[tuple[Floats, Ints]] = []
    halves = np.array_split(np.arange(WALKERS), 2)
    for sweep in range(BURN_IN + KEPT):
        for own, other in (halves, halves[::-1]):
            _stretch(walkers, density, exponent, own, other, log_posterior, rng)
        if sweep % 2 == 0:
            _step_exponent(walkers, density, exponent, log_posterior, n_exponents, rng)
        if sweep >= BURN_IN:
            kept.append((walkers.copy(), exponent.copy()))
    return States(np.concatenate([state for state, _ in kept]), np.concatenate([index for _, index in kept]))


def _stretch(
    walkers: Floats,
    density: Floats,
    exponent: Ints,
    own: Ints,
    other: Ints,
    log_posterior: Callable[[Ints, Floats], Floats],
    rng: np.random.Generator,
) -> None:
    """Move each walker of one half along the line through a random walker of the other, in place."""
    partner = walkers[rng.choice(other, len(own))]
    z = ((STRETCH - 1.0) * rng.random(len(own)) + 1.0) ** 2 / STRETCH
    proposal = partner + z[:, None] * (walkers[own] - partner)
    proposed = log_posterior(exponent[own], proposal)
    accept = np.log(rng.random(len(own))) < (walkers.shape[1] - 1) * np.log(z) + proposed - density[own]
    moved = own[accept]
    walkers[moved], density[moved] = proposal[accept], proposed[accept]


def _step_exponent(
    walkers: Floats,
    density: Floats,
    exponent: Ints,
    log_posterior: Callable[[Ints, Floats], Floats],
    n_exponents: int,
    rng: np.random.Generator,
) -> None:
    """Propose to each walker a neighbouring exponent (Metropolis), in place."""
    proposal = exponent + rng.choice([-1, 1], len(exponent))
    inside = (proposal >= 0) & (proposal < n_exponents)
    proposed = log_posterior(np.where(inside, proposal, exponent), walkers)
    accept = inside & (np.log(rng.random(len(exponent))) < proposed - density)
    exponent[accept], density[accept] = proposal[accept], proposed[accept]


def _shares(logs: Floats) -> Floats:
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
