"""Share of answers that greedy decoding would not give token by token.

Where every token of an answer is the most likely one given the true tokens before it, greedy decoding writes exactly
that answer; where one is not, it writes another. So one forward pass tells (docs/decisions/0004).
"""

from __future__ import annotations

from collections.abc import Sequence

from mars_core.evaluation.objectives.record import AnswerRecord


def exact_match_error(answers: Sequence[AnswerRecord]) -> float:
    """Answers with at least one wrong token over all answers."""
    return sum(not all(answer.token_right) for answer in answers) / len(answers)
