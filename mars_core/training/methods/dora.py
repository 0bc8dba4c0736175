"""DoRA (Liu et al., 2024): the weight's magnitude is trained beside a LoRA of its direction."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig

from mars_core.models.lora import lora_config
from mars_core.models.partition import GROUPS, Partition
from mars_core.training.methods.pair_method import PairMethod
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class Dora(PairMethod):
    """PEFT's DoRA with a rank pair."""

    def trainable_parameters(self, partition: Partition) -> int:
        """Those of LoRA, and a magnitude per output feature."""
        adapted = [layer for group in GROUPS if partition.rank(self.pair, group) for layer in partition.group(group)]
        return super().trainable_parameters(partition) + sum(layer.out_features for layer in adapted)

    def config(self, partition: Partition, *, recipe: Recipe, steps: int) -> LoraConfig:
        """PEFT's configuration of LoRA with `use_dora`."""
        config = lora_config(partition, self.pair, dropout=recipe.lora_dropout, alpha=recipe.alpha)
        config.use_dora = True
        return config
