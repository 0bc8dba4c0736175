"""One rank pair trained alone by PEFT and PyTorch: what a run in a pack is held against."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mars_core.evaluation.answer_loss import token_losses
from mars_core.models.loading import Base
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.packing.forward import autocast_of
from mars_core.packing.run import PackRun
from mars_core.training.optimizer import make_schedule
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class Separate:
    """What a run alone comes to: validation loss in nats per answer token, and seconds of each training step."""

    val_loss: float
    seconds: tuple[float, ...]


def train_separately(
    base: Base, run: PackRun, steps: Sequence[dict[str, Tensor]], validation: dict[str, Tensor], recipe: Recipe
) -> Separate:
    """Train fresh adapters of `run` with plain PEFT, one batch a step, and score them; the base stays as it was."""
    wrapped = add_adapters(base.model, base.partition, run.pair, seed=run.seed).train()
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=recipe.learning_rate)
    schedule = make_schedule(optimizer, recipe, len(steps))
    seconds = []
    for batch in steps:
        started = time.perf_counter()
        with autocast_of(recipe, base.model):
            loss = token_losses(wrapped, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    with torch.no_grad(), autocast_of(recipe, base.model):
        val_loss = token_losses(wrapped.eval(), validation).mean().item()
    remove_adapters(wrapped).eval()
    return Separate(val_loss, tuple(seconds))
