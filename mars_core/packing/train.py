"""Train a pack: every run as if it were alone, side by side over one frozen backbone."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mars_core.data.encode import is_seen_or_heard
from mars_core.evaluation.objectives.measurement import Measurement
from mars_core.evaluation.scores import LARGEST_LOSS, Score
from mars_core.models.partition import Partition
from mars_core.packing.adapter_batch import AdapterBatch, Dropout, Pass, make_adapter_batch
from mars_core.packing.adapter_batches import (
    DEFAULT_ADAPTER_BATCHES,
    AdapterBatches,
    Executor,
    Width,
    executor_of,
    over_adapter_batches,
)
from mars_core.packing.adapters import flatten, initial_weights
from mars_core.packing.batch import PackedBatch, pack_batch
from mars_core.packing.examine import examined
from mars_core.packing.forward import adapter_batch_losses, autocast_of
from mars_core.packing.layer_norms import LayerNorm, NormSums
from mars_core.packing.patching import Structure, patched
from mars_core.packing.run import PackRun, TrainedRun, gradient_norms, start_runs, take_step
from mars_core.packing.score import score_adapter_batch
from mars_core.packing.state import PackState, restore_state, take_state
from mars_core.ranks import Ranks
from mars_core.training.calibration import CalibrationRun, Checkpoint
from mars_core.training.memory import peak_memory_bytes
from mars_core.training.recipe import Recipe

Batch = Mapping[str, Tensor]
Step = Sequence[Batch]
"""The batches whose answer tokens make one optimizer step (several where they are accumulated)."""

KEPT_VALIDATION_BYTES = 1 << 30


@dataclass(frozen=True)
class TrainedPack:
    """Results of a pack.

    runs: of each run, in the order given. weights: flat adapter weights at the end (of a diverged run, before the
    step that broke it). norms: of each run, its layers' mean gradient norms; None where they were not asked for.
    seconds: training and evaluation, of all calls together. width: runs in the widest adapter
    batch at the end, less than asked for where memory ran out.
    """

    runs: tuple[CalibrationRun, ...]
    weights: tuple[Tensor, ...]
    seconds: float
    width: int
    norms: tuple[tuple[LayerNorm, ...] | None, ...] = ()


def train_pack(
    model: nn.Module,
    partition: Partition,
    runs: Sequence[PackRun],
    *,
    train_steps: Callable[[int], Iterable[Step]],
    validation: Callable[[], Iterable[tuple[Batch, Sequence[str]]]],
    recipe: Recipe,
    horizon: int,
    checkpoint_steps: Sequence[int],
    adapter_batches: AdapterBatches = DEFAULT_ADAPTER_BATCHES,
    measurement: Measurement | None = None,
    record_norms: bool = False,
    resume: PackState | None = None,
    on_step: Callable[[int], Any] | None = None,
    on_checkpoint: Callable[[PackState], Any] | None = None,
) -> TrainedPack:
    """Fine-tune fresh adapters of every run on `model` and measure them at `checkpoint_steps`.

    Each run has its own loss (mean over the answer tokens of a step), Adam state, schedule, clipping and dropout
    masks; nothing of it depends on who else is in the pack. A run whose loss is not finite any more is dropped.

    Args:
        model: base model with frozen weights; it is returned to that state.
        runs: rank pairs or ranks of single layers, with their seeds, learning rates and scales; at the start equal to
            what PEFT gives with the same seed.
        train_steps: called with the number of steps to leave out, gives the batches of every step after them, in
            the order shared by all runs.
        validation: gives the batches of the calibration validation set and the task type of each row.
        horizon: steps that the learning-rate schedule spans.
        checkpoint_steps: increasing steps, the last at most `horizon`.
        measurement: a metric of the validation answers, taken at every checkpoint as well.
        record_norms: keep every layer's gradient norms too (`TrainedPack.norms`); the passes give them for nothing.
        resume: a state given to `on_checkpoint` by an earlier call with the same arguments.
        on_checkpoint: called with the state after every checkpoint.

    Raises:
        ValueError: the ranks do not fit the model, the base model has dropout of its own, the checkpoint steps are not
            increasing within the horizon, there are fewer batches than steps, or `resume` is of another pack or of one
            measured at other steps.
    """
    check_steps(checkpoint_steps, horizon)
    refuse_dropout(model)
    layouts = [run.layout(partition, recipe) for run in runs]
    trained = start_runs(runs, layouts, _initial(model, partition, runs), recipe, horizon)
    if record_norms:
        for one in trained:
            one.norms = NormSums.of(one.layout, next(iter(one.weights.values())).device)
    if resume is not None:
        restore_state(resume, checkpoint_steps, trained)
    was_training = model.training
    model.eval()
    try:
        structure = _structure(model, partition, validation)
        if recipe.lora_dropout:
            structure = structure.with_every_row()
        with patched(model, partition, structure), executor_of(adapter_batches.at_once) as executor:
            widest = adapter_batches if structure.side_by_side else AdapterBatches(width=1)
            width, score_width = Width(widest.width), Width(widest.score_width or widest.width)
            pack = _Pack(model, structure, recipe, trained, executor, width, score_width, measurement)
            return _train(pack, train_steps, validation, checkpoint_steps, resume, on_step, on_checkpoint)
    finally:
        model.train(was_training)


def _initial(model: nn.Module, partition: Partition, runs: Sequence[PackRun]) -> Iterator[Tensor]:
    """Flat weights of each run; those of the same ranks and seed, at several learning rates, begin alike."""
    to_come = Counter((run.ranks, run.seed) for run in runs)
    kept: dict[tuple[Ranks, int], Tensor] = {}
    for run in runs:
        own = run.ranks, run.seed
        flat = kept.pop(own) if own in kept else initial_weights(model, partition, *own)
        to_come[own] -= 1
        if to_come[own]:
            kept[own] = flat
        yield flat


def check_steps(steps: Sequence[int], horizon: int) -> None:
    """Insist that checkpoint steps increase within the horizon.

    Raises:
        ValueError: they do not.
    """
    if not steps or any(before >= after for before, after in pairwise([0, *steps, horizon + 1])):
        raise ValueError(
            f"checkpoint steps must increase from 1 or more to at most the horizon of {horizon} steps, "
            f"got {list(steps)}"
        )


def refuse_dropout(model: nn.Module) -> None:
    """Insist that the base model draws no random numbers: its masks could not be the same for a run in any pack.

    Raises:
        ValueError: a dropout layer or an attention dropout above 0.
    """
    for name, module in model.named_modules():
        probability = module.p if isinstance(module, nn.Dropout) else _attention_dropout(module)
        if probability > 0:
            raise ValueError(
                f"the base model drops out {probability:.0%} in {name}: set that dropout to 0 in its config.json. "
                "Calibration refuses it, because a run's random masks would depend on the runs beside it"
            )


def _attention_dropout(module: nn.Module) -> float:
    # transformers' attention modules keep it as a number, under one of these names
    found = (getattr(module, name, None) for name in ("attention_dropout", "dropout"))
    return max((value for value in found if isinstance(value, float)), default=0.0)


@dataclass(frozen=True)
class _Pack:
    """train_width, score_width: of adapter batches in training and in evaluation, which keep other things in memory."""

    model: nn.Module
    structure: Structure
    recipe: Recipe
    trained: Sequence[TrainedRun]
    executor: Executor
    train_width: Width
    score_width: Width
    measurement: Measurement | None

    @property
    def alive(self) -> list[TrainedRun]:
        """Runs that have not diverged."""
        return [one for one in self.trained if one.diverged_at is None]


def _structure(model: nn.Module, partition: Partition, validation: Callable[[], Iterable[Any]]) -> Structure:
    seen = False
    for batch, _ in validation():
        seen = True
        if is_seen_or_heard(batch):
            return examined(model, partition, batch)
    if not seen:
        raise ValueError("the validation set is empty: give at least one batch with answer tokens")
    return Structure(unpadded=False)  # what holds for text alone may not hold where an image is


def _train(
    pack: _Pack,
    train_steps: Callable[[int], Iterable[Step]],
    validation: Callable[[], Iterable[tuple[Batch, Sequence[str]]]],
    checkpoint_steps: Sequence[int],
    resume: PackState | None,
    on_step: Callable[[int], Any] | None,
    on_checkpoint: Callable[[PackState], Any] | None,
) -> TrainedPack:
    done, earlier = (0, 0.0) if resume is None else (resume.step, resume.seconds)
    started, last = time.perf_counter() - earlier, checkpoint_steps[-1]
    kept = _Kept(validation, pack.structure)
    batches = iter(train_steps(done))
    while done < last and pack.alive:
        step = next(batches, None)
        if step is None:
            raise ValueError(f"the training batches ran out before step {last}: give one batch per optimizer step")
        done += 1
        _train_step(pack, step, done)
        if done in checkpoint_steps:
            _measure(pack, kept, done, lambda: time.perf_counter() - started)
            if on_checkpoint is not None:
                on_checkpoint(take_state(done, checkpoint_steps, time.perf_counter() - started, pack.trained))
        if on_step is not None:
            on_step(done)
    runs = tuple(CalibrationRun(tuple(one.checkpoints), one.diverged_at) for one in pack.trained)
    weights = tuple(flatten(one.weights) for one in pack.trained)
    norms = tuple(None if one.norms is None else one.norms.means(one.layout) for one in pack.trained)
    return TrainedPack(runs, weights, time.perf_counter() - started, pack.train_width.runs, norms)


def _train_step(pack: _Pack, step: Step, number: int) -> None:
    batches = [pack_batch(batch, unpadded=pack.structure.unpadded) for batch in step]
    # Steps are taken after all gradients are there: a pass can be repeated where memory runs out, a step cannot.
    ready = over_adapter_batches(
        pack.alive, pack.train_width, pack.executor, lambda adapter_batch: _gradients(pack, adapter_batch, batches)
    )
    pack.executor.run(lambda one: _step_adapter_batch(pack, one, number), ready)


def _gradients(
    pack: _Pack, adapter_batch: Sequence[TrainedRun], batches: Sequence[PackedBatch]
) -> tuple[Sequence[TrainedRun], Tensor, frozenset[str]]:
    """Add up the gradients of a step; gives the adapter batch, its runs' losses, and the layers reached."""
    adapters = _adapters_of(adapter_batch)
    probability = pack.recipe.lora_dropout
    dropout = Dropout(probability, tuple(one.generator for one in adapter_batch)) if probability else None
    total = sum(len(batch.targets) for batch in batches)
    losses = torch.zeros(len(adapter_batch), dtype=torch.float64, device=adapters.anchor.device)
    before = [one.generator.get_state() for one in adapter_batch] if dropout else []
    reached: set[str] = set()
    try:
        for batch in batches:
            this = Pass(adapters, batch, dropout, reached)
            with autocast_of(pack.recipe, pack.model):
                by_run = adapter_batch_losses(pack.model, this).sum(dim=1) / total
            if by_run.requires_grad:  # not where vision adapters alone meet a batch of text alone
                by_run.sum().backward()  # type: ignore[no-untyped-call]
            losses += by_run.detach().double()
            del by_run
    except RuntimeError:
        for one, state in zip(adapter_batch, before, strict=False):
            one.generator.set_state(state)  # so that the pass can be made again with the same masks
        raise
    return adapter_batch, losses, frozenset(reached)


def _adapters_of(adapter_batch: Sequence[TrainedRun]) -> AdapterBatch:
    return make_adapter_batch(
        [one.layout for one in adapter_batch],
        [one.weights for one in adapter_batch],
        [one.gradient for one in adapter_batch],
    )


def _step_adapter_batch(pack: _Pack, ready: tuple[Sequence[TrainedRun], Tensor, frozenset[str]], number: int) -> None:
    adapter_batch, losses, reached = ready
    for one, loss, norms in zip(adapter_batch, losses.tolist(), gradient_norms(adapter_batch), strict=True):
        if math.isfinite(loss):
            one.losses.append(loss)
            if one.norms is not None:
                one.norms.add(one.layout, one.gradient, reached)
            take_step(one, pack.recipe, norms, reached)
        else:
            one.diverged_at = number


def _measure(pack: _Pack, kept: _Kept, number: int, seconds: Callable[[], float]) -> None:
    def score(adapter_batch: Sequence[TrainedRun]) -> list[tuple[TrainedRun, tuple[Score, float | None]]]:
        adapters = _adapters_of(adapter_batch)
        found = score_adapter_batch(pack.model, adapters, kept.batches(), pack.recipe, pack.measurement)
        return list(zip(adapter_batch, found, strict=True))

    scores = [
        pair
        for adapter_batch in over_adapter_batches(pack.alive, pack.score_width, pack.executor, score)
        for pair in adapter_batch
    ]
    share = seconds() / len(pack.trained)
    for one, (found, objective) in scores:
        if found.loss <= LARGEST_LOSS:  # false for NaN
            one.checkpoints.append(_checkpoint(one, number, found, objective, share))
            one.losses.clear()
        else:
            one.diverged_at = number


def _checkpoint(one: TrainedRun, number: int, score: Score, objective: float | None, seconds: float) -> Checkpoint:
    last = one.last
    assert last is not None
    return Checkpoint(
        step=number,
        train_loss=sum(one.losses) / len(one.losses),
        val_loss=score.loss,
        val_accuracy=score.accuracy,
        lr=last.lr,
        grad_norm_me=last.grad_norm_me,
        grad_norm_llm=last.grad_norm_llm,
        wall_seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        val_objective=objective,
        clipped_share=None if one.clipped is None else one.clipped / number,
    )


class _Kept:
    """Validation batches, kept between checkpoints if they fit a budget."""

    def __init__(self, validation: Callable[[], Iterable[tuple[Batch, Sequence[str]]]], structure: Structure) -> None:
        self._validation, self._structure = validation, structure
        self._kept: list[tuple[PackedBatch, Sequence[str]]] = []
        size = 0
        for packed in self._packed():
            size += packed[0].nbytes
            if size > KEPT_VALIDATION_BYTES:
                self._kept = []
                return
            self._kept.append(packed)

    def batches(self) -> Iterable[tuple[PackedBatch, Sequence[str]]]:
        """The batches, made again where they did not fit."""
        return self._kept or self._packed()

    def _packed(self) -> Iterator[tuple[PackedBatch, Sequence[str]]]:
        for batch, tasks in self._validation():
            yield pack_batch(batch, unpadded=self._structure.unpadded), tasks
