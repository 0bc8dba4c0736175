"""A real stack, started and stopped with `mars up` and `mars down`, shared by the tests of this folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tasks.service.device_slot import slot_name
from tasks.settings.study import StudyConfig
from tests.flows.conftest import write_small_study

BUSY = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.INTERNAL_SERVER_ERROR)
WAIT_SECONDS = 1800  # every flow run is a process that imports torch, on a machine that may be busy


@dataclass(frozen=True)
class Running:
    """A stack that runs: its folder, the addresses, and an environment that finds it."""

    folder: Path
    ports: tuple[str, ...]
    api: str
    ui: str
    mlflow: str
    environment: dict[str, str]

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.ask("POST", path, body or {}).json()

    def get(self, path: str) -> Any:
        return self.ask("GET", path).json()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Ask the Prefect server; where it is busy, again, as Prefect's own client and `tasks.service.trigger` do.

        A transaction on SQLite that reads first and then writes fails at once if another has written in between; with
        ten hosts on a loaded machine, a mere look was answered with 500 while the database was locked.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        busy = BUSY if method == "GET" else BUSY[:1]
        while (answer := httpx.request(method, f"{self.api}{path}", json=body, timeout=300)).status_code in busy:
            assert time.monotonic() < deadline, "the server was busy all the time"
            time.sleep(0.5)
        answer.raise_for_status()
        return answer

    def start(self, deployment: str, **parameters: Any) -> UUID:
        """Start a run of a deployment as the UI's form does."""
        known = self.get(f"/deployments/name/{deployment}")
        return UUID(self.post(f"/deployments/{known['id']}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, run: UUID) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run}")["state"]

    def finish(self, run: UUID) -> dict[str, Any]:
        """Wait until a flow run has ended; returns its state."""
        wait_until(lambda: self.state(run)["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"))
        return self.state(run)

    def runs_of(self, deployment: str, study: str) -> list[dict[str, Any]]:
        """Flow runs of a deployment for a study folder."""
        known = self.get(f"/deployments/name/{deployment}")
        only = {"flow_runs": {"deployment_id": {"any_": [known["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return [run for run in self.post("/flow_runs/filter", only) if _study_of(run["parameters"]) == study]

    def complete(self, run: UUID) -> None:
        """Wait until a flow run has completed; one that ended otherwise fails the test with its message."""
        state = self.finish(run)
        assert state["type"] == "COMPLETED", state

    def slot(self) -> dict[str, Any]:
        """The limit of this machine's only device."""
        limits = {one["name"]: one for one in self.post("/v2/concurrency_limits/filter")}
        return limits[slot_name("cpu")]

    def process(self, name: str) -> int:
        state = json.loads((self.folder / "stack.json").read_text())
        return {process["name"]: process["pid"] for process in state["processes"]}[name]


def _study_of(parameters: dict[str, Any]) -> str:
    folder: str = parameters["config"]["study"] if "config" in parameters else parameters["study"]
    return folder


def wait_until(holds: Callable[[], object], seconds: float = WAIT_SECONDS) -> float:
    """Wait until something holds; returns the seconds it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.5)
    return time.monotonic() - started


def mars(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a `mars` command in a process of its own."""
    command = [str(Path(sys.executable).with_name("mars")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=WAIT_SECONDS)


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def bring_up(folder: Path, ports: tuple[str, ...]) -> Running:
    """Start a stack, or what is missing of it."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "MLFLOW_T"))
    }
    environment["CUDA_VISIBLE_DEVICES"] = ""  # one training worker, whatever the machine has
    up = mars("up", *ports, "--folder", str(folder), "--json", environment=environment)
    assert up.returncode == 0, up.stdout + up.stderr
    said = json.loads(up.stdout)
    settings = said["settings"]
    addresses = settings["PREFECT_API_URL"], said["prefect"], said["mlflow"]
    return Running(folder, ports, *addresses, {**environment, **settings})


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("stack")
    prefect, mlflow = free_ports(2)
    try:
        yield bring_up(folder, ("--prefect-port", str(prefect), "--mlflow-port", str(mlflow)))
    finally:
        mars("down", "--folder", str(folder))


@pytest.fixture
def small_study(tmp_path: Path, demo_data: Path) -> StudyConfig:
    """A study that has not run, whose data a test may spoil."""
    shutil.copytree(demo_data, tmp_path / "data")
    return one_run_per_pack(write_small_study(tmp_path, tmp_path / "data"))


def one_run_per_pack(config: StudyConfig) -> StudyConfig:
    """The same study in as many packs as runs, for workers to share."""
    return config.model_copy(update={"calibration": config.calibration.model_copy(update={"pack_runs": 1})})


@pytest.fixture(scope="session")
def served(stack: Running, tmp_path_factory: pytest.TempPathFactory, demo_data: Path) -> StudyConfig:
    """A study that the deployment ran from start to end. Tests that change it work on a copy."""
    config = one_run_per_pack(write_small_study(tmp_path_factory.mktemp("served"), demo_data))
    stack.complete(stack.start("mars-study/study", config=config.model_dump(mode="json")))
    return config


@pytest.fixture
def copied(served: StudyConfig, tmp_path: Path) -> StudyConfig:
    """A copy of the served study in a folder of its own."""
    shutil.copytree(served.study, tmp_path / "study")
    return served.model_copy(update={"study": str(tmp_path / "study")})
