"""The same architecture, narrow: a configuration with small widths and few experts, whose modules keep their names.

Layer counts, vocabulary, picture and patch sizes stay, so that a checkpoint's own processor feeds the narrow model too.
Which modules a forward pass uses does not depend on widths, so a narrow model tells it within seconds and without any
weights. `smaller` also cuts what the inputs meet; it is for tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]

TEXT = {"width": 64, "heads": 4, "key_heads": 2, "head": 16, "hidden": 40}
VISION = {"width": 32, "heads": 2, "key_heads": 2, "head": 16, "hidden": 24}
VISION_SECTIONS = ("vision", "visual", "vit", "image", "sam", "high_res", "low_res", "audio", "vq", "speech")
"""A section of a configuration with one of these in its name is of an encoder."""

NAMES: dict[str, str] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "decoder_hidden_size", "word_embed_proj_dim"), "width"),
    **dict.fromkeys(("patch_embed_hidden_size", "hidden_dim", "adapter_in_dim", "adapter_input_size"), "width"),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "mlp_dim",
            "d_ff",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "dense_intermediate_size",
            "shared_intermediate_size",
            "intermediate_size_mlp",
            "projector_hidden_size",
            "projection_hidden_dim",
            "projection_intermediate_size",
            "share_expert_dim",
            "shared_experts_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "alignment_intermediate_size",
            "projection_hidden_size",
            "decoder_intermediate_size",
            "moe_hidden_size",
            "merged_hidden_size",
        ),
        "hidden",
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "num_heads",
            "attention_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "conf_num_attention_heads",
            "swa_num_attention_heads",
            "num_sliding_attention_heads",
            "resampler_n_heads",
            "resampler_heads",
            "linear_num_value_heads",
            "linear_num_heads",
            "mamba_num_heads",
            "index_n_heads",
        ),
        "heads",
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "swa_num_key_value_heads", "linear_num_key_heads", "num_global_key_value_heads"),
        "key_heads",
    ),
    **dict.fromkeys(
        (
            "head_dim",
            "swa_head_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_head_dim",
            "v_head_dim",
            "qk_nope_head_dim",
            "resampler_head_dim",
            "resampler_dim_head",
            "d_kv",
            "global_head_dim",
            "index_head_dim",
            "mamba_head_dim",
            "q_lora_rank",
            "kv_lora_rank",
            "qk_rope_head_dim",
            "ssm_state_size",
            "hidden_size_per_layer_input",
            "query_pre_attn_scalar",
        ),
        "head",
    ),
}
"""What a setting counts, by its name in transformers' configurations."""

COUNTS: dict[str, Any] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    "n_group": 1,
    "topk_group": 1,
    "n_groups": 2,
}
TO_TEXT = (
    *("out_hidden_size", "adapter_out_dim", "text_hidden_size", "projector_output_dim"),
    *("image_token_embed_dim", "projection_dim"),
)
"""Widths of an encoder's section that are the language model's."""

SMALLER: dict[str, Any] = {
    "vocab_size": 128,
    "unpadded_vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "image_size": 16,
    "patch_size": 4,
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 512,
    "num_position_embeddings": 16,
    "num_query_tokens": 4,
    "chunk_size": 16,
    "num_kv_shared_layers": 0,
    "mm_tokens_per_image": 4,
    "image_grid_pinpoints": [[16, 16]],
    **{name: [0, 1] for name in ("deepstack_visual_indexes", "fullatt_block_indexes", "global_attn_indexes")},
}
LAYERS = frozenset(
    {"num_hidden_layers", "depth", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "layers"}
    | {"num_decoder_layers", "conf_num_hidden_layers", "decoder_num_layers", "resampler_depth", "num_res_blocks"}
)
BY_LAYER = frozenset(
    {"layer_types", "mlp_layer_types", "indexer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta"}
    | {"activation_sparsity_pattern", "kv_source_layers"}
)
"""Lists with an entry for every layer."""


def narrow(config: Any) -> Any:
    """A configuration of the same class with small widths.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: its class refuses them.
    """
    return type(config).from_dict(_without_weights(_narrowed(config.to_dict(), TEXT, {})))


def smaller(config: Any, changes: Mapping[str, Any]) -> Any:
    """As `narrow`, with few layers of every kind, small pictures and a vocabulary of 128; `changes` come last."""
    settings = _renumbered(_narrowed(config.to_dict(), TEXT, SMALLER), {})
    return type(config).from_dict(_without_weights(_merged(settings, changes)))


def _without_weights(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name not in ("architectures", "quantization_config")}


def _narrowed(settings: Settings, sizes: Mapping[str, int], smaller: Mapping[str, Any]) -> Settings:
    kept = _kept_layers(settings) if smaller else None
    cut: Settings = dict(smaller)
    if smaller:
        count = len(kept) if kept is not None else 3 if sizes is VISION else 2
        cut |= dict.fromkeys(LAYERS, count)
    found = {name: _setting(str(name), value, sizes, cut, smaller) for name, value in settings.items()}
    if settings.get("num_key_value_heads") == settings.get("num_attention_heads") is not None:
        found["num_key_value_heads"] = found["num_attention_heads"]  # some architectures demand it
    layers = [settings, *({**settings, **layer} for layer in (settings.get("per_layer_config") or {}).values())]
    if any(layer.get("head_dim") == sum(_head_parts(layer)) for layer in layers):
        found["head_dim"] = sum(_head_parts(found))
    if kept is not None:
        long = _longest(settings)
        found |= {name: _at(value, kept) for name, value in found.items() if _is_by_layer(name, value, long)}
        if "per_layer_config" in found:
            found["per_layer_config"] = _renamed(found["per_layer_config"], kept)
    return found


def _head_parts(settings: Settings) -> list[int]:
    """Widths of a latent head's parts, without and with rotary positions."""
    return [settings.get(name) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim")]


def _setting(
    name: str, value: Any, sizes: Mapping[str, int], cut: Mapping[str, Any], smaller: Mapping[str, Any]
) -> Any:
    if isinstance(value, dict):
        return _section(name, value, sizes, smaller)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(cut.get(name), list):
        return cut[name]
    if isinstance(value, (list, tuple)):
        sized = _number(name, sizes, cut)
        is_numbers = all(isinstance(one, int) for one in value)
        return [sized] * len(value) if sized is not None and is_numbers and value else list(value)
    new = _number(name, sizes, cut)
    return value if new is None or not value else type(value)(new)


def _section(name: str, value: Settings, sizes: Mapping[str, int], smaller: Mapping[str, Any]) -> Settings:
    if name.startswith("rope_"):
        return _rope(value)
    if name == "per_layer_config":
        return {number: _narrowed(one, sizes, {}) for number, one in value.items()}
    if name.endswith("config") or name in ("encoder", "decoder"):
        return _narrowed(value, VISION if any(part in name for part in VISION_SECTIONS) else TEXT, smaller)
    return value


def _at(value: Any, kept: list[int]) -> Any:
    return [value[number] for number in kept] if isinstance(value, list) and len(value) > max(kept) else value


def _renamed(layers: Settings, kept: list[int]) -> Settings:
    numbered = {int(number): value for number, value in layers.items()}
    return {str(new): numbered[old] for new, old in enumerate(kept) if old in numbered}


def _number(name: str, sizes: Mapping[str, int], cut: Mapping[str, Any]) -> int | None:
    if name in NAMES:
        return sizes[NAMES[name]]
    if name in TO_TEXT:
        return TEXT["width"]
    found: int | None = COUNTS.get(name, cut.get(name))
    return found


def _rope(settings: Settings) -> Settings:
    new = {name: _rope(value) if isinstance(value, dict) else value for name, value in settings.items()}
    if new.get("mrope_section"):
        new["mrope_section"] = [2, 3, 3]  # in sum half a head
    return new


def _kept_layers(settings: Settings) -> list[int] | None:
    """Numbers of layers with one of every kind, at least two; None where no list tells kinds."""
    longest = _longest(settings)
    lists = [settings[name] for name in sorted(BY_LAYER) if _is_by_layer(name, settings.get(name), longest)]
    if not lists:
        return None
    kinds: dict[str, int] = {}
    for number, kind in enumerate(zip(*lists, strict=True)):
        kinds.setdefault(repr(kind), number)
    chosen = list(kinds.values())
    return chosen if len(chosen) > 1 else [*chosen, longest - 1]


def _longest(settings: Settings) -> int:
    return max(
        (len(value) for name, value in settings.items() if name in BY_LAYER and isinstance(value, list)), default=0
    )


def _is_by_layer(name: str, value: Any, layers: int) -> bool:
    return (name in BY_LAYER or name in NAMES) and isinstance(value, list) and len(value) == layers > 0


_TOKENS = ("token_id", "token_index", "image_patch_id", "im_start_id", "im_end_id", "im_newline_id", "vocab_offset")


def _renumbered(settings: Settings, ids: dict[int, int]) -> Settings:
    """Token ids of 100 and more become small ones, the same one each time."""

    def small(value: Any) -> Any:
        return ids.setdefault(value, 100 + len(ids)) if isinstance(value, int) and value >= 100 else value

    found: Settings = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found[name] = _renumbered(value, ids)
        elif _is_token(str(name)) and not isinstance(value, bool):
            found[name] = [small(one) for one in value] if isinstance(value, list) else small(value)
        else:
            found[name] = value
    return found


def _is_token(name: str) -> bool:
    return any(part in name for part in _TOKENS)


def _merged(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    new = dict(settings)
    for name, value in changes.items():
        is_section = isinstance(value, Mapping) and isinstance(new.get(name), dict)
        new[name] = _merged(new[name], value) if is_section else value
    return new
