"""What a pair and a rate come to in a cell, from the runs that judge. No torch.

The loss of a pair is the mean test loss of the runs of `judge`, at the pair's best rate; another rate costs what the
learning-rate law of the runs of `rates` says. Regret is excess perplexity over the best pair of the same alpha rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mars_core.fitting.learning_rate import RateFit
from mars_core.rankbench.cells import BATCH
from mars_core.rankbench.rates import rate_law
from mars_core.rankbench.signal import run_deviation
from mars_core.ranks import RankPair


@dataclass(frozen=True, eq=False)
class Truth:
    """losses: mean test loss of each pair, nats. deviation: of one run about the levels of its pair and its seed
    (`run_deviation`). seeds: runs of a pair."""

    losses: Mapping[RankPair, float]
    deviation: float
    seeds: int
    rates: RateFit
    samples: int

    @property
    def best(self) -> RankPair:
        """The pair of the smallest mean test loss."""
        return min(self.losses, key=lambda pair: self.losses[pair])

    def best_rate(self, pair: RankPair) -> float:
        """Best rate of a pair."""
        return float(np.exp(self.rates.best(pair, self.samples)[0]))

    def loss(self, pair: RankPair, rate: float | None = None) -> float:
        """Test loss of a pair at a rate, None for its best one."""
        if rate is None:
            return self.losses[pair]
        at = np.array([[np.log(rate)]])
        cost = self.rates.law.penalty(self.rates.phi, at, [pair], np.array([float(self.samples)]))
        return self.losses[pair] + float(cost[0])

    def regret(self, pair: RankPair, rate: float | None = None) -> float:
        """Excess test perplexity of a pair at a rate over the best pair at its best rate."""
        return float(np.expm1(self.loss(pair, rate) - self.losses[self.best]))

    @property
    def noise(self) -> float:
        """Two standard deviations of the difference between two means, as excess perplexity."""
        return float(np.expm1(2.0 * self.deviation * np.sqrt(2.0 / self.seeds)))


def judged(rows: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Last rows of the runs that judge under an alpha rule, of all rows of a cell."""
    ends: pd.DataFrame = rows[(rows["rule"] == rule) & (rows["kind"] == "judge") & (rows["step"] == rows["horizon"])]
    return ends


def truth_of(rows: pd.DataFrame, rule: str) -> Truth:
    """The truth of a cell under an alpha rule.

    Args:
        rows: all stored rows of the cell.

    Raises:
        ValueError: runs of `rates` or `judge` are missing.
    """
    own = rows[rows["rule"] == rule]
    ends = judged(rows, rule)
    if ends.empty:
        raise ValueError(f"no runs judge pairs under alpha rule {rule!r}: train them with `mars bench run`")
    groups = ends.groupby(["r_me", "r_llm"])["test_loss"]
    means = groups.mean().reset_index()
    keys = zip(means["r_me"], means["r_llm"], means["test_loss"], strict=True)
    losses = {RankPair(int(a), int(b)): float(mean) for a, b, mean in keys}
    deviation = run_deviation(ends)
    samples = int(ends["horizon"].iloc[0]) * BATCH
    several = own[own["kind"] == "rates"] if (own["kind"] == "rates").any() else own[own["kind"] == "calibration"]
    return Truth(losses, deviation, int(groups.count().min()), rate_law(several), samples)
