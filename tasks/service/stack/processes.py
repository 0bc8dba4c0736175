"""Processes that outlive the command that started them, recognised again by process id and time of creation."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks.running.child import path_safe

STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Started:
    """A process that was started: its name for people, process id, time of creation and log file."""

    name: str
    pid: int
    created: float
    log: str


def start(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Started:
    """Start a process in a session of its own, so that closing the terminal does not end it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            env=path_safe(environment),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(name, process.pid, psutil.Process(process.pid).create_time(), str(log))


def running(started: Started) -> psutil.Process | None:
    """The process if it still runs; None if it has ended, even where its number was given to another since."""
    try:
        process = psutil.Process(started.pid)
        if process.create_time() != started.created or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def stop(started: Started) -> bool:
    """End a process and everything it started; returns whether it was running."""
    process = running(started)
    if process is None:
        return False
    family = [process, *process.children(recursive=True)]
    process.terminate()
    psutil.wait_procs([process], timeout=STOP_SECONDS)
    survivors = [member for member in family if member.is_running()]
    for member in survivors:
        _end(member)
    psutil.wait_procs(survivors, timeout=STOP_SECONDS)
    return True


def _end(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def last_lines(log: Path, lines: int = 15) -> str:
    """The end of a log file."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) if log.is_file() else ""


def port_taken_by(host: str, port: int) -> str | None:
    """Who listens on a port: name and id of the process where it may be seen. None if the port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return _listener(port) or "another process"
    return None


def _listener(port: int) -> str | None:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # some systems show other users' processes to root only
        return None
    return None
