"""Which pairs are compared: those on the balance curve, or all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mars_core.search.balance import BalancePoint
from mars_core.search.choice import Dropped, Pair, Source
from mars_core.search.constraints import Constraint, CountParameters, objection_of
from mars_core.search.ranks import Interval, Mapped

RankRange = tuple[int, int] | None
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
    calibrated: tuple[RankRange, RankRange],
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
                sources[pair] = _source(point, how, is_extrapolated(pair, calibrated))
            else:
                dropped.append(Dropped(r_me, point.r_llm, objection))
    return Pool(sources, tuple(dropped))


def all_pairs(allowed: Sequence[Pair], calibrated: tuple[RankRange, RankRange]) -> Pool:
    """Every allowed pair, without regard to balance."""
    return Pool({pair: Source("all pairs", extrapolated=is_extrapolated(pair, calibrated)) for pair in allowed})


def is_extrapolated(pair: Pair, calibrated: tuple[RankRange, RankRange]) -> bool:
    """Whether a rank lies outside the calibrated range of its module."""
    return any(
        measured is not None and not measured[0] <= rank <= measured[1]
        for rank, measured in zip(pair, calibrated, strict=True)
    )


def _mapped(point: BalancePoint, ranks_me: Sequence[int], to_ranks: ToRanks) -> Mapped:
    if point.r_me is None:
        return Mapped((), (), point.problem)
    return to_ranks(point.r_me, point.interval, ranks_me)


def _source(point: BalancePoint, how: str, extrapolated: bool) -> Source:
    return Source(how, point.r_me, point.interval, point.share_undefined, extrapolated)
