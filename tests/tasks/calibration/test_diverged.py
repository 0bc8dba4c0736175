"""Runs that diverged at one learning rate, at all of them, or with one seed: who may still be chosen, what is read."""

from __future__ import annotations

import pytest

from mars_core.ranks import RankPair
from mars_core.rates import one_rate
from tasks.calibration.diverged import collect_metrics, divergence
from tasks.calibration.stored import summary_path
from tasks.settings.data import DataConfig
from tasks.settings.study import StudyConfig
from tasks.storage.files import write_json
from tasks.storage.folder import Revision
from tasks.study.plan import CalibrationPlan, PlannedRun, RunSchedule
from tests.tasks.calibration.planned import planned_study

LOW, HIGH = one_rate(1e-4), one_rate(1e-2)
SCHEDULE = RunSchedule(8, (4, 8))


@pytest.fixture
def study_with(tmp_path):
    """A study of runs (pair, seed, rates, step at which it diverged or None)."""

    def make(*runs):
        planned = tuple(
            PlannedRun(f"run{number}", RankPair(*pair), seed, SCHEDULE, learning_rates=rates)
            for number, (pair, seed, rates, _) in enumerate(runs)
        )
        revision = Revision(tmp_path, 1)
        for run, (*_, step) in zip(planned, runs, strict=True):
            write_json(summary_path(revision, run.run_id), {"diverged_at": step})
        config = StudyConfig(study=str(tmp_path), model="m", data=DataConfig(train="t.json"))
        return planned_study(config, revision, CalibrationPlan(planned, ()))

    return make


def left_out(study):
    return {run.run_id for run in divergence(study).left_out}


def test_a_pair_that_holds_at_another_rate_is_not_ruled_out(study_with):
    study = study_with(((2, 2), 0, LOW, None), ((2, 2), 0, HIGH, 5), ((4, 4), 0, LOW, None), ((4, 4), 0, HIGH, None))
    found = divergence(study)
    assert (found.pairs, found.warnings) == ({}, [])
    assert found.notes == ["run me2-llm2 lr1e-2 seed0 diverged at step 5 and is left out of the laws"]
    assert left_out(study) == {"run1"}


def test_at_a_rate_where_one_seed_diverged_the_other_seeds_are_left_out_too(study_with):
    study = study_with(
        ((2, 2), 0, LOW, None), ((2, 2), 1, LOW, None), ((2, 2), 0, HIGH, None), ((2, 2), 1, HIGH, 3)
    )  # fmt: skip
    assert divergence(study).pairs == {}
    assert left_out(study) == {"run2", "run3"}


def test_a_pair_that_diverged_at_every_rate_is_ruled_out(study_with):
    study = study_with(((2, 2), 0, LOW, 7), ((2, 2), 0, HIGH, 2), ((4, 4), 0, LOW, None))
    found = divergence(study)
    assert found.pairs == {(2, 2): "seed 0 and learning rate 0.0001 at step 7, seed 0 and learning rate 0.01 at step 2"}
    assert len(found.warnings) == 2


def test_where_one_rate_was_calibrated_a_pair_with_a_diverged_seed_is_ruled_out_and_its_other_seed_read(study_with):
    study = study_with(((2, 2), 0, None, 4), ((2, 2), 1, None, None), ((4, 4), 0, None, None))
    found = divergence(study)
    assert found.pairs == {(2, 2): "seed 0 at step 4"}
    assert left_out(study) == {"run0"}


def test_a_study_all_of_whose_runs_diverged_says_what_to_lower(study_with):
    study = study_with(((2, 2), 0, LOW, 4), ((4, 4), 0, HIGH, 4))
    with pytest.raises(ValueError, match=r"every calibration run diverged: lower recipe\.learning_rate"):
        collect_metrics(study, divergence(study))
