"""Which measured pairs are as good as the best one, as far as the runs can tell: no law takes part.

| symbol | meaning | shape |
|---|---|---|
| value | log of 1 + excess of the search's objective over any fixed pair; the loss itself for perplexity | (n_runs,) |
| level | part of the value that the pair explains (with one run per pair: that its ranks explain) | (n_runs,) |
| noise | standard deviation of a run's value that is left | () |

The lowest of many measurements is low by luck too. So it is asked first whether the pairs differ at all by more than
their runs scatter (F test, 5%). If they do not, all are as good. If they do, the levels are shrunk by the factor
1 - 1 / F before they are compared (James and Stein 1961, as an empirical Bayes estimate): that part is no noise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from mars_core.search.objective import Objective
from mars_core.search.observed import Pair, at_largest_size, pairs_of

Floats = NDArray[np.float64]
LARGEST_P = 0.05


@dataclass(frozen=True)
class AsGood:
    """Measured pairs at the largest size.

    losses: mean over runs of the objective's quantity per allowed pair. best: the lowest one. pairs: those that exceed
    it by no more than the margin, itself included. p_value: of the pairs' differences, if they were none. noise: of one
    run, as a share of the objective.
    """

    losses: Mapping[Pair, float]
    best: Pair
    pairs: frozenset[Pair]
    p_value: float
    noise: float

    @property
    def differ(self) -> bool:
        """Whether the pairs differ by more than their runs scatter."""
        return self.p_value < LARGEST_P


@dataclass(frozen=True)
class _Levels:
    level: Floats
    noise: float
    F: float
    p_value: float


def as_good_as_the_best(
    observed: pd.DataFrame, allowed: Collection[Pair], margin: float, objective: Objective
) -> AsGood | None:
    """Compare the allowed pairs that were measured at the largest size; None where the noise cannot be estimated.

    Args:
        observed: columns r_me, r_llm, D, loss, one row per run and size; optional: seed.
        allowed: pairs that may be chosen.
        margin: relative excess of the objective that does not matter.
        objective: what `loss` holds.
    """
    rows = at_largest_size(observed, allowed)
    if rows.empty:
        return None
    losses = rows["loss"].to_numpy(dtype=np.float64)
    found = _levels(rows, np.log1p(objective.excess(losses, losses[0])))
    if found is None:
        return None
    of_pair = {pair: np.array([other == pair for other in pairs_of(rows)]) for pair in allowed}
    of_pair = {pair: own for pair, own in of_pair.items() if own.any()}
    mean = {pair: float(losses[own].mean()) for pair, own in of_pair.items()}
    kept_share = 1.0 - 1.0 / found.F if found.p_value < LARGEST_P else 0.0
    level = {pair: kept_share * float(found.level[own].mean()) for pair, own in of_pair.items()}
    best = min(mean, key=lambda pair: (level[pair], mean[pair]))
    as_good = frozenset(pair for pair in mean if np.expm1(level[pair] - level[best]) <= margin)
    return AsGood(mean, best, as_good, found.p_value, found.noise)


def _levels(rows: pd.DataFrame, values: Floats) -> _Levels | None:
    """What the pairs explain of the values, beside the seeds; None where nothing is left to measure the noise by.

    With one run per pair the ranks and their interplay count instead of the pair: what is left of them is noise.
    """
    pairs = np.array(pairs_of(rows))
    repeated = len(np.unique(pairs, axis=0)) < len(rows)
    labels = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    seeds = rows["seed"].to_numpy() if repeated and "seed" in rows.columns else np.zeros(len(rows))
    common = _indicators(seeds)
    ranks = [_indicators(pairs[:, 0]), _indicators(pairs[:, 1]), np.log(pairs).prod(axis=1, keepdims=True)]
    own = _indicators(labels) if repeated else np.concatenate(ranks, axis=1)
    fitted_common, rank_common = _fitted(common, values)
    fitted, rank = _fitted(np.concatenate([common, own], axis=1), values)
    freedom, explained = len(rows) - rank, rank - rank_common
    if freedom < 1 or explained < 1:
        return None
    variance = float(np.sum((values - fitted) ** 2)) / freedom
    F = float(np.sum((fitted - fitted_common) ** 2)) / explained / max(variance, np.finfo(float).tiny)
    return _Levels(fitted - fitted_common, variance**0.5, F, float(f_distribution.sf(F, explained, freedom)))


def _fitted(design: Floats, values: Floats) -> tuple[Floats, int]:
    coefficients, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    return np.asarray(design @ coefficients), int(rank)


def _indicators(labels: NDArray[np.generic]) -> Floats:
    return np.asarray(labels[:, None] == np.unique(labels), dtype=np.float64)
