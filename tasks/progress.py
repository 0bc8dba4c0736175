"""Progress bars on the console, and plain lines where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
# Silent unless a handler is set: workers send it to the Prefect UI (PREFECT_LOGGING_EXTRA_LOGGERS).
logger = logging.getLogger("mars")


def say(message: str) -> None:
    """Tell the user one line."""
    console.print(message, highlight=False, soft_wrap=True)  # paths stay whole
    logger.info(message)


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with time elapsed and left; the yielded function sets how much of `total` is done."""
    if not console.is_terminal:
        started = time.perf_counter()
        yield lambda done: None
        say(f"{label}: done in {time.perf_counter() - started:.1f} s")
        return
    columns = (
        TextColumn("{task.description}"),
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
def progress_artifact(key: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show in the Prefect UI how much of `total` is done, with the time left; outside a flow run, nothing."""
    if FlowRunContext.get() is None or total == 0:
        yield lambda done: None
        return
    started = time.perf_counter()
    artifact = create_progress_artifact(0.0, key=key, description=f"{what}: 0 of {total}")

    def show(done: int) -> None:
        elapsed = time.perf_counter() - started
        description = f"{what}: {done} of {total}, {_time_left(elapsed, done, total)}"
        update_progress_artifact(artifact, 100.0 * done / total, description=description)

    yield show


def _time_left(elapsed: float, done: int, total: int) -> str:
    if done == total:
        return f"done in {_duration(elapsed)}"
    return f"about {_duration(elapsed / done * (total - done))} left" if done else "time left not known yet"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
