"""Labels under the chat template of every model family: exactly the assistant's texts and the end of each turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    Gemma3Processor,
    Idefics3Processor,
    InternVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SmolVLMProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from mars_core.data.chat import chat_messages
from mars_core.data.collate import collate
from mars_core.data.encode import IGNORE, encode_sample
from mars_core.data.lengths import TokenCounter
from mars_core.data.records import PathImage, Turn
from mars_core.models.processor import without_video

TEMPLATES = Path(__file__).with_name("chat_templates")
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
QWEN += ["<|video_pad|>", "<think>", "</think>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
GEMMA += ["<image_soft_token>"]
IDEFICS = ["<pad>", "<end_of_utterance>", "<|begin_of_text|>", "<|im_start|>", "<image>", "<global-img>"]
IDEFICS += [
    "<fake_token_around_image>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
]
INTERNVL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>"]

# No package at hand ships InternVL's own template; this is its format as ms-swift 4.6 describes it: ChatML, and
# the image context token and a line break where an image stands.
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for block in message['content'] %}{% if block['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% else %}{{ block['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ANSWERS = ("It is green.", "There are three.\n\n- one\n- two", "In the upper left")
TEXTS = ("<image>\nWhat is it?", ANSWERS[0], "How many?", ANSWERS[1], "Where is the dog?", ANSWERS[2])
END_OF_TURN = {"gemma3": "<end_of_turn>", "idefics3": "<end_of_utterance>", "smolvlm": "<end_of_utterance>"}


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def qwen(make_tokenizer, cls, name: str):
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16})
    return without_video(cls)(images, make_tokenizer(QWEN), None, chat_template=template(name))


def gemma3(make_tokenizer):
    tokenizer = with_named(
        make_tokenizer(GEMMA),
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return Gemma3Processor(images, tokenizer, chat_template=template("gemma3"), image_seq_length=4)


def idefics3(make_tokenizer):
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    tokenizer = with_named(make_tokenizer(IDEFICS), eos_token="<end_of_utterance>")
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template("idefics3"))


def smolvlm(make_tokenizer):
    pytest.importorskip("num2words", reason="transformers' SmolVLM processor needs num2words")
    images = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    tokenizer = with_named(make_tokenizer(IDEFICS), eos_token="<end_of_utterance>")
    return without_video(SmolVLMProcessor)(images, tokenizer, None, image_seq_len=4, chat_template=template("smolvlm"))


def internvl(make_tokenizer):
    tokenizer = with_named(
        make_tokenizer(INTERNVL),
        eos_token="<|im_end|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    images = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    return without_video(InternVLProcessor)(
        images, tokenizer, None, image_seq_length=4, chat_template=INTERNVL_TEMPLATE
    )


def with_named(tokenizer: PreTrainedTokenizerFast, **tokens) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token=tokenizer.pad_token, **tokens
    )


FAMILIES = {
    "qwen2_vl": lambda make: qwen(make, Qwen2VLProcessor, "qwen2_5_vl"),
    "qwen2_5_vl": lambda make: qwen(make, Qwen2_5_VLProcessor, "qwen2_5_vl"),
    "qwen3_vl": lambda make: qwen(make, Qwen3VLProcessor, "qwen3_vl"),
    "gemma3": gemma3,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
}


@pytest.fixture(scope="module", params=["llava_onevision", *FAMILIES])
def family(request, make_tokenizer, llava):
    return request.param, llava if request.param == "llava_onevision" else FAMILIES[request.param](make_tokenizer)


def learned(encoded, processor) -> list[str]:
    """The texts of the runs of labelled tokens."""
    runs: list[list[int]] = [[]]
    for label in encoded.labels.tolist():
        if label != IGNORE:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [processor.tokenizer.decode(run).strip() for run in runs if run]


@pytest.mark.parametrize("n_images", [0, 1, 3])
@pytest.mark.parametrize("system", [False, True])
def test_the_answers_and_their_ends_are_learned_and_nothing_else(family, make_image, sample_of, n_images, system):
    name, processor = family
    texts = ("<image>\n" * n_images + TEXTS[0].removeprefix("<image>\n"), *TEXTS[1:])
    images = tuple(make_image(size=(30 + 40 * number, 60)) for number in range(n_images))
    sample = with_system(sample_of(*texts, images=images), system)
    encoded = encode_sample(sample, processor)
    end = END_OF_TURN.get(name, "<|im_end|>")
    assert learned(encoded, processor) == [answer + end for answer in ANSWERS]
    assert TokenCounter(processor)(sample) == len(encoded)


def with_system(sample, system: bool):
    import dataclasses

    turns = (Turn("system", "Be brief."), *sample.turns) if system else sample.turns
    return dataclasses.replace(sample, turns=turns)


def test_images_in_later_questions_and_between_words(family, make_image, sample_of):
    name, processor = family
    texts = ("Hello?", "Yes.", "Is <image> like <image>\nor <image>?", "No.")
    encoded = encode_sample(sample_of(*texts, images=tuple(make_image() for _ in range(3))), processor)
    end = END_OF_TURN.get(name, "<|im_end|>")
    assert learned(encoded, processor) == [f"Yes.{end}", f"No.{end}"]


def test_an_answer_continues_the_generation_prompt_of_the_family(family, make_image, sample_of):
    """The oracle is the processor's own chat path, as used for generation."""
    _, processor = family
    image = make_image(size=(70, 33))
    encoded = encode_sample(sample_of("<image>\nWhat is it?", ANSWERS[0], images=(image,)), processor)
    content = [{"type": "image", "path": str(image.folder / image.path)}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert encoded.input_ids[: encoded.answer_spans[0][0]].tolist() == prompt["input_ids"][0]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "smolvlm"])
def test_trl_learns_the_same_tokens(make_tokenizer, sample_of, name):
    """TRL marks the line break behind an end of turn too, which no generation ever reaches."""
    processor = FAMILIES[name](make_tokenizer)
    sample = sample_of(*(text.removeprefix("<image>\n") for text in TEXTS))
    encoded = encode_sample(sample, processor)
    marked = processor.tokenizer.apply_chat_template(
        chat_messages(sample.turns),
        chat_template=template(f"{name}_training"),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    assert encoded.input_ids.tolist() == marked["input_ids"]
    ours = {place for place, label in enumerate(encoded.labels.tolist()) if label != IGNORE}
    theirs = {place for place, mask in enumerate(marked["assistant_masks"]) if mask}
    assert ours <= theirs
    beyond = [processor.tokenizer.decode(marked["input_ids"][place]) for place in sorted(theirs - ours)]
    assert set(beyond) <= {"\n"}
    assert len(beyond) <= len(ANSWERS)


def test_batches_of_samples_with_and_without_images(family, make_image, sample_of):
    _, processor = family
    one = encode_sample(sample_of("<image>\nWhat is it?", "A.", images=(make_image(),)), processor)
    two = encode_sample(sample_of("<image><image>\nSame?", "No.", images=(make_image(), make_image())), processor)
    none = encode_sample(sample_of("Hello?", "Yes."), processor)
    batch = collate([one, none, two], processor.tokenizer.pad_token_id)
    assert batch["input_ids"].shape[0] == 3
    assert "pixel_values" in batch


def test_thinking_of_the_last_answer_is_learned(make_tokenizer, sample_of):
    processor = qwen(make_tokenizer, Qwen3VLProcessor, "qwen3")
    processor.chat_template = text_content(processor.chat_template)
    sample = sample_of("Hello?", "<think>\nA greeting.\n</think>\n\nYes.")
    assert learned(encode_sample(sample, processor), processor) == ["<think>\nA greeting.\n</think>\n\nYes.<|im_end|>"]


def test_thinking_that_the_template_drops_is_refused_with_a_remedy(make_tokenizer, sample_of):
    processor = qwen(make_tokenizer, Qwen3VLProcessor, "qwen3")
    processor.chat_template = text_content(processor.chat_template)
    sample = sample_of("Hello?", "<think>\nA greeting.\n</think>\n\nYes.", "Sure?", "No.")
    with pytest.raises(ValueError, match=r"changes an earlier answer .*one row per answer"):
        encode_sample(sample, processor)


def text_content(chat_template: str) -> str:
    """A text-only model's template, given the text of typed blocks."""
    head = "{%- set ns0 = namespace(m=[]) %}{%- for m in messages %}"
    head += "{%- set ns0.m = ns0.m + [{'role': m.role, 'content': m.content[0].text}] %}{%- endfor %}"
    return head + "{%- set messages = ns0.m %}" + chat_template


def test_images_come_from_files_not_from_paths_in_the_text(family, sample_of, tmp_path):
    _, processor = family
    with pytest.raises(ValueError, match="missing image"):
        encode_sample(sample_of("<image>?", "A.", images=(PathImage("lost.png", tmp_path),)), processor)
