"""Automatic learning rates, step by step: runs are not trained, their losses are planted with a known best rate."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest

from mars_core.ranks import RankPair
from tasks.calibration.steps import RANGE_TEST, calibration_steps
from tasks.inputs.opened import Inputs
from tasks.settings.calibration import CalibrationConfig
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.plan import plan_calibration
from tasks.study.rates import rates_path, read_rates
from tasks.study.revision import open_revision
from tests.flows.conftest import write_small_study
from tests.tasks.calibration.planted import planted, train

RANKS = {"me": [0, 2, 4], "llm": [2, 4]}


def study_in(folder, data):
    config = write_small_study(folder, data)
    own = CalibrationConfig(ranks=RANKS, samples=64, smallest_size=8, learning_rates="auto", confirm_runs=0)
    config = config.model_copy(update={"calibration": own})
    return Study(config, open_revision(Inputs(config), new=False))


@pytest.fixture
def study(tmp_path, demo_data):
    return study_in(tmp_path, demo_data)


def steps_of(study, loss):
    """Names and runs of all steps, each trained before the next is asked for."""
    found = []
    for step in calibration_steps(study):
        train(study, step.runs, loss)
        found.append((step.name, [(run.pair, run.learning_rates) for run in step.runs]))
    return found


class Searched(NamedTuple):
    study: Study
    steps: list
    inputs_hash_before: str


@pytest.fixture(scope="module")
def searched(tmp_path_factory, demo_data):
    """A study whose best rate was planted and found."""
    study = study_in(tmp_path_factory.mktemp("searched"), demo_data)
    before = study.plan.inputs_hash
    return Searched(study, steps_of(study, planted(5e-4)), before)


def test_a_range_test_comes_first_and_no_law_reads_it(searched):
    study, ((name, runs), (first, _), *_), _ = searched
    assert (name, first) == (RANGE_TEST, "calibration round 1")
    assert {pair for pair, _ in runs} == {(2, 2), (4, 4)}  # smallest and largest
    assert sorted({rates.llm for _, rates in runs}) == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    assert not {run.run_id for run in study.plan.range_test} & {run.run_id for run in study.plan.runs}
    decided = read_rates(study.revision)
    assert decided.range_test.best == pytest.approx(5e-4, rel=0.01)  # of a parabola, the planted rate itself
    assert math.isnan(decided.range_test.losses[1e-2])
    assert decided.complete


def starting_too_low(run, step):
    """The short runs of the range test are best at 3e-5, the long ones at 3e-4; pairs differ by 0.2% at most."""
    return planted(3e-5 if run.part == "range-test" else 3e-4)(run, step)


@pytest.fixture(scope="module")
def widened(tmp_path_factory, demo_data):
    """A study whose range of rates started too low, and its steps."""
    study = study_in(tmp_path_factory.mktemp("widened"), demo_data)
    return study, steps_of(study, starting_too_low)


def test_a_range_that_starts_too_low_is_widened_until_the_best_rate_lies_inside(widened):
    study, found = widened
    names = [name for name, _ in found]
    assert names[:4] == [RANGE_TEST, "calibration round 1", "calibration round 2", "calibration round 3"]
    highest = [max(rates.llm for pair, rates in runs if pair == (2, 2)) for _, runs in found[1:4]]
    assert highest[0] < highest[1] < highest[2]
    assert read_rates(study.revision).complete


def test_a_calibration_that_was_stopped_goes_on_with_what_was_decided(study):
    loss = planted(5e-4)
    steps = calibration_steps(study)
    train(study, next(steps).runs, loss)
    first = next(steps)  # decided, and stopped before it was trained
    steps.close()
    decided = read_rates(study.revision)
    again = Study(study.config, study.revision)
    assert next(calibration_steps(again)).runs == first.runs
    worker = plan_calibration(study.inputs, read_rates(study.revision))
    assert {run.run_id for run in worker.every_run} == {run.run_id for run in (*again.plan.range_test, *first.runs)}
    assert read_rates(study.revision) == decided
    whole = steps_of(again, loss)
    assert whole[0][0] == "calibration round 1"  # no second range test
    assert read_rates(study.revision).rounds[0] == decided.rounds[0]
    assert [name for name, _ in steps_of(Study(study.config, study.revision), loss)] == [whole[-1][0]]


def test_pairs_that_cannot_be_told_apart_are_trained_again_with_seeds_of_their_own(study):
    own = study.config.calibration.model_copy(update={"confirm_runs": 3})
    study = Study(study.config.model_copy(update={"calibration": own}), study.revision)
    found = steps_of(study, starting_too_low)
    decided = read_rates(study.revision)
    assert decided.complete
    again = [run for run in study.plan.runs if run.seed != 0]
    pairs = len({run.pair for run in study.plan.runs})
    assert 0 < len(again) <= 3 * pairs
    assert sorted((run.pair, run.seed) for run in again) == sorted((o.pair, o.seed) for o in decided.confirmations)
    assert len({(run.pair, run.seed) for run in again}) == len(again)  # no pair twice with a seed
    assert {run.data_seed for run in again} == {run.seed for run in again}  # which have an order of their own
    assert [name for name, _ in found[1:]] == [f"calibration round {at + 1}" for at in range(len(decided.rounds))]
    assert plan_calibration(study.inputs, decided).runs == study.plan.runs  # a worker's plan, from the file alone


def test_decisions_of_before_pairs_were_trained_again_are_read(searched, tmp_path):
    study, before = searched.study, Revision(tmp_path, 1)
    stored = read_json(rates_path(study.revision))
    older = [[{name: one[name] for name in ("pair", "learning_rates")} for one in tried] for tried in stored["rounds"]]
    write_json(rates_path(before), stored | {"rounds": older[:1]})
    assert read_rates(before).confirmations == ()
    assert {run.seed for run in plan_calibration(study.inputs, read_rates(before)).runs} == {0}


def test_no_pair_is_trained_again_where_that_is_not_wanted(widened):
    study, _ = widened
    assert {run.seed for run in study.plan.runs} == {0}
    assert read_rates(study.revision).confirmations == ()


def test_what_decides_the_calibration_is_known_before_its_rates_are(searched):
    study, _, before = searched
    assert study.plan.inputs_hash == before
    plain = study.config.model_copy(
        update={"calibration": study.config.calibration.model_copy(update={"learning_rates": None})}
    )
    assert plan_calibration(Inputs(plain)).inputs_hash != before


def test_rates_that_were_decided_for_other_pairs_are_decided_anew(searched):
    study = searched.study
    wider = study.config.calibration.model_copy(update={"ranks": (2, 4, 8)})
    other = study.config.model_copy(update={"calibration": wider})
    assert plan_calibration(Inputs(other), read_rates(study.revision)).runs == ()


def test_pairs_without_vision_adapters_are_tried_too(searched):
    rates = read_rates(searched.study.revision).rates
    assert len(rates[RankPair(0, 4)]) >= 4  # the largest is an anchor
    assert len(rates[RankPair(0, 2)]) >= 1


def test_a_list_of_rates_is_one_step_and_pairs_without_an_adapter_have_no_rates_for_it(study):
    own = study.config.calibration.model_copy(
        update={"learning_rates": "me: 0.0001, 0.001; llm: 0.001, 0.002", "ranks": (0, 2, 4)}
    )
    plan = plan_calibration(Inputs(study.config.model_copy(update={"calibration": own})))
    rates = {}
    for run in plan.runs:
        rates.setdefault(tuple(run.pair), []).append(
            run.learning_rates and (run.learning_rates.me, run.learning_rates.llm)
        )
    assert rates[2, 4] == [(1e-4, 1e-3), (1e-4, 2e-3), None, (1e-3, 2e-3)]  # None: 1e-3, the recipe's
    assert rates[0, 2] == [None, (2e-3, 2e-3)]
    assert rates[2, 0] == [(1e-4, 1e-4), None]
    assert (0, 0) not in rates
