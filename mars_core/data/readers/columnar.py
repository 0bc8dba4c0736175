"""Rows of tables: images as {bytes, path}, bytes or paths; text in the columns that datasets use for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mars_core.data.readers.conversation import (
    OTHER_MEDIA,
    SOUNDS,
    RowError,
    build_sample,
    parse_conversation,
    question_and_answer,
    refuse_other_media,
    refuse_sounds,
    require_local,
    task_of,
    with_markers,
)
from mars_core.data.readers.scienceqa import turns_of
from mars_core.data.records import BadRow, DatasetFile, ImageRef, PathImage, Sample, Source, StoredImage, Turn
from mars_core.data.stored import StoredTurns
from mars_core.data.tables import column_names, iterate, read_row

_IMAGES = ("image", "images")
_OPTIONAL = ("system", "hint")

# Takes a row and its number of images; raises RowError.
_Parse: TypeAlias = Callable[[Mapping[str, Any], int], tuple[Turn, ...]]


def read_tables(files: Sequence[Path], image_folder: Path) -> Iterator[Sample | BadRow]:
    """Yield every row of the files as a sample, or the reason why it is none."""
    for file in files:
        yield from _read_table(DatasetFile.opened(file), image_folder)


def _read_table(table: DatasetFile, image_folder: Path) -> Iterator[Sample | BadRow]:
    names = column_names(table)
    required, parse = _text_columns(table.path, names)
    texts = (*required, *(name for name in _OPTIONAL if name in names))
    others = [name for name in (*_IMAGES, *OTHER_MEDIA, *SOUNDS, "id", "task", "task_type", "subject") if name in names]
    for number, (block, row, values) in enumerate(iterate(table, [*texts, *others]), start=1):
        source = Source(table.path, number)
        try:
            refuse_other_media(values)
            refuse_sounds(values)
            images = tuple(_images(values, _Cell(table, block, row, source), image_folder))
            turns = parse(values, len(images))
            named = build_sample(values.get("id"), images, turns, _task(values), source)
            kept = _RowTurns(table, block, row, texts, len(images), parse)
            yield Sample(named.id, images, kept, named.task, source)
        except RowError as error:
            yield BadRow(source, str(error))


def _task(row: Mapping[str, Any]) -> Any:
    """The task type; of ScienceQA the subject, as in its JSON: its `task` only says that choices are given."""
    of_science_qa = "choices" in row and row.get("subject")
    return of_science_qa or task_of(row) or row.get("subject")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _RowTurns(StoredTurns):
    table: DatasetFile
    block: int
    row: int
    columns: tuple[str, ...]
    n_images: int
    parse: _Parse

    def read(self) -> tuple[Turn, ...]:
        return self.parse(read_row(self.table, self.block, self.row, self.columns), self.n_images)


def _parse_messages(row: Mapping[str, Any], n_images: int) -> tuple[Turn, ...]:
    conversation = parse_conversation(_without_empty(row["messages"]), row.get("system"))
    if conversation.paths:
        raise RowError("image paths in content blocks: put the images into a column `images`")
    return with_markers(conversation.turns, n_images)


def _parse_conversations(row: Mapping[str, Any], n_images: int) -> tuple[Turn, ...]:
    return parse_conversation(row["conversations"], row.get("system")).turns


def _parse_texts(row: Mapping[str, Any], n_images: int) -> tuple[Turn, ...]:
    """Exchanges {user, assistant}, as in The Cauldron."""
    exchanges = row["texts"]
    if not isinstance(exchanges, list) or not all(isinstance(item, dict) for item in exchanges) or not exchanges:
        raise RowError(f"`texts` must be a list of exchanges with `user` and `assistant`, got {exchanges!r:.60}")
    pairs = ((("user", item.get("user")), ("assistant", item.get("assistant"))) for item in exchanges)
    messages = [{"role": role, "content": text} for pair in pairs for role, text in pair]
    return with_markers(parse_conversation(messages).turns, n_images)


def _parse_pair(row: Mapping[str, Any], n_images: int) -> tuple[Turn, ...]:
    return question_and_answer(row["question"], row["answer"], n_images)


# The first whose columns are all there; ScienceQA's comes before question and answer, which it has too.
_TEXTS: tuple[tuple[tuple[str, ...], _Parse], ...] = (
    (("messages",), _parse_messages),
    (("conversations",), _parse_conversations),
    (("texts",), _parse_texts),
    (("question", "choices", "answer"), turns_of),
    (("question", "answer"), _parse_pair),
)


def _text_columns(file: Path, names: list[str]) -> tuple[tuple[str, ...], _Parse]:
    for columns, parse in _TEXTS:
        if set(columns) <= set(names):
            return columns, parse
    raise ValueError(
        f"{file} has columns {', '.join(names)}: expected `messages`, `conversations`, "
        "or `question` and `answer`; rename the columns"
    )


def _without_empty(messages: Any) -> Any:
    """Messages less the keys that a table fills with null where only other rows' blocks have them."""
    if isinstance(messages, list):
        return [_without_empty(item) for item in messages]
    if isinstance(messages, dict):
        return {key: _without_empty(value) for key, value in messages.items() if value is not None}
    return messages


@dataclass(frozen=True, slots=True)
class _Cell:
    table: DatasetFile
    block: int
    row: int
    source: Source


def _images(row: Mapping[str, Any], cell: _Cell, image_folder: Path) -> Iterator[ImageRef]:
    column = next((name for name in _IMAGES if row.get(name) is not None), None)
    value = row[column] if column else None
    if column is None or value == "":
        return
    if not isinstance(value, list):
        yield _image(value, cell, column, None, image_folder)
        return
    for place, item in enumerate(value):
        yield _image(item, cell, column, place, image_folder)


def _image(value: Any, cell: _Cell, column: str, place: int | None, image_folder: Path) -> ImageRef:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if isinstance(value, bytes):
        data, path = value, None
    if isinstance(data, bytes) and data:
        name = f"{cell.source.file.stem}-{cell.source.row}-{(place or 0) + 1}"
        return StoredImage(cell.table, cell.block, cell.row, column, place, str(path or name))
    if isinstance(path, str) and path:
        return PathImage(require_local(path), image_folder)
    raise RowError("an image must be a path, bytes, or a struct with `bytes` or `path`; got none of them")
