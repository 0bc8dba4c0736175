"""The best pair that was actually measured."""

from collections.abc import Collection

import numpy as np
import pandas as pd

Pair = tuple[int, int]

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
    usable = observed[np.isfinite(observed["loss"].to_numpy(dtype=np.float64))]
    usable = usable[[pair in allowed for pair in _pairs(usable)]]
    if usable.empty:
        return None
    largest = usable[usable["D"] == usable["D"].max()]
    means = largest.groupby(["r_me", "r_llm"])["loss"].mean()
    r_me, r_llm = means.index[int(np.argmin(means.to_numpy()))]
    return (int(r_me), int(r_llm)), float(means.min())


def calibrated_range(observed: pd.DataFrame, column: str) -> tuple[int, int] | None:
    """Smallest and largest positive rank that was measured; None without rows."""
    ranks = observed.loc[observed[column] > 0, column]
    return None if ranks.empty else (int(ranks.min()), int(ranks.max()))


def _pairs(table: pd.DataFrame) -> list[Pair]:
    return [(int(r_me), int(r_llm)) for r_me, r_llm in zip(table["r_me"], table["r_llm"], strict=True)]
