"""Table files (Parquet, Arrow streams) read block by block: row groups, record batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mars_core.data.records import DatasetFile, StoredImage

_PARQUET = b"PAR1"
_BATCH_ROWS = 64
_READING = Lock()  # threads that want images of one block wait until the first has read it


def column_names(table: DatasetFile) -> list[str]:
    """Names of the columns.

    Raises:
        ValueError: the file is no table.
    """
    return list(_open(table).schema.names)


def iterate(table: DatasetFile, columns: Sequence[str]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Every row as (block, row in the block, values), in batches, so that blocks of any size fit in memory."""
    opened = _open(table)
    for block in range(opened.blocks):
        row = 0
        for batch in _batches(table, opened, block, list(columns)):
            for values in batch.to_pylist():
                yield block, row, values
                row += 1


def _batches(table: DatasetFile, opened: _Parquet | _ArrowStream, block: int, columns: list[str]) -> Iterator[Any]:
    try:
        yield from opened.batches(block, columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damaged(table, error)) from error


def _damaged(table: DatasetFile, error: Exception) -> str:
    return f"{table.path} is not a readable Parquet or Arrow file ({error}): write it again"


def read_row(table: DatasetFile, block: int, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
    """The values of one row.

    Raises:
        ValueError: the file changed since it was first read.
    """
    table.require_unchanged()
    with _READING:
        whole = _block(table, block, columns)
    values: dict[str, Any] = whole.slice(row, 1).to_pylist()[0]
    return values


def stored_bytes(image: StoredImage) -> bytes:
    """The encoded bytes of an image inside a table.

    Raises:
        ValueError: the file changed since it was first read.
    """
    cell = read_row(image.table, image.block, image.row, (image.column,))[image.column]
    value = cell if image.place is None else cell[image.place]
    data = value["bytes"] if isinstance(value, dict) else value
    return bytes(data)


class _Parquet:
    def __init__(self, table: DatasetFile) -> None:
        self._file = pq.ParquetFile(table.path, memory_map=True)
        self.schema = self._file.schema_arrow
        self.blocks = self._file.num_row_groups

    def batches(self, block: int, columns: list[str]) -> Iterator[Any]:
        return self._file.iter_batches(_BATCH_ROWS, row_groups=[block], columns=columns)  # type: ignore[no-any-return]

    def block(self, block: int, columns: list[str]) -> Any:
        return self._file.read_row_group(block, columns=columns)


class _ArrowStream:
    """Memory-mapped: what is not looked at is not read."""

    def __init__(self, table: DatasetFile) -> None:
        reader = pa.ipc.open_stream(pa.memory_map(str(table.path)))
        self.schema = reader.schema
        self._batches = list(reader)
        self.blocks = len(self._batches)

    def batches(self, block: int, columns: list[str]) -> Iterator[Any]:
        whole = self.block(block, columns)
        return (whole.slice(start, _BATCH_ROWS) for start in range(0, whole.num_rows, _BATCH_ROWS))

    def block(self, block: int, columns: list[str]) -> Any:
        selected = self._batches[block].select(columns)
        selected.validate(full=True)  # offsets of a damaged file could lead out of it, into a crash
        return selected


@lru_cache(maxsize=8)
def _open(table: DatasetFile) -> _Parquet | _ArrowStream:
    try:
        with table.path.open("rb") as stream:
            is_parquet = stream.read(len(_PARQUET)) == _PARQUET
        return _Parquet(table) if is_parquet else _ArrowStream(table)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damaged(table, error)) from error


@lru_cache(maxsize=4)
def _block(table: DatasetFile, block: int, columns: tuple[str, ...]) -> Any:
    try:
        return _open(table).block(block, list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damaged(table, error)) from error
