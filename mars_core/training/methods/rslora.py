"""Rank-stabilised LoRA (Kalajdzievski, 2023): adapters are scaled by alpha / sqrt(r) instead of alpha / r."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig

from mars_core.models.lora import lora_config
from mars_core.models.partition import Partition
from mars_core.training.methods.pair_method import PairMethod
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class RsLora(PairMethod):
    """PEFT's rsLoRA with a rank pair. Alpha stays 2 r, as where a user turns it on, so the scale is 2 sqrt(r)."""

    def config(self, partition: Partition, *, recipe: Recipe, steps: int) -> LoraConfig:
        """PEFT's configuration of LoRA with `use_rslora`."""
        config = lora_config(partition, self.pair, dropout=recipe.lora_dropout)
        config.use_rslora = True
        return config
