"""Locations: local paths and fsspec URLs, and where on this machine the working copy of a URL lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.registry import available_protocols

from tasks.running.addresses import SECRET_QUERY, without_password

CACHE_VARIABLE = "MARS_CACHE"
LOCAL_PROTOCOLS = ("file", "local")


def is_remote(location: str) -> bool:
    """Whether a location is a URL of something else than this machine's own files."""
    return "://" in location and _protocol(location) not in LOCAL_PROTOCOLS


def check_location(location: str) -> str:
    """Return a location without its trailing slash.

    Raises:
        ValueError: a URL that fsspec cannot open, that holds a password or another secret, or that chains several file
            systems.
    """
    if "://" not in location:
        return location
    if "::" in location:
        raise ValueError(f"{location!r} chains several file systems: give the URL of the store itself")
    if _protocol(location) not in available_protocols():
        raise ValueError(
            f"{location!r}: fsspec knows no protocol {_protocol(location)!r}; give a local path, or a URL such as "
            "s3://bucket/study or gs://bucket/study"
        )
    if ":" in urlsplit(location).netloc.rpartition("@")[0]:
        shown = location.replace(urlsplit(location).netloc.rpartition("@")[0], "***")
        raise ValueError(
            f"{shown!r} holds a password: put credentials into the store's own configuration or into fsspec's "
            "(docs/storage.md)"
        )
    if SECRET_QUERY.search(location) or (_protocol(location) in ("http", "https") and "@" in urlsplit(location).netloc):
        raise ValueError(
            f"{without_password(location)!r} holds a secret, and a study's settings are stored and shown: put it into "
            "fsspec's own configuration (docs/storage.md)"
        )
    if not (urlsplit(location).netloc + urlsplit(location).path).strip("/"):
        raise ValueError(f"{location!r} names no folder: give one, such as {_protocol(location)}://bucket/study")
    return location.rstrip("/")


def working_folder(study: str) -> Path:
    """The local folder on which the stages of a study work: the study folder itself where it is local.

    The working copy of a URL keeps the study's name, since reports and MLflow show it.

    Raises:
        ValueError: there is a file in its place.
    """
    if is_remote(study):
        return working_copy(study, "studies")
    folder = local_path(study)
    if folder.is_file():
        raise ValueError(f"{folder} is a file, and a study is a folder: give another `study` in the study file")
    return folder


def working_copy(location: str, kind: str) -> Path:
    """Where on this machine a copy of what lies at a URL is kept; `kind` parts copies of different use."""
    url = check_location(location)
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_folder() / kind / digest / url.rpartition("/")[2]


def study_key(folder: Path) -> str:
    """What tells a study from others, given the folder that its stages work on: the same on every machine for a URL."""
    copies = cache_folder().resolve() / "studies"
    path = folder.resolve()
    return "/".join(path.relative_to(copies).parts[:2]) if path.is_relative_to(copies) else str(path)


def cache_folder() -> Path:
    """Folder for working copies: MARS_CACHE when set, else `mars` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mars"


def local_path(location: str) -> Path:
    """The path of a location on this machine."""
    return Path(unquote(urlsplit(location).path)) if "://" in location else Path(location)


def address(study: str, path: Path) -> str:
    """What to tell the user about a file of a study: its URL where the study is remote, else its path."""
    if not is_remote(study):
        return str(path)
    return f"{check_location(study)}/{path.relative_to(working_folder(study)).as_posix()}"


def open_filesystem(location: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, set up by fsspec's own configuration, and the URL's path in it.

    Raises:
        ValueError: the package that talks to this kind of store is not installed.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(check_location(location))
    except ImportError as error:
        extra = " (for s3: pip install 'mars-rank-search[s3]')" if _protocol(location).startswith("s3") else ""
        raise ValueError(f"{location}: {error}{extra}") from error
    return filesystem, root.rstrip("/")


def is_folder(location: str) -> bool:
    """Whether there is a folder at a URL."""
    filesystem, path = open_filesystem(location)
    with reaching(location):
        filesystem.invalidate_cache()
        return bool(filesystem.isdir(path))


def read_text(location: str) -> str:
    """Read a text file at a URL.

    Raises:
        FileNotFoundError: there is no such file.
    """
    filesystem, path = open_filesystem(location)
    with reaching(location):
        filesystem.invalidate_cache()
        return str(filesystem.cat_file(path).decode("utf-8"))


@contextmanager
def reaching(location: str) -> Iterator[None]:
    """Say which location could not be reached, and what to look at."""
    try:
        yield
    except (ValueError, FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise OSError(f"{location}: {_reason(error)} ({_REMEDY})") from error
    except Exception as error:
        # The stores' own libraries raise what they like: botocore's errors are plain Exceptions.
        if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "google", "azure", "aiohttp"):
            raise OSError(f"{location}: {_reason(error)} ({_REMEDY})") from error
        raise


_REMEDY = "look at endpoint, credentials and permissions; docs/storage.md says where they are set"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _protocol(location: str) -> str:
    return location.partition("://")[0]
