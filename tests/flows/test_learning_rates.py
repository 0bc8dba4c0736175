"""A study whose calibration also searches for the learning rate, and lets the vision encoder stay frozen (rank 0)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mars_core.metrics.schema import PEAKS, SCHEMA
from tasks.calibration.steps import RANGE_TEST
from tasks.calibration.stored import read_metrics, stored_metrics
from tasks.choice.search import read_choice
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.final import EvaluationConfig, FinalConfig
from tasks.settings.study import StudyConfig, read_study, write_study
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.tracking.runs import tracking_uri
from tests.conftest import made_once
from tests.flows.conftest import write_small_study
from tests.report_figures import figures_drawn

STEPS = 4
RATES = (3e-4, 1e-3, 4e-3)
PAIRS = [(0, 2), (0, 4), (2, 2), (2, 4), (4, 2), (4, 4)]


def searching(folder: Path, data: Path, **calibration: object) -> StudyConfig:
    config = write_small_study(folder, data)
    own = CalibrationConfig(samples=STEPS * 8, smallest_size=8, parallel=2, **calibration)
    changes = {"calibration": own, "final": FinalConfig(epochs=0.5), "evaluation": EvaluationConfig(answer_tokens=0)}
    config = config.model_copy(update=changes)
    write_study(config, folder / "study.yaml")
    return config


@pytest.fixture(scope="session")
def listed(demo_data: Path) -> StudyConfig:
    """Every pair at three learning rates, the recipe's among them, run to the report. Tests leave it as it is."""
    from flows.study import study_flow

    ranks = {"me": [0, 2, 4], "llm": [2, 4]}

    def make(folder: Path) -> None:
        with figures_drawn("heatmap", "rates", "best-rates"):
            study_flow(searching(folder, demo_data, ranks=ranks, learning_rates=list(RATES)))

    return read_study(made_once("listed-rates", make) / "study.yaml")


def revision_of(config: StudyConfig) -> Revision:
    return Revision(Path(config.study), 1)


def test_every_pair_has_a_run_at_every_rate(listed):
    metrics = stored_metrics(revision_of(listed))
    ends = metrics[metrics["step"] == STEPS]
    found = sorted((r.r_me, r.r_llm, r.peak_lr_llm) for r in ends.itertuples())
    assert found == sorted((*pair, rate) for pair in PAIRS for rate in RATES)
    # An own look at what was trained with: the rate of the last step, after a cosine to zero from the peak.
    ratio = ends["lr"] / ends["peak_lr_llm"]
    assert np.allclose(ratio, ratio.iloc[0], rtol=1e-9)
    assert ends["clipped_share"].between(0, 1).all()


def test_runs_at_the_recipes_rate_are_those_of_a_study_without_a_search(listed):
    plain = listed.calibration.model_copy(update={"learning_rates": None})
    usual = Study(listed.model_copy(update={"calibration": plain}), revision_of(listed)).plan
    searched = Study(listed, revision_of(listed)).plan
    assert {run.run_id for run in usual.runs} < {run.run_id for run in searched.runs}
    assert len(searched.runs) == len(RATES) * len(usual.runs)


def test_the_final_runs_are_at_the_rates_that_the_choice_says(listed):
    revision = revision_of(listed)
    choice = read_choice(revision)
    records = [json.loads(path.read_text()) for path in revision.path("final").glob("*/training.json")]
    by_role = {record["role"]: record for record in records}
    assert by_role["chosen"]["pair"] == list(choice.pair)
    assert by_role["chosen"]["learning_rates"] == list(choice.rates.learning_rates)
    highest = {role: max(entry.get("learning_rate", 0) for entry in r["history"]) for role, r in by_role.items()}
    for role, record in by_role.items():
        assert 0.5 * record["learning_rates"][2] < highest[role] <= record["learning_rates"][2], role
    if "uniform" in by_role:
        assert (by_role["uniform"]["pair"], by_role["uniform"]["learning_rates"]) == ([2, 2], [1e-3] * 3)
    if choice.pair != (2, 2):
        tuned = by_role["uniform-tuned-rate"]
        assert (tuned["pair"], tuned["learning_rates"]) == ([2, 2], list(choice.rates.of_pair((2, 2))))
    scores = json.loads(revision.path("evaluation.json").read_text())
    assert set(scores) == {"base", *by_role}


def test_report_and_cards_say_the_rates(listed):
    revision = revision_of(listed)
    choice = read_choice(revision)
    assert revision.path("report.html").is_file()
    slug = f"me{choice.pair[0]}-llm{choice.pair[1]}"
    (card,) = [
        path.read_text()
        for path in revision.path("final").glob(f"{slug}*/adapter/README.md")
        if "chosen pair" in path.read_text()
    ]
    assert str(choice.rates.learning_rates) in card


@pytest.fixture(scope="session")
def automatic(demo_data: Path) -> StudyConfig:
    """Rates found by the calibration itself, which was stopped once: after the range test, before its first round."""
    return read_study(
        made_once("automatic-rates", lambda folder: _stopped_and_gone_on_with(folder, demo_data)) / "study.yaml"
    )


def _stopped_and_gone_on_with(folder: Path, data: Path) -> None:
    from flows.calibrate import calibrate_flow
    from flows.here import Here
    from flows.stages import fit_flow, search_flow

    config = searching(folder, data, ranks=[2, 4], learning_rates="auto", confirm_runs=1)
    train = Here.train_packs

    def stop_at_the_first_round(self, study, packs, parent, what):
        if what != RANGE_TEST:
            raise InterruptedError("stopped by the test")
        train(self, study, packs, parent, what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Here, "train_packs", stop_at_the_first_round)
        with pytest.raises(InterruptedError):
            calibrate_flow(config)
    first = Revision(Path(config.study), 1).path("learning_rates.json")
    shutil.copy(first, folder / "decided-first.json")
    shutil.copytree(
        first.with_name("calibration") / "range-test", folder / "range-test-first", copy_function=shutil.copy2
    )
    calibrate_flow(config)
    fit_flow(config)
    search_flow(config)


@pytest.mark.slow
def test_a_stopped_search_for_rates_goes_on_with_what_it_had_decided(automatic):
    made, revision = Path(automatic.study).parent, revision_of(automatic)
    first = json.loads((made / "decided-first.json").read_text())
    decided = json.loads(revision.path("learning_rates.json").read_text())
    assert (first["complete"], decided["complete"]) == (False, True)
    assert (decided["range_test"], decided["rounds"][0]) == (first["range_test"], first["rounds"][0])
    for file in (made / "range-test-first").iterdir():  # nothing of the range test was trained again
        now = revision.path("calibration", "range-test", file.name)
        assert (now.stat().st_mtime_ns, now.read_bytes()) == (file.stat().st_mtime_ns, file.read_bytes())


@pytest.mark.slow
def test_the_range_test_is_kept_apart_and_tracked_as_such(automatic):
    revision = revision_of(automatic)
    short = [read_metrics(path) for path in revision.path("calibration", "range-test").glob("*.parquet")]
    assert len(short) == 16
    decided = json.loads(revision.path("learning_rates.json").read_text())["range_test"]
    losses = {}
    for rows in short:
        losses.setdefault(rows["peak_lr_llm"].iloc[-1], []).append(rows["val_loss"].iloc[-1])
    assert {float(rate): loss for rate, loss in decided["losses"].items()} == pytest.approx(
        {rate: np.mean(found) for rate, found in losses.items()}
    )
    ids = set(stored_metrics(revision)["run_id"])
    assert ids.isdisjoint(rows["run_id"].iloc[0] for rows in short)
    client = mlflow.MlflowClient(tracking_uri(Path(automatic.study)))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    kinds = Counter(run.data.tags.get("mars.kind") for run in runs)
    assert (kinds["range-test"], kinds["calibration"]) == (16, len(ids))


@pytest.mark.slow
def test_a_search_for_rates_ends_in_a_choice_that_names_them(automatic):
    choice = read_choice(revision_of(automatic))
    metrics = stored_metrics(revision_of(automatic))
    low, high = metrics["peak_lr_llm"].min(), metrics["peak_lr_llm"].max()
    assert choice.rates.measured["all"] == pytest.approx((low, high))
    assert choice.rates.of_pair(choice.pair) == choice.rates.learning_rates
    assert choice.rates.fixed.rates == (1e-3, 1e-3)  # beside the recipe's


@pytest.mark.slow
def test_a_finished_search_for_rates_is_not_made_again(automatic, capsys):
    from flows.calibrate import calibrate_flow

    revision = revision_of(automatic)
    before = {path: path.stat().st_mtime_ns for path in revision.path("calibration").rglob("*.parquet")}
    calibrate_flow(automatic)
    assert "calibrate: already done" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in revision.path("calibration").rglob("*.parquet")} == before


def as_of_version_2(config: StudyConfig) -> None:
    """Leave a study's metrics as the version before wrote them."""
    added = {*PEAKS, "clipped_share"}
    fields = [field for field in SCHEMA if field.name not in added]
    for path in revision_of(config).path("calibration").glob("*.parquet"):
        rows = read_metrics(path).assign(schema_version=2)[[field.name for field in fields]]
        pq.write_table(pa.Table.from_pandas(rows, schema=pa.schema(fields), preserve_index=False), path)


@pytest.mark.slow
def test_a_study_of_before_opens_and_its_runs_count_as_those_of_the_recipes_rate(copied):
    from flows.calibrate import calibrate_flow
    from flows.stages import fit_flow, search_flow

    as_of_version_2(copied)
    revision = revision_of(copied)
    before = {path.name: path.stat().st_mtime_ns for path in revision.path("calibration").glob("*.parquet")}
    pair = read_choice(revision).pair
    calibrate_flow(copied)
    fit_flow(copied)
    search_flow(copied)
    assert read_choice(revision).pair == pair
    wider = copied.calibration.model_copy(update={"learning_rates": "0.001, 0.004"})
    config = copied.model_copy(update={"calibration": wider})
    calibrate_flow(config)
    fit_flow(config)
    search_flow(config)
    after = {path.name: path.stat().st_mtime_ns for path in revision.path("calibration").glob("*.parquet")}
    assert {name: after[name] for name in before} == before  # none of them was trained again
    assert len(after) == 2 * len(before)
    assert set(stored_metrics(revision)["peak_lr_llm"]) == {1e-3, 4e-3}
    assert read_choice(revision).rates is not None


@pytest.mark.slow
def test_a_worker_knows_the_runs_of_the_range_test_and_of_every_round(automatic):
    """It plans by what is stored, in a process of its own; all of them are trained, so that nothing is left to do."""
    from flows.on_workers import calibrate_pack_flow

    plan = Study(automatic, revision_of(automatic)).plan
    for runs in (plan.range_test, plan.runs):
        assert calibrate_pack_flow(automatic, 1, [run.run_id for run in runs], "no parent is needed") == []
    with pytest.raises(ValueError, match="1 of 1 calibration runs are not in this worker's plan"):
        calibrate_pack_flow(automatic, 1, ["another"], "no parent is needed")
