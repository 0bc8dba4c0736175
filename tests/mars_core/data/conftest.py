"""Tiny processors with the published chat templates, and samples made on the spot."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaOnevisionProcessor, PreTrainedTokenizerFast, Qwen2VLProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mars_core.data.records import PathImage, Sample, Source, Turn
from mars_core.models.processor import without_video

# As published with llava-hf/llava-onevision-qwen2-0.5b-ov-hf: its header before an answer differs in white
# space from its generation prompt.
LLAVA_ONEVISION_TEMPLATE = (
    (Path(__file__).with_name("chat_templates") / "llava_onevision.jinja").read_text("utf-8").removesuffix("\n")
)
# As published with Qwen/Qwen2-VL-2B-Instruct, less its video and vision-numbering branches.
QWEN2_VL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# In the manner of SmolVLM: the space before an answer belongs to the answer's first token.
COLON_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

LLAVA_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
QWEN_SPECIALS = [
    *LLAVA_SPECIALS[:3],
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEXTS = [
    "What is the colour of the background? It is green.\nUser: Assistant: system user assistant\n",
    "How many drawings are there? There are three. Where is the dog? In the upper left.\n",
]


def tiny_tokenizer(specials: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like Qwen2's, with few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llava_processor(template: str = LLAVA_ONEVISION_TEMPLATE):
    """LLaVA-OneVision's processor for 32-pixel tiles of 4 tokens, up to 2 x 2 tiles."""
    return without_video(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(
            size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 32], [32, 64], [64, 64]]
        ),
        tiny_tokenizer(LLAVA_SPECIALS),
        None,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def qwen_processor():
    """Qwen2-VL's processor for images of up to 16 tokens."""
    return without_video(Qwen2VLProcessor)(
        Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}),
        tiny_tokenizer(QWEN_SPECIALS),
        None,
        chat_template=QWEN2_VL_TEMPLATE,
    )


def make_sample(
    *texts: str, images: tuple = (), task: str = "vqa", name: str = "s", row: int = 1, file: str = "d.json"
):
    """A sample whose texts are user and assistant turns in alternation."""
    turns = tuple(Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))
    return Sample(name, tuple(images), turns, task, Source(Path(file), row))


@pytest.fixture(scope="session")
def sample_of():
    return make_sample


@pytest.fixture(scope="session")
def make_tokenizer():
    """Makes a tokenizer with the special tokens given."""
    return tiny_tokenizer


@pytest.fixture(scope="session")
def llava_template() -> str:
    return LLAVA_ONEVISION_TEMPLATE


@pytest.fixture(scope="session")
def llava_with():
    """Makes a LLaVA-OneVision processor with another chat template."""
    return llava_processor


@pytest.fixture(scope="session")
def llava():
    return llava_processor()


@pytest.fixture(scope="session")
def qwen():
    return qwen_processor()


@pytest.fixture(scope="session")
def colon():
    return llava_processor(COLON_TEMPLATE)


@pytest.fixture
def make_image(tmp_path):
    """Writes a plain picture of a size; every call gives another colour unless told."""
    numbers = itertools.count(1)

    def make(name: str = "", size: tuple[int, int] = (40, 30), shade: int | None = None) -> PathImage:
        number = next(numbers)
        name = name or f"{number}.png"
        value = number if shade is None else shade
        Image.new("RGB", size, (value % 256, value // 256, 77)).save(tmp_path / name)
        return PathImage(name, tmp_path)

    return make
