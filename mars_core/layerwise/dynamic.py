"""Ranks that change during training: shared out anew at set shares of a run, from the gradients since the last time.

HyDRA finds its ranks before the final run and keeps them. Its hypothesis, and what MARS leaves to future work, is that
ranks should follow the gradient norms while these move. Here the budget is the pair's at every time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from mars_core.layerwise.budget import Budget
from mars_core.layerwise.places import MODULES, places_of
from mars_core.layerwise.probe import Probe, ProbedLayer
from mars_core.layerwise.refactor import Factored, with_rank
from mars_core.layerwise.registry import allocator
from mars_core.models.partition import Partition
from mars_core.training.methods.varying_ranks import AdapterLayer, VaryingRanks, adapter_layers
from mars_core.training.recipe import Recipe

ALLOCATIONS = ("hydra", "hydra-coarse", "fisher")
"""Ways to share out that read nothing but the gradients of a running training."""
AT = (0.1, 0.25, 0.5)
SUMS = "gradient_sums"
"""Buffer of an adapted layer: steps, and sums of gradient norms of A and of B and of squared gradients. A buffer, so
that a checkpoint holds it."""


@dataclass(frozen=True)
class DynamicRanks(VaryingRanks):
    """LoRA that starts at a rank pair; each module's parameters are shared out over its layers again and again.

    allocation: how, one of `ALLOCATIONS`. at: after which shares of the steps.
    """

    allocation: str = "fisher"
    at: tuple[float, ...] = AT

    room: ClassVar[int] = 4

    def check(self, partition: Partition, recipe: Recipe) -> None:
        """Refuse ranks that the layers cannot hold, shares outside of a run, and modules with nothing to share out."""
        super().check(partition, recipe)
        if self.allocation not in ALLOCATIONS:
            raise ValueError(
                f"ranks cannot follow {self.allocation!r} during training: use one of {', '.join(ALLOCATIONS)}"
            )
        if not all(0 < share < 1 for share in self.at):
            raise ValueError(f"ranks are shared out after shares of the steps between 0 and 1, got {list(self.at)}")
        for probe, rank in self._modules(partition):
            weights = dict.fromkeys((place.layer for place in probe.places), 1.0)
            flat = probe.with_values(norm_a=weights, norm_b=weights, fisher=weights)
            allocator(self.allocation).allocate(flat, Budget(rank))

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Wrap `model`, with a place for the sums of gradients in every layer."""
        wrapped = super().wrap(model, partition, seed=seed, recipe=recipe, steps=steps)
        for module in _modules_of(wrapped).values():
            module.register_buffer(SUMS, torch.zeros(4, dtype=torch.float64), persistent=False)
        return wrapped

    def callbacks(self, wrapped: nn.Module, partition: Partition | None) -> list[TrainerCallback]:
        """Sums after every step's backward pass, new ranks after the steps that `at` names.

        Raises:
            ValueError: there is no partition, by which the layers of a module are known.
        """
        if partition is None:
            raise ValueError("ranks that change during training need the partition: give it to `finetune`")
        return [_Reassign(wrapped, self._modules(partition), self)]

    def state(self, wrapped: nn.Module) -> dict[str, Tensor]:
        """Weights and sums."""
        sums = {f"{name}.{SUMS}": module.get_buffer(SUMS).cpu() for name, module in _modules_of(wrapped).items()}
        return super().state(wrapped) | sums

    def restore(self, wrapped: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put weights and sums back."""
        super().restore(wrapped, {name: value for name, value in state.items() if not name.endswith(SUMS)})
        for name, module in _modules_of(wrapped).items():
            module.get_buffer(SUMS).copy_(state[f"{name}.{SUMS}"])

    def _modules(self, partition: Partition) -> list[tuple[Probe, int]]:
        """The modules that have adapters, nothing measured yet, and their rank of the pair."""
        ranks = {"me": self.pair.r_me, "llm": self.pair.r_llm}
        return [
            (Probe(group, tuple(ProbedLayer(place) for place in places_of(partition, group))), ranks[group])
            for group in MODULES
            if ranks[group]
        ]


def _modules_of(wrapped: nn.Module) -> dict[str, nn.Module]:
    names = adapter_layers(wrapped).keys()
    return {name: wrapped.get_submodule(f"base_model.model.{name}") for name in names}


class _Reassign(TrainerCallback):  # type: ignore[misc]
    """Sums gradients, and gives ranks anew."""

    def __init__(self, wrapped: nn.Module, modules: list[tuple[Probe, int]], method: DynamicRanks) -> None:
        self.layers, self.modules, self.method = adapter_layers(wrapped), modules, method
        self.sums = {name: module.get_buffer(SUMS) for name, module in _modules_of(wrapped).items()}

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the step's gradients, as they were clipped."""
        for name, layer in self.layers.items():
            gradients = [half.grad.double() for half in (layer.a, layer.b) if half.grad is not None]
            if len(gradients) == 2:
                norms = torch.stack([torch.linalg.matrix_norm(gradient) for gradient in gradients])
                self.sums[name] += torch.cat([torch.ones_like(norms[:1]), norms, norms.square().sum()[None]])

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Give ranks anew where it is time to."""
        if state.global_step not in {max(1, round(share * state.max_steps)) for share in self.method.at}:
            return
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + state.global_step)
        for probe, rank in self.modules:
            ranks = allocator(self.method.allocation).allocate(self._measured(probe), Budget(rank))
            for name, wanted in ranks.items():
                _give(self.layers[name], min(wanted, self.layers[name].room), optimizer, generator)
        for sums in self.sums.values():
            sums.zero_()

    def _measured(self, probe: Probe) -> Probe:
        """The running probe. Norms are those of a unit of rank: a layer must not win because it already has more."""
        columns: dict[str, dict[str, float]] = {"norm_a": {}, "norm_b": {}, "fisher": {}}
        for place in probe.places:
            layer = self.layers[place.layer]
            steps, norm_a, norm_b, squares = (float(value) for value in self.sums[place.layer])
            steps, rank = max(steps, 1.0), layer.rank
            columns["norm_a"][place.layer] = norm_a / steps / rank**0.5
            columns["norm_b"][place.layer] = norm_b / steps / rank**0.5
            columns["fisher"][place.layer] = squares / steps / (rank * layer.cost)
        return probe.with_values(**columns)


def _give(layer: AdapterLayer, rank: int, optimizer: Any, generator: torch.Generator) -> None:
    """Another rank for a layer, in place; what lies behind it is zero."""
    own = layer.rank
    if rank == own:
        return
    moments = [optimizer.state[half] for half in (layer.a, layer.b)]
    found = with_rank(
        Factored(
            layer.a[:own],
            layer.b[:, :own],
            moments[0]["exp_avg"][:own],
            moments[1]["exp_avg"][:, :own],
            moments[0]["exp_avg_sq"][:own],
            moments[1]["exp_avg_sq"][:, :own],
        ),
        rank,
        generator,
    )
    for target, value in zip((layer.a, moments[0]["exp_avg"], moments[0]["exp_avg_sq"]), found[::2], strict=True):
        target.zero_()[:rank] = value
    for target, value in zip((layer.b, moments[1]["exp_avg"], moments[1]["exp_avg_sq"]), found[1::2], strict=True):
        target.zero_()[:, :rank] = value
