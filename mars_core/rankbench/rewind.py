"""Rewind time: when a module of a run had learned half of what it learned. A signal that is the module's own.

Put the module's adapters at step s into the run's final model, all others final: the loss rises by rise(s). The rewind
time is the step at which rise(s) is half of rise(0), where the module has no adapters yet. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def rewind_time(steps: Sequence[int], losses: Sequence[float], final: float) -> float:
    """Step at which the rise is half of that at step 0, linear in log(1 + step) between snapshots.

    Args:
        steps: of the snapshots, increasing, the first 0.
        losses: with the module's snapshot of each step in the final model, nats.
        final: loss of the final model.

    Returns:
        The first such step; not a number where the module's adapters lower the loss by nothing.
    """
    rises = [loss - final for loss in losses]
    if steps[0] != 0 or not rises[0] > 0:
        return math.nan
    half = rises[0] / 2
    for (s0, r0), (s1, r1) in pairwise(zip(steps, rises, strict=True)):
        if r0 > half >= r1:
            share = (r0 - half) / (r0 - r1)
            return math.expm1(math.log1p(s0) + share * (math.log1p(s1) - math.log1p(s0)))
    return math.nan
