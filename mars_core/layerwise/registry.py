"""The ways to share a budget out, by the names that users give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mars_core.layerwise import adalora, eva, fisher, gradient, uniform
from mars_core.layerwise.budget import Budget
from mars_core.layerwise.coarse import STAGES
from mars_core.layerwise.hydra import Hydra
from mars_core.layerwise.presets import SETTINGS
from mars_core.layerwise.probe import Probe

Allocate = Callable[[Probe, Budget], dict[str, int]]


@dataclass(frozen=True)
class Allocator:
    """A method. needs: the probe's columns that it reads."""

    name: str
    title: str
    allocate: Allocate
    needs: tuple[str, ...]


NORMS = ("norm_a", "norm_b")
_RIVALS = (
    Allocator("uniform", "one rank for all layers", uniform.allocate, ()),
    Allocator("adalora", "AdaLoRA's final allocation", adalora.allocate, ("triplets",)),
    Allocator("eva", "EVA: explained variance of inputs", eva.allocate, ("explained_variance",)),
    Allocator("gradient", "GoRA: importance of the base weights", gradient.allocate, ("importance",)),
    Allocator("fisher", "Fisher information of the adapters", fisher.allocate, ("fisher",)),
)
METHODS = ("hydra", "hydra-coarse", *(one.name for one in _RIVALS))


def allocator(name: str, *, stages: int = STAGES, step: int | None = None, setting: str = "setting1") -> Allocator:
    """A method by its name; `stages`, `step` and `setting` are HyDRA's.

    Raises:
        ValueError: there is none of this name, or HyDRA's settings are out of range.
    """
    if name == "hydra":
        if setting not in SETTINGS:
            raise ValueError(f"there is no setting {setting!r}: use one of {', '.join(SETTINGS)}")
        own = Hydra(stages, step, SETTINGS[setting])
        return Allocator(name, f"HyDRA, fine ranks ({setting})", own.allocate, NORMS)
    if name == "hydra-coarse":
        return Allocator(name, "HyDRA, coarse ranks", Hydra(stages, step, None).allocate, NORMS)
    found = {one.name: one for one in _RIVALS}
    if name not in found:
        raise ValueError(f"there is no method {name!r} to share ranks out: use one of {', '.join(METHODS)}")
    return found[name]
