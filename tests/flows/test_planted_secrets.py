"""Secrets of the environment, and one on the command line, are in nothing that a study leaves behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mlflow
import psutil
import pytest

from flows.stages import report_flow, search_flow
from tasks.settings.study import StudyConfig
from tasks.study.lock import OWNER, at_work_on
from tasks.tracking.runs import tracking_uri

PLANTED = "pl4nted-s3cret"
VARIABLES = (
    "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "PREFECT_API_AUTH_STRING", "PGPASSWORD", "GOOGLE_APPLICATION_CREDENTIALS", "OPENAI_API_KEY",
)  # fmt: skip


def holding(folder: Path) -> list[str]:
    """Files below a folder that hold the secret, in clear or as a part of something."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path.relative_to(folder)) for path in files if PLANTED.encode() in path.read_bytes()]


@pytest.fixture
def planted(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, PLANTED)


def test_stages_leave_no_secret_behind(copied: StudyConfig, planted, monkeypatch, capfd):
    """The search and the report are made anew: their files, MLflow's database and artifacts, and what is shown."""
    monkeypatch.setattr(sys, "argv", ["mars", "run", f"http://user:{PLANTED}@host/study.yaml"])
    revision = Path(copied.study) / "revisions" / "001"
    for name in ("choice.json", "report.html"):
        (revision / name).unlink()
    search_flow(copied)
    report_flow(copied)
    with at_work_on(Path(copied.study)):
        assert "***" in (Path(copied.study) / OWNER).read_text()
    assert holding(Path(copied.study)) == []
    client = mlflow.MlflowClient(tracking_uri(Path(copied.study)))
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert runs
    assert PLANTED not in repr([run.to_dictionary() for run in runs])
    shown = capfd.readouterr()
    assert PLANTED not in shown.out + shown.err


def test_the_search_for_secrets_finds_one(copied: StudyConfig):
    (Path(copied.study) / "revisions" / "001" / "x.json").write_text(f'{{"a": "{PLANTED}"}}')
    assert holding(Path(copied.study)) == ["revisions/001/x.json"]


def test_no_process_is_called_by_a_secret(planted):
    """What `ps` shows everybody on this machine, of this process and those it started."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    assert not [member for member in family if PLANTED in " ".join(member.cmdline())]
    assert os.environ["HF_TOKEN"] == PLANTED
