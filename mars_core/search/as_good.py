"""Which measured pairs are as good as the best one, as far as the runs can tell: no law takes part.

| symbol | meaning | shape |
|---|---|---|
| value | log of 1 + excess of the search's objective over any fixed pair; the loss itself for perplexity | (n_runs,) |
| noise | standard deviation of one run's value that neither ranks nor seed explain | () |

The lowest of many measurements is low by luck too. Subset selection (Gupta, On some multiple decision rules,
Technometrics 7, 1965) keeps every pair that is not measurably worse than the lowest one, here by more than a margin;
the best pair is among them with at least 95% (Student's t with Bonferroni's correction for the number of pairs).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from mars_core.search.objective import Objective
from mars_core.search.observed import Pair, at_largest_size, pairs_of

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class AsGood:
    """Measured pairs at the largest size.

    losses: mean over runs of the objective's quantity per allowed pair. best: the pair with the lowest. pairs: those
    not measurably worse than it by more than the margin, itself included. noise: of one run, as a share of the
    objective. bound: excess over the best that noise alone may bring, for pairs of as many runs as the best.
    """

    losses: Mapping[Pair, float]
    best: Pair
    pairs: frozenset[Pair]
    noise: float
    bound: float


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
    values = np.log1p(objective.excess(rows["loss"].to_numpy(dtype=np.float64), float(rows["loss"].iloc[0])))
    noise, freedom = _noise(rows, values)
    if freedom < 1:
        return None
    of_pair = {pair: np.array([other == pair for other in pairs_of(rows)]) for pair in allowed}
    of_pair = {pair: own for pair, own in of_pair.items() if own.any()}
    mean = {pair: float(values[own].mean()) for pair, own in of_pair.items()}
    best = min(mean, key=lambda pair: mean[pair])
    quantile = float(t.isf((1 - CONFIDENCE) / max(1, len(mean) - 1), freedom))
    bound = {pair: quantile * noise * np.sqrt(1 / own.sum() + 1 / of_pair[best].sum()) for pair, own in of_pair.items()}
    kept = [pair for pair in mean if np.expm1(mean[pair] - mean[best] - bound[pair]) <= margin]
    losses = {pair: float(rows["loss"].to_numpy()[own].mean()) for pair, own in of_pair.items()}
    return AsGood(losses, best, frozenset(kept), noise, float(np.expm1(bound[best])))


def _noise(rows: pd.DataFrame, values: Floats) -> tuple[float, int]:
    """Standard deviation of what pair and seed do not explain, and its degrees of freedom.

    With one run per pair the ranks count as additive instead of the pair: what is left of them is noise.
    """
    pairs = np.array(pairs_of(rows))
    repeated = len(np.unique(pairs, axis=0)) < len(rows)
    factors = [_labels(pairs)] if repeated else [pairs[:, 0], pairs[:, 1]]
    if "seed" in rows.columns and repeated:
        factors.append(rows["seed"].to_numpy())
    design = np.concatenate([np.ones((len(rows), 1)), *(_indicators(factor) for factor in factors)], axis=1)
    coefficients, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(rows) - int(rank)
    return float(np.sqrt(np.sum((values - design @ coefficients) ** 2) / max(1, freedom))), freedom


def _labels(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1))


def _indicators(labels: NDArray[np.int64]) -> Floats:
    return (labels[:, None] == np.unique(labels)).astype(np.float64)
