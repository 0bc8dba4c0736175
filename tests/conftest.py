"""What many tests share: demo data, one Prefect server, empty MLflow stores; made once for all processes of a run."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]

# Folder of what the processes of one run of the tests share; pytest-xdist's processes inherit the variable.
SHARED = "MARS_TESTS_SHARED"

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Models this small gain nothing from a second thread, and lose much where other processes run beside the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Nearly all that the tests import stays to the end: looking for garbage among it takes a fifth of the imports' time.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Before any test and any other process: a folder for what is shared, Prefect's database in it."""
    if not hasattr(config, "workerinput"):
        os.environ[SHARED] = tempfile.mkdtemp(prefix="mars-tests-")
        os.environ["PREFECT_HOME"] = str(shared_folder() / "prefect")  # away from the user's own


def pytest_collection_finish() -> None:
    """What the tests import stays: taken off the garbage collector, which torch's and Prefect's modules keep busy."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)  # passes of small models make many small objects: a twentieth of their time
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """After all tests, when the other processes have ended: stop the shared Prefect server."""
    if not hasattr(config, "workerinput"):
        with suppress(FileNotFoundError):
            _, server = map(int, _server_file().read_text().split())
            _end(server)
        shutil.rmtree(shared_folder(), ignore_errors=True)


def shared_folder() -> Path:
    """Folder that all processes of this run of the tests see."""
    return Path(os.environ[SHARED])


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process to ask for it fills; the others wait for it, and must leave it as it is."""
    folder, done = shared_folder() / name, shared_folder() / f"{name}.done"
    with FileLock(f"{folder}.lock"):
        if not done.is_file():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def _server_file() -> Path:
    return shared_folder() / "prefect-server"


def _end(server: int) -> None:
    """Have a process end, and wait for it, whether or not this process started it."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(server)
        process.terminate()
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session", autouse=True)
def image_looks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is remembered of images stays away from the user's own cache."""
    os.environ["MARS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def quick_services() -> Iterator[None]:
    """One temporary Prefect server for all test processes, MLflow's empty tables made once, no wait for heartbeats."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    with pytest.MonkeyPatch.context() as patch:
        _share_prefects_server(patch)
        _copy_mlflows_tables(patch)
        # Nobody reads this server's events; to a real one (`prefect_server`) they are still sent.
        patch.setattr("prefect.events.worker.should_emit_events_to_ephemeral_server", lambda: False)
        # Nor its logs. The end of every flow would wait for its thread of heartbeats, which looks up once a second.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}):
            yield


@pytest.fixture
def prefects_address(quick_services: None) -> str:
    """API address of the temporary server that the tests share, for commands in processes of their own."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return str(client.api_url)


def _share_prefects_server(patch: pytest.MonkeyPatch) -> None:
    """Prefect starts a temporary server at a process's first flow: let the second process find the first one's."""
    from prefect.server.api.server import SubprocessASGIServer

    start = SubprocessASGIServer.start
    services = (
        *("TRIGGERS", "EVENT_PERSISTER", "EVENT_LOGGER", "TASK_RUN_RECORDER", "SCHEDULER", "LATE_RUNS"),
        *("CANCELLATION_CLEANUP", "FOREMAN", "PAUSE_EXPIRATIONS"),
    )
    unused = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in services}
    unused["PREFECT_API_BLOCKS_REGISTER_ON_START"] = "false"

    def start_once(self: Any, timeout: int | None = None) -> None:
        if self.running:
            return
        with FileLock(shared_folder() / "prefect-server.lock"):
            if _server_file().is_file():
                self.port, server = map(int, _server_file().read_text().split())
                self.server_process, self.running = psutil.Process(server), True
            else:
                with pytest.MonkeyPatch.context() as environment:
                    for name, value in unused.items():  # nobody reads what they write, and they take a third of it
                        environment.setenv(name, value)
                    start(self, timeout)
                _server_file().write_text(f"{self.port} {self.server_process.pid}")

    patch.setattr(SubprocessASGIServer, "start", start_once)
    patch.setattr(SubprocessASGIServer, "stop", lambda self: None)  # not before the last process has ended


def _copy_mlflows_tables(patch: pytest.MonkeyPatch) -> None:
    """MLflow takes seconds of migrations to make the tables of a new store: make them once, and copy them."""
    import mlflow.store.db.utils
    import mlflow.store.model_registry.sqlalchemy_store
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def never_wait_for_the_disk(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):  # a store that is thrown away need not survive a power cut
            connection.execute("PRAGMA synchronous = OFF")

    make_tables = mlflow.store.db.utils._initialize_tables

    def copy_tables(engine: Engine) -> None:
        if engine.dialect.name != "sqlite" or not engine.url.database:
            make_tables(engine)
            return
        made = made_once("mlflow", lambda folder: make_tables(create_engine(f"sqlite:///{folder / 'mlflow.db'}")))
        with closing(sqlite3.connect(made / "mlflow.db")) as source, closing(engine.raw_connection()) as new:
            source.backup(new.driver_connection)

    for module in (mlflow.store.db.utils, mlflow.store.model_registry.sqlalchemy_store):
        patch.setattr(module, "_initialize_tables", copy_tables)


@pytest.fixture(scope="session")
def demo_data() -> Path:
    """Folder with a few demo scenes: train.json (64), validation.json (12), test.json (12), images/."""
    from mars_core.demo import build_demo_data

    made = made_once("demo", lambda folder: build_demo_data(folder / "data", n_train=64, n_validation=12, n_test=12))
    return made / "data"


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
