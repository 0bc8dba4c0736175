"""Turn errors into one clear message and an exit code: 2 for a caller's mistake, 130 for Ctrl-C and SIGTERM, else 1."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from tasks.running.addresses import printable
from tasks.running.kept import kept_open

P = ParamSpec("P")
R = TypeVar("R")

CALLERS_MISTAKE = 2
FAILURE = 1
INTERRUPTED = 130
DEBUG_VARIABLE = "MARS_DEBUG"
KEPT = "what was finished is kept, training up to its last checkpoint; run the same command again to go on from there"


def one_message(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that an error prints one message; a traceback only under --debug."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        interrupts = _count_interrupts()
        try:
            with kept_open():  # a command reads its study's data and model once
                return command(*args, **kwargs)
        except typer.Exit:  # click's own way out is a RuntimeError
            raise
        except KeyboardInterrupt as error:
            raise interrupted(KEPT) from error
        except ValueError as error:
            raise _exit(error, CALLERS_MISTAKE) from error
        except Exception as error:
            # Libraries may turn a Ctrl-C into an error of their own.
            if interrupts:
                raise interrupted(KEPT) from error
            raise _exit(error, FAILURE) from error

    return wrapped


def _count_interrupts() -> list[int]:
    """A list that grows by one with every Ctrl-C from now on, and with every SIGTERM or SIGHUP, which end alike.

    Schedulers stop jobs with SIGTERM, and a closed terminal sends SIGHUP; what the user has set to be ignored stays so.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, note)
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, note)
    return seen


def interrupted(message: str) -> typer.Exit:
    """Say what an interrupted command leaves behind and how to go on; returns its way out."""
    Console(stderr=True, soft_wrap=True).print(f"interrupted: {message}", markup=False, highlight=False)
    return typer.Exit(INTERRUPTED)


def _exit(error: Exception, code: int) -> Exception:
    if os.environ.get(DEBUG_VARIABLE):
        return error
    message = printable(str(error) or type(error).__name__)
    Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(message, style="default"))
    return typer.Exit(code)
