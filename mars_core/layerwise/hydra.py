"""HyDRA (Xi et al.): ranks by the average gradient norms of blocks, then of components within them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mars_core.layerwise.budget import Budget, lower_to, raise_to
from mars_core.layerwise.coarse import STAGES, STEP, coarse_ranks
from mars_core.layerwise.presets import SETTINGS, Setting
from mars_core.layerwise.probe import Probe
from mars_core.layerwise.stages import stages_of


@dataclass(frozen=True)
class Hydra:
    """Its settings. stages: N_s. step: Delta d; where it is None, the paper's 2, or 1 where a rank is too small for 2.
    setting: row of Table VI for fine ranks, None for coarse ones."""

    stages: int = STAGES
    step: int | None = None
    setting: Setting | None = SETTINGS["setting1"]

    def __post_init__(self) -> None:
        step = STEP if self.step is None else self.step
        if self.stages < 1 or step < 1:
            raise ValueError(
                f"HyDRA's stages and step are 1 or more, got {self.stages} and {step}: the paper has 3 and 2"
            )

    def allocate(self, probe: Probe, budget: Budget) -> dict[str, int]:
        """The rank of every layer of a module.

        Fine ranks can break g(G, Z) <= C, because Up is wider than Q and K together under grouped-query attention.
        Then what was raised is lowered again, a unit at a time, from the block with the smallest norm on. Ranks that
        leave more than 0.5% of C unused are filled up from the block with the largest norm on.

        Raises:
            ValueError: the blocks are fewer than the stages, the budget is too small for them, or the components that
                the setting names are not there.
        """
        return self.fine(probe, budget, block_ranks(probe, budget, self.stages, self.step_for(probe, budget)))

    def step_for(self, probe: Probe, budget: Budget) -> int:
        """Delta d for a module."""
        if self.step is not None:
            return self.step
        sizes = Counter(stages_of(probe.block_norms(), self.stages))
        least = sum(size * (1 + stage * STEP) for stage, size in sizes.items())
        return STEP if least <= budget.rank * probe.blocks else 1

    def fine(self, probe: Probe, budget: Budget, blocks: Sequence[int]) -> dict[str, int]:
        """The rank of every layer, from a coarse rank of each block (Eq. 9 and 10)."""
        limit = budget.limit(probe)
        coarse = {place.layer: min(blocks[place.block], place.width) for place in probe.places}
        rising = by_norm(probe)
        if self.setting is None:
            ranks = lower_to(coarse, probe, limit, rising, dict.fromkeys(coarse, 1))
            return raise_to(ranks, probe, limit, rising[::-1])
        check_components(probe, self.setting)
        step = self.step_for(probe, budget)
        shifts = {place.layer: self.setting.shift(place.component, step) for place in probe.places}
        widths = {place.layer: place.width for place in probe.places}
        shifted = {layer: min(max(1, rank + shifts[layer]), widths[layer]) for layer, rank in coarse.items()}
        raised = [layer for layer in rising if shifts[layer] > 0]
        ranks = lower_to(shifted, probe, limit, raised, coarse)
        ranks = lower_to(ranks, probe, limit, rising, dict.fromkeys(coarse, 1))  # blocks of unlike widths alone
        return raise_to(ranks, probe, limit, rising[::-1])


def block_ranks(probe: Probe, budget: Budget, stages: int, step: int) -> list[int]:
    """The coarse rank of every block (Eq. 5 to 8)."""
    found = stages_of(probe.block_norms(), stages)
    ranks = coarse_ranks([found.count(stage) for stage in range(stages)], budget.rank, step)
    return [ranks[stage] for stage in found]


def by_norm(probe: Probe) -> list[str]:
    """Layers, those of the block with the smallest norm first, and in it the one with the smallest norm."""
    norms = probe.block_norms()
    ordered = sorted(probe.layers, key=lambda one: (norms[one.place.block], one.place.block, one.norm))
    return [one.place.layer for one in ordered]


def check_components(probe: Probe, setting: Setting) -> None:
    """Insist that a module has the components that a setting shifts.

    Raises:
        ValueError: one is not there.
    """
    there = {place.component for place in probe.places}
    if missing := [name for name in setting.shifts if name not in there]:
        raise ValueError(
            f"{setting.name} moves rank between the components {', '.join(setting.shifts)}, and the {probe.module} has "
            f"no {', '.join(missing)}: its layers are {', '.join(sorted(there))}. Use coarse ranks (hydra-coarse)"
        )
