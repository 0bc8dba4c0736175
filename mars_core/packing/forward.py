"""Forward passes of a lane: logits and losses at the answer tokens of every member."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_core.packing.lane import Pass, running


def lane_logits(model: nn.Module, this: Pass) -> Tensor:
    """Logits at the answer tokens, shape (M, n_answer_tokens, vocabulary); `model` must be wired."""
    with running(this):
        logits: Tensor = model(**this.batch.repeated(this.lane.width), use_cache=False).logits
    return logits


def lane_losses(model: nn.Module, this: Pass) -> Tensor:
    """Cross-entropy of every answer token in nats, shape (M, n_answer_tokens), in fp32 or better."""
    return losses_of(lane_logits(model, this), this.batch.targets)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (M, n, vocabulary) at targets (n,), shape (M, n)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = functional.cross_entropy(wide.flatten(0, 1), targets.repeat(logits.shape[0]), reduction="none")
    return losses.view(logits.shape[0], -1)
