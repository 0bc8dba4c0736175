"""Whether a cell can judge a choice of ranks at all, by rules fixed before any cell was trained. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

LEVEL = 0.01
"""Of the test that pairs differ; above it a cell is left out of the tables of regret."""
MATTERS = 2.0
"""Standard deviations of one run by which the mean loss has to vary with the vision rank."""


@dataclass(frozen=True)
class Signal:
    """p_value: of no difference between positive pairs. vision, llm: range of the mean test loss over one module's
    ranks, 0 included, at equal ranks of the other, in standard deviations of one run."""

    p_value: float
    vision: float
    llm: float

    @property
    def tells_pairs_apart(self) -> bool:
        """Whether the cell takes part in the tables of regret."""
        return self.p_value <= LEVEL


def signal_of(ends: pd.DataFrame) -> Signal:
    """The signal of runs that judge.

    Args:
        ends: last rows, columns r_me, r_llm, seed, test_loss; every pair with every seed, one run each.

    Raises:
        ValueError: there are fewer than two seeds or pairs.
    """
    positive = ends[(ends["r_me"] > 0) & (ends["r_llm"] > 0)]
    values = by_seed(positive).to_numpy(dtype=float)
    n_pairs, n_seeds = values.shape
    between = n_seeds * float(values.mean(axis=1).var(ddof=1))
    p_value = float(f_distribution.sf(between / run_variance(values), n_pairs - 1, (n_pairs - 1) * (n_seeds - 1)))
    deviation = run_deviation(ends)
    return Signal(p_value, _effect(ends, "r_me", "r_llm") / deviation, _effect(ends, "r_llm", "r_me") / deviation)


def by_seed(ends: pd.DataFrame) -> pd.DataFrame:
    """Test losses of pairs (rows) by seed (columns); pairs of which a run diverged are left out."""
    return ends.pivot(index=["r_me", "r_llm"], columns="seed", values="test_loss").dropna()


def run_deviation(ends: pd.DataFrame) -> float:
    """Standard deviation of a run about the levels of its pair and its seed, over the better half of all pairs.

    Pairs far from the best are noisier (a rank of 1 may or may not take off), and nobody chooses among those.
    """
    table = by_seed(ends)
    better = table.mean(axis=1).nsmallest(max(2, len(table) // 2)).index
    return float(np.sqrt(run_variance(table.loc[better].to_numpy(dtype=float))))


def run_variance(values: NDArray[np.float64]) -> float:
    """Variance of a run about its pair's level and that of its seed, which all pairs share. values: (pairs, seeds).

    Raises:
        ValueError: there are fewer than two seeds or pairs.
    """
    n_pairs, n_seeds = values.shape
    if n_pairs < 2 or n_seeds < 2:
        raise ValueError(f"{n_pairs} pairs with {n_seeds} seeds do not tell a signal: train the runs that judge")
    residual = values - values.mean(axis=1)[:, None] - values.mean(axis=0)[None, :] + values.mean()
    return float(np.sum(residual**2) / ((n_pairs - 1) * (n_seeds - 1)))


def _effect(ends: pd.DataFrame, module: str, other: str) -> float:
    """Range over one module's ranks, at those ranks of the other that all of them have."""
    means = ends.groupby([module, other])["test_loss"].mean().unstack(other)
    return float(np.ptp(means.dropna(axis=1).mean(axis=1)))
