"""One rank for all layers: what every other allocation is held against."""

from __future__ import annotations

from mars_core.layerwise.budget import Budget
from mars_core.layerwise.probe import Probe


def allocate(probe: Probe, budget: Budget) -> dict[str, int]:
    """The budget's own rank everywhere."""
    budget.limit(probe)
    return {place.layer: budget.rank for place in probe.places}
