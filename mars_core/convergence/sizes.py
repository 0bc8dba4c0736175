"""Which checkpoints serve as effective dataset sizes D."""

from collections.abc import Iterable

import numpy as np

from mars_core.convergence.curve import Curve

CHECKPOINTS_BEFORE = 5
STEPS_BEFORE = 4.0


def step_of_sizes(curves: Iterable[Curve]) -> dict[int, float]:
    """S_D of every size D that a convergence time can be asked for, ascending.

    A checkpoint serves as a size if it is at least the fifth of its run and its step is at least four times
    the first one's: a time is then seen even where a module converges four times sooner than the slowest.
    Within an epoch every such checkpoint counts; once the dataset is used up D stays, and the first
    checkpoint that reached it gives S_D. Where runs disagree on S_D the earliest is taken. A run that was made for one
    size serves for that one alone, reached at its last step.
    """
    found: dict[int, float] = {}
    for curve in curves:
        for size, step in _usable_sizes(curve):
            found[size] = min(step, found.get(size, step))
    return dict(sorted(found.items()))


def _usable_sizes(curve: Curve) -> list[tuple[int, float]]:
    return [
        (int(curve.sizes[index]), float(curve.steps[index]))
        for index in _candidates(curve)
        if index + 1 >= CHECKPOINTS_BEFORE and curve.steps[index] >= STEPS_BEFORE * curve.steps[0]
    ]


def _candidates(curve: Curve) -> list[int]:
    """Indices of the checkpoints that reach a size."""
    if curve.one_size:
        return [len(curve.steps) - 1]
    _, first_index = np.unique(curve.sizes, return_index=True)
    return [int(index) for index in first_index]
