"""Share of answer tokens that are not the most likely next token."""

from __future__ import annotations

from collections.abc import Sequence

from mars_core.evaluation.objectives.record import AnswerRecord


def token_error(answers: Sequence[AnswerRecord]) -> float:
    """Wrong answer tokens over all answer tokens, the end of turn included."""
    wrong = sum(len(answer.token_right) - sum(answer.token_right) for answer in answers)
    return wrong / sum(len(answer.token_right) for answer in answers)
