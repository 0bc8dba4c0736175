"""Checkpoints of types that are not in MARS's table: their modules are found from configuration and processor alone."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mars_core.models import recognise
from mars_core.models.loading import load_base, skeleton
from mars_core.models.partition import GROUPS, check_against_forward, layers_used_by_forward
from tasks.inputs.inspection import inspect_model
from tests.mars_core.data.conftest import tiny_tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}{{ IMAGE }}{% else %}{{ block['text'] }}{% endif %}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
)
TEXT = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def template(token: str) -> str:
    return TEMPLATE.replace("IMAGE", repr(token))


def llava(folder):
    """Reads the features of the last block but one, as LLaVA 1.5 does."""
    tokenizer = tiny_tokenizer(["<image>"])
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    ).save_pretrained(folder)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=16, patch_size=4).to_dict(),
        text_config=LlamaConfig(**TEXT, vocab_size=len(tokenizer)).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def llava_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    llava(folder)
    return str(folder)


def load(checkpoint):
    return load_base(checkpoint, device=torch.device("cpu"), dtype=torch.float32)


def test_a_type_that_is_not_in_the_table_loads(llava_checkpoint):
    """Layers counted by hand: six in a CLIP block, two in the projector, seven in a Llama block."""
    base = load(llava_checkpoint)
    partition = base.partition
    assert partition.family.me == "model.vision_tower"
    assert partition.family.projector == ("model.multi_modal_projector",)
    assert partition.family.llm == "model.language_model"
    assert [len(partition.every(group)) for group in GROUPS] == [2 * 6, 2, 2 * 7]
    batch = recognise.question_about_a_picture(base.processor)
    used = layers_used_by_forward(base.model, batch)
    check_against_forward(partition, used)
    assert used == {layer.name for group in GROUPS for layer in partition.every(group)} | {"lm_head"}


def test_blocks_after_the_features_that_are_read_are_left_out(llava_checkpoint):
    _, partition = skeleton(llava_checkpoint)
    blocks = {re.sub(r".*layers\.(\d+)\..*", r"\1", name) for name in partition.excluded if name != "lm_head"}
    assert blocks == {"2"}


def test_a_configuration_gives_what_the_loaded_model_gives(llava_checkpoint):
    assert skeleton(llava_checkpoint)[1] == load(llava_checkpoint).partition


def test_inspect_names_the_modules_and_what_is_no_linear_layer(llava_checkpoint):
    found = inspect_model(llava_checkpoint, [2])
    assert found.family["me"] == "model.vision_tower"
    # The patch embedding: 16 filters of 3 x 4 x 4.
    assert found.other_weights == ({"kind": "convolutions", "tensors": 1, "parameters": 16 * 48},)


def test_what_cannot_be_proved_is_answered_with_the_guess_to_correct(llava_checkpoint, monkeypatch):
    def refuse(*_):
        raise ValueError("no such width")

    monkeypatch.setattr(recognise, "narrow", refuse)
    recognise._found.cache_clear()
    with pytest.raises(ValueError, match=r"'llava' is not known.*no such width.*best guess") as error:
        skeleton(llava_checkpoint)
    assert str(error.value).endswith(
        "family:\n  me: model.vision_tower\n  projector: ['model.multi_modal_projector']\n"
        "  llm: model.language_model\n  unused: []"
    )
    recognise._found.cache_clear()


def test_a_type_without_two_modules_is_refused_with_the_reason(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "fuyu"}')
    with pytest.raises(ValueError, match=r"'fuyu' is not known.*no vision encoder of its own"):
        skeleton(str(tmp_path))
