"""Ranks of all layers as numbers that a model can learn from: a token for each block, a feature for each component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mars_core.layerwise.probe import Probe

Array = NDArray[np.float64]


def encode(schedules: Sequence[Mapping[str, int]], probes: Sequence[Probe], ranks: Sequence[int]) -> Array:
    """Schedules as an array of shape (n, T, F).

    Args:
        schedules: The rank of every layer, by its path.
        probes: The modules, for where their layers stand.
        ranks: The uniform rank of each module, which its ranks are divided by.
    """
    components = sorted({place.component for probe in probes for place in probe.places})
    column = {name: number for number, name in enumerate(components)}
    tokens = sum(probe.blocks for probe in probes)
    found = np.zeros((len(schedules), tokens, len(components) + 1))
    first = 0
    for number, (probe, rank) in enumerate(zip(probes, ranks, strict=True)):
        found[:, first : first + probe.blocks, -1] = number
        for place in probe.places:
            at = first + place.block, column[place.component]
            found[:, *at] = [schedule[place.layer] / rank for schedule in schedules]
        first += probe.blocks
    return found
