"""The rate of one pair: found where it was planted, from a range test or from rates that were given."""

from __future__ import annotations

import pytest

from mars_core.ranks import RankPair
from tasks.calibration.tuning import begin_tuning
from tasks.inputs.opened import Inputs
from tasks.study.opened import Study
from tasks.study.plan import plan_calibration
from tasks.study.revision import open_revision
from tests.flows.conftest import write_small_study
from tests.tasks.calibration.planted import planted, train

PAIR = RankPair(2, 4)


@pytest.fixture
def study(tmp_path, demo_data):
    config = write_small_study(tmp_path, demo_data)
    return Study(config, open_revision(Inputs(config), new=False))


def tuned(study, loss, rates=(), pair=PAIR):
    tuning = begin_tuning(study, pair, rates)
    names = []
    for step in tuning.steps():
        train(study, step.runs, loss)
        names.append(step.name)
    return tuning.answer(), names


@pytest.mark.parametrize("pair", [PAIR, RankPair(0, 4)])
def test_the_rate_is_found_where_it_was_planted(study, pair):
    found, names = tuned(study, planted(4e-4), pair=pair)
    assert names[0] == "learning-rate range test"
    assert found.learning_rate == pytest.approx(4e-4, rel=0.05)
    assert found.interval[0] < 4e-4 < found.interval[1]
    assert len(found.tried) >= 4
    assert (found.pair, found.steps, found.notes) == (tuple(pair), 8, ())
    assert min(found.range_test.losses) == 1e-5


def test_a_range_test_that_misleads_is_widened(study):
    low, right = planted(5e-5), planted(4e-4)
    found, names = tuned(study, lambda run, step: (low if run.part == "range-test" else right)(run, step))
    assert names.count("full-length runs") == 3
    assert max(one.learning_rate for one in found.tried) >= 2e-4


def test_given_rates_are_tried_alone_and_an_edge_is_said(study):
    found, names = tuned(study, planted(4e-4), (1e-4, 2e-4, 3e-4, 1e-2))
    assert names == ["full-length runs"]
    assert [one.learning_rate for one in found.tried] == [1e-4, 2e-4, 3e-4, 1e-2]
    assert found.tried[-1].loss != found.tried[-1].loss  # 1e-2 diverged
    (note,) = found.notes
    assert "at the edge of those that held, 0.0001 to 0.0003: try higher ones" in note
    assert found.range_test is None


def test_fewer_than_two_rates_that_hold_are_refused(study):
    with pytest.raises(ValueError, match=r"fewer than two learning rates of \(2, 4\) are left"):
        tuned(study, planted(4e-4), (1e-4, 1e-2))


def test_the_runs_are_the_calibrations_own(study):
    tuning = begin_tuning(study, PAIR, (3e-4, 1e-3))  # the recipe's rate among them
    (step,) = tuning.steps()
    own = study.config.calibration.model_copy(update={"learning_rates": "0.0003, 0.001"})
    calibration = plan_calibration(Inputs(study.config.model_copy(update={"calibration": own})))
    assert {run.run_id for run in step.runs} <= {run.run_id for run in calibration.runs}
    assert {run.run_id for run in step.runs} & {run.run_id for run in study.plan.runs}
