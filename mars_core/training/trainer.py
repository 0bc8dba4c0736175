"""Hugging Face's Trainer with the loss and the evaluation of the calibration runs, in one process or several."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mars_core.evaluation.answer_loss import token_losses
from mars_core.evaluation.objectives.measurement import Measurement
from mars_core.evaluation.scores import added, overall, totals_of
from mars_core.models.partition import Partition
from mars_core.training.checkpoints import write_checksums
from mars_core.training.memory import peak_memory_bytes
from mars_core.training.methods.lora import Lora
from mars_core.training.methods.method import Method, trained
from mars_core.training.optimizer import make_schedule
from mars_core.training.recipe import Recipe

Batches = Callable[[], Iterable[tuple[Mapping[str, Tensor], Sequence[str]]]]

STATE = "trained.safetensors"
ELAPSED = "elapsed.json"
"""In a checkpoint: seconds of training up to it, those of interrupted calls too."""


class FinetuneDiverged(RuntimeError):  # noqa: N818 - reads as the fact it states
    """The validation loss of a final fine-tune is not finite any more; the message says when."""


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose loss and evaluation are those of calibration: nats per answer token, labelled positions only.

    validation: scored batches of this process's share of the validation set, whose totals are added up over processes;
    or of all of it, where there is a measurement.
    recipe: its learning rates, optimizer and schedule are those of a pack.
    measurement: the metric that the best checkpoint is chosen by, None for validation perplexity.
    method: what is special about the training method, None where nothing is.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        validation: Batches,
        recipe: Recipe,
        measurement: Measurement | None = None,
        method: Method | None = None,
        partition: Partition | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.validation = validation
        self.recipe = recipe
        self.measurement = measurement
        self.method = method
        self.partition = partition
        self.model_accepts_loss_kwargs = True  # so that the answer tokens of a whole accumulated batch are counted
        self.tokens: Tensor | int = 0
        self.evaluation_seconds = 0.0
        self.earlier_seconds = 0.0
        self.started = time.perf_counter()
        self.remove_callback(PrinterCallback)  # it would interleave raw dictionaries with a progress bar

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the answer tokens' losses over the answer tokens of the whole optimizer step, and the penalty.

        Processes average their gradients, so each counts its own tokens as often as there are processes.
        """
        unwrapped = self.accelerator.unwrap_model(model)
        losses = token_losses(unwrapped, inputs, model)
        self.tokens = self.tokens + inputs["attention_mask"].sum()
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        loss = losses.sum() * processes / count
        penalty = self.method.penalty(unwrapped) if self.method else None
        if penalty is not None:
            loss = loss + penalty / getattr(self, "current_gradient_accumulation_steps", 1)
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the calibration validation set as calibration does.

        Raises:
            FinetuneDiverged: the loss is not finite.
        """
        started = time.perf_counter()
        collector = self.measurement.collect() if self.measurement else None
        with self.accelerator.autocast():
            totals = totals_of(self.accelerator.unwrap_model(self.model), self.validation(), collector=collector)
        # A metric needs all samples, so that every process has scored them all.
        score = overall(totals if collector else added(gather_object([totals]))).score()
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
        if collector is not None:
            # A checkpoint without a value must lose against any that has one.
            value = collector.value()
            metrics[f"{metric_key_prefix}_objective"] = math.inf if math.isnan(value) else value
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.evaluation_seconds += time.perf_counter() - started
        return metrics

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's Adam as the Trainer makes it, with the groups of the method."""
        if self.optimizer is None and self.method is not None and self.partition is not None:
            groups = self.method.parameter_groups(model or self.model, self.partition, self.recipe)
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            settings |= {"weight_decay": self.args.weight_decay}  # otherwise AdamW has one of its own
            self.optimizer: Any = optimizer(groups, **settings)
        made: torch.optim.Optimizer = super().create_optimizer(model)
        return made

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The recipe's schedule, by the same function as in a pack."""
        if self.lr_scheduler is None:
            self.lr_scheduler: Any = make_schedule(optimizer or self.optimizer, self.recipe, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the learning rate of every group where there are several."""
        groups = [g for g in self.optimizer.param_groups if "name" in g] if self.optimizer is not None else []
        if "learning_rate" in logs and len(groups) > 1:
            # The scheduler may have gone on to the next step's rates; the groups keep their proportions.
            first = groups[0]["initial_lr"]
            logs |= {f"learning_rate_{g['name']}": logs["learning_rate"] * g["initial_lr"] / first for g in groups}
        super().log(logs, start_time)

    def trained_state(self) -> dict[str, Tensor]:
        """What training has made of the model, gathered on the first process; elsewhere it may be empty."""
        if not self.is_fsdp_enabled:
            model = self.accelerator.unwrap_model(self.model)
            return self.method.state(model) if self.method else _state(model)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        gathered: dict[str, Any] = get_model_state_dict(self.model, options=options)
        names = trained(self.model).keys()
        # A frozen head that is tied to the embedding is gathered all the same.
        return {name: value.contiguous() for name, value in gathered.items() if name in names}

    def throughput(self, samples: int, seconds: float) -> dict[str, float]:
        """Samples and tokens (without padding) per second of training over all processes, without evaluations."""
        tokens = sum(gather_object([int(self.tokens)]))
        training = max(seconds - self.evaluation_seconds, 1e-9)
        return {"samples_per_second": samples / training, "tokens_per_second": tokens / training}

    def peak_memory(self) -> int:
        """Largest peak memory of any process, bytes."""
        return max(map(int, gather_object([peak_memory_bytes()])))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as the Trainer does; what a checkpoint has cost up to then is taken up from it."""
        if isinstance(resume_from_checkpoint, str):
            self.earlier_seconds = _elapsed(Path(resume_from_checkpoint))
        self.started = time.perf_counter()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    # Checkpoints. The Trainer's own are PEFT adapters, and FSDP's are shards; other methods keep their state.

    @property
    def _keeps_state(self) -> bool:
        return self.method is not None and not isinstance(self.method, Lora) and not self.is_fsdp_enabled

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The best checkpoint is looked for before FSDP makes the folder of its shards, and would be taken for missing.
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if self.is_world_process_zero():
            seconds = self.earlier_seconds + time.perf_counter() - self.started
            (folder / ELAPSED).write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
        super()._save_checkpoint(model, trial)
        if self.accelerator.num_processes == 1:  # of several, one does not know when the others have written theirs
            write_checksums(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self._keeps_state:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.trained_state(), folder / STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._keeps_state:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if not self._keeps_state:
            super()._load_best_model()
            return
        self._restore(str(self.state.best_model_checkpoint))

    def _restore(self, checkpoint: str) -> None:
        assert self.method is not None
        self.method.restore(self.accelerator.unwrap_model(self.model), load_file(Path(checkpoint) / STATE))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.method is not None and not self.method.settled(self.state.global_step, self.state.max_steps):
            return False
        return bool(super()._determine_best_metric(metrics, trial))


def _elapsed(checkpoint: Path) -> float:
    path = checkpoint / ELAPSED
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in trained(model).items()}


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """Reports every finished optimizer step."""

    def __init__(self, on_step: Callable[[int], Any]) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step."""
        self.on_step(state.global_step)


class LogCallback(TrainerCallback):  # type: ignore[misc]
    """Reports every entry of the Trainer's log, on resuming those from before it too."""

    def __init__(self, on_log: Callable[[Mapping[str, float]], Any]) -> None:
        self.on_log_entry = on_log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the entries from before."""
        if state.is_world_process_zero:
            for entry in state.log_history:
                self.on_log_entry(entry)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the newest entry."""
        if state.is_world_process_zero:
            self.on_log_entry(state.log_history[-1])
