"""The `recipe` section: how adapters are trained, in calibration and in the final run alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mars_core.models.targets import Patterns, Targets
from mars_core.ranks import AlphaRule, AlphaRules
from mars_core.rates import LearningRates
from mars_core.training.recipe import Recipe
from tasks.settings.section import Rank, Rate, Section


def _number_or_rule(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, int | float) else value


AlphaText = Annotated[
    str,
    BeforeValidator(_number_or_rule),
    Field(pattern=r"^(2r|sqrt|0*[1-9]\d*(\.\d+)?|0\.\d*[1-9]\d*)$"),
]


class ModuleRates(Section):
    """Peak learning rates of single modules; one that is absent has `recipe.learning_rate`."""

    me: Rate | None = Field(None, description="Of the vision encoder")
    projector: Rate | None = Field(None, description="Of the projector")
    llm: Rate | None = Field(None, description="Of the language model")


class ModuleAlphas(Section):
    """LoRA's alpha in single modules; one that is absent has `recipe.lora_alpha`."""

    me: AlphaText | None = Field(None, description="In the vision encoder")
    projector: AlphaText | None = Field(None, description="In the projector")
    llm: AlphaText | None = Field(None, description="In the language model")


class TargetPatterns(Section):
    """Layers to adapt, as regular expressions that are searched for in their paths; all layers where one is absent."""

    me: str | None = Field(None, description="In the vision encoder")
    projector: str | None = Field(None, description="In the projector")
    llm: str | None = Field(None, description="In the language model")


class RecipeConfig(Section):
    """Fine-tuning settings shared by calibration and the final run; defaults are the paper's (appendix G)."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate")
    batch_size: int = Field(8, ge=1, description="Samples per optimizer step")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the schedule spent in warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping norm over all adapters; 0 for none")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA matrices")
    lora_alpha: AlphaText = Field(
        "2r",
        description="LoRA's alpha: `2r` (the paper), one number for all ranks, or `sqrt`, 8 times the root of the rank "
        "(rsLoRA's scaling); with the last two the best learning rate depends less on the rank",
    )
    max_tokens: int = Field(2048, ge=16, description="Longer samples are dropped and counted, never cut")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of the frozen base weights")
    module_learning_rates: ModuleRates = ModuleRates()
    module_lora_alpha: ModuleAlphas = ModuleAlphas()
    optimizer: Literal["adam", "adamw"] = Field("adam", description="Adam, or AdamW with `weight_decay`")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay, of every trained weight")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's decay of the mean of gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's decay of the mean of squared gradients")
    schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = Field(
        "cosine", description="How the learning rate runs after the warm-up"
    )
    final_share: float = Field(0.0, ge=0, lt=1, description="Share of the peak learning rate that the schedule ends at")
    decay_ratio: float = Field(
        0.2, gt=0, le=1, description="Share of a `warmup_stable_decay` schedule in which the rate falls, by a cosine"
    )
    targets: Literal["all", "attention"] | TargetPatterns = Field(
        "all",
        description="Linear layers that are adapted: all, those of attention alone, or a regular expression per module",
    )
    projector_rank: Rank | None = Field(
        None, description="LoRA rank of the projector, 0 for no adapter there (default: the language model's rank)"
    )
    lora_plus_ratio: float = Field(
        1.0, ge=1, description="Learning rate of LoRA's B over that of A (LoRA+; its authors use 16)"
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _words_or_patterns(cls, value: Any) -> Any:
        """Refuse here what the two forms together would refuse in words of both."""
        if isinstance(value, str) and value not in ("all", "attention"):
            raise ValueError(f"give all, attention, or a regular expression for me, projector or llm, got {value!r}")
        if isinstance(value, dict):
            _check_patterns(value)
        return value

    @model_validator(mode="after")
    def _usable(self) -> RecipeConfig:
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError(f"weight_decay {self.weight_decay:g} is AdamW's: set optimizer to adamw, or leave it out")
        if self.final_share and self.schedule == "constant":
            raise ValueError(
                "final_share: a constant schedule ends at its peak, leave it out or choose another schedule"
            )
        if self.decay_ratio != _default("decay_ratio") and self.schedule != "warmup_stable_decay":
            raise ValueError(f"decay_ratio is for schedule warmup_stable_decay, and schedule is {self.schedule}")
        if self.schedule == "warmup_stable_decay" and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio {self.warmup_ratio:g} and decay_ratio {self.decay_ratio:g} are shares of one schedule: "
                "give two that sum to at most 1"
            )
        return self

    def as_recipe(self) -> Recipe:
        """The recipe as mars_core's record."""
        rates = self.module_learning_rates.model_dump(exclude_none=True)
        alphas = self.module_lora_alpha.model_dump(exclude_none=True)
        common = dict.fromkeys(LearningRates._fields, self.learning_rate)
        rules = {module: _rule(alphas.get(module, self.lora_alpha)) for module in AlphaRules._fields}
        own = {
            "lora_alpha": _rule(self.lora_alpha),
            "module_learning_rates": LearningRates(**(common | rates)) if rates else None,
            "module_lora_alpha": AlphaRules(**rules) if alphas else None,
            "targets": self._targets,
        }
        return Recipe(**{**self.model_dump(), **own})

    @property
    def _targets(self) -> Targets:
        if isinstance(self.targets, TargetPatterns):
            return Patterns(**self.targets.model_dump())
        return self.targets

    def identity(self) -> dict[str, Any]:
        """The settings as stored studies are told apart by: those that came later are left out at their defaults."""
        return self._without_defaults({"lora_alpha", *_CAME_LATER})

    def described(self) -> dict[str, Any]:
        """The settings as people read them, one value each; those that few change only where they were."""
        settings = self._without_defaults(_CAME_LATER)
        return {name: _words(value) if isinstance(value, dict) else value for name, value in settings.items()}

    def _without_defaults(self, names: set[str]) -> dict[str, Any]:
        stored = self.model_dump(mode="json")
        return {
            name: _given(value)
            for name, value in stored.items()
            if not (name in names and getattr(self, name) == _default(name))
        }


_CAME_LATER = {
    *("module_learning_rates", "module_lora_alpha", "optimizer", "weight_decay", "beta1", "beta2", "schedule"),
    *("final_share", "decay_ratio", "targets", "projector_rank", "lora_plus_ratio"),
}


def _check_patterns(patterns: Mapping[str, Any]) -> None:
    unknown = [name for name in patterns if name not in TargetPatterns.model_fields]
    if unknown:
        raise ValueError(f"there is no such key as {unknown[0]}: it has {', '.join(TargetPatterns.model_fields)}")
    for name, pattern in patterns.items():
        try:
            re.compile(str(pattern or ""))
        except re.error as error:
            raise ValueError(f"{name}: {pattern!r} is no regular expression ({error})") from error


def _default(name: str) -> Any:
    return RecipeConfig.model_fields[name].default


def _rule(text: str) -> AlphaRule:
    """How alpha follows from the rank, as mars_core has it."""
    return "2r" if text == "2r" else "sqrt" if text == "sqrt" else float(text)


def _given(value: Any) -> Any:
    return {name: own for name, own in value.items() if own is not None} if isinstance(value, dict) else value


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
