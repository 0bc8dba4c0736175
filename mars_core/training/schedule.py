"""Checkpoints of a calibration run."""

from __future__ import annotations


def geometric_steps(first: int, last: int, *, per_doubling: int = 2) -> tuple[int, ...]:
    """Steps first .. last spaced evenly in log, `per_doubling` to a doubling, powers of two times `first` included.

    Raises:
        ValueError: `first` is below 1 or above `last`.
    """
    if not 1 <= first <= last:
        raise ValueError(
            f"checkpoint steps must satisfy 1 <= first <= last, got first={first} and last={last}: "
            "raise calibration.samples or lower calibration.smallest_size"
        )
    steps, index = {last}, 0
    while (step := round(first * 2 ** (index / per_doubling))) <= last:
        steps.add(step)
        index += 1
    return tuple(sorted(steps))
