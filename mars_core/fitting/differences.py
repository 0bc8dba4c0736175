"""Do the differences that a law sees between rank pairs hold at held-out sizes?

| symbol | meaning | shape |
|---|---|---|
| pairs | distinct rank pairs among the held-out rows | (n_pairs, 2) |
| residual | log of observed over predicted; row i from the fit without pair i | (n_pairs, n_test) |
| own | residual of pair i beside the mean of all pairs, from the fit without pair i | (n_pairs,) |

The error of a law at a size that it has not seen is mostly common to all pairs: annealing, a floor that the smaller
sizes do not show. A choice between pairs needs none of it. So what all pairs have in common is taken off, of the law
and of its rival without ranks alike; what is left of the rival is the observed difference itself.

Each pair is predicted by a fit without its runs. With one run per pair a law remembers the luck of the very run that it
is tested on and would be ahead wherever ranks do nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mars_core.fitting.bootstrap import refitted
from mars_core.fitting.solve import Solution
from mars_core.fitting.table import Table
from mars_core.laws.law import Floats, Law

RANKS = ("r_me", "r_llm")
FEWEST_PAIRS = 4
MOST_FITS = 32  # with more pairs, some are left out together


@dataclass(frozen=True)
class Differences:
    """Mean absolute error (log target) of the difference between a pair and the mean of the pairs.

    law: predicted by the law without the pair's runs. none: where no difference is predicted.
    """

    law: float
    none: float
    n_pairs: int


def held_out_differences(solution: Solution, train: Table, test: Table) -> Differences | None:
    """Compare the differences between pairs that the law predicts for `test` with those observed there.

    Args:
        solution: the law fitted to `train`.
        train: rows that were fitted.
        test: held-out rows.

    Returns:
        None for a law without both ranks, with fewer than four pairs, and where the runs of the other pairs do not
        carry the law.
    """
    law = solution.problem.law
    if not set(RANKS) <= set(law.inputs):
        return None
    pairs, label = np.unique(_ranks(test), axis=0, return_inverse=True)
    of_pair = label.reshape(-1) == np.arange(len(pairs))[:, None]  # (n_pairs, n_test)
    fit_of_pair = np.arange(len(pairs)) % MOST_FITS
    others = np.array([~_are_among(train, pairs[fit_of_pair == fit]) for fit in np.unique(fit_of_pair)])
    if len(pairs) < FEWEST_PAIRS or not all(_carries(law, train, rows) for rows in others):
        return None
    fits = law.natural(solution.problem.centring.raw(refitted(solution, others.astype(np.float64))))
    draws = fits[fit_of_pair]  # (n_pairs, n_params)
    log_y = np.log(test.y)
    residual = log_y - np.log(law.predict(draws, {column: test.inputs[column] for column in law.inputs}))
    flat = np.broadcast_to(log_y, residual.shape)
    return Differences(_mean_error(residual, of_pair), _mean_error(flat, of_pair), len(pairs))


def _mean_error(residual: Floats, of_pair: Floats) -> float:
    common = (residual @ of_pair.T / of_pair.sum(axis=1)).mean(axis=1)
    own = np.sum(residual * of_pair, axis=1) / of_pair.sum(axis=1)
    return float(np.mean(np.abs(own - common)))


def _are_among(table: Table, pairs: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.any(np.all(_ranks(table)[:, None, :] == pairs, axis=2), axis=1))


def _carries(law: Law, train: Table, rows: NDArray[np.bool_]) -> bool:
    """Whether some rows are more than the law has coefficients, with at least two ranks of either module."""
    varies = all(len(np.unique(train.inputs[column][rows])) > 1 for column in RANKS)
    return varies and int(rows.sum()) > law.n_params


def _ranks(table: Table) -> Floats:
    return np.stack([table.inputs[column] for column in RANKS], axis=1)
