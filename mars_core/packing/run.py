"""One run of a pack: what it is, and its state while it is trained."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mars_core.models.partition import Group, Partition
from mars_core.packing.adapters import Layout, Parts, by_group, layout_of
from mars_core.packing.flat_buffers import zero_vectors
from mars_core.packing.layer_norms import NormSums
from mars_core.ranks import Alpha, LayerRanks, RankPair, Ranks
from mars_core.rates import LearningRates
from mars_core.training.calibration import Checkpoint
from mars_core.training.optimizer import Halves, make_optimizer, make_schedule, rate_groups
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class PackRun:
    """A run to be: its rank pair, the seed of its initial weights and dropout masks, its peak learning rates, and how
    LoRA's alpha follows from its ranks; the recipe's where they are None.

    layer_ranks: ranks of single layers that take the place of the pair's; the pair is then what they share out.
    """

    pair: RankPair
    seed: int
    learning_rates: LearningRates | None = None
    lora_alpha: Alpha | None = None
    layer_ranks: LayerRanks | None = None

    @property
    def ranks(self) -> Ranks:
        """What its adapters' ranks are."""
        return self.pair if self.layer_ranks is None else self.layer_ranks

    def layout(self, partition: Partition, recipe: Recipe) -> Layout:
        """Where its adapters lie, and what they are scaled by."""
        return layout_of(partition, self.ranks, recipe.alpha if self.lora_alpha is None else self.lora_alpha)


@dataclass
class TrainedRun:
    """A run under way.

    weights, gradient, first_moment, second_moment: a vector per group, laid out as `layout` says; passes add to the
    gradient, Adam keeps the moments. parameters: what Adam sees of each group: its vector, or with LoRA+ the A and the
    B of it. losses: batch losses since the last checkpoint. diverged_at: the first step whose loss was not finite, None
    while there is none. clipped: steps whose gradient was clipped, None where a state of before they were counted was
    gone on with. norms: of its layers' gradients, None where they are not recorded.
    """

    run: PackRun
    layout: Layout
    weights: Parts
    parameters: Mapping[Group, tuple[nn.Parameter, ...]]
    gradient: Parts
    first_moment: Parts
    second_moment: Parts
    optimizer: torch.optim.Optimizer
    schedule: Any
    generator: torch.Generator
    losses: list[float] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    diverged_at: int | None = None
    clipped: int | None = 0
    last: StepReport | None = None
    norms: NormSums | None = None

    @property
    def steps(self) -> dict[Group, int]:
        """Steps that Adam has taken in each group."""
        return {group: int(self.optimizer.state[own[0]]["step"]) for group, own in self.parameters.items()}

    def parts(self, group: Group, vector: Tensor) -> tuple[Tensor, ...]:
        """What of a group's vector belongs to each of its parameters, views."""
        return torch.split(vector, [parameter.numel() for parameter in self.parameters[group]])


@dataclass(frozen=True)
class StepReport:
    """One optimizer step: learning rate (of the LLM's A where it has adapters), and gradient norms before clipping."""

    lr: float
    grad_norm_me: float
    grad_norm_llm: float


def start_runs(
    runs: Sequence[PackRun], layouts: Sequence[Layout], initial: Iterable[Tensor], recipe: Recipe, horizon: int
) -> list[TrainedRun]:
    """Runs before their first step; all that their steps need is allocated here, so that none fails for memory.

    Args:
        initial: flat weights of each.
    """
    started: list[TrainedRun] = []
    flat_buffers: list[list[dict[Group, Tensor]]] = []
    for run, layout, flat in zip(runs, layouts, initial, strict=True):
        flat_buffers = flat_buffers or [_flat_buffers(runs, layouts, flat) for _ in range(4)]
        weights, *others = (flat_buffer[len(started)] for flat_buffer in flat_buffers)
        for vector, value in zip(weights.values(), by_group(flat, layout).values(), strict=True):
            vector.copy_(value)
        started.append(_start(run, layout, [weights, *others], recipe, horizon))
    return started


def adapter_batch_order(run: PackRun) -> tuple[bool, int, int]:
    """Sort key of runs in adapter batches: those that share vision features first, then equal ranks together."""
    return run.pair.r_me > 0, run.pair.r_llm, run.pair.r_me


def _flat_buffers(runs: Sequence[PackRun], layouts: Sequence[Layout], like: Tensor) -> list[dict[Group, Tensor]]:
    # In the order of adapter batches, so that neighbours there are neighbours in memory.
    order = sorted(range(len(runs)), key=lambda number: adapter_batch_order(runs[number]))
    rows = zero_vectors([layouts[number] for number in order], like.device, like.dtype)
    return [rows[order.index(number)] for number in range(len(runs))]


def _start(run: PackRun, layout: Layout, vectors: Sequence[Parts], recipe: Recipe, horizon: int) -> TrainedRun:
    """vectors: weights, gradient, and Adam's first and second moments."""
    weights, gradient, first, second = vectors
    whole = recipe.lora_plus_ratio == 1
    parameters = {group: _parameters(vector, layout.middles[group], whole) for group, vector in weights.items()}
    halves: dict[str, Halves] = {group: (own[:1], own[1:]) for group, own in parameters.items()}
    rates = run.learning_rates or recipe.learning_rates
    optimizer = make_optimizer(rate_groups(halves, rates, recipe.lora_plus_ratio), recipe)
    generator = torch.Generator(device=next(iter(weights.values())).device).manual_seed(run.seed)
    schedule = make_schedule(optimizer, recipe, horizon)
    trained = TrainedRun(run, layout, weights, parameters, gradient, first, second, optimizer, schedule, generator)
    for group, own in parameters.items():
        moments = zip(own, trained.parts(group, first[group]), trained.parts(group, second[group]), strict=True)
        for parameter, mean, square in moments:
            # What Adam makes at its first step.
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    return trained


def _parameters(vector: Tensor, middle: int, whole: bool) -> tuple[nn.Parameter, ...]:
    """A group's vector as one parameter, or its A and its B."""
    return (nn.Parameter(vector),) if whole else (nn.Parameter(vector[:middle]), nn.Parameter(vector[middle:]))


def gradient_norms(adapter_batch: Sequence[TrainedRun]) -> list[tuple[float, float]]:
    """Norms of every run's gradient in the modality encoder and in the rest, read off the device at once."""
    norms = torch.stack(
        [torch.linalg.vector_norm(part) for one in adapter_batch for part in one.gradient.values()]
    ).tolist()
    found = []
    for one in adapter_batch:
        own = dict(zip(one.gradient, norms, strict=False))
        del norms[: len(own)]
        norm_me = own.pop("me", 0.0)
        found.append((norm_me, math.hypot(*own.values())))
    return found


def take_step(trained: TrainedRun, recipe: Recipe, norms: tuple[float, float], reached: Collection[str]) -> None:
    """Clip the gradient of these norms as `clip_grad_norm_` does, step, and forget the gradient.

    Groups none of whose layers was reached (the vision tower by text alone) have no gradient, rather than one of
    zero: Adam passes them over, as it does for modules that a plain training step does not call.
    """
    norm_me, norm_llm = norms
    if recipe.max_grad_norm > 0:
        factor = min(1.0, recipe.max_grad_norm / (math.hypot(norm_me, norm_llm) + 1e-6))
        if factor < 1.0 and trained.clipped is not None:
            trained.clipped += 1
        for gradient in trained.gradient.values():
            gradient.mul_(factor)
    called = {slot.group for slot in trained.layout.slots if slot.layer.name in reached}
    for group, own in trained.parameters.items():
        for parameter, gradient in zip(own, trained.parts(group, trained.gradient[group]), strict=True):
            parameter.grad = gradient if group in called else None
    trained.last = StepReport(_rate_of_a(trained), norm_me, norm_llm)
    trained.optimizer.step()
    trained.schedule.step()
    forget_gradient(trained)


def _rate_of_a(trained: TrainedRun) -> float:
    """Learning rate of the last group's A; with LoRA+ that of its B stands behind it."""
    last = list(trained.parameters.values())[-1]
    return float(trained.schedule.get_last_lr()[-len(last)])


def forget_gradient(trained: TrainedRun) -> None:
    """Set a run's gradient to zero."""
    for gradient in trained.gradient.values():
        gradient.zero_()
