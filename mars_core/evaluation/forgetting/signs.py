"""The review's failure signs of a fine-tune (arXiv 2503.04543): each is one rule, stated with its threshold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mars_core.evaluation.forgetting.measures import Forgetting
from mars_core.records import Record

NOTABLE_DROP, SEVERE_DROP = 0.20, 0.30  # share of an upstream task's score before tuning
ROSE, LOST_AGAIN = 1.5, 0.5  # times the lowest loss, and share of the way down that was lost again: it has diverged
PARTS = 10  # of a training, whose mean losses are compared: the loss of a single batch is noise


@dataclass(frozen=True)
class Sign(Record):
    """One sign of failure: a code, a sentence, and `warning` or `error`."""

    code: str
    message: str
    severity: str


def failure_signs(found: Forgetting, losses: Sequence[float] = ()) -> tuple[Sign, ...]:
    """What speaks against an adapter.

    Args:
        found: its scores beside the base model's.
        losses: training losses in order, nats per answer token; empty where they are not known.
    """
    return (*_diverged(losses), *_forgot(found), *_learned_little(found))


def _diverged(losses: Sequence[float]) -> list[Sign]:
    """Not finite, or at the end far above the lowest: falling first and rising then is as much a divergence."""
    if not losses:
        return []
    if not all(math.isfinite(loss) for loss in losses):
        message = "the training loss was not finite: lower the learning rate, or train fewer weights"
        return [Sign("diverged", message, "error")]
    parts = _means(losses)
    lowest, end = min(parts), parts[-1]
    if end > ROSE * lowest and end - lowest > LOST_AGAIN * (parts[0] - lowest):
        message = f"the training loss rose from {lowest:.3g} to {end:.3g}: lower the learning rate"
        return [Sign("diverged", message, "error")]
    return []


def _means(losses: Sequence[float]) -> list[float]:
    """Mean loss of each part of a training, in order."""
    count = min(PARTS, len(losses))
    starts = [number * len(losses) // count for number in range(count + 1)]
    return [math.fsum(losses[start:end]) / (end - start) for start, end in itertools.pairwise(starts)]


def _forgot(found: Forgetting) -> list[Sign]:
    signs = []
    for task in found.tasks:
        if task.kind != "upstream" or task.base.value <= 0 or task.change.high >= 0:
            continue  # within the noise of its samples nothing was lost
        drop = -task.change.value / task.base.value
        if drop > NOTABLE_DROP:
            message = (
                f"{task.name} fell by {drop:.0%}, from {task.base.value:.1f} to {task.tuned.value:.1f} points "
                f"({NOTABLE_DROP:.0%} to {SEVERE_DROP:.0%} is a sign of catastrophic forgetting): train fewer "
                "layers or a lower rank, lower the learning rate, or mix such data into the training set"
            )
            signs.append(Sign("forgot", message, "error" if drop > SEVERE_DROP else "warning"))
    return signs


def _learned_little(found: Forgetting) -> list[Sign]:
    if found.E is None or found.E.low > 0:
        return []
    if found.E.high < 0:
        message = (
            f"the target tasks lost {-found.E.value:.1f} points ({-found.E.high:.1f} to {-found.E.low:.1f}): the base "
            "model answers them better; lower the learning rate, and look whether the data have the answers it is asked"
        )
        return [Sign("target_got_worse", message, "error")]
    message = (
        f"the target tasks gained {found.E.value:+.1f} points ({found.E.low:+.1f} to {found.E.high:+.1f}), which is "
        "not told from the base model's own score: train longer, with a higher learning rate or rank, or more layers"
    )
    return [Sign("near_zero_shot", message, "warning")]
