"""A small study on the bundled data and backbone, shared by the tests of tasks and flows."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# One temporary Prefect server and one MLflow store per test session, away from the user's own.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Models this small gain nothing from a second thread, and lose much where other processes run beside the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture(scope="session", autouse=True)
def image_looks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is remembered of images stays away from the user's own cache."""
    os.environ["MARS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def temporary_server() -> Iterator[None]:
    """Prefect's temporary server ends with the tests: at Python's end, its last words find pytest's output closed."""
    yield
    if "prefect.server.api.server" in sys.modules:
        from prefect.logging.handlers import APILogHandler
        from prefect.server.api.server import SubprocessASGIServer

        APILogHandler().flush()
        for server in list(SubprocessASGIServer._instances.values()):
            server.stop()


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a few demo scenes: train.json (64), validation.json (12), test.json (12), images/."""
    from mars_core.demo import build_demo_data

    return build_demo_data(tmp_path_factory.mktemp("demo") / "data", n_train=64, n_validation=12, n_test=12).folder


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """API address of a real Prefect server on loopback, with quick background services and a store of its own."""
    home = tmp_path_factory.mktemp("prefect-server")
    port = free_port()
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_UI_URL": f"http://127.0.0.1:{port}",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "true",
        "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT2S",
    }
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | settings
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}/api"
    try:
        wait_until(lambda: server.poll() is not None or answers(f"{address}/health"), seconds=180)
        assert server.poll() is None, (home / "server.log").read_text()
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture
def serving(prefect_server: str, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Run a script that serves flows against the server, in a process of its own, until the test ends."""
    processes = []

    def start(script: str) -> None:
        file = tmp_path / "serve.py"
        file.write_text(script)
        settings = {"PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(tmp_path / "prefect-client")}
        with (tmp_path / "serve.log").open("wb") as log:
            environment = {
                **os.environ,
                **settings,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            }
            command = [sys.executable, str(file)]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path)
            )

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(address: str) -> bool:
    """Whether a server answers there."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_until(happened: Callable[[], object], *, seconds: float) -> None:
    """Wait until something has happened; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"nothing happened within {seconds} s"
        time.sleep(0.5)
