"""Signal `isolated`: train one module's adapters alone (the other module has rank 0)."""

from collections.abc import Sequence

from mars_core.convergence.curve import Curve
from mars_core.convergence.selection import Module, ModuleCurve, Selection, scope_of, scopes_of


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
