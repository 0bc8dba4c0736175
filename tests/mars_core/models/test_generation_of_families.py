"""Greedy answers of every known family: a batch of equally long prompts writes what each writes alone."""

from __future__ import annotations

from pathlib import Path

import torch

from mars_core.data.encode import TOKEN_KEYS, Encoded
from mars_core.data.records import Sample, Source, Turn
from mars_core.evaluation.generation.greedy import Decoding, greedy_tokens

DECODING = Decoding(max_new_tokens=6, ends=frozenset({30}), pad_token_id=0)
SAMPLE = Sample("1", (), (Turn("user", "?"), Turn("assistant", "!")), "t", Source(Path("d.json"), 1))


def prompts(batch):
    """Two prompts of one length, with other pictures and another last word."""
    made = []
    for number in range(2):
        ids = batch["input_ids"][0].clone()
        ids[-1] += number
        images = {key: value for key, value in batch.items() if key not in TOKEN_KEYS | {"input_ids", "attention_mask"}}
        images["pixel_values"] = images["pixel_values"].double().flip(-1) if number else images["pixel_values"].double()
        tokens = {key: batch[key][0] for key in TOKEN_KEYS & batch.keys()}
        made.append(Encoded(SAMPLE, ids, torch.ones_like(ids), torch.full_like(ids, -100), (), tokens, images))
    return made


def one_by_one(model, prompt):
    """The argmax of a whole forward pass for each new token; every new token is text."""
    ids, tokens, written = prompt.input_ids, dict(prompt.token_inputs), []
    for _ in range(DECODING.max_new_tokens):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tokens}
        rows = {key: value[None] for key, value in inputs.items()}
        with torch.no_grad():
            token = int(model(**rows, **prompt.image_inputs, use_cache=False).logits[0, -1].argmax())
        if token in DECODING.ends:
            break
        written.append(token)
        ids = torch.cat([ids, torch.tensor([token])])
        tokens = {key: torch.cat([value, torch.zeros(1, dtype=value.dtype)]) for key, value in tokens.items()}
    return written


def test_a_batch_writes_what_each_prompt_writes_alone(family_model, image_batch):
    """In fp64 no two logits of these models are close enough for rounding to change an argmax."""
    model_type, model = family_model
    model = model.double()
    asked = prompts(image_batch(model_type))
    together = greedy_tokens(model, asked, DECODING)
    assert together == [greedy_tokens(model, [prompt], DECODING)[0] for prompt in asked]
    assert together == [one_by_one(model, prompt) for prompt in asked]
