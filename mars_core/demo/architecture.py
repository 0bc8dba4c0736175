"""The demo backbone's architecture: LLaVA-OneVision's classes, small, with its tokenizer and processor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from mars_core.demo.scenes import IMAGE_SIZE
from mars_core.models.processor import without_video

PATCH_SIZE = 16
VOCABULARY = 768

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
IMAGE = "<image>"
VIDEO = "<video>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<image>\n"
    "{% elif block['type'] == 'text' %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2's ChatML; content is a string or a list of typed blocks."""


@dataclass(frozen=True)
class Shape:
    """Layers and widths of tower and LLM."""

    tower_layers: int = 3
    tower_width: int = 128
    llm_layers: int = 3
    llm_width: int = 128


DEMO_SHAPE = Shape()


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCABULARY` tokens, trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, IMAGE, VIDEO],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, IMAGE, VIDEO],
        model_max_length=1024,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """LLaVA-OneVision's processor for one picture tile of IMAGE_SIZE, without video."""
    side = IMAGE_SIZE
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_grid_pinpoints=[[side, side]]
    )
    processor_class = without_video(LlavaOnevisionProcessor)
    return processor_class(
        image_processor=image_processor,
        tokenizer=tokenizer,
        num_image_tokens=(side // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, shape: Shape = DEMO_SHAPE) -> Any:
    """A freshly initialised model (torch's global random state decides its weights)."""
    side = IMAGE_SIZE
    vision = SiglipVisionConfig(
        hidden_size=shape.tower_width,
        intermediate_size=2 * shape.tower_width,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.llm_width,
        intermediate_size=2 * shape.llm_width,
        num_hidden_layers=shape.llm_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.08,  # about width ** -0.5; the default suits models ten times as wide
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    )
    config = LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        image_grid_pinpoints=[[side, side]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    _balance_scales(model)
    return model


def _balance_scales(model: Any) -> None:
    """Keep patch features near the scale of word embeddings.

    At this width the default initialisations let flat coloured patches, and later the projected features,
    grow to tens of times the words' scale; layers after them could then hardly change them.
    """
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    with torch.no_grad():
        tower.embeddings.patch_embedding.weight.mul_(0.03)
        tower.embeddings.position_embedding.weight.mul_(0.4)
        for layer in tower.encoder.layers:
            layer.self_attn.out_proj.weight.mul_(0.3)
            layer.mlp.fc2.weight.mul_(0.3)
        projector.linear_1.weight.normal_(std=0.5 * projector.linear_1.in_features**-0.5)
