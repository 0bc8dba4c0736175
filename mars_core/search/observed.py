"""What was actually measured: the pairs, and the best of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

Pair = tuple[int, int]
RankRange = tuple[int, int] | None

COLUMNS = ("r_me", "r_llm", "D", "loss")


def require_observed(observed: pd.DataFrame) -> None:
    """Raise ValueError unless the table has the columns r_me, r_llm, D, loss."""
    missing = [name for name in COLUMNS if name not in observed.columns]
    if missing:
        raise ValueError(
            f"observed: missing column(s) {', '.join(missing)}, got {', '.join(map(str, observed.columns))}; "
            "expected r_me, r_llm, D, loss (nats per answer token), one row per measurement."
        )


def best_observed(observed: pd.DataFrame, allowed: Collection[Pair]) -> tuple[Pair, float] | None:
    """The allowed pair with the lowest mean loss over seeds at the largest size, and that loss; None if none."""
    largest = at_largest_size(observed, allowed)
    largest = largest[_are_among(largest, allowed)]
    if largest.empty:
        return None
    means = largest.groupby(["r_me", "r_llm"])["loss"].mean()
    r_me, r_llm = means.index[int(np.argmin(means.to_numpy()))]
    return (int(r_me), int(r_llm)), float(means.min())


def at_largest_size(observed: pd.DataFrame, allowed: Collection[Pair]) -> pd.DataFrame:
    """Measurements of all pairs at the largest size that an allowed pair reached; none where no such pair has any."""
    usable = observed[np.isfinite(observed["loss"].to_numpy(dtype=np.float64))]
    reached = usable.loc[_are_among(usable, allowed), "D"].max()
    largest: pd.DataFrame = usable[usable["D"] == reached]
    return largest


@dataclass(frozen=True)
class Measured:
    """What calibration has measured: smallest and largest positive rank of either module, and the pairs."""

    range_me: RankRange
    range_llm: RankRange
    pairs: frozenset[Pair]

    def is_extrapolated(self, pair: Pair) -> bool:
        """Whether a rank of the pair lies outside the measured ones."""
        return any(
            known is not None and not known[0] <= rank <= known[1]
            for rank, known in zip(pair, (self.range_me, self.range_llm), strict=True)
        )


def measured(observed: pd.DataFrame) -> Measured:
    """The ranks and pairs of a table of measurements."""
    return Measured(_range(observed["r_me"]), _range(observed["r_llm"]), frozenset(pairs_of(observed)))


def _range(ranks: pd.Series[int]) -> RankRange:
    positive = ranks[ranks > 0]
    return None if positive.empty else (int(positive.min()), int(positive.max()))


def _are_among(table: pd.DataFrame, allowed: Collection[Pair]) -> list[bool]:
    return [pair in allowed for pair in pairs_of(table)]


def pairs_of(table: pd.DataFrame) -> list[Pair]:
    """The rank pair of each row."""
    return [(int(r_me), int(r_llm)) for r_me, r_llm in zip(table["r_me"], table["r_llm"], strict=True)]
