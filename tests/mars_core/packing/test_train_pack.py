from __future__ import annotations

import copy
import threading
from dataclasses import replace
from itertools import count

import pytest
import torch

from mars_core.packing import score, train
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.state import PackState
from mars_core.ranks import RankPair

MEMBERS = [(RankPair(2, 4), 3), (RankPair(4, 2), 3), (RankPair(0, 2), 3), (RankPair(2, 2), 4)]


def losses(run):
    return [checkpoint.val_loss for checkpoint in run.checkpoints]


@pytest.fixture
def broken_member(monkeypatch):
    """Gives the member with this seed weights that overflow."""

    def break_it(seed: int, factor: float) -> None:
        healthy = train.initial_weights

        def initial(model, partition, pair, seed_of_run):
            weights = healthy(model, partition, pair, seed_of_run)
            return (weights + 1) * factor if seed_of_run == seed else weights

        monkeypatch.setattr(train, "initial_weights", initial)

    return break_it


@pytest.mark.parametrize("factor", [1e200, float("nan")])
def test_a_diverging_run_is_recorded_and_dropped_without_touching_its_neighbours(
    pack, undisturbed, broken_member, factor
):
    expected, _ = undisturbed(MEMBERS)
    broken_member(4, factor)
    result, weights = pack(MEMBERS, adapter_batches=AdapterBatches(4, 1))
    assert result.runs[3].diverged_at == 1
    assert result.runs[3].checkpoints == ()
    assert [weights[step][3] for step in (1, 3, 5)] == [None] * 3
    for found, wanted in zip(result.runs[:3], expected.runs[:3], strict=True):
        assert found.diverged_at is None
        assert losses(found) == pytest.approx(losses(wanted), rel=1e-9)


def test_a_pack_whose_runs_have_all_diverged_ends(pack, broken_member):
    broken_member(3, float("nan"))
    seen = []
    result, _ = pack(MEMBERS[:2], on_step=seen.append)
    assert [run.diverged_at for run in result.runs] == [1, 1]
    assert seen == [1]


def test_an_absurd_learning_rate_is_a_divergence_not_a_crash(pack, plain):
    recipe = replace(plain.recipe, learning_rate=1e200, warmup_ratio=0.0, max_grad_norm=0.0)
    result, _ = pack(MEMBERS[:2], recipe=recipe, checkpoint_steps=(5,))
    assert all(run.diverged_at is not None and run.checkpoints == () for run in result.runs)


def test_a_validation_loss_without_a_perplexity_is_a_divergence(pack, base, monkeypatch):
    """exp of more than 709 nats is not a number a table can hold."""
    head = base.model.get_output_embeddings()
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda hidden: 1e5 * forward(hidden))
    result, _ = pack(MEMBERS[:1], checkpoint_steps=(1, 5))
    assert (result.runs[0].diverged_at, result.runs[0].checkpoints) == (1, ())


@pytest.mark.parametrize(
    ("dropout", "error"),
    [
        pytest.param(0.0, torch.OutOfMemoryError("CUDA out of memory"), marks=pytest.mark.slow),
        (0.3, RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    ],
)
def test_out_of_memory_narrows_the_adapter_batches_and_changes_no_result(
    pack, undisturbed, plain, monkeypatch, error, dropout
):
    """The allocator refuses more than one member, in the second micro-batch of a step and in evaluation."""
    recipe = replace(plain.recipe, lora_dropout=dropout)
    expected, _ = undisturbed(MEMBERS, recipe=recipe)
    calls = count(1)

    def refusing(work):
        def guarded(model, this):
            if this.adapter_batch.width > 1 and next(calls) > 5:
                raise error
            return work(model, this)

        return guarded

    monkeypatch.setattr(train, "adapter_batch_losses", refusing(train.adapter_batch_losses))
    monkeypatch.setattr(score, "adapter_batch_logits", refusing(score.adapter_batch_logits))
    result, _ = pack(MEMBERS, recipe=recipe, adapter_batches=AdapterBatches(4, 1))
    assert result.width == 1
    for found, wanted in zip(result.runs, expected.runs, strict=True):
        assert losses(found) == pytest.approx(losses(wanted), rel=1e-9)


def test_out_of_memory_in_evaluation_does_not_narrow_training(pack, undisturbed, monkeypatch):
    logits = score.adapter_batch_logits

    def refuse_wide(model, this):
        if this.adapter_batch.width > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(model, this)

    expected, _ = undisturbed(MEMBERS)
    monkeypatch.setattr(score, "adapter_batch_logits", refuse_wide)
    result, _ = pack(MEMBERS, adapter_batches=AdapterBatches(4, 1))
    assert result.width == 4
    for found, wanted in zip(result.runs, expected.runs, strict=True):
        assert losses(found) == pytest.approx(losses(wanted), rel=1e-9)


def test_adapter_batches_that_fail_together_are_tried_one_by_one(pack, undisturbed, monkeypatch):
    """Two adapter batches of one member each do not fit at once, and do by themselves."""
    expected, _ = undisturbed(MEMBERS)
    work, under_way = train.adapter_batch_losses, []

    def refuse_two(model, this):
        under_way.append(id(this))
        try:
            if len(under_way) > 1 or not gate.is_set():
                gate.wait(0.5)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return work(model, this)
        finally:
            under_way.remove(id(this))
            if len(under_way) == 0:
                gate.set()

    gate = threading.Event()
    monkeypatch.setattr(train, "adapter_batch_losses", refuse_two)
    result, _ = pack(MEMBERS[:2], adapter_batches=AdapterBatches(1, 2))
    for found, wanted in zip(result.runs, expected.runs[:2], strict=True):
        assert losses(found) == pytest.approx(losses(wanted), rel=1e-9)


def test_out_of_memory_with_one_run_says_what_to_do(pack, monkeypatch, base):
    def refuse(model, this):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "adapter_batch_losses", refuse)
    with pytest.raises(MemoryError, match="with a single run: lower micro_batch_size"):
        pack(MEMBERS)


def test_another_error_is_not_taken_for_a_lack_of_memory(pack, monkeypatch, base):
    def refuse(model, this):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(train, "adapter_batch_losses", refuse)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        pack(MEMBERS)


LORA_PLUS = {
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "schedule": "warmup_stable_decay",
    "final_share": 0.1,
    "lora_plus_ratio": 4.0,
}


@pytest.mark.parametrize(
    ("changes", "stops"),
    [({}, (1, 3)), ({"lora_dropout": 0.3}, (3,)), (LORA_PLUS, (1,))],
    ids=["plain", "dropout", "LoRA+"],
)
def test_a_resumed_pack_ends_where_an_undisturbed_one_does(pack, plain, broken_member, changes, stops):
    recipe = replace(plain.recipe, **changes)
    broken_member(4, float("nan"))  # one run has diverged by then
    states: dict[int, PackState] = {}
    whole, _ = pack(MEMBERS, recipe=recipe, on_checkpoint=lambda state: states.update({state.step: state}))
    for stop_after in stops:
        seen = []
        resumed, _ = pack(MEMBERS, recipe=recipe, resume=states[stop_after], on_step=seen.append)
        assert seen == list(range(stop_after + 1, 6))
        for found, wanted in zip(resumed.runs, whole.runs, strict=True):
            assert found.diverged_at == wanted.diverged_at
            assert [c.step for c in found.checkpoints] == [c.step for c in wanted.checkpoints]
            for one, other in zip(found.checkpoints, wanted.checkpoints, strict=True):
                same = ("train_loss", "val_loss", "val_accuracy", "lr", "grad_norm_me", "grad_norm_llm")
                assert [getattr(one, name) for name in same] == [getattr(other, name) for name in same]
        for one, other in zip(resumed.weights[:3], whole.weights[:3], strict=True):
            assert torch.equal(one, other)


def test_the_state_of_another_pack_is_refused(pack):
    states = []
    pack(MEMBERS[:2], checkpoint_steps=(1,), on_checkpoint=states.append)
    with pytest.raises(ValueError, match="is of another pack"):
        pack(MEMBERS[1:3], checkpoint_steps=(1,), resume=states[0])


def test_a_state_that_was_laid_out_otherwise_is_refused(pack):
    """Read as it stands, A and B would be taken for one another."""
    states = []
    pack(MEMBERS[:1], checkpoint_steps=(1,), on_checkpoint=states.append)
    with pytest.raises(ValueError, match="written by an earlier version, which laid adapters out otherwise"):
        pack(MEMBERS[:1], checkpoint_steps=(1,), resume=replace(states[0], layout="layer by layer"))


def test_a_state_from_other_checkpoint_steps_is_refused(pack):
    """Gone on with, the pack would miss the steps up to the state's."""
    states = []
    pack(MEMBERS[:2], checkpoint_steps=(2,), on_checkpoint=states.append)
    with pytest.raises(ValueError, match=r"measured at steps \[2\], expected \[1, 2\]"):
        pack(MEMBERS[:2], checkpoint_steps=(1, 2), resume=states[0])


def test_the_base_is_given_back_bit_for_bit(pack, base):
    before = copy.deepcopy(base.model.state_dict())
    attention = base.model.config.text_config._attn_implementation
    pack(MEMBERS, checkpoint_steps=(1,))
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())
    assert not base.model.training
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert not any("forward" in vars(module) for module in base.model.modules())
    assert not any(module._forward_pre_hooks for module in base.model.modules())
    assert not any(name.startswith("mars") for module in base.model.modules() for name in vars(module))
    assert base.model.config.text_config._attn_implementation == attention


def test_checkpoints_do_not_change_the_training(pack, undisturbed):
    with_three, _ = undisturbed(MEMBERS)
    with_one, _ = pack(MEMBERS, checkpoint_steps=(5,))
    assert all(torch.equal(one, other) for one, other in zip(with_three.weights, with_one.weights, strict=True))


def test_every_step_is_announced_and_no_batch_is_drawn_in_vain(pack, batch_of):
    seen, drawn = [], []

    def steps(done):
        for number in count(done + 1):
            drawn.append(number)
            yield [batch_of(0)]

    result, _ = pack(MEMBERS, train_steps=steps, checkpoint_steps=(2, 3), on_step=seen.append)
    assert seen == drawn == [1, 2, 3]
    for run in result.runs:
        first, second = run.checkpoints
        assert 0 < first.wall_seconds < second.wall_seconds
        assert second.peak_memory_bytes > 1 << 20
    assert result.runs[0].checkpoints[-1].wall_seconds * len(MEMBERS) <= result.seconds


@pytest.mark.parametrize("steps", [(), (0, 2), (2, 2), (3, 1), (1, 7)])
def test_checkpoint_steps_that_make_no_sense_are_refused(pack, steps):
    with pytest.raises(ValueError, match=rf"at most the horizon of 6 steps, got \[{', '.join(map(str, steps))}\]"):
        pack(MEMBERS, checkpoint_steps=steps)


def test_too_few_batches_are_refused(pack, base, batch_of):
    with pytest.raises(ValueError, match="ran out before step 5: give one batch per optimizer step"):
        pack(MEMBERS, train_steps=lambda done: [[batch_of(0)]])
    assert not base.model.training


def test_a_batch_without_answers_is_refused(pack, batch_of):
    batch = batch_of(0)
    empty = batch | {"labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(ValueError, match="without answer tokens"):
        pack(MEMBERS, train_steps=lambda done: [[empty]])
