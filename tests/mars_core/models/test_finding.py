"""Modules found by structure, on small instances of the real configuration classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as TYPES

from mars_core.models.families import FAMILIES, described
from mars_core.models.finding import Undecided, find_family, guess_family, unadaptable
from mars_core.models.partition import GROUPS, layers_used_by_forward, other_weights, partition_of
from mars_core.packing.examine import examine
from tasks.settings.model import FamilyConfig
from tests.mars_core.models.any_type import LEFT_OUT, question, small_instance

# Layers counted by hand for three blocks in the encoder and one of every kind in the LLM. CLIP and SigLIP have six in a
# block, Qwen's towers four (five with a gated MLP), Pixtral seven; Llama and Qwen have seven.
COUNTS = {
    "llava": [2 * 6, 2, 2 * 7],  # the features of the last block but one
    "deepseek_vl_hybrid": [3 * 6 + 3 * 4, 3, 2 * 7],  # SigLIP and SAM side by side
    "lfm2_vl": [1 + 3 * 6, 2, 7 + 7],  # patches by a linear layer; a convolution in one of the two blocks
    "qwen3_vl_moe": [3 * 4, 3 * 2, 2 * 4],  # experts in stacked weights
    "hyperclovax_vision_v2": [3 * 5, 2 + 1, 2 * 7],  # a merger inside the tower, and a projector behind it
    "video_llava": [2 * 6, 2, 2 * 7],  # a tower for pictures and one for videos
}


# What `python benchmarks/model_families.py` measured, and the reason of every type that could not be.
RECORD = json.loads((Path(__file__).parents[3] / "benchmarks/results/model_families.json").read_text())["families"]


def _found(model_type):
    model = small_instance(model_type)
    return find_family(model, inputs_of(question(model)))


def inputs_of(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize("model_type", COUNTS)
def test_layers_are_where_the_architecture_has_them(model_type):
    model = small_instance(model_type)
    batch = inputs_of(question(model))
    partition = partition_of(model, find_family(model, batch))
    assert [len(partition.every(group)) for group in GROUPS] == COUNTS[model_type]
    head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    placed = {layer.name for group in GROUPS for layer in partition.every(group)}
    assert placed == layers_used_by_forward(model, batch) - head - unadaptable(model).keys()


def test_the_table_is_what_would_be_found(family_model, image_batch):
    model_type, model = family_model
    found, known = find_family(model, image_batch(model_type)), FAMILIES[model_type]
    assert partition_of(model, found).excluded == partition_of(model, known).excluded
    assert [partition_of(model, found).every(group) for group in GROUPS] == [
        partition_of(model, known).every(group) for group in GROUPS
    ]


def test_towers_side_by_side_are_one_encoder():
    model = small_instance("deepseek_vl_hybrid")
    partition = partition_of(model, find_family(model, inputs_of(question(model))))
    towers = {layer.name.split(".")[1] for layer in partition.me}
    assert towers == {"vision_model", "high_res_vision_model"}


def test_a_tower_that_no_logit_depends_on_is_left_out():
    model = small_instance("video_llava")
    partition = partition_of(model, find_family(model, inputs_of(question(model))))
    assert partition.family.me == "model.image_tower"
    assert any(name.startswith("model.video_tower.") for name in partition.excluded)


def test_stacked_experts_and_convolutions_are_counted():
    """Two blocks of four experts: 64 to twice 40, and 40 to 64; a patch embedding of 32 filters of 3 x 2 x 4 x 4."""
    model = small_instance("qwen3_vl_moe")
    other = {weights.kind: weights for weights in other_weights(model, guess_family(model))}
    experts = other["stacked weights of experts"]
    assert (experts.tensors, experts.parameters) == (2 * 2, 2 * 4 * (64 * 80 + 40 * 64))
    assert other["convolutions"].parameters == 32 * 3 * 2 * 4 * 4


def test_dense_layers_that_peft_takes_for_experts_are_left_out():
    model = small_instance("glm4v_moe")
    taken = {name.rpartition(".")[2] for name, reason in unadaptable(model).items() if "PEFT" in reason}
    assert taken == {"gate_proj", "up_proj", "down_proj"}


def test_a_guess_is_a_description_that_a_study_reads():
    family = find_family(model := small_instance("llava"), inputs_of(question(model)))
    assert FamilyConfig.model_validate(yaml.safe_load(described(family))["family"]).as_family() == family


def test_text_that_passes_through_the_projector_is_not_decided(llava, image_batch):
    """A layer outside of the LLM that text alone passes through belongs to no group."""
    llava.lm_head = nn.Sequential(nn.Linear(20, 20), llava.lm_head)
    llava.get_output_embeddings = lambda: llava.lm_head[1]
    with pytest.raises(Undecided, match=r"text alone passes through lm_head\.0"):
        find_family(llava, image_batch("llava_onevision"))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("fuyu", "no vision encoder of its own"),
        ("gemma4_unified", "no vision encoder of its own"),
        ("udop", "encoder-decoder"),
        ("idefics", "its LLM is no module beside the vision encoder"),
        ("blip", "no output head"),
    ],
)
def test_a_model_without_two_modules_is_refused(model_type, reason):
    with pytest.raises(Undecided, match=reason):
        guess_family(small_instance(model_type))


def test_runs_of_a_projector_that_walks_over_pictures_go_through_one_at_a_time():
    """PaddleOCR-VL's projector is called once for each picture, so its rows do not tell which run they are of."""
    model = small_instance("paddleocr_vl")
    batch = question(model)
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    model = model.double().requires_grad_(False)
    structure = examine(model, partition_of(model, find_family(model, inputs_of(batch))), batch)
    assert not structure.side_by_side


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(TYPES.keys() - LEFT_OUT.keys()))
def test_every_type_is_found_and_proved_or_refused_with_a_reason(model_type):
    if "reason" in RECORD.get(model_type, {}):  # it is not found, or no small instance of it can be made
        with pytest.raises(Exception, match=r"\S"):  # whatever its library raises
            _found(model_type)
        return
    model = small_instance(model_type)
    batch = inputs_of(question(model))
    family = find_family(model, batch)
    partition = partition_of(model, family)
    placed = [layer.name for group in GROUPS for layer in partition.every(group)]
    head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    assert len(placed) == len(set(placed))
    assert set(placed) == layers_used_by_forward(model, batch) - head - unadaptable(model).keys()
    assert partition.me
    assert partition.llm
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()
