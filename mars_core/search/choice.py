"""The result of a search: the pair, the verdict and everything that explains it. JSON-safe both ways."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mars_core.metrics.schema import PERPLEXITY
from mars_core.ranks import Pair
from mars_core.records import Record
from mars_core.search.balance import BalancePoint
from mars_core.search.rates import RateAnswer

CostUnit = Literal["parameters", "ranks"]
Interval = tuple[float, float]
Verdict = Literal["best", "as good and cheaper", "cannot tell", "paper"]


@dataclass(frozen=True)
class Source:
    """How a candidate stands to the calibration and to the balance condition.

    how: `all pairs`; under `law: paper` `nearest` or `clamped` (the balance rank lies outside the available ranks), or
    `default pair`. balance_rank, interval, share_undefined: Eq. 3 at this LLM rank, None where no balance was used.
    extrapolated: a rank lies outside the calibrated ones. measured: calibration has a run of this pair.
    balanced: the pair is next to the balance curve.
    """

    how: str
    balance_rank: float | None = None
    interval: Interval | None = None
    share_undefined: float | None = None
    extrapolated: bool = False
    measured: bool = True
    balanced: bool = False


@dataclass(frozen=True)
class Candidate:
    """A pair that was compared. Losses in nats per answer token; excesses and regrets are shares of perplexity.

    Where a metric is the objective, `loss` is its value, `perplexity` None, and excesses are shares of the metric.

    loss, loss_interval: what one final run will reach, with its 95% interval. expected_regret: mean excess over the
    best of all pairs. excess, excess_interval: over the chosen pair, mean and 95% interval. probability_best: that no
    other pair is better. None where the posterior had no say (`law: paper`).
    """

    pair: Pair
    loss: float | None
    loss_interval: Interval | None
    perplexity: float | None
    expected_regret: float | None
    trainable_parameters: int
    source: Source
    excess: float | None = None
    excess_interval: Interval | None = None
    probability_best: float | None = None


@dataclass(frozen=True)
class Rival:
    """A pair that a user would take without MARS, beside the chosen one.

    name: `best observed`, `largest` or `uniform`. excess, excess_interval: over the chosen pair.
    """

    name: str
    pair: Pair
    trainable_parameters: int
    excess: float | None
    excess_interval: Interval | None


@dataclass(frozen=True)
class Dropped:
    """A pair (or an LLM rank without vision rank: r_me None) that is no candidate, and why."""

    r_me: int | None
    r_llm: int
    reason: str


@dataclass(frozen=True)
class Choice(Record):
    """The chosen pair (r_me, r_llm) with its verdict and evidence.

    reason: one or two sentences. decided_by: `posterior`, `Algorithm 1` or `default pair`. fallback_cause: why the
    default pair was taken (`law: paper`), else None. preferred_over: the pair of the smallest expected regret, where a
    cheaper one was taken. regret: expected excess over the best of all pairs; regret_bound: its 95% upper bound.
    seeds_needed: calibration runs per pair that would tell the pairs apart; None where they are told, or where more
    than a dozen would be needed. n_undefined: LLM ranks at which Eq. 3 has no real, finite solution. other_rule: what
    the other rule takes from the same runs. warnings: what may change the decision, the gravest first. rates: best
    learning rates, None where all runs had one rate; losses and excesses are then those at each pair's best rate.
    cost_unit: what `trainable_parameters` of candidates and rivals counts; `ranks` is r_me + r_llm, taken where
    imported runs do not say how many parameters a pair has.
    """

    pair: Pair
    verdict: str
    reason: str
    decided_by: str
    fallback_cause: str | None
    preferred_over: Pair | None
    rule: str
    D_target: float
    margin: float
    candidates: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...]
    balance_curve: tuple[BalancePoint, ...]
    n_undefined: int
    diagnostics: Mapping[str, Any]
    objective: str = PERPLEXITY
    regret: float | None = None
    regret_bound: float | None = None
    seeds_needed: int | None = None
    rivals: tuple[Rival, ...] = ()
    other_rule: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = field(default_factory=tuple)
    rates: RateAnswer | None = None
    cost_unit: CostUnit = "parameters"

    def candidate(self, pair: Pair) -> Candidate:
        """The candidate with this pair; ValueError if it was not compared."""
        found = [candidate for candidate in self.candidates if candidate.pair == pair]
        if not found:
            raise ValueError(f"{pair} is no candidate; got {[c.pair for c in self.candidates]}")
        return found[0]
