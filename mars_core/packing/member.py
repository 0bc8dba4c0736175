"""One run of a pack: what it is, and its state while it is trained."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mars_core.models.lora import RankPair
from mars_core.models.partition import Group
from mars_core.packing.adapters import Layout
from mars_core.training.calibration import Checkpoint
from mars_core.training.recipe import Recipe, make_optimizer, make_schedule


@dataclass(frozen=True)
class PackMember:
    """A run to be: its rank pair and the seed of its initial weights and dropout masks."""

    pair: RankPair
    seed: int


@dataclass
class TrainedMember:
    """A member under way.

    weights, gradient, first_moment, second_moment: flat, laid out as `layout` says; passes add to the gradient, Adam
    keeps the moments. parts: the weights of each group as parameters of the optimizer, all of them views. losses: batch
    losses since the last checkpoint. diverged_at: the first step whose loss was not finite, None while there is none.
    """

    member: PackMember
    layout: Layout
    weights: Tensor
    gradient: Tensor
    first_moment: Tensor
    second_moment: Tensor
    parts: Mapping[Group, nn.Parameter]
    optimizer: torch.optim.Adam
    schedule: Any
    generator: torch.Generator
    losses: list[float] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    diverged_at: int | None = None
    last: StepReport | None = None

    @property
    def steps(self) -> dict[Group, int]:
        """Steps that Adam has taken in each group."""
        return {group: int(self.optimizer.state[part]["step"]) for group, part in self.parts.items()}


@dataclass(frozen=True)
class StepReport:
    """One optimizer step: learning rate, and gradient norms before clipping."""

    lr: float
    grad_norm_me: float
    grad_norm_llm: float


def start_member(member: PackMember, layout: Layout, weights: Tensor, recipe: Recipe, horizon: int) -> TrainedMember:
    """A member before its first step; all that its steps need is allocated here, so that none fails for memory."""
    gradient, first, second = (torch.zeros_like(weights) for _ in range(3))
    parts = {group: nn.Parameter(weights[slice(*bounds)]) for group, bounds in layout.groups.items()}
    optimizer = make_optimizer(list(parts.values()), recipe)
    for group, part in parts.items():
        bounds = slice(*layout.groups[group])
        # What Adam makes at its first step, here as views of the flat moments.
        optimizer.state[part] = {
            "step": torch.zeros((), dtype=torch.float32, device=weights.device),
            "exp_avg": first[bounds],
            "exp_avg_sq": second[bounds],
        }
    generator = torch.Generator(device=weights.device).manual_seed(member.seed)
    schedule = make_schedule(optimizer, recipe, horizon)
    return TrainedMember(member, layout, weights, gradient, first, second, parts, optimizer, schedule, generator)


def gradient_norms(lane: Sequence[TrainedMember]) -> list[tuple[float, float]]:
    """Norms of every member's gradient in the modality encoder and in the rest, read off the device at once."""
    parts = [part for one in lane for part in one.gradient.split_with_sizes(_sizes(one.layout))]
    norms = torch.stack([torch.linalg.vector_norm(part) for part in parts]).tolist()
    return list(zip(norms[0::2], norms[1::2], strict=True))


def _sizes(layout: Layout) -> list[int]:
    return [layout.me_size, layout.size - layout.me_size]


def take_step(trained: TrainedMember, recipe: Recipe, norms: tuple[float, float], reached: Collection[str]) -> None:
    """Clip the gradient of these norms as `clip_grad_norm_` does, step, and forget the gradient.

    Groups none of whose layers was reached (the vision tower by text alone) have no gradient, rather than one of
    zero: Adam passes them over, as it does for modules that a plain training step does not call.
    """
    gradient, (norm_me, norm_llm) = trained.gradient, norms
    if recipe.max_grad_norm > 0:
        gradient.mul_(min(1.0, recipe.max_grad_norm / (math.hypot(norm_me, norm_llm) + 1e-6)))
    called = {slot.group for slot in trained.layout.slots if slot.layer.name in reached}
    for group, part in trained.parts.items():
        part.grad = gradient[slice(*trained.layout.groups[group])] if group in called else None
    trained.last = StepReport(float(trained.schedule.get_last_lr()[0]), norm_me, norm_llm)
    trained.optimizer.step()
    trained.schedule.step()
    gradient.zero_()
