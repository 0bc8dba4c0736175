from __future__ import annotations

import math

import pytest
import torch

from mars_core.training.optimizer import make_optimizer, make_schedule, rate_groups
from mars_core.training.recipe import Recipe


def test_the_recipe_is_the_papers():
    """Appendix G.1: Adam at its defaults, batch 8, 1e-5, cosine with 10% warm-up."""
    recipe = Recipe()
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer(rate_groups({"llm": ([weight], [])}, recipe.learning_rates, 1), recipe)
    reference = torch.optim.Adam([weight], lr=1e-5, fused=True)
    assert (type(optimizer), optimizer.defaults) == (torch.optim.Adam, reference.defaults)
    assert recipe.batch_size == 8
    assert recipe.warmup_steps(200) == 20
    schedule = make_schedule(optimizer, recipe, 200)
    rates = []
    for _ in range(201):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    for step, rate in enumerate(rates):
        ramp = step / 20 if step < 20 else (1 + math.cos(math.pi * (step - 20) / 180)) / 2
        assert rate == pytest.approx(1e-5 * ramp, abs=1e-18)
