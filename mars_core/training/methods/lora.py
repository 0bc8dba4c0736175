"""LoRA with one rank for the ME and another for the LLM: what MARS trains; equal ranks are uniform LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig
from torch import nn

from mars_core.models.lora import check_adapters, lora_config
from mars_core.models.partition import Partition
from mars_core.training.methods.pair_method import PairMethod
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class Lora(PairMethod):
    """LoRA with a rank pair; alpha as the recipe says, 2 r in the paper (appendix G.2)."""

    def config(self, partition: Partition, *, recipe: Recipe, steps: int) -> LoraConfig:
        """PEFT's configuration of the pair."""
        return lora_config(partition, self.pair, dropout=recipe.lora_dropout, alpha=recipe.alpha)

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Wrap `model`, and hold ranks and scales against the pair."""
        wrapped = super().wrap(model, partition, seed=seed, recipe=recipe, steps=steps)
        try:
            check_adapters(wrapped, partition, self.pair, recipe.alpha)
        except ValueError:
            self.unwrap(wrapped)
            raise
        return wrapped
