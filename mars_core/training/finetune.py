"""The final fine-tune: Hugging Face Trainer on the chosen pair, with the loss of the calibration runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from mars_core.evaluation.answer_loss import answer_logits
from mars_core.evaluation.objectives.measurement import Measurement
from mars_core.models.partition import Partition
from mars_core.training.checkpoints import last_checkpoint, read_trainer_state, step_of
from mars_core.training.methods.method import Method
from mars_core.training.recipe import Recipe
from mars_core.training.trainer import AnswerTrainer, Batches, FinetuneDiverged, LogCallback, StepCallback

__all__ = [
    "FinalRun",
    "FinalSettings",
    "FinetuneDiverged",
    "Listeners",
    "Samples",
    "all_logits",
    "finetune",
    "logits_at_answers",
    "micro_batches",
]

EVALUATIONS_PER_RUN = 8
LOGS_PER_RUN = 64


@dataclass(frozen=True)
class FinalRun:
    """What a final fine-tune reports.

    history: the Trainer's log, one mapping per entry (step, loss, learning_rate, grad_norm or eval_loss, ...).
    best_step: step of the checkpoint kept, the one with the lowest validation perplexity, or the lowest value of the
    metric asked for. best_val_loss: its validation loss in nats per answer token. best_objective: its value of the
    metric, None without one. seconds: training time, that of interrupted calls up to the checkpoint resumed from too.
    processes: how many trained together. devices: GPUs, or processes on the CPU, that they held. samples_per_second,
    tokens_per_second: over all of them, in this call, without the time of evaluations; tokens without padding.
    peak_memory_bytes: of the process or device that used most.
    """

    history: tuple[Mapping[str, float], ...]
    steps: int
    best_step: int
    best_val_loss: float
    seconds: float
    processes: int
    devices: int
    samples_per_second: float
    tokens_per_second: float
    peak_memory_bytes: int
    best_objective: float | None = None


@dataclass(frozen=True)
class Samples:
    """What a run is trained and scored on.

    train, collate: the training set, and how its items become a batch. validation: scored batches of the validation
    set; of several processes, each gives its share, or all of them where there is a measurement. measurement: the
    metric that the best checkpoint is chosen by; without, it is validation perplexity.
    """

    train: Dataset[Any]
    collate: Callable[[list[Any]], dict[str, Tensor]]
    validation: Batches
    measurement: Measurement | None = None


@dataclass(frozen=True)
class FinalSettings:
    """How a run is trained.

    steps: optimizer steps of `recipe.batch_size` samples. checkpoints: where checkpoints lie. micro_batch_size: samples
    per forward pass of a process, None for all of its share. gradient_checkpointing: compute activations again in the
    backward pass instead of keeping them. evaluations: how often it is scored and leaves a checkpoint, at equal
    distances.
    """

    recipe: Recipe
    steps: int
    seed: int
    checkpoints: Path
    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    evaluations: int = EVALUATIONS_PER_RUN


@dataclass(frozen=True)
class Listeners:
    """What is called: on_step after each step, on_log with each entry of the log (by the first process alone), on_state
    with the trained weights at the end (on the first process)."""

    on_step: Callable[[int], Any] | None = None
    on_log: Callable[[Mapping[str, float]], Any] | None = None
    on_state: Callable[[Mapping[str, Tensor]], Any] | None = None

    def callbacks(self) -> list[TrainerCallback]:
        """Those of the Trainer."""
        step = [StepCallback(self.on_step)] if self.on_step else []
        return [*step, *([LogCallback(self.on_log)] if self.on_log else [])]


def finetune(
    wrapped: nn.Module,
    samples: Samples,
    settings: FinalSettings,
    *,
    method: Method | None = None,
    partition: Partition | None = None,
    listeners: Listeners = Listeners(),
) -> FinalRun:
    """Train what is trainable in `wrapped`; it ends holding the best checkpoint's weights.

    It trains where `wrapped` lies, on one device; or together with the other processes of a distributed launch (DDP or
    FSDP, as its accelerate configuration says), on which all must call this alike. In a last batch of an epoch that is
    not full, several processes fill up with samples from the epoch's beginning. Half-precision weights are trained
    under autocast, as calibration does. A whole checkpoint in `settings.checkpoints` is resumed from, so that a run
    that was killed goes on where it was.

    Args:
        wrapped: the model as `method` made it trainable.
        samples: what it is trained and scored on.
        settings: how.
        method, partition: what is special about the training method; without, everything trainable has the recipe's
            one learning rate.
        listeners: what is called meanwhile.

    Raises:
        FinetuneDiverged: the validation loss is not finite.
        ValueError: the checkpoints are those of a run of another length, micro-batches and processes do not make up the
            batch, the method cannot be trained in this way, or the recipe has several rates and no method is given.
    """
    trainer = _trainer(wrapped, samples, settings, method, partition, listeners)
    last = _last_checkpoint(settings.checkpoints, settings.steps)
    started = time.perf_counter()  # the Trainer's own time is the clock's, which may be set meanwhile
    try:
        trainer.train(resume_from_checkpoint=last)
    finally:
        if settings.gradient_checkpointing:
            wrapped.gradient_checkpointing_disable()  # type: ignore[operator]
    seconds = time.perf_counter() - started
    if listeners.on_state is not None:
        state = trainer.trained_state()  # of all processes together
        if trainer.is_world_process_zero():
            listeners.on_state(state)
    done = step_of(Path(last)) if last else 0
    trained = (settings.steps - done) * settings.recipe.batch_size
    return _final_run(trainer, trained, seconds, _devices_of(wrapped))


def _trainer(
    wrapped: nn.Module,
    samples: Samples,
    settings: FinalSettings,
    method: Method | None,
    partition: Partition | None,
    listeners: Listeners,
) -> AnswerTrainer:
    several = settings.recipe.lora_plus_ratio != 1 or len(set(settings.recipe.learning_rates)) > 1
    if several and (method is None or partition is None):
        raise ValueError("a recipe with several learning rates needs the method and the partition that they belong to")
    trainer = AnswerTrainer(
        model=wrapped,
        args=_arguments(wrapped, settings, samples.measurement, method),
        train_dataset=samples.train,
        eval_dataset=samples.train,  # the Trainer asks for one; AnswerTrainer.evaluate reads `validation` instead
        data_collator=samples.collate,
        validation=samples.validation,
        recipe=settings.recipe,
        measurement=samples.measurement,
        method=method,
        partition=partition,
        callbacks=[*(method.callbacks(wrapped, partition) if method else []), *listeners.callbacks()],
    )
    if trainer.is_fsdp_enabled and method is not None and not method.shards:
        raise ValueError(f"{type(method).__name__} cannot be trained with FSDP: use DDP (distributed_type MULTI_GPU)")
    return trainer


def _arguments(
    wrapped: nn.Module, settings: FinalSettings, measurement: Measurement | None, method: Method | None
) -> TrainingArguments:
    recipe, steps = settings.recipe, settings.steps
    micro, accumulated = micro_batches(recipe.batch_size, settings.micro_batch_size, _world_size())
    every = max(1, steps // settings.evaluations)
    arguments = TrainingArguments(
        output_dir=str(settings.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulated,
        bf16=recipe.dtype == "bfloat16",
        learning_rate=recipe.learning_rate,
        optim="adamw_torch",  # without weight decay this is the paper's Adam
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        max_grad_norm=recipe.max_grad_norm,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_objective" if measurement else "eval_loss",
        greater_is_better=False,
        logging_steps=max(1, steps // LOGS_PER_RUN),
        seed=settings.seed,
        data_seed=settings.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=settings.gradient_checkpointing,
        # The other kind gives no gradients below a frozen embedding.
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        # Without an image, a batch leaves the vision encoder's adapters without gradients.
        ddp_find_unused_parameters=not (method is not None and method.reaches_all),
        log_level="error",
        use_cpu=next(wrapped.parameters()).device.type == "cpu" and not _is_sharded(),
    )
    # The Trainer would otherwise give every visible GPU a batch of its own.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _final_run(trainer: AnswerTrainer, trained: int, seconds: float, devices: int) -> FinalRun:
    """What a trainer that has finished reports.

    trained: samples of this call. seconds: of this call. devices: of this process.
    """
    state, processes = trainer.state, trainer.accelerator.num_processes
    best_step = step_of(Path(state.best_model_checkpoint)) if state.best_model_checkpoint else state.global_step
    scores = scores_at(state.log_history, best_step)
    return FinalRun(
        history=tuple(state.log_history),
        steps=state.global_step,
        best_step=best_step,
        best_val_loss=scores["eval_loss"],
        best_objective=scores.get("eval_objective"),
        seconds=trainer.earlier_seconds + seconds,
        processes=processes,
        devices=processes * devices,
        peak_memory_bytes=trainer.peak_memory(),
        **trainer.throughput(trained, seconds),
    )


def scores_at(history: Sequence[Mapping[str, float]], step: int) -> Mapping[str, float]:
    """The evaluation in the Trainer's log at a step, the last one where it was made again after a resume."""
    return next(entry for entry in reversed(history) if entry["step"] == step and "eval_loss" in entry)


def micro_batches(batch_size: int, micro_batch_size: int | None, processes: int) -> tuple[int, int]:
    """Samples per forward pass of a process, and how many passes are accumulated: together they make up the batch.

    Raises:
        ValueError: they do not.
    """
    if batch_size % processes:
        raise ValueError(
            f"{processes} processes do not divide the batch of {batch_size}: use a number of processes that divides it"
        )
    micro = micro_batch_size or batch_size // processes
    if batch_size % (micro * processes):
        together = f" in {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"micro_batch_size {micro}{together} does not divide the batch of {batch_size}: use a divisor of "
            f"{batch_size // processes}"
        )
    return micro, batch_size // (micro * processes)


def _devices_of(wrapped: nn.Module) -> int:
    """GPUs that this process's model lies on, one where it lies on the CPU."""
    return max(1, len({parameter.device for parameter in wrapped.parameters() if parameter.device.type != "cpu"}))


def _is_sharded() -> bool:
    # FSDP moves its shards from the CPU to the GPUs.
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def _last_checkpoint(folder: Path, steps: int) -> str | None:
    last = last_checkpoint(folder)
    if last is None:
        return None
    planned = read_trainer_state(last).max_steps
    if planned != steps:
        raise ValueError(
            f"the checkpoints in {folder} belong to a run of {planned} steps, this one has {steps}: "
            "remove them to train from the start"
        )
    return str(last)


def all_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """A model's logits at every position of a batch (labels are ignored), in evaluation mode."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.inference_mode():
        logits: Tensor = model.eval()(**inputs).logits
    return logits


def logits_at_answers(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """A model's logits at the answer tokens of a batch, shape (n_answer_tokens, vocabulary), in evaluation mode."""
    with torch.inference_mode():
        return answer_logits(model.eval(), batch)[0]
