"""What the local stack consists of: how each part is started, and when it is ready."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

HOST = "127.0.0.1"
# Prefect's own default keeps leases in memory: a restarted server would never give their slots back.
LEASE_STORAGE = "prefect.server.concurrency.lease_storage.filesystem"


@dataclass(frozen=True)
class Stack:
    """Where a stack keeps its files and which ports it takes."""

    folder: Path
    prefect_port: int
    mlflow_port: int

    @property
    def prefect_ui(self) -> str:
        """Address of the Prefect UI."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def prefect_api(self) -> str:
        """Address of the Prefect API."""
        return f"{self.prefect_ui}/api"

    @property
    def mlflow(self) -> str:
        """Address of the MLflow server and UI."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables with which commands and workers find the stack."""
        return {"PREFECT_API_URL": self.prefect_api, "MLFLOW_TRACKING_URI": self.mlflow}


@dataclass(frozen=True)
class Service:
    """A part of the stack. port: that it listens on. ready: whether it does its work by now."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    port: int | None = None


def servers(stack: Stack) -> list[Service]:
    """The Prefect and MLflow servers, each with its UI, on loopback and with SQLite files in the stack's folder."""
    prefect = Service(
        name="prefect",
        command=(
            *(sys.executable, "-m", "prefect", "server", "start"),
            *("--host", HOST, "--port", str(stack.prefect_port)),
        ),
        environment={
            "PREFECT_HOME": str(stack.folder / "prefect"),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{stack.folder / 'prefect.db'}",
            "PREFECT_API_URL": stack.prefect_api,
            "PREFECT_UI_API_URL": stack.prefect_api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Prefect's default lets any page in a browser of this machine start what it likes on the workers.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{stack.prefect_ui},http://localhost:{stack.prefect_port}",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE,
        },
        ready=lambda: _answers(f"{stack.prefect_api}/health"),
        port=stack.prefect_port,
    )
    mlflow = Service(
        name="mlflow",
        command=(
            *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(stack.mlflow_port)),
            *("--backend-store-uri", f"sqlite:///{stack.folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(stack.folder / "mlartifacts"), "--workers", "1"),
        ),
        environment={
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # judges of GenAI traces: eight more processes, 250 MB each
        },
        ready=lambda: _answers(f"{stack.mlflow}/health"),
        port=stack.mlflow_port,
    )
    return [prefect, mlflow]


def workers(stack: Stack, visible: str | None) -> list[Service]:
    """A coordinating worker, and one training worker per GPU; a single one where there is none.

    visible: what CUDA_VISIBLE_DEVICES says, None if it is not set.
    """
    gpus = visible_gpus(visible)
    training = [(f"worker-gpu-{gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus] or [("worker-gpu", {})]
    return [
        _worker(stack, "worker-cpu", "mars-cpu", (), {"CUDA_VISIBLE_DEVICES": ""}),  # the GPUs are the others'
        *(_worker(stack, name, "mars-gpu", ("--limit", "1"), only) for name, only in training),
    ]


def visible_gpus(visible: str | None) -> list[str]:
    """GPUs of this machine, each as CUDA_VISIBLE_DEVICES wants it."""
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _worker(stack: Stack, name: str, pool: str, options: tuple[str, ...], environment: Mapping[str, str]) -> Service:
    return Service(
        name=name,
        command=(
            *(sys.executable, "-m", "prefect", "worker", "start", "--type", "process"),
            *("--pool", pool, "--name", name, *options),
        ),
        environment={
            **stack.settings,
            "PREFECT_HOME": str(stack.folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # the server is on this machine: a free GPU need not wait for work
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **environment,
        },
        ready=lambda: _is_online(stack, pool, name),
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def _is_online(stack: Stack, pool: str, worker: str) -> bool:
    try:
        answer = httpx.post(f"{stack.prefect_api}/work_pools/{pool}/workers/filter", json={}, timeout=5)
    except httpx.TransportError:
        return False
    return answer.is_success and any(known["name"] == worker and known["status"] == "ONLINE" for known in answer.json())
