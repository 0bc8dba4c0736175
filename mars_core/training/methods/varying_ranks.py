"""Adapters whose ranks change while they are trained: room for larger ranks, rows of A out of use held at zero.

A row of A at zero with its column of B at zero has no gradient, so that Adam leaves both alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from mars_core.models.lora import layer_alphas, layer_ranks, lora_config
from mars_core.models.partition import GROUPS, Partition
from mars_core.ranks import LayerRanks
from mars_core.training.methods.pair_method import PairMethod
from mars_core.training.recipe import Recipe

ADAPTER = "default"


class AdapterLayer(NamedTuple):
    """A layer's LoRA. a: A, shape (room, in). b: B, shape (out, room). scale: of their product, whatever the rank."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float

    @property
    def room(self) -> int:
        """The largest rank it can have."""
        return len(self.a)

    @property
    def rank(self) -> int:
        """Rows of A that are in use: the first ones."""
        return int((torch.linalg.vector_norm(self.a.detach(), dim=1) > 0).sum())

    @property
    def cost(self) -> int:
        """Parameters of one unit of rank."""
        return int(self.a.shape[1] + self.b.shape[0])


def adapter_layers(wrapped: nn.Module) -> dict[str, AdapterLayer]:
    """The adapted layers by their path in the base model."""
    return {
        name.removeprefix("base_model.model."): AdapterLayer(
            module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight, module.scaling[ADAPTER]
        )
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }


@dataclass(frozen=True)
class VaryingRanks(PairMethod):
    """A method that starts at a rank pair and takes as many parameters at most, over all layers together.

    room: a layer's largest rank over the pair's.
    """

    room: ClassVar[int] = 2
    shards: ClassVar[bool] = False

    def config(self, partition: Partition, *, recipe: Recipe, steps: int) -> LoraConfig:
        """PEFT's configuration with room for larger ranks than the pair's."""
        widths = {
            layer.name: min(layer.in_features, layer.out_features)
            for group in GROUPS
            for layer in partition.group(group)
        }
        room = {name: min(self.room * rank, widths[name]) for name, rank in layer_ranks(partition, self.pair).items()}
        return lora_config(partition, LayerRanks.of(room), dropout=recipe.lora_dropout, alpha=recipe.alpha)

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Wrap `model` with as many rows of A in use as the pair has ranks, at the pair's scales."""
        wrapped = super().wrap(model, partition, seed=seed, recipe=recipe, steps=steps)
        ranks, alphas = layer_ranks(partition, self.pair), layer_alphas(partition, self.pair, recipe.alpha)
        for name, module in wrapped.named_modules():
            if isinstance(module, LoraLayer):
                own = name.removeprefix("base_model.model.")
                module.scaling[ADAPTER] = alphas[own] / ranks[own]
                with torch.no_grad():
                    module.lora_A[ADAPTER].weight[ranks[own] :] = 0
        return wrapped

    def save(self, wrapped: nn.Module, folder: Path) -> None:
        """Write a plain LoRA with the rank that each layer has come to."""
        tuned = cast(PeftModel, wrapped)
        ranks, alphas, weights = {}, {}, {}
        for name, layer in adapter_layers(wrapped).items():
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
