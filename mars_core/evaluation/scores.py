"""Loss, perplexity and exact-match accuracy on a set of samples, in one forward pass each.

An answer counts as exact when every one of its tokens, the end-of-turn token included, is the model's
most likely next token given the true tokens before it. Greedy decoding would produce exactly that
answer, and no other, so this equals greedy exact match at the price of one forward pass.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_core.evaluation.answer_loss import answer_logits, answer_numbers
from mars_core.evaluation.objectives.measurement import Collector, Measurement
from mars_core.records import Float, Record

LARGEST_LOSS = 700.0
"""Nats per answer token; the perplexity of a larger loss overflows."""


@dataclass(frozen=True)
class Score(Record):
    """Totals over a set of answers.

    loss: nats per answer token, averaged over tokens. accuracy: share of answers matched exactly.
    """

    loss: Float
    accuracy: Float
    n_tokens: int
    n_answers: int

    stored_too: ClassVar[tuple[str, ...]] = ("perplexity",)

    @property
    def perplexity(self) -> float:
        """exp(loss), of a finite loss above `LARGEST_LOSS` only a lower bound."""
        return math.exp(min(self.loss, LARGEST_LOSS)) if math.isfinite(self.loss) else math.inf


@dataclass(frozen=True)
class Evaluation:
    """Scores over all samples and by task type; objective: the value of the metric asked for, None without one."""

    overall: Score
    by_task: Mapping[str, Score]
    objective: float | None = None


@dataclass
class Totals:
    """Sums over answers: nats and tokens, answers and how many of them were matched exactly."""

    nats: float = 0.0
    tokens: int = 0
    exact: int = 0
    answers: int = 0

    def score(self) -> Score:
        """The averages of these sums."""
        return Score(self.nats / max(self.tokens, 1), self.exact / max(self.answers, 1), self.tokens, self.answers)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Mapping[str, Tensor], Sequence[str]]],
    *,
    measurement: Measurement | None = None,
    on_batch: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Score `model` on batches of (model inputs with labels, task type of each row).

    The model is put into evaluation mode for the call and back afterwards.

    measurement: a metric to take as well; the batches must be those of its samples, in their order.

    Raises:
        ValueError: there is no answer to score.
    """
    collector = measurement.collect() if measurement else None
    totals = totals_of(model, batches, collector=collector, on_batch=on_batch)
    by_task = {task: total.score() for task, total in sorted(totals.items())}
    return Evaluation(overall(totals).score(), by_task, collector.value() if collector else None)


def totals_of(
    model: nn.Module,
    batches: Iterable[tuple[Mapping[str, Tensor], Sequence[str]]],
    *,
    collector: Collector | None = None,
    on_batch: Callable[[int], Any] | None = None,
) -> dict[str, Totals]:
    """The sums behind `evaluate`, by task type, so that several processes can add theirs up."""
    was_training = model.training
    model.eval()
    totals: dict[str, Totals] = defaultdict(Totals)
    try:
        with torch.no_grad():  # not inference_mode: FSDP would train on what it gathered in it
            for batch, tasks in batches:
                _add_batch(totals, collector, model, batch, tasks)
                if on_batch is not None:
                    on_batch(len(tasks))
    finally:
        model.train(was_training)
    return dict(totals)


def added(parts: Iterable[Mapping[str, Totals]]) -> dict[str, Totals]:
    """Totals of several processes, added up by task type."""
    totals: dict[str, Totals] = defaultdict(Totals)
    for part in parts:
        for task, total in part.items():
            sums = totals[task]
            sums.nats += total.nats
            sums.tokens += total.tokens
            sums.exact += total.exact
            sums.answers += total.answers
    return dict(totals)


def _as_tuple(totals: Totals) -> tuple[float, int, int, int]:
    return totals.nats, totals.tokens, totals.exact, totals.answers


def _add_batch(
    totals: dict[str, Totals],
    collector: Collector | None,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    tasks: Sequence[str],
) -> None:
    logits, targets = answer_logits(model, batch)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = functional.cross_entropy(wide, targets, reduction="none")
    add_answers(totals, losses, wide.argmax(dim=-1) == targets, batch["labels"], tasks)
    if collector is not None:
        collector.add(wide, losses, targets, batch["labels"])


def add_answers(totals: dict[str, Totals], losses: Tensor, right: Tensor, labels: Tensor, tasks: Sequence[str]) -> None:
    """Add a batch's answer tokens to the totals of their task types.

    Args:
        totals: by task type; changed.
        losses: nats, and right: whether the token was the most likely one; both of shape (n_answer_tokens,).
        labels: shape (batch, length), -100 where there is no answer token. tasks: task type of each row.
    """
    kinds = sorted(set(tasks))
    row, answer = (numbers.cpu() for numbers in answer_numbers(labels))
    kind = torch.tensor([kinds.index(task) for task in tasks])[row]
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = (row[1:] != row[:-1]) | (answer[1:] != answer[:-1])
    wrong_tokens = torch.bincount(first.cumsum(0) - 1, weights=(~right.cpu()).double())
    nats = torch.bincount(kind, weights=losses.detach().cpu().double(), minlength=len(kinds))
    tokens = torch.bincount(kind, minlength=len(kinds))
    exact = torch.bincount(kind[first], weights=(wrong_tokens == 0).double(), minlength=len(kinds))
    answers = torch.bincount(kind[first], minlength=len(kinds))
    for number, task in enumerate(kinds):
        total = totals[task]
        total.nats += float(nats[number])
        total.tokens += int(tokens[number])
        total.exact += int(exact[number])
        total.answers += int(answers[number])


def overall(totals: Mapping[str, Totals]) -> Totals:
    """Totals over all task types.

    Raises:
        ValueError: there is no answer to score.
    """
    if not any(total.tokens for total in totals.values()):
        raise ValueError("nothing to evaluate: expected at least one batch with answer tokens, got none")
    return Totals(*(sum(values) for values in zip(*map(_as_tuple, totals.values()), strict=True)))
