"""What loss curves say of one module: signals `slice` and `isolated`.

`slice` (the paper's, appendix E) varies one module's rank and holds the other at the reference pair's. The run at the
reference pair stands in both slices, so t_me(ref) = t_llm(ref) by construction and the balance curve of Eq. 3 passes
through (ref, ref) whatever the data say. `isolated` trains one module's adapters alone: the other has rank 0.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mars_core.convergence.curves import Curve
from mars_core.convergence.errors import NoConvergenceTimes, NoReferenceRun

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


def lower_middle(ranks: Iterable[int]) -> int:
    """The lower middle of the distinct positive ranks: 16 for {8, 16, 32, 64}."""
    positive = sorted({rank for rank in ranks if rank > 0})
    if not positive:
        raise ValueError("expected at least one positive rank, got none: give the calibration runs adapters.")
    return positive[(len(positive) - 1) // 2]


def reference_pair(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(r_me, r_llm) at the lower middle of each module's ranks among pairs where both modules have adapters."""
    adapted = [(r_me, r_llm) for r_me, r_llm in pairs if r_me > 0 and r_llm > 0]
    if not adapted:
        raise ValueError(
            "no pair with both ranks positive, so there is no reference pair: "
            "calibrate pairs of positive ranks, or use the isolated signal."
        )
    return lower_middle(r_me for r_me, _ in adapted), lower_middle(r_llm for _, r_llm in adapted)


SCOPE = "pairs"


def select_slices(curves: Sequence[Curve], reference: tuple[int, int] | None) -> Selection:
    """Runs of the two slices through the reference pair; all pairs of positive ranks share the levels."""
    _require_curves(curves)
    adapted = tuple(curve for curve in curves if curve.r_me > 0 and curve.r_llm > 0)
    ref_me, ref_llm = reference or reference_pair((curve.r_me, curve.r_llm) for curve in adapted)
    _require_reference(adapted, (ref_me, ref_llm))
    me = [ModuleCurve("me", c.r_me, scope_of(SCOPE, c), c) for c in adapted if c.r_llm == ref_llm]
    llm = [ModuleCurve("llm", c.r_llm, scope_of(SCOPE, c), c) for c in adapted if c.r_me == ref_me]
    return Selection((*me, *llm), scopes_of(SCOPE, adapted), (ref_me, ref_llm))


def _require_curves(curves: Sequence[Curve]) -> None:
    if not curves:
        raise NoConvergenceTimes(
            "no run was evaluated at two steps or more, so no convergence time can be read off: evaluate from a "
            "smaller size on (calibration.smallest_size), or train longer"
        )


def _require_reference(curves: Sequence[Curve], reference: tuple[int, int]) -> None:
    pairs = sorted({(curve.r_me, curve.r_llm) for curve in curves})
    if reference not in pairs:
        raise NoReferenceRun(
            f"no run at the reference pair (r_me, r_llm) = {reference}; the runs have {pairs}: "
            "calibrate the reference pair or pass reference= one of these."
        )


def select_isolated(curves: Sequence[Curve], reference: tuple[int, int] | None) -> Selection:
    """Runs that adapt one module only; each module has its own levels. The reference pair plays no part."""
    me = tuple(curve for curve in curves if curve.r_me > 0 and curve.r_llm == 0)
    llm = tuple(curve for curve in curves if curve.r_llm > 0 and curve.r_me == 0)
    _require_both(me, llm)
    spoken_for = (*(_of("me", c.r_me, c) for c in me), *(_of("llm", c.r_llm, c) for c in llm))
    return Selection(spoken_for, scopes_of("me", me) | scopes_of("llm", llm))


def _of(module: Module, rank: int, curve: Curve) -> ModuleCurve:
    return ModuleCurve(module, rank, scope_of(module, curve), curve)


def _require_both(me: Sequence[Curve], llm: Sequence[Curve]) -> None:
    if not me or not llm:
        raise ValueError(
            f"the isolated signal needs runs with r_llm = 0 and runs with r_me = 0, got {len(me)} and {len(llm)}: "
            "calibrate each module alone, or use the slice signal."
        )


SIGNALS: dict[str, Callable[[Sequence[Curve], tuple[int, int] | None], Selection]] = {
    "slice": select_slices,
    "isolated": select_isolated,
}


def select(signal: str, curves: Sequence[Curve], reference: tuple[int, int] | None) -> Selection:
    """The runs that speak for each module under a loss-based signal."""
    if signal not in SIGNALS:
        raise ValueError(f"unknown signal {signal!r}, expected one of {', '.join(SIGNALS)}, trajectory.")
    return SIGNALS[signal](curves, reference)
