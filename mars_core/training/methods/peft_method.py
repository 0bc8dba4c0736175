"""What the methods that PEFT implements have in common."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import cast

from peft import LoraConfig, PeftModel
from torch import nn

from mars_core.models.lora import remove_adapters, wrap_with
from mars_core.models.partition import Partition
from mars_core.training.methods.method import Method
from mars_core.training.recipe import Recipe


class PeftMethod(Method):
    """A method whose result is a PEFT adapter."""

    @abstractmethod
    def config(self, partition: Partition, *, recipe: Recipe, steps: int) -> LoraConfig:
        """PEFT's configuration, with every adapted layer named in full."""

    def wrap(self, model: nn.Module, partition: Partition, *, seed: int, recipe: Recipe, steps: int) -> nn.Module:
        """Wrap `model` with freshly initialised adapters."""
        self.check(partition, recipe)
        wrapped: nn.Module = wrap_with(model, self.config(partition, recipe=recipe, steps=steps), seed=seed)
        return wrapped

    def unwrap(self, wrapped: nn.Module) -> None:
        """Take the adapters off."""
        remove_adapters(cast(PeftModel, wrapped))

    def save(self, wrapped: nn.Module, folder: Path) -> None:
        """Write the adapter as PEFT does."""
        cast(PeftModel, wrapped).save_pretrained(str(folder), save_embedding_layers=False)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Read the adapter as PEFT does."""
        loaded: nn.Module = PeftModel.from_pretrained(model, str(folder))
        return loaded
