"""Full-rank tuning: the weights of the partition's linear layers themselves (paper, Table 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from mars_core.models.partition import GROUPS, LinearLayer, Partition
from mars_core.models.saving import save_network
from mars_core.training.methods.method import Method, trained
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class FullRank(Method):
    """Biases, norms, embeddings and heads stay frozen, as they do under LoRA.

    Half-precision weights are trained as fp32 copies, because a step at 1e-5 is lost in rounding otherwise, and are
    saved in their own precision again, in which autocast computed with them anyway.
    """

    result: ClassVar[str] = "model"
    keeps_base: ClassVar[bool] = False

    def check(self, partition: Partition, recipe: Recipe) -> None:
        """There is no B for LoRA+, and the layers must be there."""
        if recipe.lora_plus_ratio != 1:
            raise ValueError(
                f"full-rank tuning trains no A and B, so recipe.lora_plus_ratio {recipe.lora_plus_ratio:g} has no "
                "meaning for it: set it to 1, or compare with another method"
            )
        self.layers(partition)

    def layers(self, partition: Partition) -> list[LinearLayer]:
        """Layers whose weights are trained."""
        return [layer for group in GROUPS for layer in partition.group(group)]

    def trainable_parameters(self, partition: Partition) -> int:
        """in * out, summed over the layers."""
        return sum(layer.in_features * layer.out_features for layer in self.layers(partition))

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Unfreeze the layers' weights; the model is changed in place."""
        self.check(partition, recipe)
        if getattr(model, "is_loaded_in_4bit", False):
            raise ValueError("full-rank tuning cannot train 4-bit weights: set loading.four_bit to false")
        for layer in self.layers(partition):
            weight = model.get_submodule(layer.name).weight
            if weight.dtype in (torch.float16, torch.bfloat16):
                weight.data = weight.data.float()
            weight.requires_grad_(True)
        return model

    def unwrap(self, wrapped: nn.Module) -> None:
        """Freeze the weights; they stay as trained."""
        wrapped.requires_grad_(False)

    def save(self, wrapped: nn.Module, folder: Path) -> None:
        """Write a complete checkpoint, as transformers does, with the base checkpoint's settings."""
        _to_own_precision(wrapped)
        folder.mkdir(parents=True, exist_ok=True)
        save_network(wrapped, str(wrapped.name_or_path), folder)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Read the checkpoint; of `model`, only precision, device and attention are taken."""
        first = next(model.parameters())
        placed = getattr(model, "hf_device_map", None)
        loaded = type(model).from_pretrained(  # type: ignore[attr-defined]
            str(folder),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,  # type: ignore[union-attr]
            device_map=placed,
        )
        loaded.config.use_cache = False
        network: nn.Module = (loaded if placed else loaded.to(first.device)).eval().requires_grad_(False)
        return network


def _to_own_precision(wrapped: nn.Module) -> None:
    frozen = next(parameter for parameter in wrapped.parameters() if not parameter.requires_grad)
    for parameter in trained(wrapped).values():
        parameter.data = parameter.data.to(frozen.dtype)
