"""GeoLoRA (Schotthöfer et al., arXiv 2410.18720): adapters U S V' that move along low-rank matrices, ranks as they go.

Of a layer's gradient G a step needs G V and U' G, which one backward pass through B = U S and A = V' gives. The step
is the parallel rank-adaptive integrator's: [U S - h G V, U (-h U' G V2)] [V, V2]', where V2 spans what U' G has outside
of V; to first order it moves along the tangent space. Its singular values are then cut, layer by layer by a tolerance,
and over all layers to the budget. So the trained result is a LoRA with a rank of its own in each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from mars_core.models.lora import layer_ranks
from mars_core.models.partition import Partition
from mars_core.training.methods.varying_ranks import AdapterLayer, VaryingRanks, adapter_layers
from mars_core.training.recipe import Recipe

RELIABLE = 1e-4
"""Singular values of S below this share of the largest are not divided by."""


@dataclass(frozen=True)
class GeoLora(VaryingRanks):
    """GeoLoRA that starts at a rank pair and takes as many parameters at most, over all layers together.

    tolerance: share of a layer's Frobenius norm that a cut may take away. The step is plain gradient descent, with the
    recipe's schedule and clipping; its rates are not Adam's.
    """

    tolerance: float = 0.05

    def check(self, partition: Partition, recipe: Recipe) -> None:
        """Refuse ranks that the layers cannot hold, a tolerance that keeps nothing, and LoRA+."""
        super().check(partition, recipe)
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"GeoLoRA's tolerance is a share from 0 to below 1, got {self.tolerance}")
        if recipe.lora_plus_ratio != 1:
            raise ValueError(
                f"GeoLoRA steps in U, S and V, so recipe.lora_plus_ratio {recipe.lora_plus_ratio:g} has no meaning for "
                "it: set it to 1, or compare with another method"
            )

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Wrap `model`; A starts with orthonormal rows, as many as the pair has ranks, and B with zeros."""
        wrapped = super().wrap(model, partition, seed=seed, recipe=recipe, steps=steps)
        ranks, generator = layer_ranks(partition, self.pair), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, layer in adapter_layers(wrapped).items():
                drawn = torch.randn(layer.a.shape[1], ranks[name], generator=generator, dtype=torch.float64)
                layer.a.zero_()[: ranks[name]] = torch.linalg.qr(drawn)[0].T.to(layer.a)
        return wrapped

    def callbacks(self, wrapped: nn.Module, partition: Partition | None) -> list[TrainerCallback]:
        """Steps in the optimizer's place."""
        return [_Step(wrapped, self)]


class Factors(NamedTuple):
    """Singular value decomposition of a layer's product: U (out, r), values (r,) falling, V (in, r)."""

    u: Tensor
    values: Tensor
    v: Tensor

    def cut(self, rank: int) -> Factors:
        """The largest singular values alone."""
        return Factors(self.u[:, :rank], self.values[:rank], self.v[:, :rank])


def stepped(a: Tensor, b: Tensor, a_grad: Tensor, b_grad: Tensor, rate: float) -> Factors:
    """One step of a layer; nothing is cut yet.

    Args:
        a: A = V', orthonormal rows, shape (r, in).
        b: B = U S, orthogonal columns, shape (out, r).
        a_grad: Gradient by A, which is S U' G, shape (r, in).
        b_grad: Gradient by B, which is G V, shape (out, r).
        rate: The step, h.
    """
    a, b, a_grad, b_grad = (tensor.double() for tensor in (a, b, a_grad, b_grad))
    values = torch.linalg.vector_norm(b, dim=0)
    reliable = values > RELIABLE * values.max().clamp(min=torch.finfo(values.dtype).tiny)
    u = b[:, reliable] / values[reliable]
    across = a_grad[reliable] / values[reliable][:, None]  # U' G
    outside = across - (across @ a.T) @ a
    second = torch.linalg.qr(outside.T)[0]  # (in, r'), spans what U' G has outside of V
    second = torch.linalg.qr(second - a.T @ (a @ second))[0]  # once more, against rounding
    left = torch.cat([b - rate * b_grad, u @ (-rate * outside @ second)], dim=1)
    basis, coefficients = torch.linalg.qr(left)
    p, sigma, q = torch.linalg.svd(coefficients, full_matrices=False)
    return Factors(basis @ p, sigma, torch.cat([a.T, second], dim=1) @ q.T)


def rank_within(values: Tensor, tolerance: float, most: int) -> int:
    """The smallest rank whose neglected singular values hold at most `tolerance` of the norm; 1 to `most`."""
    tails = values.flip(0).square().cumsum(0).sqrt().flip(0)
    kept = int((tails > tolerance * tails[0]).sum())
    return max(1, min(kept, most))


def within_budget(values: Mapping[str, Tensor], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Ranks of all layers with the smallest singular values cut until their parameters fit; each keeps one."""
    ranks = {name: len(own) for name, own in values.items()}
    above = sum(ranks[name] * costs[name] for name in ranks) - budget
    smallest = sorted((float(own[place]), -place, name) for name, own in values.items() for place in range(1, len(own)))
    for _, _, name in smallest:
        if above <= 0:
            break
        ranks[name] -= 1
        above -= costs[name]
    return ranks


class _Step(TrainerCallback):  # type: ignore[misc]
    """Takes the step after clipping; without gradients, the optimizer takes none."""

    def __init__(self, wrapped: nn.Module, method: GeoLora) -> None:
        self.layers, self.method = adapter_layers(wrapped), method
        # Those of the pair: a fresh A has as many rows in use, and a cut leaves no more.
        self.budget = sum(layer.rank * layer.cost for layer in self.layers.values())

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Step, cut and write A and B."""
        rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
        factors: dict[str, Factors] = {}
        for name, layer in self.layers.items():
            if layer.a.grad is None or layer.b.grad is None:
                continue
            rank = layer.rank
            found = stepped(
                layer.a[:rank], layer.b[:, :rank], layer.a.grad[:rank], layer.b.grad[:, :rank], rates[id(layer.b)]
            )
            factors[name] = found.cut(rank_within(found.values, self.method.tolerance, len(layer.a)))
        resting = sum(layer.rank * layer.cost for name, layer in self.layers.items() if name not in factors)
        costs = {name: layer.cost for name, layer in self.layers.items()}
        ranks = within_budget({name: own.values for name, own in factors.items()}, costs, self.budget - resting)
        for name, own in factors.items():
            _write(self.layers[name], own.cut(ranks[name]))
        for layer in self.layers.values():
            layer.a.grad = layer.b.grad = None


def _write(layer: AdapterLayer, factors: Factors) -> None:
    rank = len(factors.values)
    layer.a.zero_()[:rank] = factors.v.T.to(layer.a)
    layer.b.zero_()[:, :rank] = (factors.u * factors.values).to(layer.b)
