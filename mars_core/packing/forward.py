"""Forward passes of an adapter batch: logits and losses at the answer tokens of every run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_core.packing.adapter_batch import Pass, running
from mars_core.training.recipe import Recipe


def adapter_batch_logits(model: nn.Module, this: Pass) -> Tensor:
    """Logits at the answer tokens, shape (M, n_answer_tokens, vocabulary); `model` must be patched."""
    with running(this):
        logits: Tensor = model(**this.batch.repeated(this.adapter_batch.width), use_cache=False).logits
    return logits


def adapter_batch_losses(model: nn.Module, this: Pass) -> Tensor:
    """Cross-entropy of every answer token in nats, shape (M, n_answer_tokens), in fp32 or better."""
    return losses_of(adapter_batch_logits(model, this), this.batch.targets)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (M, n, vocabulary) at targets (n,), shape (M, n)."""
    # Run by run, so that an evaluation holds logits in full precision of one of them at a time.
    return torch.stack([functional.cross_entropy(_wide(one), targets, reduction="none") for one in logits])


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def autocast_of(recipe: Recipe, model: nn.Module) -> AbstractContextManager[Any]:
    """Autocast as a recipe of a half-precision dtype asks for on the model's device; nothing for another."""
    if recipe.dtype not in ("bfloat16", "float16"):
        return nullcontext()
    device = next(model.parameters()).device
    return torch.autocast(device.type, dtype=getattr(torch, recipe.dtype))
