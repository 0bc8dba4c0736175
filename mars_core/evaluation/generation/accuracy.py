"""Accuracy over marked answers: all, those with an image, by task type and by ScienceQA's subgroups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
from scipy.stats import binomtest

from mars_core.evaluation.generation.scienceqa import GROUPS
from mars_core.records import Record


@dataclass(frozen=True)
class Accuracy(Record):
    """Share of right answers among n, with the 95% Wilson interval."""

    accuracy: float
    correct: int
    n: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Accuracies(Record):
    """Accuracies of generated answers.

    overall, with_image, multiple_choice: None where there is no such answer. by_task: by task type. scienceqa: by
    subgroup, without empty ones. methods: how many answers were scored how. too_long: answers left out.
    """

    overall: Accuracy | None = None
    with_image: Accuracy | None = None
    multiple_choice: Accuracy | None = None
    by_task: Mapping[str, Accuracy] = field(default_factory=dict)
    scienceqa: Mapping[str, Accuracy] = field(default_factory=dict)
    methods: Mapping[str, int] = field(default_factory=dict)
    too_long: int = 0


def accuracy_of(correct: pd.Series) -> Accuracy | None:
    """Accuracy of a column of marks, None if it is empty."""
    n, right = len(correct), int(correct.sum())
    if n == 0:
        return None
    bounds = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Accuracy(right / n, right, n, (float(bounds.low), float(bounds.high)))


def summary(rows: pd.DataFrame, n_long: int) -> Accuracies:
    """Accuracies of the rows of `marking.SCHEMA`."""
    by_task = {str(task): accuracy_of(part["correct"]) for task, part in rows.groupby("task", sort=True)}
    of_groups = {name: accuracy_of(rows[[name in groups for groups in rows["groups"]]]["correct"]) for name in GROUPS}
    return Accuracies(
        accuracy_of(rows["correct"]),
        accuracy_of(rows[rows["has_image"]]["correct"]),
        accuracy_of(rows[rows["method"] == "letter"]["correct"]),
        _known(by_task),
        _known(of_groups),
        {str(name): int(count) for name, count in rows["method"].value_counts().items()},
        n_long,
    )


def _known(found: Mapping[str, Accuracy | None]) -> dict[str, Accuracy]:
    return {name: accuracy for name, accuracy in found.items() if accuracy is not None}
