"""Small random-weight checkpoints of vision-language families, with the chat templates and token ids as published.

    python benchmarks/exports/checkpoints.py FOLDER FAMILY...

Needs transformers and torchvision alone, so that the processors are saved whole, their video parts too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATES = Path(__file__).parents[2] / "tests" / "mars_core" / "data" / "chat_templates"
INTERNVL = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
LLAVA_ONEVISION = (TEMPLATES / "llava_onevision.jinja").read_text(encoding="utf-8").removesuffix("\n")
QWEN = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
QWEN_VL = QWEN | {
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
}


def tokenizer_with(special: dict[str, int], end: str, pad: str, bos: str | None = None, **names: str) -> Any:
    """A byte-level tokenizer whose special tokens have the ids given; the ids between are never used."""
    vocabulary = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1000)}
    by_id = {number: token for token, number in special.items()}
    taken = set(vocabulary.values()) | set(by_id)
    vocabulary |= {f"<unused{number}>": number for number in range(max(by_id) + 1) if number not in taken}
    vocabulary |= special
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=pad, bos_token=bos, extra_special_tokens=names
    )


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision: tiles of 32 pixels, up to 2 x 2."""
    tokenizer = tokenizer_with(QWEN | {"<image>": 151646, "<video>": 151647}, "<|im_end|>", "<|endoftext|>")
    grid = [[32, 32], [32, 64], [64, 64]]
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size={"height": 32, "width": 32}, image_grid_pinpoints=grid),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION,
    )
    vision = hf.SiglipVisionConfig(**VISION, image_size=32, patch_size=16, vision_use_head=False)
    config = hf.LlavaOnevisionConfig(
        vision_config=vision.to_dict(),
        text_config=hf.Qwen2Config(vocab_size=len(tokenizer), **TEXT).to_dict(),
        image_token_index=151646,
        video_token_index=151647,
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _qwen(kind: str, template: str, vision: dict[str, Any], text: dict[str, Any]) -> tuple[Any, Any]:
    tokenizer = tokenizer_with(QWEN_VL, "<|im_end|>", "<|endoftext|>")
    image = hf.Qwen2VLImageProcessor(
        patch_size=16 if kind == "Qwen3VL" else 14, size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
    )
    video = hf.Qwen3VLVideoProcessor() if kind == "Qwen3VL" else hf.Qwen2VLVideoProcessor()
    chat = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    processor = getattr(hf, f"{kind}Processor")(image, tokenizer, video, chat_template=chat)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    shape = {"depth": 2, "hidden_size": 16, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = getattr(hf, f"{kind}Config")(
        text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope} | text,
        vision_config=shape | {"in_channels": 3} | vision,
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
    )
    return getattr(hf, f"{kind}ForConditionalGeneration")(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL."""
    vision = {"embed_dim": 16, "mlp_ratio": 2, "patch_size": 14, "hidden_size": 32}
    return _qwen("Qwen2VL", "qwen2_5_vl", vision, {})


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL."""
    vision = {"out_hidden_size": 32, "intermediate_size": 24, "window_size": 28, "fullatt_block_indexes": [1]}
    return _qwen("Qwen2_5_VL", "qwen2_5_vl", vision | {"patch_size": 14}, {})


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL."""
    vision = {"depth": 3, "out_hidden_size": 32, "intermediate_size": 24, "num_position_embeddings": 16}
    vision |= {"patch_size": 16, "deepstack_visual_indexes": [0, 1]}
    # Deeper than the others: features that go past the first blocks reach no answer of a model that ends there.
    return _qwen("Qwen3VL", "qwen3_vl", vision, {"head_dim": 16, "num_hidden_layers": 4})


def _idefics(kind: str, template: str, special: dict[str, int], **of_tokenizer: Any) -> tuple[Any, Any]:
    tokenizer = tokenizer_with(special, **of_tokenizer)
    image = getattr(hf, f"{kind}ImageProcessor")(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    parts = [image, tokenizer] + ([hf.SmolVLMVideoProcessor()] if kind == "SmolVLM" else [])
    chat = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    processor = getattr(hf, f"{kind}Processor")(*parts, image_seq_len=4, chat_template=chat)
    config = getattr(hf, f"{kind}Config")(
        vision_config=VISION | {"image_size": 64, "patch_size": 16},
        text_config=hf.LlamaConfig(vocab_size=len(tokenizer), **TEXT).to_dict(),
        image_token_id=special["<image>"],
        scale_factor=2,
    )
    return getattr(hf, f"{kind}ForConditionalGeneration")(config), processor


_IDEFICS_TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_GRID = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special = {name: number for number, name in enumerate(names)}
    more = ["<global-img>", *_GRID, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    special |= {name: number for number, name in enumerate(more, start=49152)}
    return _idefics(
        "SmolVLM",
        "smolvlm",
        special,
        end="<end_of_utterance>",
        pad="<|im_end|>",
        bos="<|im_start|>",
        **_IDEFICS_TOKENS,
    )


def idefics3() -> tuple[Any, Any]:
    """Idefics3."""
    special = {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|eot_id|>": 128009}
    special |= {"<fake_token_around_image>": 128256, "<image>": 128257, "<end_of_utterance>": 128258}
    special |= {name: number for number, name in enumerate(["<global-img>", *_GRID], start=128259)}
    return _idefics(
        "Idefics3",
        "idefics3",
        special,
        end="<|end_of_text|>",
        pad="<|eot_id|>",
        bos="<|begin_of_text|>",
        **_IDEFICS_TOKENS,
    )


def internvl() -> tuple[Any, Any]:
    """InternVL3 in the form of transformers."""
    special = QWEN | {"<img>": 151665, "</img>": 151666, "<IMG_CONTEXT>": 151667, "<video>": 151668}
    tokenizer = tokenizer_with(
        special,
        "<|im_end|>",
        "<|endoftext|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=2),
        tokenizer,
        hf.InternVLVideoProcessor(size={"height": 32, "width": 32}),
        image_seq_length=4,
        chat_template=INTERNVL,
    )
    config = hf.InternVLConfig(
        vision_config=VISION | {"image_size": [32, 32], "patch_size": [8, 8]},
        text_config=hf.Qwen2Config(vocab_size=len(tokenizer), **TEXT).to_dict(),
        image_token_id=151667,
        image_seq_length=4,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """Gemma 3."""
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<start_of_turn>": 105, "<end_of_turn>": 106}
    special |= {"<start_of_image>": 255999, "<end_of_image>": 256000, "<image_soft_token>": 262144}
    tokenizer = tokenizer_with(
        special,
        "<eos>",
        "<pad>",
        "<bos>",
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    chat = (TEMPLATES / "gemma3.jinja").read_text(encoding="utf-8")
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size={"height": 32, "width": 32}), tokenizer, chat_template=chat, image_seq_length=4
    )
    text = TEXT | {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"], "vocab_size": len(tokenizer)}
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=32, patch_size=8, vision_use_head=False).to_dict(),
        text_config=text | {"sliding_window": 64, "query_pre_attn_scalar": 16},
        mm_tokens_per_image=4,
        image_token_index=262144,
        boi_token_index=255999,
        eoi_token_index=256000,
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zeros in a fresh model
    return model, processor


FAMILIES = {
    make.__name__: make
    for make in (llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, smolvlm, idefics3, internvl, gemma3)
}


def main() -> None:
    """Write checkpoint folders."""
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        torch.manual_seed(0)
        model, processor = FAMILIES[name]()
        model.generation_config = hf.GenerationConfig(eos_token_id=processor.tokenizer.eos_token_id)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        print(name, sum(parameter.numel() for parameter in model.parameters()))


if __name__ == "__main__":
    main()
