from __future__ import annotations

import pytest
import torch

from mars_core.data.chat import render
from mars_core.data.encode import IGNORE, SampleTooLongError, encode_sample
from mars_core.data.lengths import TokenCounter

ANSWER = "It is green."
MULTI = ("<image>\nWhat is the colour?", ANSWER, "How many dogs are there?", "There are three.")


@pytest.fixture(params=["llava", "qwen", "colon"])
def processor(request):
    return request.getfixturevalue(request.param)


def labelled(encoded, processor) -> list[str]:
    """The texts of the runs of labelled tokens, found without the spans."""
    runs, run = [], []
    for label in [*encoded.labels.tolist(), IGNORE]:
        if label != IGNORE:
            run.append(label)
        elif run:
            runs.append(processor.tokenizer.decode(run))
            run = []
    return runs


def test_only_the_answer_and_its_end_are_labelled(processor, make_image, sample_of):
    encoded = encode_sample(sample_of("<image>\nWhat is it?", ANSWER, images=(make_image(),)), processor)
    assert [text.strip() for text in labelled(encoded, processor)] == [f"{ANSWER}<|im_end|>"]


def test_every_answer_of_a_conversation_is_labelled(processor, make_image, sample_of):
    encoded = encode_sample(sample_of(*MULTI, images=(make_image(),)), processor)
    expected = [f"{ANSWER}<|im_end|>", "There are three.<|im_end|>"]
    assert [text.strip() for text in labelled(encoded, processor)] == expected
    spans = [processor.tokenizer.decode(encoded.labels[start:end]) for start, end in encoded.answer_spans]
    assert spans == labelled(encoded, processor)


def test_labels_repeat_the_input_tokens(processor, make_image, sample_of):
    encoded = encode_sample(sample_of(*MULTI, images=(make_image(),)), processor)
    has_label = encoded.labels != IGNORE
    assert torch.equal(encoded.labels[has_label], encoded.input_ids[has_label])
    assert encoded.attention_mask.all()


def test_an_answer_continues_exactly_the_generation_prompt(processor, make_image, sample_of):
    """The oracle is the processor's own chat path, as used for generation."""
    image = make_image(size=(70, 33))
    encoded = encode_sample(sample_of("<image>\nWhat is it?", ANSWER, images=(image,)), processor)
    content = [{"type": "image", "path": str(image.folder / image.path)}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    start, _ = encoded.answer_spans[0]
    assert torch.equal(encoded.input_ids[:start], prompt["input_ids"][0])
    assert torch.equal(encoded.image_inputs["pixel_values"], prompt["pixel_values"])


def test_text_only_samples_have_no_image_inputs(processor, sample_of):
    encoded = encode_sample(sample_of("What is the colour?", ANSWER), processor)
    assert encoded.image_inputs == {}
    assert [text.strip() for text in labelled(encoded, processor)] == [f"{ANSWER}<|im_end|>"]


def test_images_in_a_later_turn_shift_nothing(processor, make_image, sample_of):
    texts = ("Where is it?", ANSWER, "<image>\nAnd here? <image>", "In the upper left.")
    images = (make_image(size=(64, 30)), make_image(size=(20, 50)))
    encoded = encode_sample(sample_of(*texts, images=images), processor)
    expected = [f"{ANSWER}<|im_end|>", "In the upper left.<|im_end|>"]
    assert [text.strip() for text in labelled(encoded, processor)] == expected


def test_several_images_are_one_sample_for_llava_onevision(llava, make_image, sample_of):
    encoded = encode_sample(sample_of("<image><image>\nWhich?", ANSWER, images=(make_image(), make_image())), llava)
    assert encoded.image_inputs["batch_num_images"].tolist() == [2]
    assert encoded.image_inputs["pixel_values"].shape == (2, 1, 3, 32, 32)


def test_qwen_keeps_its_token_types(qwen, make_image, sample_of):
    encoded = encode_sample(sample_of("<image>\nWhat?", ANSWER, images=(make_image(),)), qwen)
    types = encoded.token_inputs["mm_token_type_ids"]
    image_token = qwen.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert torch.equal(types == 1, encoded.input_ids == image_token)
    assert encoded.image_inputs["image_grid_thw"].shape == (1, 3)


def test_white_space_of_the_header_follows_the_generation_prompt(llava, sample_of):
    chat = render(sample_of("Hello?", "Yes.", "Sure?", "No.").turns, llava)
    assert chat.text == (
        "<|im_start|>user \nHello?<|im_end|><|im_start|>assistant\nYes.<|im_end|>"
        "<|im_start|>user \nSure?<|im_end|><|im_start|>assistant\nNo.<|im_end|>"
    )


def test_long_samples_are_refused_whole(llava, make_image, sample_of):
    sample = sample_of("<image>\nWhat is it?", ANSWER, images=(make_image(),))
    length = len(encode_sample(sample, llava))
    assert len(encode_sample(sample, llava, max_tokens=length)) == length
    with pytest.raises(SampleTooLongError, match=f"{length} tokens, more than the limit of {length - 1}"):
        encode_sample(sample, llava, max_tokens=length - 1)


@pytest.mark.parametrize("sizes", [(), ((40, 30),), ((90, 20),), ((64, 64), (20, 90))])
def test_lengths_are_exact_without_decoding(processor, make_image, sizes, sample_of):
    images = tuple(make_image(size=size) for size in sizes)
    sample = sample_of("<image>" * len(sizes) + "\nWhat is it?", ANSWER, images=images)
    assert TokenCounter(processor)(sample) == len(encode_sample(sample, processor))


def test_a_template_that_is_not_prefix_stable_is_refused(sample_of, llava_with, llava_template):
    template = llava_template.replace("<|im_start|>assistant\\n", "<|im_start|>model\\n").replace(
        "<|im_start|>assistant\n", "<|im_start|>model\n"
    )
    with pytest.raises(ValueError, match=r"d\.json, row 1: .* right behind its generation prompt: .*use a chat"):
        encode_sample(sample_of("Hello?", "Yes."), llava_with(template))


def test_a_template_that_changes_answers_is_refused(sample_of, llava_with, llava_template):
    template = llava_template.replace(
        "{% generation %}{{ '\n' + content['text'] }}", "{% generation %}{{ '\n' + content['text'] | upper }}"
    )
    with pytest.raises(ValueError, match="does not put the answer right behind its generation prompt"):
        encode_sample(sample_of("Hello?", "Yes."), llava_with(template))


def test_a_template_without_end_of_turn_is_refused(sample_of, llava_with, llava_template):
    template = llava_template.replace("{{'<|im_end|>'}}", "")
    with pytest.raises(ValueError, match="would not learn to stop"):
        encode_sample(sample_of("Hello?", "Yes."), llava_with(template))


def test_a_prompt_that_merges_with_the_answer_is_refused(sample_of, llava_with):
    template = (
        "{% for message in messages %}{{ message['role'] }}:{% for content in message['content'] %}"
        "{{ content['text'] }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    # "assistant:" and ")" make one token ":)" in the tokenizer below.
    processor = llava_with(template)
    processor.tokenizer.add_tokens([":)"])
    with pytest.raises(ValueError, match="labels would be inexact"):
        encode_sample(sample_of("Hello?", ") Yes."), processor)


def test_a_template_that_refuses_the_conversation_says_why(sample_of, llava_with):
    processor = llava_with("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"d\.json, row 1: the chat template refuses .*roles must alternate"):
        encode_sample(sample_of("Hello?", "Yes."), processor)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("<image>What?", "Yes."), "1 <image> marker for 0 images: put one"),
        (("What?", "<image>"), "<image> in an answer"),
        (("What?",), "roles out of order"),
        (("What?", ""), "empty answer"),
    ],
)
def test_samples_that_cannot_be_encoded_are_named(llava, texts, message, sample_of):
    with pytest.raises(ValueError, match=rf"d\.json, row 7: {message}"):
        encode_sample(sample_of(*texts, row=7), llava)


def test_a_broken_image_is_named(llava, tmp_path, make_image, sample_of):
    image = make_image("broken.png", size=(300, 300))
    whole = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"d\.json, row 1: unreadable image 'broken\.png'"):
        encode_sample(sample_of("<image>What?", "Yes.", images=(image,)), llava)
