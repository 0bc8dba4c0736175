"""Folders as `datasets` calls imagefolder: pictures, and a metadata.jsonl or .csv with a row per picture.

`file_name` is the picture's path beside the metadata, `file_names` a list of them. The text stands in `messages`,
`conversations`, or `question` and `answer`. A folder may hold folders of splits, each with metadata of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mars_core.data.readers.conversation import (
    RowError,
    build_sample,
    image_paths,
    parse_conversation,
    question_and_answer,
    task_of,
    with_markers,
)
from mars_core.data.readers.json_rows import Parts, first_keys, read_json_rows
from mars_core.data.readers.named_splits import choose_splits
from mars_core.data.records import BadRow, Sample, Source, Turn

_METADATA = ("metadata.jsonl", "metadata.csv")
_NAMES = ("file_name", "file_names", "images_file_names", "image_file_name")
FOLDER_FILES = (*_METADATA, *(f"*/{name}" for name in _METADATA))


def recognise(path: Path) -> bool:
    """Whether the folder, or folders in it, have metadata; or a JSON file names pictures by `file_name`."""
    if path.is_dir():
        return _metadata(path) is not None or bool(_splits(path))
    return bool(set(_NAMES) & first_keys(path)) or path.name == _METADATA[1]


def read_rows(path: Path, image_folder: Path | None, split: str | None) -> Iterator[Sample | BadRow]:
    """Yield every row of the metadata as a sample, or the reason why it is none."""
    if path.is_file():
        yield from _read(path, image_folder or path.parent)
        return
    metadata = _metadata(path)
    if metadata is not None:
        yield from _read(metadata, image_folder or path)
        return
    splits = _splits(path)
    for name in choose_splits(path, list(splits), split):
        yield from _read(splits[name], image_folder or path / name)


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in _METADATA if (folder / name).is_file()), None)


def _splits(folder: Path) -> dict[str, Path]:
    found = {child.name: _metadata(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    return {name: metadata for name, metadata in found.items() if metadata is not None}


def _read(metadata: Path, folder: Path) -> Iterator[Sample | BadRow]:
    return _read_csv(metadata, folder) if metadata.suffix == ".csv" else read_json_rows(metadata, folder, _parse)


def _read_csv(metadata: Path, folder: Path) -> Iterator[Sample | BadRow]:
    with metadata.open(encoding="utf-8-sig", newline="") as file:
        for number, record in enumerate(csv.DictReader(file), start=1):
            source = Source(metadata, number)
            try:
                images, turns = _parse(record, folder)
                yield build_sample(record.get("id"), images, turns, task_of(record), source)
            except RowError as error:
                yield BadRow(source, str(error))


def _parse(record: Mapping[str, Any], image_folder: Path) -> Parts:
    column = next((name for name in _NAMES if record.get(name)), None)
    images = image_paths(record[column], column, image_folder) if column else ()
    return images, with_markers(_turns(record), len(images))


def _turns(record: Mapping[str, Any]) -> tuple[Turn, ...]:
    messages = next((record[name] for name in ("messages", "conversations") if record.get(name)), None)
    if messages is not None:
        return parse_conversation(messages, record.get("system")).turns
    if "question" in record and "answer" in record:
        return question_and_answer(record["question"], record["answer"], 0)
    raise RowError(
        f"no question and answer beside the picture, only {', '.join(map(repr, record)) or 'nothing'}: add columns "
        "`question` and `answer`, or `messages`; a caption can be the answer to a question such as 'Describe the "
        "picture.'"
    )
