"""A worker of a Prefect process pool in a process of its own, and its sudden end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.conftest import ROOT


def start_worker(pool: str, server: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a worker that keeps its log and settings in a folder."""
    settings = {
        "PREFECT_API_URL": server,
        "PREFECT_HOME": str(folder / f"home-{pool}"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    with (folder / f"{pool}.log").open("wb") as log:
        return subprocess.Popen(
            command, env={**os.environ, **settings, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log, cwd=folder
        )


def kill_with_children(worker: subprocess.Popen[bytes]) -> None:
    """As when the machine goes: nobody is left to report anything."""
    if worker.poll() is None:
        for process in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
            process.send_signal(signal.SIGKILL)
    worker.wait(30)
