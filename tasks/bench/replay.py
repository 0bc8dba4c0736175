"""Replay the methods on what is stored of RankBench."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from mars_core.rankbench.cells import CELLS, Role
from mars_core.rankbench.verdicts import describe_cell, replay_cell
from tasks.bench.store import read_cell


def replay_bench(folder: Path, roles: Collection[Role]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the cells are, and what every method came to in them.

    Raises:
        ValueError: no cell of these roles is stored as far as replay needs it.
    """
    cells, records = [], []
    for cell in CELLS:
        if cell.role in roles:
            rows = read_cell(folder, cell)
            cells += describe_cell(cell, rows)
            records += replay_cell(cell, rows)
    if not records:
        raise ValueError(
            f"{folder} holds no whole cell of RankBench with role {' or '.join(roles)}: train one with "
            "`mars bench run`, or name the folder with --folder"
        )
    return pd.DataFrame(cells), pd.DataFrame(records)
