"""HyDRA's solution space: schedules whose stages rise (Eq. 5) within the budget (Eq. 4 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mars_core.layerwise.budget import Budget
from mars_core.layerwise.hydra import Hydra
from mars_core.layerwise.presets import SETTINGS
from mars_core.layerwise.probe import Probe
from mars_core.layerwise.stages import stages_of

MOST_STAGES, MOST_STEP = 5, 4


def draw_ranks(probe: Probe, budget: Budget, random: np.random.Generator) -> dict[str, int]:
    """A schedule of the solution space, drawn: its stages, step, first rank, rises and fine setting."""
    stages = int(random.integers(1, min(MOST_STAGES, probe.blocks) + 1))
    step = int(random.integers(1, MOST_STEP + 1))
    labels = _stages(tuple(probe.block_norms()), stages)
    ranks = _rising([labels.count(stage) for stage in range(stages)], budget.rank, step, random)
    components = {place.component for place in probe.places}
    fitting = [setting for setting in SETTINGS.values() if components >= set(setting.shifts)]
    setting = [None, *fitting][int(random.integers(len(fitting) + 1))]
    return Hydra(stages, step, setting).fine(probe, budget, [ranks[label] for label in labels])


@lru_cache(maxsize=64)
def _stages(norms: tuple[float, ...], count: int) -> tuple[int, ...]:
    return stages_of(norms, count)


def _rising(sizes: Sequence[int], standard: int, step: int, random: np.random.Generator) -> list[int]:
    """Ranks of stages that rise by at least `step`, or by less where the budget has no room for it."""
    total, count = standard * sum(sizes), len(sizes)
    while step > 0 and sum(size * (1 + number * step) for number, size in enumerate(sizes)) > total:
        step -= 1
    spare = total - sum(size * (1 + number * step) for number, size in enumerate(sizes))
    # What is left over is given to a stage and all above it, in random portions.
    extra = np.zeros(count, dtype=int)
    for stage in random.permutation(count):
        portion = spare // sum(sizes[stage:])
        more = int(random.integers(portion + 1))
        extra[stage:] += more
        spare -= more * sum(sizes[stage:])
    return [1 + number * step + int(extra[number]) for number in range(count)]
