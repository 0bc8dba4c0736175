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

    @property
    def slug(self) -> str:
        """The rates as part of a folder name, for example `lr2e-4`, or `lr2e-4-1e-4` where the LLM's is another."""
        parts = [self.me, *([] if self.me == self.projector == self.llm else [self.llm])]
        parts += [] if self.projector == self.llm else [self.projector]
        return f"lr{'-'.join(map(short_rate, parts))}"

    def of_pair(self, pair: tuple[int, int]) -> LearningRates:
        """The rates as they matter to a pair (r_me, r_llm): of a module without adapters it has that of the other."""
        r_me, r_llm = pair
        if r_me == 0:
            return self._replace(me=self.llm)
        return one_rate(self.me) if r_llm == 0 else self

    def rate(self, group: str) -> float:
        """Rate of one group of layers (`me`, `projector` or `llm`)."""
        return float(getattr(self, group))


def one_rate(rate: float) -> LearningRates:
    """The same rate for all modules."""
    return LearningRates(rate, rate, rate)


def short_rate(rate: float, digits: int = 3) -> str:
    """A rate in so many significant digits, as a study file takes it: 2e-4, 1.5e-3."""
    mantissa, exponent = f"{rate:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
