"""The machine's load beside the curves of MLflow runs, in a real SQLite store."""

from __future__ import annotations

import os
import time
from pathlib import Path

import mlflow
import pytest

from tasks.tracking.machine_load import average_seconds, machine_load
from tests.conftest import free_port

CPU = "system/cpu_utilization_percentage"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts into the working directory
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def test_every_run_of_a_pack_gets_the_same_curve(client):
    runs = [client.create_run("0").info.run_id for _ in range(2)]
    with machine_load(runs):
        end = time.monotonic() + 3.5
        while time.monotonic() < end:  # keeps one core busy
            pass
    first, second = ([(p.timestamp, p.step, p.value) for p in client.get_metric_history(run, CPU)] for run in runs)
    assert first == second
    steps = [step for _, step, _ in first]
    assert steps == sorted(set(steps))  # seconds since the run began
    assert len(steps) >= 3
    # One core was kept busy: at least half of its time, on a machine that has other work, too.
    assert max(value for _, _, value in first) > 50 / (os.cpu_count() or 1)


def test_a_run_that_ends_at_once_has_a_point(client):
    run = client.create_run("0").info.run_id
    with machine_load([run]):
        pass
    assert len(client.get_metric_history(run, CPU)) == 1
    assert len(client.get_metric_history(run, "system/system_memory_usage_percentage")) == 1


def test_an_outage_costs_nothing_but_the_curve(client, capsys):
    mlflow.set_tracking_uri(f"http://127.0.0.1:{free_port()}")
    with machine_load(["a", "b"]):
        done = True
    assert done
    assert capsys.readouterr().err.count("cannot be sent to MLflow") == 1


def test_long_runs_have_few_points():
    assert [average_seconds(elapsed) for elapsed in (0, 100, 1000, 86400)] == [1, 1, 10, 60]
