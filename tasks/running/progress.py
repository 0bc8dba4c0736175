"""Progress: bars on a terminal, plain lines without one, artifacts in the Prefect UI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
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
LINE_SECONDS = 60.0  # between lines of a log without a terminal
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


class Advance:
    """What a block calls with how much it has done; `note`, such as the newest loss, is shown with it in logs."""

    def __init__(self, *shown: Callable[[int, str], None]) -> None:
        self._shown = shown
        self.note = ""

    def __call__(self, done: int) -> None:
        """So much is done."""
        for show in self._shown:
            show(done, self.note)


def noting(advance: Advance, log: Callable[[Mapping[str, float]], object]) -> Callable[[Mapping[str, float]], None]:
    """A listener to a Trainer's log that also keeps its newest loss as the note of `advance`."""

    def listen(entry: Mapping[str, float]) -> None:
        named = {"eval_loss": "validation loss", "loss": "loss"}
        found = next((f"{words} {entry[key]:.4f}" for key, words in named.items() if key in entry), None)
        if found is not None:
            advance.note = found
        log(entry)

    return listen


@contextmanager
def progress_bar(label: str, total: int, key: str = PROGRESS_KEY, after: float = SLOW_SECONDS) -> Iterator[Advance]:
    """Show how much of `total` is done, with the time left: here and, as `progress_artifact`, in the Prefect UI.

    On a terminal as a bar, else as a line a minute. The yielded `Advance` sets what is done.
    """
    with _console_bar(label, total) as advance, progress_artifact(key, label, total, after) as show:
        yield Advance(advance, lambda done, note: show(done))


@contextmanager
def _console_bar(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    if not console.is_terminal:
        lines = _Lines(label, total)
        yield lines.show
        show_message(f"{label}: done in {perf_counter() - lines.pace.began:.1f} s")
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
        yield lambda done, note: progress.update(task, completed=done)


class _Pace:
    """How fast work goes, what an earlier attempt did left aside."""

    def __init__(self, total: int) -> None:
        self.total, self.began = total, perf_counter()
        self._before: int | None = None  # what was done before, where a resumed run goes on

    def note(self, done: int) -> None:
        """Take notice of what is done."""
        if done and self._before is None:
            self._before = done - 1

    def time_left(self, done: int) -> str:
        """In words behind a comma; nothing where it cannot be told yet."""
        elapsed = perf_counter() - self.began
        if done == self.total:
            return f", done in {_duration(elapsed)}"
        here = done - (self._before or 0)
        return f", about {_duration(elapsed / here * (self.total - done))} left" if here else ""


class _Lines:
    """A line a minute in a log that no terminal shows."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self.pace = _Pace(total)
        self._due = perf_counter() + LINE_SECONDS

    def show(self, done: int, note: str) -> None:
        self.pace.note(done)
        if perf_counter() < self._due or done >= self.pace.total:
            return
        self._due = perf_counter() + LINE_SECONDS
        said = f", {note}" if note else ""
        show_message(f"{self._label}: {done} of {self.pace.total}{said}{self.pace.time_left(done)}")


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
        self._pace = _Pace(total)
        self._lost = False

    def show(self, done: int) -> None:
        now = perf_counter()
        self._pace.note(done)
        last = done == self._total and self._artifact is not None
        if self._lost or (now < self._due and not last):
            return
        try:
            self._send(100.0 * done / self._total, f"{self._what}: {done} of {self._total}{self._pace.time_left(done)}")
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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
