"""Replay the methods on what is stored of RankBench."""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mars_core.rankbench.cells import CELLS, Cell, Role
from mars_core.rankbench.verdicts import Job, describe_cell, jobs_of, replay_job
from tasks.bench.store import read_cell


@dataclass(frozen=True, eq=False)
class Replayed:
    """cells: what each is. records: what every method came to. truths: rows of each cell by its name."""

    cells: pd.DataFrame
    records: pd.DataFrame
    rows: dict[str, pd.DataFrame]


def replay_bench(folder: Path, cells: Collection[Cell] = CELLS, *, processes: int = 1) -> Replayed:
    """What the cells are, and what every method came to in them.

    Raises:
        ValueError: no cell is stored as far as replay needs it.
    """
    rows = {cell.name: read_cell(folder, cell) for cell in cells}
    jobs = [job for cell in cells for job in jobs_of(cell, rows[cell.name])]
    if not jobs:
        raise ValueError(
            f"{folder} holds no whole cell of RankBench among {', '.join(cell.name for cell in cells)}: train one with "
            "`mars bench run`, or name the folder with --folder"
        )
    described = [record for cell in cells for record in describe_cell(cell, rows[cell.name])]
    records = [record for found in _replayed(jobs, processes) for record in found]
    return Replayed(pd.DataFrame(described), pd.DataFrame(records), {n: own for n, own in rows.items() if len(own)})


def _replayed(jobs: list[Job], processes: int) -> list[list[dict[str, object]]]:
    if processes == 1:
        return [replay_job(job) for job in jobs]
    # Spawned, not forked: numpy's threads do not survive a fork.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(replay_job, jobs))


def with_role(cells: Collection[Cell], roles: Collection[Role]) -> tuple[Cell, ...]:
    """The cells of some roles."""
    return tuple(cell for cell in cells if cell.role in roles)
