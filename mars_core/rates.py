"""Peak learning rates of the modules of a vision-language model."""

from __future__ import annotations

from typing import NamedTuple


class LearningRates(NamedTuple):
    """Peak learning rate of the adapters of each module; equal ones are the usual single rate."""

    me: float
    projector: float
    llm: float

    def __str__(self) -> str:
        if self.me == self.projector == self.llm:
            return f"{self.llm:.3g}"
        shown = f"{self.me:.3g} (vision encoder), {self.llm:.3g} (LLM)"
        return shown if self.projector == self.llm else f"{shown}, {self.projector:.3g} (projector)"

    def rate(self, group: str) -> float:
        """Rate of one group of layers (`me`, `projector` or `llm`)."""
        return float(getattr(self, group))


def one_rate(rate: float) -> LearningRates:
    """The same rate for all modules."""
    return LearningRates(rate, rate, rate)
