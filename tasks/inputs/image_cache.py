"""What was seen of images before: equal bytes are decoded once on this machine, not in every run.

An SQLite file in the user's cache folder; deleting it costs only time, and where it cannot be used, every run looks for
itself. Images are known by the hash of their bytes,
which are read every time: the size and time of a file prove nothing (ADR 12).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from mars_core.data.image_fingerprints import ImageFingerprint, fingerprint_of
from mars_core.data.images import content_hash
from mars_core.data.records import ImageRef
from tasks.running.progress import show_message
from tasks.storage.location import cache_folder

# Part of every key: looks made another way must not be taken for those made now.
_KIND = "12x12-box-over-white"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS looks_with_frames (content TEXT PRIMARY KEY, width INTEGER, height INTEGER, "
    "thumbnail BLOB, frames INTEGER) WITHOUT ROWID"
)
_AT_ONCE = 256  # images read or decoded before what was seen is committed: others wait meanwhile


def fingerprint_all(images: Iterable[ImageRef]) -> dict[ImageRef, ImageFingerprint]:
    """Look at each image, several at a time; decode only those whose bytes are not known yet.

    Raises:
        ValueError: an image cannot be found or decoded.
    """
    fingerprints: dict[ImageRef, ImageFingerprint] = {}
    waiting = iter(images)
    # Reading, hashing and decoding all let other threads run.
    with _memory() as memory, ThreadPoolExecutor() as pool:
        while batch := list(islice(waiting, _AT_ONCE)):
            contents = pool.map(content_hash, batch)
            known = {image: memory.recall(content) for image, content in zip(batch, contents, strict=True)}
            new = [image for image, look in known.items() if look is None]
            seen = dict(zip(new, pool.map(fingerprint_of, new), strict=True))
            memory.keep(seen.values())
            fingerprints |= {image: look or seen[image] for image, look in known.items()}
    return fingerprints


@contextmanager
def remembered_fingerprints() -> Iterator[Callable[[ImageRef], ImageFingerprint]]:
    """A `fingerprint_of` that decodes only what is not known yet."""
    with _memory() as memory:
        waiting: dict[str, ImageFingerprint] = {}

        def look(image: ImageRef) -> ImageFingerprint:
            content = content_hash(image)
            known = waiting.get(content) or memory.recall(content)
            if known is None:
                known = waiting[content] = fingerprint_of(image)
                if len(waiting) == _AT_ONCE:
                    memory.keep(waiting.values())
                    waiting.clear()
            return known

        try:
            yield look
        finally:
            memory.keep(waiting.values())


@contextmanager
def _memory() -> Iterator[_Memory]:
    memory = _Memory(_connection())
    try:
        yield memory
    finally:
        memory.close()


class _Memory:
    """What was seen. Where its file fails, what was in it is not known, and the rest is kept for this run only."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def recall(self, content: str) -> ImageFingerprint | None:
        """What was seen of an image with these bytes, if anything."""
        query = "SELECT width, height, thumbnail, frames FROM looks_with_frames WHERE content = ?"
        try:
            found = self._connection.execute(query, (_key(content),)).fetchone()
        except sqlite3.Error as error:
            self._go_on_without(error)
            return None
        return found and ImageFingerprint((found[0], found[1]), content, found[2], found[3])

    def keep(self, fingerprints: Iterable[ImageFingerprint]) -> None:
        """Remember what was seen."""
        rows = [(_key(look.content), *look.size, look.thumbnail, look.frames) for look in fingerprints]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO looks_with_frames VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._go_on_without(error)

    def close(self) -> None:
        """Leave the file to others."""
        self._connection.close()

    def _go_on_without(self, error: Exception) -> None:
        self.close()
        self._connection = _in_memory(error)


def _connection() -> sqlite3.Connection:
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return _opened(str(file))
    except (OSError, sqlite3.Error) as error:  # a home that cannot be written to, a damaged file, ...
        return _in_memory(error)


def _in_memory(error: Exception) -> sqlite3.Connection:
    show_message(
        f"what was seen of images cannot be kept in {_file()} ({error}), so they are decoded in every run: delete the "
        "file if it is damaged, or name a folder that can be written to in MARS_CACHE"
    )
    return _opened(":memory:")


def _opened(name: str) -> sqlite3.Connection:
    # In SQLite's own journal mode: WAL needs memory that processes share, which network file systems do not give.
    connection = sqlite3.connect(name, timeout=60)
    try:
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # raises where the file can only be read
            connection.execute(_TABLE)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _file() -> Path:
    return cache_folder() / "image-looks.sqlite"


def _key(content: str) -> str:
    return f"{_KIND}|{content}"
