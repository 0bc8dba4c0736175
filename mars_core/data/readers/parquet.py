"""Parquet: one file, or a folder of them, such as train-00000-of-00003.parquet as the Hub stores datasets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mars_core.data.readers.columnar import read_tables
from mars_core.data.readers.named_splits import choose_split
from mars_core.data.records import BadRow, Sample

FOLDER_FILES = ("*.parquet", "data/*.parquet")

_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+")


def recognise(path: Path) -> bool:
    """Whether the file starts like Parquet, or the folder holds such files."""
    if path.is_dir():
        return bool(_files(path))
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def read_rows(path: Path, image_folder: Path | None, split: str | None) -> Iterator[Sample | BadRow]:
    """Yield every row as a sample, or the reason why it is none."""
    if path.is_dir():
        return read_tables(_files_of_split(path, split), image_folder or path)
    return read_tables([path], image_folder or path.parent)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def _files_of_split(folder: Path, split: str | None) -> list[Path]:
    """All files where they carry no split's name, else those of one split."""
    named: dict[str, list[Path]] = {}
    for file in _files(folder):
        shard = _SHARD.fullmatch(file.stem)
        if shard:
            named.setdefault(shard["split"], []).append(file)
    if not named:
        return _files(folder)
    return named[choose_split(folder, list(named), split)]
