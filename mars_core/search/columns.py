"""The columns of a table of runs as numbers, and the first cell that is none of the kind that its column needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mars_core.search.settings import LARGEST_SIZE

Values = NDArray[np.float64]
LARGEST_WHOLE = 2.0**53  # above it a float no longer tells neighbouring whole numbers apart


@dataclass(frozen=True)
class Kind:
    """What the cells of a column may be: a test of their values (NaN where a cell is empty), and the same in words."""

    holds: Callable[[Values], NDArray[np.bool_]]
    words: str


def _whole(values: Values) -> NDArray[np.bool_]:
    return np.asarray((np.abs(values) < LARGEST_WHOLE) & (values == np.round(values)))


def _rank(values: Values) -> NDArray[np.bool_]:
    return np.asarray(_whole(values) & (values >= 0))


def _size(values: Values) -> NDArray[np.bool_]:
    return np.asarray(np.abs(values) <= LARGEST_SIZE)


def _rate(values: Values) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(values) | ((values >= 0) & np.isfinite(values)))


def _anything(values: Values) -> NDArray[np.bool_]:
    return np.ones(len(values), dtype=np.bool_)


def _peak(values: Values) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(values) | ((values > 0) & np.isfinite(values)))


RANK = Kind(_rank, "a whole rank of 0 or more")
MEASUREMENT = Kind(_anything, "a number, NaN where the run diverged or nothing was measured")
KINDS: Mapping[str, Kind] = {
    "r_me": RANK,
    "r_llm": RANK,
    "step": Kind(_whole, "a whole number of optimizer steps"),
    "unique_samples": Kind(_size, f"a number of samples of at most {LARGEST_SIZE:.0e}"),
    "val_loss": MEASUREMENT,
    "seed": Kind(_whole, "a whole number; a table without seeds has no such column"),
    "lr": Kind(_rate, "a finite learning rate of 0 or more, or nothing where it is unknown"),
}
PEAK = Kind(_peak, "a finite learning rate above 0, or nothing where it is unknown")
PEAKS = ("peak_lr", "peak_lr_me", "peak_lr_llm")
WHOLE = ("r_me", "r_llm", "step", "seed")


def as_numbers(metrics: pd.DataFrame, measured: str) -> pd.DataFrame:
    """The table with its known columns as numbers.

    Args:
        metrics: see `mars_core.search.points.read_points`.
        measured: column of the objective.

    Raises:
        ValueError: a cell holds something else; the message names the column, the row (from 1) and the remedy.
    """
    kinds = {**KINDS, **dict.fromkeys(PEAKS, PEAK), measured: MEASUREMENT}
    numbers = {name: _column(metrics[name], kind) for name, kind in kinds.items() if name in metrics.columns}
    return metrics.assign(**numbers)


def _column(cells: pd.Series, kind: Kind) -> pd.Series:
    texts = cells.map(lambda cell: isinstance(cell, str)).to_numpy(dtype=np.bool_)
    numbers = pd.to_numeric(cells, errors="coerce")
    values = numbers.astype(np.float64)
    bad = np.flatnonzero(texts | (values.isna() & cells.notna()) | ~kind.holds(np.asarray(values, dtype=np.float64)))
    if len(bad):
        first = cells.iloc[bad[0]]
        shown = repr(first) if texts[bad[0]] else str(first)
        raise ValueError(
            f"metrics: {cells.name} is {shown} in row {bad[0] + 1} ({len(bad)} of {len(cells)} rows are unusable), "
            f"expected {kind.words}: correct these cells or leave their rows out"
        )
    if cells.name in WHOLE:
        return values.astype(np.int64)
    return numbers if numbers.dtype == np.int64 else values
