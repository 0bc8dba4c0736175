"""Bring the local stack up and down; what was started is remembered in the stack's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks.running.child import path_safe
from tasks.running.progress import show_message
from tasks.service.stack.processes import Started, last_lines, port_taken_by, running, start, stop
from tasks.service.stack.services import HOST, Service, Stack, servers, workers
from tasks.storage.files import read_json, write_json

READY_SECONDS = 180.0
STATE = "stack.json"


def bring_up(stack: Stack, environment: Mapping[str, str]) -> list[Started]:
    """Start what does not run yet, wait until it works, and register the deployments; returns all processes.

    Raises:
        ValueError: a port is taken, or the folder holds a stack on other ports.
        RuntimeError: a part ended or did not get ready.
    """
    stack.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(stack.folder / "stack.lock"):
        known = _known(stack)
        _start_missing(stack, servers(stack), known, environment)
        _register(stack, environment)
        _start_missing(stack, workers(stack, environment.get("CUDA_VISIBLE_DEVICES")), known, environment)
        return list(known.values())


def bring_down(folder: Path) -> list[str]:
    """Stop what `bring_up` started in this folder, workers first; returns the names of what was running."""
    if not (folder / STATE).is_file():
        return []
    with FileLock(folder / "stack.lock"):
        processes = _processes(folder)
        stopped = [process.name for process in reversed(processes) if stop(process)]
        (folder / STATE).unlink()
    return stopped


def names_of_running(folder: Path) -> list[str]:
    """What runs of the stack in a folder."""
    if not (folder / STATE).is_file():
        return []
    return [process.name for process in _processes(folder) if running(process)]


def _start_missing(
    stack: Stack, services: Sequence[Service], known: dict[str, Started], environment: Mapping[str, str]
) -> None:
    for service in services:
        before = known.get(service.name)
        if before and running(before):
            show_message(f"{service.name}: running already")
            continue
        if before:
            show_message(f"{service.name}: had ended, is started again; its last words are in {before.log}")
        if service.port:
            _insist_on_free(service.name, service.port)
        log = stack.folder / "logs" / f"{service.name}.log"
        known[service.name] = start(service.name, service.command, {**environment, **service.environment}, log)
        _remember(stack, known)
    for service in services:
        _wait(service, known[service.name])


def _insist_on_free(name: str, port: int) -> None:
    if taken_by := port_taken_by(HOST, port):
        raise ValueError(
            f"port {port} of {HOST} is taken by {taken_by}: end it, or give {name} another port with "
            f"--{name}-port, for example --{name}-port {port + 1}"
        )


def _wait(service: Service, started: Started) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not service.ready():
        if running(started) is None:
            raise RuntimeError(f"{service.name} ended while starting; {started.log} ends with:\n{_words(started)}")
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{service.name} was not ready after {READY_SECONDS:.0f} s; {started.log} ends with:\n{_words(started)}"
            )
        time.sleep(0.5)
    show_message(f"{service.name}: ready")


def _words(started: Started) -> str:
    return last_lines(Path(started.log))


def _register(stack: Stack, environment: Mapping[str, str]) -> None:
    log = stack.folder / "logs" / "register.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "deployments.register"],
            env=path_safe({**environment, **stack.settings}),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the deployments could not be registered; {log} ends with:\n{last_lines(log)}")
    show_message("deployments: registered")


def _known(stack: Stack) -> dict[str, Started]:
    if not (stack.folder / STATE).is_file():
        return {}
    state = read_json(stack.folder / STATE)
    known = {process.name: process for process in _processes(stack.folder)}
    ports = {"prefect": stack.prefect_port, "mlflow": stack.mlflow_port}
    if state["ports"] != ports and any(map(running, known.values())):
        raise ValueError(
            f"the stack in {stack.folder} runs on ports {state['ports']}, {ports} were asked for: "
            "run `mars down` first, or give another --folder"
        )
    return known


def _processes(folder: Path) -> list[Started]:
    return [Started(**process) for process in read_json(folder / STATE)["processes"]]


def _remember(stack: Stack, known: Mapping[str, Started]) -> None:
    state: dict[str, Any] = {
        "ports": {"prefect": stack.prefect_port, "mlflow": stack.mlflow_port},
        "processes": [asdict(process) for process in known.values()],
    }
    write_json(stack.folder / STATE, state)


def default_folder() -> Path:
    """Where the stack's files lie unless told otherwise: MARS_STACK, else in the home folder."""
    return Path(os.environ.get("MARS_STACK", Path.home() / ".mars" / "stack"))
