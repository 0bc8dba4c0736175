"""What a metric sees of one validation answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class AnswerRecord:
    """One answer under teacher forcing: every token predicted from the true tokens before it.

    sample_id, number: which answer of which sample. task: its task type. token_losses: nats, and token_right: whether
    the token was the most likely one; both per answer token, end of turn included. answer: the true text. letters: the
    options that the question offers, empty unless the answer is one of them. letter: the one of them that the model
    finds most likely at the answer's first token, None without letters. predicted_ids: the most likely tokens.
    """

    sample_id: str
    number: int
    task: str
    token_losses: tuple[float, ...]
    token_right: tuple[bool, ...]
    answer: str
    letters: str
    letter: str | None
    predicted_ids: tuple[int, ...]
    decode: Callable[[Sequence[int]], str] = field(repr=False, compare=False)

    @property
    def predicted(self) -> str:
        """Text of the most likely tokens, without special ones; the greedy answer where all of them are right."""
        return self.decode(self.predicted_ids).strip()


Metric: TypeAlias = Callable[[Sequence[AnswerRecord]], float]
"""A metric of a set of answers: lower is better, 0 is perfect, the rest positive. Their order must not matter."""
