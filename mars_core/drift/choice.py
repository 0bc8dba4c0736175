"""The standing pair against the new choice, both under the new law P: is the difference worth a final run?

| symbol | meaning | shape |
|---|---|---|
| excess | how far the standing pair exceeds the new one, as a share (`Objective.excess`) | () |
| draws | the same per bootstrap draw, both pairs taken from the same draw | (n_draws,) |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mars_core.fitting import LawFit
from mars_core.search.choice import Pair, json_safe
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, Objective
from mars_core.search.score import FEWEST_DRAWS, INTERVAL

Verdict = Literal["first", "same pair", "immaterial", "uncertain", "unknown", "material"]


@dataclass(frozen=True)
class Excess:
    """What law P predicts of both pairs at size D, and the standing pair's relative excess of the search's objective.

    `standing_loss`, `chosen_loss`: nats per answer token where perplexity is the objective, else the metric.
    `interval`: 95% over the bootstrap, None where the fit has too few draws for one.
    """

    D: float
    standing_loss: float
    chosen_loss: float
    excess: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ChoiceDrift:
    """What the new choice means for the standing one.

    `verdict`: `first` (nothing stands yet), `same pair`, `immaterial` (the predicted excess is within the margin),
    `uncertain` (above the margin, but its interval reaches below it), `unknown` (no law can compare the pairs) or
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

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        stored: dict[str, Any] = json_safe(asdict(self))
        return stored

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> ChoiceDrift:
        """Read what `to_json` wrote."""
        standing, excess = stored["standing"], stored["excess"]
        if excess is not None and excess["interval"] is not None:
            excess = {**excess, "interval": tuple(excess["interval"])}
        fields = {
            **stored,
            "standing": None if standing is None else (standing[0], standing[1]),
            "chosen": (stored["chosen"][0], stored["chosen"][1]),
            "excess": None if excess is None else Excess(**excess),
        }
        return ChoiceDrift(**fields)


def compare_choices(
    standing: Pair | None,
    chosen: Pair,
    law_p: LawFit | None,
    *,
    D: float,
    margin: float,
    objection_to_law: str | None,
    objection_to_standing: str | None,
    objective: Objective = PERPLEXITY_OBJECTIVE,
) -> ChoiceDrift:
    """Judge the new choice against the standing one.

    Args:
        standing: pair of the accepted final run, None where there is none.
        chosen: the new choice.
        law_p: the new law P.
        D: size that the new choice was made for.
        margin: relative excess of the objective that is not worth a final run.
        objection_to_law: why law P cannot compare pairs, None if it can.
        objection_to_standing: why the standing adapter cannot stay whatever its loss (its base model is gone, its
            pair is not allowed any more), None if it can.
        objective: what the search minimised; law P is of its quantity.
    """
    if standing is None:
        return ChoiceDrift(None, chosen, "first", "No final run has been accepted yet.", margin)
    if objection_to_standing is not None:
        return ChoiceDrift(standing, chosen, "material", f"{objection_to_standing}.", margin)
    if standing == chosen:
        return ChoiceDrift(standing, chosen, "same pair", f"The standing pair {chosen} was chosen again.", margin)
    if law_p is None or objection_to_law is not None:
        why = objection_to_law or "there is no law P"
        reason = f"Another pair, {chosen}, was chosen, but nothing can say what {standing} loses by staying: {why}."
        return ChoiceDrift(standing, chosen, "unknown", reason, margin)
    excess = excess_of(law_p, standing, chosen, D, objective)
    verdict = _verdict(excess, margin)
    reason = _reason(standing, chosen, excess, margin, verdict, objective)
    return ChoiceDrift(standing, chosen, verdict, reason, margin, excess)


def excess_of(
    law_p: LawFit, standing: Pair, chosen: Pair, D: float, objective: Objective = PERPLEXITY_OBJECTIVE
) -> Excess:
    """Relative excess of `standing` over `chosen` at size D, its interval paired draw by draw."""
    X = {
        "r_me": np.array([standing[0], chosen[0]], dtype=np.float64),
        "r_llm": np.array([standing[1], chosen[1]], dtype=np.float64),
        "D": np.full(2, float(D)),
    }
    loss = law_p.predict(X)
    excess = float(objective.excess(loss[:1], loss[1:])[0])
    return Excess(float(D), float(loss[0]), float(loss[1]), excess, _interval(law_p, X, objective))


def _interval(law_p: LawFit, X: dict[str, np.ndarray], objective: Objective) -> tuple[float, float] | None:
    if len(law_p.draws) < FEWEST_DRAWS:
        return None
    draws = law_p.predict_draws(X)
    low, high = np.percentile(objective.excess(draws[:, 0], draws[:, 1]), INTERVAL)
    return float(low), float(high)


def _verdict(excess: Excess, margin: float) -> Verdict:
    if not excess.excess > margin:
        return "immaterial"
    if excess.interval is None or not excess.interval[0] > margin:
        return "uncertain"
    return "material"


def _reason(standing: Pair, chosen: Pair, excess: Excess, margin: float, verdict: Verdict, objective: Objective) -> str:
    interval = (
        "no interval"
        if excess.interval is None
        else f"95% interval {excess.interval[0]:.2%} to {excess.interval[1]:.2%}"
    )
    measured = (
        f"Under the new laws {standing} has {excess.excess:.2%} more {objective.name} than {chosen} at {excess.D:.0f} "
        f"samples ({interval})"
    )
    meaning = {
        "immaterial": f"which is within the margin of {margin:.2%}",
        "uncertain": f"above the margin of {margin:.2%}, but not surely",
        "material": f"surely above the margin of {margin:.2%}",
    }
    return f"{measured}, {meaning[verdict]}."
