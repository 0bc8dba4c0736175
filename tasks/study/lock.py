"""One process at a time that trains for a study: two would train the same runs and take each other's checkpoints.

The lock is the operating system's, on a file in the folder, so it ends with its process, however that ends. On a folder
that several machines share it holds between them where the file system's locks do; of a study at a URL, on one machine.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from prefect.runtime import flow_run

from tasks.running.addresses import without_password
from tasks.running.progress import show_message
from tasks.storage.files import read_json, write_json

LOCK, OWNER = ".lock", ".lock.json"


class StudyBusyError(ValueError):
    """Another process trains for the study."""


@contextmanager
def at_work_on(study: Path) -> Iterator[None]:
    """Hold a study folder while the block runs; inside such a block of this process, nothing more.

    Raises:
        StudyBusyError: another process holds it.
    """
    study.mkdir(parents=True, exist_ok=True)
    # A lock that is a mere file, where the system has none, would outlive a process that is killed.
    lock = FileLock(study / LOCK, timeout=0, thread_local=False, is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise StudyBusyError(_who(study)) from error
    except (NotImplementedError, OSError) as error:
        show_message(f"note: {study} cannot be locked ({error}): see to it that no other command trains for this study")
        yield
        return
    try:
        if lock.lock_counter == 1:
            write_json(study / OWNER, _ourselves())
        yield
    finally:
        lock.release()


def _ourselves() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "what": f"flow run {flow_run.get_name()!r}" if flow_run.get_id() else f"`{without_password(command)}`",
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _who(study: Path) -> str:
    try:
        owner = read_json(study / OWNER)
        who = f"{owner['what']} (process {owner['process']} on {owner['host']}, since {owner['since']})"
    except (ValueError, KeyError):
        who = "another process"
    return f"{who} is training for {study}: wait until it has ended, or end it; then run this again"
