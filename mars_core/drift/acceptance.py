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
class Acceptance(Record):
    """Whether a final run was accepted, why, and by which scores."""

    accepted: bool
    reason: str
    score: ValidationScore | None = None


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
