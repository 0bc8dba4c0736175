"""Where runs are tracked: each study in its own store, unless the user names one."""

from __future__ import annotations

import mlflow
import pytest

from tasks.tracking import runs as tracking


@pytest.fixture(autouse=True)
def no_store_of_the_users_own(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_two_studies_of_one_process_have_a_store_each_with_its_artifacts(tmp_path):
    for name in ("one", "two"):
        study = tmp_path / name / "study"
        with tracking.study_run(study, 1, {}) as run:
            uri = mlflow.get_artifact_uri()
            assert mlflow.MlflowClient().get_run(run).info.run_id == run
        assert (study / "mlflow.db").is_file()
        assert uri.startswith((study / "mlartifacts").as_uri())


def test_the_users_store_wins(tmp_path, monkeypatch):
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared)
    for name in ("one", "two"):
        assert tracking.tracking_uri(tmp_path / name) == shared
        tracking.use_store(tmp_path / name)
        assert mlflow.get_tracking_uri() == shared


def test_a_password_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example.org/path")
    assert tracking.shown_uri(tmp_path) == "https://user:***@mlflow.example.org/path"
