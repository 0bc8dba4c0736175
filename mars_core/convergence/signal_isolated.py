"""Signal `isolated`: train one module's adapters alone (the other module has rank 0)."""

from collections.abc import Sequence

from mars_core.convergence.curve import Curve
from mars_core.convergence.selection import ModuleCurve, Selection


def select_isolated(curves: Sequence[Curve], reference: tuple[int, int] | None) -> Selection:
    """Runs that adapt one module only; each module has its own levels. The reference pair plays no part."""
    me = tuple(curve for curve in curves if curve.r_me > 0 and curve.r_llm == 0)
    llm = tuple(curve for curve in curves if curve.r_llm > 0 and curve.r_me == 0)
    _require_both(me, llm)
    return Selection(
        (*(ModuleCurve("me", c.r_me, "me", c) for c in me), *(ModuleCurve("llm", c.r_llm, "llm", c) for c in llm)),
        {"me": me, "llm": llm},
    )


def _require_both(me: Sequence[Curve], llm: Sequence[Curve]) -> None:
    if not me or not llm:
        raise ValueError(
            f"the isolated signal needs runs with r_llm = 0 and runs with r_me = 0, got {len(me)} and {len(llm)}: "
            "calibrate each module alone, or use the slice signal."
        )
