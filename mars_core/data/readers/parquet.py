"""Parquet: one file, or a folder of them, such as train-00000-of-00003.parquet as the Hub stores datasets.

Files of a folder whose names tell no split are one dataset; where only some tell one, nobody can know what the others
are, and the folder is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mars_core.data.readers.columnar import read_tables
from mars_core.data.readers.named_splits import choose_splits, split_of_file
from mars_core.data.records import BadRow, Sample

FOLDER_FILES = ("*.parquet", "data/*.parquet")


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
    nameless: list[Path] = []
    for file in _files(folder):
        name = split_of_file(file.stem)
        (nameless if name is None else named.setdefault(name, [])).append(file)
    if not named:
        return nameless
    if nameless:
        raise ValueError(
            f"{folder} has files of the splits {', '.join(named)}, and {nameless[0].name}, whose name tells no split: "
            "rename it (train-other.parquet, or SPLIT-00000-of-00001.parquet for another split), or move it away"
        )
    return [file for name in choose_splits(folder, list(named), split) for file in named[name]]
