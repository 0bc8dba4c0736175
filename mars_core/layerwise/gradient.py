"""GoRA (He et al., 2025): ranks by how much the loss feels each weight of the base model."""

from __future__ import annotations

import math

from mars_core.layerwise.budget import Budget, apportion
from mars_core.layerwise.probe import Probe

MOST = 4
"""Largest rank over the uniform one (its default)."""


def allocate(probe: Probe, budget: Budget) -> dict[str, int]:
    """Ranks in proportion to importance / sqrt(in + out), importance being the mean of |W * dL/dW| (`importance`).

    GoRA rounds each rank by itself and clips it between half and four times the uniform one; here the lower bound is 1,
    and the proportion is scaled until the ranks take the budget.
    """
    values = probe.values("importance")
    wanted = {place.layer: values[place.layer] / math.sqrt(place.cost) for place in probe.places}
    return apportion(wanted, probe, budget, most=MOST * budget.rank)
