"""TRL and Unsloth: a Python script that trains the pair with TRL's SFTTrainer.

PEFT's rank and alpha patterns come with the untrained adapter, so both ranks are expressed. The rows hold the text as
the model's own template makes it and where the answers stand in its tokens, so that the loss is on what MARS trains on,
whichever template; TRL's own assistant_only_loss needs templates with generation marks, which most models lack.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mars_core.export.rows import RowWriter
from mars_core.export.snippets import trust_argument
from mars_core.export.tool import Rendered, Tool, ToolRun, header, scheduler

TEMPLATE = "trl.py.j2"


def render(run: ToolRun, *, unsloth: bool) -> Rendered:
    """The script."""
    notes = _notes(run, unsloth)
    name = "Unsloth" if unsloth else "TRL"
    environment = Environment(
        loader=PackageLoader("mars_core.export", package_path=""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(
        run=run,
        unsloth=unsloth,
        header=header(run, name, "python THIS_FILE", notes).rstrip("\n"),
        settings={name: repr(value) for name, value in _settings(run).items()},
        groups=_groups(run),
        trust=trust_argument(run.trust_remote_code),
        quoted=lambda value: repr(str(value)),
    )
    return Rendered(text + "\n", {}, notes)


def _notes(run: ToolRun, unsloth: bool) -> tuple[str, ...]:
    notes = [
        "Both ranks come from the untrained adapter in START: its rank_pattern and alpha_pattern name every layer.",
        "The loss is on answers and their ends, as in MARS: their places among the tokens stand in the rows. The "
        "script stops where a row has another number of tokens than where it was written.",
        "AutoProcessor needs torchvision for models that also take videos.",
    ]
    if run.trust_remote_code:
        notes.append("The script runs code that lies in the checkpoint's folder, as the study allows: read it first.")
    if unsloth:
        notes.append(
            "Unsloth runs on a GPU only and was not run with this script; it hands rank_pattern and alpha_pattern on "
            "to PEFT (its version 2026.10.9)."
        )
    return tuple(notes)


def _settings(run: ToolRun) -> dict[str, Any]:
    recipe = run.recipe
    kind, schedule = scheduler(run)
    return {
        "output_dir": str(run.output),
        "per_device_train_batch_size": run.micro_batch_size,
        "per_device_eval_batch_size": run.micro_batch_size,
        "gradient_accumulation_steps": run.accumulation,
        "gradient_checkpointing": run.gradient_checkpointing,
        "num_train_epochs": run.epochs,
        "optim": "adamw_torch",
        "learning_rate": recipe.learning_rates.llm,
        "lr_scheduler_type": kind,
        **({"lr_scheduler_kwargs": schedule} if schedule else {}),
        "warmup_steps": recipe.warmup_steps(run.steps),
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.beta1,
        "adam_beta2": recipe.beta2,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": run.half,
        "fp16": False,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "seed": run.seed,
        "report_to": "none",
        "max_length": None,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


def _groups(run: ToolRun) -> list[tuple[str, float]]:
    """Paths of modules with their rates, the projector's first, where rates differ or LoRA+ is asked for."""
    if not run.several_rates and run.recipe.lora_plus_ratio == 1:
        return []
    rates = run.recipe.learning_rates
    return [(path, rates.rate(group)) for group, paths in run.modules.items() for path in paths]


TRL = Tool("trl", ".py", RowWriter.encoded, partial(render, unsloth=False))
UNSLOTH = Tool("unsloth", ".py", RowWriter.encoded, partial(render, unsloth=True))
