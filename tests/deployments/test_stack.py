"""`mars up` and `mars down` on real servers, and what they register."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.deployments.conftest import Running, free_ports, mars, wait_until

pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[2]


def ports(stack: Running) -> tuple[str, ...]:
    prefect, mlflow = stack.ui.rpartition(":")[2], stack.mlflow.rpartition(":")[2]
    return ("--prefect-port", prefect, "--mlflow-port", mlflow, "--folder", str(stack.folder))


def test_up_again_changes_nothing(stack):
    before = (stack.folder / "stack.json").read_text()
    again = mars("up", *ports(stack), environment=stack.environment)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("running already") == 4
    assert (stack.folder / "stack.json").read_text() == before


def test_everything_listens_on_loopback_only(stack):
    parents = [psutil.Process(stack.process(name)) for name in ("prefect", "mlflow", "worker-cpu", "worker-gpu")]
    family = parents + [child for parent in parents for child in parent.children(recursive=True)]
    listening = {
        connection.laddr.ip
        for member in family
        for connection in member.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_part_that_died_is_reported_and_started_again(stack):
    died = stack.process("worker-cpu")
    os.kill(died, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(died), seconds=30)
    again = mars("up", *ports(stack), environment=stack.environment)
    assert again.returncode == 0, again.stderr
    assert "worker-cpu: had ended, is started again" in " ".join(again.stderr.split())
    assert psutil.pid_exists(stack.process("worker-cpu"))


def test_taken_port_is_named_with_who_and_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused = mars("up", "--prefect-port", str(port), "--folder", str(tmp_path / "stack"))
    message = " ".join(refused.stderr.split())
    assert refused.returncode == 2
    assert f"port {port}" in message
    assert f"process {os.getpid()}" in message
    assert "--prefect-port" in message
    assert not (tmp_path / "stack" / "stack.json").exists()


def test_interrupted_up_says_what_runs_and_how_to_stop_it(tmp_path):
    folder = tmp_path / "stack"
    prefect, mlflow = free_ports(2)
    numbers = ("--prefect-port", str(prefect), "--mlflow-port", str(mlflow))
    up = subprocess.Popen(
        [Path(sys.executable).with_name("mars"), "up", *numbers, "--folder", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # as the foreground job of a terminal, which hears Ctrl-C as a whole
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: (folder / "logs" / "mlflow.log").exists() and "mlflow" in (folder / "stack.json").read_text())
    os.killpg(up.pid, signal.SIGINT)
    _, said = up.communicate(timeout=60)
    assert up.returncode == 130, said
    assert f"prefect and mlflow keep running: `mars down --folder {folder}` stops them" in " ".join(said.split())
    stopped = mars("down", "--folder", str(folder))
    assert stopped.stdout == "stopped: mlflow, prefect\n"


def test_down_with_nothing_running_says_so(tmp_path):
    done = mars("down", "--folder", str(tmp_path / "none"))
    assert done.returncode == 0
    assert "nothing was running" in done.stdout


def registered(stack: Running) -> dict[str, dict[str, object]]:
    kept = (
        "entrypoint",
        "work_pool_name",
        "work_queue_name",
        "parameters",
        "job_variables",
        "parameter_openapi_schema",
    )
    found = stack.post("/deployments/filter")
    return {one["name"]: {key: one[key] for key in kept} | {"tags": sorted(one["tags"])} for one in found}


def test_prefect_yaml_says_the_same_as_the_code(stack):
    code = registered(stack)
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(deploy, cwd=ROOT, env=stack.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert registered(stack) == code
    assert {"study", "calibrate", "calibrate-pack", "fit-and-search", "final-finetune", "evaluate"} <= code.keys()


def test_registering_again_keeps_what_people_set(stack):
    pool = "/work_pools/mars-gpu"
    queues = {queue["name"]: queue for queue in stack.post(f"{pool}/queues/filter")}
    assert [queues[name]["priority"] for name in ("final", "evaluate", "calibration")] == [1, 2, 3]
    before = registered(stack)
    again = [sys.executable, "-m", "deployments.register"]
    done = subprocess.run(again, env=stack.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert registered(stack) == before
    assert {queue["id"] for queue in stack.post(f"{pool}/queues/filter")} == {queue["id"] for queue in queues.values()}


def test_registering_needs_a_server(tmp_path):
    alone = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    alone["PREFECT_HOME"] = str(tmp_path)
    command = [sys.executable, "-m", "deployments.register"]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mars up" in done.stderr
