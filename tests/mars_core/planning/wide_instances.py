"""Instances whose parts are wide enough for their proportions to be those of real models."""

from __future__ import annotations

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from tests.mars_core.models.small_instances import TOKENS, llava_of

ANSWERS = 40


def llava_onevision():
    """A picture of two tiles of 64 patches: 136 image tokens, and 100 of text."""
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        **TOKENS,
    )
    ids = torch.cat([torch.full((136,), 3), torch.arange(5, 105)])[None]
    pixels = torch.randn(1, 2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([[112, 112]])}
    return llava_of(vision, text), batch


def qwen2_5_vl():
    """A picture of 256 patches in windows of 64: 64 image tokens, and 103 of text."""
    vision = {
        "depth": 4,
        "hidden_size": 192,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "out_hidden_size": 256,
        "intermediate_size": 512,
        "window_size": 112,
        "fullatt_block_indexes": [3],
    }
    text = {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0},
        **TOKENS,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )
    ids = torch.cat([torch.tensor([7, 5]), torch.full((64,), 3), torch.tensor([6]), torch.arange(8, 108)])[None]
    batch = {
        "input_ids": ids,
        "pixel_values": torch.randn(256, 1176, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 16, 16]]),
        "mm_token_type_ids": (ids == 3).long(),
    }
    return Qwen2_5_VLForConditionalGeneration(config), batch


WIDE = {"llava_onevision": llava_onevision, "qwen2_5_vl": qwen2_5_vl}
