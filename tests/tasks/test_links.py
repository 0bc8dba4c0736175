from __future__ import annotations

import pytest

from tasks.links import mlflow_url, prefect_tags


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/#/experiments/3/runs/abc"),
        ("https://host/mlflow/", "https://host/mlflow/#/experiments/3/runs/abc"),
        ("http://name:secret@host:5000", "http://host:5000/#/experiments/3/runs/abc"),  # artifacts hold no passwords
        ("sqlite:////home/me/study/mlflow.db", None),
    ],
)
def test_address_of_a_run(uri, url):
    assert mlflow_url(uri, "3", "abc") == url


def test_no_tags_outside_a_flow_run():
    assert prefect_tags() == {}


def test_the_address_for_browsers_wins(monkeypatch):
    monkeypatch.setenv("MARS_MLFLOW_UI", "https://mlflow.example.org")
    assert mlflow_url("http://mlflow-server:5000", "1", "abc") == "https://mlflow.example.org/#/experiments/1/runs/abc"
