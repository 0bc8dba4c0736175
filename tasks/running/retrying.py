"""Retries and timeouts of tasks that only read, write or send: never for training itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
from PIL import UnidentifiedImageError
from prefect.client.schemas.objects import State
from prefect.task_engine import TaskRunTimeoutError

DELAYS_SECONDS = [1, 10, 60]
# requests' errors are OSErrors; httpx has a tree of its own.
PASSING_FAULTS = (OSError, httpx.TransportError)


def _is_io_error(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether a task failed for the disk or the network; anything else would fail again.

    One that used up its own time would use it up again: single requests have shorter timeouts of their clients.
    """
    if isinstance(state.data, TaskRunTimeoutError):
        return False
    causes = list(_causes(state.data))
    named = any(isinstance(error, ValueError) for error in causes)
    return any(is_passing(error) and not (named and _is_of_a_decoder(error)) for error in causes)


def is_passing(error: BaseException) -> bool:
    """Whether an error may be gone the next time: the disk's or the network's, or of a server that is overloaded."""
    overloaded = isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error
    return overloaded or isinstance(error, PASSING_FAULTS)


def _is_of_a_decoder(error: BaseException) -> bool:
    """Whether it is PIL's on an image that is damaged: an OSError too, but no call of the system's that failed."""
    return type(error) in (OSError, UnidentifiedImageError) and isinstance(error, OSError) and error.errno is None


def _causes(error: Any) -> Iterator[BaseException]:
    # MLflow wraps what its connection raised.
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


IO_RETRIES: dict[str, Any] = {
    "retries": len(DELAYS_SECONDS),
    "retry_delay_seconds": DELAYS_SECONDS,
    "retry_condition_fn": _is_io_error,
}

# A few requests: a task that hangs longer has lost its server.
REQUESTS: dict[str, Any] = IO_RETRIES | {"timeout_seconds": 600}
# Files are sent (figures, an adapter), or something for each of hundreds of runs.
SENDING: dict[str, Any] = IO_RETRIES | {"timeout_seconds": 3600}
