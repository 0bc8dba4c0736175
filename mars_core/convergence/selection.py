"""What a signal hands to a level: the runs that speak for a module at a rank."""

from dataclasses import dataclass
from typing import Literal

from mars_core.convergence.curve import Curve

Module = Literal["me", "llm"]


@dataclass(frozen=True)
class ModuleCurve:
    """A run read as evidence on one module at one rank; `scope` names the runs it shares its levels with."""

    module: Module
    r: int
    scope: str
    curve: Curve


@dataclass(frozen=True)
class Selection:
    """Module curves, and per scope all the runs whose floors set the common levels.

    `reference` is the pair at which slices cross, None where the signal has none.
    """

    module_curves: tuple[ModuleCurve, ...]
    scopes: dict[str, tuple[Curve, ...]]
    reference: tuple[int, int] | None = None
