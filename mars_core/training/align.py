"""Align a fresh projector on captions, with vision encoder and language model frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from mars_core.data.collate import collate
from mars_core.data.dataset import EncodedDataset
from mars_core.evaluation.answer_loss import token_losses

WARMUP_RATIO = 0.03
"""As LLaVA's own first stage."""


def align_projector(
    model: nn.Module,
    trained: list[nn.Parameter],
    dataset: EncodedDataset,
    *,
    pad_token_id: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[int], Any] | None = None,
) -> list[float]:
    """Train `trained` on the answers of `dataset`; everything else of `model` stays as it is.

    Returns:
        the loss of every step, in nats per answer token.
    """
    device = next(model.parameters()).device
    model.eval().requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP_RATIO * steps), steps)
    losses = []
    for step, rows in zip(range(1, steps + 1), _batches(len(dataset), batch_size, seed), strict=False):
        batch = collate([dataset[row] for row in rows], pad_token_id)
        loss = token_losses(model, {name: value.to(device) for name, value in batch.items()}).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if on_step is not None:
            on_step(step)
    model.requires_grad_(False)
    return losses


def _batches(samples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of whole shuffled passes over the samples, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(samples, generator=generator).tolist()
        yield from (order[start : start + batch_size] for start in range(0, samples, batch_size))
