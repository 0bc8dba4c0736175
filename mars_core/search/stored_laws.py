"""Fitted laws as a study stores them, read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mars_core.fitting import LawFit
from mars_core.metrics.schema import PERPLEXITY
from mars_core.search.objective import Objective, objective_named

NAMES = {"performance": "law P", "me": "law C of the vision encoder", "llm": "law C of the LLM"}


def fits_of(laws: Mapping[str, Any]) -> tuple[LawFit | None, LawFit | None, LawFit | None]:
    """Law P and law C of the vision encoder and the LLM; None where there is no fit."""
    convergence = laws["convergence"]
    return _fit(laws["performance"]), _fit(convergence["me"]), _fit(convergence["llm"])


def causes_of(laws: Mapping[str, Any]) -> tuple[str, ...]:
    """Why fits are missing, one sentence each."""
    return tuple(f"{NAMES[name]} could not be fitted: {cause}" for name, cause in laws["causes"].items() if cause)


def objective_of(laws: Mapping[str, Any]) -> Objective:
    """What stored laws are of; those of earlier versions are of perplexity."""
    return objective_named(str(laws.get("objective") or PERPLEXITY))


def _fit(stored: Any) -> LawFit | None:
    return LawFit.from_json(stored) if stored else None
