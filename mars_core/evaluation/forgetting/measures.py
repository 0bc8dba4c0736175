"""E, F and O of a fine-tuned model (Keeping Yourself is Important in Downstream Tuning MLLM, arXiv 2503.04543).

| symbol | meaning |
|---|---|
| E | mean over target tasks of score(tuned) - score(base): what was gained; larger is better |
| F | mean over upstream tasks of score(base) - score(tuned): what was forgotten; smaller is better |
| O | mean of the average target and the average upstream score after tuning; larger is better |

All in points. A task's score is a weighted mean over its samples. Both models answer the same samples, so the bootstrap
draws samples, not answers, and takes both models' scores of a drawn sample together: what makes a sample hard is hard
for both, and a difference is far better known than its two scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mars_core.records import Float, Record

Floats = NDArray[np.float64]
Kind = Literal["target", "upstream"]
N_DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True, eq=False)
class TaskScores:
    """One task answered by the base model and by the tuned one.

    base, tuned: score of each sample, points; weights: what a sample counts, such as its number of answers. All of
    shape (n_samples,), in one order.
    """

    name: str
    kind: Kind
    metric: str
    base: Floats
    tuned: Floats
    weights: Floats

    def __post_init__(self) -> None:
        shapes = {np.shape(self.base), np.shape(self.tuned), np.shape(self.weights)}
        if len(shapes) != 1 or len(self.base) == 0:
            raise ValueError(f"task {self.name}: base, tuned and weights need one shape of at least 1, got {shapes}")
        if not (np.all(self.weights > 0) and np.all(np.isfinite(self.base)) and np.all(np.isfinite(self.tuned))):
            raise ValueError(f"task {self.name}: scores must be finite and weights positive")


@dataclass(frozen=True)
class Estimate(Record):
    """A value with its interval over samples, in points."""

    value: Float
    low: Float
    high: Float


@dataclass(frozen=True)
class TaskResult(Record):
    """One task: scores of both models and the change from base to tuned, in points."""

    name: str
    kind: str
    metric: str
    n_samples: int
    base: Estimate
    tuned: Estimate
    change: Estimate


@dataclass(frozen=True)
class Forgetting(Record):
    """A tuned model beside its base. E is None without target tasks, F without upstream tasks, O without either."""

    E: Estimate | None
    F: Estimate | None
    O: Estimate | None  # noqa: E741 - the paper's symbol
    tasks: tuple[TaskResult, ...]
    level: Float


def measure(tasks: Sequence[TaskScores], *, n_draws: int = N_DRAWS, level: float = LEVEL, seed: int = 0) -> Forgetting:
    """E, F and O with their bootstrap intervals, overall and per task.

    Args:
        tasks: at least one; names must differ.
        n_draws: of the bootstrap.
        level: coverage of the intervals.
        seed: of the bootstrap. Each task has draws of its own, the same for every tuned model: models are compared on
            the same resamples.

    Raises:
        ValueError: there is no task, or a name stands twice.
    """
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ValueError(f"give at least one task, each with a name of its own, got {names}")
    drawn = {task.name: _drawn_means(task, n_draws, seed, number) for number, task in enumerate(tasks)}
    exact = {task.name: (_mean(task.base, task.weights), _mean(task.tuned, task.weights)) for task in tasks}
    targets = [task.name for task in tasks if task.kind == "target"]
    upstream = [task.name for task in tasks if task.kind == "upstream"]

    def estimate(value: float, draws: Floats) -> Estimate:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return Estimate(float(value), float(low), float(high))

    def overall(of: Sequence[str], sign: float) -> Estimate | None:
        if not of:
            return None
        value = np.mean([sign * (exact[name][1] - exact[name][0]) for name in of])
        return estimate(float(value), np.mean([sign * (drawn[name][1] - drawn[name][0]) for name in of], axis=0))

    return Forgetting(
        E=overall(targets, 1.0),
        F=overall(upstream, -1.0),
        O=_average(exact, drawn, targets, upstream, level),
        tasks=tuple(
            TaskResult(
                name=task.name,
                kind=task.kind,
                metric=task.metric,
                n_samples=len(task.base),
                base=estimate(exact[task.name][0], drawn[task.name][0]),
                tuned=estimate(exact[task.name][1], drawn[task.name][1]),
                change=estimate(exact[task.name][1] - exact[task.name][0], drawn[task.name][1] - drawn[task.name][0]),
            )
            for task in tasks
        ),
        level=level,
    )


def _average(
    exact: Mapping[str, tuple[float, float]],
    drawn: Mapping[str, tuple[Floats, Floats]],
    targets: Sequence[str],
    upstream: Sequence[str],
    level: float,
) -> Estimate | None:
    if not (targets and upstream):
        return None
    value = 0.5 * sum(float(np.mean([exact[name][1] for name in of])) for of in (targets, upstream))
    halves = [np.mean([drawn[name][1] for name in of], axis=0) for of in (targets, upstream)]
    draws = 0.5 * (halves[0] + halves[1])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def _drawn_means(task: TaskScores, n_draws: int, seed: int, number: int) -> tuple[Floats, Floats]:
    """Scores of base and tuned over resampled samples, (n_draws,) each, both from the same resamples."""
    n = len(task.base)
    counts = np.random.default_rng([seed, number]).multinomial(n, np.full(n, 1.0 / n), size=n_draws)
    weighted = counts * task.weights
    total = weighted.sum(axis=1)
    return weighted @ task.base / total, weighted @ task.tuned / total


def _mean(values: Floats, weights: Floats) -> float:
    return float(values @ weights / weights.sum())
