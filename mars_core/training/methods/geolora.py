"""GeoLoRA (Schotthöfer et al., arXiv 2410.18720): adapters U S V' that move along low-rank matrices, ranks as they go.

Of a layer's gradient G a step needs G V and U' G, which one backward pass through B = U S and A = V' gives. The step
is the parallel rank-adaptive integrator's: [U S - h G V, U (-h U' G V2)] [V, V2]', where V2 spans what U' G has outside
of V; to first order it moves along the tangent space. Its singular values are then cut, layer by layer by a tolerance,
and over all layers to the budget. So the trained result is a LoRA with a rank of its own in each layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from mars_core.models.lora import layer_ranks, lora_config
from mars_core.models.partition import GROUPS, Partition
from mars_core.ranks import LayerRanks
from mars_core.training.methods.pair_method import PairMethod
from mars_core.training.recipe import Recipe

ADAPTER = "default"
ROOM = 2
"""A layer's largest rank over the pair's."""
RELIABLE = 1e-4
"""Singular values of S below this share of the largest are not divided by."""


@dataclass(frozen=True)
class GeoLora(PairMethod):
    """GeoLoRA that starts at a rank pair and takes as many parameters at most, over all layers together.

    tolerance: share of a layer's Frobenius norm that a cut may take away. The step is plain gradient descent, with the
    recipe's schedule and clipping; its rates are not Adam's.
    """

    tolerance: float = 0.05

    # Its cut compares singular values over all layers.
    shards: ClassVar[bool] = False

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

    def config(self, partition: Partition, *, recipe: Recipe, steps: int) -> LoraConfig:
        """PEFT's configuration with room for larger ranks than the pair's."""
        widths = {
            layer.name: min(layer.in_features, layer.out_features)
            for group in GROUPS
            for layer in partition.group(group)
        }
        room = {name: min(ROOM * rank, widths[name]) for name, rank in layer_ranks(partition, self.pair).items()}
        return lora_config(partition, LayerRanks.of(room), dropout=recipe.lora_dropout, alpha=recipe.alpha)

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Wrap `model`; A starts with orthonormal rows, as many as the pair has ranks, and B with zeros."""
        wrapped = super().wrap(model, partition, seed=seed, recipe=recipe, steps=steps)
        ranks, generator = layer_ranks(partition, self.pair), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, layer in _layers(wrapped).items():
                drawn = torch.randn(layer.a.shape[1], ranks[name], generator=generator, dtype=torch.float64)
                layer.a.zero_()[: ranks[name]] = torch.linalg.qr(drawn)[0].T.to(layer.a)
        return wrapped

    def callbacks(self, wrapped: nn.Module) -> list[TrainerCallback]:
        """Steps in the optimizer's place."""
        return [_Step(wrapped, self)]

    def save(self, wrapped: nn.Module, folder: Path) -> None:
        """Write a plain LoRA with the rank that each layer has come to."""
        tuned = cast(PeftModel, wrapped)
        ranks, alphas, weights = {}, {}, {}
        for name, layer in _layers(wrapped).items():
            ranks[name] = rank = max(1, layer.rank)
            alphas[name] = layer.scale * rank
            prefix = f"base_model.model.{name}.lora_"
            weights[f"{prefix}A.weight"] = layer.a[:rank].detach().cpu().contiguous().clone()
            weights[f"{prefix}B.weight"] = layer.b[:, :rank].detach().cpu().contiguous().clone()
        made = tuned.peft_config[ADAPTER]
        widest = max(ranks, key=lambda name: ranks[name])
        config = LoraConfig(
            r=ranks[widest],
            lora_alpha=alphas[widest],
            target_modules=sorted(ranks),
            rank_pattern={re.escape(name): rank for name, rank in ranks.items()},
            alpha_pattern={re.escape(name): alpha for name, alpha in alphas.items()},
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        config.base_model_name_or_path = made.base_model_name_or_path
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        save_file(weights, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


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


class _Layer(NamedTuple):
    a: nn.Parameter
    b: nn.Parameter
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A that are in use."""
        return int((torch.linalg.vector_norm(self.a.detach(), dim=1) > 0).sum())

    @property
    def cost(self) -> int:
        return int(self.a.shape[1] + self.b.shape[0])


def _layers(wrapped: nn.Module) -> dict[str, _Layer]:
    return {
        name.removeprefix("base_model.model."): _Layer(
            module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight, module.scaling[ADAPTER]
        )
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }


class _Step(TrainerCallback):  # type: ignore[misc]
    """Takes the step after clipping; without gradients, the optimizer takes none."""

    def __init__(self, wrapped: nn.Module, method: GeoLora) -> None:
        self.layers, self.method = _layers(wrapped), method
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


def _write(layer: _Layer, factors: Factors) -> None:
    rank = len(factors.values)
    layer.a.zero_()[:rank] = factors.v.T.to(layer.a)
    layer.b.zero_()[:, :rank] = (factors.u * factors.values).to(layer.b)
