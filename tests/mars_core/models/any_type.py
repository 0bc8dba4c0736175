"""A small random-weight instance of any type that transformers maps to AutoModelForImageTextToText, with a batch.

The configuration is the type's own default, made small by rules (`mars_core.models.narrow`) and, where those do not
suffice, by `EXCEPTIONS`. The batch holds two questions about pictures: random pixels in the shape that the type's
`get_image_features` asks for, and as many image tokens as it gives features. The type's own processor takes no part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from mars_core.models.narrow import smaller

Batch = dict[str, Tensor]

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MROPE = {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [2, 3, 3]}}}
_OMNI = {
    **_MROPE,
    "vision_start_token_id": 110,
    "vision_end_token_id": 111,
    "audio_config": {"output_dim": 64, "downsample_hidden_size": 16, "conv_output_size": 16},
}
_MINICPM = {
    "image_token_id": 100,
    "video_token_id": 101,
    "insert_layer_id": 1,
    "patch_size": 4,
    "vision_config": {"insert_layer_id": 1},
}
_GEMMA4_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pooling_kernel_size": 2,
    "patch_size": 4,
    "position_embedding_size": 16,
}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}, "max_value_projector_patch_to_query_dict": 4},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE}}},
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", "sparse"],
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
        },
        "vision_config": {
            "sam_config": {"output_channels": 16, "downsample_channels": [24, 32]},
            "encoder_config": {"hidden_size": 32},
        },
    },
    "hunyuan_vl": {"text_config": {"head_dim": 16, "rope_parameters": _ROPE | {"mrope_section": [2, 3, 3]}}},
    "kimi_k25": {"projection_hidden_size": 32},
    "paddleocr_vl": _MROPE,
    "vipllava": {"vision_feature_layer": [-2, -1]},
    "unlimited_ocr": {
        "vision_config": {
            "sam_config": {"output_channels": 16, "downsample_channels": [24, 32]},
            "encoder_config": {"hidden_size": 32},
        },
    },
    "gemma4": {"vision_config": _GEMMA4_VISION},
    "glm4v": _MROPE,
    "glm46v": _MROPE,
    "glmga": _MROPE,
    "glm_ocr": _MROPE,
    "glm4v_moe": {
        "text_config": {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}}
    },
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [3, 3, 2]}}},
    "granite4_vision": {
        "deepstack_layer_map": [[-2, 0], [-1, 1]],
        "downsample_rate": "2/4",
        "spatial_target_layers": [1],
        "vision_config": {"hidden_size": 64},
        "projector_dropout": 0.0,
        "qformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "image_grid_pinpoints": [[16, 16]],
    },
    "llama4": {
        "vision_config": {
            "intermediate_size": 128,
            "projector_input_dim": 24,
            "projector_output_dim": 24,
            "vision_output_dim": 24,
        }
    },
    "minicpm_ocr": _MINICPM,
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM,
    "mistral_large4": {
        "text_config": {
            "num_hidden_layers": 2,
            "layer_types": ["indexed_attention"] * 2,
            "mlp_layer_types": ["dense", "sparse"],
            "indexer_types": ["full"] * 2,
            "no_rope_layers": [1, 1],
            "kv_source_layers": [0, 1],
        }
    },
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {
        "out_hidden_size": 128,
        "audio_config": {"num_hidden_layers": 4, "hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1]},
    },
    "nemotron_h_omni": {"image_token_id": 100},
    "qwen2_5_omni_thinker": _OMNI,
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": _MROPE | {"vision_config": {"hidden_size": 64}},
    "qwen3_omni_moe_thinker": _OMNI,
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "hc_lowrank": 16,
        }
    },
    "step3p7": {"text_config": {"sliding_window": 64}},
}
"""Changes of a type's configuration that rules do not find."""

_CODEBOOK = "pictures become tokens of a codebook: no gradient reaches an encoder that LoRA could train"
_TIMM = "its vision encoder comes from timm, which is not installed here"
_MASK = "its processor marks the places of pictures by a mask beside the tokens, which MARS does not pad"
_BESIDE = "pictures of a batch lie side by side along the last dimension, and MARS stacks them along the first"
_QUESTION = "its Q-Former reads the question too (`qformer_input_ids`), which MARS does not pad"
LEFT_OUT: dict[str, str] = {
    "apertus1p5": _CODEBOOK,
    "chameleon": _CODEBOOK,
    "emu3": _CODEBOOK,
    "diffusion_gemma": "writes text by block diffusion, not token by token, so it has no loss per answer token",
    "blip-2": "its forward pass demands a picture, so that no row may be text alone",
    "evolla": "reads proteins; AutoModelForImageTextToText refuses its configuration",
    "fast_vlm": _TIMM,
    "gemma3n": _TIMM,
    "perception_lm": _TIMM,
    "instructblip": _QUESTION,
    "instructblipvideo": _QUESTION,
    "kosmos-2": _MASK,
    "kosmos-2.5": _MASK,
    "mllama": "its processor gives a mask of pictures per token (`cross_attention_mask`), which MARS does not pad",
    "minicpm_ocr": _BESIDE,
    "minicpmv4_6": _BESIDE,
    "minicpmv4_7": _BESIDE,
    "mistral4": "has no vision encoder: the type maps to a language model alone",
    "molmo2": "pictures come with indices of the patches pooled into each token (`image_token_pooling`), which "
    "the small instances here do not have: not tried",
    "pi0": "drives robots: it gives actions, not text",
    "shieldgemma2": "classifies pictures; under AutoModelForImageTextToText it is Gemma 3's class, which loses "
    "weights when saved and loaded",
}
"""Types of which no instance is made here, each with its reason."""

FAILS: dict[str, str] = {
    "llama4": "its forward pass with a picture fails in transformers 5.24: it asks the language model's output for "
    "`image_outputs`, which that does not have",
}
"""What the Python error of a type that cannot be run means."""


def small_config(model_type: str) -> Any:
    """The type's own configuration class with small sizes."""
    return smaller(AutoConfig.for_model(model_type), EXCEPTIONS.get(model_type, {}))


def small_instance(model_type: str) -> Any:
    """A model with random weights, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(small_config(model_type)).eval()
        for weight in model.parameters():
            if not weight.any():  # what a fresh model starts from at zero would hide what lies behind it
                torch.nn.init.normal_(weight, std=0.02)
    return with_plain_experts(model)


def with_plain_experts(model: Any) -> Any:
    """Experts of a mixture one after another: transformers' grouped products know no double precision."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return model


def question(model: Any) -> Batch:
    """Two rows: a question with a picture each, of unequal length, padded on the right, with answers as labels."""
    pictures = pictures_of(model)
    features = count_features(model, pictures)
    image = image_token(model.config)
    start, end = ids_around(model.config)
    rows = [
        [50, *start, *[image] * features, *end, 51, 52, 53],
        [50, *start, *[image] * features, *end, 51, 54, 55, 56, 57],
    ]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    labels[0, len(rows[0]) - 2 : len(rows[0])] = ids[0, len(rows[0]) - 2 : len(rows[0])]
    labels[1, len(rows[1]) - 3 :] = ids[1, len(rows[1]) - 3 :]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    for name, value in pictures.items():
        batch[name] = torch.cat([value, value.flip(-1) if value.is_floating_point() else value])
    wanted = inspect.signature(type(model).forward).parameters
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in wanted:
            batch[name] = (ids == image).long()
    return batch


def image_token(config: Any) -> int:
    for name in ("image_token_id", "image_token_index", "image_patch_id"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    raise ValueError("the configuration names no image token")


def ids_around(config: Any) -> tuple[list[int], list[int]]:
    """Ids of what stands before and after the image tokens."""

    def first(*names: str) -> list[int]:
        return next(([value] for name in names if isinstance(value := getattr(config, name, None), int)), [])

    return (
        first("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index"),
        first("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index"),
    )


def count_features(model: Any, pictures: Batch) -> int:
    features = _features_method(model)(**pictures)
    pooled = getattr(features, "pooler_output", features)
    if pooled is not None:
        return _rows(pooled)
    if features.last_hidden_state is not None:
        return _rows(features.last_hidden_state)
    return _rows(features.deepstack_features[0][1])  # of the first layer that gets any


def _rows(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.shape[:-1].numel()
    return sum(_rows(one) for one in value)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def pictures_of(model: Any) -> Batch:
    """One picture of 16 x 16 points (or 4 x 4 patches) as the type's encoder takes it.

    Raises:
        ValueError: no shape that is known here suits the encoder.
    """
    refused = []
    for candidate in _candidates(model):
        try:
            with torch.no_grad():
                count_features(model, candidate)
        except Exception as error:  # noqa: BLE001 - another shape may suit
            refused.append(f"{ {name: tuple(value.shape) for name, value in candidate.items()} }: {error}")
        else:
            return candidate
    raise ValueError("no shape of a picture suits: " + "; ".join(refused))


def _candidates(model: Any) -> Iterator[Batch]:
    wanted = set(inspect.signature(_features_method(model)).parameters)
    vision = vision_config(model.config)
    if wanted & {"image_grid_thw", "image_grid_hw"}:
        name = next(iter(wanted & {"image_grid_thw", "image_grid_hw"}))
        for side in (4, 8):
            grid = torch.tensor([[1, side, side] if name == "image_grid_thw" else [side, side]])
            merges = {"image_merge_sizes": torch.tensor([2])} if "image_merge_sizes" in wanted else {}
            yield from ({"pixel_values": pixels, name: grid, **merges} for pixels in _patches(vision, side * side))
            cut = vision.patch_size * (getattr(vision, "spatial_merge_size", None) or 1)
            yield {"pixel_values": _random(side * side, cut, cut, 3), name: grid}  # one cut-out for each image token
    picture, sizes = _random(1, 3, 16, 16), torch.tensor([[16, 16]])
    if "spatial_shapes" in wanted:
        mask = torch.ones(1, 16, dtype=torch.long)
        yield {
            "pixel_values": _random(1, 16, 48),
            "spatial_shapes": torch.tensor([[4, 4]]),
            "pixel_attention_mask": mask,
        }
    if "image_position_ids" in wanted:
        yield _patches_with_places(vision)
    if "pixel_attention_mask" in wanted:
        yield {"pixel_values": picture[None], "pixel_attention_mask": torch.ones(1, 1, 16, 16, dtype=torch.long)}
        yield {"pixel_values": picture[None], "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    if "target_sizes" in wanted:
        yield {"pixel_values": _random(1, 3, 4, 64), "target_sizes": torch.tensor([[4, 4]])}
    if "image_sizes" in wanted:
        yield {"pixel_values": _random(1, 2, 3, 16, 16), "image_sizes": sizes}
        yield {"pixel_values": picture, "image_sizes": sizes}
    if "high_res_pixel_values" in wanted:
        yield {"pixel_values": picture, "high_res_pixel_values": _random(1, 3, 16, 16)}
    yield {"pixel_values": picture}
    if isinstance(patch := getattr(vision, "patch_size", None), int):
        yield {"pixel_values": _random(4, getattr(vision, "temporal_patch_size", None) or 1, patch, patch, 3)}


def _features_method(model: Any) -> Callable[..., Any]:
    base = getattr(model, "model", model)
    return base.get_image_features if hasattr(base, "get_image_features") else model.get_image_features


def vision_config(config: Any) -> Any:
    for name in ("vision_config", "vision_encoder_config", "vit_config"):
        if (found := getattr(config, name, None)) is not None:
            return found
    return config


def _patches(vision: Any, count: int) -> Iterator[Tensor]:
    patch = getattr(vision, "patch_size", 4)
    frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", 3)
    yield _random(count, channels * frames * patch * patch)
    yield _random(count, channels, patch, patch)
    yield _random(1, count, channels, patch, patch)


def _patches_with_places(vision: Any) -> Batch:
    side = 2 * getattr(vision, "pooling_kernel_size", 2)
    places = torch.tensor([[x, y] for y in range(side) for x in range(side)])[None]
    return {"pixel_values": _random(1, side * side, 3 * vision.patch_size**2), "image_position_ids": places}
