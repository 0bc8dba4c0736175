"""Memory against real tensors, and what an estimate makes of operations and bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.families import family_of
from mars_core.models.loading import skeleton
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.models.partition import GROUPS, partition_of
from mars_core.models.targets import Patterns, adapting
from mars_core.packing.cost import activation_bytes as packed_activation_bytes
from mars_core.planning.architecture import architecture_of
from mars_core.planning.devices import DEVICES, device_named
from mars_core.planning.estimate import Budget, estimate
from mars_core.planning.flops import forward_work, group_tokens, training_flops
from mars_core.planning.memory import (
    activation_bytes,
    checkpointed_bytes,
    packed_bytes,
    scoring_bytes,
    trained_bytes,
    weights_bytes,
)
from mars_core.planning.shapes import SampleShape, patch_size_of, pictures_of
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe
from tests.mars_core.planning.wide_instances import ANSWERS, WIDE

PUBLISHED = Path(__file__).parents[3] / "benchmarks" / "published"
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class QuickHalfProducts(TorchDispatchMode):
    """Products of bf16 tensors by way of fp32, below autograd: of the same shapes and bytes, and not ten times slower
    on processors that have no bf16 products of their own."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return operator(*args, **(kwargs or {}))
        return operator(*(arg.float() for arg in args), **(kwargs or {})).bfloat16()


def kept_by_peft(model, partition, batch, pair, dtype):
    """Bytes that a pass of PEFT under the Trainer's autocast keeps, frozen weights and adapters left out."""
    wrapped = add_adapters(model, partition, pair, seed=0).train()
    weights = {weight.untyped_storage().data_ptr() for weight in wrapped.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = dtype == "bfloat16"
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    ):
        loss = token_losses(wrapped, batch).mean()
    del loss
    remove_adapters(wrapped).eval()
    return sum(kept.values())


def every_two(*options):
    """Of models, dtypes and a third pair of options: four of the eight combinations, with every two options in one;
    two of them by default."""
    names, dtypes = tuple(WIDE), ("float32", "bfloat16")
    tried = [(names[i], dtypes[j], options[(i + j) % 2]) for i in range(2) for j in range(2)]
    return [
        tried[0],
        pytest.param(*tried[1], marks=pytest.mark.slow),
        pytest.param(*tried[2], marks=pytest.mark.slow),
        tried[3],
    ]


@pytest.mark.parametrize(
    ("wide", "dtype", "pair"), every_two(RankPair(8, 8), RankPair(32, 32)), indirect=["wide"], ids=str
)
def test_activations_are_those_that_passes_keep(wide, dtype, pair):
    """Within 5% too little and 20% too much for PEFT, up to 15% too much for a pack.

    Half or more of a pack's excess is the last of 4 blocks, which it runs at answer tokens alone; real models have 24
    and more.
    """
    model_type, model, batch = wide
    model = model.to(getattr(torch, dtype))
    batch = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in batch.items()}
    partition = partition_of(model, family_of(model_type))
    architecture = architecture_of(model, partition)
    pictures = pictures_of(batch, patch_size_of(model.config))
    shape = SampleShape(batch["labels"].shape[1], ANSWERS, pictures)
    predicted = activation_bytes(architecture, shape, pair, dtype)
    with QuickHalfProducts():
        kept = kept_by_peft(model, partition, batch, pair, dtype)
        packed = packed_activation_bytes(model, partition, batch, pair, Recipe(dtype=dtype))
    assert 0.95 * kept <= predicted <= 1.2 * kept
    assert packed <= packed_bytes(architecture, shape, pair, dtype) <= 1.15 * packed


@pytest.mark.parametrize(
    ("wide", "dtype", "targets"),
    every_two("attention", Patterns(me="mlp", llm="mlp")),
    indirect=["wide"],
    ids=lambda value: "MLPs" if isinstance(value, Patterns) else value,
)
def test_layers_without_adapters_keep_less(wide, dtype, targets):
    """As near as where all layers are adapted, and for a pack up to 2% too little."""
    model_type, model, batch = wide
    model = model.to(getattr(torch, dtype))
    batch = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in batch.items()}
    whole = partition_of(model, family_of(model_type))
    partition, pair = adapting(whole, targets), RankPair(8, 8)
    architecture = architecture_of(model, partition)
    shape = SampleShape(batch["labels"].shape[1], ANSWERS, pictures_of(batch, patch_size_of(model.config)))
    predicted = activation_bytes(architecture, shape, pair, dtype)
    with QuickHalfProducts():
        kept = kept_by_peft(model, partition, batch, pair, dtype)
        packed = packed_activation_bytes(model, partition, batch, pair, Recipe(dtype=dtype))
    assert 0.95 * kept <= predicted <= 1.2 * kept
    assert predicted < activation_bytes(architecture_of(model, whole), shape, pair, dtype)
    assert 0.98 * packed <= packed_bytes(architecture, shape, pair, dtype) <= 1.15 * packed
    work = forward_work(architecture, shape)
    assert work == forward_work(architecture_of(model, whole), shape)  # frozen layers are passed all the same
    more = training_flops(architecture_of(model, whole), shape, pair) - training_flops(architecture, shape, pair)
    per_rank = {group: whole.parameters_per_rank(group) - partition.parameters_per_rank(group) for group in GROUPS}
    tokens = group_tokens(architecture, shape)
    assert more == sum(6 * tokens[group] * 8 * per_rank[group] for group in GROUPS)


def test_weights_and_adapters_take_what_real_tensors_take(wide):
    model_type, model, _ = wide
    partition = partition_of(model, family_of(model_type))
    architecture = architecture_of(model, partition)
    for dtype in ("float32", "bfloat16"):
        held = {weight.data_ptr(): weight.nbytes for weight in model.to(getattr(torch, dtype)).parameters()}
        assert weights_bytes(architecture, dtype, four_bit=False) == sum(held.values())
    model.float()
    wrapped = add_adapters(model, partition, RankPair(2, 4), seed=0)
    trained = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained)
    for weight in trained:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    real = sum(tensor.nbytes for tensor in [*trained, *(weight.grad for weight in trained), *moments])
    assert trained_bytes(architecture, [RankPair(2, 4)]) == real


def test_an_estimate_puts_work_and_bytes_together(wide):
    model_type, model, _ = wide
    architecture = architecture_of(model, partition_of(model, family_of(model_type)))
    shapes, pair = [SampleShape(200, 40, (64,)), SampleShape(100, 10, ())], RankPair(2, 4)
    budget = Budget(
        (pair,) * 3, 10, 8, 4, scored=100, scored_batch=16, dtype="float32", four_bit=False, passes="packed"
    )
    found = estimate(architecture, shapes, budget, DEVICES["a100-80gb"], 0.5)
    trained = sum(training_flops(architecture, shape, pair) for shape in shapes) / 2 * 3 * 10 * 8
    scored = sum(forward_work(architecture, shape).total for shape in shapes) / 2 * 100
    assert found.flops == pytest.approx(trained + scored)
    assert found.seconds == pytest.approx((trained + scored) / (0.5 * 19.5e12))
    assert (found.fits, found.packs, found.runs_at_once) == (True, 1, 3)
    half = replace(budget, dtype="bfloat16")
    faster = estimate(architecture, shapes, half, DEVICES["a100-80gb"], 0.5)
    assert faster.seconds == pytest.approx((trained + scored) / (0.5 * 312e12))
    assert estimate(architecture, shapes, half, DEVICES["t4"], 0.5).seconds > faster.seconds


def test_runs_go_in_turns_and_packs_where_memory_is_short(wide):
    model_type, model, _ = wide
    architecture = architecture_of(model, partition_of(model, family_of(model_type)))
    pairs = tuple(RankPair(32, 32) for _ in range(16))
    budget = Budget(pairs, 10, 8, 1, scored=0, scored_batch=1, dtype="float32", four_bit=False, passes="packed")
    shapes = [SampleShape(200, 40, (64,))]
    weights = weights_bytes(architecture, "float32", four_bit=False)
    each = int(1.5 * packed_bytes(architecture, shapes[0], pairs[0], "float32"))
    of_one = trained_bytes(architecture, pairs[:1])

    def on(memory):
        return estimate(architecture, shapes, budget, replace(DEVICES["t4"], memory_bytes=int(memory / 0.9) + 9), 0.25)

    assert (on(weights + 16 * of_one + 3 * each).packs, on(weights + 16 * of_one + 3 * each).runs_at_once) == (1, 3)
    assert on(weights + 8 * of_one + each).packs == 2
    assert not on(weights + of_one + each / 2).fits


def test_extremes_count_for_memory_alone(wide):
    model_type, model, _ = wide
    architecture = architecture_of(model, partition_of(model, family_of(model_type)))
    pair, usual, longest = RankPair(2, 4), SampleShape(100, 10, (64,)), SampleShape(400, 10, (64,))
    chatty = SampleShape(90, 80, (64,))  # fewer tokens, but logits at eight times as many
    budget = Budget((pair,), 10, 8, 4, scored=9, scored_batch=2, dtype="float32", four_bit=False, passes="peft")

    def of(*extremes):
        return estimate(architecture, [usual], budget, DEVICES["h100"], 0.5, extremes=extremes)

    assert of(longest, chatty).seconds == of().seconds
    assert of(longest).memory["training"] == int(1.5 * 4 * activation_bytes(architecture, longest, pair, "float32"))
    assert of(chatty).memory["scoring"] == int(1.5 * 2 * scoring_bytes(architecture, chatty, "float32"))


@pytest.mark.parametrize("passes", ["packed", "peft", "checkpointed"])
def test_what_is_kept_is_that_of_how_runs_are_trained(wide, passes):
    model_type, model, _ = wide
    architecture = architecture_of(model, partition_of(model, family_of(model_type)))
    shape, pair = SampleShape(200, 40, (64,)), RankPair(2, 4)
    count = {"packed": packed_bytes, "peft": activation_bytes, "checkpointed": checkpointed_bytes}[passes]
    budget = Budget((pair,), 10, 8, 2, scored=0, scored_batch=1, dtype="bfloat16", four_bit=False, passes=passes)
    found = estimate(architecture, [shape], budget, DEVICES["h100"], 0.5)
    assert found.memory["training"] == int(1.5 * 2 * count(architecture, shape, pair, "bfloat16"))


def test_gradient_checkpointing_costs_time_and_saves_memory(wide):
    model_type, model, _ = wide
    architecture = architecture_of(model, partition_of(model, family_of(model_type)))
    shape, pair = SampleShape(200, 40, (64,)), RankPair(2, 4)
    assert checkpointed_bytes(architecture, shape, pair, "bfloat16") < activation_bytes(
        architecture, shape, pair, "bfloat16"
    )
    again = training_flops(architecture, shape, pair, recomputed=True) - training_flops(architecture, shape, pair)
    work = forward_work(architecture, shape)
    assert again == sum(work.layers[group] + work.attention[group] for group in ("me", "llm"))


@pytest.mark.parametrize(
    ("folder", "parameters"),
    # As their model cards have it: 0.89 B and 3.75 B (3,754,622,976).
    [("llava-onevision-qwen2-0.5b-ov-hf", 894_000_000), ("Qwen2.5-VL-3B-Instruct", 3_754_622_976)],
)
def test_published_configurations_have_the_published_number_of_parameters(folder, parameters):
    network, partition = skeleton(str(PUBLISHED / folder))
    assert architecture_of(network, partition).parameters == pytest.approx(parameters, rel=1e-3)
    assert json.loads((PUBLISHED / folder / "config.json").read_text())["model_type"] == network.config.model_type


def test_an_unknown_device_is_refused_with_those_of_the_table():
    with pytest.raises(ValueError, match=r"'tpu' is not in the planner's table: choose one of h200, h100, a100-80gb"):
        device_named("tpu")
    assert device_named("H100") is DEVICES["h100"]
