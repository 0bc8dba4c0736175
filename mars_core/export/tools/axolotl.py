"""Axolotl: `lora_rank_pattern` and `lora_alpha_pattern` go to PEFT as they are, so it expresses both ranks itself.

They came with its pull request 3673 (July 2026); a version before it drops unknown options without a word. The same
untrained adapter is therefore named as well (`lora_model_dir`), which every version reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from mars_core.export.rows import RowWriter
from mars_core.export.tool import Rendered, Tool, ToolRun, header, scheduler

# Model types in docs/multimodal.qmd.
LISTED = frozenset({"gemma3", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm"})
# On by themselves on one device, where they look for an attention class of the model type's name and fail for most.
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")


def render(run: ToolRun) -> Rendered:
    """The YAML file."""
    notes = _notes(run)
    text = header(run, "Axolotl", "axolotl train THIS_FILE", notes)
    return Rendered(text + yaml.safe_dump(_settings(run), sort_keys=False, allow_unicode=True, width=1000), {}, notes)


def _notes(run: ToolRun) -> tuple[str, ...]:
    notes = [
        "Both ranks stand in lora_rank_pattern and lora_alpha_pattern, by layer (Axolotl's pull request 3673, July "
        "2026). Older versions ignore these options without a word: lora_model_dir names an untrained adapter with the "
        "same ranks, which they continue from.",
        "Axolotl neither cuts nor drops samples by sequence_len where there are images.",
    ]
    notes += _loss_notes(run)
    if run.model_type not in LISTED:
        notes.insert(1, f"Axolotl's list of multimodal models does not name {run.model_type!r}: try it first.")
    if run.several_rates and run.recipe.lora_plus_ratio != 1:
        notes.append(
            "Axolotl has lr_groups or loraplus_lr_ratio, not both at once: the recipe's rates of single modules, "
            f"{run.recipe.learning_rates}, are left out, and all modules have the LLM's."
        )
    return tuple(notes)


def _loss_notes(run: ToolRun) -> list[str]:
    chat = run.chat
    if not chat.answer_start:
        return [
            "WARNING: TRAINS ON PROMPTS. What stands around answers was not found in the model's chat template, so "
            "that Axolotl trains on all tokens; MARS trains on answers only. Use --to trl, or write role_boundaries."
        ]
    notes = [
        "role_boundaries, from the model's own chat template, keep the loss on answers and their ends, as MARS does."
    ]
    if chat.prompt_start != chat.answer_start:
        notes.append(
            f"The model's template writes {chat.answer_start!r} before the answers of a finished conversation, which "
            f"Axolotl trains on, and {chat.prompt_start!r} in its generation prompt, which MARS trains on."
        )
    if run.untrained:
        notes.append("WARNING: some answers have weight 0, which Axolotl does not know here: it trains on them too.")
    return notes


def _settings(run: ToolRun) -> dict[str, Any]:
    return {
        "base_model": run.model,
        "processor_type": "AutoProcessor",
        "trust_remote_code": run.trust_remote_code,
        "skip_prepare_dataset": True,
        "remove_unused_columns": False,
        "sample_packing": False,
        **_data(run),
        **_boundaries(run),
        "sequence_len": run.recipe.max_tokens,
        "output_dir": str(run.output),
        "adapter": "qlora" if run.four_bit else "lora",
        "load_in_4bit": run.four_bit,
        "lora_model_dir": str(run.start),
        "lora_r": run.largest,
        "lora_alpha": run.alpha,
        "lora_dropout": run.recipe.lora_dropout,
        "micro_batch_size": run.micro_batch_size,
        "gradient_accumulation_steps": run.accumulation,
        "gradient_checkpointing": run.gradient_checkpointing,
        "num_epochs": run.epochs,
        "optimizer": "adamw_torch",
        "adam_beta1": run.recipe.beta1,
        "adam_beta2": run.recipe.beta2,
        "adam_epsilon": 1e-8,
        "learning_rate": run.recipe.learning_rates.llm,
        **_rates(run),
        **_schedule(run),
        "warmup_steps": run.recipe.warmup_steps(run.steps),
        "weight_decay": run.recipe.weight_decay,
        "max_grad_norm": run.recipe.max_grad_norm,
        "bf16": run.half,
        "seed": run.seed,
        **dict.fromkeys(KERNELS, False),
        "lora_target_modules": sorted(run.ranks),
        "lora_rank_pattern": _exact(run.ranks),
        "lora_alpha_pattern": _exact(run.alphas),
    }


def _rates(run: ToolRun) -> dict[str, Any]:
    if run.recipe.lora_plus_ratio != 1:
        return {"loraplus_lr_ratio": run.recipe.lora_plus_ratio}
    if not run.several_rates:
        return {}
    # The first group with a path that occurs in a parameter's name has it (core/trainers/mixins/optimizer.py).
    rates = run.recipe.learning_rates
    return {
        "lr_groups": [
            {"name": group, "modules": list(paths), "lr": rates.rate(group)}
            for group, paths in run.modules.items()
            if paths
        ]
    }


def _schedule(run: ToolRun) -> dict[str, Any]:
    kind, settings = scheduler(run)
    return {"lr_scheduler": kind, **({"lr_scheduler_kwargs": settings} if settings else {})}


def _data(run: ToolRun) -> dict[str, Any]:
    def dataset(name: str) -> list[dict[str, str]]:
        return [{"path": str(run.rows / name), "ds_type": "json", "type": "chat_template"}]

    # By epochs: its evals_per_epoch at num_epochs 1 gives an eval_steps of 1.0, which never comes.
    scored = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    return {"datasets": dataset("train.jsonl"), "test_datasets": dataset("validation.jsonl")} | scored


def _boundaries(run: ToolRun) -> dict[str, Any]:
    if not run.chat.answer_start:
        return {}
    return {"role_boundaries": [{"role": "assistant", "start": run.chat.answer_start, "end": run.chat.answer_end}]}


def _exact(values: Mapping[str, float]) -> dict[str, float]:
    # PEFT matches patterns as regular expressions.
    return {re.escape(name): value for name, value in sorted(values.items())}


TOOL = Tool("axolotl", ".yaml", RowWriter.blocks, render)
