"""What every export of a pair to another fine-tuning tool is made from, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mars_core.data.records import Sample
from mars_core.export.chat_facts import ChatFacts
from mars_core.export.rows import RowWriter
from mars_core.models.partition import Group
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe


@dataclass(frozen=True)
class ToolRun:
    """The final fine-tune of a pair, as another tool is to run it.

    study: its name. model: hub id or folder; model_type as transformers names it. ranks, alphas: LoRA rank and alpha of
    every adapted layer, by its path. modules: paths of each group's modules, the projector's first, which may lie
    inside the ME. steps: optimizer steps. micro_batch_size: samples per forward pass. rows: folder with train.jsonl and
    validation.jsonl. start: folder of the pair's untrained adapter. output: where the tool is to put its results.
    chat: of the model's template. untrained: whether the rows have answers that are not trained on. layer_wise: name of
    the way that the pair was shared out over layers, None for the pair itself.
    """

    study: str
    model: str
    model_type: str
    trust_remote_code: bool
    four_bit: bool
    gradient_checkpointing: bool
    pair: RankPair
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    modules: Mapping[Group, Sequence[str]]
    recipe: Recipe
    steps: int
    epochs: float
    seed: int
    micro_batch_size: int
    rows: Path
    start: Path
    output: Path
    chat: ChatFacts
    untrained: bool = False
    layer_wise: str | None = None

    @property
    def largest(self) -> int:
        """The largest rank: LoRA's top-level one."""
        return max(self.ranks.values())

    @property
    def alpha(self) -> float:
        """`lora_alpha` of the largest rank: LoRA's top-level one."""
        return self.alphas[max(self.ranks, key=lambda name: self.ranks[name])]

    @property
    def several_rates(self) -> bool:
        """Whether modules have peak learning rates of their own."""
        return len(set(self.recipe.learning_rates)) > 1

    @property
    def accumulation(self) -> int:
        """Forward passes per optimizer step."""
        return self.recipe.batch_size // self.micro_batch_size

    @property
    def half(self) -> bool:
        """Whether the base weights are in bfloat16."""
        return self.recipe.dtype == "bfloat16"


def scheduler(run: ToolRun) -> tuple[str, dict[str, float]]:
    """The recipe's schedule as transformers' Trainer takes it: `lr_scheduler_type` and `lr_scheduler_kwargs`.

    `learning_rate` must be the LLM's rate.
    """
    recipe = run.recipe
    share = recipe.final_share
    if recipe.schedule == "constant":
        return "constant_with_warmup", {}
    if recipe.schedule == "warmup_stable_decay":
        decay = recipe.decay_steps(run.steps)
        return recipe.schedule, {"num_decay_steps": decay, "min_lr_ratio": share}
    if recipe.schedule == "linear":
        return ("polynomial", {"power": 1.0, "lr_end": share * recipe.learning_rates.llm}) if share else ("linear", {})
    return ("cosine_with_min_lr", {"min_lr_rate": share}) if share else ("cosine", {})


@dataclass(frozen=True)
class Rendered:
    """A tool's configuration file, and small files that it reads (by name, beside the rows).

    notes: what a user must know; they stand in the file's header too.
    """

    text: str
    files: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """A fine-tuning tool. suffix: of its configuration file. row: a sample as it reads one."""

    name: str
    suffix: str
    row: Callable[[RowWriter, Sample], dict[str, Any]]
    render: Callable[[ToolRun], Rendered]


def header(run: ToolRun, tool: str, command: str, notes: tuple[str, ...]) -> str:
    """Comment lines that open a configuration file: what it is, how it is run, and what to know."""
    lines = [
        f"{tool}: fine-tune with the rank pair of {run.study}, r_me = {run.pair.r_me} and r_llm = {run.pair.r_llm}"
        + (f", shared out over the layers ({run.layer_wise})." if run.layer_wise else "."),
        f"Run it with: {command}",
        "",
        *(f"- {note}" for note in (*notes, *_common_notes(run))),
    ]
    # A name with a line break in it would go on as code.
    return "".join(f"# {' '.join(line.splitlines())}".rstrip() + "\n" for line in lines)


def _common_notes(run: ToolRun) -> tuple[str, ...]:
    notes = [
        f"Written for one device: a step is {run.recipe.batch_size} samples. With n devices, divide the accumulation "
        "steps by n.",
        "Module paths are those of transformers 5; use the tool with it.",
    ]
    if run.recipe.schedule == "warmup_stable_decay":
        notes.append(f"The schedule's steps are those of a run of {run.steps} steps: change them with its length.")
    notes.append(
        "The rows are MARS's training and validation splits, without samples over recipe.max_tokens; the test split is "
        "left out on purpose. Images that programs read in more than one way (transparency, deep grey, a camera's "
        "orientation), and those inside table files, lie beside them as MARS shows them."
    )
    return tuple(notes)
