from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn

from mars_core.models.families import family_of
from mars_core.models.lora import (
    adapter_ranks,
    adapter_state,
    add_adapters,
    check_adapters,
    check_ranks,
    lora_config,
    parameters_by_group,
    remove_adapters,
    trainable_parameters,
)
from mars_core.models.partition import GROUPS, LinearLayer, Partition, partition_of
from mars_core.ranks import RankPair

PAIRS = [RankPair(2, 8), RankPair(8, 2), RankPair(4, 4), RankPair(0, 4), RankPair(4, 0)]


@pytest.fixture
def partition(llava):
    return partition_of(llava, family_of("llava_onevision"))


def trained_by_peft(wrapped: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}


def randomise(wrapped: nn.Module) -> None:
    """Fill the adapters (B starts as zeros) so that they change what the model computes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trained_by_peft(wrapped).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_adapters_have_the_ranks_asked_in_every_family(family_model, pair):
    """Shapes of PEFT's own weights, and their number against the closed form r * (in + out)."""
    model_type, model = family_model
    widths = {name: (m.in_features, m.out_features) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    partition = partition_of(model, family_of(model_type))
    wrapped = add_adapters(model, partition, pair, seed=0)
    expected = {}
    for group in GROUPS:
        rank = pair.r_me if group == "me" else pair.r_llm
        for layer in partition.group(group) if rank else ():
            n_in, n_out = widths[layer.name]
            expected[f"base_model.model.{layer.name}.lora_A.default.weight"] = (rank, n_in)
            expected[f"base_model.model.{layer.name}.lora_B.default.weight"] = (n_out, rank)
    found = {name: tuple(parameter.shape) for name, parameter in trained_by_peft(wrapped).items()}
    assert found == expected
    assert wrapped.get_nb_trainable_parameters()[0] == trainable_parameters(partition, pair)
    assert trainable_parameters(partition, pair) == sum(rows * columns for rows, columns in expected.values())


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_scale_alpha_over_r_is_two_in_every_layer(llava, partition, image_batch, pair):
    """The merged weight minus the base weight is 2 * B @ A, whatever the layer's rank."""
    base = {
        name: layer.weight.detach().clone() for name, layer in llava.named_modules() if isinstance(layer, nn.Linear)
    }
    wrapped = add_adapters(llava, partition, pair, seed=0)
    randomise(wrapped)
    weights = {name: parameter.detach().clone() for name, parameter in trained_by_peft(wrapped).items()}
    merged = wrapped.merge_and_unload()
    for group in GROUPS:
        for layer in partition.group(group):
            change = merged.get_submodule(layer.name).weight - base[layer.name]
            path = f"base_model.model.{layer.name}.lora_"
            if pair.rank(group):
                product = weights[f"{path}B.default.weight"] @ weights[f"{path}A.default.weight"]
                # fp32: the change is read off a sum with a base weight of order 1.
                torch.testing.assert_close(change, 2.0 * product, rtol=1e-4, atol=1e-6)
            else:
                assert torch.equal(change, torch.zeros_like(change))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_top_level_rank_is_the_larger_and_alpha_is_always_written(partition, pair):
    config = lora_config(partition, pair)
    largest = max(pair.r_me, pair.r_llm)
    assert (config.r, config.lora_alpha) == (largest, 2 * largest)
    assert config.alpha_pattern == {name: 2 * rank for name, rank in config.rank_pattern.items()}
    assert len(config.alpha_pattern) == sum(len(partition.group(group)) for group in GROUPS if pair.rank(group))


@pytest.mark.parametrize(
    ("rule", "scale"), [("2r", lambda r: 2.0), (12.0, lambda r: 12 / r), ("sqrt", lambda r: 8 / r**0.5)]
)
def test_alpha_follows_from_the_rank_by_one_rule(llava, partition, rule, scale):
    """What PEFT computes with, layer by layer, from what is written."""
    wrapped = add_adapters(llava, partition, RankPair(2, 4), seed=0, alpha=rule)
    found = adapter_ranks(wrapped)
    assert {rank for rank, _ in found.values()} == {2, 4}
    for rank, scaling in found.values():
        assert scaling == pytest.approx(scale(rank))
    config = lora_config(partition, RankPair(2, 4), alpha=rule)
    assert json.loads(json.dumps(config.to_dict()["alpha_pattern"])) == config.alpha_pattern


def test_parameters_by_group_are_all_trainable_ones(llava, partition):
    pair = RankPair(2, 4)
    wrapped = add_adapters(llava, partition, pair, seed=0)
    groups = parameters_by_group(wrapped, partition)
    listed = [parameter for group in GROUPS for parameter in groups[group].values()]
    assert {id(p) for p in listed} == {id(p) for p in trained_by_peft(wrapped).values()}
    for group in GROUPS:
        count = sum(parameter.numel() for parameter in groups[group].values())
        assert count == pair.rank(group) * partition.parameters_per_rank(group)


def test_a_rank_above_a_layers_width_is_refused_by_name(partition):
    check_ranks(partition, RankPair(16, 10))
    with pytest.raises(ValueError, match=r"rank 17 for the me is above the width 16 of its layer model\.vision_tower"):
        check_ranks(partition, RankPair(17, 1))
    with pytest.raises(ValueError, match=r"rank 11 for the llm is above the width 10 of its layer .*\.[kv]_proj"):
        check_ranks(partition, RankPair(1, 11))
    with pytest.raises(ValueError, match=r"(?s)rank 17 for the me .*; rank 11 for the llm is above"):
        check_ranks(partition, RankPair(17, 11))  # every group that has no room
    with pytest.raises(ValueError, match="rank 17"):
        add_adapters(nn.Module(), partition, RankPair(17, 1), seed=0)


@pytest.mark.parametrize("pair", [RankPair(0, 0), RankPair(-1, 4), RankPair(4, -1)], ids=str)
def test_a_pair_without_adapters_or_with_negative_ranks_is_refused(partition, pair):
    with pytest.raises(ValueError, match="is not usable"):
        lora_config(partition, pair)


def test_a_projector_without_linear_layers_gets_none(partition):
    bare = Partition(partition.me, (), partition.llm, (), partition.family)
    check_ranks(bare, RankPair(2, 2))
    assert trainable_parameters(bare, RankPair(2, 2)) == trainable_parameters(partition, RankPair(2, 2)) - 2 * 76


@given(st.integers(0, 8), st.integers(0, 8))
def test_parameter_counts_are_linear_in_the_ranks(r_me, r_llm):
    layers = {
        "me": (LinearLayer("a", 9, 10), LinearLayer("b", 11, 12)),
        "projector": (LinearLayer("c", 13, 14),),
        "llm": (LinearLayer("d", 15, 16),),
    }
    count = trainable_parameters(
        Partition(**layers, excluded=(), family=family_of("llava_onevision")), RankPair(r_me, r_llm)
    )
    assert count == r_me * (9 + 10 + 11 + 12) + r_llm * (13 + 14 + 15 + 16)


def test_the_seed_fixes_the_initial_weights(llava, partition):
    def initial(seed):
        wrapped = add_adapters(llava, partition, RankPair(2, 4), seed=seed)
        state = adapter_state(wrapped)
        remove_adapters(wrapped)
        return state

    torch.manual_seed(1)
    first = initial(7)
    torch.manual_seed(2)
    again, other = initial(7), initial(8)
    assert first.keys() == again.keys() == other.keys()
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        if "lora_A" in name:
            assert not torch.equal(weight, other[name])
        else:
            assert not weight.any()


def test_global_random_state_is_left_alone(llava, partition):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    remove_adapters(add_adapters(llava, partition, RankPair(2, 4), seed=9))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_base_comes_back_bit_for_bit(llava, partition, image_batch, pair):
    batch = image_batch("llava_onevision")
    llava.requires_grad_(False)
    weights = copy.deepcopy(llava.state_dict())
    modules = {name: type(module) for name, module in llava.named_modules()}
    with torch.no_grad():
        before = llava(**batch).logits
        for _ in range(2):
            wrapped = add_adapters(llava, partition, pair, seed=0)
            assert torch.equal(wrapped(**batch).logits, before)  # B is zero: fresh adapters change nothing
            randomise(wrapped)
            assert not torch.equal(wrapped(**batch).logits, before)
            assert remove_adapters(wrapped) is llava
        after = llava(**batch).logits
    assert torch.equal(after, before)
    assert {name: type(module) for name, module in llava.named_modules()} == modules
    assert llava.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in llava.state_dict().items())
    assert not any(parameter.requires_grad for parameter in llava.parameters())


def test_wrapping_again_and_again_warns_of_nothing(llava, partition):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns so of a model that already has adapters
        for seed in range(2):
            remove_adapters(add_adapters(llava, partition, RankPair(2, 4), seed=seed))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_saved_adapter_gives_the_same_logits_on_a_freshly_loaded_base(llava, partition, image_batch, tmp_path, pair):
    llava.save_pretrained(tmp_path / "base")
    wrapped = add_adapters(llava, partition, pair, seed=0)
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    batch = image_batch("llava_onevision")
    with torch.no_grad():
        expected = wrapped.eval()(**batch).logits
        fresh = type(llava).from_pretrained(tmp_path / "base")
        loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
        logits = loaded(**batch).logits
    saved = dict(wrapped.named_parameters())
    assert all(torch.equal(parameter, saved[name]) for name, parameter in loaded.named_parameters())
    # The weights are equal; kernels may sum in another order over weights that lie elsewhere in memory (4e-7 seen).
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    check_adapters(loaded, partition, pair)


def test_adapters_of_another_pair_are_noticed(llava, partition):
    wrapped = add_adapters(llava, partition, RankPair(2, 4), seed=0)
    with pytest.raises(ValueError, match=r"has rank 4 and alpha/r 2.0, expected 2 and 2|has rank 2 .* expected 4"):
        check_adapters(wrapped, partition, RankPair(4, 2))
    with pytest.raises(ValueError, match=r"on 28 layers, expected 12: .*unexpected"):
        check_adapters(wrapped, partition, RankPair(2, 0))


def test_adapters_beyond_the_partition_are_refused_and_taken_off_again(llava, partition):
    """A name that is the end of another one also matches that one in PEFT."""
    llava.model.vision_tower.linear_1 = nn.Linear(16, 16)
    narrow = Partition((LinearLayer("linear_1", 16, 16),), (), partition.llm, (), partition.family)
    modules = {name: type(module) for name, module in llava.named_modules()}
    with pytest.raises(ValueError, match="adapters were put on 16 layers, expected 15"):
        add_adapters(llava, narrow, RankPair(2, 2), seed=0)
    assert {name: type(module) for name, module in llava.named_modules()} == modules


def test_half_precision_bases_get_adapters_in_full_precision(llava, partition):
    """PEFT's own convention: adapters train in fp32 over a bf16 backbone."""
    wrapped = add_adapters(llava.to(torch.bfloat16), partition, RankPair(2, 4), seed=0)
    assert {parameter.dtype for parameter in trained_by_peft(wrapped).values()} == {torch.float32}


def test_pairs_name_themselves():
    assert str(RankPair(8, 16)) == "(8, 16)"
    assert RankPair(8, 16).slug == "me8-llm16"
    assert sorted([RankPair(8, 2), RankPair(2, 16)])[0] == RankPair(2, 16)
