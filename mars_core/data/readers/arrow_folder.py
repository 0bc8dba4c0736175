"""Folders that `datasets` writes with `save_to_disk`: Arrow files, of one dataset or of several splits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mars_core.data.readers.columnar import read_tables
from mars_core.data.readers.named_splits import choose_splits
from mars_core.data.records import BadRow, Sample

_ONE, _SEVERAL = "state.json", "dataset_dict.json"
FOLDER_FILES = (_ONE, "*.arrow", _SEVERAL, f"*/{_ONE}", "*/*.arrow")


def recognise(path: Path) -> bool:
    """Whether `datasets` left its description in this folder."""
    return (path / _ONE).is_file() or (path / _SEVERAL).is_file()


def read_rows(path: Path, image_folder: Path | None, split: str | None) -> Iterator[Sample | BadRow]:
    """Yield every row as a sample, or the reason why it is none."""
    folders = [path]
    if (path / _SEVERAL).is_file():
        folders = [path / name for name in choose_splits(path, _load(path / _SEVERAL)["splits"], split)]
    return read_tables([file for folder in folders for file in _arrow_files(folder)], image_folder or path)


def _arrow_files(folder: Path) -> list[Path]:
    files = [folder / item["filename"] for item in _load(folder / _ONE)["_data_files"]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{missing[0]} is missing, although {folder / _ONE} names it: save the dataset again")
    return files


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): save the dataset again") from error
