"""Parquet: images as {bytes, path} or paths; `messages`, `conversations`, or `question` and `answer`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mars_core.data.readers.conversation import RowError, build_sample, parse_turns
from mars_core.data.records import IMAGE_MARKER, BadRow, BytesImage, ImageRef, PathImage, Sample, Source, Turn

_IMAGES = ("image", "images")
_TASKS = ("task", "task_type")
_TEXTS = (("messages",), ("conversations",), ("question", "answer"))
_BATCH_ROWS = 256


def recognise(file: Path) -> bool:
    """Whether the file starts like Parquet."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def read_rows(file: Path, image_folder: Path) -> Iterator[Sample | BadRow]:
    """Yield every row of the file as a sample, or the reason why it is none."""
    table = _open(file)
    names = table.schema_arrow.names
    texts = _text_columns(file, names)
    columns = [name for name in (*texts, *_IMAGES, *_TASKS, "id") if name in names]
    number = 0
    for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
        for row in batch.to_pylist():
            number += 1
            source = Source(file, number)
            try:
                yield _sample(row, texts, source, image_folder)
            except RowError as error:
                yield BadRow(source, str(error))


def _open(file: Path) -> Any:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file ({error}): write it again") from error


def _text_columns(file: Path, names: list[str]) -> tuple[str, ...]:
    for columns in _TEXTS:
        if set(columns) <= set(names):
            return columns
    raise ValueError(
        f"{file} has columns {', '.join(names)}: expected `messages`, `conversations`, "
        "or `question` and `answer`; rename the columns"
    )


def _sample(row: dict[str, Any], texts: tuple[str, ...], source: Source, image_folder: Path) -> Sample:
    images = tuple(_images(_first(row, _IMAGES), source, image_folder))
    turns = parse_turns(row[texts[0]]) if len(texts) == 1 else _question_and_answer(row, len(images))
    return build_sample(row.get("id"), images, turns, _first(row, _TASKS), source)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _question_and_answer(row: Mapping[str, Any], n_images: int) -> tuple[Turn, ...]:
    """A question without markers of its own gets one per image in front."""
    question, answer = row["question"], row["answer"]
    if not isinstance(question, str) or not isinstance(answer, str):
        raise RowError(f"`question` and `answer` must be text, got {question!r} and {answer!r}")
    markers = "" if IMAGE_MARKER in question else f"{IMAGE_MARKER}\n" * n_images
    return Turn("user", markers + question.strip()), Turn("assistant", answer.strip())


def _images(value: Any, source: Source, image_folder: Path) -> Iterator[ImageRef]:
    values = [] if value is None or value == "" else value if isinstance(value, list) else [value]
    for position, item in enumerate(values, start=1):
        yield _image(item, f"{source.file.stem}-{source.row}-{position}", image_folder)


def _image(value: Any, name: str, image_folder: Path) -> ImageRef:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if isinstance(value, bytes):
        data, path = value, None
    if isinstance(data, bytes) and data:
        return BytesImage(data, str(path or name))
    if isinstance(path, str) and path:
        return PathImage(path, image_folder)
    raise RowError("an image must be a path, bytes, or a struct with `bytes` or `path`; got none of them")
