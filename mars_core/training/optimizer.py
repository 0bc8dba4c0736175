"""The optimizer and the learning-rate schedule of a recipe, the same in packs and in plain runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

from mars_core.rates import LearningRates
from mars_core.training.recipe import Recipe

Halves = tuple[Sequence[torch.nn.Parameter], Sequence[torch.nn.Parameter]]
"""The A and the B of some layers."""


def rate_groups(halves: Mapping[str, Halves], rates: LearningRates, ratio: float) -> list[dict[str, Any]]:
    """An optimizer group (`params`, `lr`, `name`) for each group of layers; two where B has a rate of its own (LoRA+).

    halves: by group of layers. ratio: rate of B over that of A.
    """
    groups: list[dict[str, Any]] = []
    for group, (a, b) in halves.items():
        rate = rates.rate(group)
        if ratio == 1:
            groups.append({"params": [*a, *b], "lr": rate, "name": group})
        else:
            groups.append({"params": list(a), "lr": rate, "name": group})
            groups.append({"params": list(b), "lr": rate * ratio, "name": f"{group}_B"})
    return groups


def make_optimizer(groups: Sequence[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused: Adam as in the paper (G.1), or AdamW, whose decay takes every parameter given."""
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "betas": (recipe.beta1, recipe.beta2), "fused": True}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(list(groups), weight_decay=recipe.weight_decay, **settings)
    return torch.optim.Adam(list(groups), **settings)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, horizon: int) -> Any:
    """The recipe's schedule over `horizon` steps, transformers' own: cosine to zero after linear warm-up in the paper.

    With a final share, `warmup_stable_decay` warms up from that share of the peak too, as transformers has it.
    """
    warmup, share = recipe.warmup_steps(horizon), recipe.final_share
    if recipe.schedule == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup)
    if recipe.schedule == "warmup_stable_decay":
        return get_wsd_schedule(optimizer, warmup, recipe.decay_steps(horizon), horizon, min_lr_ratio=share)
    if recipe.schedule == "linear":
        if share == 0:
            return get_linear_schedule_with_warmup(optimizer, warmup, horizon)
        end = share * optimizer.defaults["lr"]  # of which transformers takes the ratio, for every group
        return get_polynomial_decay_schedule_with_warmup(optimizer, warmup, horizon, lr_end=end, power=1.0)
    if share == 0:
        return get_cosine_schedule_with_warmup(optimizer, warmup, horizon)
    return get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, horizon, min_lr_rate=share)
