"""LoRA with a rank for each layer: a pair's budget, shared out over the layers."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig
from torch import nn

from mars_core.models.lora import check_adapters, check_ranks, lora_config, trainable_parameters
from mars_core.models.partition import Partition
from mars_core.ranks import LayerRanks, RankPair
from mars_core.training.methods.peft_method import PeftMethod
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class LayerLora(PeftMethod):
    """LoRA with ranks of single layers; alpha follows from each layer's own rank as the recipe says.

    pair: what the ranks share out. They take no more trainable parameters than it does.
    """

    pair: RankPair
    ranks: LayerRanks

    def check(self, partition: Partition, recipe: Recipe) -> None:
        """Refuse ranks that the layers cannot hold, or that take more than the pair."""
        check_ranks(partition, self.pair)
        check_ranks(partition, self.ranks)
        own, allowed = self.trainable_parameters(partition), trainable_parameters(partition, self.pair)
        if own > allowed:
            raise ValueError(
                f"the layer-wise ranks take {own:,} trainable parameters, more than the {allowed:,} of {self.pair}: "
                "lower some of them, or name a larger pair"
            )

    def trainable_parameters(self, partition: Partition) -> int:
        """r * (in + out), summed over the adapted layers."""
        return trainable_parameters(partition, self.ranks)

    def config(self, partition: Partition, *, recipe: Recipe, steps: int) -> LoraConfig:
        """PEFT's configuration, with every layer's rank in `rank_pattern`."""
        return lora_config(partition, self.ranks, dropout=recipe.lora_dropout, alpha=recipe.alpha)

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Wrap `model`, and hold ranks and scales against those asked for."""
        wrapped = super().wrap(model, partition, seed=seed, recipe=recipe, steps=steps)
        try:
            check_adapters(wrapped, partition, self.ranks, recipe.alpha)
        except ValueError:
            self.unwrap(wrapped)
            raise
        return wrapped
