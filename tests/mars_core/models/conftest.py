"""Tiny random vision-language models of each family that MARS knows."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

IMAGE = 3
TOKENS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}


def llava_onevision(*, pooling_head: bool = False, vision_layers: int = 2, llm_layers: int = 2):
    """A vision tower of width 16 (MLP 24), an LLM of width 20 (keys and values 10, MLP 28), 32 tokens."""
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=vision_layers,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        vision_use_head=pooling_head,
    )
    text = Qwen2Config(
        vocab_size=32,
        hidden_size=20,
        intermediate_size=28,
        num_hidden_layers=llm_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        **TOKENS,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=IMAGE,
        video_token_index=4,
        image_grid_pinpoints=[[8, 8]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config).eval()


def llava_batch():
    """A question about one image of two tiles: 4 patches each, and 2 line breaks, are 10 image tokens."""
    ids = torch.tensor([[5, *[IMAGE] * 10, 6, 7, 8]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "image_sizes": torch.tensor([[8, 8]]),
    }


QWEN_TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    **TOKENS,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
    "in_channels": 3,
}
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}


def qwen2_vl():
    vision = QWEN_VISION | {"embed_dim": 16, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_TOKENS)
    ).eval()


def qwen2_5_vl():
    vision = QWEN_VISION | {
        "out_hidden_size": 16,
        "intermediate_size": 24,
        "window_size": 8,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_TOKENS)
    ).eval()


def qwen_batch():
    """A question about an image of 4 x 4 patches, merged into 4 tokens."""
    ids = torch.tensor([[7, 5, *[IMAGE] * 4, 6, 8, 9]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(16, 48, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


MODELS = {"llava_onevision": llava_onevision, "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl}


@pytest.fixture(scope="session")
def make_llava():
    """Makes a LLaVA-OneVision model; weights by torch's global random state."""
    return llava_onevision


@pytest.fixture(scope="session")
def image_batch():
    """Makes a batch with an image for a model type."""
    return lambda model_type: llava_batch() if model_type == "llava_onevision" else qwen_batch()


@pytest.fixture(params=MODELS)
def family_model(request):
    """(model type, model) of every known family."""
    torch.manual_seed(0)
    return request.param, MODELS[request.param]()


@pytest.fixture
def llava():
    torch.manual_seed(0)
    return llava_onevision()
