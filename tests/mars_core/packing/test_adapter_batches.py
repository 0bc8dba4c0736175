from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mars_core.packing.adapter_batch import make_adapter_batch
from mars_core.packing.adapter_batches import split_into_adapter_batches
from mars_core.packing.adapters import layout_of
from mars_core.packing.cost import Scoring, activation_bytes, measure_cost, scoring_of
from mars_core.packing.run import PackRun, start_runs
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe

pairs = st.builds(RankPair, st.integers(0, 4), st.integers(1, 4))


def members(of_pairs):
    return [SimpleNamespace(run=SimpleNamespace(pair=pair)) for pair in of_pairs]


@given(st.lists(pairs, min_size=1, max_size=20), st.integers(1, 6), st.integers(1, 5))
def test_every_member_is_in_one_adapter_batch_of_its_kind(of_pairs, width, at_once):
    all_members = members(of_pairs)
    adapter_batches = split_into_adapter_batches(all_members, width, at_once)
    assert sorted(id(one) for adapter_batch in adapter_batches for one in adapter_batch) == sorted(map(id, all_members))
    for adapter_batch in adapter_batches:
        assert 1 <= len(adapter_batch) <= width
        assert len({one.run.pair.r_me == 0 for one in adapter_batch}) == 1


@pytest.mark.parametrize(
    ("count", "width", "at_once", "sizes"),
    [(4, 4, 2, [2, 2]), (16, 4, 2, [4, 4, 4, 4]), (16, 4, 16, [1] * 16), (5, 4, 2, [2, 3]), (3, 8, 1, [3])],
)
def test_no_thread_waits_while_members_could_be_shared_out(count, width, at_once, sizes):
    adapter_batches = split_into_adapter_batches(members([RankPair(2, 2)] * count), width, at_once)
    assert sorted(map(len, adapter_batches)) == sizes


def test_the_probe_of_the_cost_is_content_with_fewer_steps_than_it_wants(base, batch_of, scored):
    cost, adapter_batches = measure_cost(
        base.model,
        base.partition,
        [RankPair(2, 2), RankPair(4, 2)],
        steps=lambda done: [[batch_of(0, 1)]][done:],
        validation=scored(4),
        validation_samples=8,
        recipe=Recipe(dtype="float64"),
        memory_bytes=1 << 34,
        at_once=1,
    )
    assert cost.step_seconds > 0
    assert cost.activation_bytes > 0
    assert cost.base_bytes == sum(weight.nbytes for weight in base.model.parameters())
    assert adapter_batches.at_once == 1


def test_what_a_pass_keeps_is_counted_in_the_recipes_precision_and_with_its_masks(base, batch_of):
    model = copy.deepcopy(base.model).float()
    batch = batch_of(0, 1)
    batch["pixel_values"] = batch["pixel_values"].float()
    pair = RankPair(2, 2)
    full, with_masks = (
        activation_bytes(model, base.partition, batch, pair, Recipe(lora_dropout=dropout)) for dropout in (0.0, 0.1)
    )
    half_model = copy.deepcopy(model).bfloat16()
    half_batch = batch | {"pixel_values": batch["pixel_values"].bfloat16()}
    half = activation_bytes(half_model, base.partition, half_batch, pair, Recipe(dtype="bfloat16"))
    assert half < full < with_masks


def test_an_evaluation_is_counted_by_its_answers(base, batch_of):
    """Logits in fp64 of every answer token, two copies in fp32 for one member at a time, half as much again."""
    batches = [batch_of(0, 1), batch_of(0)]
    answers = int((batches[0]["labels"] != -100).sum())
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    logits = int(answers * vocabulary * 1.5)
    assert scoring_of(base.model, batches) == Scoring(logits * 8, logits * 2 * 4)


def test_seeds_of_a_pair_share_a_product_in_every_layer(base):
    """Members as a pack plans them, seed by seed; an adapter batch holds those of one LLM rank."""
    members = [PackRun(RankPair(r_me, r_llm), seed) for seed in (0, 1) for r_me in (1, 2) for r_llm in (1, 2)]
    layouts = [layout_of(base.partition, member.pair) for member in members]
    flats = [torch.zeros(layout.size, dtype=torch.float64) for layout in layouts]
    started = start_runs(members, layouts, flats, Recipe(), 4)
    for adapter_batch in split_into_adapter_batches(started, 4, 1):
        made = make_adapter_batch(
            [one.layout for one in adapter_batch],
            [one.weights for one in adapter_batch],
            [one.gradient for one in adapter_batch],
        )
        for layer in base.partition.llm:
            assert [len(stack.a) for stack in made.adapters[layer.name]] == [4]
        for layer in base.partition.me:
            assert [len(stack.a) for stack in made.adapters[layer.name]] == [2, 2]
