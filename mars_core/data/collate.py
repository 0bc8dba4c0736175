"""Encoded samples to one batch of model inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from mars_core.data.encode import IGNORE, Encoded


def collate(batch: Sequence[Encoded], pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the right and join.

    Token tensors become (batch, longest). Image tensors are joined along their first dimension (images for
    LLaVA-OneVision, patches for Qwen-VL), the others padded with zeros to the largest, so that
    `pixel_values` is (images, most tiles, channels, height, width) for LLaVA-OneVision. Text-only samples
    add nothing to them, and a batch of text-only samples has none.

    Raises:
        ValueError: an empty batch.
    """
    if not batch:
        raise ValueError("cannot collate an empty batch: expected at least one encoded sample")
    tokens = {
        "input_ids": _pad([item.input_ids for item in batch], pad_token_id),
        "attention_mask": _pad([item.attention_mask for item in batch], 0),
        "labels": _pad([item.labels for item in batch], IGNORE),
    }
    extra = {key: _pad(values, 0) for key, values in _by_key([item.token_inputs for item in batch]).items()}
    images = {key: _join(values) for key, values in _by_key([item.image_inputs for item in batch]).items()}
    return tokens | extra | images


def _by_key(inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, list[Tensor]]:
    keys = dict.fromkeys(chain.from_iterable(inputs))
    return {key: [item[key] for item in inputs if key in item] for key in keys}


def _pad(sequences: list[Tensor], value: int) -> Tensor:
    return pad_sequence(sequences, batch_first=True, padding_value=value)


def _join(tensors: list[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_grow(tensor, shape) for tensor in tensors])


def _grow(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    missing = [wanted - size for size, wanted in zip(tensor.shape[1:], shape, strict=True)]
    return functional.pad(tensor, [amount for after in reversed(missing) for amount in (0, after)])
