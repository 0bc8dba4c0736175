"""Runs read from a real MLflow store: which ones count, and what is said of the others."""

from __future__ import annotations

import math
import shutil
import time

import mlflow
import pytest
from mlflow.entities import Metric

from tasks.importing.mlflow_runs import read_mlflow_runs
from tasks.importing.runs import tracking_uri_of

NAMES = {"r_me": "lora_r_vision", "r_llm": "lora_r_text"}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store without runs, made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path, empty_store):
    """A store of its own for each test, with one experiment."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    return uri, client, client.create_experiment("grid", artifact_location=(tmp_path / "artifacts").as_uri())


def log(store, params, losses, status="FINISHED", tags=None, metric="eval/loss"):
    """One run; `losses` by step."""
    _, client, experiment = store
    run = client.create_run(experiment, tags=tags or {}, run_name=f"run-{params}").info.run_id
    for key, value in params.items():
        client.log_param(run, key, value)
    now = int(time.time() * 1000)
    client.log_batch(run, [Metric(metric, loss, now, step) for step, loss in losses.items()])
    client.set_terminated(run, status)
    return run


def read(store, **options):
    return read_mlflow_runs(store[0], "grid", NAMES, **{"metric": "eval/loss"} | options)


def test_learning_rates_come_along_where_they_were_logged(store):
    _, client, _ = store
    run = log(store, {"lora_r_vision": 8, "lora_r_text": 16}, {8: 2.0, 16: 1.5})
    assert "lr" not in read(store).rows.columns
    client.log_metric(run, "rate", 1e-3, step=8)
    client.log_metric(run, "rate", 0.0, step=16)
    named = read_mlflow_runs(store[0], "grid", NAMES | {"lr": "rate"}, metric="eval/loss")
    assert named.rows["lr"].tolist() == [1e-3, 0.0]


def test_several_runs_of_a_pair_are_seeds_and_nested_runs_count(store):
    parent = log(store, {"model": "m"}, {})
    pair = {"lora_r_vision": 8, "lora_r_text": 16}
    for _ in range(2):
        log(store, pair, {8: 2.0, 16: 1.5}, tags={"mlflow.parentRunId": parent})
    log(store, pair | {"seed": 7}, {8: 2.1})
    found = read(store)
    assert found.rows.groupby("run_id", sort=False)["seed"].first().tolist() == ["0", "1", "7"]
    assert found.rows[["r_me", "r_llm"]].drop_duplicates().to_numpy().tolist() == [["8", "16"]]
    assert found.rows["loss"].tolist() == [2.0, 1.5, 2.0, 1.5, 2.1]
    assert any("1 runs without" in note for note in found.notes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_failed_diverged_and_unmeasured_runs_are_left_out_and_said(store, value):
    pair = {"lora_r_vision": 8, "lora_r_text": 8}
    good = log(store, pair, {8: 2.0})
    log(store, pair, {8: 1.0}, status="FAILED")
    log(store, pair, {8: 2.0, 16: value})
    log(store, pair, {8: 2.0}, metric="train/loss")
    found = read(store)
    assert set(found.rows["run_id"]) == {good}
    notes = " ".join(found.notes)
    assert "is FAILED" in notes
    assert "diverged at step 16" in notes
    assert "has no metric 'eval/loss'" in notes


def test_the_last_value_of_a_step_counts_where_a_run_was_resumed(store):
    run = log(store, {"lora_r_vision": 8, "lora_r_text": 8}, {8: 2.0, 16: 9.0})
    store[1].log_metric(run, "eval/loss", 1.5, timestamp=int(time.time() * 1000) + 5000, step=16)
    assert read(store).rows["loss"].tolist() == [2.0, 1.5]


def test_long_histories_and_many_runs_come_page_by_page(store, monkeypatch):
    monkeypatch.setattr("tasks.importing.mlflow_runs.PAGE", 2)
    monkeypatch.setattr("mlflow.tracking._tracking_service.client.GET_METRIC_HISTORY_MAX_RESULTS", 3)
    for rank in (4, 8, 16, 32, 64):
        log(store, {"lora_r_vision": rank, "lora_r_text": rank}, {step: 2.0 / step for step in range(1, 8)})
    found = read(store)
    assert found.rows.groupby("run_id").size().tolist() == [7] * 5


def test_parameters_that_differ_between_runs_are_said(store):
    for rank, rate in ((4, 1e-4), (8, 2e-4)):
        log(store, {"lora_r_vision": rank, "lora_r_text": 4, "learning_rate": rate, "epochs": 1}, {8: 2.0})
    assert any("differ in learning_rate:" in note for note in read(store).notes)
    assert len(read(store, filter_string="params.learning_rate = '0.0001'").rows) == 1


def test_runs_of_several_revisions_are_not_mixed(store):
    for revision in "12":
        log(store, {"lora_r_vision": 4, "lora_r_text": 4}, {8: 2.0}, tags={"mars.revision": revision})
    with pytest.raises(ValueError, match="revisions 1, 2"):
        read(store)


def test_what_cannot_be_read_says_what_is_there(store, tmp_path):
    log(store, {"rank_v": 4, "rank_t": 4}, {8: 2.0})
    with pytest.raises(ValueError, match=r"has parameters \['rank_t', 'rank_v'\] and metrics \['eval/loss'\]"):
        read(store)
    with pytest.raises(ValueError, match=r"no experiment 'else'.*'grid'"):
        read_mlflow_runs(store[0], "else", NAMES)
    with pytest.raises(ValueError, match="Invalid"):
        read(store, filter_string="this is no filter")
    with pytest.raises(ValueError, match="there is no database"):
        read_mlflow_runs(f"sqlite:///{tmp_path / 'absent.db'}", None, NAMES)
    assert not (tmp_path / "absent.db").exists()


def test_the_only_experiment_with_runs_needs_no_name(store):
    log(store, {"lora_r_vision": 4, "lora_r_text": 4}, {8: 2.0})
    assert read_mlflow_runs(store[0], None, NAMES, metric="eval/loss").experiment == "grid"
    other = store[1].create_experiment("other")
    store[1].create_run(other)
    with pytest.raises(ValueError, match="2 experiments with runs"):
        read_mlflow_runs(store[0], None, NAMES)


def test_where_runs_lie(tmp_path):
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "t.csv").touch()
    assert tracking_uri_of(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri_of("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert tracking_uri_of(str(tmp_path / "t.csv")) is None
    for absent in (tmp_path / "x.csv", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="give a"):
            tracking_uri_of(str(absent))
