"""LoRA of fixed ranks with a learning rate per module: the heuristic that MARS replaces (paper, Tables 1 and 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mars_core.models.lora import parameters_by_group
from mars_core.models.partition import GROUPS, Group, Partition
from mars_core.training.methods.lora import Lora


@dataclass(frozen=True)
class LearningRates(Lora):
    """Peak learning rates of the modules; all follow the recipe's schedule.

    The paper gives rates of ME and LLM, from 1e-7 to 1e-5; `projector` is the LLM's where it is None, as its rank is.
    """

    me: float
    llm: float
    projector: float | None = None

    def rate(self, group: Group) -> float:
        """Peak learning rate of a group."""
        return {"me": self.me, "llm": self.llm, "projector": self.projector or self.llm}[group]

    def parameter_groups(self, wrapped: nn.Module, partition: Partition, rate: float) -> list[dict[str, Any]]:
        """One group per module that has parameters; the recipe's own rate is not used."""
        groups = parameters_by_group(wrapped, partition)
        return [{"params": groups[group], "lr": self.rate(group), "name": group} for group in GROUPS if groups[group]]
