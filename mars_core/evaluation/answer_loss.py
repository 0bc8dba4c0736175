"""Cross-entropy on answer tokens, without logits where there is no label.

With a vocabulary of 152k the output head over every position is a large part of a step, and positions
without a label need no logits. A hook on the output head gathers the hidden states at label positions
before the head sees them, so that any Hugging Face model class works unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORE = -100


def answer_logits(
    model: nn.Module, batch: Mapping[str, Tensor], forward: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and targets at the answer tokens of a batch.

    Args:
        model: a causal model with an output head (with or without PEFT around it).
        batch: model inputs with `labels` (batch, length), -100 where there is no answer token.
        forward: what is called where that is not `model` itself, such as a wrapper that brings processes together.

    Returns:
        logits (n_answer_tokens, vocabulary) and targets (n_answer_tokens,), in the batch's reading order.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    labels = batch["labels"]
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORE
    with _head_only_at(model.get_output_embeddings(), predicts):  # type: ignore[operator]
        logits = (forward or model)(**inputs, use_cache=False).logits
    return logits, labels[:, 1:][predicts[:, :-1]]


def token_losses(model: nn.Module, batch: Mapping[str, Tensor], forward: nn.Module | None = None) -> Tensor:
    """Cross-entropy of every answer token in nats, shape (n_answer_tokens,), in fp32 or better."""
    logits, targets = answer_logits(model, batch, forward)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide, targets, reduction="none")


def answer_numbers(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Row and answer number of every answer token, in reading order.

    An answer is a maximal run of labelled tokens, so a conversation with three assistant turns has three.

    Args:
        labels: shape (batch, length), -100 where there is no answer token; column 0 is never predicted.

    Returns:
        two tensors of shape (n_answer_tokens,): the row, and the answer's number within its row.
    """
    labelled = labels[:, 1:] != IGNORE
    before = torch.zeros_like(labelled)
    before[:, 1:] = labelled[:, :-1]
    number = (labelled & ~before).cumsum(dim=1) - 1
    rows = torch.arange(labels.shape[0], device=labels.device)[:, None].expand_as(labelled)
    return rows[labelled], number[labelled]


@contextmanager
def _head_only_at(head: nn.Module, positions: Tensor) -> Iterator[None]:
    def gather(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments
        return (hidden[positions.to(hidden.device)], *rest)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
