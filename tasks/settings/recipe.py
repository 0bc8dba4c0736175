"""The `recipe` section: how adapters are trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from mars_core.ranks import AlphaRule
from mars_core.training.recipe import Recipe
from tasks.settings.section import Section


class RecipeConfig(Section):
    """Fine-tuning settings shared by calibration and the final run; defaults are the paper's (appendix G)."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate")
    batch_size: int = Field(8, ge=1, description="Samples per optimizer step")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the schedule spent in warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping norm over all adapters; 0 for none")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA matrices")
    lora_alpha: str = Field(
        "2r",
        pattern=r"^(2r|sqrt|0*[1-9]\d*(\.\d+)?|0\.\d*[1-9]\d*)$",
        description="LoRA's alpha: `2r` (the paper), one number for all ranks, or `sqrt`, 8 times the root of the rank "
        "(rsLoRA's scaling); with the last two the best learning rate depends less on the rank",
    )
    max_tokens: int = Field(2048, ge=16, description="Longer samples are dropped and counted, never cut")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Dtype of the frozen base weights")

    def as_recipe(self) -> Recipe:
        """The recipe as mars_core's record."""
        return Recipe(**{**self.model_dump(), "lora_alpha": self.alpha_rule})

    @field_validator("lora_alpha", mode="before")
    @classmethod
    def _number_or_rule(cls, value: Any) -> Any:
        return f"{value:g}" if isinstance(value, int | float) else value

    @property
    def alpha_rule(self) -> AlphaRule:
        """How alpha follows from the rank, as mars_core has it."""
        return "2r" if self.lora_alpha == "2r" else "sqrt" if self.lora_alpha == "sqrt" else float(self.lora_alpha)

    def identity(self) -> dict[str, Any]:
        """The settings as stored studies are told apart by: one that came later is left out at its default."""
        stored = self.model_dump(mode="json")
        if self.lora_alpha == "2r":
            del stored["lora_alpha"]
        return stored
