"""A calibration with a run for every size, trained for real, and the laws that are fitted to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.calibrate import calibrate_flow
from flows.cli.main import app
from flows.stages import fit_flow, report_flow, search_flow
from tasks.calibration.diverged import collect_metrics, divergence
from tasks.calibration.stored import metrics_path, missing_runs, read_metrics, stored_metrics
from tasks.choice.fit import read_laws
from tasks.inputs.opened import Inputs
from tasks.settings.calibration import FitConfig
from tasks.settings.search import SearchConfig
from tasks.settings.study import StudyConfig, write_study
from tasks.study.opened import Study
from tasks.study.plan import plan_calibration
from tasks.study.revision import newest_revision
from tests.flows.conftest import write_small_study
from tests.report_figures import figures_drawn

# tests/tasks/calibration/test_runs_per_size.py has the rules of such runs in the default tier.
pytestmark = pytest.mark.slow
SIZES = (16, 32)
BATCH = 2


def changed(config: StudyConfig, **calibration) -> StudyConfig:
    return config.model_copy(update={"calibration": config.calibration.model_copy(update=calibration)})


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, demo_data: Path) -> StudyConfig:
    """Four pairs of two sizes, measured as the paper's words have it: the step of each run's lowest perplexity."""
    folder = tmp_path_factory.mktemp("per-size")
    plain = write_small_study(folder, demo_data).model_copy(
        update={"fit": FitConfig(level="own", eps=0, starts=8, bootstrap=20), "search": SearchConfig(law="paper")}
    )
    recipe = plain.recipe.model_copy(update={"batch_size": BATCH})
    config = changed(plain.model_copy(update={"recipe": recipe}), runs="per_size", samples=32, smallest_size=16)
    write_study(config, folder / "study.yaml")
    calibrate_flow(config)
    return config


def table_of(config: StudyConfig) -> pd.DataFrame:
    return stored_metrics(newest_revision(Path(config.study)))


def test_every_run_ends_at_its_size_with_its_rate_annealed_to_zero(calibrated):
    rows = table_of(calibrated)
    assert (rows.samples_seen == BATCH * rows.step).all()
    assert (rows.unique_samples == rows.samples_seen).all()
    ends = rows.sort_values("step").groupby("run_id").tail(1)
    assert sorted(ends.unique_samples) == sorted(SIZES * 4)
    assert (ends.groupby(["r_me", "r_llm", "seed"]).unique_samples.nunique() == len(SIZES)).all()
    # The rate before step s of S: a rise over w = S / 10 steps, then half a cosine down to 0 at S.
    S, before = rows.groupby("run_id").step.transform("max"), rows.step - 1
    w = (0.1 * S).round()
    rate = (0.5 * (1 + np.cos(np.pi * (before - w) / (S - w)))).where(before >= w, before / w)
    np.testing.assert_allclose(rows.lr, calibrated.recipe.learning_rate * rate)
    assert (rows.pack_id.groupby([rows.r_me, rows.r_llm, rows.seed]).nunique() == len(SIZES)).all()


@pytest.mark.slow
def test_a_run_of_a_size_is_the_run_of_a_calibration_that_has_only_so_many_samples(calibrated, tmp_path):
    """So its samples are the first of the same order, and its schedule is that of its own length."""
    alone = changed(calibrated, runs="one", samples=16, smallest_size=2).model_copy(
        update={"study": str(tmp_path / "alone")}
    )
    calibrate_flow(alone)
    of_size, known = table_of(calibrated), table_of(alone)
    assert set(known.run_id) == {
        run.run_id for run in plan_calibration(Inputs(calibrated)).runs if run.schedule.size == 16
    }
    columns = ["run_id", "step", "unique_samples", "train_loss", "val_loss", "lr"]
    both = known[columns].merge(of_size[columns], on=["run_id", "step"], suffixes=("", "_of_size"))
    assert set(both.step) == set(known.step)
    for column in columns[2:]:
        np.testing.assert_allclose(both[column], both[f"{column}_of_size"], rtol=1e-6)


def test_times_are_the_step_of_the_lowest_perplexity_of_each_run(calibrated):
    fit_flow(calibrated)
    times = pd.DataFrame(list(read_laws(newest_revision(Path(calibrated.study))).convergence_times))
    rows = table_of(calibrated)
    lowest = rows.sort_values(["val_perplexity", "step"]).groupby("run_id").head(1).set_index("run_id").step
    assert len(times) == 2 * 2 * len(SIZES)  # modules, ranks, sizes
    assert (times.steps == lowest.loc[times.run_id].to_numpy()).all()
    assert (times.S_D == times.D / BATCH).all()
    assert not times.censored.any()


def test_the_stages_after_it_run_and_name_the_lengths(calibrated):
    fit_flow(calibrated)
    assert search_flow(calibrated).keys() == {"r_me", "r_llm"}
    with figures_drawn("law-c"):
        assert "8 runs of 8 to 16 steps" in Path(report_flow(calibrated)).read_text()


def test_only_the_size_that_is_missing_is_trained_again(calibrated, capsys):
    revision = newest_revision(Path(calibrated.study))
    study = Study(calibrated, revision)
    before = collect_metrics(study, divergence(study))
    lost = next(run for run in study.plan.runs if run.schedule.size == 16)
    kept = next(run for run in study.plan.runs if run.schedule.size == 32)
    path = metrics_path(revision, lost.run_id)
    whole = read_metrics(path)
    whole[whole.step < 8].to_parquet(path)  # as if it had been measured at other steps
    assert missing_runs(study) == [lost]
    times = {run.run_id: metrics_path(revision, run.run_id).stat().st_mtime_ns for run in (lost, kept)}
    calibrate_flow(calibrated)
    assert missing_runs(study) == []
    assert "1 of 8 runs to train" in capsys.readouterr().err
    assert metrics_path(revision, kept.run_id).stat().st_mtime_ns == times[kept.run_id]
    after = collect_metrics(study, divergence(study))
    np.testing.assert_allclose(after.val_loss, before.val_loss, rtol=1e-5)


def test_the_dry_run_lists_the_sizes(calibrated):
    study = Path(calibrated.study).parent / "study.yaml"
    result = CliRunner().invoke(app, ["calibrate", str(study), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "4 runs of 16 steps for size 32, evaluated at steps 2, 3, 4, 6, 8, 11, 16" in result.output
    assert "4 runs of 8 steps for size 16, evaluated at steps 1, 2, 3, 4, 6, 8" in result.output
    assert "96 steps of all runs together" in result.output
