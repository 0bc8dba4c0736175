"""Tracking never blocks work: what MLflow cannot record is said once, and the work goes on."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import ParamSpec, TypeVar

import requests
from mlflow.exceptions import MlflowException

from tasks.running.addresses import without_password
from tasks.running.progress import show_message

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")

UNTRACKED = "untracked"
"""Id of a run that MLflow could not open: nothing is logged to it."""

TROUBLE = (MlflowException, requests.RequestException)
TRIES, WAIT_SECONDS, TIMEOUT_SECONDS = 3, 2.0, 5.0

_said: set[str] = set()
_answers: dict[str, bool] = {}


def never_blocks(default: D) -> Callable[[Callable[P, R]], Callable[P, R | D]]:
    """Wrap a function whose first argument is a run's id: where MLflow fails, it says so and returns `default`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | D]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R | D:
            if args and args[0] == UNTRACKED:
                return default
            try:
                return function(*args, **kwargs)
            except TROUBLE as error:
                say_unrecorded(error)
                return default

        return wrapped

    return decorate


@contextmanager
def tracked_block(opened: AbstractContextManager[str]) -> Iterator[str]:
    """The run that a block is tracked in; UNTRACKED where MLflow cannot open it. Failing to end it blocks nothing."""
    try:
        run = opened.__enter__()
    except TROUBLE as error:
        say_unrecorded(error)
        yield UNTRACKED
        return
    try:
        yield run
    except BaseException:
        with suppress(*TROUBLE):
            opened.__exit__(*sys.exc_info())
        raise
    try:
        opened.__exit__(None, None, None)
    except TROUBLE as error:
        say_unrecorded(error)


def say_unrecorded(error: Exception) -> None:
    """Say once for each kind of trouble that some is not recorded, and how it can be where a run was deleted."""
    text = without_password(str(error))
    deleted = "active" in text or "deleted" in text
    key = f"{type(error).__name__} {deleted}"
    if key in _said:
        return
    _said.add(key)
    how = "; restore it in MLflow's list of deleted runs, and what comes later is recorded again" if deleted else ""
    show_message(f"note: MLflow does not record some of this study, which goes on all the same: {text[:300]}{how}")


def answers(uri: str) -> bool:
    """Whether a tracking server answers at all; a store that is a file or a database always counts as there.

    Asked once in a process, three times before it counts as down: MLflow's own client would try for minutes each time.
    """
    if not uri.startswith(("http://", "https://")):
        return True
    if uri not in _answers:
        _answers[uri] = any(_answers_now(uri, last=number == TRIES - 1) for number in range(TRIES))
        if not _answers[uri]:
            show_message(
                f"note: the MLflow server in MLFLOW_TRACKING_URI ({_shown(uri)}) does not answer: this command is "
                "recorded in the study's own store, mlflow.db in its folder, which `mlflow ui` can show"
            )
    return _answers[uri]


def known_down(uri: str) -> bool:
    """Whether a server was asked in this process and did not answer."""
    return _answers.get(uri) is False


def _answers_now(uri: str, *, last: bool) -> bool:
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_SECONDS, verify=_verified())
    except requests.ConnectionError:
        if not last:
            time.sleep(WAIT_SECONDS)
        return False
    except requests.RequestException:
        return True  # it is there, and slow or of its own mind: MLflow's client decides
    return True


def _verified() -> bool | str:
    """As MLflow's client checks certificates."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def _shown(uri: str) -> str:
    return uri.rpartition("@")[2]
