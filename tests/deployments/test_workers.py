"""Studies on workers: real servers, real worker processes, and processes that are killed."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pandas as pd
import psutil
import pytest

from tasks.storage.folder import Revision
from tasks.tracking.runs import experiment_name
from tests.deployments.conftest import wait_until

pytestmark = pytest.mark.stack


def metrics(study: str) -> pd.DataFrame:
    files = sorted(Revision(Path(study), 1).path("calibration").glob("*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def assert_whole(study: str) -> None:
    rows = metrics(study)
    assert set(zip(rows.r_me, rows.r_llm, strict=True)) == {(2, 2), (2, 4), (4, 2), (4, 4)}
    assert not rows.duplicated(["run_id", "step"]).any()
    assert (rows.groupby("run_id").step.apply(list).map(lambda steps: steps == [1, 2, 3, 4, 6, 8])).all()


def flow_process(worker: int) -> psutil.Process | None:
    """The process of the flow run that a worker runs."""
    family = psutil.Process(worker).children(recursive=True)
    return next(
        (one for one in family if "prefect" in " ".join(one.cmdline()) and "engine" in str(one.cmdline())), None
    )


def test_every_pack_and_final_run_is_a_flow_run_of_its_own(stack, served):
    packs = stack.runs_of("mars-calibrate-pack/calibrate-pack", served.study)
    finals = stack.runs_of("mars-final/final-finetune", served.study)
    assert [run["state"]["type"] for run in packs] == ["COMPLETED"] * 4
    assert all(run["state"]["type"] == "COMPLETED" for run in finals)
    pairs = {(run["parameters"]["r_me"], run["parameters"]["r_llm"]) for run in finals}
    assert len(pairs) == len(finals)
    assert tuple(json.loads(Revision(Path(served.study), 1).path("choice.json").read_text())["pair"]) in pairs
    assert_whole(served.study)
    assert Revision(Path(served.study), 1).path("report.html").is_file()


def test_prefect_and_mlflow_link_to_each_other(stack, served):
    client = mlflow.MlflowClient(stack.mlflow)
    experiment = client.get_experiment_by_name(experiment_name(Path(served.study)))
    runs = client.search_runs([experiment.experiment_id])
    packs = {run["id"]: run for run in stack.runs_of("mars-calibrate-pack/calibrate-pack", served.study)}
    children = [run for run in runs if run.data.tags["mars.kind"] == "calibration"]
    assert {run.data.tags["prefect.flow_run_id"] for run in children} == set(packs)
    for child in children:
        flow_run = child.data.tags["prefect.flow_run_id"]
        assert child.data.tags["prefect.flow_run_url"].endswith(f"/runs/flow-run/{flow_run}")
        only = {"artifacts": {"flow_run_id": {"any_": [flow_run]}, "key": {"any_": ["mars-mlflow"]}}}
        (link,) = stack.post("/artifacts/filter", only)
        assert f"{stack.mlflow}/#/experiments/{experiment.experiment_id}/runs/{child.info.run_id}" in link["data"]


def test_progress_ends_at_a_hundred(stack, served):
    shown = stack.post("/artifacts/filter", {"artifacts": {"key": {"any_": ["mars-calibration-progress"]}}})
    assert any(one["data"] == 100.0 and "4 of 4" in one["description"] for one in shown)


def test_a_finished_study_starts_nothing_again(stack, served):
    before = metrics(served.study)
    run = stack.start("mars-study/study", config=served.model_dump(mode="json"))
    stack.complete(run)
    assert len(stack.runs_of("mars-calibrate-pack/calibrate-pack", served.study)) == 4
    pd.testing.assert_frame_equal(metrics(served.study), before)


def test_relative_paths_are_refused(stack, small_study):
    values = small_study.model_dump(mode="json") | {"study": "runs/mine"}
    state = stack.finish(stack.start("mars-study/study", config=values))
    assert state["type"] == "FAILED"
    assert "relative paths" in state["message"]


def test_killed_pack_is_started_again_when_its_slot_is_back(stack, small_study):
    run = stack.start("mars-calibrate/calibrate", config=small_study.model_dump(mode="json"))
    worker = stack.process("worker-gpu")
    wait_until(lambda: stack.slot()["active_slots"] == 1 and flow_process(worker))
    killed = flow_process(worker)
    killed.kill()
    crashed_after = wait_until(
        lambda: any(
            one["state"]["type"] == "CRASHED"
            for one in stack.runs_of("mars-calibrate-pack/calibrate-pack", small_study.study)
        )
    )
    freed_after = crashed_after + wait_until(lambda: stack.slot()["active_slots"] == 0, seconds=120)
    print(f"killed: shown as crashed after {crashed_after:.0f} s, slot free after {freed_after:.0f} s")
    assert freed_after < 90  # a lease of 60 s, looked for every 15 s
    stack.complete(run)
    packs = stack.runs_of("mars-calibrate-pack/calibrate-pack", small_study.study)
    assert sorted(one["state"]["type"] for one in packs) == ["COMPLETED"] * 4 + ["CRASHED"]
    assert_whole(small_study.study)
    client = mlflow.MlflowClient(stack.mlflow)
    experiment = client.get_experiment_by_name(experiment_name(Path(small_study.study)))
    children = client.search_runs([experiment.experiment_id], "tags.`mars.kind` = 'calibration'")
    states = sorted(child.info.status for child in children)
    assert states in (["FINISHED"] * 4, ["FINISHED"] * 4 + ["KILLED"])  # killed before or after its run was opened
