"""What runs have in common at a checkpoint, so that only differences between pairs are left.

Runs of one seed see the same samples in the same order: what they share at a step (the schedule, the size, the order)
is free, one effect for each seed and step. Where the seeds do not connect the pairs, such as a seed of its own for
every run, runs are compared across seeds, at the price of what a seed's order of the samples does (`ACROSS_SEEDS`).
Where not even a step is shared, the common curve is taken as smooth in log size (`ACROSS_STEPS`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ACROSS_SEEDS = 0.005  # of the level: what the order of the samples does to a checkpoint
ACROSS_STEPS = 0.01  # of the level: how far a curve is from a quadratic in log size
SMOOTH = -1


@dataclass(frozen=True, eq=False)
class Common:
    """Of every row: the effect that it shares with others (`SMOOTH`: none, the smooth curve), and the doubt (a standard
    deviation as a share of the level) about whether that is what the others have."""

    effect: Ints
    doubt: Floats


def common_effects(rows: pd.DataFrame) -> Common:
    """Group the checkpoints of a calibration.

    Args:
        rows: columns r_me, r_llm, seed, moment (step and schedule); sorted as the caller wants.
    """
    pair, seed = _groups(rows, ["r_me", "r_llm"]), _groups(rows, ["seed"])
    moment, within = _groups(rows, ["moment"]), _groups(rows, ["seed", "moment"])
    effect = np.full(len(rows), SMOOTH, dtype=np.int64)
    doubt = np.full(len(rows), ACROSS_STEPS)
    if _connected(pair, seed):
        own = _shared(within, pair)
        effect[own], doubt[own] = within[own], 0.0
    left = effect == SMOOTH
    across = left.copy()
    across[left] = _shared(moment[left], pair[left])
    effect[across], doubt[across] = int(within.max()) + 1 + moment[across], ACROSS_SEEDS
    known = effect != SMOOTH
    effect[known] = np.unique(effect[known], return_inverse=True)[1].reshape(-1)
    return Common(effect, doubt)


def common_columns(common: Common, size: Floats, heat: Floats) -> Floats:
    """Design columns of the common effects, linearly independent, (n_rows, n_common).

    Args:
        common: of each row.
        size: effective size over the largest.
        heat: relative learning rate, 0 where it is not known.
    """
    labels = common.effect
    columns = np.zeros((len(labels), int(labels.max(initial=-1)) + 1))
    known = labels != SMOOTH
    columns[np.flatnonzero(known), labels[known]] = 1.0
    if known.all():
        return columns
    x = np.log(size)
    curve = np.where(known[:, None], 0.0, np.column_stack([np.ones_like(x), x, x**2, heat]))
    U, values, _ = np.linalg.svd(curve, full_matrices=False)
    return np.column_stack([columns, U[:, values > 1e-9 * values[0]]])


def _groups(rows: pd.DataFrame, by: list[str]) -> Ints:
    """Number of each row's group."""
    return np.asarray(rows.groupby(by).ngroup(), dtype=np.int64)


def _shared(group: Ints, pair: Ints) -> NDArray[np.bool_]:
    """Rows whose group holds more than one pair."""
    return np.asarray(pd.Series(pair).groupby(group).transform("nunique") > 1)


def _connected(pair: Ints, seed: Ints) -> bool:
    """Whether every pair can be compared with every other through seeds that they share."""
    seeds_of = [set(seed[pair == p].tolist()) for p in range(int(pair.max()) + 1)]
    reached, fresh = {0}, {0}
    while fresh:
        seeds = set.union(*(seeds_of[p] for p in fresh))
        fresh = {p for p, own in enumerate(seeds_of) if p not in reached and own & seeds}
        reached |= fresh
    return len(reached) == len(seeds_of)
