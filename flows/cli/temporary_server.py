"""Prefect's temporary server, started so that what stops the command does not stop the server under it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace


def start_temporary_server() -> None:
    """Start the server that Prefect would start at the first flow, unless another one is set.

    Ctrl-C goes to every process of a terminal's foreground job, and schedulers send SIGTERM to all of a job. A server
    that they ended could not be told any more that the run was interrupted, and Prefect would try for many seconds. So
    it gets a process group of its own; Prefect ends it when this process ends.

    Raises:
        ValueError: Prefect's folder cannot be written to, or its database is damaged.
    """
    if os.environ.get("PREFECT_API_URL"):
        return
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    _require_writable(home)
    _require_whole(home / "prefect.db", "schema_version")
    from prefect.client.orchestration import get_client

    try:
        with _own_process_group():
            get_client(sync_client=True)
    except RuntimeError:
        _require_whole(home / "prefect.db", "quick_check")
        raise


@contextmanager
def _own_process_group() -> Iterator[None]:
    from prefect.server.api import server

    if os.name == "posix":
        own = partial(subprocess.Popen, process_group=0)
        vars(server)["subprocess"] = SimpleNamespace(**vars(subprocess) | {"Popen": own})
    try:
        yield
    finally:
        vars(server)["subprocess"] = subprocess


def _require_writable(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ValueError(
            f"Prefect keeps its records in {home}, which cannot be written to ({error}): name a folder of yours with "
            "PREFECT_HOME"
        ) from error


def _require_whole(database: Path, pragma: str) -> None:
    if not database.is_file():
        return
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
            found = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
            damage = found if isinstance(found, str) and found != "ok" else None
    except sqlite3.DatabaseError as error:
        damage = str(error)
    if damage:
        raise ValueError(
            f"Prefect's database {database} is damaged ({damage}): move it away and run again; it only holds what "
            "Prefect's UI shows of past runs, and no study needs it"
        )
