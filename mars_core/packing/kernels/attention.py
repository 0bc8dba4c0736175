"""Causal attention inside each sequence of a pass, where the language model sees all real tokens as one row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from mars_core.packing.adapter_batch import Pass, current_pass

NAME = "mars_unpadded"


MARK = "mars_answers_only"
"""Attribute of an attention module of which only the output at the answer rows is ever read."""


class PaddingNeeded(RuntimeError):  # noqa: N818 - reads as the fact it states
    """A model's attention is not the plain causal kind that works without padding."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers' interface.

    Args:
        query: shape (1, heads, M T, head size), all runs' tokens; key, value: with as many or fewer heads.
        sliding_window: tokens that each token sees, itself included; None for all before it.

    Returns:
        shape (1, M T, heads, head size), and no weights.

    Raises:
        PaddingNeeded: the model asks for another kind of attention, for which padding must stay.
    """
    this = current_pass()
    if this is None or dropout or others.get("softcap") is not None:
        raise PaddingNeeded("attention with dropout or capped scores, or outside of a pass: leave the padding in")
    q, k, v = (_by_member(tensor, this.adapter_batch.width) for tensor in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    attend_rows = _at_answers if hasattr(module, MARK) else _everywhere
    return attend_rows(this, q, k, v, sliding_window, {"scale": scaling, "enable_gqa": grouped}), None


def _by_member(tensor: Tensor, width: int) -> Tensor:
    heads, tokens, size = tensor.shape[1:]
    return tensor.view(heads, width, tokens // width, size).transpose(0, 1)


def _everywhere(this: Pass, q: Tensor, k: Tensor, v: Tensor, window: int | None, options: dict[str, Any]) -> Tensor:
    parts = zip(*(torch.split(tensor, list(this.batch.lengths), dim=2) for tensor in (q, k, v)), strict=True)
    done = [_causal(a, b, c, window, options) for a, b, c in parts]
    return torch.cat([part.transpose(1, 2) for part in done], dim=1).flatten(0, 1)[None]


def _causal(q: Tensor, k: Tensor, v: Tensor, window: int | None, options: dict[str, Any]) -> Tensor:
    length = q.shape[2]
    if window is None or window >= length:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    visible = _seen_from(torch.arange(length, device=q.device), length, window)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, **options)


def _at_answers(this: Pass, q: Tensor, k: Tensor, v: Tensor, window: int | None, options: dict[str, Any]) -> Tensor:
    batch = this.batch
    queries = torch.split(q.index_select(2, batch.answer_rows), [len(rows) for rows in batch.answers_in], dim=2)
    parts = zip(batch.answers_in, queries, *(torch.split(t, list(batch.lengths), dim=2) for t in (k, v)), strict=True)
    done = [
        functional.scaled_dot_product_attention(a, b, c, attn_mask=_seen_from(rows, b.shape[2], window), **options)
        for rows, a, b, c in parts
        if len(rows)
    ]
    at_answers = torch.cat([part.transpose(1, 2) for part in done], dim=1)
    full = at_answers.new_zeros((q.shape[0], q.shape[2], *at_answers.shape[2:]))
    return full.index_copy(1, batch.answer_rows, at_answers).flatten(0, 1)[None]


def _seen_from(rows: Tensor, length: int, window: int | None) -> Tensor:
    back = rows[:, None] - torch.arange(length, device=rows.device)[None]
    return back >= 0 if window is None else (back >= 0) & (back < window)


@contextmanager
def attention_within_sequences(language_model: Any) -> Iterator[None]:
    """Give the language model this attention while the block runs."""
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda **_: None)
