"""Calls of MLflow that are done though the caller is told that they failed, and calls that fail: nothing is double.

Each call does or does not do its work and raises, by chance; what called it begins anew, as a pack that starts again.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.tracking import runs as tracking
from tasks.tracking.live_curves import LiveCurves
from tasks.tracking.outage import UNTRACKED
from tasks.tracking.registry import move_champion, register_adapter

CALLS = (
    "create_experiment", "create_run", "log_batch", "log_artifact", "set_tag", "create_registered_model",
    "create_model_version", "set_registered_model_alias",
)  # fmt: skip
ROWS = [{"step": step, "val_loss": 1.0 / step, "lr": 0.1} for step in (1, 2, 4, 8)]
TAGS = {"mars.kind": "calibration", "mars.run_id": "abc"}
ATTEMPTS = 300


@pytest.fixture
def faults(monkeypatch):
    """Every call fails so often; of those that fail, so many have done their work. Gives how many did."""
    happened: Counter[str] = Counter()

    def inject(seed: int, rate: float = 0.1, done: float = 0.5) -> Counter[str]:
        chance = random.Random(seed)

        def flaky(call, work):
            def called(*args, **kwargs):
                fails, does = chance.random() < rate, chance.random() < done
                if fails and not does:
                    happened[f"{call} not done"] += 1
                    raise MlflowException("503")
                result = work(*args, **kwargs)
                if fails:
                    happened[f"{call} done"] += 1
                    raise MlflowException("503")
                return result

            return called

        for call in CALLS:
            monkeypatch.setattr(MlflowClient, call, flaky(call, getattr(MlflowClient, call)))
        return happened

    return inject


def track(study: Path, adapter: Path) -> None:
    """What a pack and a final run ask of MLflow, by the functions that they use.

    Raises MlflowException where MLflow has not all of it: what called goes on without, and the next start sends it.
    """
    with tracking.study_run(study, 1, {"model": "m", "recipe": {"learning_rate": 1e-3}}) as parent:
        child = tracking.begin_child(parent, "me2-llm4 seed0", {"r_me": 2, "r_llm": 4}, TAGS)
        whole = [tracking.log_new_steps(child, ROWS[:end], "val_loss") for end in range(1, len(ROWS) + 1)]
        if UNTRACKED in (parent, child) or not whole[-1]:
            raise MlflowException("503")
        tracking.log_file(child, adapter, "adapter")
        register_adapter(study, "demo", child, {"role": "chosen"}, "d")
        move_champion(study, "demo", "1")


def repeated(work) -> list[str]:
    """Do something until it succeeds; gives the failures before."""
    failures: list[str] = []
    while len(failures) < ATTEMPTS:
        try:
            work()
        except MlflowException as error:
            failures.append(str(error))
        else:
            break
    return failures


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_pack_that_is_told_of_failures_leaves_what_an_undisturbed_one_does(tmp_path, monkeypatch, faults, seed):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    adapter = tmp_path / "adapter_model.safetensors"
    adapter.write_text("weights")
    happened = faults(seed, rate=0.25)
    failures = repeated(lambda: track(tmp_path / "study", adapter))
    # MLflow's own refusals, of a name that is taken for one, would come again for ever.
    assert all("503" in failure for failure in failures)
    assert happened.total() > 0
    monkeypatch.undo()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.use_store(tmp_path / "study")
    client = MlflowClient()
    experiments = client.search_experiments(filter_string="name LIKE 'mars/%'")
    assert len(experiments) == 1
    runs = client.search_runs([experiments[0].experiment_id])
    assert sorted(run.data.tags["mars.kind"] for run in runs) == ["calibration", "study"]
    parameters = {run.data.tags["mars.kind"]: run.data.params for run in runs}
    assert parameters == {
        "calibration": {"r_me": "2", "r_llm": "4"},
        "study": {"model": "m", "recipe.learning_rate": "0.001"},
    }
    child = next(run for run in runs if run.data.tags["mars.kind"] == "calibration")
    for name in ("val_loss", "lr"):
        steps = [point.step for point in client.get_metric_history(child.info.run_id, name)]
        assert sorted(steps) == [1, 2, 4, 8]
    assert [str(version.version) for version in client.search_model_versions("name = 'demo'")] == ["1"]
    assert client.get_model_version_by_alias("demo", "champion").run_id == child.info.run_id


def test_entries_of_a_curve_that_arrived_though_it_was_said_they_did_not_are_there_once(tmp_path, monkeypatch, faults):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking.study_run(tmp_path / "study", 1, {}) as run:
        happened = faults(3, rate=0.4, done=1.0)
        curves = LiveCurves(run)
        for step in range(20):
            curves.log({"step": step, "loss": float(step), "epoch": 0.1})
        monkeypatch.undo()
        curves.end()
        assert happened["log_batch done"] > 2
        history = mlflow.MlflowClient().get_metric_history(run, "loss")
    assert sorted(point.step for point in history) == list(range(20))


def test_parameters_that_a_killed_process_did_not_come_to_are_logged_later(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking.study_run(tmp_path / "study", 1, {"model": "m"}) as parent:
        client = mlflow.MlflowClient()
        made = client.create_run(
            client.get_run(parent).info.experiment_id, tags={"mlflow.parentRunId": parent} | TAGS, run_name="a"
        )
        assert tracking.begin_child(parent, "a", {"r_me": 2, "r_llm": 4}, TAGS) == made.info.run_id
        assert client.get_run(made.info.run_id).data.params == {"r_me": "2", "r_llm": "4"}


def test_no_request_ends_within_a_row(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking.study_run(tmp_path / "study", 1, {}) as run:
        sent = []
        monkeypatch.setattr(MlflowClient, "log_batch", lambda self, run_id, metrics: sent.append(metrics))
        rows = [{"step": step} | {f"m{number}": 1.0 for number in range(7)} for step in range(300)]
        tracking.log_steps(run, rows)
    assert [len(metrics) for metrics in sent][:3] == [994, 994, 112]  # then the load of the machine
