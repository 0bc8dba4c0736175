"""Rows of JSON files: what the JSON formats share. Turns stay in the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from mars_core.data.readers.conversation import (
    RowError,
    build_sample,
    refuse_other_media,
    sounds_of,
    task_of,
    with_sound_markers,
)
from mars_core.data.readers.json_records import Record, is_json, records
from mars_core.data.records import BadRow, DatasetFile, ImageRef, Sample, Source, Turn
from mars_core.data.stored import StoredTurns

# How many records at the head of a file may decide its format.
_PEEK = 100

Parts: TypeAlias = tuple[tuple[ImageRef, ...], tuple[Turn, ...]]
# Takes a record and the image folder; raises RowError.
Parse: TypeAlias = Callable[[Mapping[str, Any], Path], Parts]


def first_keys(file: Path) -> frozenset[str]:
    """The keys of the first records of a JSON list or of JSON lines; empty where the file is neither."""
    if not file.is_file() or not is_json(file):
        return frozenset()
    heads = [record.value for record in islice(records(file), _PEEK) if isinstance(record.value, dict)]
    return frozenset(key for head in heads for key in head)


def read_json_rows(file: Path, image_folder: Path, parse: Parse) -> Iterator[Sample | BadRow]:
    """Yield every record of the file as a sample, or the reason why it is none."""
    if not is_json(file):
        raise ValueError(
            f"{file} is not valid JSON: expected a list of records, or one record a line; correct it, "
            "or name its format"
        )
    opened = DatasetFile.opened(file)
    for number, record in enumerate(records(file), start=1):
        source = Source(file, number, record.line)
        try:
            yield _sample(record, source, opened, image_folder, parse)
        except RowError as error:
            yield BadRow(source, str(error))


def _sample(record: Record, source: Source, file: DatasetFile, image_folder: Path, parse: Parse) -> Sample:
    if record.error is not None:
        raise RowError(record.error)
    if not isinstance(record.value, dict):
        raise RowError(f"expected a record with `conversations` or `messages`, got {type(record.value).__name__}")
    refuse_other_media(record.value)
    images, turns = parse(record.value, image_folder)
    sounds = sounds_of(record.value, image_folder)
    marked = with_sound_markers(turns, len(sounds))
    sample = build_sample(record.value.get("id"), images, marked, task_of(record.value), source, sounds)
    kept = _RecordTurns(file, record.start, record.length, image_folder, parse)
    return Sample(sample.id, images, kept, sample.task, source, sounds)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _RecordTurns(StoredTurns):
    file: DatasetFile
    start: int
    length: int
    image_folder: Path
    parse: Parse

    def read(self) -> tuple[Turn, ...]:
        self.file.require_unchanged()
        with self.file.path.open("rb") as stream:
            stream.seek(self.start)
            record = json.loads(stream.read(self.length))
        return with_sound_markers(self.parse(record, self.image_folder)[1], len(sounds_of(record, self.image_folder)))
