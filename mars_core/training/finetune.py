"""The final fine-tune: Hugging Face Trainer on the chosen pair, with the loss of the calibration runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mars_core.objective.measurement import Measurement
from mars_core.training.answer_loss import token_losses
from mars_core.training.evaluation import evaluate
from mars_core.training.recipe import Recipe

Batches = Callable[[], Iterable[tuple[Mapping[str, Tensor], Sequence[str]]]]

EVALUATIONS_PER_RUN = 8
LOGS_PER_RUN = 64


class FinetuneDiverged(RuntimeError):  # noqa: N818 - reads as the fact it states
    """The validation loss of a final fine-tune is not finite any more; the message says when."""


@dataclass(frozen=True)
class FinalRun:
    """What a final fine-tune reports.

    history: the Trainer's log, one mapping per entry (step, loss, learning_rate, grad_norm or eval_loss, ...).
    best_step: step of the checkpoint kept, the one with the lowest validation perplexity, or the lowest value of the
    metric asked for. best_val_loss: its validation loss in nats per answer token. best_objective: its value of the
    metric, None without one. seconds: training time of this call.
    """

    history: tuple[Mapping[str, float], ...]
    steps: int
    best_step: int
    best_val_loss: float
    seconds: float
    best_objective: float | None = None


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose loss and evaluation are those of calibration: nats per answer token, labelled positions only."""

    loss_is_scaled_for_ga = True

    def __init__(self, *, validation: Batches, measurement: Measurement | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validation = validation
        self.measurement = measurement
        self.model_accepts_loss_kwargs = True  # so that the answer tokens of a whole accumulated batch are counted

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the answer tokens' losses over the answer tokens of the whole optimizer step."""
        losses = token_losses(self.accelerator.unwrap_model(model), inputs)
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        loss = losses.sum() * processes / count
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the calibration validation set as calibration does.

        Raises:
            FinetuneDiverged: the loss is not finite.
        """
        with self.accelerator.autocast():
            model = self.accelerator.unwrap_model(self.model)
            found = evaluate(model, self.validation(), measurement=self.measurement)
        score = found.overall
        if not math.isfinite(score.loss):
            raise FinetuneDiverged(
                f"the final fine-tune diverged by step {self.state.global_step} (validation loss {score.loss}): "
                "lower recipe.learning_rate and open a new revision"
            )
        metrics = {
            f"{metric_key_prefix}_loss": score.loss,
            f"{metric_key_prefix}_perplexity": score.perplexity,
            f"{metric_key_prefix}_accuracy": score.accuracy,
        }
        if found.objective is not None:
            # A checkpoint without a value must lose against any that has one.
            metrics[f"{metric_key_prefix}_objective"] = math.inf if math.isnan(found.objective) else found.objective
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _StepCallback(TrainerCallback):  # type: ignore[misc]
    def __init__(self, on_step: Callable[[int], Any]) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step)


def finetune(
    wrapped: nn.Module,
    *,
    train: Dataset[Any],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    validation: Batches,
    measurement: Measurement | None = None,
    recipe: Recipe,
    steps: int,
    seed: int,
    checkpoints: Path,
    micro_batch_size: int | None = None,
    gradient_checkpointing: bool = False,
    on_step: Callable[[int], Any] | None = None,
) -> FinalRun:
    """Train the adapters of `wrapped` for `steps` optimizer steps; it ends holding the best checkpoint's weights.

    It trains where `wrapped` lies, in one process on one device, so that a step is `recipe.batch_size` samples,
    `micro_batch_size` of them at a time (default: all). Half-precision weights are trained under autocast, as
    calibration does. A whole checkpoint already in `checkpoints` is resumed from, so that a run that was killed goes
    on where it was.

    measurement: the metric that the best checkpoint is chosen by; without, it is validation perplexity.
    gradient_checkpointing: compute activations again in the backward pass instead of keeping them.

    Raises:
        FinetuneDiverged: the validation loss is not finite.
        ValueError: several processes train together, `checkpoints` holds those of a run of another length, or the
            micro-batches do not make up the batch.
    """
    micro = micro_batch_size or recipe.batch_size
    if recipe.batch_size % micro:
        raise ValueError(
            f"micro_batch_size {micro} does not divide the batch of {recipe.batch_size}: use a divisor of it"
        )
    every = max(1, steps // EVALUATIONS_PER_RUN)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // micro,
        bf16=recipe.dtype == "bfloat16",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps(steps),
        optim="adamw_torch",  # without weight decay this is the paper's Adam
        weight_decay=0.0,
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
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=gradient_checkpointing,
        # The other kind gives no gradients below a frozen embedding.
        gradient_checkpointing_kwargs={"use_reentrant": False} if gradient_checkpointing else None,
        log_level="error",
        use_cpu=next(wrapped.parameters()).device.type == "cpu",
    )
    _require_one_device(arguments)
    trainer = AnswerTrainer(
        model=wrapped,
        args=arguments,
        train_dataset=train,
        eval_dataset=train,  # the Trainer asks for one; AnswerTrainer.evaluate reads `validation` instead
        data_collator=collate,
        validation=validation,
        measurement=measurement,
        callbacks=[_StepCallback(on_step)] if on_step else None,
    )
    _silence_console(trainer)
    try:
        output = trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints, steps))
    finally:
        if gradient_checkpointing:
            wrapped.gradient_checkpointing_disable()  # type: ignore[operator]
    best = trainer.state.best_model_checkpoint
    best_step = _step_of(Path(best)) if best else trainer.state.global_step
    scores = scores_at(trainer.state.log_history, best_step)
    return FinalRun(
        history=tuple(trainer.state.log_history),
        steps=trainer.state.global_step,
        best_step=best_step,
        best_val_loss=scores["eval_loss"],
        seconds=float(output.metrics["train_runtime"]),
        best_objective=scores.get("eval_objective"),
    )


def scores_at(history: Sequence[Mapping[str, float]], step: int) -> Mapping[str, float]:
    """The evaluation in the Trainer's log at a step, the last one where it was made again after a resume."""
    return next(entry for entry in reversed(history) if entry["step"] == step and "eval_loss" in entry)


def _require_one_device(arguments: TrainingArguments) -> None:
    if arguments.world_size > 1:
        raise ValueError(
            f"the final fine-tune runs in one process, got {arguments.world_size}: "
            "start it without a distributed launcher"
        )
    # The Trainer would otherwise give every visible GPU a batch of its own.
    arguments._n_gpu = min(arguments.n_gpu, 1)


def _silence_console(trainer: Trainer) -> None:
    # The Trainer's printing callback would interleave raw dictionaries with our progress bar.
    trainer.remove_callback(PrinterCallback)


def _last_checkpoint(folder: Path, steps: int) -> str | None:
    # The Trainer writes its state last, so a folder without it was left half-written by a killed process.
    whole = [state.parent for state in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    if not whole:
        return None
    last = max(whole, key=_step_of)
    planned = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)).max_steps
    if planned != steps:
        raise ValueError(
            f"the checkpoints in {folder} belong to a run of {planned} steps, this one has {steps}: "
            "remove them to train from the start"
        )
    return str(last)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def all_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """A model's logits at every position of a batch (labels are ignored), in evaluation mode."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.inference_mode():
        logits: Tensor = model.eval()(**inputs).logits
    return logits
