"""What was actually measured: the pairs, and the best of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mars_core.ranks import Pair

LOG_RATES = ("log_me", "log_llm")  # columns of log peak learning rates, where runs differ in them
RankRange = tuple[int, int] | None


def best_observed(observed: pd.DataFrame, allowed: Collection[Pair]) -> Pair | None:
    """The allowed pair with the lowest mean loss over runs at the largest size that one reached; None if none.

    Runs of a pair at several learning rates are no repeats of each other: the pair has the mean of its best rate.
    """
    usable = observed[[pair in allowed for pair in pairs_of(observed)]]
    if usable.empty:
        return None
    largest = usable[usable["D"] == usable["D"].max()]
    rates = [name for name in LOG_RATES if name in largest.columns]
    means = largest.groupby(["r_me", "r_llm", *rates])["loss"].mean()
    r_me, r_llm, *_ = means.index[int(np.argmin(means.to_numpy()))]
    return int(r_me), int(r_llm)


def uniform_pair(pairs: Collection[Pair]) -> Pair | None:
    """The pair of one rank for both modules at the lower middle of such pairs; None where there is none."""
    uniform = sorted(pair for pair in pairs if pair[0] == pair[1])
    return uniform[(len(uniform) - 1) // 2] if uniform else None


@dataclass(frozen=True)
class Measured:
    """What calibration has measured: smallest and largest positive rank of either module, and the pairs."""

    range_me: RankRange
    range_llm: RankRange
    pairs: frozenset[Pair]

    def is_extrapolated(self, pair: Pair) -> bool:
        """Whether a rank of the pair lies outside the measured ones; rank 0 lies outside where no run has the pair."""
        return pair not in self.pairs and any(
            known is not None and not known[0] <= rank <= known[1]
            for rank, known in zip(pair, (self.range_me, self.range_llm), strict=True)
        )


def measured(observed: pd.DataFrame) -> Measured:
    """The ranks and pairs of a table of measurements."""
    return Measured(_range(observed["r_me"]), _range(observed["r_llm"]), frozenset(pairs_of(observed)))


def seeds_per_pair(observed: pd.DataFrame) -> float:
    """Repeats of the same training, on average over the pairs: its seeds, or its runs at the largest size it reached.

    Runs of a pair that were made for one size each are no repeats of each other.
    """
    pairs = observed.groupby(["r_me", "r_llm"])
    largest = observed[observed["D"] == pairs["D"].transform("max")]
    runs = largest.groupby(["r_me", "r_llm"])["run_id"].nunique()
    return float(np.maximum(pairs["seed"].nunique(), runs).mean())


def _range(ranks: pd.Series[int]) -> RankRange:
    positive = ranks[ranks > 0]
    return None if positive.empty else (int(positive.min()), int(positive.max()))


def pairs_of(table: pd.DataFrame) -> list[Pair]:
    """The rank pair of each row."""
    return [(int(r_me), int(r_llm)) for r_me, r_llm in zip(table["r_me"], table["r_llm"], strict=True)]
