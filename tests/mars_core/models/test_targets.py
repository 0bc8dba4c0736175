"""Which layers are adapted: what follows from it is counted from the narrowed partition alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mars_core.models.families import Family, family_of
from mars_core.models.lora import adapter_ranks, add_adapters, layer_ranks, lora_config, trainable_parameters
from mars_core.models.partition import GROUPS, LinearLayer, Partition, partition_of
from mars_core.models.targets import Patterns, adapting
from mars_core.ranks import AlphaRules, RankPair

# SigLIP's, Idefics3's and InternVL's towers have four projections a block, Qwen's qkv and proj; all LLMs have four.
VISION_ATTENTION = {"qwen2_vl": 2 * 2, "qwen2_5_vl": 2 * 2, "qwen3_vl": 3 * 2}


def names(partition, group):
    return [layer.name for layer in partition.group(group)]


def partition_with(*layers: str) -> Partition:
    """A partition whose LLM has these layers."""
    me = (LinearLayer("vision.blocks.0.attn.qkv", 4, 12),)
    llm = tuple(LinearLayer(f"text.layers.0.{name}", 4, 4) for name in layers)
    return Partition(me, (), llm, (), Family("vision", (), "text"))


def test_attention_is_found_in_every_family(family_model):
    model_type, model = family_model
    whole = partition_of(model, family_of(model_type))
    partition = adapting(whole, "attention")
    counts = {group: len(partition.group(group)) for group in GROUPS}
    assert counts == {"me": VISION_ATTENTION.get(model_type, 2 * 4), "projector": 0, "llm": 2 * 4}
    assert not any("mlp" in name for group in GROUPS for name in names(partition, group))
    assert all(partition.every(group) == whole.group(group) for group in GROUPS)


@pytest.mark.parametrize(
    ("layer", "is_attention"),
    [
        ("self_attn.q_proj", True),
        ("attention.wqkv", True),
        ("attention.output.dense", True),
        ("linear_attn.in_proj_qkvz", True),
        ("wqkv", True),
        ("query_key_value", True),
        ("o_proj", True),
        ("mlp.gate_proj", False),
        ("feed_forward.w1", False),
        ("post_attention_layernorm.proj", False),
        ("fc1", False),
    ],
)
def test_attention_is_told_by_names(layer, is_attention):
    partition = adapting(partition_with(layer, "self_attn.k_proj"), "attention")
    assert (f"text.layers.0.{layer}" in names(partition, "llm")) == is_attention


def test_where_no_attention_is_found_the_layers_are_named():
    with pytest.raises(ValueError, match=r"attention finds none in the llm, whose layers are text\.layers\.0\.mlp\.up"):
        adapting(partition_with("mlp.up", "mlp.down"), "attention")


def test_a_pattern_narrows_its_own_group_alone(base):
    whole = base.partition
    partition = adapting(whole, Patterns(llm=r"\.layers\.[01]\..*down_proj$"))
    prefix = "model.language_model.layers"
    assert names(partition, "llm") == [f"{prefix}.0.mlp.down_proj", f"{prefix}.1.mlp.down_proj"]
    assert partition.group("me") == whole.me
    assert partition.group("projector") == whole.projector


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            Patterns(me="nowhere"),
            r"recipe\.targets\.me: 'nowhere' matches none of its 18 linear layers, such as model\.",
        ),
        (Patterns(llm="("), r"recipe\.targets\.llm: '\(' is no regular expression"),
    ],
)
def test_a_pattern_that_is_of_no_use_is_refused(base, targets, message):
    with pytest.raises(ValueError, match=message):
        adapting(base.partition, targets)


def test_all_layers_are_the_partition_as_it_was(base):
    """So that what was hashed and examined of it before stays so."""
    assert adapting(base.partition, "all") == base.partition
    assert adapting(base.partition, Patterns(me=".")) == base.partition


def test_the_projector_has_a_rank_of_its_own(base):
    pair = RankPair(2, 4)
    partition = adapting(base.partition, "all", 3)
    ranks = layer_ranks(partition, pair)
    assert {ranks[layer.name] for layer in partition.projector} == {3}
    per_rank = {group: base.partition.parameters_per_rank(group) for group in GROUPS}
    assert trainable_parameters(partition, pair) == 2 * per_rank["me"] + 3 * per_rank["projector"] + 4 * per_rank["llm"]
    without = adapting(base.partition, "all", 0)
    assert trainable_parameters(without, pair) == 2 * per_rank["me"] + 4 * per_rank["llm"]
    with pytest.raises(ValueError, match="rank 4000 for the projector is above the width"):
        lora_config(replace(partition, projector_rank=4000), pair)


def test_peft_has_the_ranks_and_scales_of_every_module(base):
    """The top-level rank and alpha are those of the widest layers, here the projector's."""
    pair, alpha = RankPair(2, 4), AlphaRules(6.0, "2r", "sqrt")
    partition = adapting(base.partition, Patterns(me="fc1"), 8)
    config = lora_config(partition, pair, alpha=alpha)
    assert (config.r, config.lora_alpha) == (8, 16)
    wrapped = add_adapters(base.model, partition, pair, seed=0, alpha=alpha)
    try:
        found = adapter_ranks(wrapped)
    finally:
        wrapped.unload()
    expected = {"me": (2, 3.0), "projector": (8, 2.0), "llm": (4, 4.0)}
    assert found == {layer.name: expected[group] for group in GROUPS for layer in partition.group(group)}
