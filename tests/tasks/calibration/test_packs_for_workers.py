"""Which runs are packed together for workers, where nothing can be measured beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mars_core.demo import demo_backbone_path
from mars_core.packing.state import PackState
from mars_core.ranks import RankPair
from tasks.calibration.packs import PACK_FILE, packs_for_workers
from tasks.calibration.state import state_folder, write_state
from tasks.inputs.opened import Inputs
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.data import DataConfig
from tasks.settings.study import StudyConfig
from tasks.storage.files import write_json
from tasks.storage.folder import Revision
from tasks.study.plan import CalibrationPlan, PlannedRun, RunSchedule, plan_calibration
from tests.flows.conftest import write_small_study
from tests.tasks.calibration.planned import planned_study

SCHEDULE = RunSchedule(8, (4, 8))
RUNS = tuple(PlannedRun(f"run{number:02d}", RankPair(2, number), 0, SCHEDULE) for number in range(1, 11))
PLAN = CalibrationPlan(RUNS, notes=())


def packed(
    tmp_path: Path, missing: Sequence[PlannedRun] = RUNS, workers: int | None = None, **calibration
) -> list[list[str]]:
    """Run ids by pack. There is no model and no data: whatever measured or loaded anything would fail."""
    config = StudyConfig(
        study=str(tmp_path),
        model="none",
        data=DataConfig(train="none.json"),
        calibration=CalibrationConfig(ranks=(2, 4), **calibration),
    )
    packs, expected = packs_for_workers(planned_study(config, Revision(tmp_path, 1), PLAN), missing, workers)
    assert expected is None
    return [[run.run_id for run in pack.runs] for pack in packs]


@pytest.mark.parametrize(("limit", "sizes"), [(None, [3, 4, 3]), (1, [1] * 10), (10, [10])])
def test_packs_hold_four_runs_or_what_the_study_says(tmp_path, limit, sizes):
    packs = packed(tmp_path, pack_runs=limit)
    assert sorted(map(len, packs)) == sorted(sizes)
    assert [run for pack in packs for run in pack] == [run.run_id for run in RUNS]


@pytest.mark.parametrize(
    ("workers", "sizes"), [(1, [3, 4, 3]), (2, [3, 4, 3]), (4, [2, 3, 3, 2]), (10, [1] * 10), (64, [1] * 10)]
)
def test_every_worker_gets_a_pack_where_there_are_runs_enough(tmp_path, workers, sizes):
    assert sorted(map(len, packed(tmp_path, workers=workers))) == sorted(sizes)


def test_packs_that_workers_may_have_stay_when_workers_come_or_go(tmp_path):
    asked = packed(tmp_path, workers=4)
    assert packed(tmp_path, workers=10) == packed(tmp_path, workers=1) == asked


def test_a_pack_that_was_begun_goes_on_as_it_was(tmp_path):
    begun = [RUNS[3].run_id, RUNS[7].run_id]
    folder = state_folder(Revision(tmp_path, 1), "begun")
    write_state(folder, PackState(4, SCHEDULE.checkpoint_steps, 1.0, {"0.weights": torch.zeros(1)}, [{}, {}]))
    write_json(folder / PACK_FILE, begun)
    first, *others = packed(tmp_path)
    assert first == begun
    assert sorted(run for pack in others for run in pack) == sorted({run.run_id for run in RUNS} - set(begun))


def test_a_machine_without_weights_and_gpu_can_plan(tmp_path, demo_data):
    model = tmp_path / "model"
    shutil.copytree(demo_backbone_path(), model, ignore=shutil.ignore_patterns("*.safetensors"))
    small = write_small_study(tmp_path, demo_data)
    whole, bare = (
        plan_calibration(Inputs(small)),
        plan_calibration(Inputs(small.model_copy(update={"model": str(model)}))),
    )
    assert [(run.pair, run.seed) for run in bare.runs] == [(run.pair, run.seed) for run in whole.runs]
    assert bare.schedules == whole.schedules


def test_packs_stay_as_they_were_asked_for_while_others_finish(tmp_path):
    """Cut anew, the eight runs left would make packs of 3, 2 and 3; workers have packs of 3, 3 and 2."""
    asked = packed(tmp_path, pack_runs=3)
    assert [len(pack) for pack in asked] == [2, 3, 3, 2]
    assert packed(tmp_path, RUNS[2:], pack_runs=3) == asked[1:]
    assert packed(tmp_path, RUNS[3:], pack_runs=3) == asked[1:]  # killed while the first of a pack was stored
    assert packed(tmp_path, RUNS[5:], pack_runs=1) == [[run.run_id] for run in RUNS[5:]]
