"""Whether a finished final run takes the champion's place: only where it is better on validation."""

from __future__ import annotations

from dataclasses import dataclass

from mars_core.records import Record


@dataclass(frozen=True)
class ValidationScore(Record):
    """Validation losses (nats per answer token) of two adapters on the same samples.

    `samples`: how many samples both were scored on, of `of` in the validation set.
    """

    new_loss: float
    standing_loss: float
    samples: int
    of: int


@dataclass(frozen=True)
class Forgotten(Record):
    """Points lost on the upstream tasks (F) with their 95% interval, and how many were allowed.

    asked: hash of the upstream samples, empty in records made before it was kept.
    """

    points: float
    low: float
    high: float
    limit: float
    asked: str = ""


@dataclass(frozen=True)
class Acceptance(Record):
    """Whether a final run was accepted, why, and by which scores.

    forgotten: what it forgot, where a limit was set.
    """

    accepted: bool
    reason: str
    score: ValidationScore | None = None
    forgotten: Forgotten | None = None


def judge_forgetting(forgotten: Forgotten) -> Acceptance | None:
    """Refuse a final run that forgot more than is allowed; None where it did not."""
    if forgotten.points <= forgotten.limit:
        return None
    reason = (
        f"it forgets {forgotten.points:.1f} points ({forgotten.low:.1f} to {forgotten.high:.1f}) of what the base "
        f"model could do on the upstream tasks, more than search.max_forgetting = {forgotten.limit:g}"
    )
    return Acceptance(False, reason, forgotten=forgotten)


def judge_final(score: ValidationScore) -> Acceptance:
    """Accept a final run whose validation loss is lower than the champion's on the same samples."""
    accepted = score.new_loss < score.standing_loss
    where = (
        f"the {score.of} validation samples"
        if score.samples == score.of
        else f"the {score.samples} of {score.of} validation samples that the champion's adapter was not trained on"
    )
    relation = "lower than" if accepted else "not lower than"
    reason = f"validation loss {score.new_loss:.4f}, {relation} the champion's {score.standing_loss:.4f} on {where}"
    return Acceptance(accepted, reason, score)
