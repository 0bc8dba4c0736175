"""What LoRA and its variants that train a rank pair have in common."""

from __future__ import annotations

from dataclasses import dataclass

from mars_core.models.lora import check_ranks, trainable_parameters
from mars_core.models.partition import Partition
from mars_core.ranks import RankPair
from mars_core.training.methods.peft_method import PeftMethod
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class PairMethod(PeftMethod):
    """A PEFT method with a rank for the ME and another for the LLM."""

    pair: RankPair

    def check(self, partition: Partition, recipe: Recipe) -> None:
        """Refuse ranks that the layers cannot hold."""
        check_ranks(partition, self.pair)

    def trainable_parameters(self, partition: Partition) -> int:
        """r * (in + out), summed over the adapted layers."""
        return trainable_parameters(partition, self.pair)
