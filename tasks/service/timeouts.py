"""Time limits of training: Prefect's task timeouts, with a message that names the setting.

A limit counts from when training begins: waiting for a worker or for the device's slot is no part of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.task_engine import TaskRunTimeoutError

P = ParamSpec("P")
R = TypeVar("R")


class TookTooLong(TimeoutError):  # noqa: N818 - reads as the fact it states
    """Training was ended because it took longer than the study allows. Prefect shows its flow runs as TimedOut."""


def bounded(task: Task[P, R], hours: float | None, setting: str) -> Callable[P, R]:
    """The task, ended once it has run for so many hours; None: as long as it takes.

    Prefect interrupts the main thread between two steps of Python, so an operation under way (a forward pass, a
    download) is finished first.

    Args:
        task: what is bounded; called as it is.
        hours: the limit.
        setting: name of the setting that the limit comes from, for the message.
    """
    if hours is None:
        return task
    limited = task.with_options(timeout_seconds=hours * 3600)

    @functools.wraps(task.fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return cast(R, cast(Any, limited)(*args, **kwargs))
        except TaskRunTimeoutError as error:
            raise TookTooLong(
                f"{task.name} was ended: it took longer than {setting} = {hours:g} hours. What it had saved is kept: "
                "raise the limit (or leave it out) and start again to go on from there"
            ) from error

    return call
