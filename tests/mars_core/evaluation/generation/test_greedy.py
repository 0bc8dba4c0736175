"""Generation of short answers: batches give what one at a time gives, and what `generate` gives unbatched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mars_core.data.encode import encode_sample
from mars_core.data.records import Turn
from mars_core.evaluation.generation.greedy import decoding_for, greedy_tokens, prompt_of
from mars_core.evaluation.generation.questions import batches, short_questions
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.ranks import RankPair


@pytest.fixture(scope="module")
def asked(samples, shared_base):
    return short_questions(samples, shared_base.processor, 8)


@pytest.fixture
def decoding(base, encoded):
    return decoding_for(base.model, base.processor, encoded[0], base.pad_token_id, 8)


def prompts_of(questions, processor):
    return [prompt_of(encode_sample(question.sample, processor)) for question in questions]


def test_questions_are_the_short_answers_in_order_of_their_prompts(asked, samples, base):
    """Lengths that were counted are those of the encoded prompts; long answers are counted, not asked."""
    lengths = [len(prompt) for prompt in prompts_of(asked.questions, base.processor)]
    assert [question.prompt_tokens for question in asked.questions] == lengths == sorted(lengths)
    expected = {(sample.id, number, answer) for sample in samples for number, answer in enumerate(sample.answers)}
    found = {(question.sample.id, question.number, question.expected) for question in asked.questions}
    assert found < expected
    assert len(expected - found) == asked.n_long > 0
    assert all(question.sample.answers[-1] == question.expected for question in asked.questions)


def test_an_earlier_answer_is_asked_with_the_images_shown_by_then(samples, shared_base):
    turns = (
        Turn("user", "<image>\nWhat is it?"),
        Turn("assistant", "a cat"),
        Turn("user", "<image>\nAnd this?"),
        Turn("assistant", "a dog"),
    )
    sample = replace(samples[2], turns=turns)
    first, second = sorted(short_questions([sample], shared_base.processor, 8).questions, key=lambda q: q.number)
    assert (first.sample.images, first.sample.answers) == (sample.images[:1], ("a cat",))
    assert second.sample is sample


def test_batches_hold_prompts_of_one_length(asked):
    for size in (1, 2, 5):
        made = list(batches(asked.questions, size))
        assert [question for batch in made for question in batch] == list(asked.questions)
        assert all(len({question.prompt_tokens for question in batch}) == 1 for batch in made)
        assert max(map(len, made)) <= size


def test_a_batch_writes_what_one_at_a_time_writes(base, asked, decoding, random_adapters):
    """Also with an adapter; at least one batch must hold several prompts for this to say anything."""
    wrapped = add_adapters(base.model, base.partition, RankPair(4, 4), seed=0)
    try:
        for scale in (0.0, 0.05):
            random_adapters(wrapped, scale)
            together, alone, largest = [], [], 0
            for batch in batches(asked.questions, 4):
                prompts = prompts_of(batch, base.processor)
                largest = max(largest, len(prompts))
                together += greedy_tokens(wrapped, prompts, decoding)
                alone += [greedy_tokens(wrapped, [prompt], decoding)[0] for prompt in prompts]
            assert largest > 1
            assert together == alone
            assert any(alone)
    finally:
        remove_adapters(wrapped).eval()


def test_what_is_written_is_the_argmax_at_every_step(base, asked, decoding):
    """Against a loop over whole forward passes, whatever penalties the checkpoint's generation config names."""
    before = base.model.generation_config.repetition_penalty
    base.model.generation_config.repetition_penalty = 5.0
    try:
        prompt = prompts_of(asked.questions[:1], base.processor)[0]
        (written,) = greedy_tokens(base.model, [prompt], decoding)
    finally:
        base.model.generation_config.repetition_penalty = before
    ids, expected = prompt.input_ids, []
    for _ in range(decoding.max_new_tokens):
        with torch.no_grad():
            inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], **prompt.image_inputs}
            token = int(base.model(**inputs).logits[0, -1].argmax())
        if token in decoding.ends:
            break
        expected.append(token)
        ids = torch.cat([ids, torch.tensor([token])])
    assert written == expected


def test_prompts_of_unequal_length_are_refused(base, asked, decoding):
    prompts = prompts_of([asked.questions[0], asked.questions[-1]], base.processor)
    with pytest.raises(ValueError, match="of one length"):
        greedy_tokens(base.model, prompts, decoding)
