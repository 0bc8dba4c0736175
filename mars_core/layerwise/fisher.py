"""Ranks by the empirical Fisher information of LoRA's own parameters, as proposed for axolotl (pull request 3639)."""

from __future__ import annotations

from mars_core.layerwise.budget import Budget, apportion
from mars_core.layerwise.probe import Probe

MOST = 2
"""Largest rank over the uniform one (its default)."""


def allocate(probe: Probe, budget: Budget) -> dict[str, int]:
    """Ranks in proportion to the mean squared gradient of a layer's A and B over a short run (`fisher`)."""
    return apportion(probe.values("fisher"), probe, budget, most=MOST * budget.rank)
