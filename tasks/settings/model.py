"""The `family` and `loading` sections: where a model's modules are and how it is loaded."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from mars_core.models.families import Family
from mars_core.models.load_options import Loading
from tasks.settings.section import Section


class FamilyConfig(Section):
    """Where a model that MARS does not know keeps its modules, as paths that `model.named_modules()` gives."""

    me: str = Field(min_length=1, description="Path of the vision encoder")
    projector: tuple[str, ...] = Field(
        (), description="Paths of what maps vision features to LLM embeddings; may lie inside `me`"
    )
    llm: str = Field(min_length=1, description="Path of the language model, without its output head")
    unused: tuple[str, ...] = Field(
        (), description="Regular expressions of linear layers that no logit depends on; they are never adapted"
    )

    @model_validator(mode="after")
    def _usable(self) -> FamilyConfig:
        for pattern in self.unused:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"unused: {pattern!r} is no regular expression ({error})") from error
        return self

    def as_family(self) -> Family:
        """The paths as mars_core's record."""
        return Family(**self.model_dump())


class LoadingConfig(Section):
    """How the base model is loaded."""

    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = (
        Field(None, description="Attention of transformers (default: its own choice); results differ in rounding only")
    )
    trust_remote_code: bool = Field(False, description="Run code that lies in the checkpoint; read it first")
    four_bit: bool = Field(
        False, description="Frozen weights in 4 bits (NF4, as QLoRA): needs bitsandbytes, and changes every result"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Final run: compute activations again in the backward pass; less memory, slower",
    )
    spread: bool = Field(False, description="Final run and test: spread the base model over all visible GPUs")

    def as_loading(self) -> Loading:
        """The settings as mars_core's record."""
        return Loading(self.attn_implementation, self.trust_remote_code, self.four_bit)
