"""Ranges that the figures' axes span."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_core.report.study_results import StudyResults

Floats = NDArray[np.float64]


def log_span(values: Any, pad: float = 0.06) -> tuple[float, float]:
    """Smallest and largest finite positive value, widened by a share of their distance in logarithm."""
    array = np.asarray(values, dtype=np.float64).ravel()
    usable = array[np.isfinite(array) & (array > 0)]
    if usable.size == 0:
        return 1.0, 10.0
    low, high = np.log(usable.min()), np.log(usable.max())
    room = max(pad * (high - low), 0.02)
    return float(np.exp(low - room)), float(np.exp(high + room))


def sizes_to(results: StudyResults, count: int = 48) -> Floats:
    """Sizes from the smallest measured one to D_target (or the largest measured), evenly spread in logarithm."""
    last = max(results.sizes[-1], results.D_target or 0)
    return np.geomspace(max(results.sizes[0], 1), last, count)
