"""Signal `slice` (the paper's, appendix E): vary one module's rank, hold the other at the reference pair's.

The run at the reference pair stands in both slices, so t_me(ref) = t_llm(ref) by construction and the balance
curve of Eq. 3 passes through (ref, ref) whatever the data say.
"""

from collections.abc import Sequence

from mars_core.convergence.curve import Curve
from mars_core.convergence.errors import NoReferenceRun
from mars_core.convergence.reference import reference_pair
from mars_core.convergence.selection import ModuleCurve, Selection, scope_of, scopes_of

SCOPE = "pairs"


def select_slices(curves: Sequence[Curve], reference: tuple[int, int] | None) -> Selection:
    """Runs of the two slices through the reference pair; all pairs of positive ranks share the levels."""
    adapted = tuple(curve for curve in curves if curve.r_me > 0 and curve.r_llm > 0)
    ref_me, ref_llm = reference or reference_pair((curve.r_me, curve.r_llm) for curve in adapted)
    _require_reference(adapted, (ref_me, ref_llm))
    me = [ModuleCurve("me", c.r_me, scope_of(SCOPE, c), c) for c in adapted if c.r_llm == ref_llm]
    llm = [ModuleCurve("llm", c.r_llm, scope_of(SCOPE, c), c) for c in adapted if c.r_me == ref_me]
    return Selection((*me, *llm), scopes_of(SCOPE, adapted), (ref_me, ref_llm))


def _require_reference(curves: Sequence[Curve], reference: tuple[int, int]) -> None:
    pairs = sorted({(curve.r_me, curve.r_llm) for curve in curves})
    if reference not in pairs:
        raise NoReferenceRun(
            f"no run at the reference pair (r_me, r_llm) = {reference}; the runs have {pairs}: "
            "calibrate the reference pair or pass reference= one of these."
        )
