"""Records of a JSON list or of JSON lines, one at a time, each with the place where it lies in the file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
# No conversation is longer than this; a file that is broken further up is not read to its end in vain.
_LONGEST_RECORD = 1 << 28
_MARK = codecs.BOM_UTF8
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Record:
    """One parsed record: bytes [start, start + length) of the file, on line `line`; or why it cannot be parsed."""

    value: Any
    start: int
    length: int
    line: int
    error: str | None = None


def is_json(file: Path) -> bool:
    """Whether the file starts like a JSON list or like JSON lines."""
    with file.open("rb") as stream:
        head = _body(stream.read(_CHUNK))
    if head.startswith(b"["):
        return True
    if not head.startswith(b"{"):
        return False
    first = head.splitlines()[0]
    # A line longer than what was read cannot be judged by parsing it.
    return len(first) == len(head) == _CHUNK or isinstance(_parsed(first), dict)


def is_list(file: Path) -> bool:
    """Whether the file starts like a JSON list."""
    with file.open("rb") as stream:
        return _body(stream.read(_CHUNK)).startswith(b"[")


def records(file: Path) -> Iterator[Record]:
    """Parse a file record by record, holding no more than one of them and a chunk of text.

    A line that is no JSON comes as a record with an error. In a list nothing behind such a place can be
    read, so that it is the last record.
    """
    with file.open("rb") as stream:
        start = len(_MARK) if stream.read(len(_MARK)) == _MARK else 0
        stream.seek(start)
        is_list = _body(stream.read(_CHUNK)).startswith(b"[")
        stream.seek(start)
        yield from _ListReader(stream, start).records() if is_list else _lines(stream, start)


def _body(head: bytes) -> bytes:
    return head.removeprefix(_MARK).lstrip(b" \t\r\n")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _lines(stream: BinaryIO, start: int) -> Iterator[Record]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield Record(json.loads(line), start, len(line), number)
            except ValueError as error:
                yield Record(None, start, len(line), number, f"not valid JSON ({error}): correct or remove the line")
        start += len(line)


class _ListReader:
    """A window on the text of a JSON list, moved over it record by record."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._stream = stream
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text, self._done = "", False
        self._place, self._byte, self._line, self._column = 0, start, 1, 1

    def records(self) -> Iterator[Record]:
        try:
            self._skip()
            self._move(self._place + 1)
            while not self._at("]"):
                yield self._record()
                if self._at(","):
                    self._move(self._place + 1)
                elif not self._at("]"):
                    raise _BrokenJSONError("expected ',' or ']' behind a record", self._place)
        except _BrokenJSONError as error:
            yield self._broken(error)
        except UnicodeDecodeError as error:
            yield self._broken(_BrokenJSONError(f"the text is not UTF-8 ({error.reason})", self._place))

    def _record(self) -> Record:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._done or not self._may_be_cut(error) or len(self._text) > _LONGEST_RECORD:
                    raise _BrokenJSONError(error.msg, error.pos) from error
            else:
                if self._done or not self._may_go_on(value, end):
                    start, line = self._byte, self._line
                    self._move(end)
                    return Record(value, start, self._byte - start, line)
            self._more()

    def _may_go_on(self, value: Any, end: int) -> bool:
        """Whether more text could make another value of this one: only of a number."""
        return isinstance(value, (int, float)) and self._text[end : end + 1] not in tuple(",] \t\r\n")

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16

    def _at(self, sign: str) -> bool:
        self._skip()
        if self._place == len(self._text):
            raise _BrokenJSONError("the list is not closed by ']'", self._place)
        return self._text[self._place] == sign

    def _skip(self) -> None:
        """Move to the next character that is no white space."""
        while True:
            rest = self._text[self._place : self._place + 4096]
            self._move(self._place + len(rest) - len(rest.lstrip(" \t\r\n")))
            if self._place < len(self._text):
                if self._text[self._place] not in " \t\r\n":
                    return
            elif self._done:
                return
            else:
                self._more()

    def _move(self, place: int) -> None:
        passed = self._text[self._place : place]
        self._line, self._column = _position(passed, self._line, self._column)
        self._byte += len(passed) if passed.isascii() else len(passed.encode())
        self._place = place

    def _more(self) -> None:
        """Drop what was passed, and read at least as much as is left over, so that long records stay linear."""
        self._text = self._text[self._place :]
        self._place = 0
        chunk = self._stream.read(max(_CHUNK, len(self._text)))
        self._done = not chunk
        self._text += self._utf8.decode(chunk, final=self._done)

    def _broken(self, error: _BrokenJSONError) -> Record:
        line, column = _position(self._text[self._place : error.place], self._line, self._column)
        reason = f"not valid JSON ({error} at line {line} column {column}): correct it; nothing behind it can be read"
        return Record(None, self._byte, 0, self._line, reason)


class _BrokenJSONError(Exception):
    """What is wrong, and at which character of the window."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


def _position(passed: str, line: int, column: int) -> tuple[int, int]:
    breaks = passed.count("\n")
    if breaks:
        return line + breaks, len(passed) - passed.rfind("\n")
    return line, column + len(passed)
