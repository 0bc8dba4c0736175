"""A metric bound to the validation set it is taken on: collects what evaluation sees, and gives the metric's value.

Plain and packed evaluation feed the same collector, so both give the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mars_core.data.records import Sample
from mars_core.evaluation.answer_loss import IGNORE, answer_numbers
from mars_core.evaluation.choices import offered_letters
from mars_core.evaluation.objectives.record import AnswerRecord
from mars_core.evaluation.objectives.registry import NamedMetric


@dataclass(frozen=True)
class KnownAnswer:
    """What is known of an answer before any model is: its place, text, and the options offered for it."""

    sample_id: str
    number: int
    task: str
    answer: str
    letters: str


@dataclass(frozen=True, eq=False)
class Measurement:
    """A metric over a fixed, ordered set of answers.

    answers: of each sample, in the order of the batches. letter_ids: token of each option letter at an answer's
    start, empty where the tokenizer has none. decode: token ids to text without special tokens.
    """

    metric: NamedMetric
    answers: tuple[tuple[KnownAnswer, ...], ...]
    letter_ids: dict[str, int]
    decode: Callable[[Sequence[int]], str]

    def collect(self) -> Collector:
        """A collector for one evaluation of one model."""
        return Collector(self)

    def value_of(self, records: Sequence[AnswerRecord]) -> float:
        """The metric's value, NaN where the metric says that it has none (NaN or infinity).

        Raises:
            ValueError: the metric gives something other than a number of 0 or more.
        """
        value: Any = self.metric.function(records)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metric {self.metric.identity} returned {value!r}, expected a number") from error
        if number < 0:
            raise ValueError(
                f"metric {self.metric.identity} returned {number}: a metric must be 0 or more, with lower better; "
                "return an error rate or a cost, such as 1 - accuracy"
            )
        return number if math.isfinite(number) else math.nan

    def check(self) -> None:
        """Take the metric of perfect answers: what it cannot do shows before anything is trained.

        Raises:
            ValueError: the metric fails on them, or gives no number of 0 or more.
        """
        records = [self._perfect(known) for sample in self.answers for known in sample]
        try:
            self.value_of(records)
        except ValueError:
            raise
        except Exception as error:  # whatever a user's function raises
            raise ValueError(f"metric {self.metric.identity} fails on answers that are all right: {error!r}") from error

    def _perfect(self, known: KnownAnswer) -> AnswerRecord:
        letter = known.answer if known.letters and self.letter_ids else None
        return AnswerRecord(
            known.sample_id, known.number, known.task, (0.0,), (True,), known.answer, known.letters, letter, (),
            lambda _: known.answer,
        )  # fmt: skip


class Collector:
    """What one evaluation of one model saw, batch by batch, in the order of the samples."""

    def __init__(self, measurement: Measurement) -> None:
        """Collect for the samples of the measurement, in its order."""
        self._measurement = measurement
        self._letters = list(measurement.letter_ids)
        self._letter_ids = torch.tensor(list(measurement.letter_ids.values()), dtype=torch.long)
        self._rows = 0
        self.records: list[AnswerRecord] = []

    def add(self, logits: Tensor, losses: Tensor, targets: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: shape (n_answer_tokens, vocabulary). losses: nats, and targets; shape (n_answer_tokens,).
            labels: shape (batch, length), -100 where there is no answer token.
        """
        predicted = logits.argmax(dim=-1)
        right = (predicted == targets).cpu().tolist()
        of_letters = logits[:, self._letter_ids.to(logits.device)].float().cpu()
        nats, tokens = losses.detach().cpu().tolist(), predicted.cpu().tolist()
        first = 0
        for row, count in _answer_lengths(labels):
            known = self._measurement.answers[self._rows + row[0]][row[1]]
            part = slice(first, first + count)
            self.records.append(self._record(known, nats[part], right[part], tokens[part], of_letters[first]))
            first += count
        self._rows += len(labels)

    def value(self) -> float:
        """The metric over all answers added."""
        return self._measurement.value_of(self.records)

    def _record(
        self, known: KnownAnswer, losses: list[float], right: list[bool], predicted: list[int], of_letters: Tensor
    ) -> AnswerRecord:
        letter = None
        if known.letters and self._letters:
            offered = [self._letters.index(name) for name in known.letters]
            letter = known.letters[int(of_letters[offered].argmax())]
        return AnswerRecord(
            known.sample_id, known.number, known.task, tuple(losses), tuple(right), known.answer, known.letters,
            letter, tuple(predicted), self._measurement.decode,
        )  # fmt: skip


def _answer_lengths(labels: Tensor) -> Iterator[tuple[tuple[int, int], int]]:
    """((row, answer number), tokens) of each answer, in reading order."""
    pairs = torch.stack(answer_numbers(labels), dim=1).cpu()
    unique, counts = torch.unique_consecutive(pairs, dim=0, return_counts=True)
    yield from zip(map(tuple, unique.tolist()), counts.tolist(), strict=True)


def known_answers(samples: Iterable[Sample]) -> tuple[tuple[KnownAnswer, ...], ...]:
    """The answers of each sample, with the options that the question before each one offers."""
    return tuple(tuple(_of_sample(sample)) for sample in samples)


def _of_sample(sample: Sample) -> Iterator[KnownAnswer]:
    question, number = "", 0
    for turn in sample.turns:
        if turn.role == "user":
            question = turn.text
        elif turn.role == "assistant":
            letters = offered_letters(question)
            offered = letters if turn.text in tuple(letters) else ""
            yield KnownAnswer(sample.id, number, sample.task, turn.text, offered)
            number += 1


def letter_tokens(
    answers: Sequence[Sequence[KnownAnswer]], first_tokens: Callable[[int], Sequence[int]], tokenizer: Any
) -> dict[str, int]:
    """The token of each offered letter at the start of an answer; empty where letters are no tokens of their own.

    How a letter is written after the generation prompt (with or without a space of its own) is taken from the first
    answer that is one. first_tokens: by number of the sample, the first token of each of its answers.
    """
    found = ((place, known) for place, sample in enumerate(answers) for known in sample if known.letters)
    example = next(found, None)
    if example is None:
        return {}
    place, known = example
    wanted = first_tokens(place)[known.number]
    letters = sorted({letter for sample in answers for one in sample for letter in one.letters})
    for before in ("", " "):
        ids = {letter: tokenizer(before + letter, add_special_tokens=False)["input_ids"] for letter in letters}
        if all(len(of_letter) == 1 for of_letter in ids.values()) and ids[known.answer] == [wanted]:
            return {letter: of_letter[0] for letter, of_letter in ids.items()}
    return {}


def first_answer_tokens(labels: Tensor) -> list[int]:
    """The first token of each answer of one sample; labels of shape (length,), -100 elsewhere."""
    is_answer = labels != IGNORE
    before = torch.zeros_like(is_answer)
    before[1:] = is_answer[:-1]
    return [int(token) for token in labels[is_answer & ~before]]
