"""The machine's load beside the curves of a run in MLflow: processor, memory, disk, network, and GPUs.

MLflow samples it by itself only for the one run that a process has active, and at one pace. A pack has many runs open,
and runs take from seconds to days: here a point is an average over a second at first, later over a hundredth of the
time gone by, a minute at most. So a short run has a curve, and a long one no flood of points.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from tasks.running.progress import show_message
from tasks.tracking.outage import UNTRACKED

SAMPLE_SECONDS = 1.0
SHARE_OF_THE_TIME = 0.01
LONGEST_AVERAGE_SECONDS = 60.0
# Points wait for each other: a pack of many runs must not keep the server busy.
SEND_SECONDS = 30.0
LAST_WORDS_SECONDS = 30.0  # a server that does not answer keeps no training waiting
MOST_PER_REQUEST = 1000  # MLflow's own limit
PREFIX = "system/"  # where MLflow's UI looks for them

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)


@contextmanager
def machine_load(runs: Sequence[str]) -> Iterator[None]:
    """Log this machine's load to these MLflow runs while the block runs.

    An outage of the MLflow server costs the block nothing: what cannot be sent is sent later, or is lost.
    """
    tracked = [run for run in runs if run != UNTRACKED]
    if not tracked:
        yield
        return
    recorder = _Recorder(tracked)
    recorder.start()
    try:
        yield
    finally:
        recorder.stop()


def average_seconds(elapsed: float) -> float:
    """Over how many seconds a point is averaged, so many seconds after the beginning."""
    return min(max(SAMPLE_SECONDS, SHARE_OF_THE_TIME * elapsed), LONGEST_AVERAGE_SECONDS)


@dataclass(frozen=True)
class _Point:
    """Averages by name, up to a time in milliseconds since 1970."""

    time: int
    averages: Mapping[str, float]


class _Recorder:
    """A thread that samples, averages and sends."""

    def __init__(self, runs: Sequence[str]) -> None:
        self._client = mlflow.MlflowClient()
        self._points: list[_Point] = []
        self._sent = dict.fromkeys(runs, 0)
        self._probes: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            runs[0]
        )  # knows what can be measured here; its own thread stays unused
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._record, name="machine-load", daemon=True)
        self._warned = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(LAST_WORDS_SECONDS)

    def _record(self) -> None:
        self._probes.collect_metrics()  # a processor's load is measured since the thread's last look: the first is none
        self._clear()
        started = averaged = sent = time.monotonic()
        while not self._ended.wait(SAMPLE_SECONDS):
            self._probes.collect_metrics()
            now = time.monotonic()
            if now - averaged >= average_seconds(now - started):
                self._take_point()
                averaged = now
            if now - sent >= SEND_SECONDS:
                self._send()
                sent = now
        self._end()

    def _end(self) -> None:
        if not self._points:
            self._probes.collect_metrics()
        if self._probes.monitors[0].metrics:  # samples since the last point
            self._take_point()
        self._send()

    def _take_point(self) -> None:
        self._points.append(_Point(int(time.time() * 1000), self._probes.aggregate_metrics()))
        self._clear()

    def _clear(self) -> None:
        for monitor in self._probes.monitors:
            monitor.clear_metrics()

    def _send(self) -> None:
        for run in self._sent:
            try:
                self._send_to(run)
            except MlflowException as error:
                if not self._warned:
                    show_message(f"note: the machine's load cannot be sent to MLflow: {error}")
                self._warned = True

    def _send_to(self, run: str) -> None:
        new = self._points[self._sent[run] :]
        begun = self._client.get_run(run).info.start_time  # so that a run that goes on has its steps go on
        metrics = [
            Metric(PREFIX + name, value, point.time, max(0, point.time - begun) // 1000)
            for point in new
            for name, value in point.averages.items()
        ]
        for start in range(0, len(metrics), MOST_PER_REQUEST):
            self._client.log_batch(run, metrics=metrics[start : start + MOST_PER_REQUEST])
        self._sent[run] += len(new)
