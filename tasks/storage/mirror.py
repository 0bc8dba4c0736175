"""A local folder that mirrors a folder of a store, and the ledger of what both held when they last agreed.

Which side has changed is decided against the ledger, never by comparing times: a file has changed here if its
SHA-256 is another than the ledger's, and there if its version (the store's etag and size) is another.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from filelock import FileLock

from tasks.storage.files import file_hash, write_json
from tasks.storage.location import open_filesystem, reaching, working_copy

# Stores name an object's version in different words; where none has one, size and time of writing stand for it.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash")
_TIMES = ("mtime", "created", "LastModified", "last_modified", "modified", "updated")
_FILES_PER_BATCH = 1000
_ATTEMPTS = 3


@dataclass(frozen=True)
class Agreed:
    """What a file was when both sides last agreed: its SHA-256 here, its version there."""

    sha256: str
    version: str


Ledger: TypeAlias = dict[str, Agreed]


@dataclass(frozen=True)
class Mirror:
    """A folder of a store and its local mirror; files are named by their path in both, with slashes."""

    filesystem: Any
    root: str
    folder: Path
    url: str

    def there(self, name: str) -> str:
        """A file's path in the store."""
        return f"{self.root}/{name}"

    def here(self, name: str) -> Path:
        """A file's path on this machine."""
        return self.folder / name

    def lock(self) -> FileLock:
        """Lock for the processes of this machine that share the mirror."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.parent / "lock")

    @property
    def ledger_path(self) -> Path:
        """Where the ledger lies: beside the folder, so that copying the folder does not copy it."""
        return self.folder.parent / "ledger.json"


class ChangedThereError(RuntimeError):
    """A file was written in the store by someone else since this machine last looked."""


def open_mirror(url: str, kind: str) -> Mirror:
    """The mirror of a URL on this machine."""
    filesystem, root = open_filesystem(url)
    return Mirror(filesystem, root, working_copy(url, kind), url)


def read_ledger(mirror: Mirror) -> Ledger:
    """What both sides last agreed on; nothing where the ledger is missing or damaged, so that the store wins."""
    try:
        stored = json.loads(mirror.ledger_path.read_text(encoding="utf-8"))
        return {name: Agreed(*entry) for name, entry in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_ledger(mirror: Mirror, ledger: Mapping[str, Agreed]) -> None:
    """Store the ledger."""
    write_json(mirror.ledger_path, {name: [entry.sha256, entry.version] for name, entry in ledger.items()})


def list_versions(mirror: Mirror, folder: str = "") -> dict[str, str]:
    """Version of every file below a folder of the store, by name; names that would leave the mirror are left out."""
    return {name: version_of(info) for name, info in _list(mirror, folder).items()}


def list_sizes(mirror: Mirror) -> dict[str, int]:
    """Bytes of every file of the store, by name."""
    return {name: int(info.get("size") or 0) for name, info in _list(mirror, "").items()}


def _list(mirror: Mirror, folder: str) -> dict[str, Mapping[str, Any]]:
    mirror.filesystem.invalidate_cache()
    with reaching(mirror.url):
        try:
            found = mirror.filesystem.find(mirror.there(folder).rstrip("/"), detail=True)
        except FileNotFoundError:  # some stores list an absent folder as empty, some do not
            return {}
    start = len(mirror.root) + 1
    return {path[start:]: info for path, info in found.items() if _is_safe(path[start:])}


def find_version(mirror: Mirror, name: str) -> str | None:
    """Version of one file of the store, None if it is not there."""
    mirror.filesystem.invalidate_cache()
    with reaching(mirror.url):
        try:
            return version_of(mirror.filesystem.info(mirror.there(name)))
        except FileNotFoundError:
            return None


def version_of(info: Mapping[str, Any]) -> str:
    """What tells one content of a stored file from another.

    Raises:
        ValueError: the store says neither an etag nor a time.
    """
    for key in (*_VERSIONS, *_TIMES):
        if value := info.get(key):
            # Some stores give a time as a number in listings and as a datetime for a single file.
            said = value.timestamp() if isinstance(value, datetime) else value
            return f"{said} {info.get('size')}"
    raise ValueError(
        f"{info.get('name')}: this kind of store gives neither etag nor time of its files, so a change could not "
        "be seen; keep the study in another"
    )


def fetch(
    mirror: Mirror,
    look: Callable[[], dict[str, str]],
    choose: Callable[[dict[str, str]], Iterable[str]],
    order: Callable[[str], int] = lambda name: 0,
) -> None:
    """Bring down what is new or changed there, and drop what was dropped there and is unchanged here.

    Where both sides changed, the store wins. What is only here, or changed only here, is not touched.

    Args:
        mirror: the two folders.
        look: gives the version of every file that the store has.
        choose: gives, from these versions, the names of the files to bring down.
        order: files of a higher order come later, and go earlier.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _fetch(mirror, versions := look(), choose(versions), order)
            return
        except FileNotFoundError:  # replaced by another machine between listing and reading
            if attempt == _ATTEMPTS:
                raise


def _fetch(mirror: Mirror, versions: Mapping[str, str], chosen: Iterable[str], order: Callable[[str], int]) -> None:
    ledger = read_ledger(mirror)
    for name in sorted(set(ledger) - set(versions), key=order, reverse=True):
        _drop_here(mirror, name, ledger)
    new = [name for name in chosen if not _is_here(mirror, name, versions[name], ledger)]
    new.sort(key=lambda name: (order(name), name))
    for start in range(0, len(new), _FILES_PER_BATCH):
        _download(mirror, new[start : start + _FILES_PER_BATCH], versions, ledger)


def _is_here(mirror: Mirror, name: str, version: str, ledger: Ledger) -> bool:
    return name in ledger and ledger[name].version == version and mirror.here(name).is_file()


def _drop_here(mirror: Mirror, name: str, ledger: Ledger) -> None:
    if file_hash(mirror.here(name)) == ledger[name].sha256:
        mirror.here(name).unlink()
        _drop_empty_folders(mirror, name)
    del ledger[name]
    write_ledger(mirror, ledger)


def _drop_empty_folders(mirror: Mirror, name: str) -> None:
    """Remove the folders that a file was the last one in: stores have no empty folders."""
    with suppress(OSError):  # not empty
        for folder in list(PurePosixPath(name).parents)[:-1]:
            mirror.here(str(folder)).rmdir()


def _download(mirror: Mirror, names: Sequence[str], versions: Mapping[str, str], ledger: Ledger) -> None:
    # All of a batch at once, since most of a small file's time is the way to the store and back.
    with tempfile.TemporaryDirectory(dir=mirror.folder.parent, prefix=".download-") as temporary:
        copies = [Path(temporary) / str(number) for number in range(len(names))]
        with reaching(mirror.url):
            mirror.filesystem.get([mirror.there(name) for name in names], [str(copy) for copy in copies])
        for name, copy in zip(names, copies, strict=True):
            digest = file_hash(copy)
            if digest is None:
                raise FileNotFoundError(mirror.there(name))
            mirror.here(name).parent.mkdir(parents=True, exist_ok=True)
            copy.replace(mirror.here(name))
            ledger[name] = Agreed(digest, versions[name])
    write_ledger(mirror, ledger)


def upload(mirror: Mirror, names: Iterable[str], versions: Mapping[str, str]) -> None:
    """Bring up files, in this order, that the store does not have as they are here.

    Raises:
        ChangedThereError: the store has another content than this machine last saw there. Nothing is overwritten.
    """
    ledger = read_ledger(mirror)
    for name in names:
        digest = file_hash(mirror.here(name))
        if digest is None:
            raise FileNotFoundError(f"{mirror.here(name)} is gone: run its stage again")
        known, there = ledger.get(name), versions.get(name)
        if known == Agreed(digest, there or ""):
            continue
        if there is None:
            version = _create(mirror, name, digest)
        elif known is not None and known.version == there:
            version = _replace(mirror, name)
        else:
            version = _same_there(mirror, name, digest)
        ledger[name] = Agreed(digest, version)
        write_ledger(mirror, ledger)


def differing(mirror: Mirror, names: Iterable[str], versions: Mapping[str, str]) -> list[str]:
    """Those of `names` that are not known to be the same on both sides."""
    ledger = read_ledger(mirror)
    return [
        name for name in names if ledger.get(name) != Agreed(file_hash(mirror.here(name)) or "", versions.get(name, ""))
    ]


def overwrite(mirror: Mirror, name: str) -> None:
    """Bring up a file whatever the store has."""
    ledger = read_ledger(mirror)
    digest = file_hash(mirror.here(name)) or ""
    ledger[name] = Agreed(digest, _replace(mirror, name))
    write_ledger(mirror, ledger)


def check_unchanged_there(mirror: Mirror, names: Iterable[str], versions: Mapping[str, str]) -> None:
    """Raise ChangedThereError if the store has other contents of `names` than last seen, other than what is here."""
    ledger = read_ledger(mirror)
    for name in names:
        known, there = ledger.get(name), versions.get(name)
        if there is not None and (known is None or known.version != there):
            _same_there(mirror, name, file_hash(mirror.here(name)))


def _create(mirror: Mirror, name: str, digest: str) -> str:
    try:
        _put(mirror, name, mode="create")
    except FileExistsError:  # another machine was faster, or this one's own first try got through after all
        return _same_there(mirror, name, digest)
    return _written(mirror, name)


def _replace(mirror: Mirror, name: str) -> str:
    _put(mirror, name, mode="overwrite")
    return _written(mirror, name)


def _put(mirror: Mirror, name: str, mode: str) -> None:
    with reaching(mirror.url):
        try:
            mirror.filesystem.put_file(str(mirror.here(name)), mirror.there(name), mode=mode)
        except FileNotFoundError as error:
            raise ValueError(f"{mirror.url}: {error}: make the bucket (or container) first") from error


def _written(mirror: Mirror, name: str) -> str:
    version = find_version(mirror, name)
    if version is None:
        raise ChangedThereError(f"{mirror.url}/{name} was removed while it was being written")
    return version


def _same_there(mirror: Mirror, name: str, digest: str | None) -> str:
    """Version of a file of the store that has the content `digest`; another content is a conflict."""
    version = find_version(mirror, name)
    with tempfile.TemporaryDirectory(dir=mirror.folder.parent, prefix=".compare-") as temporary:
        copy = Path(temporary) / "theirs"
        if version is not None:
            with reaching(mirror.url):
                mirror.filesystem.get_file(mirror.there(name), str(copy))
        if version is None or file_hash(copy) != digest:
            raise ChangedThereError(f"{mirror.url}/{name} was changed by another machine")
    return version


def remove_there(mirror: Mirror, names: Iterable[str]) -> None:
    """Remove files from the store, in this order; those that are not there are gone already."""
    ledger = read_ledger(mirror)
    for name in names:
        with reaching(mirror.url), suppress(FileNotFoundError):
            mirror.filesystem.rm_file(mirror.there(name))
        # Only now: killed before, the file still counts as one that both sides know.
        if ledger.pop(name, None) is not None:
            write_ledger(mirror, ledger)


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
