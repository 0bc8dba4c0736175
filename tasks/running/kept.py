"""What a command or a flow opens once: kept while its block lasts, gone with it, so that nobody has to forget it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar


class Opened(Protocol):
    """Something that was opened for a study's settings."""

    @property
    def config(self) -> Any:
        """The settings."""


T = TypeVar("T", bound=Opened)

_KEPT: ContextVar[list[Opened] | None] = ContextVar("kept", default=None)


@contextmanager
def kept_open() -> Iterator[None]:
    """Open each study once in the block, however many flows in it ask for it; a block in a block shares the outer's."""
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set([])
    try:
        yield
    finally:
        _KEPT.reset(token)


def kept(kind: type[T], config: Any) -> T | None:
    """What the present block has open of this kind for these settings, None where it has nothing."""
    return next((one for one in _KEPT.get() or () if isinstance(one, kind) and one.config == config), None)


def keep(opened: Opened) -> None:
    """Keep it open to the end of the present block, in place of what was open for its settings; without one, do not."""
    block = _KEPT.get()
    if block is not None:
        others = [one for one in block if type(one) is not type(opened) or one.config != opened.config]
        block[:] = [opened, *others]
