from __future__ import annotations

import pytest

from tasks.tracking.links import TRAINING_VIEW, mlflow_url, prefect_tags


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("http://127.0.0.1:5000", f"http://127.0.0.1:5000/#/experiments/3/runs/abc?{TRAINING_VIEW}"),
        ("https://host/mlflow/", f"https://host/mlflow/#/experiments/3/runs/abc?{TRAINING_VIEW}"),
        # artifacts hold no passwords
        ("http://name:secret@host:5000", f"http://host:5000/#/experiments/3/runs/abc?{TRAINING_VIEW}"),
        ("sqlite:////home/me/study/mlflow.db", None),
    ],
)
def test_address_of_a_run(uri, url):
    assert mlflow_url(uri, "3", "abc") == url


def test_address_of_a_file_among_a_runs_artifacts():
    url = mlflow_url("http://127.0.0.1:5000", "3", "abc", "final runs/report.html")
    page = "#/experiments/3/runs/abc/artifacts/final%20runs/report.html"
    assert url == f"http://127.0.0.1:5000/{page}?{TRAINING_VIEW}"


def test_no_tags_outside_a_flow_run():
    assert prefect_tags() == {}


def test_the_address_for_browsers_wins(monkeypatch):
    monkeypatch.setenv("MARS_MLFLOW_UI", "https://mlflow.example.org")
    url = mlflow_url("http://mlflow-server:5000", "1", "abc")
    assert url == f"https://mlflow.example.org/#/experiments/1/runs/abc?{TRAINING_VIEW}"
