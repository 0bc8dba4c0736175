"""Accuracy over marked answers: all, those with an image, by task type and by ScienceQA's subgroups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from mars_core.evaluation.generation.scienceqa import GROUPS


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers among n, with the 95% Wilson interval."""

    accuracy: float
    correct: int
    n: int
    interval: tuple[float, float]


def accuracy_of(correct: pd.Series) -> Accuracy | None:
    """Accuracy of a column of marks, None if it is empty."""
    n, right = len(correct), int(correct.sum())
    if n == 0:
        return None
    bounds = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Accuracy(right / n, right, n, (float(bounds.low), float(bounds.high)))


def summary(rows: pd.DataFrame, n_long: int) -> dict[str, Any]:
    """Accuracies of the rows of `marking.SCHEMA` as JSON values.

    Keys: `overall`, `with_image` and `multiple_choice` (None where there is none), `by_task`, `scienceqa` (subgroup ->
    accuracy, without empty ones), `methods` (how many answers were scored how), `too_long` (answers left out).
    """
    by_task = {str(task): accuracy_of(part["correct"]) for task, part in rows.groupby("task", sort=True)}
    of_groups = {name: accuracy_of(rows[[name in groups for groups in rows["groups"]]]["correct"]) for name in GROUPS}
    return {
        "overall": _json(accuracy_of(rows["correct"])),
        "with_image": _json(accuracy_of(rows[rows["has_image"]]["correct"])),
        "multiple_choice": _json(accuracy_of(rows[rows["method"] == "letter"]["correct"])),
        "by_task": _all_json(by_task),
        "scienceqa": _all_json(of_groups),
        "methods": {str(name): int(count) for name, count in rows["method"].value_counts().items()},
        "too_long": n_long,
    }


def _json(found: Accuracy | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found) | {"interval": list(found.interval)}


def _all_json(found: Mapping[str, Accuracy | None]) -> dict[str, Any]:
    return {name: _json(accuracy) for name, accuracy in found.items() if accuracy is not None}
