from __future__ import annotations

import pytest
import torch
from torch import nn

from mars_core.models.families import FAMILIES, Family, family_of
from mars_core.models.lora import lora_config
from mars_core.models.partition import (
    GROUPS,
    LinearLayer,
    check_against_forward,
    layers_used_by_forward,
    partition_of,
)
from mars_core.ranks import RankPair

# Linear layers counted by hand from the published architectures, for two blocks in each module: SigLIP has q, k, v,
# out and two in the MLP; Qwen2-VL's tower has qkv, proj and two in the MLP, Qwen2.5-VL's three in its gated MLP;
# Qwen2, Llama and Gemma3 have q, k, v, o and a gated MLP; InternVL's and Idefics3's towers have SigLIP's six. Most
# projectors are an MLP of two layers; Qwen3-VL has one more for each of its deepstack features (two here, and three
# blocks in its tower), Idefics3's has one layer, and Gemma3's is a bare parameter.
COUNTS = {
    "llava_onevision": {"me": 2 * 6, "projector": 2, "llm": 2 * 7},
    "qwen2_vl": {"me": 2 * 4, "projector": 2, "llm": 2 * 7},
    "qwen2_5_vl": {"me": 2 * 5, "projector": 2, "llm": 2 * 7},
    "qwen3_vl": {"me": 3 * 4, "projector": 3 * 2, "llm": 2 * 7},
    "idefics3": {"me": 2 * 6, "projector": 1, "llm": 2 * 7},
    "smolvlm": {"me": 2 * 6, "projector": 1, "llm": 2 * 7},
    "internvl": {"me": 2 * 6, "projector": 2, "llm": 2 * 7},
    "gemma3": {"me": 2 * 6, "projector": 0, "llm": 2 * 7},
}
POOLING_HEAD = {f"model.vision_tower.head.{name}" for name in ("attention.out_proj", "mlp.fc1", "mlp.fc2")}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def names(layers: tuple[LinearLayer, ...]) -> list[str]:
    return [layer.name for layer in layers]


def test_every_linear_layer_is_in_exactly_one_group_or_excluded(family_model):
    model_type, model = family_model
    partition = partition_of(model, family_of(model_type))
    placed = [name for group in GROUPS for name in names(partition.group(group))] + list(partition.excluded)
    assert sorted(placed) == sorted(linear_layers(model))
    assert {group: len(partition.group(group)) for group in GROUPS} == COUNTS[model_type]
    assert partition.excluded == ("lm_head",)


def test_layers_carry_the_shapes_of_their_weights(family_model):
    model_type, model = family_model
    partition = partition_of(model, family_of(model_type))
    for group in GROUPS:
        for layer in partition.group(group):
            assert model.get_submodule(layer.name).weight.shape == (layer.out_features, layer.in_features)


def test_groups_lie_where_the_model_computes_them(family_model, image_batch):
    """A change of a group's weights moves what that module gives, and what comes before it stays."""
    model_type, model = family_model
    partition = partition_of(model, family_of(model_type))
    batch = image_batch(model_type)

    def outputs():
        with torch.no_grad():
            text_only = batch["input_ids"][:, -3:]
            return model(**batch).logits, model(input_ids=text_only, attention_mask=torch.ones_like(text_only)).logits

    for group in GROUPS:
        if not partition.group(group):
            continue
        saved = {name: model.get_submodule(name).weight.detach().clone() for name in names(partition.group(group))}
        with_image, without_image = outputs()
        for name in saved:
            model.get_submodule(name).weight.data.mul_(1.5)
        changed_with_image, changed_without_image = outputs()
        assert not torch.equal(changed_with_image, with_image)
        assert torch.equal(changed_without_image, without_image) == (group != "llm")
        for name, weight in saved.items():
            model.get_submodule(name).weight.data.copy_(weight)


@pytest.mark.parametrize("family_model", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_qwens_merger_is_the_projector_though_it_lies_in_the_tower(family_model):
    model_type, model = family_model
    partition = partition_of(model, family_of(model_type))
    assert names(partition.projector) == ["model.visual.merger.mlp.0", "model.visual.merger.mlp.2"]
    assert not any("merger" in name for name in names(partition.me))
    assert all(name.startswith("model.visual.blocks.") for name in names(partition.me))


@pytest.mark.parametrize("family_model", ["qwen3_vl"], indirect=True)
def test_qwen3s_deepstack_mergers_are_projector_layers(family_model):
    model_type, model = family_model
    mergers = ["merger", "deepstack_merger_list.0", "deepstack_merger_list.1"]
    expected = [f"model.visual.{merger}.linear_fc{number}" for merger in mergers for number in (1, 2)]
    assert names(partition_of(model, family_of(model_type)).projector) == expected


@pytest.mark.parametrize("family_model", ["gemma3"], indirect=True)
def test_a_projector_without_linear_layers_is_an_empty_group(family_model):
    model_type, model = family_model
    partition = partition_of(model, family_of(model_type))
    assert partition.projector == ()
    assert (partition.parameters_per_rank("projector"), partition.largest_rank("projector")) == (0, 0)
    assert not any("projector" in name for name in lora_config(partition, RankPair(2, 4)).target_modules)


def test_every_adapted_layer_has_a_part_in_the_logits(family_model, image_batch):
    model_type, model = family_model
    partition = partition_of(model, family_of(model_type))
    used = layers_used_by_forward(model, image_batch(model_type))
    assert used == {name for group in GROUPS for name in names(partition.group(group))} | {"lm_head"}
    check_against_forward(partition, used)


def test_siglips_pooling_head_is_excluded_and_the_forward_pass_agrees(make_llava, image_batch):
    model = make_llava(pooling_head=True)
    partition = partition_of(model, family_of("llava_onevision"))
    assert set(partition.excluded) == POOLING_HEAD | {"lm_head"}
    assert {group: len(partition.group(group)) for group in GROUPS} == COUNTS["llava_onevision"]
    used = layers_used_by_forward(model, image_batch("llava_onevision"))
    assert not used & POOLING_HEAD
    check_against_forward(partition, used)


def test_a_layer_that_is_never_called_is_refused(llava, image_batch):
    llava.model.language_model.layers[1].mlp = nn.Identity()
    partition = partition_of(llava, family_of("llava_onevision"))
    llava.model.language_model.spare = nn.Linear(2, 2)
    with_spare = partition_of(llava, family_of("llava_onevision"))
    used = layers_used_by_forward(llava, image_batch("llava_onevision"))
    check_against_forward(partition, used)
    with pytest.raises(ValueError, match=r"1 linear layers .*first: model\.language_model\.spare"):
        check_against_forward(with_spare, used)


def test_layers_that_the_logits_do_not_depend_on_are_refused(make_llava, image_batch):
    model = make_llava(pooling_head=True)
    known = FAMILIES["llava_onevision"]
    partition = partition_of(model, Family(known.me, known.projector, known.llm))
    used = layers_used_by_forward(model, image_batch("llava_onevision"))
    with pytest.raises(ValueError, match=r"3 linear layers .* no part .*first: model\.vision_tower\.head\."):
        check_against_forward(partition, used)


def test_watching_a_forward_pass_leaves_nothing_behind(llava, image_batch):
    batch = image_batch("llava_onevision")
    before = llava(**batch).logits
    layers_used_by_forward(llava, batch)
    with pytest.raises(ValueError, match="tokens: 9, features: 10"):
        layers_used_by_forward(llava, batch | _one_image_token_less(batch))
    assert not any(layer._forward_hooks for layer in linear_layers(llava).values())
    assert all(parameter.grad is None for parameter in llava.parameters())
    assert torch.equal(llava(**batch).logits, before)


def _one_image_token_less(batch):
    return {
        name: torch.cat([batch[name][:, :1], batch[name][:, 2:]], dim=1) for name in ("input_ids", "attention_mask")
    }


@pytest.mark.parametrize(("layers", "module"), [({"vision_layers": 0}, "modality encoder"), ({"llm_layers": 0}, "LLM")])
def test_a_module_without_linear_layers_is_refused(make_llava, layers, module):
    model = make_llava(**layers)
    with pytest.raises(ValueError, match=f"the {module} .* has no linear layers"):
        partition_of(model, family_of("llava_onevision"))


def test_a_linear_layer_outside_every_group_is_refused(llava):
    llava.model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"1 linear layers belong to neither .*first: model\.extra"):
        partition_of(llava, family_of("llava_onevision"))


def test_an_unknown_model_type_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'gpt2' is not known: MARS knows gemma3, idefics3, internvl, llava_onevision,"
    ):
        family_of("gpt2")


def test_parameters_per_rank_and_largest_rank_by_hand(llava):
    partition = partition_of(llava, family_of("llava_onevision"))
    # SigLIP block: four 16 -> 16 and 16 -> 24 -> 16. Qwen2 block: q, o 20 -> 20, k, v 20 -> 10, gate, up 20 -> 28
    # and down 28 -> 20.
    assert partition.parameters_per_rank("me") == 2 * (4 * 32 + 2 * 40)
    assert partition.parameters_per_rank("projector") == (16 + 20) + (20 + 20)
    assert partition.parameters_per_rank("llm") == 2 * (2 * 40 + 2 * 30 + 3 * 48)
    assert [partition.largest_rank(group) for group in GROUPS] == [16, 16, 10]
