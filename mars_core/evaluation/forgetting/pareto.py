"""Target loss against what is lost upstream: the choices that no other choice beats in both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mars_core.ranks import Pair
from mars_core.records import Float, Record


@dataclass(frozen=True)
class Tradeoff(Record):
    """One rank pair.

    target: predicted loss on the target task. upstream: measured loss on the upstream tasks. forgotten: how far that
    lies above the base model's, both nats per answer token. on_front: whether no other pair is at least as good in
    both and better in one. weighted: target + weight * max(forgotten, 0), by which pairs are sorted.
    """

    pair: Pair
    target: Float
    upstream: Float
    forgotten: Float
    on_front: bool
    weighted: Float


def pareto_front(
    target: Mapping[Pair, float], upstream: Mapping[Pair, float], base_upstream: float, weight: float
) -> tuple[Tradeoff, ...]:
    """Every pair that both losses are known of, the smallest weighted loss first.

    Args:
        target: predicted loss on the target task by pair, nats per answer token.
        upstream: measured loss on the upstream tasks by pair.
        base_upstream: the base model's own loss there.
        weight: nats of target loss that a nat of upstream loss is worth, 0 or more.

    Raises:
        ValueError: the weight is negative, or no pair has both losses.
    """
    if weight < 0:
        raise ValueError(f"the weight of forgetting must be 0 or more, got {weight:g}")
    pairs = [pair for pair in target if pair in upstream]
    if not pairs:
        raise ValueError("no pair has both a predicted target loss and a measured upstream loss")
    found = []
    for pair in pairs:
        forgotten = upstream[pair] - base_upstream
        found.append(
            Tradeoff(
                pair=pair,
                target=target[pair],
                upstream=upstream[pair],
                forgotten=forgotten,
                on_front=not any(_beats(target, upstream, other, pair) for other in pairs),
                weighted=target[pair] + weight * max(forgotten, 0.0),
            )
        )
    return tuple(sorted(found, key=lambda one: (one.weighted, one.pair)))


def _beats(target: Mapping[Pair, float], upstream: Mapping[Pair, float], one: Pair, other: Pair) -> bool:
    no_worse = target[one] <= target[other] and upstream[one] <= upstream[other]
    return no_worse and (target[one] < target[other] or upstream[one] < upstream[other])
