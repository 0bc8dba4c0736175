"""Ranks by a score for every unit of rank: the best units are bought first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mars_core.layerwise.budget import Budget, raise_to
from mars_core.layerwise.probe import Probe


def buy_best(scores: Mapping[str, Sequence[float]], probe: Probe, budget: Budget) -> dict[str, int]:
    """One rank for each layer, then units by falling score as long as they fit into the budget.

    scores: of each layer's units, which are bought in falling order.
    """
    places, limit = {place.layer: place for place in probe.places}, budget.limit(probe)
    ranks = dict.fromkeys(places, 1)
    room = limit - sum(place.cost for place in probe.places)
    units = sorted(
        ((score, layer) for layer, own in scores.items() for score in sorted(own, reverse=True)[1:]),
        key=lambda unit: -unit[0],
    )
    for _, layer in units:
        if places[layer].cost <= room and ranks[layer] < places[layer].width:
            ranks[layer] += 1
            room -= places[layer].cost
    best_first = sorted(places, key=lambda layer: -max(scores[layer], default=0.0))
    return raise_to(ranks, probe, limit, best_first)
