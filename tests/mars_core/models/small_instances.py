"""Small random-weight instances of every family's real configuration classes, each with a batch that has an image.

They show, within seconds and without any download, that a family works with the transformers that is installed:
`benchmarks/model_families.py` writes the table in the docs from them, and the tests use them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from mars_core.models.families import Family

Batch = dict[str, torch.Tensor]

IMAGE = 3
TOKENS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}


def llava_onevision(*, pooling_head: bool = False, vision_layers: int = 2, llm_layers: int = 2) -> Any:
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
    return llava_of(vision, text).eval()


def llava_of(vision: SiglipVisionConfig, text: Qwen2Config) -> Any:
    """A tower and an LLM as one model, for pictures of one tile and the whole."""
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=IMAGE,
        video_token_index=4,
        image_grid_pinpoints=[[vision.image_size, vision.image_size]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def llava_batch() -> Batch:
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


def qwen2_vl() -> Any:
    """A tower and an LLM of width 16, two blocks each."""
    vision = QWEN_VISION | {"embed_dim": 16, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_TOKENS)
    ).eval()


def qwen2_5_vl() -> Any:
    """As Qwen2-VL, with a gated MLP in the tower and a window around the patches in its first block."""
    vision = QWEN_VISION | {
        "out_hidden_size": 16,
        "intermediate_size": 24,
        "window_size": 8,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_TOKENS)
    ).eval()


def qwen_batch() -> Batch:
    """A question about an image of 4 x 4 patches, merged into 4 tokens."""
    ids = torch.tensor([[7, 5, *[IMAGE] * 4, 6, 8, 9]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(16, 48, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def qwen3_vl() -> Any:
    """Three vision blocks, the features after the first of which also go to the LLM's first block (deepstack)."""
    vision = QWEN_VISION | {
        "depth": 3,
        "out_hidden_size": 16,
        "intermediate_size": 24,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    text = QWEN_TEXT | {"head_dim": 8}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **QWEN_TOKENS)
    ).eval()


VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "vocab_size": 32,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    **TOKENS,
}


def _idefics(model_class: Any, config_class: Any) -> Any:
    config = config_class(
        vision_config=VISION | {"image_size": 16, "patch_size": 4},
        text_config=LlamaConfig(**TEXT).to_dict(),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return model_class(config).eval()


def idefics3() -> Any:
    """A tower of width 16 and a Llama of width 20; 2 x 2 patches become one token."""
    return _idefics(Idefics3ForConditionalGeneration, Idefics3Config)


def smolvlm() -> Any:
    """As Idefics3, of which it is a descendant."""
    return _idefics(SmolVLMForConditionalGeneration, SmolVLMConfig)


def idefics_batch() -> Batch:
    """A question about an image of two tiles, 4 tokens each, and one tile of padding."""
    ids = torch.tensor([[5, *[IMAGE] * 4, 6, *[IMAGE] * 4, 7, 8]])
    pixels = torch.randn(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels[:, 2] = 0
    mask = torch.ones(1, 3, 16, 16, dtype=torch.long)
    mask[:, 1, 12:] = 0  # the second tile is not square
    mask[:, 2] = 0
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "pixel_attention_mask": mask,
    }


def internvl() -> Any:
    """A tower of width 16 and a Qwen2 of width 20; 2 x 2 patches become one token."""
    config = InternVLConfig(
        vision_config=VISION | {"image_size": 16, "patch_size": 4},
        text_config=Qwen2Config(**TEXT).to_dict(),
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config).eval()


def internvl_batch() -> Batch:
    """A question about an image of two tiles, 4 tokens each."""
    ids = torch.tensor([[5, *[IMAGE] * 8, 6, 7, 8]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    }


def gemma3(*, sliding_window: int = 6) -> Any:
    """The first LLM block sees a window, the second everything; image tokens see one another both ways."""
    text = TEXT | {"head_dim": 10, "layer_types": ["sliding_attention", "full_attention"]}
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, image_size=16, patch_size=4, vision_use_head=False).to_dict(),
        text_config=text | {"sliding_window": sliding_window, "query_pre_attn_scalar": 10},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=5,
        eoi_token_index=6,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros in a fresh model
    return model


def gemma3_batch() -> Batch:
    """A question about an image of 4 tokens."""
    ids = torch.tensor([[7, 5, *[IMAGE] * 4, 6, 8, 9]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        "token_type_ids": (ids == IMAGE).long(),
    }


MODELS: dict[str, Callable[[], Any]] = {
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
    "gemma3": gemma3,
}
BATCHES: dict[str, Callable[[], Batch]] = {
    "llava_onevision": llava_batch,
    "qwen2_vl": qwen_batch,
    "qwen2_5_vl": qwen_batch,
    "qwen3_vl": qwen_batch,
    "idefics3": idefics_batch,
    "smolvlm": idefics_batch,
    "internvl": internvl_batch,
    "gemma3": gemma3_batch,
}


def small_model(model_type: str) -> Any:
    """An instance of a family, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[model_type]()


def two_rows(model_type: str) -> Batch:
    """Two questions about pictures, of unequal length, padded on the right; floats in double precision."""
    first = BATCHES[model_type]()
    batch = {}
    for name, value in first.items():
        value = value.double() if value.is_floating_point() else value
        batch[name] = torch.cat([value, value.flip(-1) if name == "pixel_values" else value])
    padding = torch.zeros(2, 3, dtype=torch.long)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in batch:
            batch[name] = torch.cat([batch[name], padding], dim=1)
    for name, values in (("input_ids", [9, 10, 11]), ("attention_mask", [1, 1, 1])):
        batch[name][1, -3:] = torch.tensor(values)
    labels = torch.full_like(batch["input_ids"], -100)
    length = first["input_ids"].shape[1]
    labels[0, length - 1] = batch["input_ids"][0, length - 1]
    labels[1, -3:] = batch["input_ids"][1, -3:]
    return batch | {"labels": labels}


DESCRIBED = Family("inner.model.vision_tower", ("inner.model.multi_modal_projector",), "inner.model.language_model")
"""The modules of `DESCRIBED_CODE`'s class, as a study file describes a model that MARS does not know."""

DESCRIBED_CODE = """
from transformers import GenerationMixin, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedModel


class CustomConfig(LlavaOnevisionConfig):
    model_type = "custom_vl"


class CustomModel(PreTrainedModel, GenerationMixin):
    config_class = CustomConfig
    _supports_sdpa = True
    _tied_weights_keys = {"inner.lm_head.weight": "inner.model.language_model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.inner = LlavaOnevisionForConditionalGeneration(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self):
        return self.inner.lm_head

    def forward(self, **inputs):
        return self.inner(**inputs)
"""
"""`custom.py` of a checkpoint with code of its own: a class that neither transformers nor MARS knows."""

DESCRIBED_CONFIG: dict[str, Any] = {
    "model_type": "custom_vl",
    "architectures": ["CustomModel"],
    "auto_map": {"AutoConfig": "custom.CustomConfig", "AutoModelForImageTextToText": "custom.CustomModel"},
}
"""What its `config.json` has beside the settings of the LLaVA-OneVision inside."""
