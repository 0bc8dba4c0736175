"""System metrics of runs in a real MLflow store; the machine is asked by psutil, too."""

from __future__ import annotations

import time
from pathlib import Path

import mlflow
import psutil
import pytest

from tasks import machine_load as module
from tasks import tracking
from tasks.machine_load import PREFIX, machine_load


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A folder whose store is made once: making one takes seconds."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def store(study, monkeypatch) -> mlflow.MlflowClient:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.open_experiment(study)
    return mlflow.MlflowClient(tracking.tracking_uri(study))


def load_of(store: mlflow.MlflowClient, run: str) -> dict[str, float]:
    metrics = store.get_run(run).data.metrics
    return {name.removeprefix(PREFIX): value for name, value in metrics.items() if name.startswith(PREFIX)}


def test_runs_shorter_than_a_sample_have_metrics_parent_and_child_alike(study, store):
    with tracking.study_run(study, 1, {}) as parent, tracking.child_run(parent, "child", {}, {}) as child:
        time.sleep(0.2)
    memory = psutil.virtual_memory()
    for run in (parent, child):
        load = load_of(store, run)
        assert 0 <= load["cpu_utilization_percentage"] <= 100
        # A tenth of the memory may come or go between the two looks, on a machine that does other things.
        assert load["system_memory_usage_megabytes"] == pytest.approx(memory.used / 1e6, abs=0.1 * memory.total / 1e6)
        assert {"disk_usage_percentage", "network_receive_megabytes"} <= load.keys()


def test_every_run_of_a_pack_is_logged_to_by_one_watcher(study, store, monkeypatch):
    """Three runs, sampled every tenth of a second: each gets the mean of three samples, so no more than 10 in 3 s."""
    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.1)
    with tracking.study_run(study, 1, {}) as parent:
        runs = [tracking.begin_child(parent, f"run {number}", {}, {"number": str(number)}) for number in range(3)]
        with machine_load(runs):
            time.sleep(3)
    histories = [store.get_metric_history(run, f"{PREFIX}cpu_utilization_percentage") for run in runs]
    times = [[point.timestamp for point in history] for history in histories]
    assert 2 <= len(times[0]) <= 11  # the eleventh at the end
    assert len({len(one) for one in times}) == 1
    steps = [point.step for point in histories[0]]
    assert steps == sorted(steps)
    assert 2 <= steps[-1] <= 60  # seconds since the run began


def test_a_run_that_is_gone_on_with_goes_on_in_its_steps(study, store, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.1)
    with tracking.study_run(study, 1, {}) as parent:
        run = tracking.begin_child(parent, "gone on with", {}, {"number": "again"})
        for _ in range(2):
            with machine_load([run]):
                time.sleep(1.1)
    history = store.get_metric_history(run, f"{PREFIX}system_memory_usage_percentage")
    in_time = sorted(history, key=lambda point: point.timestamp)
    assert [point.step for point in in_time] == sorted(point.step for point in history)
    assert in_time[-1].step >= 2


def test_a_run_that_the_store_does_not_know_stops_no_training(study, store):
    with tracking.study_run(study, 1, {}), machine_load(["0" * 32]):
        pass
