"""Ctrl-C in a terminal, and SIGTERM of a scheduler: the command ends soon, leaves no server, and says how to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.conftest import wait_until

pytestmark = pytest.mark.slow

MARS = Path(sys.executable).with_name("mars")
LIMIT_SECONDS = 600  # to start; the machine may be busy


def start(study: Path, home: Path) -> subprocess.Popen[str]:
    """`mars calibrate` as a terminal starts it: in a process group of its own, with Ctrl-C's usual effect."""
    servers = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    alone = {name: value for name, value in os.environ.items() if name not in servers}
    return subprocess.Popen(
        [MARS, "calibrate", str(study), "--json"],
        env=alone | {"PREFECT_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def servers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Prefect's temporary servers that a command started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "uvicorn" in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM)],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM to the group"],
)
def test_an_interrupted_calibration_ends_soon_and_is_gone_on_with(study, tmp_path, send, number):
    process = start(study, tmp_path / "prefect")
    states = tmp_path / "study" / "revisions" / "001" / "calibration" / "state"
    wait_until(lambda: process.poll() is not None or list(states.glob("*/*.safetensors")), seconds=LIMIT_SECONDS)
    assert process.poll() is None, process.communicate()
    servers = servers_of(process)
    assert len(servers) == 1
    send(process.pid, number)
    asked = time.monotonic()
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    took = time.monotonic() - asked
    print(f"ended after {took:.1f} s")
    assert process.returncode == 130, said
    assert "interrupted: what was finished is kept" in said
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert "connection" not in said.lower()  # its temporary server was there to the end
    assert not any(server.is_running() for server in servers)
    assert took < 15  # 2 s on an idle machine; 18 s when Prefect tried to reach a server that Ctrl-C had ended too
    assert list(states.glob("*/*.safetensors"))  # what the next run goes on from
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'study' / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    children = client.search_runs(experiments, "tags.`mars.kind` = 'calibration'")
    assert {child.info.status for child in children} == {"KILLED"}

    if number == signal.SIGTERM:
        return
    again = start(study, tmp_path / "prefect")
    output, said = again.communicate(timeout=LIMIT_SECONDS)
    assert again.returncode == 0, said
    assert json.loads(output)["revision"] == str(tmp_path / "study" / "revisions" / "001")
    assert not list(states.glob("*/*.safetensors"))
