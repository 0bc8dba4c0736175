"""Prefect's temporary server, started so that Ctrl-C ends the command and not the server under it."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future


def start_temporary_server() -> None:
    """Start the server that Prefect would start at the first flow, unless another one is set.

    Ctrl-C goes to every process of a terminal's foreground job. A server that it ended could not be told any more that
    the run was interrupted, and Prefect would try for many seconds. Signals that a thread blocks stay blocked in the
    processes that it starts, while this process goes on hearing them in its main thread.
    """
    started: Future[None] = Future()
    threading.Thread(target=_start, args=(started,), daemon=True).start()
    started.result()


def _start(started: Future[None]) -> None:
    from prefect.client.orchestration import get_client

    try:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        get_client(sync_client=True)
    except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
        started.set_exception(error)
    else:
        started.set_result(None)
