"""System metrics of MLflow runs: load of the machine that trains them, for one run or for a whole pack.

MLflow's own monitor watches one run, the one that is active, and sends nothing of a run shorter than its interval.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

# Sampling machine load more often than this tells nothing new about runs of seconds to hours.
SAMPLE_SECONDS = 5.0
PREFIX = "system/"
# A server that does not answer keeps no training waiting.
LAST_WORDS_SECONDS = 30.0


@contextmanager
def machine_load(runs: Sequence[str]) -> Iterator[None]:
    """Log this machine's load to MLflow runs as `system/...` while the block runs, and once at its end.

    Steps are seconds since a run began, so that a run that is gone on with goes on. The load is sampled every
    `SAMPLE_SECONDS`, and each run gets the mean of its interval: the more runs, the longer the intervals, so that a
    pack of many costs the server no more than one run does.
    """
    if not runs:
        yield
        return
    ended = threading.Event()
    arguments = (mlflow.MlflowClient(mlflow.get_tracking_uri()), tuple(runs), ended)
    thread = threading.Thread(target=_watch, args=arguments, name="machine-load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LAST_WORDS_SECONDS)


def _watch(client: mlflow.MlflowClient, runs: Sequence[str], ended: threading.Event) -> None:
    sampler = SystemMetricsMonitor(runs[0])  # never started: only its eyes are used
    sampler.collect_metrics()  # the first sample of a processor's load means nothing
    _forget(sampler)
    try:
        begun = {run: client.get_run(run).info.start_time / 1000 for run in runs}
    except MlflowException:
        return
    while True:
        for _ in runs:
            last = ended.wait(SAMPLE_SECONDS)
            sampler.collect_metrics()
            if last:
                break
        values = sampler.aggregate_metrics()
        _forget(sampler)
        for run in runs:
            _send(client, run, values, time.time(), begun[run])
        if last:
            return


def _forget(sampler: SystemMetricsMonitor) -> None:
    for monitor in sampler.monitors:
        monitor.clear_metrics()


def _send(client: mlflow.MlflowClient, run: str, values: dict[str, float], now: float, begun: float) -> None:
    step, milliseconds = max(0, round(now - begun)), int(now * 1000)
    metrics = [Metric(f"{PREFIX}{name}", float(value), milliseconds, step) for name, value in values.items()]
    try:
        client.log_batch(run, metrics=metrics)
    except MlflowException:  # the load of a moment is worth no complaint
        return
