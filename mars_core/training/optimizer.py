"""The optimizer and the learning-rate schedule of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from mars_core.models.partition import Group
from mars_core.rates import LearningRates
from mars_core.training.recipe import Recipe


def make_optimizer(parameters: Mapping[Group, Sequence[torch.nn.Parameter]], rates: LearningRates) -> torch.optim.Adam:
    """Adam with its default settings (paper, G.1), fused, at each group's own peak rate."""
    groups = [{"params": list(own), "lr": rates.rate(group)} for group, own in parameters.items()]
    return torch.optim.Adam(groups, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, horizon: int) -> Any:
    """Cosine decay to zero over `horizon` steps after linear warm-up (paper, G.1)."""
    return get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps(horizon), horizon)
