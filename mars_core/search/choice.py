"""The result of a search: the pair, the verdict and everything that explains it. JSON-safe both ways."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mars_core.metrics.schema import PERPLEXITY
from mars_core.search.balance import BalancePoint

Pair = tuple[int, int]
Verdict = Literal["chosen", "indistinguishable", "balance uninformative", "fallback"]
DecidedBy = Literal["balanced candidates", "law P over all pairs", "best observed pair", "reference pair"]


@dataclass(frozen=True)
class Source:
    """How a candidate came about.

    `how`: `exact`, `below`, `above` (neighbours of the balance rank), `edge` (the balance rank lies beyond the
    last available rank, its interval does not), `nearest`, `clamped` (law: paper), `all pairs`, `best observed`,
    `observed` (measured as well) or `reference`. `balance_rank`, `interval`, `share_undefined`: Eq. 3 at this
    LLM rank, None where no balance was used. `extrapolated`: a rank lies outside the calibrated ones.
    `measured`: calibration has a run of this pair; without one its loss is read off the laws alone.
    """

    how: str
    balance_rank: float | None = None
    interval: tuple[float, float] | None = None
    share_undefined: float | None = None
    extrapolated: bool = False
    measured: bool = True


@dataclass(frozen=True)
class Candidate:
    """A pair that was compared. Losses in nats per answer token; regrets are relative excess perplexity.

    Where a metric is the objective, `loss` is its value, `perplexity` None, and regrets are relative excess of it.
    `expected_regret`: mean over the bootstrap of the excess over the smallest among the candidates; for perplexity
    exp(loss - smallest loss) - 1.
    `excess_upper_bound`: upper end of the 95% interval of the excess over the candidate with the smallest
    expected regret. None where law P had no say.
    """

    pair: Pair
    loss: float | None
    loss_interval: tuple[float, float] | None
    perplexity: float | None
    expected_regret: float | None
    excess_upper_bound: float | None
    trainable_parameters: int
    source: Source


@dataclass(frozen=True)
class Dropped:
    """A pair (or an LLM rank without vision rank: r_me None) that is no candidate, and why."""

    r_me: int | None
    r_llm: int
    reason: str


@dataclass(frozen=True)
class Choice:
    """The chosen pair (r_me, r_llm) with its verdict and evidence.

    `reason`: one sentence. `fallback_cause`: why the laws could not decide, None unless verdict is fallback.
    `preferred_over`: the pair with the smallest expected regret, where a cheaper one was taken instead.
    `n_undefined`: LLM ranks at which Eq. 3 has no real, finite solution (the paper's complex cases).
    `objective`: what was minimised.
    """

    pair: Pair
    verdict: Verdict
    reason: str
    decided_by: DecidedBy
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

    def candidate(self, pair: Pair) -> Candidate:
        """The candidate with this pair; ValueError if it was not compared."""
        found = [candidate for candidate in self.candidates if candidate.pair == pair]
        if not found:
            raise ValueError(f"{pair} is no candidate; got {[c.pair for c in self.candidates]}")
        return found[0]

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form: tuples become lists, numbers that are not finite become null."""
        stored: dict[str, Any] = json_safe(asdict(self))
        return stored

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> "Choice":
        """Read what `to_json` wrote."""
        fields = dict(stored)
        fields["pair"] = _pair(stored["pair"])
        fields["preferred_over"] = _optional_pair(stored["preferred_over"])
        fields["candidates"] = tuple(_candidate(item) for item in stored["candidates"])
        fields["dropped"] = tuple(Dropped(**item) for item in stored["dropped"])
        fields["balance_curve"] = tuple(
            BalancePoint(**{**item, "interval": _interval(item["interval"])}) for item in stored["balance_curve"]
        )
        return Choice(**fields)


def json_safe(value: Any) -> Any:
    """Nested value with lists for tuples, plain numbers for NumPy's, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if hasattr(value, "item"):
        return json_safe(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _pair(stored: Any) -> Pair:
    return int(stored[0]), int(stored[1])


def _optional_pair(stored: Any) -> Pair | None:
    return None if stored is None else _pair(stored)


def _interval(stored: Any) -> tuple[float, float] | None:
    return None if stored is None else (float(stored[0]), float(stored[1]))


def _candidate(stored: Mapping[str, Any]) -> Candidate:
    source = {**stored["source"], "interval": _interval(stored["source"]["interval"])}
    fields = {
        **stored,
        "pair": _pair(stored["pair"]),
        "loss_interval": _interval(stored["loss_interval"]),
        "source": Source(**source),
    }
    return Candidate(**fields)
