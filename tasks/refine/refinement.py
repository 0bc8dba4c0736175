"""A refinement: a pair whose budget is to be shared out over its layers, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mars_core.layerwise.coarse import STAGES
from mars_core.layerwise.places import MODULES, places_of
from mars_core.layerwise.presets import SETTINGS
from mars_core.layerwise.registry import Allocator, allocator
from mars_core.models.lora import check_ranks
from mars_core.models.partition import Group, Partition
from tasks.final.arm import Arm

FIRST_SETTING = next(iter(SETTINGS))


@dataclass(frozen=True)
class Refinement:
    """arm: the pair, with its learning rates. method: a name of `mars_core.layerwise.registry.METHODS`. stages, step,
    setting: HyDRA's. modules: those whose ranks are shared out; the others keep the pair's."""

    arm: Arm
    method: str
    stages: int = STAGES
    step: int | None = None
    setting: str = FIRST_SETTING
    modules: tuple[Group, ...] = MODULES

    @property
    def allocator(self) -> Allocator:
        """How ranks are shared out."""
        return allocator(self.method, stages=self.stages, step=self.step, setting=self.setting)

    @property
    def name(self) -> str:
        """Its name among baselines and folders, such as `hydra-me8-llm16`; settings of its own are part of it."""
        own = [] if self.stages == STAGES else [f"s{self.stages}"]
        own += [] if self.step is None else [f"d{self.step}"]
        own += [] if self.setting == FIRST_SETTING else [self.setting]
        own += [] if self.modules == MODULES else list(self.modules)
        return "-".join([self.method, self.arm.pair.slug, *own])

    def shared_out(self) -> tuple[Group, ...]:
        """Modules that have a rank to share out."""
        return tuple(module for module in self.modules if self.arm.pair.rank(module))


def refinement(
    partition: Partition, arm: Arm, method: str, modules: Sequence[str], stages: int, step: int | None, setting: str
) -> Refinement:
    """A refinement that fits the model, as plain values name it; found out before anything is trained.

    Raises:
        ValueError: there is no such method, setting or module, the pair does not fit, or a module has nothing to share.
    """
    if odd := [module for module in modules if module not in MODULES]:
        raise ValueError(f"there is no module {odd[0]!r} whose ranks could be shared out: use {' or '.join(MODULES)}")
    wanted = tuple(module for module in MODULES if not modules or module in modules)
    made = Refinement(arm, method, stages, step, setting, wanted)
    check_ranks(partition, arm.pair)
    if not made.shared_out():
        raise ValueError(
            f"{arm.pair} has no rank to share out in {' and '.join(wanted)}: name another module with --module"
        )
    own = made.allocator
    for module in made.shared_out():
        blocks = len({place.block for place in places_of(partition, module)})
        if method.startswith("hydra") and blocks < stages:
            raise ValueError(
                f"the {module} has {blocks} blocks, fewer than {stages} stages: use --stages {blocks} or fewer, or "
                "share out the other module alone (--module)"
            )
    assert own.name == method
    return made
