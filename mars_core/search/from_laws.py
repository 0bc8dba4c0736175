"""From fitted laws, as they are stored, to the choice with its stability."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import pandas as pd

from mars_core.fitting import LawFit
from mars_core.metrics.schema import PERPLEXITY
from mars_core.search.choice import Choice
from mars_core.search.objective import Objective, objective_named, points_of
from mars_core.search.stability import Stability, stability_over_draws, stability_over_seeds

STABILITY_DRAWS = 100
BY_LAWS = ("balanced candidates", "law P over all pairs")
LAW_NAMES = {"performance": "law_p", "me": "law_c_me", "llm": "law_c_llm"}


class ChoosePair(Protocol):
    """`choose_pair` with everything bound that depends on neither laws nor measurements."""

    def __call__(
        self,
        law_p: LawFit | None,
        law_c_me: LawFit | None,
        law_c_llm: LawFit | None,
        *,
        observed: pd.DataFrame,
        missing: Mapping[str, str],
    ) -> Choice:
        """Choose from three fits."""


def choose_from_laws(
    laws: Mapping[str, Any],
    metrics: pd.DataFrame,
    choose: ChoosePair,
    refit: Callable[[pd.DataFrame], Mapping[str, Any]],
) -> Choice:
    """Choose from stored laws; how stable the choice is over seeds, else over bootstrap draws, goes with it.

    refit: laws of a part of the metrics (one seed's runs), in the form of `laws`.
    """
    observed = observed_losses(metrics, objective_of(laws))
    choice = choose(*fits_of(laws), observed=observed, missing=missing_of(laws))
    stability = _stability(laws, metrics, choose, refit, choice)
    evidence = {**choice.diagnostics["evidence"], "stability": stability.to_json() if stability else None}
    return replace(choice, diagnostics={**choice.diagnostics, "evidence": evidence})


def _stability(
    laws: Mapping[str, Any],
    metrics: pd.DataFrame,
    choose: ChoosePair,
    refit: Callable[[pd.DataFrame], Mapping[str, Any]],
    choice: Choice,
) -> Stability | None:
    """How often each pair is chosen again; None where one seed's measurements decided, as they have no draws."""
    if metrics["seed"].nunique() > 1:

        def choose_again(part: pd.DataFrame) -> Choice:
            again = refit(part)
            observed = observed_losses(part, objective_of(again))
            return choose(*fits_of(again), observed=observed, missing=missing_of(again))

        return stability_over_seeds(metrics, choose_again)
    fits = fits_of(laws)
    if choice.decided_by not in BY_LAWS:
        return None
    observed, missing = observed_losses(metrics, objective_of(laws)), missing_of(laws)
    return stability_over_draws(
        *fits, lambda *drawn: choose(*drawn, observed=observed, missing=missing), n_draws=STABILITY_DRAWS
    )


def fits_of(laws: Mapping[str, Any]) -> tuple[LawFit | None, LawFit | None, LawFit | None]:
    """Law P and law C of the vision encoder and the LLM; None where there is no fit."""
    convergence = laws["convergence"]
    return _fit(laws["performance"]), _fit(convergence["me"]), _fit(convergence["llm"])


def missing_of(laws: Mapping[str, Any]) -> dict[str, str]:
    """Why a fit is missing, under the names that `choose_pair` takes."""
    return {LAW_NAMES[name]: cause for name, cause in laws["causes"].items() if cause}


def objective_of(laws: Mapping[str, Any]) -> Objective:
    """What stored laws are of; those of earlier versions are of perplexity."""
    return objective_named(str(laws.get("objective") or PERPLEXITY))


def observed_losses(metrics: pd.DataFrame, objective: Objective) -> pd.DataFrame:
    """The objective's quantity of each run at each size."""
    return points_of(metrics, objective)


def _fit(stored: Any) -> LawFit | None:
    return LawFit.from_json(stored) if stored else None
