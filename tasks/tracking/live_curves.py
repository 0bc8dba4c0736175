"""Curves in MLflow while training runs. An outage of its server costs no training: what it missed is sent later."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.running.progress import show_message
from tasks.tracking import runs as tracking
from tasks.tracking.outage import TROUBLE, say_unrecorded


class LiveCurves:
    """Sends entries of the Trainer's log to an MLflow run as they come."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._waiting: list[Mapping[str, float]] = []
        self._times: list[int] = []  # of each: MLflow takes the same value at the same time for one, if it comes twice
        self._warned = False

    def log(self, entry: Mapping[str, float]) -> None:
        """Send an entry, and those that wait."""
        self._waiting.append({key: value for key, value in entry.items() if key != "epoch"})
        self._times.append(tracking.now())
        try:
            self._send()
        except TROUBLE as error:
            if not self._warned:
                show_message(f"note: MLflow cannot be reached, training goes on: {error}")
            self._warned = True

    def end(self) -> None:
        """Send what waits, for the last time: what MLflow does not take now is not recorded, which is said."""
        try:
            self._send()
        except TROUBLE as error:
            say_unrecorded(error)

    def _send(self) -> None:
        tracking.send_steps(self.run_id, self._waiting, times=self._times)
        self._waiting.clear()
        self._times.clear()
