"""The MLflow store, a real one in SQLite."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from tasks.tracking import runs as tracking


@pytest.fixture
def shared_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts into the working directory
    return mlflow.MlflowClient(uri)


def test_studies_of_one_name_share_no_runs(tmp_path, shared_store):
    parents = []
    for folder in (tmp_path / "a" / "study", tmp_path / "b" / "study"):
        with tracking.study_run(folder, 1, {"model": "m"}) as parent:
            parents.append(shared_store.get_run(parent))
    assert parents[0].info.run_id != parents[1].info.run_id
    assert parents[0].info.experiment_id != parents[1].info.experiment_id
    names = {experiment.tags.get("mars.study") for experiment in shared_store.search_experiments()}
    assert {str(tmp_path / "a" / "study"), str(tmp_path / "b" / "study")} <= names


def test_a_study_finds_its_parent_run_again(tmp_path, shared_store):
    with tracking.study_run(tmp_path / "study", 1, {"model": "m"}) as first:
        pass
    with tracking.study_run(tmp_path / "study", 1, {"model": "m"}) as again:
        pass
    assert again == first


def test_a_finished_run_that_is_made_again_from_the_same_inputs_is_tagged(tmp_path, shared_store):
    """Killed between the end of its MLflow run and the record of its stage: found by `benchmarks/kill_campaign.py`."""
    with tracking.study_run(tmp_path / "study", 1, {}) as parent:
        runs = []
        for inputs in ("a", "b", "a"):
            with tracking.child_run(parent, "final", {}, {tracking.INPUTS_TAG: inputs}) as run:
                runs.append(run)
    tagged = [tracking.SUPERSEDED_TAG in shared_store.get_run(run).data.tags for run in runs]
    assert tagged == [True, False, False]


def test_a_run_left_open_by_a_killed_process_is_closed_when_it_is_done_again(tmp_path, shared_store):
    with tracking.study_run(tmp_path / "study", 1, {}) as parent:
        experiment = shared_store.get_run(parent).info.experiment_id
        tags = {"mlflow.parentRunId": parent}
        left = shared_store.create_run(experiment, run_name="me2-llm2 seed0", tags=tags).info.run_id
        other = shared_store.create_run(experiment, run_name="me4-llm4 seed0", tags=tags).info.run_id
        with tracking.child_run(parent, "me2-llm2 seed0", {"r_me": 2}, {}) as done:
            pass
    assert shared_store.get_run(left).info.status == "KILLED"
    assert shared_store.get_run(other).info.status == "RUNNING"  # its process may well be alive
    assert shared_store.get_run(done).info.status == "FINISHED"
