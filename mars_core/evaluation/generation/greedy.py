"""Greedy decoding with the model's own `generate`, over prompts of equal length.

Prompts of unequal length would have to be padded, and what padding does to positions, image tokens and attention
differs between model families; a batch of equally long prompts has none, so it gives what one at a time gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from mars_core.data.collate import collate
from mars_core.data.encode import Encoded


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded: at most `max_new_tokens`, up to the first of `ends`."""

    max_new_tokens: int
    ends: frozenset[int]
    pad_token_id: int

    def config(self) -> GenerationConfig:
        """Plain argmax, whatever sampling or penalties the checkpoint's own generation config asks for."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self.pad_token_id,
        )


def decoding_for(model: Any, processor: Any, example: Encoded, pad_token_id: int, max_new_tokens: int) -> Decoding:
    """Decoding that stops where the model's generation config does, and at the end of turn that answers end with."""
    stated = model.generation_config.eos_token_id
    ends = set(stated if isinstance(stated, list) else [] if stated is None else [stated])
    last = int(example.input_ids[example.answer_spans[-1][1] - 1])
    if last in processor.tokenizer.all_special_ids:
        ends.add(last)
    return Decoding(max_new_tokens, frozenset(ends), pad_token_id)


def prompt_of(encoded: Encoded) -> Encoded:
    """A sample cut before its last answer: what generation starts from."""
    start = encoded.answer_spans[-1][0]
    return replace(
        encoded,
        input_ids=encoded.input_ids[:start],
        attention_mask=encoded.attention_mask[:start],
        labels=encoded.labels[:start],
        answer_spans=(),
        token_inputs={key: value[:start] for key, value in encoded.token_inputs.items()},
    )


@torch.inference_mode()
def greedy_tokens(model: nn.Module, prompts: Sequence[Encoded], decoding: Decoding) -> list[list[int]]:
    """Tokens that the model, in evaluation mode, writes after each prompt, without the end.

    Raises:
        ValueError: the prompts are not equally long.
    """
    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) != 1:
        raise ValueError(f"expected prompts of one length, got lengths {sorted(lengths)}: batch equal lengths together")
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in collate(prompts, decoding.pad_token_id).items() if key != "labels"}
    was_training = model.training
    model.eval()
    try:
        written = model.generate(**batch, generation_config=decoding.config())  # type: ignore[operator]
    finally:
        model.train(was_training)
    return [_up_to_end(row, decoding.ends) for row in written[:, lengths.pop() :].tolist()]


def _up_to_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
