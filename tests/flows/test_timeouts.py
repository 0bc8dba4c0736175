"""Training that takes longer than the study allows: ended, kept, and gone on with; real training in this process."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from flows.stages import calibrate_flow, finetune_flow
from mars_core.models.lora import RankPair
from tasks.calibrate import plan_calibration
from tasks.config import FinalConfig, StudyConfig, TimeoutConfig, read_study
from tasks.finetune import final_folder, final_inputs
from tasks.revision import current_revision, identity, open_revision
from tasks.store import Revision
from tasks.tracking import experiment_name, tracking_uri

PAIR = RankPair(2, 2)
SECONDS = 15


def within(config: StudyConfig, **hours: float) -> StudyConfig:
    return config.model_copy(update={"timeouts": TimeoutConfig(**hours)})


def statuses(config: StudyConfig, kind: str) -> Counter[str]:
    folder = Path(config.study)
    client = mlflow.MlflowClient(tracking_uri(folder))
    experiment = client.get_experiment_by_name(experiment_name(folder)).experiment_id
    return Counter(run.info.status for run in client.search_runs([experiment], f"tags.`mars.kind` = '{kind}'"))


def test_a_time_limit_is_no_part_of_what_identifies_results(study):
    plain = read_study(study)
    limited = within(plain, calibration_pack_hours=1, final_run_hours=2, evaluation_hours=3)
    assert identity(limited) == identity(plain)
    assert plan_calibration(limited).inputs_hash == plan_calibration(plain).inputs_hash
    assert final_inputs(limited, PAIR) == final_inputs(plain, PAIR)


@pytest.mark.slow
def test_a_pack_that_takes_too_long_is_ended_and_gone_on_with(study):
    """Forty runs of eight steps take many times the limit; its first checkpoint comes well before it."""
    config = read_study(study)
    long = config.model_copy(
        update={"calibration": config.calibration.model_copy(update={"seeds": tuple(range(10)), "parallel": 1})}
    )
    state = calibrate_flow(within(long, calibration_pack_hours=SECONDS / 3600), return_state=True)
    assert (state.name, state.type) == ("TimedOut", "FAILED")
    assert "timeouts.calibration_pack_hours" in state.message
    assert statuses(long, "calibration") == {"KILLED": 40}
    assert statuses(long, "study") == {"FAILED": 1}
    folder = Revision(Path(long.study), 1).path("calibration")
    (kept,) = folder.glob("state/*/state.safetensors")
    assert not list(folder.glob("*.parquet"))
    written = kept.stat().st_mtime_ns

    calibrate_flow(long)
    assert statuses(long, "calibration") == {"KILLED": 40, "FINISHED": 40}
    assert not kept.exists()
    rows = pd.concat([pd.read_parquet(file) for file in folder.glob("*.parquet")])
    assert (rows.groupby("run_id").step.apply(list).map(lambda steps: steps == [1, 2, 3, 4, 6, 8])).all()
    assert rows.run_id.nunique() == 40
    assert written


@pytest.mark.slow
def test_a_final_run_that_takes_too_long_is_ended_and_gone_on_with(study):
    config = read_study(study)
    long = config.model_copy(update={"final": FinalConfig(epochs=20)})
    open_revision(long, new=False)
    state = finetune_flow(within(long, final_run_hours=SECONDS / 3600), 2, 2, return_state=True)
    assert (state.name, state.type) == ("TimedOut", "FAILED")
    assert "timeouts.final_run_hours" in state.message
    assert statuses(long, "final") == {"FAILED": 1}
    revision = current_revision(long)
    checkpoints = sorted(final_folder(revision, PAIR).glob("checkpoints-*/checkpoint-*"))
    assert checkpoints
    reached = max(int(path.name.partition("-")[2]) for path in checkpoints)

    finetune_flow(long, 2, 2)
    assert statuses(long, "final") == {"FAILED": 1, "FINISHED": 1}
    record = json.loads((final_folder(revision, PAIR) / "training.json").read_text())
    assert record["steps"] == 160
    logged = mlflow.MlflowClient(tracking_uri(Path(long.study))).get_metric_history(record["mlflow_run_id"], "loss")
    assert min(point.step for point in logged) > reached  # nothing before the checkpoint was trained again
