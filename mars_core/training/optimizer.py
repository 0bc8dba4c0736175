"""The optimizer and the learning-rate schedule of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from mars_core.training.recipe import Recipe


def make_optimizer(parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Adam:
    """Adam with its default settings (paper, G.1), in one fused operation."""
    return torch.optim.Adam(parameters, lr=recipe.learning_rate, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, horizon: int) -> Any:
    """Cosine decay to zero over `horizon` steps after linear warm-up (paper, G.1)."""
    return get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps(horizon), horizon)
