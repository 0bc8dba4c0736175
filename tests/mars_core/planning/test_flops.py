"""Counts of operations, held against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.families import FAMILIES, family_of
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.models.partition import partition_of
from mars_core.planning.architecture import architecture_of
from mars_core.planning.flops import forward_work, training_flops
from mars_core.planning.shapes import SampleShape, patch_size_of, pictures_of
from mars_core.ranks import RankPair
from tests.mars_core.models.small_instances import BATCHES, small_model

ANSWERS = 3


@pytest.fixture(params=FAMILIES)
def counted(request):
    """(model, partition, batch, architecture, shape); eager attention is products that the counter knows."""
    model = small_model(request.param).requires_grad_(False)
    model.set_attn_implementation("eager")
    batch = BATCHES[request.param]()
    labels = batch["input_ids"].clone()
    labels[:, :-ANSWERS] = -100
    partition = partition_of(model, family_of(request.param))
    shape = SampleShape(labels.shape[1], ANSWERS, pictures_of(batch, patch_size_of(model.config)))
    return model, partition, batch | {"labels": labels}, architecture_of(model, partition), shape


def bare_projection(model, shape) -> int:
    """Gemma3 multiplies each image token by a bare parameter, which is no linear layer and is not counted."""
    if model.config.model_type != "gemma3":
        return 0
    weight = model.model.multi_modal_projector.mm_input_projection_weight
    return 2 * 4 * len(shape.pictures) * weight.numel()


def test_a_forward_pass_takes_what_torch_counts(counted):
    model, _, batch, architecture, shape = counted
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        token_losses(model, batch)
    assert forward_work(architecture, shape).total + bare_projection(model, shape) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("counted", "pair"),
    [(family, (RankPair(2, 4), RankPair(5, 3))[number % 2]) for number, family in enumerate(FAMILIES)],
    indirect=["counted"],
    ids=str,
)
def test_a_training_step_takes_what_torch_counts(counted, pair):
    """But for gradients of the pictures, which nothing needs: those of the ME's first layers and of their adapters."""
    model, partition, batch, architecture, shape = counted
    wrapped = add_adapters(model, partition, pair, seed=0).train()
    with FlopCounterMode(display=False) as counter:
        token_losses(wrapped, batch).mean().backward()
    remove_adapters(wrapped)
    first = [layer for layer in partition.me if layer.name.endswith((".0.attn.qkv", *FIRST_PROJECTIONS))]
    assert first
    tokens = shape.patches + architecture.class_tokens * len(shape.pictures)
    unneeded = sum(
        2 * tokens * (layer.in_features * layer.out_features + pair.r_me * layer.in_features) for layer in first
    )
    expected = counter.get_total_flops() + unneeded - 2 * bare_projection(model, shape)
    assert training_flops(architecture, shape, pair) == expected


# Queries, keys and values of block 0, wherever a tower keeps its blocks.
FIRST_PROJECTIONS = tuple(
    f".{blocks}.0.{attention}.{name}"
    for blocks in ("layers", "layer")
    for attention in ("self_attn", "attention")
    for name in ("q_proj", "k_proj", "v_proj")
)


def test_windows_are_counted_as_windows():
    """Qwen2.5-VL: windows of 4 patches in block 0, all 16 in block 1: 16 times 4 and 16 times 16 products."""
    model = small_model("qwen2_5_vl")
    architecture = architecture_of(model, partition_of(model, family_of("qwen2_5_vl")))
    assert architecture.me_windows == (4, None)
    attention = forward_work(architecture, SampleShape(9, 3, (16,))).attention["me"]
    assert attention == 4 * 16 * (16 * 16 + 16 * 4)
