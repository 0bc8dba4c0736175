"""An arm: a rank pair with the peak learning rates that its final run is trained at."""

from __future__ import annotations

from dataclasses import dataclass

from mars_core.ranks import RankPair
from mars_core.rates import LearningRates
from tasks.settings.baselines import Baseline, of_pair


@dataclass(frozen=True)
class Arm:
    """A pair and its rates, None for the recipe's. Arms that differ in either are trained and stored apart."""

    pair: RankPair
    learning_rates: LearningRates | None = None

    def __str__(self) -> str:
        if self.learning_rates is None:
            return str(self.pair)
        return f"{self.pair} at learning rate {self.learning_rates}"

    @property
    def baseline(self) -> Baseline:
        """What is trained."""
        return of_pair(self.pair, self.learning_rates)

    @property
    def slug(self) -> str:
        """Name of its folder and its stages, for example `me8-llm16`, or `me8-llm16-lr2e-4`."""
        return self.baseline.slug
