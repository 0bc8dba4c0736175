"""Two processes are given the same pack: the one that comes second writes nothing over what the first has stored."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from mars_core.ranks import RankPair
from mars_core.training.calibration import CalibrationRun
from tasks.calibration import stored, train
from tasks.settings.data import DataConfig
from tasks.settings.study import StudyConfig
from tasks.storage.files import file_hash
from tasks.storage.folder import Revision
from tasks.study.plan import CalibrationPlan, PlannedPack, PlannedRun, RunSchedule
from tests.tasks.calibration.planned import planned_study

RUNS = tuple(PlannedRun(f"run{number}", RankPair(2, 2 + number), 0, RunSchedule(4, (2, 4))) for number in range(2))


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Trains the pack of one study folder as the worker of a name, doing something `meanwhile`; nothing is computed."""
    monkeypatch.setattr(train, "check_layers_are_used", lambda *_: None)
    monkeypatch.setattr(train, "machine_load", lambda *_: nullcontext())
    monkeypatch.setattr(train, "to_table", lambda rows: rows)
    monkeypatch.setattr(train.pq, "write_table", lambda rows, path: Path(path).write_text(rows.to_json()))
    monkeypatch.setattr(stored, "read_metrics", lambda path: {"step": (2, 4)} if json.loads(path.read_text()) else {})
    monkeypatch.setattr(train.tracking, "log_new_steps", lambda *_: True)
    monkeypatch.setattr(train.tracking, "end_child", lambda *_: None)
    monkeypatch.setattr(train, "curves", lambda rows: rows)

    def run(name: str, meanwhile) -> None:
        def trained(*_) -> SimpleNamespace:
            meanwhile()
            runs = tuple(CalibrationRun((), 1) for _ in RUNS)
            return SimpleNamespace(runs=runs)

        config = StudyConfig(study=str(tmp_path), model="model", data=DataConfig(train="train.json"))
        study = planned_study(config, Revision(tmp_path, 1), CalibrationPlan(RUNS, ()))
        study.inputs = SimpleNamespace(base_model=None)
        monkeypatch.setattr(train, "_begin", lambda study, base, run, *_: name)
        monkeypatch.setattr(train, "_rows", lambda *_: pd.DataFrame({"by": [name]}))
        monkeypatch.setattr(train, "_train", trained)
        train._train_and_store(study, PlannedPack(RUNS), RUNS, "parent", None)

    return run


def test_a_process_that_comes_second_writes_nothing(tmp_path, worker, capsys):
    worker("first", lambda: None)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    worker("second, thought dead", lambda: None)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert capsys.readouterr().err.count("another process was given it too") == len(RUNS)
    for run in RUNS:
        metrics, summary = stored.run_files(Revision(tmp_path, 1), [run])
        assert json.loads(summary.read_text())["metrics_sha256"] == file_hash(metrics)


def test_what_the_first_has_stored_in_part_is_stored_whole(tmp_path, worker):
    worker("first", lambda: None)
    metrics, summary = stored.run_files(Revision(tmp_path, 1), RUNS[:1])
    summary.unlink()  # it died between the two
    worker("second", lambda: None)
    assert "second" in metrics.read_text()
    assert json.loads(summary.read_text())["mlflow_run_id"] == "second"
    other, _ = stored.run_files(Revision(tmp_path, 1), RUNS[1:])
    assert "first" in other.read_text()
