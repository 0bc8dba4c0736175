"""What a sample is: turns of text with `<image>` markers, and the images they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

IMAGE_MARKER = "<image>"

Role: TypeAlias = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class PathImage:
    """An image file, named as in the dataset: `path` is relative to `folder`, the image folder."""

    path: str
    folder: Path

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class BytesImage:
    """An image that came inside the dataset file, still encoded (PNG, JPEG, ...)."""

    data: bytes = field(repr=False)
    name: str

    def __str__(self) -> str:
        return self.name


ImageRef: TypeAlias = PathImage | BytesImage


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `<image>` markers stand in the text where the images belong."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a sample was read: row `row` of `file`, counted from 1."""

    file: Path
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about its images, in marker order; `task` is the task type it is stratified by."""

    id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    task: str
    source: Source

    @property
    def answers(self) -> tuple[str, ...]:
        """The assistant's texts, in order: what a model is trained and scored on."""
        return tuple(turn.text for turn in self.turns if turn.role == "assistant")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that does not make a sample, and why."""

    source: Source
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def bad_rows_message(bad: Sequence[BadRow], shown: int = 5) -> str:
    """Say how many rows are bad, and the first `shown` of them with place and reason."""
    rows = "1 row is" if len(bad) == 1 else f"{len(bad)} rows are"
    lines = [f"{rows} bad:", *(f"  {row}" for row in bad[:shown])]
    if len(bad) > shown:
        lines.append(f"  ... and {len(bad) - shown} more")
    return "\n".join(lines)
