"""Dataset files and folders to samples: one module per format, found by looking or named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from mars_core.data.readers import arrow_folder, imagefolder, llava_json, messages, parquet, scienceqa, sharegpt
from mars_core.data.records import BadRow, Sample, bad_rows_message

Reader: TypeAlias = Callable[[Path, Path | None, str | None], Iterator[Sample | BadRow]]

_FORMATS = {
    "parquet": parquet,
    "datasets": arrow_folder,
    "scienceqa": scienceqa,
    "imagefolder": imagefolder,
    "messages": messages,
    "sharegpt": sharegpt,
    "llava_json": llava_json,
}
_FOLDERS = {
    "parquet": parquet,
    "datasets": arrow_folder,
    "scienceqa": scienceqa,
    "imagefolder": imagefolder,
}
# A reader takes the dataset, the image folder (None for the format's own place) and the split of a folder that
# holds several. A new format is a module and a line above; the first that recognises a dataset reads it.
READERS: Mapping[str, Reader] = MappingProxyType({name: module.read_rows for name, module in _FORMATS.items()})
_RECOGNISE: Mapping[str, Callable[[Path], bool]] = MappingProxyType(
    {name: module.recognise for name, module in _FORMATS.items()}
)
# Patterns of the files, images aside, that a reader looks for in a folder: what to bring along where it is copied.
FOLDER_FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: module.FOLDER_FILES for name, module in _FOLDERS.items()}
)


def read_samples(
    path: str | Path, image_folder: str | Path | None = None, format: str | None = None, split: str | None = None
) -> list[Sample]:
    """Read a dataset; images stay undecoded, and the text of large formats stays in the file.

    Args:
        path: the dataset file or folder.
        image_folder: the folder that image paths are relative to; by default the file's own folder.
        format: one of `READERS`; by default found by looking at the dataset.
        split: which split of a folder that holds several; a file has none.

    Raises:
        ValueError: no such dataset, unknown format, no rows, or rows that do not make samples (all are counted, the
            first few shown).
    """
    samples: list[Sample] = []
    bad: list[BadRow] = []
    for row in read_rows(path, image_folder, format, split):
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
    path: str | Path, image_folder: str | Path | None = None, format: str | None = None, split: str | None = None
) -> Iterator[Sample | BadRow]:
    """Like `read_samples`, but rows that do not make samples come as `BadRow`, in place."""
    place = Path(path)
    if not place.exists():
        raise ValueError(f"no dataset file or folder at {place}: give the path of one ({', '.join(READERS)})")
    folder = Path(image_folder) if image_folder is not None else None
    if folder is not None and not folder.is_dir():
        raise ValueError(f"no image folder at {folder}: give the folder that the image paths are relative to")
    name = detect_format(place) if format is None else format
    if name not in READERS:
        raise ValueError(f"unknown data format {name!r}: expected one of {', '.join(READERS)}")
    return READERS[name](place, folder, split)


def detect_format(path: Path) -> str:
    """Name the format of a dataset by looking at it.

    Raises:
        ValueError: no reader recognises it.
    """
    found = _recognised(path)
    if found is not None:
        return found
    inside = [child.name for child in _data_inside(path) if _recognised(child)]
    if inside:
        raise ValueError(
            f"{path} holds {len(inside)} datasets ({', '.join(inside[:10])}), as a folder from the Hub with its "
            f"subsets does: name one of them, such as {path / inside[0]}"
        )
    raise ValueError(
        f"cannot tell the format of {path}: expected a JSON list or JSON lines of conversations, a Parquet file or "
        "folder, a folder of `datasets`, pictures with a metadata.jsonl, or ScienceQA; name the format (one of "
        f"{', '.join(READERS)}) if it is one"
    )


def _recognised(path: Path) -> str | None:
    return next((name for name, recognise in _RECOGNISE.items() if recognise(path)), None)


def _data_inside(path: Path) -> list[Path]:
    """Folders and data files of a folder; not its pictures, which may be many."""
    children = sorted(path.iterdir()) if path.is_dir() else []
    return [child for child in children if child.is_dir() or child.suffix in (".json", ".jsonl", ".parquet")]
