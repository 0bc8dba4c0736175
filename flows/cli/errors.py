"""Turn errors into one clear message and an exit code: 2 for a caller's mistake, 1 for anything else."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

P = ParamSpec("P")
R = TypeVar("R")

CALLERS_MISTAKE = 2
FAILURE = 1
DEBUG_VARIABLE = "MARS_DEBUG"


def one_message(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that an error prints one message; a traceback only under --debug."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except typer.Exit:  # click's own way out is a RuntimeError
            raise
        except ValueError as error:
            raise _exit(error, CALLERS_MISTAKE) from error
        except (OSError, RuntimeError) as error:
            raise _exit(error, FAILURE) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("interrupted: run the same command again to go on where it stopped")
            raise typer.Exit(130) from error

    return wrapped


def _exit(error: Exception, code: int) -> Exception:
    if os.environ.get(DEBUG_VARIABLE):
        return error
    Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(str(error), style="default"))
    return typer.Exit(code)
