"""Processes that outlive their starter: real ones."""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tasks.service.stack.processes import Started, last_lines, port_taken_by, running, start, stop

WITH_CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "


@pytest.fixture
def sleeper(tmp_path: Path):
    code = WITH_CHILD + "print('started', flush=True); time.sleep(60)"
    started = start("sleeper", [sys.executable, "-c", code], dict(os.environ), tmp_path / "logs" / "sleeper.log")
    yield started
    stop(started)


def child_of(started: Started) -> psutil.Process:
    for _ in range(200):
        if children := psutil.Process(started.pid).children():
            return children[0]
        time.sleep(0.05)
    raise AssertionError("no child appeared")


def test_has_a_session_of_its_own_and_a_log(sleeper):
    child_of(sleeper)
    assert os.getsid(sleeper.pid) == sleeper.pid != os.getsid(0)
    for _ in range(200):
        if last_lines(Path(sleeper.log)):
            break
        time.sleep(0.05)
    assert last_lines(Path(sleeper.log)) == "started"


def test_stop_ends_it_and_its_children(sleeper):
    child = child_of(sleeper)
    assert running(sleeper)
    assert stop(sleeper)
    assert running(sleeper) is None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not stop(sleeper)


def test_a_process_that_got_the_number_of_an_old_one_is_left_alone(sleeper):
    stale = replace(sleeper, created=sleeper.created - 3600)
    assert running(stale) is None
    assert not stop(stale)
    assert running(sleeper)


def test_a_taken_port_names_who_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert str(os.getpid()) in port_taken_by("127.0.0.1", port)
    assert port_taken_by("127.0.0.1", port) is None
