"""The caller's values read into the project's own types, once, for every table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mars_core.fitting import LawFit
from mars_core.metrics.schema import PERPLEXITY
from mars_core.ranks import Pair
from mars_core.report.data import ReportData
from mars_core.search import Candidate, Choice
from mars_core.search.objective import Objective, objective_named
from mars_core.search.points import read_points
from mars_core.search.run_ends import run_ends

PEAKS = ("peak_lr_me", "peak_lr_llm")
MODULES = ("me", "llm")
MODULE_NAMES = {"me": "Vision encoder (ME)", "llm": "LLM"}

RUN_COLUMNS = ["run_id", "r_me", "r_llm", "seed", "step", "unique_samples", "train_loss", "val_loss", "val_perplexity"]
TIME_COLUMNS = ["module", "r", "D", "S_D", "steps", "censored"]


@dataclass(frozen=True, eq=False)
class StudyResults:
    """Results as the figures read them.

    Attributes:
        metrics: checkpoint rows, sorted by run and step; may be empty. Where runs differ in their learning rate, of
            each pair those of the run nearest its best rate.
        all_runs: checkpoint rows at every rate.
        performance: law P, None where it could not be fitted.
        convergence: law C by module (`me`, `llm`), without those that could not be fitted.
        causes: why a law is missing, by `performance`, `me`, `llm`.
        times: convergence times with columns `TIME_COLUMNS`; may be empty.
        reference: pair that holds the other module's rank in law C's slices.
        D_target: dataset size chosen for, unique samples.
        choice: the search's result, None before the search.
        signal: what gave the times to a module: `slice`, `isolated` or `trajectory`.
        level: loss level that counted as converged: `common` or `own`.
        objective: what law P is of and the search minimised.
    """

    metrics: pd.DataFrame
    all_runs: pd.DataFrame
    performance: LawFit | None
    convergence: Mapping[str, LawFit]
    causes: Mapping[str, str]
    times: pd.DataFrame
    reference: Pair | None
    D_target: int | None
    choice: Choice | None
    signal: str
    level: str
    objective: Objective

    @property
    def ranks_me(self) -> list[int]:
        """Calibrated vision ranks, increasing."""
        return sorted({int(rank) for rank in self.metrics["r_me"]})

    @property
    def ranks_llm(self) -> list[int]:
        """Calibrated LLM ranks, increasing."""
        return sorted({int(rank) for rank in self.metrics["r_llm"]})

    @property
    def balanced_pairs(self) -> list[Pair]:
        """Compared pairs next to the balance curve."""
        return [] if self.choice is None else [c.pair for c in self.choice.candidates if is_balanced(c, self.choice)]

    @property
    def grid_ranks_me(self) -> list[int]:
        """Vision ranks to draw pairs at: calibrated or looked at by the search, positive, increasing."""
        found = set(self.ranks_me)
        if self.choice is not None:
            found |= {self.choice.pair[0], *(candidate.pair[0] for candidate in self.choice.candidates)}
            found |= {dropped.r_me for dropped in self.choice.dropped if dropped.r_me is not None}
        return sorted(rank for rank in found if rank > 0)

    @property
    def grid_ranks_llm(self) -> list[int]:
        """LLM ranks to draw pairs at: calibrated or looked at by the search, positive, increasing."""
        found = set(self.ranks_llm)
        if self.choice is not None:
            found |= {self.choice.pair[1], *(candidate.pair[1] for candidate in self.choice.candidates)}
            found |= {point.r_llm for point in self.choice.balance_curve}
        return sorted(rank for rank in found if rank > 0)

    @property
    def sizes(self) -> list[int]:
        """Effective dataset sizes with a checkpoint, increasing."""
        return sorted({int(size) for size in self.metrics["unique_samples"]})

    @property
    def seeds(self) -> list[int]:
        """Seeds of the calibration runs."""
        return sorted({int(seed) for seed in self.metrics["seed"]})

    @property
    def n_runs(self) -> int:
        """Number of calibration runs, at all learning rates."""
        return int(self.all_runs["run_id"].nunique())


def read_results(data: ReportData) -> StudyResults:
    """Read laws, choice and metrics.

    Raises:
        ValueError: a stored law, choice or table is not what its writer makes.
    """
    laws = data.laws
    convergence = laws.get("convergence") or {}
    D_target = laws.get("D_target")
    metrics, objective = _sorted_metrics(data.metrics), objective_named(str(laws.get("objective") or PERPLEXITY))
    return StudyResults(
        metrics=_at_own_rate(metrics, objective),
        all_runs=metrics,
        performance=_fit(laws.get("performance")),
        convergence={module: LawFit.from_json(convergence[module]) for module in MODULES if convergence.get(module)},
        causes={name: str(cause) for name, cause in (laws.get("causes") or {}).items() if cause},
        times=_times(laws.get("convergence_times")),
        reference=_pair(laws.get("reference")),
        D_target=None if D_target is None else int(D_target),
        choice=None if data.choice is None else Choice.from_json(data.choice),
        signal=str(laws.get("signal") or "slice"),
        level=str(laws.get("level") or "common"),
        objective=objective,
    )


def is_balanced(candidate: Candidate, choice: Choice) -> bool:
    """Whether a candidate lies next to the balance curve; earlier versions compared no other pairs where it decided."""
    return candidate.source.balanced or choice.decided_by == "balanced candidates"


def last_per_size(metrics: pd.DataFrame) -> pd.DataFrame:
    """The last checkpoint of each run at each effective dataset size that the run is read at."""
    return run_ends(metrics).groupby(["run_id", "unique_samples"], as_index=False).tail(1)


def mean_per_pair(rows: pd.DataFrame) -> dict[Pair, float]:
    """Perplexity of each pair at one size: exp of the mean validation loss over seeds, at the learning rate where that
    is lowest."""
    rates = [name for name in PEAKS if name in rows.columns]
    means = rows.groupby(["r_me", "r_llm", *rates], dropna=False)["val_loss"].mean()
    return {_as_pair(key): float(np.exp(loss)) for key, loss in means.groupby(level=[0, 1]).min().items()}


def _as_pair(key: Any) -> Pair:
    return int(key[0]), int(key[1])


def _sorted_metrics(metrics: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in RUN_COLUMNS if name not in metrics.columns]
    if missing:
        raise ValueError(f"the checkpoint metrics lack the columns {missing}: give rows of mars_core.metrics.schema")
    return metrics.sort_values(["r_llm", "r_me", "seed", "run_id", "step"], ignore_index=True)


def _at_own_rate(metrics: pd.DataFrame, objective: Objective) -> pd.DataFrame:
    """Of each pair the runs nearest its best learning rate; all rows where the runs have one rate."""
    if metrics.empty or not any(metrics.get(name, metrics["step"] * 0).nunique() > 1 for name in PEAKS):
        return metrics
    points = read_points(metrics, objective)
    if points.rates is None:
        return metrics
    return metrics[metrics["run_id"].astype(str).isin(points.nearest)].reset_index(drop=True)


def _fit(stored: Any) -> LawFit | None:
    return LawFit.from_json(stored) if stored else None


def _times(rows: Sequence[Mapping[str, Any]] | None) -> pd.DataFrame:
    table = pd.DataFrame(list(rows or ()))
    if table.empty:
        return pd.DataFrame(columns=TIME_COLUMNS)
    missing = [name for name in TIME_COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"the convergence times lack {missing}: give rows of mars_core.convergence.convergence_times")
    return table


def _pair(value: Any) -> Pair | None:
    return None if value is None else (int(value[0]), int(value[1]))
