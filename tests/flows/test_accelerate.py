"""`mars finetune --accelerate`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from tasks.storage.folder import Revision
from tasks.tracking.runs import tracking_uri


@pytest.mark.slow
def test_a_final_run_in_two_processes_leaves_what_one_in_one_does(copied, tmp_path):
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 2\n")
    study, two = str(tmp_path / "study.yaml"), str(tmp_path / "two.yaml")
    result = CliRunner().invoke(app, ["finetune", study, "--ranks", "4", "2", "--accelerate", two])
    assert result.exit_code == 0, result.output
    folder = Revision(Path(copied.study), 1).path("final", "me4-llm2")
    record = json.loads((folder / "training.json").read_text())
    assert record["processes"] == 2
    assert record["reload_difference"] <= 1e-5
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert not list(folder.glob("checkpoints-*"))
    client = mlflow.MlflowClient(tracking_uri(Path(copied.study)))
    run = client.get_run(record["mlflow_run_id"])
    assert run.data.metrics["processes"] == 2
    assert run.data.metrics["samples_per_second"] > 0
    logged = [entry["step"] for entry in record["history"] if "eval_loss" in entry]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "eval_loss")] == logged


def test_a_command_under_a_distributed_launcher_says_how_it_is_meant(study, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["finetune", str(study)])
    assert result.exit_code == 2
    assert "mars finetune STUDY --accelerate FILE" in " ".join(result.output.split())


def test_an_unusable_configuration_is_refused_before_anything_runs(study, tmp_path):
    (tmp_path / "three.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    result = CliRunner().invoke(app, ["finetune", str(study), "--accelerate", str(tmp_path / "three.yaml")])
    assert result.exit_code == 2
    assert "3 processes do not divide the batch of 8" in " ".join(result.output.split())
