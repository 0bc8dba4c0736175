"""The settings that HyDRA publishes: coarse ranks of Table V, fine adjustments of Table VI."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

TABLE_LAYERS, TABLE_RANK = 24, 128


@dataclass(frozen=True)
class Setting:
    """A row of Table VI. shifts: by how many steps a component's rank is above the coarse rank of its block."""

    name: str
    shifts: Mapping[str, float]

    def shift(self, component: str, step: int) -> int:
        """Units of rank; half a step is rounded away from the coarse rank."""
        exact = self.shifts.get(component, 0.0) * step
        return math.floor(exact) if exact < 0 else math.ceil(exact)


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("setting1", {"q": -1, "k": -1, "up": 1}),  # Eq. 9 and 10
        Setting("setting2", {"q": -1, "k": -1, "up": 1, "down": 1}),
        Setting("setting3", {"q": -1, "k": -1}),
        Setting("setting4", {"q": -0.5, "k": -0.5, "up": 1}),
        Setting("setting5", {"q": -1, "k": -1, "up": 2}),
    )
}


@dataclass(frozen=True)
class Config:
    """A row of Table V. last: number of each stage's last layer, of 24. ranks: of each stage, for R_standard 128."""

    name: str
    last: tuple[int, ...]
    ranks: tuple[int, ...]

    def at(self, blocks: int, standard: int) -> tuple[int, ...]:
        """The rank of each block of a model with so many, in proportion to the table's 24 layers and rank 128.

        Raises:
            ValueError: there are fewer blocks than stages.
        """
        if blocks < len(self.last):
            raise ValueError(f"{self.name} has {len(self.last)} stages, the module only {blocks} blocks: use another")
        ends = [round(last * blocks / TABLE_LAYERS) for last in self.last]
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        ranks = [max(1, round(rank * standard / TABLE_RANK)) for rank in self.ranks]
        return tuple(rank for rank, size in zip(ranks, sizes, strict=True) for _ in range(size))


CONFIGS = {
    config.name: config
    for config in (
        Config("config1", (4, 20, 24), (128, 64, 128)),
        Config("config2", (4, 20, 24), (256, 128, 256)),
        Config("config3", (8, 16, 24), (64, 128, 256)),
        Config("config4", (8, 12, 24), (124, 126, 131)),
    )
}
"""Config1 takes fewer parameters than the uniform rank, config2 and config3 more: they compare shapes, not costs."""
