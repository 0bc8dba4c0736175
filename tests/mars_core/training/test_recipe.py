from __future__ import annotations

import math

import pytest
import torch
from transformers import get_scheduler

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


def rates_of(recipe: Recipe, horizon: int) -> list[float]:
    """Share of the peak at every step, of two groups with unlike peaks."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weight], "lr": lr} for weight, lr in zip(weights, (recipe.learning_rate, 0.5), strict=True)]
    optimizer = make_optimizer(groups, recipe)
    schedule, shares = make_schedule(optimizer, recipe, horizon), []
    for _ in range(horizon + 1):
        first, second = schedule.get_last_lr()
        assert first / recipe.learning_rate == pytest.approx(second / 0.5, abs=1e-12)
        shares.append(first / recipe.learning_rate)
        optimizer.step()
        schedule.step()
    return shares


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(schedule="linear"), {0: 0, 10: 0.5, 20: 1, 110: 0.5, 200: 0}),
        (Recipe(schedule="linear", final_share=0.2), {0: 0, 20: 1, 110: 0.6, 200: 0.2}),
        (Recipe(schedule="cosine", final_share=0.2), {0: 0, 10: 0.5, 20: 1, 110: 0.6, 200: 0.2}),
        (Recipe(schedule="constant"), {0: 0, 10: 0.5, 20: 1, 110: 1, 200: 1}),
        (Recipe(schedule="warmup_stable_decay"), {0: 0, 10: 0.5, 20: 1, 160: 1, 180: 0.5, 200: 0}),
        (
            Recipe(schedule="warmup_stable_decay", final_share=0.2, decay_ratio=0.5),
            {0: 0.2, 10: 0.6, 20: 1, 100: 1, 150: 0.6, 200: 0.2},
        ),
    ],
    ids=lambda value: f"{value.schedule} to {value.final_share}" if isinstance(value, Recipe) else "",
)
def test_every_schedule_by_hand(recipe, expected):
    """10% of warm-up and the middles of what follows; a cosine is halfway down in its middle."""
    shares = rates_of(recipe, 200)
    assert {step: shares[step] for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("recipe", "name", "settings"),
    [
        (Recipe(), "cosine", {}),
        (Recipe(schedule="constant", warmup_ratio=0.0), "constant_with_warmup", {}),
        (Recipe(schedule="linear", warmup_ratio=0.3), "linear", {}),
        (Recipe(final_share=0.1), "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        (Recipe(schedule="warmup_stable_decay", decay_ratio=0.4), "warmup_stable_decay", {"num_decay_steps": 12}),
    ],
)
def test_schedules_are_those_of_transformers(recipe, name, settings):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    reference, expected = get_scheduler(name, optimizer, recipe.warmup_steps(30), 30, settings), []
    for _ in range(31):
        expected += reference.get_last_lr()
        optimizer.step()
        reference.step()
    assert rates_of(recipe, 30) == pytest.approx(expected, abs=1e-12)


def test_adamw_has_its_own_settings():
    weight = torch.nn.Parameter(torch.ones(1))
    recipe = Recipe(learning_rate=0.1, optimizer="adamw", weight_decay=0.5, beta1=0.8, beta2=0.9)
    optimizer = make_optimizer([{"params": [weight]}], recipe)
    reference = torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.9), weight_decay=0.5, fused=True)
    assert (type(optimizer), optimizer.defaults) == (torch.optim.AdamW, reference.defaults)
