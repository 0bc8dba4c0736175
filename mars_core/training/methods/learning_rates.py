"""LoRA of fixed ranks with a learning rate per module: the heuristic that MARS replaces (paper, Tables 1 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

from mars_core import rates
from mars_core.training.methods.lora import Lora
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class LearningRates(Lora):
    """Peak learning rates of the modules; all follow the recipe's schedule.

    The paper gives rates of ME and LLM, from 1e-7 to 1e-5; `projector` is the LLM's where it is None, as its rank is.
    """

    me: float
    llm: float
    projector: float | None = None

    def learning_rates(self, recipe: Recipe) -> rates.LearningRates:
        """These rates; the recipe's are not used."""
        return rates.LearningRates(self.me, self.projector or self.llm, self.llm)
