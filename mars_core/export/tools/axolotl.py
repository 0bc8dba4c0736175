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

# Model types in docs/multimodal.qmd with Axolotl's template; None: with the model's own, in which Axolotl does not find
# the answers.
CHAT_TEMPLATES: dict[str, str | None] = {
    "gemma3": "gemma3",
    "internvl": None,
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen2_vl",
    "smolvlm": None,
}
# Stopped by an error of its processing of these types (benchmarks/exports_run.py).
FAILED = frozenset({"internvl", "smolvlm"})
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
    if not CHAT_TEMPLATES.get(run.model_type):
        notes.insert(
            0,
            "WARNING: TRAINS ON PROMPTS. Axolotl 0.19.0 knows no role boundaries of this model type and puts the loss "
            "on questions too, where MARS trains on answers only; its option role_boundaries stops it with an error. "
            "Use --to trl.",
        )
    if run.model_type in FAILED:
        notes.insert(0, f"WARNING: Axolotl 0.19.0 stopped on a small model of type {run.model_type!r}: use --to trl.")
    if run.model_type == "qwen3_vl":
        notes.append(
            "Axolotl's template qwen2_vl puts a system prompt in front, which Qwen3-VL's own does not have: the "
            "trained prompt is not the one that generation starts from. Use --to trl for the same."
        )
    if run.untrained:
        notes.insert(0, "WARNING: some answers have weight 0, which Axolotl does not know here: it trains on them too.")
    if run.model_type not in CHAT_TEMPLATES:
        notes.insert(1, f"Axolotl's list of multimodal models does not name {run.model_type!r}: try it first.")
    if run.several_rates and run.recipe.lora_plus_ratio != 1:
        notes.append(
            "Axolotl has lr_groups or loraplus_lr_ratio, not both at once: the recipe's rates of single modules, "
            f"{run.recipe.learning_rates}, are left out, and all modules have the LLM's."
        )
    return tuple(notes)


def _settings(run: ToolRun) -> dict[str, Any]:
    template = CHAT_TEMPLATES.get(run.model_type)
    return {
        "base_model": run.model,
        "processor_type": "AutoProcessor",
        "trust_remote_code": run.trust_remote_code,
        "skip_prepare_dataset": True,
        "remove_unused_columns": False,
        "sample_packing": False,
        **({"chat_template": template} if template else {}),
        **_data(run),
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


def _exact(values: Mapping[str, float]) -> dict[str, float]:
    # PEFT matches patterns as regular expressions.
    return {re.escape(name): value for name, value in sorted(values.items())}


TOOL = Tool("axolotl", ".yaml", RowWriter.blocks, render)
