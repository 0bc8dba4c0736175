"""One calibration run: a short fine-tune of one rank pair with one seed, evaluated at checkpoints.

`train_run` is the only door to calibration training. An engine that trains several runs over one frozen
backbone can stand behind the same arguments and results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mars_core.models.lora import RankPair, add_adapters, parameters_by_group, remove_adapters
from mars_core.models.partition import Partition
from mars_core.training.answer_loss import token_losses
from mars_core.training.evaluation import LARGEST_LOSS, Score, evaluate
from mars_core.training.memory import peak_memory_bytes
from mars_core.training.recipe import Recipe, make_optimizer, make_schedule

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What is measured at one checkpoint of one run.

    step: optimizer steps done. train_loss: mean batch loss since the last checkpoint; val_loss: over the
    calibration validation set (both nats per answer token). lr: rate of the last step. grad_norm_me,
    grad_norm_llm: gradient norms of the last step before clipping, the projector counted with the LLM whose
    rank it has; 0 without adapters. wall_seconds: since the run began. peak_memory_bytes: of the process or device.
    """

    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    lr: float
    grad_norm_me: float
    grad_norm_llm: float
    wall_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class CalibrationRun:
    """Checkpoints of one run.

    diverged_at: the first step whose loss was not finite, or whose validation perplexity overflows; None if none.
    """

    checkpoints: tuple[Checkpoint, ...]
    diverged_at: int | None


def train_run(
    model: nn.Module,
    partition: Partition,
    pair: RankPair,
    *,
    seed: int,
    train_batches: Iterable[Batch],
    validation: Callable[[], Iterable[tuple[Batch, Sequence[str]]]],
    recipe: Recipe,
    horizon: int,
    checkpoint_steps: Sequence[int],
    on_step: Callable[[int], Any] | None = None,
) -> CalibrationRun:
    """Fine-tune fresh adapters of `pair` on `model` and measure them at `checkpoint_steps`.

    Args:
        model: base model with frozen weights; it is returned to that state.
        seed: fixes the adapters' initial weights (and dropout).
        train_batches: one batch per optimizer step, in the order shared by all runs of a pack.
        validation: gives the batches of the calibration validation set and the task type of each row.
        horizon: steps that the learning-rate schedule spans.
        checkpoint_steps: increasing steps, the last at most `horizon`.

    Raises:
        ValueError: the ranks do not fit the model, the checkpoint steps are not increasing within the horizon, or there
            are fewer batches than steps.
    """
    _check_steps(checkpoint_steps, horizon)
    was_training = model.training
    wrapped = add_adapters(model, partition, pair, seed=seed, dropout=recipe.lora_dropout)
    try:
        torch.manual_seed(seed)
        return _train(
            wrapped,
            partition,
            _Settings(recipe, horizon, tuple(checkpoint_steps)),
            train_batches,
            validation,
            on_step,
        )
    finally:
        remove_adapters(wrapped).train(was_training)


def _check_steps(steps: Sequence[int], horizon: int) -> None:
    if not steps or any(before >= after for before, after in pairwise([0, *steps, horizon + 1])):
        raise ValueError(
            f"checkpoint steps must increase from 1 or more to at most the horizon of {horizon} steps, "
            f"got {list(steps)}"
        )


@dataclass(frozen=True)
class _Settings:
    recipe: Recipe
    horizon: int
    checkpoint_steps: tuple[int, ...]


@dataclass(frozen=True)
class _Step:
    """One optimizer step: loss in nats per answer token, learning rate, gradient norms before clipping."""

    loss: float
    lr: float
    grad_norm_me: float
    grad_norm_llm: float


def _train(
    wrapped: nn.Module,
    partition: Partition,
    settings: _Settings,
    train_batches: Iterable[Batch],
    validation: Callable[[], Iterable[tuple[Batch, Sequence[str]]]],
    on_step: Callable[[int], Any] | None,
) -> CalibrationRun:
    take_step = _stepper(wrapped, partition, settings)
    checkpoints: list[Checkpoint] = []
    losses: list[float] = []
    last = settings.checkpoint_steps[-1]
    started = time.perf_counter()
    wrapped.train()
    for number, batch in enumerate(train_batches, start=1):
        step = take_step(batch)
        losses.append(step.loss)
        if not math.isfinite(step.loss):
            return CalibrationRun(tuple(checkpoints), number)
        if number in settings.checkpoint_steps:
            score = evaluate(wrapped, validation()).overall
            if not score.loss <= LARGEST_LOSS:
                return CalibrationRun(tuple(checkpoints), number)
            checkpoints.append(_checkpoint(number, step, losses, score, time.perf_counter() - started))
            losses.clear()
        if on_step is not None:
            on_step(number)
        if number == last:
            return CalibrationRun(tuple(checkpoints), None)
    raise ValueError(f"the training batches ran out before step {last}: give one batch per optimizer step")


def _stepper(wrapped: nn.Module, partition: Partition, settings: _Settings) -> Callable[[Batch], _Step]:
    groups = parameters_by_group(wrapped, partition)
    parameters = [parameter for group in groups.values() for parameter in group]
    optimizer = make_optimizer(parameters, settings.recipe)
    schedule = make_schedule(optimizer, settings.recipe, settings.horizon)

    def take_step(batch: Batch) -> _Step:
        lr = float(schedule.get_last_lr()[0])
        loss = token_losses(wrapped, batch).mean()
        if not torch.isfinite(loss):
            return _Step(float(loss.detach()), lr, 0.0, 0.0)
        loss.backward()  # type: ignore[no-untyped-call]
        norm_me = gradient_norm(groups["me"])
        norm_llm = gradient_norm(groups["projector"] + groups["llm"])
        clip_gradients(parameters, settings.recipe.max_grad_norm, math.hypot(norm_me, norm_llm))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        return _Step(float(loss.detach()), lr, norm_me, norm_llm)

    return take_step


def _checkpoint(number: int, step: _Step, losses: list[float], score: Score, seconds: float) -> Checkpoint:
    return Checkpoint(
        step=number,
        train_loss=sum(losses) / len(losses),
        val_loss=score.loss,
        val_accuracy=score.accuracy,
        lr=step.lr,
        grad_norm_me=step.grad_norm_me,
        grad_norm_llm=step.grad_norm_llm,
        wall_seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )


def gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    """Euclidean norm of the gradients of `parameters`; 0 for none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, norm: float) -> None:
    """Scale gradients of total norm `norm` down to `max_norm`, as `clip_grad_norm_` does; 0 leaves them alone."""
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, torch.tensor(norm, dtype=parameters[0].dtype))
