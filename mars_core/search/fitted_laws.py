"""The fitted laws of a calibration as one record: what a study stores and what every choice reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mars_core.fitting import LawFit
from mars_core.metrics.schema import PERPLEXITY
from mars_core.ranks import Pair
from mars_core.records import Record
from mars_core.search.objective import Objective, objective_named

MODULES = ("me", "llm")
NAMES = {"performance": "law P", "me": "law C of the vision encoder", "llm": "law C of the LLM"}


@dataclass(frozen=True, eq=False)
class FittedLaws(Record):
    """Law P and law C of both modules.

    Attributes:
        performance: law P, None where it could not be fitted.
        convergence: law C by module (`me`, `llm`), None where it could not be fitted.
        causes: why a fit is missing, by `performance`, `me` and `llm`; None where it is not.
        convergence_times: rows that law C was fitted to, as `mars_core.convergence.convergence_times` gives them.
        reference: pair at which law C's slices cross.
        signal: how a convergence time was given to a module.
        level: which loss counts as converged.
        objective: name of what law P predicts.
        objective_notes: what a reader should know of the points.
        notes: the same of the calibration and the target.
        D_target: size that ranks are chosen for, unique samples, where it is known.
    """

    performance: LawFit | None
    convergence: Mapping[str, LawFit | None]
    causes: Mapping[str, str | None]
    convergence_times: tuple[Mapping[str, Any], ...] = ()
    reference: Pair | None = None
    signal: str = "slice"
    level: str = "common"
    objective: str = PERPLEXITY
    objective_notes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    D_target: int | None = None

    @property
    def by_name(self) -> dict[str, LawFit | None]:
        """The fits by `performance`, `me` and `llm`."""
        return {"performance": self.performance, **{module: self.convergence.get(module) for module in MODULES}}

    @property
    def missing(self) -> tuple[str, ...]:
        """Why fits are missing, one sentence each."""
        return tuple(f"{NAMES[name]} could not be fitted: {cause}" for name, cause in self.causes.items() if cause)

    @property
    def minimises(self) -> Objective:
        """The objective itself."""
        return objective_named(self.objective)
