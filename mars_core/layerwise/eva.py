"""EVA (Paischer et al., 2024): ranks where the input's variance is."""

from __future__ import annotations

from mars_core.layerwise.best_units import buy_best
from mars_core.layerwise.budget import Budget
from mars_core.layerwise.probe import Probe

RHO = 2.0
"""Most rank of a layer over the uniform one, as in PEFT's `EvaConfig`."""


def allocate(probe: Probe, budget: Budget) -> dict[str, int]:
    """Components of the layers' inputs by falling share of explained variance (`explained_variance` of the probe).

    As in PEFT's `rank_pattern` of EVA, but components are bought at what they cost, and every layer keeps one.
    """
    shares = probe.values("explained_variance")
    most = round(RHO * budget.rank)
    return buy_best({layer: own[:most] for layer, own in shares.items()}, probe, budget)
