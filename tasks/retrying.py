"""Retries for tasks whose only likely passing fault is the disk or a server: never for training itself."""

from __future__ import annotations

from typing import Any

from prefect.states import State

DELAYS_SECONDS = [1, 10]


def _is_io_error(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether a task failed with an OSError (disk, network); anything else would fail again."""
    return isinstance(state.data, OSError)


IO_RETRIES: dict[str, Any] = {
    "retries": len(DELAYS_SECONDS),
    "retry_delay_seconds": DELAYS_SECONDS,
    "retry_condition_fn": _is_io_error,
}
