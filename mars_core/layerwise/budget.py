"""What a module's layers may take together, and how integer ranks are brought to it: g(G, Z) <= C in HyDRA, Eq. 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mars_core.layerwise.probe import Probe

CLOSE = 0.995
"""Share of the budget that a schedule uses at least, where integers allow."""


@dataclass(frozen=True)
class Budget:
    """As many trainable parameters as one rank for all layers has. rank: that rank, R_standard in HyDRA."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(
                f"a budget of rank {self.rank} leaves layers without a rank: give 1 or more, or leave the module out"
            )

    def limit(self, probe: Probe) -> int:
        """C: the trainable parameters of the uniform rank."""
        if narrow := [place for place in probe.places if place.width < self.rank]:
            raise ValueError(
                f"rank {self.rank} is above the width {narrow[0].width} of layer {narrow[0].layer}: use a smaller one"
            )
        return self.rank * sum(place.cost for place in probe.places)


def parameters(ranks: Mapping[str, int], probe: Probe) -> int:
    """g(G, Z): LoRA parameters of a module's ranks."""
    return sum(ranks[place.layer] * place.cost for place in probe.places)


def lower_to(
    ranks: Mapping[str, int], probe: Probe, limit: int, order: Sequence[str], floors: Mapping[str, int]
) -> dict[str, int]:
    """Take a unit of rank from one layer after another, in order and round by round, until g <= `limit`.

    floors: the rank that each layer keeps at least; with all of them down there, the result may be above the limit.
    """
    costs, found = {place.layer: place.cost for place in probe.places}, dict(ranks)
    above = parameters(found, probe) - limit
    while above > 0 and (lowered := [layer for layer in order if found[layer] > floors[layer]]):
        for layer in lowered:
            if above <= 0:
                break
            found[layer] -= 1
            above -= costs[layer]
    return found


def raise_to(ranks: Mapping[str, int], probe: Probe, limit: int, order: Sequence[str]) -> dict[str, int]:
    """Give a unit of rank to one layer after another, in order and round by round, until `CLOSE` of `limit` is used or
    no unit fits any more; then exchange units where that brings it closer."""
    places, found = {place.layer: place for place in probe.places}, dict(ranks)
    room = limit - parameters(found, probe)
    while room > (1 - CLOSE) * limit:
        fitting = [layer for layer in order if found[layer] < places[layer].width and places[layer].cost <= room]
        if not fitting:
            break
        for layer in fitting:
            if places[layer].cost <= room and room > (1 - CLOSE) * limit:
                found[layer] += 1
                room -= places[layer].cost
    return _exchange(found, probe, limit, order)


def _exchange(ranks: Mapping[str, int], probe: Probe, limit: int, order: Sequence[str]) -> dict[str, int]:
    """Where no unit fits any more and more than 0.5% is left: move units from cheaper layers to dearer ones.

    Each time the exchange that leaves least; of equal ones, from the last layer in order to the first.
    """
    places, found = {place.layer: place for place in probe.places}, dict(ranks)
    while (room := limit - parameters(found, probe)) > (1 - CLOSE) * limit:
        giving: dict[int, str] = {places[layer].cost: layer for layer in order if found[layer] > 1}
        taking = {places[layer].cost: layer for layer in reversed(order) if found[layer] < places[layer].width}
        gains = {dear - cheap: (cheap, dear) for cheap in giving for dear in taking if 0 < dear - cheap <= room}
        if not gains:
            break
        cheap, dear = gains[max(gains)]
        found[giving[cheap]] -= 1
        found[taking[dear]] += 1
    return found


def apportion(wanted: Mapping[str, float], probe: Probe, budget: Budget, most: float = float("inf")) -> dict[str, int]:
    """Integer ranks in proportion to `wanted`, from 1 to `most` and the layer's width, that use up the budget.

    The proportion is scaled until the clamped ranks take C; then they are rounded down, and what is left goes to the
    largest remainders.

    Raises:
        ValueError: a weight is negative or not finite, or all are 0.
    """
    _check(wanted, probe)
    limit, places = budget.limit(probe), probe.places
    highest = {place.layer: int(min(place.width, most)) for place in places}
    low, high = 0.0, 1.0

    def at(scale: float) -> dict[str, float]:
        return {place.layer: min(max(scale * wanted[place.layer], 1.0), highest[place.layer]) for place in places}

    def taken(scale: float) -> float:
        ranks = at(scale)
        return sum(ranks[place.layer] * place.cost for place in places)

    largest = max(highest.values()) / min(weight for weight in wanted.values() if weight > 0)
    while taken(high) < limit and high < largest:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if taken(middle) <= limit else (low, middle)
    exact = at(low)
    order = sorted(exact, key=lambda layer: int(exact[layer] + 1e-9) - exact[layer])
    return raise_to({layer: int(rank + 1e-9) for layer, rank in exact.items()}, probe, limit, order)


def _check(wanted: Mapping[str, float], probe: Probe) -> None:
    weights = [wanted[place.layer] for place in probe.places]
    if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise ValueError(
            f"the layers of the {probe.module} cannot be told apart: what was measured of them is not finite, "
            "negative, or 0 everywhere. Measure over more steps, or keep the uniform rank"
        )


def check_spent(ranks: Mapping[str, int], probe: Probe, budget: Budget) -> float:
    """Share of the budget that ranks take.

    Raises:
        RuntimeError: they take more than all of it, or leave more than 0.5% though another unit of rank would fit.
    """
    limit, spent = budget.limit(probe), parameters(ranks, probe)
    raisable = [place.cost for place in probe.places if ranks[place.layer] < place.width]
    if spent > limit or (spent < CLOSE * limit and raisable and limit - spent >= min(raisable)):
        raise RuntimeError(
            f"ranks shared out over the {probe.module} take {spent:,} of {limit:,} trainable parameters, which is "
            + ("too many" if spent > limit else "too few, though more would fit")
        )
    return spent / limit
