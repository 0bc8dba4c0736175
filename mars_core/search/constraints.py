"""What a user may demand of a pair. Each constraint is one small class with one method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mars_core.ranks import Pair
from mars_core.search.settings import as_float

CountParameters = Callable[[Pair], int]


class NoPairLeft(ValueError):  # noqa: N818 - reads as the fact it states
    """The constraints leave no rank pair; the message says what to relax."""


class Constraint(Protocol):
    """A demand on a rank pair."""

    def objection(self, pair: Pair, count: CountParameters) -> str | None:
        """Why the pair is not allowed, None if it is. `count(pair)` gives trainable parameters."""


@dataclass(frozen=True)
class MaxTrainableParameters:
    """At most `limit` trainable parameters."""

    limit: int

    def objection(self, pair: Pair, count: CountParameters) -> str | None:
        """Why the pair is not allowed, None if it is."""
        parameters = count(pair)
        return None if parameters <= self.limit else f"{parameters:,} trainable parameters, more than {self.limit:,}"


@dataclass(frozen=True)
class MaxAdapterBytes:
    """An adapter file of at most `limit` bytes, at `bytes_per_parameter` (2 for bfloat16, 4 for float32)."""

    limit: int
    bytes_per_parameter: int = 4

    def objection(self, pair: Pair, count: CountParameters) -> str | None:
        """Why the pair is not allowed, None if it is."""
        size = count(pair) * self.bytes_per_parameter
        return None if size <= self.limit else f"an adapter of {size:,} bytes, more than {self.limit:,}"


@dataclass(frozen=True)
class AllowedRanks:
    """Only these ranks; None allows every rank of that module."""

    me: tuple[int, ...] | None = None
    llm: tuple[int, ...] | None = None

    def objection(self, pair: Pair, count: CountParameters) -> str | None:
        """Why the pair is not allowed, None if it is."""
        if self.me is not None and pair[0] not in self.me:
            return f"r_me = {pair[0]} is not among the allowed {self.me}"
        if self.llm is not None and pair[1] not in self.llm:
            return f"r_llm = {pair[1]} is not among the allowed {self.llm}"
        return None


@dataclass(frozen=True)
class SameParametersAsUniform:
    """As many trainable parameters as one uniform rank in both modules, within a relative `tolerance`."""

    uniform_rank: int
    tolerance: float = 0.1

    def objection(self, pair: Pair, count: CountParameters) -> str | None:
        """Why the pair is not allowed, None if it is."""
        budget, parameters = count((self.uniform_rank, self.uniform_rank)), count(pair)
        if abs(parameters - budget) <= self.tolerance * budget:
            return None
        return (
            f"{parameters:,} trainable parameters, not within {self.tolerance:.0%} of the {budget:,} of "
            f"uniform rank {self.uniform_rank}"
        )


@dataclass(frozen=True)
class Diverged:
    """No pair with a calibration run that diverged: the laws know nothing of it, and would rank the pair all the same.

    `runs`: the pairs, with the words for their runs, such as `seed 0 at step 45`.
    """

    runs: Mapping[Pair, str]

    def objection(self, pair: Pair, count: CountParameters) -> str | None:
        """Why the pair is not allowed, None if it is."""
        return f"a calibration run that diverged ({self.runs[pair]})" if pair in self.runs else None


@dataclass(frozen=True)
class MeasuredOnly:
    """Only pairs that calibration has run."""

    pairs: frozenset[Pair]

    def objection(self, pair: Pair, count: CountParameters) -> str | None:
        """Why the pair is not allowed, None if it is."""
        return None if pair in self.pairs else "no calibration run (name the available ranks to allow it)"


@dataclass(frozen=True)
class ZeroMeasured:
    """No pair with a module at rank 0 that calibration has not run: no law reaches it from other ranks."""

    pairs: frozenset[Pair]

    def objection(self, pair: Pair, count: CountParameters) -> str | None:
        """Why the pair is not allowed, None if it is."""
        return "rank 0 and no calibration run" if 0 in pair and pair not in self.pairs else None


def counter(trainable_parameters: Mapping[Pair, int] | CountParameters) -> CountParameters:
    """Trainable parameters as a function of a pair, from a function or from a table of pairs; checked at each call."""
    count = trainable_parameters if callable(trainable_parameters) else _look_up(trainable_parameters)

    def counted(pair: Pair) -> int:
        number = count(pair)
        if not as_float(number) > 0:
            raise ValueError(
                f"trainable_parameters gives {number!r} for the pair {pair}, expected a finite number above 0: give "
                "the number of LoRA parameters of the pair."
            )
        return number

    return counted


def _look_up(table: Mapping[Pair, int]) -> CountParameters:
    if not isinstance(table, Mapping):
        raise ValueError(f"trainable_parameters must be a table of pairs or a function of the pair, got {table!r}.")

    def look_up(pair: Pair) -> int:
        if pair not in table:
            raise ValueError(
                f"trainable_parameters has no entry for the pair {pair}: give one for every available "
                "pair (and the uniform rank of a constraint), or pass a function of the pair."
            )
        return table[pair]

    return look_up


def objection_of(pair: Pair, constraints: Sequence[Constraint], count: CountParameters) -> str | None:
    """The first objection to the pair, None if there is none."""
    objections = (constraint.objection(pair, count) for constraint in constraints)
    return next((objection for objection in objections if objection is not None), None)


def allowed_pairs(
    ranks_me: Sequence[int], ranks_llm: Sequence[int], constraints: Sequence[Constraint], count: CountParameters
) -> list[Pair]:
    """Every available pair that no constraint objects to.

    Raises:
        NoPairLeft: the constraints leave none; the message names the cheapest pair and what speaks against it.
    """
    pairs = [(r_me, r_llm) for r_me in sorted(set(ranks_me)) for r_llm in sorted(set(ranks_llm)) if r_me or r_llm]
    allowed = [pair for pair in pairs if objection_of(pair, constraints, count) is None]
    if not allowed:
        cheapest = min(pairs, key=lambda pair: count(pair))
        raise NoPairLeft(
            f"the constraints leave none of {len(pairs)} rank pairs; the cheapest, {cheapest}, has "
            f"{objection_of(cheapest, constraints, count)}: relax the constraint or offer other ranks."
        )
    return allowed
