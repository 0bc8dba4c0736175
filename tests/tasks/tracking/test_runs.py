"""The MLflow store, a real one in SQLite."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from tasks.tracking import outage
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


@pytest.fixture
def quiet_outage(monkeypatch):
    """Nothing said or known of servers yet, and no pause between the questions."""
    monkeypatch.setattr(outage, "_said", set())
    monkeypatch.setattr(outage, "_answers", {})
    monkeypatch.setattr(outage, "WAIT_SECONDS", 0.0)


@pytest.mark.usefixtures("quiet_outage")
def test_a_run_that_was_deleted_in_mlflow_blocks_nothing(tmp_path, shared_store, capsys):
    with tracking.study_run(tmp_path / "study", 1, {}) as parent:
        child = tracking.begin_child(parent, "a", {}, {"mars.run_id": "a"})
        shared_store.delete_run(child)
        assert not tracking.is_tracked(child)
        tracking.log_steps(child, [{"step": 1, "loss": 2.0}])
        tracking.end_child(child)
        tracking.log_values_if_known(child, {"loss": 1.0})
    shared_store.delete_run(parent)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("MLflow does not record some of this study, which goes on all the same") == 1
    assert "restore it in MLflow's list of deleted runs" in said
    with tracking.study_run(tmp_path / "study", 1, {}) as again:
        assert again not in (parent, outage.UNTRACKED)


@pytest.mark.usefixtures("quiet_outage")
def test_an_experiment_that_was_deleted_in_mlflow_is_restored(tmp_path, shared_store, capsys):
    with tracking.study_run(tmp_path / "study", 1, {}) as parent:
        experiment = shared_store.get_run(parent).info.experiment_id
    shared_store.delete_experiment(experiment)
    with tracking.study_run(tmp_path / "study", 1, {}) as again:
        tracking.log_values(again, {"x": 1.0})
    assert shared_store.get_run(again).data.metrics["x"] == 1.0
    assert shared_store.get_experiment(experiment).lifecycle_stage == "active"
    assert "was deleted in MLflow; it is restored" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("quiet_outage")
def test_a_foreign_run_id_in_the_environment_is_left_aside(tmp_path, shared_store, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with tracking.study_run(tmp_path / "study", 1, {}) as parent:
        assert shared_store.get_run(parent).info.run_id == parent != "0" * 32
    assert "MLFLOW_RUN_ID" in capsys.readouterr().err


@pytest.mark.usefixtures("quiet_outage")
def test_a_server_that_is_down_for_good_leaves_the_study_its_own_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")  # nothing listens there
    with tracking.study_run(tmp_path / "study", 1, {"model": "m"}) as parent:
        tracking.log_values(parent, {"x": 1.0})
    own = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'study' / 'mlflow.db'}")
    assert own.get_run(parent).data.metrics["x"] == 1.0
    said = " ".join(capsys.readouterr().err.split())
    assert "does not answer: this command is recorded in the study's own store" in said
    assert "secret" not in said


@pytest.mark.usefixtures("quiet_outage")
def test_a_server_that_goes_down_meanwhile_costs_the_record_and_not_the_work(tmp_path, shared_store, monkeypatch):
    def gone(*arguments, **options):
        raise MlflowException("API request failed: connection refused")

    done = []
    with tracking.study_run(tmp_path / "study", 1, {}) as parent:
        for name in ("log_batch", "create_run", "get_run", "set_terminated", "search_runs", "log_artifact"):
            monkeypatch.setattr(mlflow.MlflowClient, name, gone)
        with tracking.child_run(parent, "final", {}, {}) as run:
            assert run == outage.UNTRACKED
            tracking.log_values(run, {"x": 1.0})
            tracking.log_file(run, tmp_path)
            done.append(run)
        assert tracking.begin_child(parent, "a", {}, {}) == outage.UNTRACKED
        assert not tracking.log_new_steps(parent, [{"step": 1, "x": 1.0}], "x")  # so that they are sent again
    assert done
    with pytest.raises(ZeroDivisionError), tracking.study_run(tmp_path / "study", 1, {}):  # the work's own errors count
        raise ZeroDivisionError
