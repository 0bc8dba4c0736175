"""ms-swift: one `lora_rank` for all modules (its issue 4223 asks for two), so it continues from the untrained adapter.

Its `--adapters` loads an adapter's weights as trainable before the first step (swift/pipelines/train/tuner.py); the
adapter's own configuration then decides every rank.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from mars_core.export.rows import RowWriter
from mars_core.export.tool import Rendered, Tool, ToolRun, header, scheduler


@dataclass(frozen=True)
class SwiftModel:
    """Names of a model type in swift/model/constant.py and swift/template/constant.py.

    image_token_id: the id that the tool's template looks for, where it is fixed in its code.
    """

    model_type: str
    template: str
    image_token_id: int | None = None


MODELS = {
    "gemma3": SwiftModel("gemma3_vision", "gemma3_vision"),
    "idefics3": SwiftModel("idefics3", "idefics3", 128257),
    "internvl": SwiftModel("internvl", "internvl_hf"),
    "llava_onevision": SwiftModel("llava_onevision_hf", "llava_onevision_hf", 151646),
    "qwen2_vl": SwiftModel("qwen2_vl", "qwen2_vl", 151655),
    "qwen2_5_vl": SwiftModel("qwen2_5_vl", "qwen2_5_vl", 151655),
    "qwen3_vl": SwiftModel("qwen3_vl", "qwen3_vl", 151655),
}


def render(run: ToolRun) -> Rendered:
    """A shell script with the `swift sft` command.

    Raises:
        ValueError: the model's image token has another id than the one that the tool looks for.
    """
    _require_image_token(run)
    notes = _notes(run)
    flags = [f"    --{name} {' '.join(shlex.quote(value) for value in values)}" for name, values in _flags(run).items()]
    command = " \\\n".join(["swift sft", *flags])
    text = "#!/bin/sh\n" + header(run, "ms-swift", "sh THIS_FILE", notes) + command + "\n"
    return Rendered(text, {}, notes)


def _require_image_token(run: ToolRun) -> None:
    known, ours = MODELS.get(run.model_type), run.chat.image_token_id
    if known is not None and known.image_token_id is not None and ours != known.image_token_id:
        raise ValueError(
            f"ms-swift looks for image token {known.image_token_id} in models of type {run.model_type!r}, and this "
            f"model's is {ours}: it would train on wrong image positions without a word; use another tool, such as "
            "--to trl"
        )


def _notes(run: ToolRun) -> tuple[str, ...]:
    notes = [
        "ms-swift has one --lora_rank for all modules and cannot express two (its issue 4223). Both ranks come from "
        "the untrained adapter in --adapters, which it continues from; --lora_rank, --lora_alpha and --freeze_vit are "
        "not read then.",
        "MAX_PIXELS and the like shrink pictures before the model's own processor sees them; MARS does not.",
        "ms-swift loads checkpoints with trust_remote_code on: code that lies in the checkpoint's folder is run.",
    ]
    if run.model_type not in MODELS:
        notes.insert(1, f"ms-swift lists no model type for {run.model_type!r}: see its list of supported models.")
    if run.several_rates:
        notes.append(
            "--vit_lr and --aligner_lr sort parameters by the modules that ms-swift lists for the model type, and "
            "leave those in none of them untrained: hold its log against the number of trainable parameters."
        )
    if run.recipe.lora_plus_ratio != 1:
        notes.append(
            "ms-swift takes --lorap_lr_ratio for adapters that it makes itself, not for one that it continues from: "
            f"the recipe's LoRA+ ratio {run.recipe.lora_plus_ratio:g} is left out."
        )
    return tuple(notes)


def _flags(run: ToolRun) -> dict[str, tuple[str, ...]]:
    recipe = run.recipe
    flags: dict[str, tuple[str, ...]] = {"model": (run.model,)}
    if known := MODELS.get(run.model_type):
        flags |= {"model_type": (known.model_type,), "template": (known.template,)}
        flags["system"] = (run.chat.default_system,)
    flags |= {"use_hf": ("true",), "adapters": (str(run.start),), "load_args": ("false",)}
    if run.four_bit:
        flags |= {"quant_method": ("bnb",), "quant_bits": ("4",), "bnb_4bit_compute_dtype": (recipe.dtype,)}
    flags |= _data(run)
    flags |= {
        "torch_dtype": (recipe.dtype,),
        "max_length": (str(recipe.max_tokens),),
        "truncation_strategy": ("delete",),
        "output_dir": (str(run.output),),
        "per_device_train_batch_size": (str(run.micro_batch_size),),
        "gradient_accumulation_steps": (str(run.accumulation),),
        "gradient_checkpointing": (_word(run.gradient_checkpointing),),
        "num_train_epochs": (f"{run.epochs:g}",),
        "optim": ("adamw_torch",),
        "learning_rate": (repr(recipe.learning_rates.llm),),
        **_module_rates(run),
        **_schedule(run),
        "warmup_steps": (str(recipe.warmup_steps(run.steps)),),
        "weight_decay": (f"{recipe.weight_decay:g}",),
        "adam_beta1": (repr(recipe.beta1),),
        "adam_beta2": (repr(recipe.beta2),),
        "max_grad_norm": (f"{recipe.max_grad_norm:g}",),
        "seed": (str(run.seed),),
    }
    return flags


def _module_rates(run: ToolRun) -> dict[str, tuple[str, ...]]:
    rates = run.recipe.learning_rates
    return {"vit_lr": (repr(rates.me),), "aligner_lr": (repr(rates.projector),)} if run.several_rates else {}


def _schedule(run: ToolRun) -> dict[str, tuple[str, ...]]:
    kind, settings = scheduler(run)
    return {"lr_scheduler_type": (kind,), **({"lr_scheduler_kwargs": (json.dumps(settings),)} if settings else {})}


def _data(run: ToolRun) -> dict[str, tuple[str, ...]]:
    return {
        "dataset": (str(run.rows / "train.jsonl"),),
        "val_dataset": (str(run.rows / "validation.jsonl"),),
        "split_dataset_ratio": ("0",),
        "eval_strategy": ("epoch",),
        "save_strategy": ("epoch",),
        "load_best_model_at_end": ("true",),
    }


def _word(value: bool) -> str:
    return "true" if value else "false"


TOOL = Tool("ms-swift", ".sh", RowWriter.marked, render)
