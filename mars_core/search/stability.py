"""How often each pair is chosen when the calibration is repeated."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mars_core.search.choice import Choice, Pair

Key = TypeVar("Key")


@dataclass(frozen=True)
class Stability:
    """Shares of repeated calibrations (seeds or bootstrap draws) that chose a pair or came to a verdict."""

    n_choices: int
    pairs: Mapping[Pair, float]
    verdicts: Mapping[str, float]

    @property
    def agreement(self) -> float:
        """Share of the pair chosen most often."""
        return max(self.pairs.values())


def stability_of(choices: Iterable[Choice]) -> Stability:
    """Tally the choices of repeated calibrations, most frequent first."""
    chosen = list(choices)
    if not chosen:
        raise ValueError("no choices to tally: choose once per calibration seed and pass the choices.")
    return Stability(
        len(chosen),
        _shares(Counter(choice.pair for choice in chosen), len(chosen)),
        _shares(Counter(str(choice.verdict) for choice in chosen), len(chosen)),
    )


def _shares(counts: Counter[Key], total: int) -> dict[Key, float]:
    return {key: count / total for key, count in counts.most_common()}
