"""What a signal hands to a level: the runs that speak for a module at a rank."""

from collections.abc import Iterable
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


def scope_of(name: str, curve: Curve) -> str:
    """The scope `name`, or its part of one size where the run was made for one: only such runs share its level."""
    return f"{name}, D = {int(curve.sizes[-1])}" if curve.one_size else name


def scopes_of(name: str, curves: Iterable[Curve]) -> dict[str, tuple[Curve, ...]]:
    """The runs by scope, in order of first appearance."""
    found: dict[str, tuple[Curve, ...]] = {}
    for curve in curves:
        scope = scope_of(name, curve)
        found[scope] = (*found.get(scope, ()), curve)
    return found
