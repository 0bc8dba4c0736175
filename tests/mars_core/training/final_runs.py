"""Final runs from one mapping of arguments, so that a test changes only what it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from mars_core.training.finetune import FinalRun, FinalSettings, Listeners, Samples, finetune


def run_of(wrapped: nn.Module, arguments: Mapping[str, Any]) -> FinalRun:
    """`finetune` with the fields of its records among `arguments`."""
    left = dict(arguments)
    samples, settings, listeners = (
        kind(**{one.name: left.pop(one.name) for one in fields(kind) if one.name in left})
        for kind in (Samples, FinalSettings, Listeners)
    )
    return finetune(wrapped, samples, settings, listeners=listeners, **left)
