"""One run of a pack: what it is, and its state while it is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mars_core.models.lora import RankPair
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

    weights: flat adapter weights, laid out as `layout` says; its `.grad` is what passes add to. losses: batch losses
    since the last checkpoint. diverged_at: the first step whose loss was not finite, None while there is none.
    """

    member: PackMember
    layout: Layout
    weights: nn.Parameter
    optimizer: torch.optim.Adam
    schedule: Any
    generator: torch.Generator
    losses: list[float] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    diverged_at: int | None = None
    last: StepReport | None = None

    @property
    def gradient(self) -> Tensor:
        """Where passes add the gradient, flat."""
        gradient = self.weights.grad
        assert gradient is not None  # made with the member, zeroed in place
        return gradient


@dataclass(frozen=True)
class StepReport:
    """One optimizer step: learning rate, and gradient norms before clipping."""

    lr: float
    grad_norm_me: float
    grad_norm_llm: float


def start_member(member: PackMember, layout: Layout, weights: Tensor, recipe: Recipe, horizon: int) -> TrainedMember:
    """A member before its first step."""
    parameter = nn.Parameter(weights)
    parameter.grad = torch.zeros_like(weights)
    optimizer = make_optimizer([parameter], recipe)
    generator = torch.Generator(device=weights.device).manual_seed(member.seed)
    return TrainedMember(member, layout, parameter, optimizer, make_schedule(optimizer, recipe, horizon), generator)


def gradient_norms(lane: Sequence[TrainedMember]) -> list[tuple[float, float]]:
    """Norms of every member's gradient in the modality encoder and in the rest, read off the device at once."""
    parts = [part for one in lane for part in one.gradient.split_with_sizes(_sizes(one.layout))]
    norms = torch.stack([torch.linalg.vector_norm(part) for part in parts]).tolist()
    return list(zip(norms[0::2], norms[1::2], strict=True))


def _sizes(layout: Layout) -> list[int]:
    return [layout.me_size, layout.size - layout.me_size]


def take_step(trained: TrainedMember, recipe: Recipe, norms: tuple[float, float]) -> None:
    """Clip the gradient of these norms as `clip_grad_norm_` does, step, and forget the gradient."""
    gradient, (norm_me, norm_llm) = trained.gradient, norms
    if recipe.max_grad_norm > 0:
        gradient.mul_(min(1.0, recipe.max_grad_norm / (math.hypot(norm_me, norm_llm) + 1e-6)))
    trained.last = StepReport(float(trained.schedule.get_last_lr()[0]), norm_me, norm_llm)
    trained.optimizer.step()
    trained.schedule.step()
    gradient.zero_()
