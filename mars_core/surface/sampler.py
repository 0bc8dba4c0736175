"""Draw hyperparameters from their posterior: an ensemble of walkers, half of them moved at once.

Differential evolution Monte Carlo (ter Braak 2006): a walker steps along the difference of two walkers of the other
half, which has the scale and the direction of the posterior. Walkers start at distinct prior draws, taken by likelihood
at a temperature at which enough of them count; one that is left behind in a poor place starts again from another's.
Between sweeps the exponent of the size may step to a neighbouring value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mars_core.surface.curves import Floats, Ints

WALKERS = 40
STARTS = 600
BURN_IN, KEPT = 60, 25  # sweeps
RESCUES = (20, 40, 55)  # sweeps of the burn-in
LEFT_BEHIND = 8.0  # log density below the median
LONG_STEPS = 0.1  # share of steps by a whole difference, which lead from one mode to another

LogLikelihood = Callable[[Ints, Floats], Floats]


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
        log_likelihood: of indices of exponents (n,) and hyperparameters (n, n_hyper), gives (n,).
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
        if inside.any():
            own = exponent[inside]
            found[inside] = log_likelihood(own, hyper[inside]) + log_prior_exponent[own]
        return found

    walkers, exponent = _starts(log_posterior, low, high, log_prior_exponent, rng)
    density = log_posterior(exponent, walkers)
    kept: list[tuple[Floats, Ints]] = []
    halves = np.array_split(np.arange(WALKERS), 2)
    for sweep in range(BURN_IN + KEPT):
        for own, other in (halves, halves[::-1]):
            _step(walkers, density, exponent, own, other, log_posterior, rng)
        if sweep % 2 == 0:
            _step_exponent(walkers, density, exponent, log_posterior, n_exponents, rng)
        if sweep in RESCUES:
            _rescue(walkers, density, exponent, rng)
        if sweep >= BURN_IN:
            kept.append((walkers.copy(), exponent.copy()))
    return States(np.concatenate([state for state, _ in kept]), np.concatenate([index for _, index in kept]))


def _starts(
    log_posterior: Callable[[Ints, Floats], Floats],
    low: Floats,
    high: Floats,
    log_prior_exponent: Floats,
    rng: np.random.Generator,
) -> tuple[Floats, Ints]:
    """Distinct prior draws, taken by likelihood to a power at which twice as many as there are walkers count."""
    hyper = rng.uniform(low, high, (STARTS, len(low)))
    exponent = rng.choice(len(log_prior_exponent), STARTS, p=_shares(log_prior_exponent[None, :])[0])
    logs = log_posterior(exponent, hyper)
    power = 1.0
    while 1.0 / float(np.sum(_shares(power * logs[None, :]) ** 2)) < 2 * WALKERS:
        power *= 0.7
    weights = _shares(power * logs[None, :])[0] + 1e-12
    taken = rng.choice(STARTS, WALKERS, replace=False, p=weights / weights.sum())
    return hyper[taken], exponent[taken]


def _step(
    walkers: Floats,
    density: Floats,
    exponent: Ints,
    own: Ints,
    other: Ints,
    log_posterior: Callable[[Ints, Floats], Floats],
    rng: np.random.Generator,
) -> None:
    """Move each walker of one half along the difference of two walkers of the other, in place."""
    n, n_hyper = len(own), walkers.shape[1]
    first = rng.integers(len(other), size=n)
    second = (first + rng.integers(1, len(other), size=n)) % len(other)
    scale = np.where(rng.random(n) < LONG_STEPS, 1.0, 2.38 / np.sqrt(2.0 * n_hyper) * rng.uniform(0.5, 1.2, n))
    difference = walkers[other[first]] - walkers[other[second]]
    proposal = walkers[own] + scale[:, None] * difference + 1e-6 * rng.standard_normal((n, n_hyper))
    proposed = log_posterior(exponent[own], proposal)
    accept = np.log(rng.random(n)) < proposed - density[own]
    moved = own[accept]
    walkers[moved], density[moved] = proposal[accept], proposed[accept]


def _rescue(walkers: Floats, density: Floats, exponent: Ints, rng: np.random.Generator) -> None:
    """Put walkers that were left behind where others are, in place."""
    lost = np.flatnonzero(density < np.median(density) - LEFT_BEHIND)
    if len(lost) == 0:
        return
    found = rng.choice(np.setdiff1d(np.arange(len(density)), lost), len(lost))
    walkers[lost], density[lost], exponent[lost] = walkers[found], density[found], exponent[found]


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
