"""Build a LLaVA-OneVision checkpoint from a vision encoder and a language model (the paper's appendix A.1).

Both keep their weights; between them stands a fresh 2-layer MLP projector. As in LLaVA-OneVision the encoder's last
block is left out, because its output serves SigLIP's own pooling, and a picture is seen whole and in tiles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    SiglipVisionModel,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.utils import cached_file

from mars_core.models.processor import without_video

IMAGE, VIDEO = "<image>", "<video>"
SIGLIP_TYPES = ("siglip", "siglip_vision_model")
# What SigLIP's own image processor does, if the checkpoint does not say.
SIGLIP_PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 1 / 255}

_BLOCKS_TO_TEXT = (
    "{%- set said = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set said.text = message['content'] -%}"
    "{%- else -%}{%- set said.text = '' -%}"
    "{%- for block in message['content'] -%}"
    "{%- if block['type'] == 'image' -%}{%- set said.text = said.text + '<image>\n' -%}"
    "{%- elif block['type'] == 'text' -%}{%- set said.text = said.text + block['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set said.messages = said.messages + [dict(message, content=said.text)] -%}"
    "{%- endfor -%}"
    "{%- set messages = said.messages -%}"
)
"""Stands before the LLM's own chat template, which knows strings alone."""


@dataclass(frozen=True)
class Assembled:
    """A model in training precision (float32) with its processor."""

    model: Any
    processor: Any


def assemble(vision: str, llm: str, *, grid: int = 1, seed: int = 0) -> Assembled:
    """Join a SigLIP-family encoder and a causal LLM.

    Args:
        vision: folder or hub id of a SigLIP checkpoint, with or without its text tower.
        llm: folder or hub id of a causal LLM with a chat template, or the path of a GGUF file.
        grid: most tiles along one side of a picture; published LLaVA-OneVision checkpoints use 6.
        seed: of the projector's initial weights.

    Raises:
        ValueError: a part cannot be loaded or is of another kind.
    """
    tower = _load_vision(vision)
    language_model, tokenizer = _load_llm(llm)
    _add_tokens(tokenizer, llm)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(_config(tower, language_model, tokenizer, grid))
    _copy(tower, model.model.vision_tower, ignore="head.")
    _copy(language_model.base_model, model.model.language_model)
    if not model.config.tie_word_embeddings:
        _copy(language_model.get_output_embeddings(), model.lm_head)
    _make_room(model, tokenizer)
    model.config.text_config.pad_token_id = tokenizer.pad_token_id  # which may be one of the new ones
    model.generation_config = language_model.generation_config
    return Assembled(model, _processor(vision, tower, tokenizer, grid))


def _load_vision(vision: str) -> Any:
    try:
        model_type = AutoConfig.from_pretrained(vision).model_type
        if model_type in SIGLIP_TYPES:
            return _without_last_block(SiglipVisionModel.from_pretrained(vision, dtype=torch.float32))
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"vision encoder {vision!r} could not be loaded: {str(error).splitlines()[0]}") from error
    raise ValueError(
        f"vision encoder {vision!r} is of type {model_type!r}, expected SigLIP ({', '.join(SIGLIP_TYPES)})"
    )


def _without_last_block(tower: Any) -> Any:
    blocks = tower.get_submodule(next(name for name, part in tower.named_modules() if isinstance(part, nn.ModuleList)))
    if len(blocks) < 2:
        raise ValueError(f"it has {len(blocks)} blocks, and the last one is left out: give an encoder of 2 or more")
    del blocks[-1]
    tower.config.num_hidden_layers = len(blocks)
    return tower


def _load_llm(llm: str) -> tuple[Any, Any]:
    is_gguf = llm.endswith(".gguf")
    folder, file = (str(Path(llm).parent), {"gguf_file": Path(llm).name}) if is_gguf else (llm, {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **file)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"language model {llm!r} could not be loaded: {str(error).splitlines()[0]}") from error
    return model, tokenizer


def _add_tokens(tokenizer: Any, llm: str) -> None:
    if not tokenizer.chat_template:
        raise ValueError(f"language model {llm!r} has no chat template: give an instruction-tuned one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE, VIDEO]})
    tokenizer.padding_side = "right"


def _config(tower: Any, language_model: Any, tokenizer: Any, grid: int) -> LlavaOnevisionConfig:
    text = language_model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "architectures", "dtype"):
        text.pop(key, None)
    return LlavaOnevisionConfig(
        vision_config=tower.config.to_dict() | {"vision_use_head": False},
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        image_grid_pinpoints=_pinpoints(tower.config.image_size, grid),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(language_model.config.tie_word_embeddings),
    )


def _pinpoints(side: int, grid: int) -> list[list[int]]:
    return [[side * rows, side * columns] for rows in range(1, grid + 1) for columns in range(1, grid + 1)]


def _copy(source: nn.Module, target: nn.Module, *, ignore: str | None = None) -> None:
    weights = {name: w for name, w in source.state_dict().items() if ignore is None or not name.startswith(ignore)}
    target.load_state_dict(weights)


def _make_room(model: Any, tokenizer: Any) -> None:
    """Give the new tokens the mean embedding: as inputs images replace them, as outputs they stay unlikely."""
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) <= known:
        return
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            embeddings.weight[known:] = embeddings.weight[:known].mean(dim=0)


def _processor(vision: str, tower: Any, tokenizer: Any, grid: int) -> Any:
    side, patch = tower.config.image_size, tower.config.patch_size
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_grid_pinpoints=_pinpoints(side, grid), **_pixels(vision)
    )
    return without_video(LlavaOnevisionProcessor)(
        image_processor=image_processor,
        tokenizer=tokenizer,
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_BLOCKS_TO_TEXT + tokenizer.chat_template,
    )


def _pixels(vision: str) -> dict[str, Any]:
    path = cached_file(vision, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    stored = json.loads(Path(path).read_text()) if path else {}
    return {key: stored.get(key, value) for key, value in SIGLIP_PIXELS.items()}
