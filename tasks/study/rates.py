"""Automatic learning rates as they were decided, so that every process plans the same runs.

They lie in STUDY/revisions/001/learning_rates.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mars_core.ranks import RankPair
from mars_core.rate_search import Confirmation
from mars_core.records import Float, Record
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision


@dataclass(frozen=True)
class RangeResult:
    """What the learning-rate range test gave.

    steps: optimizer steps of its runs. losses: mean validation loss (nats per answer token) of its pairs by peak rate,
    not a number where one of them diverged. best: where it is lowest, between the rates.
    """

    pairs: tuple[tuple[int, int], ...]
    steps: int
    losses: Mapping[float, Float]
    best: float


@dataclass(frozen=True)
class PairRates:
    """Peak learning rates that a round tries with a pair.

    seeds: seed of the run at each of them in a round that confirms; None for a run of every seed of the calibration.
    """

    pair: tuple[int, int]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DecidedRates(Record):
    """What was decided so far.

    plan: hash of the plan that it was decided for. rounds: of full-length runs, the first one, those that widened it,
    and those that trained the likeliest pairs again with seeds of their own. complete: whether none follows.
    """

    plan: str
    range_test: RangeResult
    rounds: tuple[tuple[PairRates, ...], ...]
    complete: bool = False

    @property
    def rates(self) -> dict[RankPair, tuple[float, ...]]:
        """Every rate that a pair is tried at with the calibration's seeds, in the order in which they were decided."""
        found: dict[RankPair, tuple[float, ...]] = {}
        for one in (one for tried in self.rounds for one in tried if one.seeds is None):
            known = found.get(RankPair(*one.pair), ())
            found[RankPair(*one.pair)] = (*known, *(rate for rate in one.learning_rates if rate not in known))
        return found

    @property
    def confirmations(self) -> tuple[Confirmation, ...]:
        """Runs of pairs with seeds of their own."""
        return tuple(
            Confirmation(RankPair(*one.pair), seed, rate)
            for one in (one for tried in self.rounds for one in tried)
            if one.seeds is not None
            for seed, rate in zip(one.seeds, one.learning_rates, strict=True)
        )


def rates_path(revision: Revision) -> Path:
    """Where they lie."""
    return revision.path("learning_rates.json")


def read_rates(revision: Revision) -> DecidedRates | None:
    """What was decided, None where nothing was."""
    path = rates_path(revision)
    return DecidedRates.from_json(read_json(path)) if path.is_file() else None


def write_rates(revision: Revision, decided: DecidedRates) -> None:
    """Store what was decided in place of the decisions before."""
    write_json(rates_path(revision), decided.to_json())
