"""How a CSV file separates its columns and writes its decimals: with commas and points, or as other countries do."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import TypedDict

import pandas as pd

_SEPARATORS = (",", ";", "\t")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
_LOOKED_AT = 200


class CsvForm(TypedDict):
    """As pandas.read_csv takes it."""

    sep: str
    decimal: str


def csv_form(path: Path) -> CsvForm:
    """Look at the head of a file: the sign that its header has most of, and whether numbers have a comma.

    Raises:
        ValueError: the file is not text.
    """
    with path.open(encoding="utf-8-sig") as file:
        header, *lines = [*islice(file, _LOOKED_AT)] or [""]
    sep = max(_SEPARATORS, key=header.count)
    cells = (cell.strip().strip('"') for line in lines for cell in line.rstrip("\n").split(sep))
    comma = sep != "," and any(map(_DECIMAL_COMMA.fullmatch, cells))
    return {"sep": sep, "decimal": "," if comma else "."}


def read_texts(path: Path) -> pd.DataFrame:
    """A CSV file with its cells as they are written, decimal commas made points."""
    form = csv_form(path)
    table = pd.read_csv(path, sep=form["sep"], dtype=str, skipinitialspace=True, keep_default_na=False)
    if form["decimal"] == ",":
        return table.map(lambda cell: cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell.strip()) else cell)
    return table


def read_numbers(path: Path) -> pd.DataFrame:
    """A CSV file with its columns as numbers where they are."""
    form = csv_form(path)
    table: pd.DataFrame = pd.read_csv(path, sep=form["sep"], decimal=form["decimal"])
    return table
