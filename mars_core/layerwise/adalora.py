"""AdaLoRA's final allocation (Zhang et al., 2023): of all singular triplets of a run, the most important are kept."""

from __future__ import annotations

from mars_core.layerwise.best_units import buy_best
from mars_core.layerwise.budget import Budget
from mars_core.layerwise.probe import Probe


def allocate(probe: Probe, budget: Budget) -> dict[str, int]:
    """Ranks by the importance of triplets at the end of an AdaLoRA run (`triplets` of the probe).

    AdaLoRA counts triplets; here they are bought at what they cost, and every layer keeps one.
    """
    return buy_best(probe.values("triplets"), probe, budget)
