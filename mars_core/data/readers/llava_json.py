"""LLaVA JSON: a list of {id, image, conversations: [{from: human or gpt, value}], task}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mars_core.data.readers.conversation import RowError, build_sample, parse_turns
from mars_core.data.records import BadRow, PathImage, Sample, Source


def recognise(file: Path) -> bool:
    """Whether the file starts like a JSON list."""
    with file.open("rb") as stream:
        return stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def read_rows(file: Path, image_folder: Path) -> Iterator[Sample | BadRow]:
    """Yield every record of the file as a sample, or the reason why it is none."""
    for number, record in enumerate(_records(file), start=1):
        source = Source(file, number)
        try:
            yield _sample(record, source, image_folder)
        except RowError as error:
            yield BadRow(source, str(error))


def _records(file: Path) -> list[Any]:
    try:
        records = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): correct it, or name its format") from error
    if not isinstance(records, list):
        raise ValueError(
            f"{file} holds a JSON {type(records).__name__}: expected a list of records with `conversations`"
        )
    return records


def _sample(record: Any, source: Source, image_folder: Path) -> Sample:
    if not isinstance(record, dict):
        raise RowError(f"expected a record with `conversations`, got {type(record).__name__}")
    if "conversations" not in record:
        raise RowError(f"no `conversations`, only {', '.join(map(repr, record)) or 'nothing'}")
    images = tuple(PathImage(path, image_folder) for path in _image_paths(record.get("image")))
    turns = parse_turns(record["conversations"])
    task = record.get("task", record.get("task_type"))
    return build_sample(record.get("id"), images, turns, task, source)


def _image_paths(value: Any) -> list[str]:
    paths = [] if value is None or value == "" else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise RowError(f"`image` must be a path or a list of paths, got {value!r}")
    return paths
