"""What a sample is: turns of text with `<image>` and `<audio>` markers, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

IMAGE_MARKER = "<image>"
AUDIO_MARKER = "<audio>"

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A dataset file as it was when it was first read; what a sample leaves in it is read again later.

    Opened anew it is another one, though size and time be the same: what is kept of the first says nothing of it.
    """

    path: Path
    size: int
    modified: int
    opening: object = field(default_factory=object, repr=False)

    @classmethod
    def opened(cls, path: Path) -> DatasetFile:
        """The file as it is now."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def require_unchanged(self) -> None:
        """Raise ValueError if the file is no longer what was read at first."""
        if not self.path.is_file() or not self._is_as(DatasetFile.opened(self.path)):
            raise ValueError(f"{self.path} changed while it was in use: start again, and leave it alone meanwhile")

    def _is_as(self, now: DatasetFile) -> bool:
        return (self.size, self.modified) == (now.size, now.modified)


@dataclass(frozen=True, slots=True)
class PathImage:
    """An image file, named as in the dataset: `path` is relative to `folder`, the image folder."""

    kind: ClassVar[str] = "image"

    path: str
    folder: Path

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class PathSound(PathImage):
    """A sound file, named as an image file is."""

    kind: ClassVar[str] = "sound"


@dataclass(frozen=True, slots=True)
class BytesImage:
    """An image in memory, still encoded (PNG, JPEG, ...)."""

    data: bytes = field(repr=False)
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An encoded image inside a table file: image `place` of a cell, or the cell itself where `place` is None."""

    table: DatasetFile
    block: int
    row: int
    column: str
    place: int | None
    name: str

    def __str__(self) -> str:
        return self.name


ImageRef: TypeAlias = PathImage | BytesImage | StoredImage


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `<image>` and `<audio>` markers stand in the text where images and sounds belong.

    trained: whether an answer is trained on and scored; one that is not is part of the conversation alone.
    """

    role: Role
    text: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """Where a sample was read: row `row` of `file`, counted from 1, and the line it starts on in a text file."""

    file: Path
    row: int
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}" + (f" (line {self.line})" if self.line is not None else "")


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about its images and sounds, in marker order; `task` is the task type it is stratified by.

    The turns of a large dataset stay in its file, like its images, and are read when they are looked at.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: Sequence[Turn]
    task: str
    source: Source
    sounds: tuple[PathSound, ...] = ()

    @property
    def media(self) -> tuple[ImageRef, ...]:
        """Its images and sounds: what no other split may show, and what identifies its data beside the text."""
        return (*self.images, *self.sounds)

    @property
    def answers(self) -> tuple[str, ...]:
        """The assistant's texts that a model is trained and scored on, in order."""
        return tuple(turn.text for turn in self.turns if turn.role == "assistant" and turn.trained)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that does not make a sample, and why."""

    source: Source
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def bad_rows_message(bad: Sequence[BadRow], shown: int = 5) -> str:
    """Say how many rows are bad, and the first `shown` reasons with their places."""
    count = len({(row.source.file, row.source.row) for row in bad})
    rows = "1 row is" if count == 1 else f"{count} rows are"
    lines = [f"{rows} bad:", *(f"  {row}" for row in bad[:shown])]
    if len(bad) > shown:
        lines.append(f"  ... and {len(bad) - shown} more")
    return "\n".join(lines)
