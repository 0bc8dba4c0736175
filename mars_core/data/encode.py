"""A sample as model inputs, with labels on its answers only.

The processor runs once on the whole conversation and its images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mars_core.data.answer_spans import answer_spans
from mars_core.data.chat import markers_of, render
from mars_core.data.conversation_rules import require_rules
from mars_core.data.images import load_image
from mars_core.data.processing import process
from mars_core.data.records import Sample
from mars_core.data.sounds import load_sound, sampling_rate

IGNORE = -100

# Processor outputs with one value per token; they are padded like the tokens. All others go by images.
TOKEN_KEYS = frozenset({"mm_token_type_ids", "token_type_ids"})
# What a modality encoder reads: pixels, or the spectrogram of a sound.
ENCODER_INPUTS = ("pixel_values", "input_features")
_TEXT_KEYS = frozenset({"input_ids", "attention_mask"})


class SampleTooLongError(Exception):
    """A sample has more tokens than allowed. It must be dropped: cutting would break its image tokens."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One sample as model inputs.

    input_ids, attention_mask, labels: shape (length,); labels are -100 but on answer tokens, end-of-turn
    token included. answer_spans: [start, end) of each answer in them; input_ids[:start] is the prompt
    that generation would start from. token_inputs: shape (length,) each. image_inputs: as the processor
    gives them, of sounds too; empty for text-only samples.
    """

    sample: Sample
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    answer_spans: tuple[tuple[int, int], ...]
    token_inputs: Mapping[str, Tensor]
    image_inputs: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        tensors = (self.input_ids, self.attention_mask, self.labels)
        return sum(t.nbytes for t in (*tensors, *self.token_inputs.values(), *self.image_inputs.values()))


def encode_sample(sample: Sample, processor: Any, max_tokens: int | None = None) -> Encoded:
    """Encode a sample with its processor's chat template.

    Args:
        sample: the sample; its images and sounds are decoded here.
        processor: an image-and-text processor with a chat template.
        max_tokens: longest allowed sequence, image tokens included; None for no limit.

    Raises:
        ValueError: an image or a sound cannot be read, the conversation breaks a rule, or the chat template or
            tokenizer does not allow exact labels.
        SampleTooLongError: the sample has more than `max_tokens` tokens.
    """
    try:
        return _encode(sample, processor, max_tokens)
    except ValueError as error:
        raise ValueError(f"{sample.source}: {error}") from error


def _encode(sample: Sample, processor: Any, max_tokens: int | None) -> Encoded:
    require_rules(sample)
    chat = render(tuple(sample.turns), processor, markers_of(sample))
    sounds = [load_sound(sound, sampling_rate(processor)) for sound in sample.sounds]
    done = process(chat.text, [load_image(image) for image in sample.images], processor, sounds)
    tensors = done.tensors
    ids = tensors["input_ids"][0]
    if max_tokens is not None and len(ids) > max_tokens:
        raise SampleTooLongError(f"{sample.source}: {len(ids)} tokens, more than the limit of {max_tokens}")
    spans = answer_spans(chat, ids.tolist(), done.expansion, processor)
    return Encoded(
        sample=sample,
        input_ids=ids,
        attention_mask=tensors["attention_mask"][0],
        labels=_labels(ids, spans),
        answer_spans=spans,
        token_inputs={key: tensors[key][0] for key in TOKEN_KEYS & tensors.keys()},
        image_inputs=_image_inputs(tensors),
    )


def is_seen_or_heard(batch: Mapping[str, Any]) -> bool:
    """Whether model inputs hold an image or a sound, so that they pass through the modality encoder."""
    return any(name in batch for name in ENCODER_INPUTS)


def _labels(ids: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    labels = torch.full_like(ids, IGNORE)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return labels


def _image_inputs(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    inputs = {key: value for key, value in tensors.items() if key not in TOKEN_KEYS | _TEXT_KEYS}
    for key, value in inputs.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the processor gives {key!r} as {type(value).__name__}, expected a tensor: "
                "this model family is not supported yet"
            )
    return inputs
