"""Runs that MLflow did not hear the end of: the end of the calibration sends it, from the metrics that were stored."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest

from mars_core.ranks import RankPair
from tasks.calibration import open_runs
from tasks.calibration.curves import curves
from tasks.calibration.stored import run_files
from tasks.settings.data import DataConfig
from tasks.settings.study import StudyConfig
from tasks.storage.files import write_json
from tasks.storage.folder import Revision
from tasks.study.plan import CalibrationPlan, PlannedRun, RunSchedule
from tasks.tracking import runs as tracking
from tests.tasks.calibration.planned import planned_study

RUN = PlannedRun("abc", RankPair(2, 4), 0, RunSchedule(4, (1, 2, 4)))
ROWS = pd.DataFrame(
    {
        "step": [1, 2, 4],
        **{name: [3.0, 2.0, 1.0] for name in ("train_loss", "val_loss", "val_perplexity", "val_accuracy", "lr")},
        **{name: [1.0, 1.0, 1.0] for name in ("grad_norm_me", "grad_norm_llm")},
        "val_objective": [None, None, None],
    }
)


@pytest.mark.parametrize(("diverged_at", "status"), [(None, "FINISHED"), (4, "FAILED")])
def test_a_run_gets_the_checkpoints_that_mlflow_missed_and_ends(tmp_path, monkeypatch, diverged_at, status):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(open_runs, "read_metrics", lambda path: ROWS)
    config = StudyConfig(study=str(tmp_path), model="model", data=DataConfig(train="train.json"))
    study = planned_study(config, Revision(tmp_path, 1), CalibrationPlan((RUN,), ()))
    with tracking.study_run(tmp_path, 1, {}) as parent:
        tracked = tracking.begin_child(parent, RUN.name, {}, {"mars.kind": RUN.part})
        killed = tracking.begin_child(parent, "of a killed process", {}, {"mars.kind": RUN.part, "mars.run_id": "x"})
        tracking.log_new_steps(tracked, curves(ROWS[:1]), "val_loss")
        _, summary = run_files(study.revision, [RUN])
        write_json(summary, {"diverged_at": diverged_at, "mlflow_run_id": tracked})
        open_runs.end_open_runs(study, parent)
        client = mlflow.MlflowClient()
        history = client.get_metric_history(tracked, "val_loss")
        assert sorted((point.step, point.value) for point in history) == [(1, 3.0), (2, 2.0), (4, 1.0)]
        assert client.get_run(tracked).info.status == status
        assert client.get_run(killed).info.status == "KILLED"


def test_a_run_that_mlflow_still_misses_checkpoints_of_stays_open(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(open_runs, "read_metrics", lambda path: ROWS)
    monkeypatch.setattr(tracking, "log_new_steps", lambda *_: False)
    config = StudyConfig(study=str(tmp_path), model="model", data=DataConfig(train="train.json"))
    study = planned_study(config, Revision(tmp_path, 1), CalibrationPlan((RUN,), ()))
    with tracking.study_run(tmp_path, 1, {}) as parent:
        tracked = tracking.begin_child(parent, RUN.name, {}, {"mars.kind": RUN.part})
        _, summary = run_files(study.revision, [RUN])
        write_json(summary, {"diverged_at": None, "mlflow_run_id": tracked})
        open_runs.end_open_runs(study, parent)
        assert mlflow.MlflowClient().get_run(tracked).info.status == "RUNNING"
