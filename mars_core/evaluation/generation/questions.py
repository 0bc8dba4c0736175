"""What is scored by generation: every short answer of a set, each with the conversation before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mars_core.data.lengths import TokenCounter
from mars_core.data.records import AUDIO_MARKER, IMAGE_MARKER, Sample
from mars_core.evaluation.choices import offered_letters


@dataclass(frozen=True, slots=True)
class Question:
    """One answer to be generated.

    sample: the conversation up to and with that answer. number: of the answer in it, from 0. text: the user's last
    turn. letters: the options it offers where the answer is one of them, else empty. prompt_tokens: before the answer.
    """

    sample: Sample
    number: int
    text: str
    expected: str
    letters: str
    prompt_tokens: int

    @property
    def method(self) -> str:
        """How it is scored: `letter` for multiple choice, `text` for exact match after normalisation."""
        return "letter" if self.letters else "text"


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions by rising prompt length, and how many answers were too long to be asked for."""

    questions: tuple[Question, ...]
    n_long: int


def short_questions(
    samples: Iterable[Sample], processor: Any, longest: int, *, progress: Callable[[int], Any] | None = None
) -> QuestionSet:
    """The answers of at most `longest` tokens (their end of turn included), those of equal prompt length together.

    progress: called with the number of samples measured.
    """
    counter = TokenCounter(processor)
    found: list[Question] = []
    n_long = 0
    for done, sample in enumerate(samples, start=1):
        for number, cut in enumerate(_up_to_each_answer(sample)):
            prompt, answer = counter.last_answer(cut)
            if answer > longest:
                n_long += 1
            else:
                found.append(_question(cut, number, prompt))
        if progress is not None:
            progress(done)
    return QuestionSet(tuple(sorted(found, key=lambda question: question.prompt_tokens)), n_long)


def _up_to_each_answer(sample: Sample) -> Iterator[Sample]:
    turns = tuple(sample.turns)
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
    for place in places:
        if place == len(turns) - 1:
            yield sample
        else:
            before = turns[: place + 1]
            shown, heard = (sum(turn.text.count(one) for turn in before) for one in (IMAGE_MARKER, AUDIO_MARKER))
            yield replace(sample, turns=before, images=sample.images[:shown], sounds=sample.sounds[:heard])


def _question(cut: Sample, number: int, prompt_tokens: int) -> Question:
    asked, answer = tuple(cut.turns)[-2:]
    letters = offered_letters(asked.text)
    return Question(
        cut, number, asked.text, answer.text, letters if answer.text in tuple(letters) else "", prompt_tokens
    )


def batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    """The questions in batches of at most `size` with equally long prompts, so that none is ever padded."""
    start = 0
    while start < len(questions):
        stop = start + 1
        length = questions[start].prompt_tokens
        while stop < min(start + size, len(questions)) and questions[stop].prompt_tokens == length:
            stop += 1
        yield questions[start:stop]
        start = stop
