"""Share of multiple-choice questions whose most likely option is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from mars_core.evaluation.objectives.record import AnswerRecord


def letter_error(answers: Sequence[AnswerRecord]) -> float:
    """Wrong letters over all multiple-choice answers; the most likely of the offered letters is the model's.

    Raises:
        ValueError: no question is multiple choice.
    """
    choices = [answer for answer in answers if answer.letter is not None]
    if not choices:
        raise ValueError(
            "letter_error needs multiple-choice questions: none lists options such as `A. yes` and has one of their "
            "letters, as a token of its own, for its answer; use exact_match_error"
        )
    return sum(answer.letter != answer.answer for answer in choices) / len(choices)
