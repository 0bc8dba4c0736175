"""The runs boiled down to what they say of each pair's curve: sufficient statistics of a linear Gaussian model.

    value = common(seed, step) + F_p . c_p + level(run) + scatter,   F = (1, size^-beta, hinges, heat)

| symbol | meaning | shape |
|---|---|---|
| c | per pair: what does not shrink with data, what does, three hinges, heat; pairs run fastest | (n_coef,) |
| information | of c, everything common to all runs taken off, no prior | (n_coef, n_coef) |
| score | of c, the same | (n_coef,) |

A run learns fast at first, and higher ranks faster: differences that no power of the size describes and that are over
by the end. The hinges take them: piecewise linear in log size and 0 at the largest, so that what was seen long before
the end does not bend what is said of the end and of what lies beyond it.

What all runs of a seed have in common at a step (the schedule, the size, the order of the samples) is free: nothing is
assumed of it, so neither warm-up nor annealing nor the form of the size dependence can bend the differences (`common`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mars_core.surface.common import common_columns
from mars_core.surface.curves import Curves, Floats, Ints
from mars_core.surface.noise import Scatter, whitened

# Log sizes, counted back from the largest, between which the hinges rise: the last third of a run, the third before,
# and all that lies further back.
KNOTS = (0.0, float(np.log(1.5)), float(np.log(3.0)), float(np.log(6.0)))


LEAST_DOUBT = 0.1  # of a checkpoint's scatter: what a run may be off by and still be taken as it is


@dataclass(frozen=True, eq=False)
class Equations:
    """Sufficient statistics; runs enter by the eigenvectors of their own information.

    information, score: see the module; before run levels are accounted for. coupling: (n_coef, n_runs), between c and
    run levels; eigenvalues, run_score: of the run levels, (n_runs,). constant: what is left of the log likelihood.
    """

    information: Floats
    score: Floats
    coupling: Floats
    eigenvalues: Floats
    run_score: Floats
    constant: float


class EquationsByExponent:
    """Equations that differ in the exponent of the size alone, for many exponents at once.

    One call for all walkers of a sampler takes a fraction of one call for each exponent: grids are small.
    """

    def __init__(self, equations: Sequence[Equations]) -> None:
        self._information = np.stack([one.information for one in equations])
        self._score = np.stack([one.score for one in equations])
        self._coupling = np.stack([one.coupling for one in equations])
        self._eigenvalues = np.stack([one.eigenvalues for one in equations])
        self._run_score = np.stack([one.run_score for one in equations])
        self._constant = np.array([one.constant for one in equations])

    def at(self, exponent: Ints, tau: Floats) -> tuple[Floats, Floats, Floats]:
        """Information, score and log likelihood part.

        Args:
            exponent: index of the equations, (n,).
            tau: standard deviation of run levels, (n,).

        Returns:
            (n, n_coef, n_coef), (n, n_coef), (n,).
        """
        eigenvalues, coupling, run_score = (
            each[exponent] for each in (self._eigenvalues, self._coupling, self._run_score)
        )
        precision = 1.0 / tau[:, None] ** 2
        gain = 1.0 / (eigenvalues + precision)  # (n, n_runs)
        information = self._information[exponent] - (coupling * gain[:, None, :]) @ np.swapaxes(coupling, 1, 2)
        score = self._score[exponent] - (coupling @ (gain * run_score)[:, :, None])[:, :, 0]
        log_part = 0.5 * (gain * run_score**2 - np.log1p(eigenvalues / precision)).sum(axis=1)
        return information, score, self._constant[exponent] + log_part


def features(curves: Curves, beta: float) -> Floats:
    """What a pair's coefficients multiply at each row, (n_rows, 5) or (n_rows, 6) where annealing is seen."""
    columns = [*features_at(curves.size, beta), *([curves.heat] if curves.annealed else [])]
    return np.column_stack(columns)


def features_at(size: Floats, beta: float | Floats) -> list[Floats]:
    """The same at sizes (over the largest measured one), annealed: 1, size^-beta and the hinges."""
    back = -np.log(size)
    hinges = [
        np.clip((back - low) / (high - low), 0.0, 1.0 if high < KNOTS[-1] else None) for low, high in pairwise(KNOTS)
    ]
    return [np.ones_like(size), size**-beta, *hinges]


def designs(curves: Curves, beta: float, n_pairs: int, place: dict[int, int]) -> tuple[Floats, Floats, Floats]:
    """Columns of the common effects, of the pairs' coefficients and of the run levels.

    Runs that differ in their rate alone have one level.

    Args:
        curves: the runs.
        beta: exponent of the size.
        n_pairs: pairs that have coefficients, measured or not.
        place: index among those of each of the curves' pairs.
    """
    rows = np.arange(len(curves.value))
    common = common_columns(curves.common, curves.size, curves.heat)
    cell = curves.run if curves.rates is None else curves.rates.cell[curves.run]
    level = np.zeros((len(rows), int(cell.max()) + 1))
    level[rows, cell] = 1.0
    F = features(curves, beta)
    own = np.zeros((len(rows), F.shape[1], n_pairs))
    at = np.array([place[pair] for pair in curves.pair.tolist()])
    own[rows, :, at] = F
    return common, own.reshape(len(rows), -1), level


def build_equations(curves: Curves, scatter: Scatter, common: Floats, own: Floats, level: Floats) -> Equations:
    """Whiten, take the common effects off, and turn the run levels into their eigenvectors."""
    guessed, mean, sd = _guessed(curves, scatter)
    n_common, n_own = common.shape[1] + len(sd), own.shape[1]
    stacked = np.column_stack([common, guessed, own, level, curves.value])
    white, half_determinant = whitened(curves, scatter, stacked)
    # One more equation for each says what was known of it beforehand.
    known = np.zeros((len(sd), stacked.shape[1]))
    known[np.arange(len(sd)), common.shape[1] + np.arange(len(sd))] = 1.0 / sd
    known[:, -1] = mean / sd
    white, half_determinant = np.vstack([white, known]), half_determinant + float(np.sum(np.log(sd)))
    Q, R = np.linalg.qr(white[:, :n_common])
    rest = white[:, n_common:] - Q @ (Q.T @ white[:, n_common:])
    B, U, y = rest[:, :n_own], rest[:, n_own:-1], rest[:, -1]
    eigenvalues, vectors = np.linalg.eigh(U.T @ U)
    half_determinant += float(np.sum(np.log(np.abs(np.diag(R)))))
    return Equations(
        information=B.T @ B,
        score=B.T @ y,
        coupling=B.T @ U @ vectors,
        eigenvalues=np.maximum(eigenvalues, 0.0),
        run_score=vectors.T @ (U.T @ y),
        constant=-half_determinant - 0.5 * float(y @ y),
    )


def _guessed(curves: Curves, scatter: Scatter) -> tuple[Floats, Floats, Floats]:
    """Effects of which mean and standard deviation are known: columns (n_rows, n), means and deviations (n,).

    Doubts about a row's common effect; where runs differ in their rate, the coefficients of the learning-rate law, and
    what that law misses of each run. What the runs of a pair and seed have in common of their luck is their level: in
    `benchmarks/rank_and_rate.py` luck at neighbouring rates of one seed is correlated by about 0.2 only.
    """
    doubtful = np.flatnonzero(curves.common.doubt)
    columns = [np.eye(len(curves.value))[:, doubtful]]
    mean, sd = [np.zeros(len(doubtful))], [curves.level * curves.common.doubt[doubtful]]
    if (rates := curves.rates) is not None:
        runs = np.eye(curves.n_runs)[curves.run]
        beside = max(rates.scatter**2 - scatter.sigma**2, 0.0)  # a run's last checkpoint scatters by sigma already
        doubt = np.sqrt(rates.doubt**2 + beside)
        missed = np.flatnonzero(doubt > LEAST_DOUBT * scatter.sigma)
        columns += [rates.columns, runs[:, missed]]
        mean += [rates.mean, np.zeros(len(missed))]
        sd += [rates.sd, doubt[missed]]
    return np.column_stack(columns), np.concatenate(mean), np.concatenate(sd)
