"""LLaMA-Factory: one `lora_rank` for all layers, so it continues from the pair's untrained adapter.

Its `adapter_name_or_path` makes `PeftModel.from_pretrained(..., is_trainable=True)` of the adapter, whose own
configuration then decides every rank (src/llamafactory/model/adapter.py).
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from mars_core.export.rows import RowWriter
from mars_core.export.tool import Rendered, Tool, ToolRun, header, scheduler

# Names in src/llamafactory/data/template.py, for the model types that model_utils/visual.py registers.
TEMPLATES = {
    "gemma3": "gemma3",
    "internvl": "intern_vl",
    "llava_onevision": "llava_next_qwen",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl_nothink",
}
DATASETS = {"dataset": ("mars_train", "train.jsonl"), "eval_dataset": ("mars_validation", "validation.jsonl")}


def render(run: ToolRun) -> Rendered:
    """The YAML file, and the dataset_info.json that it reads."""
    notes = _notes(run)
    settings = _settings(run)
    text = header(run, "LLaMA-Factory", "llamafactory-cli train THIS_FILE", notes)
    text += yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000)
    return Rendered(text, {"dataset_info.json": json.dumps(_dataset_info(), indent=2) + "\n"}, notes)


def _notes(run: ToolRun) -> tuple[str, ...]:
    notes = [
        "LLaMA-Factory has one lora_rank for all modules and cannot express two. Both ranks come from the untrained "
        "adapter in adapter_name_or_path, which it continues from; do not set create_new_adapter, and lora_rank is not "
        "read.",
        "image_max_pixels (768 x 768 by default) shrinks pictures before the model's own processor sees them; MARS "
        "does not.",
        "The base weights keep the number format of their checkpoint, whatever recipe.dtype says; bf16 says what is "
        "computed in.",
    ]
    notes += [f"Its template {TEMPLATES[run.model_type]} {how}." for how in _template_differences(run)]
    if run.model_type not in TEMPLATES:
        notes.insert(
            1,
            f"LLaMA-Factory has no template for model type {run.model_type!r}: register one, or use another tool "
            "(ms-swift knows it if its model list does).",
        )
    if run.several_rates:
        notes.append(
            f"LLaMA-Factory has one learning_rate: the recipe's rates of single modules, {run.recipe.learning_rates}, "
            "are left out, and all modules have the LLM's."
        )
    return tuple(notes)


def _template_differences(run: ToolRun) -> list[str]:
    """Where the tool's template is known to make other tokens than the model's own (benchmarks/exports_run.py)."""
    differences = []
    if run.model_type == "llava_onevision":
        differences.append(
            "puts a line break behind `user`, and one between turns, where the model's own has a space and nothing: "
            "the trained prompt is not quite the one that generation starts from"
        )
    if run.untrained:
        differences.append("trains on answers of weight 0 too, which it does not know (WARNING: some rows have them)")
    return differences


def _settings(run: ToolRun) -> dict[str, Any]:
    template = TEMPLATES.get(run.model_type)
    return {
        "model_name_or_path": run.model,
        "adapter_name_or_path": str(run.start),
        "trust_remote_code": run.trust_remote_code,
        **({"quantization_bit": 4, "quantization_method": "bnb"} if run.four_bit else {}),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "freeze_vision_tower": False,
        "freeze_multi_modal_projector": False,
        **_data(run),
        **({"template": template, "default_system": run.chat.default_system} if template else {}),
        "cutoff_len": run.recipe.max_tokens,
        "output_dir": str(run.output),
        "report_to": "none",
        "per_device_train_batch_size": run.micro_batch_size,
        "gradient_accumulation_steps": run.accumulation,
        "disable_gradient_checkpointing": not run.gradient_checkpointing,
        "num_train_epochs": run.epochs,
        "optim": "adamw_torch",
        "learning_rate": run.recipe.learning_rates.llm,
        **_schedule(run),
        "warmup_steps": run.recipe.warmup_steps(run.steps),
        "weight_decay": run.recipe.weight_decay,
        "adam_beta1": run.recipe.beta1,
        "adam_beta2": run.recipe.beta2,
        **({"loraplus_lr_ratio": run.recipe.lora_plus_ratio} if run.recipe.lora_plus_ratio != 1 else {}),
        "max_grad_norm": run.recipe.max_grad_norm,
        "bf16": run.half,
        "seed": run.seed,
    }


def _schedule(run: ToolRun) -> dict[str, Any]:
    kind, settings = scheduler(run)
    if kind == "warmup_stable_decay":
        # Without a number it takes a third of the steps after the warm-up (src/llamafactory/train/trainer_utils.py).
        warmup = run.recipe.warmup_steps(run.steps)
        settings["num_stable_steps"] = run.steps - warmup - run.recipe.decay_steps(run.steps)
    return {"lr_scheduler_type": kind, **({"lr_scheduler_kwargs": settings} if settings else {})}


def _data(run: ToolRun) -> dict[str, Any]:
    named = {option: name for option, (name, _) in DATASETS.items()}
    scored = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    return named | {"dataset_dir": str(run.rows), "media_dir": str(run.rows)} | scored


def _dataset_info() -> dict[str, Any]:
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    columns = {"messages": "messages", "images": "images"}
    return {
        name: {"file_name": file, "formatting": "sharegpt", "columns": columns, "tags": tags}
        for name, file in DATASETS.values()
    }


TOOL = Tool("llama-factory", ".yaml", RowWriter.marked, render)
