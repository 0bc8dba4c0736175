"""The table of a trial as Markdown, to be pasted into an issue."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from mars_core.doctor.training import Check
from mars_core.markdown import markdown_table, plain

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


def machine(device: torch.device) -> str:
    """Device, processor and versions, in a line."""
    if device.type == "cuda":
        found = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        found = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return f"{found}; Python {platform.python_version()}, {versions}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def markdown(checks: Sequence[Check], device: torch.device) -> str:
    """The rows under a line that describes the machine."""
    header = ("weights", "check", "state", "found", "limit")
    rows = [(row.precision, row.check, row.state, plain(row.found), row.limit) for row in checks]
    return f"MARS trained on {machine(device)}.\n\n{markdown_table(header, rows)}"
