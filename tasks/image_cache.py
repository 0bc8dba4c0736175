"""What was seen of images before: equal bytes are decoded once on this machine, not in every run.

An SQLite file in the user's cache folder; deleting it costs only time. Images are known by the hash of their bytes,
which are read every time: the size and time of a file prove nothing (ADR 12).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice

from mars_core.data.images import content_hash
from mars_core.data.looks import Look, look_at
from mars_core.data.records import ImageRef
from tasks.storage.location import cache_folder

# Part of every key: looks made another way must not be taken for those made now.
_KIND = "12x12-box"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS looks_by_content (content TEXT PRIMARY KEY, width INTEGER, height INTEGER, "
    "thumbnail BLOB) WITHOUT ROWID"
)
_AT_ONCE = 256  # images read or decoded before what was seen is committed: others wait meanwhile


def look_at_all(images: Iterable[ImageRef]) -> dict[ImageRef, Look]:
    """Look at each image, several at a time; decode only those whose bytes are not known yet.

    Raises:
        ValueError: an image cannot be found or decoded.
    """
    looks: dict[ImageRef, Look] = {}
    waiting = iter(images)
    # Reading, hashing and decoding all let other threads run.
    with _memory() as memory, ThreadPoolExecutor() as pool:
        while batch := list(islice(waiting, _AT_ONCE)):
            contents = pool.map(content_hash, batch)
            known = {image: memory.recall(content) for image, content in zip(batch, contents, strict=True)}
            new = [image for image, look in known.items() if look is None]
            seen = dict(zip(new, pool.map(look_at, new), strict=True))
            memory.keep(seen.values())
            looks |= {image: look or seen[image] for image, look in known.items()}
    return looks


@contextmanager
def remembered_looks() -> Iterator[Callable[[ImageRef], Look]]:
    """A `look_at` that decodes only what is not known yet."""
    with _memory() as memory:

        def look(image: ImageRef) -> Look:
            known = memory.recall(content_hash(image))
            if known is None:
                known = look_at(image)
                memory.keep([known])
            return known

        yield look


@contextmanager
def _memory() -> Iterator[_Memory]:
    file = cache_folder() / "image-looks.sqlite"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=60)
    except (OSError, sqlite3.OperationalError):
        # A home that cannot be written to, as in some containers: then every run decodes for itself.
        connection = sqlite3.connect(":memory:")
    with closing(connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(_TABLE)
        yield _Memory(connection)


class _Memory:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def recall(self, content: str) -> Look | None:
        """What was seen of an image with these bytes, if anything."""
        query = "SELECT width, height, thumbnail FROM looks_by_content WHERE content = ?"
        found = self._connection.execute(query, (_key(content),)).fetchone()
        return found and Look((found[0], found[1]), content, found[2])

    def keep(self, looks: Iterable[Look]) -> None:
        """Remember what was seen."""
        rows = [(_key(look.content), *look.size, look.thumbnail) for look in looks]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO looks_by_content VALUES (?, ?, ?, ?)", rows)


def _key(content: str) -> str:
    return f"{_KIND}|{content}"
