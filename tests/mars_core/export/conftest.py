"""Tiny checkpoints of the paper's families, each with its processor and a batch that the processor made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

from mars_core.models.processor import without_video
from tests.mars_core.data.conftest import llava_processor, qwen_processor

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}


def llava_onevision():
    processor = llava_processor()
    tokenizer = processor.tokenizer
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=Qwen2Config(vocab_size=len(tokenizer), **TEXT).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 64]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _qwen_tokens(tokenizer) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}


def _qwen_text(tokenizer) -> dict:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope}


def qwen2_vl():
    processor = qwen_processor()
    vision = QWEN_VISION | {"embed_dim": 16, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=_qwen_text(processor.tokenizer), vision_config=vision, **_qwen_tokens(processor.tokenizer)
    )
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl():
    plain = qwen_processor()
    processor = without_video(Qwen2_5_VLProcessor)(
        plain.image_processor, plain.tokenizer, None, chat_template=plain.chat_template
    )
    vision = QWEN_VISION | {
        "out_hidden_size": 16,
        "intermediate_size": 24,
        "window_size": 28,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=_qwen_text(processor.tokenizer), vision_config=vision, **_qwen_tokens(processor.tokenizer)
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


FAMILIES = {"llava_onevision": llava_onevision, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl}


@pytest.fixture(scope="session", params=FAMILIES)
def checkpoint(request, tmp_path_factory) -> Path:
    """A checkpoint folder of each family, laid out as published ones were before transformers 5."""
    torch.manual_seed(0)
    model, processor = FAMILIES[request.param]()
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)  # wide enough that adapters show in the logits
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processors() -> dict[str, Any]:
    """Two processors whose templates differ."""
    return {"llava": llava_processor(), "qwen": qwen_processor()}
