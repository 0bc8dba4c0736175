"""Progress bars on the console, and plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


def say(message: str) -> None:
    """Tell the user one line."""
    console.print(message, highlight=False, soft_wrap=True)  # paths stay whole


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
