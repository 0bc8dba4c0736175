"""Which pairs are compared: those on the balance curve, or all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mars_core.search.balance import BalancePoint
from mars_core.search.choice import Dropped, Pair, Source
from mars_core.search.constraints import Constraint, CountParameters, objection_of
from mars_core.search.observed import Measured
from mars_core.search.ranks import Interval, Mapped

ToRanks = Callable[[float, Interval, Sequence[int]], Mapped]


@dataclass(frozen=True)
class Pool:
    """Pairs to be compared with their sources, and what was dropped on the way."""

    sources: dict[Pair, Source]
    dropped: tuple[Dropped, ...] = ()

    @property
    def pairs(self) -> list[Pair]:
        """The pairs, in the order they were found."""
        return list(self.sources)


def balanced_pairs(
    curve: Sequence[BalancePoint],
    ranks_me: Sequence[int],
    to_ranks: ToRanks,
    constraints: Sequence[Constraint],
    count: CountParameters,
    measured: Measured,
) -> Pool:
    """The balance curve mapped to available ranks; what is undefined, out of range or forbidden is dropped."""
    sources: dict[Pair, Source] = {}
    dropped: list[Dropped] = []
    for point in curve:
        mapped = _mapped(point, ranks_me, to_ranks)
        if mapped.reason is not None:
            dropped.append(Dropped(None, point.r_llm, mapped.reason))
        for r_me, how in zip(mapped.ranks, mapped.how, strict=True):
            pair = (r_me, point.r_llm)
            objection = objection_of(pair, constraints, count)
            if objection is None:
                sources[pair] = _source(how, pair, measured, point)
            else:
                dropped.append(Dropped(r_me, point.r_llm, objection))
    return Pool(sources, tuple(dropped))


def all_pairs(allowed: Sequence[Pair], measured: Measured) -> Pool:
    """Every allowed pair, without regard to balance."""
    return Pool({pair: _source("all pairs", pair, measured) for pair in allowed})


def _mapped(point: BalancePoint, ranks_me: Sequence[int], to_ranks: ToRanks) -> Mapped:
    if point.r_me is None:
        return Mapped((), (), point.problem)
    return to_ranks(point.r_me, point.interval, ranks_me)


def _source(how: str, pair: Pair, measured: Measured, point: BalancePoint | None = None) -> Source:
    return Source(
        how=how,
        balance_rank=point.r_me if point else None,
        interval=point.interval if point else None,
        share_undefined=point.share_undefined if point else None,
        extrapolated=measured.is_extrapolated(pair),
        measured=pair in measured.pairs,
    )
