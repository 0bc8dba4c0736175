"""Stored blocks of RankBench: FOLDER/CELL/BLOCK.parquet, each with how it was made in its schema's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mars_core.rankbench.blocks import Block, blocks_of
from mars_core.rankbench.cells import CELLS, Cell
from tasks.storage.files import replacing

KEY = b"rankbench"


@dataclass(frozen=True)
class Made:
    """How a block was made. seconds: wall-clock time of its training; threads: of the processor."""

    backbone: str
    data: str
    mars: str
    torch: str
    seconds: float
    threads: int
    date: str


def path_of(folder: Path, block: Block) -> Path:
    """Where a block is stored."""
    return folder / block.cell.name / f"{block.name}.parquet"


def write_block(folder: Path, block: Block, rows: pd.DataFrame, made: Made) -> None:
    """Store a block in one piece."""
    wide = [name for name in rows.columns if rows[name].dtype == "float64" and name != "peak_lr"]
    small = rows.astype(dict.fromkeys(wide, "float32"))
    table = pa.Table.from_pandas(small, preserve_index=False)
    table = table.replace_schema_metadata({KEY: json.dumps(asdict(made)).encode()})
    path = path_of(folder, block)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_block(folder: Path, block: Block) -> pd.DataFrame:
    """Rows of a stored block."""
    rows: pd.DataFrame = pq.read_table(path_of(folder, block)).to_pandas()
    return rows.astype({"val_loss": "float64"})


def made_of(folder: Path, block: Block) -> Made:
    """How a stored block was made.

    Raises:
        ValueError: the file does not say.
    """
    metadata = pq.read_schema(path_of(folder, block)).metadata or {}
    if KEY not in metadata:
        raise ValueError(f"{path_of(folder, block)} is no block of RankBench: delete it and run `mars bench run`")
    return Made(**json.loads(metadata[KEY]))


def read_cell(folder: Path, cell: Cell) -> pd.DataFrame:
    """Rows of all stored blocks of a cell, empty where there are none."""
    stored = [read_block(folder, block) for block in blocks_of(cell) if path_of(folder, block).exists()]
    return pd.concat(stored, ignore_index=True) if stored else pd.DataFrame()


def missing_blocks(folder: Path, cells: tuple[Cell, ...] = CELLS) -> Iterator[Block]:
    """Blocks that are not stored, cell by cell."""
    for cell in cells:
        yield from (block for block in blocks_of(cell) if not path_of(folder, block).exists())
