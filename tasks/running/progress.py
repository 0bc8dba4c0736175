"""Progress: bars on a terminal, plain lines without one, artifacts in the Prefect UI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tasks.running.addresses import printable

PROGRESS_KEY = "mars-progress"
SLOW_SECONDS = 5.0  # work that ends sooner needs no artifact
UPDATE_SECONDS = 10.0

console = Console(stderr=True)
# Silent unless a handler is set: workers send it to the Prefect UI (PREFECT_LOGGING_EXTRA_LOGGERS). It needs a level of
# its own, for the root logger's is WARNING; and the root's handlers would only repeat what the console shows.
logger = logging.getLogger("mars")
logger.setLevel(logging.INFO)
logger.propagate = False


def show_message(message: str) -> None:
    """Tell the user one line; of others' text in it, nothing is markup, and no password is shown."""
    shown = printable(message)
    console.print(shown, markup=False, highlight=False, soft_wrap=True)  # paths stay whole
    logger.info("%s", shown)


@contextmanager
def progress_bar(
    label: str, total: int, key: str = PROGRESS_KEY, after: float = SLOW_SECONDS
) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done, with the time left: here and, as `progress_artifact`, in the Prefect UI.

    The yielded function sets what is done.
    """
    with _console_bar(label, total) as advance, progress_artifact(key, label, total, after) as show:

        def report(done: int) -> None:
            advance(done)
            show(done)

        yield report


@contextmanager
def _console_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    if not console.is_terminal:
        started = perf_counter()
        yield lambda done: None
        show_message(f"{label}: done in {perf_counter() - started:.1f} s")
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def progress_artifact(key: str, what: str, total: int, after: float = 0.0) -> Iterator[Callable[[int], None]]:
    """Show in the Prefect UI how much of `total` is done, with the time left; outside a flow run, nothing.

    after: seconds that the work must have taken before it is shown at all.
    """
    if FlowRunContext.get() is None or total == 0:
        yield lambda done: None
        return
    shown = _Shown(key, what, total, perf_counter() + after)
    if not after:
        shown.show(0)
    yield shown.show


class _Shown:
    """A progress artifact, made when it is due and brought up to date now and then."""

    def __init__(self, key: str, what: str, total: int, due: float) -> None:
        self._key, self._what, self._total = key, what, total
        self._due = due
        self._artifact: UUID | None = None
        self._began = perf_counter()
        self._lost = False
        self._before: int | None = None  # what was done before, where a resumed run goes on

    def show(self, done: int) -> None:
        now = perf_counter()
        if done and self._before is None:
            self._before = done - 1
        last = done == self._total and self._artifact is not None
        if self._lost or (now < self._due and not last):
            return
        try:
            self._send(100.0 * done / self._total, f"{self._what}: {done} of {self._total}{self._time_left(done)}")
            self._due = now + UPDATE_SECONDS
        except (httpx.HTTPError, PrefectException) as error:  # training goes on without the server
            show_message(f"note: progress is no longer shown in the Prefect UI: {error}")
            self._lost = True

    def _send(self, percentage: float, description: str) -> None:
        if self._artifact is None:
            # A plain function's return value; inside a coroutine it would have to be awaited.
            self._artifact = cast(UUID, create_progress_artifact(percentage, key=self._key, description=description))
        else:
            update_progress_artifact(self._artifact, percentage, description=description)

    def _time_left(self, done: int) -> str:
        elapsed = perf_counter() - self._began
        if done == self._total:
            return f", done in {_duration(elapsed)}"
        here = done - (self._before or 0)
        return f", about {_duration(elapsed / here * (self._total - done))} left" if here else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
