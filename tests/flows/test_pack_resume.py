"""A pack that is killed outright goes on from its last checkpoint, and its metrics are those of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from flows.calibrate import calibrate_flow
from flows.here import Here
from tasks.calibration import train as packs
from tasks.calibration.state import write_state
from tasks.inputs.opened import Inputs
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.study import read_study, write_study
from tasks.storage.folder import Revision, is_finished
from tasks.study.plan import plan_calibration
from tasks.tracking.runs import tracking_uri

MEASURED = ["r_me", "r_llm", "step", "train_loss", "val_loss", "val_accuracy", "lr", "grad_norm_me", "grad_norm_llm"]


def calibrate(study: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", "calibrate", str(study)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def metrics(folder: Path) -> pd.DataFrame:
    files = sorted(Revision(folder, 1).path("calibration").glob("*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files]).sort_values(MEASURED[:3]).reset_index(drop=True)


@pytest.mark.slow
def test_a_killed_pack_goes_on_and_loses_or_repeats_no_row(study):
    config = read_study(study)
    calibration = CalibrationConfig(ranks=(2, 4), samples=64, smallest_size=8, snapshots=True)
    folders = {name: str(Path(config.study).with_name(name)) for name in ("whole", "killed")}
    files = {}
    for name, folder in folders.items():
        files[name] = study.with_name(f"{name}.yaml")
        write_study(config.model_copy(update={"study": folder, "calibration": calibration}), files[name])
    whole = calibrate(files["whole"])
    assert whole.wait() == 0, whole.stdout.read()

    killed = calibrate(files["killed"])
    states = Revision(Path(folders["killed"]), 1).path("calibration", "state")
    deadline = time.monotonic() + 300
    while not list(states.glob("*/state.safetensors")):
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not list(states.parent.glob("*.parquet"))

    again = calibrate(files["killed"])
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert "going on with 1 unfinished packs of 4 runs" in output
    # Same adapter batches, same order of sums: the same numbers to the last bit.
    pd.testing.assert_frame_equal(metrics(Path(folders["killed"]))[MEASURED], metrics(Path(folders["whole"]))[MEASURED])
    assert not states.is_dir() or not list(states.iterdir())
    snapshots = list(states.parent.glob("snapshots/*/step-*/adapter_model.safetensors"))
    assert len(snapshots) == len(metrics(Path(folders["whole"])))

    client = mlflow.MlflowClient(tracking_uri(Path(folders["killed"])))
    for summary in states.parent.glob("*.json"):
        run = client.get_run(json.loads(summary.read_text())["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val_loss")]
        assert steps == sorted(set(steps)) == [1, 2, 3, 4, 6, 8]


def with_smallest(config, size):
    return config.model_copy(update={"calibration": config.calibration.model_copy(update={"smallest_size": size})})


@pytest.mark.slow
def test_a_pack_that_stopped_does_not_go_on_with_other_checkpoint_steps(study, monkeypatch, capsys):
    """Gone on with, its runs would lack the steps before the one that it stopped at."""
    config = read_study(study)

    def stop(folder, state):
        write_state(folder, state)
        raise InterruptedError("stopped by the test")

    monkeypatch.setattr(packs, "write_state", stop)
    with pytest.raises(InterruptedError):
        calibrate_flow(with_smallest(config, 32))  # steps 4, 6, 8
    monkeypatch.undo()
    revision = Revision(Path(config.study), 1)
    assert list(revision.path("calibration", "state").glob("*/state.safetensors"))
    calibrate_flow(with_smallest(config, 8))
    assert "starts anew" in capsys.readouterr().err
    steps = metrics(Path(config.study)).groupby(["r_me", "r_llm"])["step"].apply(list)
    assert steps.tolist() == [[1, 2, 3, 4, 6, 8]] * 4
    assert not list(revision.path("calibration", "state").iterdir())


def test_a_calibration_with_a_run_that_lacks_steps_is_not_finished(copied, monkeypatch):
    """Whoever trains the packs: what they leave is looked at before the stage is recorded."""
    monkeypatch.setattr(Here, "train_packs", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"4 of 4 calibration runs are missing or not measured at steps \[4, 6, 8\]"):
        calibrate_flow(with_smallest(copied, 32))
    revision = Revision(Path(copied.study), 1)
    assert not is_finished(revision, "calibrate", plan_calibration(Inputs(with_smallest(copied, 32))).inputs_hash)


@pytest.mark.slow
def test_the_predicted_time_is_near_the_time_taken(study):
    """Both are measured on this machine, minutes apart; half to twice leaves room for what else it does."""
    config = read_study(study)
    calibration = CalibrationConfig(ranks=(2, 4, 8), samples=64, smallest_size=32)
    write_study(config.model_copy(update={"calibration": calibration}), study)
    process = calibrate(study)
    assert process.wait() == 0, process.stdout.read()
    manifest = json.loads(Revision(Path(config.study), 1).manifest("calibrate").read_text())
    assert 0.5 < manifest["details"]["expected_seconds"] / manifest["details"]["seconds_of_expected_runs"] < 2
