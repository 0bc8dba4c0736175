"""What was seen of images before: an image file that has not changed is decoded once on this machine, not in every run.

An SQLite file in the user's cache folder; deleting it costs only time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager

from mars_core.data.images import resolve
from mars_core.data.looks import Look, look_at
from mars_core.data.records import BytesImage, ImageRef, PathImage
from tasks.storage.location import cache_folder

# Part of every key: looks made another way must not be taken for those made now.
_KIND = "1:12x12-box"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS looks (image TEXT PRIMARY KEY, width INTEGER, height INTEGER, content TEXT, "
    "thumbnail BLOB) WITHOUT ROWID"
)
_COMMIT_EVERY = 100  # others wait meanwhile


@contextmanager
def remembered_looks() -> Iterator[Callable[[ImageRef], Look]]:
    """A `look_at` that decodes only what is not known yet."""
    file = cache_folder() / "image-looks.sqlite"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=60)
    except (OSError, sqlite3.OperationalError):
        # A home that cannot be written to, as in some containers: then every run decodes for itself.
        yield look_at
        return
    with closing(connection):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(_TABLE)
        yield _Memory(connection).look
        connection.commit()


def look_at_all(images: Iterable[ImageRef]) -> dict[ImageRef, Look]:
    """Look at each image, or remember it.

    Raises:
        ValueError: an image cannot be found or decoded.
    """
    with remembered_looks() as look:
        return {image: look(image) for image in images}


class _Memory:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._new = 0

    def look(self, image: ImageRef) -> Look:
        key = _key(image)
        if key is None:
            return look_at(image)
        row = self._connection.execute("SELECT width, height, content, thumbnail FROM looks WHERE image = ?", (key,))
        if (found := row.fetchone()) is not None:
            return Look((found[0], found[1]), found[2], found[3])
        look = look_at(image)
        values = (key, *look.size, look.content, look.thumbnail)
        self._connection.execute("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?)", values)
        self._new += 1
        if self._new % _COMMIT_EVERY == 0:
            self._connection.commit()
        return look


def _key(image: ImageRef) -> str | None:
    """What names the bytes of an image: file, size and time of change; None for an image in memory."""
    if isinstance(image, BytesImage):
        return None
    if isinstance(image, PathImage):
        file = resolve(image)
        status = file.stat()
        return f"{_KIND}|{file}|{status.st_size}|{status.st_mtime_ns}"
    table = image.table
    place = f"{image.block}|{image.row}|{image.column}|{image.place}"
    return f"{_KIND}|{table.path.resolve()}|{table.size}|{table.modified}|{place}"
