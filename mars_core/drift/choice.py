"""The champion's pair against the new choice: is the difference worth a final run?

The new choice already holds the answer: the posterior's excess of every candidate over the chosen pair, with interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mars_core.ranks import Pair
from mars_core.records import Record
from mars_core.search.choice import Candidate, Choice

Verdict = Literal["first", "same pair", "immaterial", "uncertain", "unknown", "material"]


@dataclass(frozen=True)
class Excess(Record):
    """What is predicted of both pairs at size D, and the champion's relative excess of the search's objective.

    `standing_loss`, `chosen_loss`: nats per answer token where perplexity is the objective, else the metric.
    `interval`: 95%, None where there is none (findings of earlier versions).
    """

    D: float
    standing_loss: float | None
    chosen_loss: float | None
    excess: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ChoiceDrift(Record):
    """What the new choice means for the champion.

    `verdict`: `first` (nothing stands yet), `same pair`, `immaterial` (the predicted excess is within the margin),
    `uncertain` (above the margin, but its interval reaches below it), `unknown` (nothing compares the pairs) or
    `material`. `reason`: one sentence.
    """

    standing: Pair | None
    chosen: Pair
    verdict: Verdict
    reason: str
    margin: float
    excess: Excess | None = None

    @property
    def needs_final_run(self) -> bool:
        """Whether the new choice deserves a final run."""
        return self.verdict in ("first", "material")


def compare_choices(standing: Pair | None, choice: Choice, *, objection_to_standing: str | None = None) -> ChoiceDrift:
    """Judge the new choice against the champion's pair, by the posterior that the choice holds.

    Args:
        standing: pair of the accepted final run, None where there is none.
        choice: the new choice; its margin is the relative excess that is not worth a final run.
        objection_to_standing: why the champion's adapter cannot stay whatever its loss (its base model is gone, its
            pair is not allowed any more), None if it can.
    """
    chosen, margin = choice.pair, choice.margin
    if standing is None:
        return ChoiceDrift(None, chosen, "first", "No final run has been accepted yet.", margin)
    if objection_to_standing is not None:
        return ChoiceDrift(standing, chosen, "material", f"{objection_to_standing}.", margin)
    if standing == chosen:
        return ChoiceDrift(standing, chosen, "same pair", f"The champion's pair {chosen} was chosen again.", margin)
    excess = excess_of(choice, standing)
    if excess is None:
        return ChoiceDrift(standing, chosen, "unknown", _unknown(choice, standing), margin)
    verdict = _verdict(excess, margin)
    return ChoiceDrift(standing, chosen, verdict, _reason(standing, choice, excess, verdict), margin, excess)


def excess_of(choice: Choice, standing: Pair) -> Excess | None:
    """Excess of a pair over the chosen one; None where the pair is no candidate or has no excess (`law: paper`)."""
    stays = _candidate(choice, standing)
    if stays is None or stays.excess is None:
        return None
    chosen = _candidate(choice, choice.pair)
    return Excess(choice.D_target, stays.loss, chosen.loss if chosen else None, stays.excess, stays.excess_interval)


def _candidate(choice: Choice, pair: Pair) -> Candidate | None:
    return next((candidate for candidate in choice.candidates if candidate.pair == pair), None)


def _unknown(choice: Choice, standing: Pair) -> str:
    why = (
        "it is not among the pairs that were compared"
        if _candidate(choice, standing) is None
        else f"{choice.decided_by} states no difference between pairs"
    )
    return f"Another pair, {choice.pair}, was chosen, but nothing can say what {standing} loses by staying: {why}."


def _verdict(excess: Excess, margin: float) -> Verdict:
    if not excess.excess > margin:
        return "immaterial"
    if excess.interval is None or not excess.interval[0] > margin:
        return "uncertain"
    return "material"


def _reason(standing: Pair, choice: Choice, excess: Excess, verdict: Verdict) -> str:
    interval = (
        "no interval"
        if excess.interval is None
        else f"95% interval {excess.interval[0]:.2%} to {excess.interval[1]:.2%}"
    )
    predicted = (
        f"{standing} is predicted to have {abs(excess.excess):.2%} {'more' if excess.excess >= 0 else 'less'} "
        f"{choice.objective} than {choice.pair} at {excess.D:.0f} samples ({interval})"
    )
    meaning = {
        "immaterial": f"which is within the margin of {choice.margin:.2%}",
        "uncertain": f"above the margin of {choice.margin:.2%}, but not surely",
        "material": f"surely above the margin of {choice.margin:.2%}",
    }
    return f"{predicted}, {meaning[verdict]}."
