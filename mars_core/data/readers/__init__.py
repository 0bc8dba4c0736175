"""Dataset files to samples: one module per format, found by name or by looking at the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from mars_core.data.readers import llava_json, parquet
from mars_core.data.records import BadRow, Sample, bad_rows_message

Reader: TypeAlias = Callable[[Path, Path], Iterator[Sample | BadRow]]

# A reader takes the dataset file and the image folder. A new format is a module and a line in both tables.
READERS: Mapping[str, Reader] = MappingProxyType({"llava_json": llava_json.read_rows, "parquet": parquet.read_rows})
_RECOGNISE: Mapping[str, Callable[[Path], bool]] = MappingProxyType(
    {"parquet": parquet.recognise, "llava_json": llava_json.recognise}
)


def read_samples(path: str | Path, image_folder: str | Path | None = None, format: str | None = None) -> list[Sample]:
    """Read a dataset file; images stay undecoded.

    Args:
        path: the dataset file.
        image_folder: the folder that image paths are relative to; the file's own folder by default.
        format: one of `READERS`; by default found from the file's first bytes.

    Raises:
        ValueError: no such file, unknown format, no rows, or rows that do not make samples (all are counted, the
            first few shown).
    """
    samples: list[Sample] = []
    bad: list[BadRow] = []
    for row in read_rows(path, image_folder, format):
        if isinstance(row, Sample):
            samples.append(row)
        else:
            bad.append(row)
    if bad:
        raise ValueError(f"{bad_rows_message(bad)}\ncorrect or remove them; `mars data check` lists them all")
    if not samples:
        raise ValueError(f"{path} is empty: expected at least one row with a question and an answer")
    return samples


def read_rows(
    path: str | Path, image_folder: str | Path | None = None, format: str | None = None
) -> Iterator[Sample | BadRow]:
    """Like `read_samples`, but rows that do not make samples come as `BadRow`, in place."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no dataset file at {file}: give the path of a LLaVA JSON or Parquet file")
    folder = Path(image_folder) if image_folder is not None else file.parent
    if not folder.is_dir():
        raise ValueError(f"no image folder at {folder}: give the folder that the image paths are relative to")
    name = detect_format(file) if format is None else format
    if name not in READERS:
        raise ValueError(f"unknown data format {name!r}: expected one of {', '.join(READERS)}")
    return READERS[name](file, folder)


def detect_format(file: Path) -> str:
    """Name the format of a dataset file by looking at its first bytes.

    Raises:
        ValueError: no reader recognises the file.
    """
    for name, recognise in _RECOGNISE.items():
        if recognise(file):
            return name
    raise ValueError(
        f"cannot tell the format of {file}: expected a JSON list of conversations or a Parquet file; "
        f"name the format (one of {', '.join(READERS)}) if it is one of them"
    )
