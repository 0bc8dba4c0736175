from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mars_core.demo import demo_backbone_path
from mars_core.models.loading import load_base
from mars_core.models.lora import trainable_parameters
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.cost import ACTIVATION_MARGIN, BYTES_PER_TRAINABLE, Cost, Scoring, adapter_batches_for
from mars_core.packing.state import PackState
from mars_core.ranks import RankPair
from tasks.calibration.packs import drop_pack_states, plan_packs, unfinished_packs
from tasks.calibration.state import drop_state, has_state, read_state, state_folder, write_state
from tasks.inputs.opened import Inputs
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.data import DataConfig
from tasks.settings.study import StudyConfig
from tasks.storage.files import write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.plan import CalibrationPlan, PlannedPack, PlannedRun, RunSchedule
from tests.tasks.calibration.planned import planned_study

STEPS = (2, 4)
RUNS = [PlannedRun(f"run{number:02d}", RankPair(2, 2 + number), 0, RunSchedule(4, STEPS)) for number in range(10)]


def study(**calibration) -> StudyConfig:
    data = DataConfig(train="train.json")
    return StudyConfig(study="study", model="model", data=data, calibration=CalibrationConfig(**calibration))


def at(revision: Revision, plan: CalibrationPlan) -> Study:
    return planned_study(study(), revision, plan)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(None, [10]), (10, [10]), (4, [3, 4, 3]), (3, [2, 3, 2, 3]), (1, [1] * 10)]
)
def test_packs_are_as_few_and_as_even_as_the_limit_allows(limit, sizes):
    packs = plan_packs(Inputs(study(pack_runs=limit)), RUNS)
    assert sorted(len(pack.runs) for pack in packs) == sorted(sizes)
    assert [run for pack in packs for run in pack.runs] == RUNS
    assert plan_packs(Inputs(study(pack_runs=limit)), []) == []


@pytest.mark.parametrize(("limit", "sizes"), [(None, [5, 5]), (4, [2, 3, 2, 3]), (5, [5, 5])])
def test_the_runs_of_a_pack_share_one_order_of_the_samples(limit, sizes):
    runs = [replace(run, seed=number % 2, data_seed=number % 2) for number, run in enumerate(RUNS)]
    packs = plan_packs(Inputs(study(pack_runs=limit)), runs)
    assert sorted(len(pack.runs) for pack in packs) == sorted(sizes)
    assert all({run.data_seed for run in pack.runs} == {pack.data_seed} for pack in packs)
    assert sorted(run.run_id for pack in packs for run in pack.runs) == [run.run_id for run in RUNS]


HALF = RunSchedule(2, (2,), size=16)


@pytest.mark.parametrize(("limit", "sizes"), [(None, [5, 5]), (4, [2, 3, 2, 3]), (1, [1] * 10)])
def test_the_runs_of_a_pack_are_of_one_length(limit, sizes):
    runs = [replace(run, schedule=HALF) if number % 2 else run for number, run in enumerate(RUNS)]
    packs = plan_packs(Inputs(study(pack_runs=limit)), runs)
    assert sorted(len(pack.runs) for pack in packs) == sorted(sizes)
    assert all({run.schedule for run in pack.runs} == {pack.schedule} for pack in packs)
    assert sorted(run.run_id for pack in packs for run in pack.runs) == [run.run_id for run in RUNS]


def test_a_limit_in_time_counts_the_length_of_the_runs_it_packs(monkeypatch):
    """4 steps and 2 evaluations take 40 s, 2 and 1 take 20 s; of an hour, 120 s are left after the start."""
    monkeypatch.setattr("tasks.calibration.packs._runs_in_memory", lambda *_: 100)
    cost = Cost(0, 0, SMALL, step_seconds=2.5, evaluation_seconds=15.0, startup_seconds=3480.0)
    runs = [replace(run, schedule=HALF) if number >= 4 else run for number, run in enumerate(RUNS)]
    packs = plan_packs(Inputs(study(pack_hours=1)), runs, cost)
    assert [(pack.schedule.horizon, len(pack.runs)) for pack in packs] == [(4, 2), (4, 2), (2, 6)]


def test_the_id_of_a_pack_is_that_of_its_runs_whatever_their_order():
    assert PlannedPack(tuple(RUNS)).pack_id == PlannedPack(tuple(reversed(RUNS))).pack_id
    assert PlannedPack(tuple(RUNS)).pack_id != PlannedPack(tuple(RUNS[1:])).pack_id


def a_state() -> PackState:
    generator = torch.Generator().manual_seed(0)
    tensors = {"0.weights": torch.randn(5, generator=generator), "0.generator": generator.get_state()}
    checkpoint = {"step": 2, "val_loss": 1.25}
    return PackState(
        2, STEPS, 1.5, tensors, [{"pair": [2, 4], "seed": 0, "checkpoints": [checkpoint], "diverged_at": None}]
    )


def test_a_state_comes_back_as_it_was_and_replaces_the_one_before(tmp_path):
    assert read_state(tmp_path / "pack", STEPS) is None
    for _ in range(2):
        write_state(tmp_path / "pack", a_state())
    assert [path.name for path in (tmp_path / "pack").iterdir()] == ["state.safetensors"]
    found, stored = read_state(tmp_path / "pack", STEPS), a_state()
    assert replace(found, tensors={}) == replace(stored, tensors={})
    assert found.tensors.keys() == stored.tensors.keys()
    assert all(torch.equal(tensor, stored.tensors[name]) for name, tensor in found.tensors.items())
    drop_state(tmp_path / "pack")
    assert read_state(tmp_path / "pack", STEPS) is None


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_a_damaged_state_is_no_state(tmp_path, damage):
    write_state(tmp_path, a_state())
    path = tmp_path / "state.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert read_state(tmp_path, STEPS) is None


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_bit_that_the_disk_has_flipped_is_found_wherever_it_is(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("state")
    write_state(folder, a_state())
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    found, stored = read_state(folder, STEPS), a_state()
    # Padding may flip, and a digit of the header's names: never what training would go on with.
    assert found is None or (
        replace(found, tensors={}) == replace(stored, tensors={})
        and found.tensors.keys() == stored.tensors.keys()
        and all(torch.equal(tensor, stored.tensors[name]) for name, tensor in found.tensors.items())
    )


def test_a_state_of_an_earlier_version_has_no_hash_and_is_gone_on_with(tmp_path):
    write_state(tmp_path, a_state())
    path = tmp_path / "state.safetensors"
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata={"state": metadata["state"]})
    assert read_state(tmp_path, STEPS) is not None


def test_a_state_that_was_measured_at_other_steps_is_none_to_go_on_with(tmp_path):
    write_state(tmp_path, a_state())
    assert read_state(tmp_path, STEPS) is not None
    assert read_state(tmp_path, (1, *STEPS)) is None
    assert has_state(tmp_path)


def test_unfinished_packs_go_on_as_they_were(tmp_path):
    revision = Revision(Path(tmp_path), 1)
    packs = [PlannedPack(tuple(RUNS[:4])), PlannedPack(tuple(RUNS[4:6])), PlannedPack(tuple(RUNS[6:8]))]
    for pack in packs:
        folder = state_folder(revision, pack.pack_id)
        write_json(folder / "runs.json", [run.run_id for run in pack.runs])
        if pack is not packs[2]:  # this one was killed before its first checkpoint
            write_state(folder, a_state())
    both = {packs[0].pack_id, packs[1].pack_id}
    assert {pack.pack_id for pack in unfinished_packs(at(revision, plan_of(RUNS)), RUNS)} == both
    # Killed while its runs were being stored: those that are left go on in the pack that they were trained in.
    assert {pack.pack_id for pack in unfinished_packs(at(revision, plan_of(RUNS)), RUNS[1:])} == both
    assert unfinished_packs(at(revision, plan_of(RUNS)), RUNS[4:]) == [packs[1]]
    assert unfinished_packs(at(revision, plan_of(RUNS[5:])), RUNS[5:]) == []
    assert (
        unfinished_packs(at(revision, plan_of(RUNS, steps=(1, 2, 4))), RUNS) == []
    )  # they were measured at other steps


def plan_of(runs, steps=STEPS) -> CalibrationPlan:
    return CalibrationPlan(tuple(replace(run, schedule=RunSchedule(4, steps)) for run in runs), notes=())


SMALL = Scoring(100, 0)


def test_adapter_batches_are_as_wide_as_memory_allows():
    one = 100
    fit = int(one * ACTIVATION_MARGIN)
    assert adapter_batches_for(one, SMALL, 1000, 50, 1050 + 8 * fit, at_once=2, device="cpu") == AdapterBatches(4, 2)
    assert adapter_batches_for(one, SMALL, 1000, 50, 1050 + 80 * fit, at_once=2, device="cpu") == AdapterBatches(
        4, 2
    )  # wider brings nothing
    assert adapter_batches_for(one, SMALL, 1000, 50, 1050 + 5 * fit, at_once=2, device="cpu") == AdapterBatches(2, 2)
    assert adapter_batches_for(one, SMALL, 1000, 50, 1050 + 1 * fit, at_once=2, device="cpu") == AdapterBatches(1, 1)
    assert adapter_batches_for(one, SMALL, 1000, 50, 1050 + 20 * fit, at_once=1, device="cuda") == AdapterBatches(20, 1)
    with pytest.raises(ValueError, match="lower micro_batch_size"):
        adapter_batches_for(one, SMALL, 1000, 50, 1050 + fit - 1, at_once=2, device="cpu")


def test_an_evaluation_that_takes_more_goes_in_narrower_adapter_batches():
    room = 16 * int(100 * ACTIVATION_MARGIN)

    def adapter_batches(scoring):
        return adapter_batches_for(100, scoring, 0, 0, room, at_once=2, device="cpu")

    assert adapter_batches(Scoring(room // 8, 0)) == AdapterBatches(4, 2)
    assert adapter_batches(Scoring(room // 4, 0)) == AdapterBatches(4, 2, score_width=2)
    assert adapter_batches(Scoring(room // 8, room // 4)) == AdapterBatches(
        4, 2, score_width=2
    )  # each adapter batch's copies come on top
    assert adapter_batches(Scoring(room, 0)) == AdapterBatches(4, 1, score_width=1)
    with pytest.raises(ValueError, match="lower evaluation_batch_size"):
        adapter_batches(Scoring(room, 1))


def test_the_cost_of_runs_is_that_of_their_steps_and_evaluations():
    cost = Cost(
        base_bytes=0,
        activation_bytes=0,
        scoring=Scoring(0, 0),
        step_seconds=0.5,
        evaluation_seconds=2.0,
        startup_seconds=3.0,
    )
    assert cost.seconds(runs=4, steps=10, checkpoints=5) == 3 + 4 * (10 * 0.5 + 5 * 2)


def test_packs_are_cut_to_the_memory_budget(shared_small_base):
    """Room for three runs' adapters beside model and activations makes four packs of ten runs."""
    base = shared_small_base
    largest = max(trainable_parameters(base.partition, run.pair) for run in RUNS) * BYTES_PER_TRAINABLE
    cost = Cost(
        base_bytes=1000,
        activation_bytes=200,
        scoring=SMALL,
        step_seconds=1,
        evaluation_seconds=1,
        startup_seconds=0,
    )
    budget = 1000 + int(200 * ACTIVATION_MARGIN) + 3 * largest + largest // 2
    inputs = Inputs(study(memory_gigabytes=budget / 1e9))
    inputs.base_model = base
    packs = plan_packs(inputs, RUNS, cost)
    assert sorted(len(pack.runs) for pack in packs) == [2, 2, 3, 3]


@pytest.fixture(scope="module")
def shared_small_base():
    return load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)


def test_nothing_is_left_of_packs_that_were_killed_when_all_of_their_runs_were_stored(tmp_path):
    revision = Revision(Path(tmp_path), 1)
    pack, probe = PlannedPack(tuple(RUNS[:4])), state_folder(revision, "probe-of-refine")
    write_state(state_folder(revision, pack.pack_id), a_state())
    write_json(state_folder(revision, pack.pack_id) / "runs.json", [run.run_id for run in pack.runs])
    write_state(probe, a_state())  # another stage goes on from this one
    drop_pack_states(at(revision, plan_of(RUNS)))
    assert [path.name for path in probe.parent.iterdir()] == [probe.name]
