"""The compose file's own commands and health checks, outside containers, against a real PostgreSQL.

What differs from the containers: addresses and ports, the folder of artifacts, and where the ini file lies. Needs
PostgreSQL's server programs (Debian, Ubuntu: apt-get install postgresql), and runs them as a user that is not root.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SERVERS = ("prefect-server", "mlflow-server")
WORKERS = ("worker-cpu", "worker-gpu")
# What a URL would choke on, were a password ever pasted into one.
AWKWARD = "-p@ss/w:rd%20#?&'"
FLOW = """
import mlflow
from prefect import flow

@flow(persist_result=True, result_serializer="json")
def hello(number: int) -> int:
    mlflow.set_experiment("stack")
    with mlflow.start_run(run_name="from the worker"):
        mlflow.log_metric("number", number)
        mlflow.log_text("an artifact", "note.txt")
    return number
"""
CLIENT = """
import sys
from prefect import flow
from prefect.deployments import run_deployment

hello = flow.from_source(source=sys.argv[1], entrypoint="hello.py:hello")
hello.deploy("test", work_pool_name="mars-cpu", build=False, push=False, print_next_steps=False)
run = run_deployment("hello/test", parameters={"number": 7}, timeout=180, poll_interval=1)
print(run.state.type.value, run.state.result())
"""


def postgres_programs() -> Path | None:
    """Folder of the newest PostgreSQL server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).parent if on_path else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status(url: str, login: str | None = None, post: Mapping[str, Any] | None = None, **headers: str) -> int:
    """HTTP status of a GET, or of a POST of JSON."""
    body = None if post is None else json.dumps(post).encode()
    headers["Content-Type"] = "application/json"
    if login is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def group_ended(group: int, seconds: float = 20) -> bool:
    """Whether no process of a group is left after some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


@dataclass(frozen=True)
class Stack:
    """What compose.yaml says, and where its services run instead."""

    services: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, str]
    programs: Path
    ports: Mapping[str, int]
    folder: Path

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    def environment(self, service: str) -> dict[str, str]:
        """A service's environment at this machine's addresses; of the caller's environment, only the path."""
        here = {
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.ports["prefect-server"]),
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(self.ports["postgres"]),
            "PREFECT_API_URL": f"{self.url('prefect-server')}/api",
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports.get(service)),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(self.folder / "data" / ".prefect" / "results"),
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(self.ports["mlflow-server"]),
            "MLFLOW_TRACKING_URI": self.url("mlflow-server"),
            "MLFLOW_ARTIFACTS_DESTINATION": str(self.folder / "mlartifacts"),
            "MLFLOW_AUTH_CONFIG_PATH": str(DOCKER / "services" / "basic_auth.ini"),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports["postgres"]),
        }
        there = self.services[service]["environment"]
        return {
            **{key: here.get(key, value) for key, value in there.items()},
            # In the container PostgreSQL has its usual port, and so its programs need none.
            **({"PGPORT": here["PGPORT"]} if service == "postgres" else {}),
            "PATH": f"{Path(sys.executable).parent}:{self.programs}:{os.environ['PATH']}",
            "HOME": str(self.home(service)),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    @property
    def superuser_password(self) -> str:
        return self.settings["POSTGRES_PASSWORD"]

    def home(self, service: str) -> Path:
        home = self.folder / service
        home.mkdir(exist_ok=True)
        return home

    def health(self, service: str) -> subprocess.CompletedProcess[str]:
        """Run a service's health check once."""
        kind, *command = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        return subprocess.run(
            command, env=self.environment(service), capture_output=True, text=True, timeout=60, check=False
        )

    def log(self, service: str) -> str:
        return (self.home(service) / "log").read_text(errors="replace")

    def wait(self, service: str, process: subprocess.Popen[bytes], seconds: float = 420) -> None:
        """Wait until a service's health check passes."""
        deadline = time.monotonic() + seconds
        while self.health(service).returncode != 0:
            assert process.poll() is None, f"{service} ended with {process.returncode}:\n{self.log(service)[-4000:]}"
            assert time.monotonic() < deadline, f"{service} is not healthy:\n{self.log(service)[-4000:]}"
            time.sleep(1)

    @contextmanager
    def running(self, service: str) -> Iterator[None]:
        """Run a service's command; stop it as docker does, and see that nothing of it is left."""
        with (self.home(service) / "log").open("w") as log:
            process = subprocess.Popen(
                self.services[service]["command"],
                env=self.environment(service),
                cwd=self.home(service),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait(service, process)
            yield
            process.terminate()
            process.wait(60)
            assert group_ended(process.pid), f"{service} left processes behind"
            assert self.health(service).returncode != 0, f"{service} was stopped, its health check still passes"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def run(self, service: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's environment, as `docker compose run` does."""
        return subprocess.run(
            command,
            env=self.environment(service),
            cwd=self.home(service),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def query(self, role: str, database: str, sql: str) -> subprocess.CompletedProcess[str]:
        """Ask PostgreSQL as one of its roles."""
        password = self.settings[f"{role.upper()}_DB_PASSWORD"]
        command = [
            self.programs / "psql",
            "--no-psqlrc",
            "-At",
            "-h",
            "127.0.0.1",
            "-U",
            role,
            "-d",
            database,
            "-c",
            sql,
        ]
        environment = {"PGPORT": str(self.ports["postgres"]), "PGPASSWORD": password}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def running_postgres(programs: Path, port: int, password: str) -> Iterator[None]:
    """A fresh cluster on 127.0.0.1 that asks for passwords, run by a user that is not root."""
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="mars-postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        if user:
            account = pwd.getpwnam(user)
            for path in (folder, folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)

        def run(*command: str | Path) -> None:
            done = subprocess.run(
                command,
                cwd=folder,
                user=user,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr

        data = folder / "data"
        initdb = ("--username=postgres", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync")
        run(programs / "initdb", "--pgdata", data, *initdb)
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        run(programs / "pg_ctl", "--pgdata", data, "--wait", "--log", folder / "log", "--options", options, "start")
        try:
            yield
        finally:
            run(programs / "pg_ctl", "--pgdata", data, "--wait", "--mode=immediate", "stop")


@pytest.fixture(scope="module")
def stack(
    compose: Callable[[Mapping[str, str]], dict[str, Any]],
    settings: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server programs are missing: apt-get install postgresql")
    awkward = {key: value + AWKWARD if key.endswith("_PASSWORD") else value for key, value in settings.items()}
    ports = {service: free_port() for service in ("postgres", *SERVERS, *WORKERS)}
    folder = tmp_path_factory.mktemp("stack")
    stack = Stack(compose(awkward)["services"], awkward, programs, ports, folder)
    with ExitStack() as running:
        running.enter_context(running_postgres(programs, ports["postgres"], stack.superuser_password))
        set_up_databases(stack)
        for service in SERVERS:
            running.enter_context(stack.running(service))
        done = stack.run("register", stack.services["register"]["command"])
        assert done.returncode == 0, done.stdout + done.stderr
        for service in WORKERS:
            running.enter_context(stack.running(service))
        yield stack


def set_up_databases(stack: Stack) -> None:
    """Run the script that PostgreSQL's image runs on an empty volume, and the health check on its result."""
    mounted = next(
        volume for volume in stack.services["postgres"]["volumes"] if "/docker-entrypoint-initdb.d/" in volume
    )
    script = DOCKER / mounted.partition(":")[0]
    environment = {**stack.environment("postgres"), "PGHOST": "127.0.0.1", "PGPASSWORD": stack.superuser_password}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    health = stack.health("postgres")
    assert health.returncode == 0, health.stdout + health.stderr


@pytest.mark.parametrize(
    ("service", "path"),
    [
        ("prefect-server", "/api/admin/settings"),
        ("prefect-server", "/api/work_pools/mars-cpu"),
        ("mlflow-server", "/"),
        ("mlflow-server", "/api/2.0/mlflow/experiments/get?experiment_id=0"),
    ],
)
def test_only_the_login_gets_in(stack, service, path):
    user, password = (
        ("PREFECT_USER", "PREFECT_PASSWORD") if "prefect" in service else ("MLFLOW_USER", "MLFLOW_PASSWORD")
    )
    login = f"{stack.settings[user]}:{stack.settings[password]}"
    url = stack.url(service) + path
    assert status(url) == 401
    assert status(url, login + "x") == 401
    assert status(url, "admin:password1234") == 401  # what MLflow once shipped
    until = time.monotonic() + 30
    while (found := status(url, login)) == 404 and time.monotonic() < until:  # a pool that its worker is about to make
        time.sleep(1)
    assert found == 200


def test_mlflow_answers_to_its_name_in_the_stack_and_to_no_other(stack):
    url = stack.url("mlflow-server") + "/api/2.0/mlflow/experiments/get?experiment_id=0"
    login = f"{stack.settings['MLFLOW_USER']}:{stack.settings['MLFLOW_PASSWORD']}"
    # The name that compose gives the workers.
    name = stack.services["worker-gpu"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert status(url, login, Host=name) == 200
    assert status(url, login, Host="localhost:5000") == 200
    assert status(url, login, Host="rebound.example") == 403


def test_flow_run_goes_through_the_worker_into_both_databases(stack):
    source = stack.folder / "source"
    source.mkdir()
    (source / "hello.py").write_text(FLOW)

    done = stack.run("worker-cpu", [sys.executable, "-c", CLIENT, str(source)])

    outcome = (done.stdout.splitlines() or [""])[-1]
    assert outcome == "COMPLETED 7", done.stdout + done.stderr + stack.log("worker-cpu")[-4000:]
    flows = "SELECT state_type, parameters FROM flow_run JOIN flow ON flow.id = flow_id WHERE flow.name = 'hello'"
    assert stack.query("prefect", "prefect", flows).stdout.splitlines() == ['COMPLETED|{"number": 7}']
    runs = "SELECT name, status, value FROM runs JOIN latest_metrics USING (run_uuid) WHERE key = 'number'"
    assert stack.query("mlflow", "mlflow", runs).stdout.splitlines() == ["from the worker|FINISHED|7"]
    users = stack.query("mlflow", "mlflow_auth", "SELECT username, is_admin FROM users").stdout.splitlines()
    assert users == [f"{stack.settings['MLFLOW_USER']}|t"]
    # The artifact went through the server into its own folder: workers need no access to that volume.
    notes = list((stack.folder / "mlartifacts").rglob("note.txt"))
    assert [note.read_text() for note in notes] == ["an artifact"]


def test_registration_filled_the_pools_that_the_workers_serve(stack):
    question = """
        SELECT DISTINCT work_pool.name FROM deployment
        JOIN work_queue ON work_queue.id = work_queue_id JOIN work_pool ON work_pool.id = work_pool_id
        JOIN flow ON flow.id = flow_id WHERE flow.name LIKE 'mars-%'
    """
    pools = set(stack.query("prefect", "prefect", question).stdout.split())
    commands = [stack.services[worker]["command"] for worker in WORKERS]
    assert pools == {command[command.index("--pool") + 1] for command in commands}


def test_server_takes_the_kubernetes_pool(stack):
    template = DOCKER / "kubernetes" / "base-job-template.json"
    create = ["prefect", "work-pool", "create", "cluster", "--type", "kubernetes", "--base-job-template", str(template)]
    done = stack.run("worker-cpu", create)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = stack.query("prefect", "prefect", "SELECT base_job_template FROM work_pool WHERE name = 'cluster'")
    assert json.loads(kept.stdout) == json.loads(template.read_text())


def test_the_upgrades_of_the_readme_run(stack):
    readme = (DOCKER / "README.md").read_text()
    commands = re.findall(r"^docker compose run --rm mlflow-server (.+)$", readme, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = stack.run("mlflow-server", shlex.split(command))
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_backup_of_the_readme_restores_into_a_new_cluster(stack, tmp_path):
    readme = (DOCKER / "README.md").read_text()
    dump, restore = re.findall(r"docker compose exec -T postgres (pg_[^<>]+) [<>] ", readme)
    other = dataclasses.replace(stack, ports={**stack.ports, "postgres": free_port()})
    questions = {
        "prefect": ("prefect", "SELECT count(*), max(created) FROM flow_run"),
        "mlflow": ("mlflow", "SELECT count(*), max(start_time) FROM runs"),
        "mlflow_auth": ("mlflow", "SELECT count(*), max(password_hash) FROM users"),
    }

    def run(where: Stack, command: str, database: str, **files: Any) -> None:
        environment = {**where.environment("postgres"), "PGHOST": "127.0.0.1", "PGPASSWORD": where.superuser_password}
        words = shlex.split(command.replace("$database", database))
        done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, check=False, **files)
        assert done.returncode == 0, done.stderr

    with running_postgres(other.programs, other.ports["postgres"], other.superuser_password):
        set_up_databases(other)
        for database, (role, question) in questions.items():
            with (tmp_path / database).open("wb") as file:
                run(stack, dump, database, stdout=file)
            with (tmp_path / database).open("rb") as file:
                run(other, restore, database, stdin=file)
            before, after = (where.query(role, database, question) for where in (stack, other))
            assert after.stdout == before.stdout
            assert not before.stdout.startswith("0|")


def test_another_user_of_mlflow_reads_and_writes_nothing(stack):
    url, login = stack.url("mlflow-server"), f"{stack.settings['MLFLOW_USER']}:{stack.settings['MLFLOW_PASSWORD']}"
    reader = {"username": "reader", "password": "long-enough-to-read"}
    new_run = {"experiment_id": "0", "start_time": 0}
    assert status(f"{url}/api/2.0/mlflow/users/create", login, reader) == 200
    assert status(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", "reader:long-enough-to-read") == 200
    assert status(f"{url}/api/2.0/mlflow/runs/create", "reader:long-enough-to-read", new_run) == 403
    assert status(f"{url}/api/2.0/mlflow/runs/create", login, new_run) == 200


def test_a_server_reaches_only_its_own_databases(stack):
    refused = stack.query("mlflow", "prefect", "SELECT 1")
    assert refused.returncode != 0
    assert "permission denied for database" in refused.stderr
    assert stack.query("prefect", "mlflow", "SELECT 1").returncode != 0


def test_no_secret_is_logged(stack):
    secrets = [value for key, value in stack.settings.items() if key.endswith(("_PASSWORD", "_SECRET_KEY"))]
    for service in (*SERVERS, *WORKERS):
        log = stack.log(service)
        assert log
        assert not [secret for secret in secrets if secret in log]
