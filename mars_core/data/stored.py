"""Turns that stay in their dataset file until they are looked at.

A dataset of 158,000 conversations takes gigabytes as Python objects. What stays in memory is where each
one lies; its record is read and parsed again when its turns are wanted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import overload

from mars_core.data.records import Turn


class StoredTurns(Sequence[Turn], ABC):
    """The turns of one sample, read from its file on every access; equal to any sequence of the same turns."""

    __slots__ = ()

    @abstractmethod
    def read(self) -> tuple[Turn, ...]:
        """Read the turns.

        Raises:
            ValueError: the file changed since the sample was found in it.
        """

    def __len__(self) -> int:
        return len(self.read())

    @overload
    def __getitem__(self, place: int) -> Turn: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Turn, ...]: ...
    def __getitem__(self, place: int | slice) -> Turn | tuple[Turn, ...]:
        return self.read()[place]

    def __iter__(self) -> Iterator[Turn]:
        return iter(self.read())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.read() == tuple(other)

    def __hash__(self) -> int:
        return hash(self.read())

    def __repr__(self) -> str:
        return repr(self.read())
