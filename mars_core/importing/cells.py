"""One column of a table as numbers, and what is wrong with its cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

Say = Callable[[pd.Series, str], None]
"""Notes a reason for the rows where a mask is true."""

TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False, "yes": True, "no": False}
# MLflow's SQL stores keep an infinite metric as the largest double.
LARGEST = 1e308


def whole(cells: pd.Series, smallest: int, show_message: Say) -> pd.Series:
    """Whole numbers from `smallest` up; cells that are none come back as NaN, with a reason said."""
    values = _numbers(cells, show_message)
    broken = values.notna() & ((values < smallest) | (values != values.round()) | (values.abs() >= 2**53))
    show_message(broken, f"{cells.name} is {{value}}, expected a whole number of {smallest} or more")
    return values.where(~broken)


def positive(cells: pd.Series, show_message: Say) -> pd.Series:
    """Finite numbers above 0; cells that are none come back as NaN, with a reason said."""
    values = _numbers(cells, show_message)
    broken = values.notna() & ~((values > 0) & (values < LARGEST))
    show_message(broken, f"{cells.name} is {{value}}, expected a finite number above 0")
    return values.where(~broken)


def not_negative(cells: pd.Series, show_message: Say) -> pd.Series:
    """Finite numbers from 0 up; cells that are none come back as NaN, with a reason said."""
    values = _numbers(cells, show_message)
    broken = values.notna() & ~((values >= 0) & (values < LARGEST))
    show_message(broken, f"{cells.name} is {{value}}, expected a finite number of 0 or more")
    return values.where(~broken)


def present(cells: pd.Series, show_message: Say) -> None:
    """Say which rows lack a value that every row must have."""
    show_message(empty(cells), f"{cells.name} is empty or NaN")


def truth(cells: pd.Series, show_message: Say) -> pd.Series:
    """True or false; an empty cell is false."""
    texts = cells.astype(str).str.strip().str.lower()
    known = texts.map(TRUTH)
    show_message(known.isna() & ~empty(cells), f"{cells.name} is {{value}}, expected true or false")
    return known.eq(True)


def empty(cells: pd.Series) -> pd.Series:
    """Where a cell holds nothing: missing, NaN or blank text."""
    return cells.isna() | cells.astype(str).str.strip().str.lower().isin(["", "nan", "none", "null"])


def _numbers(cells: pd.Series, show_message: Say) -> pd.Series:
    values = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    show_message(values.isna() & ~empty(cells), f"{cells.name} is {{value}}, which is no number")
    return values
