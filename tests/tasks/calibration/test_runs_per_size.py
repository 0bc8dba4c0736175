"""Planning one run per size: lengths, checkpoints, identity, cost and what is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mars_core.metrics.identity import content_hash
from tasks.inputs.opened import Inputs
from tasks.planning.cost import cost_on
from tasks.settings.study import StudyConfig
from tasks.study.plan import describe_plan, plan_calibration
from tests.flows.conftest import write_small_study


@pytest.fixture
def small(tmp_path: Path, demo_data: Path) -> StudyConfig:
    """Four pairs, 64 samples, batches of 8."""
    return write_small_study(tmp_path, demo_data)


def per_size(config: StudyConfig, **calibration) -> StudyConfig:
    changed = {"runs": "per_size", **calibration}
    return config.model_copy(update={"calibration": config.calibration.model_copy(update=changed)})


def test_every_pair_and_seed_has_a_run_for_each_power_of_two_with_a_horizon_of_its_own(small):
    plan = plan_calibration(Inputs(per_size(small, seeds=(0, 1))))
    planned = {(run.pair, run.seed, run.schedule.size): run.schedule.horizon for run in plan.runs}
    pairs = {run.pair for run in plan.runs}
    assert planned == {(pair, seed, 8 * h): h for pair in pairs for seed in (0, 1) for h in (1, 2, 4, 8)}
    assert len(pairs) == 4
    assert len({run.run_id for run in plan.runs}) == len({run.name for run in plan.runs}) == len(plan.runs) == 32
    assert plan.steps == 4 * 2 * (1 + 2 + 4 + 8) <= 2 * 4 * 2 * 8
    assert {run.data_seed for run in plan.runs if run.seed == 0} == {small.calibration.data_seed}
    assert plan.run_lengths == "1 to 8 steps"
    assert [one.size for one in plan.schedules] == [64, 32, 16, 8]


def test_a_run_is_looked_at_from_an_eighth_of_its_steps_on_and_last_at_its_end(small):
    batch_of_one = small.model_copy(update={"recipe": small.recipe.model_copy(update={"batch_size": 1})})
    for schedule in plan_calibration(Inputs(per_size(batch_of_one, smallest_size=16))).schedules:
        first, *_, last = schedule.checkpoint_steps
        assert (first, last) == (schedule.horizon // 8, schedule.horizon)
        assert len(schedule.checkpoint_steps) >= 5  # as law C asks
    # Where the smallest size comes sooner than that, it is where all runs begin, as in a calibration of one run.
    wide = plan_calibration(Inputs(per_size(batch_of_one, smallest_size=4)))
    assert [one.checkpoint_steps[0] for one in wide.schedules] == [4, 4, 2, 1, 1]


def test_the_run_of_the_largest_size_is_that_of_a_calibration_of_one_run(small):
    """So that a study which changes from one to the other trains the shorter runs alone."""
    one, several = plan_calibration(Inputs(small)), plan_calibration(Inputs(per_size(small)))
    assert {run.run_id for run in one.runs} == {run.run_id for run in several.runs if run.schedule.size == 64}
    assert one.schedules[0].checkpoint_steps == several.schedules[0].checkpoint_steps
    assert one.inputs_hash != several.inputs_hash


def test_a_calibration_of_one_run_is_planned_and_hashed_as_ever(small):
    plan = plan_calibration(Inputs(small))
    assert [(run.schedule.horizon, run.schedule.size) for run in plan.runs] == [(8, None)] * 4
    assert [run.name for run in plan.runs] == [f"{run.pair.slug} seed0" for run in plan.runs]
    assert plan.inputs_hash == content_hash([sorted(run.run_id for run in plan.runs), [1, 2, 3, 4, 6, 8]])
    described = describe_plan(plan)
    assert (described["steps_per_run"], described["steps"]) == (8, 32)
    assert described["checkpoint_steps"] == [1, 2, 3, 4, 6, 8]
    assert plan.run_lengths == "8 steps"


def test_the_described_plan_says_how_many_runs_there_are_of_each_size(small):
    described = describe_plan(plan_calibration(Inputs(per_size(small))))
    assert [(one["runs"], one["size"], one["steps_per_run"]) for one in described["schedules"]] == [
        (4, 64, 8),
        (4, 32, 4),
        (4, 16, 2),
        (4, 8, 1),
    ]
    assert (described["runs"], described["steps"]) == (16, 60)
    assert "steps_per_run" not in described


@pytest.mark.parametrize(
    ("calibration", "sizes", "note"),
    [
        ({"samples": 64}, [64, 32, 16, 8], None),
        ({"samples": 100}, [64, 32, 16, 8], "largest size 64 instead of 100 samples, capped by the dataset of 64"),
        ({"samples": 48}, [32, 16, 8], "largest size 32 instead of 48 samples, since sizes are powers of two"),
        ({"samples": 64, "smallest_size": 9}, [64, 32, 16], None),
        ({"samples": 64, "smallest_size": 1}, [64, 32, 16, 8], None),  # a step takes a batch
    ],
)
def test_sizes_are_the_powers_of_two_from_the_smallest_to_what_there_is(small, calibration, sizes, note):
    plan = plan_calibration(Inputs(per_size(small, **calibration)))
    assert [one.size for one in plan.schedules] == sizes
    about = [each for each in plan.notes if "largest size" in each]
    assert (not about) if note is None else (len(about) == 1 and about[0].startswith(note))


def test_no_power_of_two_among_the_sizes_is_refused(small):
    message = r"no such size between the smallest, 33, and the largest, 60: lower calibration\.smallest_size"
    with pytest.raises(ValueError, match=message):
        plan_calibration(Inputs(per_size(small, smallest_size=33, samples=60)))


def test_the_estimate_for_another_gpu_counts_the_steps_and_evaluations_of_every_run(small):
    one, several = (cost_on(config, "h100")["calibration"] for config in (small, per_size(small)))

    def training(phase):
        return phase["seconds"] - phase["scoring_seconds"]

    assert training(several) == pytest.approx(training(one) * 15 / 8)
    # checkpoints at 1; 1, 2; 1, 2, 3, 4; 1, 2, 3, 4, 6, 8
    assert several["scoring_seconds"] == pytest.approx(one["scoring_seconds"] * 13 / 6)
    assert several["packs"] == 4 * one["packs"]
    assert several["memory_bytes"] == one["memory_bytes"]


def test_a_plan_with_one_size_says_that_no_law_can_be_fitted(small):
    """And names the setting that is the cause."""
    calibration = small.calibration
    at_end = calibration.model_copy(update={"smallest_size": calibration.samples})
    plan = plan_calibration(Inputs(small.model_copy(update={"calibration": at_end})))
    assert len(plan.schedules[0].checkpoint_steps) == 1
    (note,) = [note for note in plan.notes if "neither law can be fitted" in note]
    assert note.startswith("WARNING: ")
    assert f"lower calibration.smallest_size (now {calibration.samples})" in note
    assert not any("neither law" in note for note in plan_calibration(Inputs(small)).notes)
