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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mars_core.training.answer_loss import IGNORE, answer_logits

LARGEST_LOSS = 700.0
"""Nats per answer token; the perplexity of a larger loss overflows."""


@dataclass(frozen=True)
class Score:
    """Totals over a set of answers.

    loss: nats per answer token, averaged over tokens. accuracy: share of answers matched exactly.
    """

    loss: float
    accuracy: float
    n_tokens: int
    n_answers: int

    @property
    def perplexity(self) -> float:
        """exp(loss), of a finite loss above `LARGEST_LOSS` only a lower bound."""
        return math.exp(min(self.loss, LARGEST_LOSS)) if math.isfinite(self.loss) else math.inf


@dataclass(frozen=True)
class Evaluation:
    """Scores over all samples and by task type."""

    overall: Score
    by_task: Mapping[str, Score]


@dataclass
class _Totals:
    nats: float = 0.0
    tokens: int = 0
    exact: int = 0
    answers: int = 0

    def score(self) -> Score:
        return Score(self.nats / max(self.tokens, 1), self.exact / max(self.answers, 1), self.tokens, self.answers)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Mapping[str, Tensor], Sequence[str]]],
    *,
    on_batch: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Score `model` on batches of (model inputs with labels, task type of each row).

    The model is put into evaluation mode for the call and back afterwards.

    Raises:
        ValueError: there is no answer to score.
    """
    was_training = model.training
    model.eval()
    totals: dict[str, _Totals] = defaultdict(_Totals)
    try:
        with torch.inference_mode():
            for batch, tasks in batches:
                _add_batch(totals, model, batch, tasks)
                if on_batch is not None:
                    on_batch(len(tasks))
    finally:
        model.train(was_training)
    if not any(total.tokens for total in totals.values()):
        raise ValueError("nothing to evaluate: expected at least one batch with answer tokens, got none")
    overall = _Totals(*(sum(values) for values in zip(*map(_as_tuple, totals.values()), strict=True)))
    return Evaluation(overall.score(), {task: total.score() for task, total in sorted(totals.items())})


def _as_tuple(totals: _Totals) -> tuple[float, int, int, int]:
    return totals.nats, totals.tokens, totals.exact, totals.answers


def _add_batch(totals: dict[str, _Totals], model: nn.Module, batch: Mapping[str, Tensor], tasks: Sequence[str]) -> None:
    logits, targets = answer_logits(model, batch)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = functional.cross_entropy(wide, targets, reduction="none").double()
    right = wide.argmax(dim=-1) == targets
    row, answer = answer_numbers(batch["labels"])
    for index, task in enumerate(tasks):
        here = row == index
        total = totals[task]
        total.nats += float(losses[here].sum())
        total.tokens += int(here.sum())
        for number in torch.unique(answer[here]):
            total.answers += 1
            total.exact += bool(right[here & (answer == number)].all())


def answer_numbers(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Row and answer number of every answer token, in reading order.

    An answer is a maximal run of labelled tokens, so a conversation with three assistant turns has three.

    Args:
        labels: shape (batch, length), -100 where there is no answer token; column 0 is never predicted.

    Returns:
        two tensors of shape (n_answer_tokens,): the row, and the answer's number within its row.
    """
    labelled = labels[:, 1:] != IGNORE
    before = torch.zeros_like(labelled)
    before[:, 1:] = labelled[:, :-1]
    number = (labelled & ~before).cumsum(dim=1) - 1
    rows = torch.arange(labels.shape[0], device=labels.device)[:, None].expand_as(labelled)
    return rows[labelled], number[labelled]
