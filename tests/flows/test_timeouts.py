"""Training that takes longer than the study allows: ended, kept, and gone on with; real training in this process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from flows.calibrate import calibrate_flow
from flows.stages import finetune_flow
from mars_core.ranks import RankPair
from tasks.final.arm import Arm
from tasks.final.pair import final_folder
from tasks.final.run import run_inputs
from tasks.inputs.opened import Inputs
from tasks.settings.baselines import of_pair
from tasks.settings.final import FinalConfig, TimeoutConfig
from tasks.settings.study import StudyConfig, read_study
from tasks.storage.folder import Revision
from tasks.study.plan import plan_calibration
from tasks.study.revision import identity, open_revision
from tasks.tracking.runs import experiment_name, tracking_uri

PAIR = RankPair(2, 2)
MARK = 123.0


def within(config: StudyConfig, **hours: float) -> StudyConfig:
    return config.model_copy(update={"timeouts": TimeoutConfig(**hours)})


def statuses(config: StudyConfig, kind: str) -> Counter[str]:
    folder = Path(config.study)
    client = mlflow.MlflowClient(tracking_uri(folder))
    experiment = client.get_experiment_by_name(experiment_name(folder)).experiment_id
    return Counter(run.info.status for run in client.search_runs([experiment], f"tags.`mars.kind` = '{kind}'"))


def ended_with_a_checkpoint(train: Callable[[float], Any], saved: Callable[[], object]) -> tuple[Any, int]:
    """Train under longer and longer limits until one ends it after its first checkpoint; its state, and the attempts.

    How long a checkpoint takes depends on the machine; training to the end takes several times as long.
    """
    for attempt, seconds in enumerate((8, 16, 32, 64), start=1):
        state = train(seconds / 3600)
        assert (state.name, state.type) == ("TimedOut", "FAILED")
        if saved():
            return state, attempt
    raise AssertionError("no checkpoint in any attempt")


def leave_a_mark(checkpoint: Path) -> int:
    """Change the first loss in a checkpoint's log, so that a run that goes on from it shows it; returns its step."""
    state = json.loads(checkpoint.read_text())
    first = next(entry for entry in state["log_history"] if "loss" in entry)
    first["loss"] = MARK
    checkpoint.write_text(json.dumps(state))
    return int(first["step"])


def test_a_time_limit_is_no_part_of_what_identifies_results(study):
    plain = read_study(study)
    limited = within(plain, calibration_pack_hours=1, final_run_hours=2, evaluation_hours=3)
    assert identity(Inputs(limited)) == identity(Inputs(plain))
    assert plan_calibration(Inputs(limited)).inputs_hash == plan_calibration(Inputs(plain)).inputs_hash
    assert run_inputs(Inputs(limited), of_pair(PAIR)) == run_inputs(Inputs(plain), of_pair(PAIR))


@pytest.mark.slow
def test_a_pack_that_takes_too_long_is_ended_and_gone_on_with(study, capsys):
    """Forty runs, so that training takes many times as long as its first step, which is a checkpoint."""
    config = read_study(study)
    long = config.model_copy(
        update={"calibration": config.calibration.model_copy(update={"seeds": tuple(range(10)), "parallel": 1})}
    )
    folder = Revision(Path(long.study), 1).path("calibration")
    state, attempts = ended_with_a_checkpoint(
        lambda hours: calibrate_flow(within(long, calibration_pack_hours=hours), return_state=True),
        lambda: list(folder.glob("state/*/state.safetensors")),
    )
    assert "timeouts.calibration_pack_hours" in state.message
    assert statuses(long, "calibration") == {"KILLED": 40 * attempts}
    assert statuses(long, "study") == {"FAILED": 1}
    assert not list(folder.glob("*.parquet"))

    calibrate_flow(long)
    assert "going on with 1 unfinished packs of 40 runs" in capsys.readouterr().err
    assert statuses(long, "calibration") == {"KILLED": 40 * attempts, "FINISHED": 40}
    assert not list(folder.glob("state/*"))
    rows = pd.concat([pd.read_parquet(file) for file in folder.glob("*.parquet")])
    assert (rows.groupby("run_id").step.apply(list).map(lambda steps: steps == [1, 2, 3, 4, 6, 8])).all()
    assert rows.run_id.nunique() == 40


@pytest.mark.slow
def test_a_final_run_that_takes_too_long_is_ended_and_gone_on_with(study):
    config = read_study(study)
    long = config.model_copy(update={"final": FinalConfig(epochs=20)})
    revision = open_revision(Inputs(long), new=False)

    def checkpoints() -> list[int]:
        paths = final_folder(revision, Arm(PAIR)).glob("checkpoints-*/checkpoint-*")
        return [int(path.name.partition("-")[2]) for path in paths]

    state, attempts = ended_with_a_checkpoint(
        lambda hours: finetune_flow(within(long, final_run_hours=hours), 2, 2, return_state=True), checkpoints
    )
    assert "timeouts.final_run_hours" in state.message
    assert statuses(long, "final") == {"FAILED": attempts}
    mark = final_folder(revision, Arm(PAIR)).glob(f"checkpoints-*/checkpoint-{max(checkpoints())}/trainer_state.json")
    step = leave_a_mark(next(mark))

    finetune_flow(long, 2, 2)
    assert statuses(long, "final") == {"FAILED": attempts, "FINISHED": 1}
    record = json.loads((final_folder(revision, Arm(PAIR)) / "training.json").read_text())
    assert record["steps"] == 160
    logged = mlflow.MlflowClient(tracking_uri(Path(long.study))).get_metric_history(record["mlflow_run_id"], "loss")
    assert MARK in {point.value for point in logged if point.step == step}
